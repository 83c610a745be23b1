import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from benchmark_rows import write_rows
from datasets import Dataset
from huggingface_hub import ModelCard
from judge_server import JudgeServer
from judged_rows import write_judged_rows
from openai_server import StubServer
from PIL import Image
from trl import TrlParser

from sicog_trl.checkpoints import resolve_adapter
from sicog_trl.data import IMAGES_FEATURES, save
from sicog_trl.digits import evaluation_pool
from sicog_trl.digits.model import build_model
from sicog_trl.evaluation import processes
from sicog_trl.evaluation.benchmarks import select_tasks
from sicog_trl.evaluation.comparison import read_samples
from sicog_trl.evaluation.conditions import conditions_of
from sicog_trl.evaluation.run import EvaluationConfig, collect, evaluate
from sicog_trl.evaluation.task_files import write_task_files
from sicog_trl.files import AnotherRunError
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


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Ask in the process of the tests, which imports lmms-eval once; `test_evaluation_processes.py` starts others."""
    from sicog_trl.evaluation.worker import run_job

    def run_here(job):
        run_job(json.loads(json.dumps(job)))
        return True, "it raised nothing"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "run_process", run_here)
        yield


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


def test_the_recipe_ends_with_the_page_and_the_cards(run, models, tmp_path):
    config = copy_run(run, tmp_path)
    shutil.copytree(models["trained"], tmp_path / "model")
    config.models = {**config.models, "trained": str(tmp_path / "model")}
    settings = {**vars(config), "update_model_cards": True}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, "recipes/evaluate.py", "--config", str(tmp_path / "evaluate.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = Path(config.output_dir)
    assert f"page: {folder / 'evaluation.html'}" in done.stdout
    # the library `evaluate` draws it, although the script has its name
    assert (folder / "radar_direct.svg").is_file() and "Pictures need" not in (folder / "evaluation.md").read_text()
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert {result.dataset_type for result in card.data.eval_results} == {
        task.benchmark.name for task in TASKS.values()
    }


def test_a_card_that_cannot_be_read_hides_nothing(run, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("recipe_evaluate", ROOT / "recipes" / "evaluate.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = copy_run(run, tmp_path)
    folder = Path(config.output_dir)
    (folder / "trained" / "results_digits_vqa.json").unlink()
    monkeypatch.setattr(processes, "run_process", lambda job: (True, "killed by a test"))
    with pytest.raises(SystemExit) as ended:
        recipe.main(config)
    assert ended.value.code == 1
    (folder / "evaluation.html").unlink()
    shutil.copytree(config.models["base"], tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\na: [\n---\n")
    config.models, config.update_model_cards = {**config.models, "base": str(tmp_path / "model")}, True
    capsys.readouterr()
    with pytest.raises(ValueError, match="metadata cannot be read"):
        recipe.main(config)
    assert "- trained, digits_vqa: killed by a test" in capsys.readouterr().out
    assert "killed by a test" in (folder / "evaluation.html").read_text()


def test_without_a_single_result_there_is_still_a_page(run, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("recipe_evaluate", ROOT / "recipes" / "evaluate.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = EvaluationConfig(**{**vars(run[0]), "output_dir": str(tmp_path), "update_model_cards": True})
    monkeypatch.setattr(processes, "run_process", lambda job: (False, "no weights"))
    with pytest.raises(SystemExit):
        recipe.main(config)
    assert f"{2 * len(TASKS)} results are missing" in capsys.readouterr().out
    assert "no weights" in (tmp_path / "evaluation.md").read_text()


def test_a_second_run_does_what_is_missing(run, tmp_path):
    config = copy_run(run, tmp_path)
    folder = Path(config.output_dir)
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/*_*.json*")}
    (folder / "trained" / "results_digits_vqa.json").unlink()
    (folder / "base" / "samples_digits_hallucination.jsonl").unlink()
    scores = evaluate(config)
    changed = {file.relative_to(folder) for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed == {
        *(Path("trained", "results_digits_vqa.json"), Path("trained", "samples_digits_vqa.jsonl")),
        *(
            Path("base", f"{name}_digits_hallucination.{end}")
            for name, end in (("results", "json"), ("samples", "jsonl"))
        ),
    }
    assert scores["models"] == run[1]["models"]


def test_new_weights_at_an_old_path_are_not_taken_for_the_old_ones(pool, models, tmp_path):
    path = shutil.copytree(models["base"], tmp_path / "model")
    config = EvaluationConfig(
        models={"base": str(path)}, dataset_name=str(pool), output_dir=str(tmp_path / "out"), tasks=["digits_vqa"]
    )
    samples = tmp_path / "out" / "base" / "samples_digits_vqa.jsonl"
    evaluate(config)
    old = samples.read_text()
    shutil.copytree(models["trained"], path, dirs_exist_ok=True)
    with pytest.raises(AnotherRunError, match=r"weights is 'sha256:.*' there and 'sha256:.*or delete"):
        evaluate(config)
    assert samples.read_text() == old
    shutil.rmtree(samples.parent)
    evaluate(config)
    assert samples.read_text() != old


def test_a_folder_of_other_conditions_is_refused(run, tmp_path):
    config = copy_run(run, tmp_path)
    config.limit = 2
    with pytest.raises(AnotherRunError, match="num_rows is 6 there and 2 here"):
        evaluate(config)


def test_a_second_run_at_once_in_one_folder_is_refused(run, tmp_path):
    config = copy_run(run, tmp_path)
    refused = pytest.raises(RuntimeError, match=r"another evaluation is writing to .*scores; wait")
    with processes.alone_in(Path(config.output_dir, "tasks")), refused:
        evaluate(config)
    assert evaluate(config)["models"] == run[1]["models"]


def test_one_row_is_enough(run, tmp_path):
    config, _ = run
    scores = evaluate(EvaluationConfig(**{**vars(config), "output_dir": str(tmp_path), "limit": 1}))
    assert {entry["n"] for entry in scores["comparisons"]} == {1}
    assert {entry["smallest_detectable"] for entry in scores["comparisons"]} == {None}


def test_what_a_task_writes_stays_with_its_model(run, harness, tmp_path, monkeypatch):
    config, _ = run
    seen, ask = [], harness.simple_evaluate
    monkeypatch.setattr(harness, "simple_evaluate", lambda **given: seen.append(given) or ask(**given))
    changes = {"output_dir": str(tmp_path), "tasks": ["digits_vqa", "digits_hallucination"]}
    stale = tmp_path / "base" / "files" / "digits_vqa" / "gpt_response" / "what the judge said of other weights.json"
    stale.parent.mkdir(parents=True)
    stale.touch()
    evaluate(EvaluationConfig(**{**vars(config), **changes}))
    assert not stale.exists()
    assert len({given["cli_args"].output_path for given in seen}) == len(seen) == 4
    assert all(given.get("use_cache") is None for given in seen)


def test_a_missing_result_is_an_error(run, tmp_path):
    config = copy_run(run, tmp_path)
    samples = Path(config.output_dir, "trained", "samples_digits_vqa.jsonl")
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="counts 6 rows, but 5 samples"):
        collect(Path(config.output_dir), config, select_tasks("digits"))
    Path(config.output_dir, "base", "results_digits_vqa.json").unlink()
    with pytest.raises(FileNotFoundError, match="base has no result on digits_vqa"):
        collect(Path(config.output_dir), config, select_tasks("digits"))


def test_a_failure_is_a_gap_with_a_reason(run, tmp_path):
    config = copy_run(run, tmp_path)
    Path(config.output_dir, "trained", "results_digits_vqa.json").unlink()
    failures = [{"model": "trained", "task": "digits_vqa", "reason": "killed"}]
    scores = collect(Path(config.output_dir), config, TASKS, failures)
    assert scores["failures"] == failures
    assert set(scores["models"]["base"]) - set(scores["models"]["trained"]) == {"digits_vqa"}
    assert {entry["task"] for entry in scores["comparisons"]} == set(TASKS) - {"digits_vqa"}


def test_conditions_change_with_what_changes_a_score(run, pool, tmp_path):
    config, _ = run
    task, (direct, chain) = TASKS["digits_vqa"], select_tasks("judge_free", ["mmstar"]).values()
    shutil.copytree(pool, tmp_path / "pool")
    moved = EvaluationConfig(**{**vars(config), "dataset_name": str(tmp_path / "pool")})
    assert conditions_of(moved, task) == conditions_of(config, task)
    save(evaluation_pool("development", NUM_ROWS, seed=1)["vqa"], tmp_path / "pool", "vqa")
    assert conditions_of(moved, task)["rows"] != conditions_of(config, task)["rows"]

    hub = EvaluationConfig(models={"base": "x"}, output_dir="o", suite="judge_free")
    found = conditions_of(hub, direct)
    assert found["rows"] == {
        **{"path": "Lin-Chen/MMStar", "config": None, "split": "val", "revision": None},
        "limit": None,
    }
    assert found["backend"] == "transformers" and found["device"] == "cpu"

    def differing(other):
        return {name for name in found if other[name] != found[name]}

    assert differing(conditions_of(hub, chain)) == {"protocol", "generation"}
    assert differing(conditions_of(EvaluationConfig(**{**vars(hub), "limit": 5}), direct)) == {"rows"}
    assert differing(conditions_of(EvaluationConfig(**{**vars(hub), "dtype": "float32"}), direct)) == {"dtype"}
    served = EvaluationConfig(**{**vars(hub), "base_url": "http://127.0.0.1:1/v1"})
    assert differing(conditions_of(served, direct)) >= {"backend", "dtype", "device"}
    judged = {"judge_base_url": "http://127.0.0.1:1/v1", "judge_model": "judge"}
    judged = EvaluationConfig(**{**vars(hub), **judged, "suite": "sicog", "tasks": ["mmvet", "mmstar"]})
    judges = {name: conditions_of(judged, task)["judge"] for name, task in select_tasks("sicog", judged.tasks).items()}
    assert judges == {
        **{"mmvet": "judge", "mmvet_step_by_step": "judge"},
        **{"mmstar": None, "mmstar_step_by_step": None},
    }


def test_the_manifest_of_a_result(run):
    config, _ = run
    results = [
        json.loads(Path(config.output_dir, name, f"results_{task}.json").read_text())["manifest"]
        for name in config.models
        for task in ("digits_vqa", "digits_reasoning_step_by_step")
    ]
    prompts = [found["prompt_hash"] for found in results]
    assert prompts[:2] == prompts[2:] and prompts[0] != prompts[1]
    for found in results:
        assert found["task_version"] == 1
        assert found["wrapper"] == "sicog_trl.evaluation.wrapper.VisionLanguageModel"
        assert (found["judge"], found["batch_size"], found["processes"]) == (None, 4, 1)
        assert found["dtype"] == "torch.float32"
        assert {"command", "versions", "hardware", "seconds", "commit"} <= set(found)


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

    def ask(task, answer, **options):
        write_task_files(tmp_path / "tasks", str(pool), {task: TASKS[task]})
        header = {"model": {"name": "stub"}, "conditions": {}}
        harness.run_task(Stub(answer), TASKS[task], tmp_path, header, **options)
        return json.loads((tmp_path / "stub" / f"results_{task}.json").read_text())["scores"]

    return ask


def test_half_a_character_costs_no_task(ask, tmp_path):
    assert ask("digits_vqa", lambda task, doc: "\ud83d")["accuracy"] == 0
    assert {sample["response"] for sample in read_samples(tmp_path / "stub", "digits_vqa")} == {"\ud83d"}


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


def test_rows_that_were_not_scored_are_an_error(harness, ask, tmp_path, monkeypatch):
    evaluate_all = harness.simple_evaluate

    def lose_one(**given):
        results = evaluate_all(**given)
        results["samples"]["digits_vqa"].pop()
        return results

    monkeypatch.setattr(harness, "simple_evaluate", lose_one)
    with pytest.raises(RuntimeError, match="5 of 6 rows were scored"):
        ask("digits_vqa", answer_from_truth)
    assert not (tmp_path / "stub" / "results_digits_vqa.json").exists()


def test_a_metric_that_is_missing_or_no_number_is_an_error(harness):
    (task,) = select_tasks("judge_free", ["ai2d"], ["direct"]).values()
    entry = {"alias": "ai2d", "exact_match,flexible-extract": 0.5, "exact_match,none": 0.25}
    assert harness.reported_scores(entry, task) == {"exact_match,flexible-extract": 0.5}
    for broken in ({"exact_match,none": 0.25}, {"exact_match,flexible-extract": float("nan")}):
        with pytest.raises(RuntimeError, match="lmms-eval gave no exact_match,flexible-extract"):
            harness.reported_scores(broken, task)


class Judge:
    calls = failed = 0


def test_a_judge_that_failed_too_often_is_no_judge(ask, tmp_path):
    judge = Judge()
    judge.calls, judge.failed = 100, 50  # of the tasks before

    def answer(task, doc):
        judge.calls += 1
        judge.failed += judge.calls == 103
        return answer_from_truth(task, doc)

    with pytest.raises(RuntimeError, match="left 1 of 6 questions without an answer"):
        ask("digits_vqa", answer, judge=judge)
    assert not (tmp_path / "stub" / "results_digits_vqa.json").exists()
    judge.calls = 100
    ask("digits_vqa", answer, judge=judge, max_judge_failures=0.2)
    health = json.loads((tmp_path / "stub" / "results_digits_vqa.json").read_text())["health"]
    assert (health["judge_calls"], health["judge_failed"]) == (6, 1)


def test_both_protocols_of_packaged_benchmarks(harness, tmp_path):
    """All that the model wrote is kept, the scorer gets the final answer, and what it lacks is counted."""
    from sicog_trl.evaluation.answering import Answering
    from sicog_trl.evaluation.protocols import Completion

    class Chains(Answering):
        def complete(self, conversations, limits):
            for number, (_, doc_id) in enumerate(self._rows):
                steps = build_steps("chain_of_thought", ["Look.", "See.", "Think.", questions[doc_id].right[0]])
                yield number, Completion(steps if doc_id else "I do not know.", 5 + doc_id, truncated=doc_id == 1)

    names = ["ai2d", "mmbench_static", "chartqa"]
    written = write_rows(tmp_path / "rows", names)
    tasks = select_tasks("judge_free", names, ["step_by_step"])
    write_task_files(tmp_path / "tasks", str(tmp_path / "rows"), tasks)
    for name, task in tasks.items():
        questions = written[task.benchmark.name]
        harness.run_task(Chains("stub"), task, tmp_path, {"model": {"name": "stub"}, "conditions": {}})
        result = json.loads((tmp_path / "stub" / f"results_{name}.json").read_text())
        samples = [json.loads(line) for line in (tmp_path / "stub" / f"samples_{name}.jsonl").read_text().splitlines()]
        n = len(questions)
        assert list(result["scores"]) == [*task.benchmark.headline, "n"] and result["scores"]["n"] == n
        assert (result["health"]["unparsed"], result["health"]["truncated"]) == (1, 1)
        assert result["health"]["mean_tokens"] == sum(range(5, 5 + n)) / n
        assert samples[0]["response"] == samples[0]["answer"] == "I do not know." and samples[0]["fault"]
        assert [sample["answer"] for sample in samples[1:]] == [question.right[0] for question in questions[1:]]
        assert all("Look." in sample["response"] and sample["fault"] is None for sample in samples[1:])
        values = [value for sample in samples for value in sample["scores"].values()]
        assert values[0] == 0 and set(values[1:]) == {1}


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
    from sicog_trl.evaluation.wrapper import VisionLanguageModel

    registry = ModelRegistryV2()
    for manifest in manifests():
        registry.register_manifest(manifest)
    assert registry.get_model_class("sicog_trl") is VisionLanguageModel


# The edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "`models` is missing"),
        ({"models": {"a/b": "x"}}, "'a/b' cannot name the folder"),
        ({"models": {"..": "x"}}, "'..' cannot name the folder"),
        ({"models": {"scores.json": "x"}}, "'scores.json' cannot name the folder"),
        ({"models": {"\x1b[31mred": "x"}}, "cannot name the folder"),
        ({"models": {7: "x"}}, "7 cannot name the folder"),
        ({"reference": ["nobody"]}, "'nobody' is not among the models"),
        ({"suite": "digit"}, "unknown suite 'digit'"),
        ({"tasks": ["digits_vqe"]}, "unknown task 'digits_vqe'"),
        ({"protocols": ["directly"]}, "unknown protocol 'directly'"),
        ({"suite": "sicog", "tasks": ["mmvet"]}, "mmvet needs a judge"),
        ({"judge_base_url": "http://localhost/v1"}, "needs both judge_base_url and judge_model"),
        ({"tasks_per_process": 0}, "tasks_per_process is 0; it has to be at least 1"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_resamples": 0}, "num_resamples is 0"),
        ({"max_judge_failures": 2}, "it is a share"),
        ({"limit": 9, "update_model_cards": True}, "does not belong in a card"),
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


def test_rows_of_ones_own_need_a_folder(models, tmp_path):
    config = EvaluationConfig(models=models, output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="`dataset_name` is missing: digits_caption asks rows of your own"):
        evaluate(config)


def test_a_judge_that_is_not_there_is_noticed_before_anything_runs(models, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "run_process", lambda job: pytest.fail("something ran"))
    judge = {"judge_base_url": "http://127.0.0.1:9/v1", "judge_model": "judge"}
    config = EvaluationConfig(models=models, output_dir=str(tmp_path), suite="sicog", tasks=["mmvet"], **judge)
    with pytest.raises(ConnectionError, match="no judge answers at"):
        evaluate(config)


def test_a_judged_benchmark(models, harness, tmp_path, monkeypatch):
    monkeypatch.setenv("SICOG_JUDGE_API_KEY", "key of the judge")
    questions = write_judged_rows(tmp_path / "rows")["mmvet"]
    with JudgeServer() as server:
        server.api_key = "key of the judge"
        judge = {"judge_base_url": server.base_url, "judge_model": "judge", "protocols": ["direct"]}
        settings = {"models": {"base": models["base"]}, "dataset_name": str(tmp_path / "rows"), "suite": "sicog"}
        config = EvaluationConfig(**settings, **judge, tasks=["mmvet"], output_dir=str(tmp_path / "out"))
        scores = evaluate(config)
        asked = scores["health"]["base"]["mmvet"]["judge_calls"]
        assert 0 < asked <= len(questions) and asked < len(server.requests)  # one more to see whether it is there
        result = json.loads((tmp_path / "out" / "base" / "results_mmvet.json").read_text())
        assert result["conditions"]["judge"] == result["manifest"]["judge"] == "judge"
        assert result["health"]["judge_failed"] == result["health"]["unscored"] == 0

        config.output_dir = str(tmp_path / "again")
        server.faults = ["say 1.0"]  # to the question whether it is there
        server.fault = "400"
        with pytest.raises(RuntimeError, match=r"the judge left \d of \d questions without an answer"):
            evaluate(config)
    assert not (tmp_path / "again" / "base" / "results_mmvet.json").exists()
    assert "key of the judge" not in "".join(path.read_text() for path in tmp_path.rglob("*.json*"))


def test_models_on_a_server(pool, harness, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key of the server")
    with StubServer() as server:
        server.api_key = "key of the server"
        settings = {"models": {"base": "stub"}, "base_url": server.base_url, "tasks": ["digits_vqa"], "batch_size": 2}
        config = EvaluationConfig(**settings, dataset_name=str(pool), output_dir=str(tmp_path))
        scores = evaluate(config)
        result = json.loads((tmp_path / "base" / "results_digits_vqa.json").read_text())
        assert result["model"]["weights"] == scores["manifest"]["weights"]["base"] == "served:stub=stub"
        assert (result["conditions"]["backend"], result["conditions"]["dtype"]) == ("openai", None)
        assert result["manifest"]["wrapper"] == "sicog_trl.evaluation.server.ServedModel"
        assert result["scores"]["n"] == NUM_ROWS and result["health"]["mean_tokens"] == 6
        config.models = {"base": "other"}
        with pytest.raises(ValueError, match="other"):
            evaluate(config)
        # a server that has the next model now is not asked for the one before, whose results are all there
        server.cards = [{"id": "trained", "object": "model"}]
        config.models = {"base": "stub", "trained": "trained"}
        both = evaluate(config)
        assert both["models"]["base"] == scores["models"]["base"] and len(both["comparisons"]) == 1
        config.tasks = ["digits_vqa", "digits_hallucination"]
        with pytest.raises(ValueError, match="does not have the model 'stub'"):
            evaluate(config)
    assert "key of the server" not in "".join(path.read_text() for path in tmp_path.rglob("*.*") if path.is_file())


def test_an_unknown_key_is_an_error(tmp_path):
    (tmp_path / "evaluate.yaml").write_text("models: {base: x}\noutput_dir: o\ndataset_name: d\nrefrence: [base]\n")
    with pytest.raises(ValueError, match="refrence"):
        TrlParser((EvaluationConfig,)).parse_args_and_config(["--config", str(tmp_path / "evaluate.yaml")])
