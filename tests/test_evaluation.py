import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from PIL import Image

from sicog_trl.checkpoints import resolve_adapter
from sicog_trl.data import IMAGES_FEATURES, save
from sicog_trl.digits import evaluation_pool
from sicog_trl.digits.model import build_model
from sicog_trl.evaluation.benchmarks import select_tasks
from sicog_trl.evaluation.run import EvaluationConfig, collect, conditions_of, evaluate
from sicog_trl.evaluation.task_files import write_task_files
from sicog_trl.responses import build_steps


ROOT = Path(__file__).parent.parent
NUM_ROWS = 6
TASKS = select_tasks("digits")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("development")
    for split, dataset in evaluation_pool("development", NUM_ROWS, seed=0).items():
        save(dataset, folder, split)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("base", "trained")}
    for seed, folder in enumerate(folders.values()):
        build_model(folder, seed)
    return folders


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lmms_eval")
    from sicog_trl.evaluation import harness

    return harness


@pytest.fixture(scope="module")
def run(pool, models, harness, tmp_path_factory):
    config = EvaluationConfig(
        models=models, dataset_name=str(pool), output_dir=str(tmp_path_factory.mktemp("scores")), batch_size=4
    )
    return config, evaluate(config)


def copy_run(run, tmp_path):
    config, _ = run
    shutil.copytree(config.output_dir, tmp_path / "scores")
    return EvaluationConfig(**{**vars(config), "output_dir": str(tmp_path / "scores")})


# The run ------------------------------------------------------------------------------------------------------------


def test_every_model_has_every_result(run):
    config, scores = run
    for name in ("base", "trained"):
        assert set(scores["models"][name]) == set(TASKS)
        for task, entry in scores["models"][name].items():
            assert entry["n"] == NUM_ROWS
            assert set(TASKS[task].benchmark.headline) < set(entry)
            assert all(0 <= value <= 1 for metric, value in entry.items() if metric != "n")
            lines = Path(config.output_dir, name, f"samples_{task}.jsonl").read_text().splitlines()
            assert [json.loads(line)["doc_id"] for line in lines] == list(range(NUM_ROWS))
    assert json.loads(Path(config.output_dir, "scores.json").read_text()) == scores


def test_comparisons_and_manifest(run):
    _, scores = run
    found = {(entry["before"], entry["after"], entry["task"], entry["metric"]) for entry in scores["comparisons"]}
    metrics = [(name, metric) for name, task in TASKS.items() for metric in task.benchmark.headline]
    assert found == {("base", "trained", *each) for each in metrics}
    assert {"command", "versions", "hardware", "seconds", "weights"} <= set(scores["manifest"])
    assert len(set(scores["manifest"]["weights"].values())) == 2


def test_a_random_model_never_stops_and_that_is_counted(run):
    _, scores = run
    health = scores["health"]["base"]["digits_vqa"]
    assert health["truncated"] > 0
    assert health["mean_tokens"] > 1


def test_batches_do_not_change_answers(run, pool, models, harness, tmp_path):
    config, _ = run
    other = EvaluationConfig(
        models={"base": models["base"]}, dataset_name=str(pool), output_dir=str(tmp_path), batch_size=1
    )
    evaluate(other)
    for task in TASKS:
        file = f"base/samples_{task}.jsonl"
        assert Path(config.output_dir, file).read_text() == (tmp_path / file).read_text()


def test_two_processes_give_the_same_answers(run, tmp_path):
    config, _ = run
    settings = {"models": {"base": config.models["base"]}, "tasks": ["digits_vqa"], "limit": NUM_ROWS - 1}
    settings |= {"dataset_name": config.dataset_name, "output_dir": str(tmp_path)}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/multi_cpu.yaml"]
    command = [*launch, "--main_process_port", "0", "recipes/evaluate.py", "--config", str(tmp_path / "evaluate.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("digits_vqa") == 1
    file = "base/samples_digits_vqa.jsonl"
    lines = Path(config.output_dir, file).read_text().splitlines()
    assert (tmp_path / file).read_text().splitlines() == lines[:-1]


def test_a_second_run_does_what_is_missing(run, tmp_path):
    config = copy_run(run, tmp_path)
    folder = Path(config.output_dir)
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/*_*.json*")}
    missing = folder / "trained" / "results_digits_vqa.json"
    missing.unlink()
    scores = evaluate(config)
    changed = {file.name for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed == {"results_digits_vqa.json", "samples_digits_vqa.jsonl"}
    assert scores["models"] == run[1]["models"]


def test_a_folder_with_other_work_is_refused(run, models, tmp_path):
    config = copy_run(run, tmp_path)
    config.models = {"base": models["trained"]}
    config.reference = ["base"]
    with pytest.raises(FileExistsError, match=r"its weights is 'sha256:.*', here it is 'sha256:"):
        evaluate(config)
    config.models, config.limit = {"base": models["base"]}, 2
    with pytest.raises(FileExistsError, match="its num_rows is 6, here it is 2"):
        evaluate(config)


def test_a_missing_result_is_an_error(run, tmp_path):
    config = copy_run(run, tmp_path)
    samples = Path(config.output_dir, "trained", "samples_digits_vqa.jsonl")
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="counts 6 rows, but 5 samples"):
        collect(Path(config.output_dir), config, select_tasks("digits"))
    Path(config.output_dir, "base", "results_digits_vqa.json").unlink()
    with pytest.raises(FileNotFoundError, match="base has no result on digits_vqa"):
        collect(Path(config.output_dir), config, select_tasks("digits"))


def test_the_result_names_rows_and_model_that_cannot_be_exchanged(run, pool, models, tmp_path):
    config, _ = run
    shutil.copytree(pool, tmp_path / "pool")
    other = EvaluationConfig(**{**vars(config), "dataset_name": str(tmp_path / "pool")})
    assert conditions_of(other, TASKS["digits_vqa"]) == conditions_of(config, TASKS["digits_vqa"])
    save(evaluation_pool("development", NUM_ROWS, seed=1)["vqa"], tmp_path / "pool", "vqa")
    assert conditions_of(other, TASKS["digits_vqa"])["rows"] != conditions_of(config, TASKS["digits_vqa"])["rows"]


# The scorers, asked by lmms-eval ------------------------------------------------------------------------------------


def answer_from_truth(task, doc):
    """What a model that knows the truth says under the protocol of the task."""
    if task == "digits_caption_step_by_step":
        return build_steps("chain_of_description", ["Digits.", "Colours.", "Order.", "Cells.", doc["answer"]])
    if task == "digits_reasoning_step_by_step":
        return build_steps("chain_of_thought", ["Add.", "Digits.", "Sum.", doc["answer"]])
    return doc["answer"]


def answer_wrongly(task, doc):
    """A well-formed answer that is wrong in one word."""
    change = {"yes": "no", "no": "yes"}
    wrong = change.get(doc["answer"]) or doc["answer"].replace(" at the ", " one at the ")
    return answer_from_truth(task, {**doc, "answer": wrong if wrong != doc["answer"] else "99"})


def answer_with_reasoning(task, doc):
    """A right answer that only the step-by-step protocol may accept."""
    return "Let me think. " + answer_from_truth(task, doc)


@pytest.fixture
def ask(harness, pool, tmp_path):
    from lmms_eval.api.model import lmms

    class Stub(lmms):
        is_simple = False

        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def generate_until(self, requests):
            rows = [
                (task, self.task_dict[task][split][doc_id]) for *_, doc_id, task, split in (r.args for r in requests)
            ]
            return [self.answer(task, row) for task, row in rows]

        def loglikelihood(self, requests):
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    def ask(task, answer):
        write_task_files(tmp_path / "tasks", str(pool), {task: TASKS[task]})
        header = {"model": {"name": "stub"}, "conditions": {"num_rows": NUM_ROWS}}
        harness.run_task(Stub(answer), task, tmp_path, header)
        return json.loads((tmp_path / "stub" / f"results_{task}.json").read_text())["scores"]

    return ask


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_full_marks_and_wrong_ones_nothing(ask, task):
    right, wrong = ask(task, answer_from_truth), ask(task, answer_wrongly)
    for metric in TASKS[task].benchmark.headline:
        assert (right[metric], wrong[metric]) == (1, 0)


def test_the_yes_ratio_is_that_of_the_predictions(ask):
    assert ask("digits_hallucination", answer_from_truth)["yes_ratio"] == 0.5
    assert ask("digits_hallucination", lambda task, doc: "Yes.")["yes_ratio"] == 1


def test_an_incomplete_chain_scores_nothing(ask):
    scores = ask("digits_reasoning_step_by_step", lambda task, doc: doc["answer"])
    assert (scores["accuracy"], scores["complete"]) == (0, 0)
    assert ask("digits_reasoning_direct", answer_with_reasoning)["accuracy"] == 0


def test_what_is_found_and_what_is_invented_are_two_things(ask):
    def describe_too_much(task, doc):
        return (
            doc["answer"]
            + " a red three at the top left, a red three at the top right, a red three at the bottom left"
        )

    scores = ask("digits_caption", describe_too_much)
    assert scores["object_accuracy"] == 1
    assert 0 < scores["object_precision"] < 1
    scores = ask("digits_caption", lambda task, doc: "Nothing.")
    assert scores["object_precision"] == 0


def test_rows_that_were_not_scored_are_an_error(harness, ask, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "NUM_ROWS", NUM_ROWS + 1)
    with pytest.raises(RuntimeError, match="6 of 7 rows were scored"):
        ask("digits_vqa", answer_from_truth)
    assert not (tmp_path / "stub" / "results_digits_vqa.json").exists()


# The wrapper --------------------------------------------------------------------------------------------------------


def test_the_checkpoint_cannot_change_how_it_is_asked(harness, models, tmp_path):
    folder = shutil.copytree(models["base"], tmp_path / "model")
    settings = {
        "do_sample": True,
        "temperature": 5.0,
        "repetition_penalty": 9.0,
        "max_length": 3,
        "eos_token_id": [3, 7],
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = harness.load_model(str(folder), batch_size=2)
    config = model.model.generation_config
    assert not config.do_sample
    assert (config.repetition_penalty, config.max_length) == (None, None)
    assert config.eos_token_id == [3, 7]
    assert config.suppress_tokens == [model.processor.tokenizer.convert_tokens_to_ids("<image>")]


def test_the_prompt_is_the_one_of_training(harness, models):
    from lmms_eval.protocol import ChatMessages
    from trl.data_utils import prepare_multimodal_messages

    picture = Image.new("RGB", (32, 32))
    model = harness.load_model(models["base"])
    content = [{"type": "image", "url": picture}, {"type": "text", "text": "Describe the image in detail."}]
    asked = ChatMessages(messages=[{"role": "user", "content": content}]).to_hf_messages()
    trained = prepare_multimodal_messages([{"role": "user", "content": content[1]["text"]}], images=[picture])
    render = model.processor.apply_chat_template
    assert render(asked, add_generation_prompt=True) == render(trained, add_generation_prompt=True)


def test_several_images_and_none(harness, models, tmp_path):
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    rows = [
        {"id": str(n), "images": pictures[:n], "question": f"Is there a red {word}?", "answer": "yes"}
        for n, word in enumerate(["one", "two", "three"])
    ]
    save(Dataset.from_list(rows, features=IMAGES_FEATURES), tmp_path / "rows", "vqa")
    texts = []
    for batch_size in (1, 3):
        config = EvaluationConfig(
            models={"base": models["base"]},
            dataset_name=str(tmp_path / "rows"),
            output_dir=str(tmp_path / str(batch_size)),
            tasks=["digits_vqa"],
            batch_size=batch_size,
        )
        evaluate(config)
        texts.append((tmp_path / str(batch_size) / "base" / "samples_digits_vqa.jsonl").read_text())
    assert texts[0] == texts[1]


def test_an_adapter_is_loaded_with_its_base(harness, models, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(models["base"])
    settings = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    assert resolve_adapter(str(tmp_path / "adapter")) == (models["base"], str(tmp_path / "adapter"))
    adapted, base = (harness.load_model(str(path)).model for path in (tmp_path / "adapter", models["base"]))
    layer = "model.language_model.layers.0.self_attn.{}_proj.weight"
    adapted, base = adapted.state_dict(), base.state_dict()
    assert not torch.equal(adapted[layer.format("q")], base[layer.format("q")])
    assert torch.equal(adapted[layer.format("k")], base[layer.format("k")])


def test_an_adapter_without_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "runs/gone/model"}))
    with pytest.raises(FileNotFoundError, match="names the base model 'runs/gone/model'"):
        resolve_adapter(str(tmp_path))


def test_a_model_without_processor(harness, models, tmp_path):
    folder = shutil.copytree(models["base"], tmp_path / "model")
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="hold no image processor"):
        harness.load_model(str(folder))


def test_lmms_eval_finds_the_wrapper(harness):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from sicog_trl.evaluation import manifests

    registry = ModelRegistryV2()
    for manifest in manifests():
        registry.register_manifest(manifest)
    assert registry.get_model_class("sicog_trl") is harness.VisionLanguageModel


# The edges ----------------------------------------------------------------------------------------------------------


def test_importing_does_not_import_lmms_eval():
    code = (
        "import sys, sicog_trl, sicog_trl.evaluation.run, sicog_trl.evaluation.comparison\n"
        "print({'lmms_eval', 'torchvision', 'vllm', 'ray', 'deepspeed'} & set(sys.modules))"
    )
    path = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "`models` is missing"),
        ({"models": {"a/b": "x"}}, "'a/b' cannot name the folder"),
        ({"reference": ["nobody"]}, "'nobody' is not among the models"),
        ({"suite": "digit"}, "unknown suite 'digit'"),
        ({"tasks": ["digits_vqe"]}, "unknown task 'digits_vqe'"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**{"models": {"base": "x"}, "dataset_name": "d", "output_dir": "o", **change})


def test_a_model_that_is_not_there(pool, tmp_path):
    config = EvaluationConfig(models={"base": "runs/gone/model"}, dataset_name=str(pool), output_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="model folder runs/gone/model does not exist"):
        evaluate(config)


def test_a_dataset_without_the_split(models, tmp_path):
    config = EvaluationConfig(models=models, dataset_name=str(tmp_path), output_dir=str(tmp_path / "scores"))
    with pytest.raises(FileNotFoundError, match=r"has no file description-\*.parquet"):
        evaluate(config)


def test_the_recipe(run, tmp_path):
    config = copy_run(run, tmp_path)
    settings = {name: getattr(config, name) for name in ("models", "dataset_name", "output_dir", "batch_size")}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, str(ROOT / "recipes" / "evaluate.py"), "--config", str(tmp_path / "evaluate.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "digits_reasoning_step_by_step" in done.stdout
    assert "trained - base" in done.stdout
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump({**settings, "refrence": ["base"]}))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "refrence" in done.stderr
