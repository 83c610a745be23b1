"""The lines of the model folders, every stage by its own YAML, on tiny stand-ins for the models."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers as T
import yaml
from benchmark_rows import write_rows
from datasets import Dataset
from test_assembly import LLAMA, QWEN2, clip, language_model
from tiny_models import build
from trl import TrlParser

from sicog_trl.data import load, save
from sicog_trl.generation import Response
from sicog_trl.loop import LoopConfig, Stage, stages
from sicog_trl.prompts import STEPS, prompt_for, task_of
from sicog_trl.provenance import weights_fingerprint
from sicog_trl.responses import build_steps


ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("bf16_everywhere")
# What a stand-in on a CPU needs instead of what the YAMLs ask of a GPU; the rest stays as it stands in them.
TRAINING = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "max_steps": 2, "dtype": "float32"}
TRAINING |= {"per_device_train_batch_size": 2, "global_batch_size": 4, "learning_rate": 0.01, "save_strategy": "no"}
INSTEAD = {
    "assemble.py": {"dtype": "float32"},
    "sft.py": TRAINING,
    "dpo.py": TRAINING,
    "generate.py": {"dtype": "float32", "batch_size": 64},
    "curate.py": {"similarity": "word_ngram"},
    # one of the benchmarks, on made-up rows
    "decontaminate.py": {"tasks": ["pope"], "evaluation_dataset_name": "rows"},
    "evaluate.py": {"tasks": ["pope"], "protocols": ["direct"], "dataset_name": "rows", "dtype": "float32"},
}


class Writer:
    """Says one thing in every mode, and another one about damaged images: random weights would say nothing whole."""

    placeholders = ("<image>",)

    def __init__(self, damaged: bool):
        self.said = "A blue nine is in the top left cell." if damaged else "A red three is in the bottom right cell."

    def sample(self, requests):
        for number, request in enumerate(requests):
            endings = {mode: prompt_for(mode, "?" if task_of(mode) == "reasoning" else None) for mode in STEPS}
            mode = next(mode for mode, text in endings.items() if request.prompt.endswith(text.removeprefix("?")))
            steps = [f"Part {step} of it is here." for step in range(1, len(STEPS[mode]))]
            text = build_steps(mode, [*steps, self.said]) if steps else self.said
            yield number, [Response(text, "stop", 9) for _ in request.seeds]


def run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a stage as its recipe would; texts come from [`Writer`]."""
    name = f"sicog_recipe_{Path(stage.recipe).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / stage.recipe)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    module = sys.modules[name]
    arguments = TrlParser(module.ARGUMENTS).parse_dict({**stage.config, **INSTEAD.get(stage.recipe, {})})
    if stage.recipe == "generate.py":
        writer = Writer(damaged=bool(stage.config.get("corruptions")))
        monkeypatch.setattr(module, "load_sampler", lambda *given, **options: writer)
    module.main(*arguments)


def write_data(world: Path) -> None:
    """Lay out the digits world as `recipes/sicog/README.md` lays out its data."""
    pools = {split: load(str(world / "annotated"), split=split) for split in ("base", "instruction", "cognition")}
    parts = {part: load(str(world / "annotated"), split=part) for part in ("perception", "reasoning")}
    images = load(str(world / "annotated"), split="images")
    for part, rows in {**parts, "cognition": pools["cognition"]}.items():
        save(rows, f"runs/sicog/annotated_{part}", "annotated")
        wanted = set(rows["source_id"])
        kept = [number for number, row_id in enumerate(images["id"]) if row_id in wanted]
        save(images.select(kept), f"runs/sicog/annotated_{part}", "images")
    save(pools["base"], "runs/sicog/align_data", "annotated")
    save(pools["instruction"], "runs/sicog/instruct_data", "annotated")
    instruction = pools["instruction"]
    text = [{**row, "images": []} for row in instruction.remove_columns("images")]
    save(Dataset.from_list(text, features=instruction.features), "runs/sicog/text_data", "annotated")
    save(load(str(world / "unlabelled"), split="train"), "runs/sicog/unlabelled", "images")


def stand_in(name: str) -> dict[str, dict]:
    """Build the model of a folder, and return what its stages are told about it."""
    if name in ("llava_qwen2_7b", "llama3_1_8b"):
        family = (T.Qwen2ForCausalLM, QWEN2) if "qwen2" in name else (T.LlamaForCausalLM, LLAMA)
        return {
            "assemble": {"vision_tower": clip(Path("clip")), "language_model": language_model(Path("lm"), *family)}
        }
    architecture = {"qwen2_5_vl_7b": "qwen2_5_vl", "qwen3_vl_4b": "qwen3_vl", "smolvlm_256m": "idefics3"}[name]
    build(architecture, Path(f"runs/sicog/{name}/model"))
    return {}


# Two rounds of two models of stage 1 apart and of one for both, whose candidates accumulate; one of the others.
ROUNDS = {"llava_qwen2_7b": 2, "llama3_1_8b": 1, "qwen2_5_vl_7b": 1, "qwen3_vl_4b": 1, "smolvlm_256m": 2}


@pytest.mark.parametrize(("name", "rounds"), ROUNDS.items(), ids=ROUNDS)
def test_every_stage_reads_what_the_one_before_has_written(name, rounds, digits_world, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    loop = yaml.safe_load((ROOT / "recipes" / "sicog" / name / "self_improve.yaml").read_text())
    plan = stages(LoopConfig(**{**loop, "stage1": "preference", "rounds": rounds}))
    monkeypatch.chdir(tmp_path)
    write_data(digits_world)
    write_rows(Path("rows"), ["pope"])
    told = stand_in(name)
    local = f"runs/sicog/{name}/model"
    for stage in plan:
        stage.config.update(told.get(stage.name, {}))
        if stage.recipe == "evaluate.py":
            continue
        if stage.config.get("model_name_or_path") == "HuggingFaceTB/SmolVLM-256M-Instruct":
            stage.config["model_name_or_path"] = local
        run(stage, monkeypatch)

    made = {stage.name: stage for stage in plan}
    check_evaluation(made["evaluate"], asked=name == "llava_qwen2_7b", monkeypatch=monkeypatch)
    trained = [stage.folder for stage in plan if stage.recipe in ("sft.py", "dpo.py")]
    assert all(json.loads((folder / "training.json").read_text())["steps"] == 2 for folder in trained)
    curated = made["sicog/round-1/curate"].folder
    assert len(load(str(curated), split="curated")) and len(load(str(curated), split="multi_turn"))
    adapters = [folder for folder in trained if (folder / "adapter_config.json").exists()]
    assert adapters == (trained if name == "qwen2_5_vl_7b" else [])
    pairs = [load(str(stage.folder), split="preference") for stage in plan if stage.recipe == "pair.py"]
    assert all(map(len, pairs))
    written = [stage for stage in plan if stage.recipe == "generate.py" and stage.round == rounds]
    assert written and all(len(row) == 3 * rounds for stage in written for row in candidates_of(stage))
    # the model of stage 1 writes data; what is pre-trained never saw its weights
    settings = json.loads((made[f"sicog/round-{rounds}/pretrain"].folder / "settings.json").read_text())
    start = made["align"].folder if "align" in made else local
    assert settings["weights"] == weights_fingerprint(str(start))
    if "align" in made:
        moved = differing(made["assemble"].folder, made["align"].folder)
        assert moved == {"multi_modal_projector"}
        assert len(differing(made["align"].folder, made["base"].folder)) == 3


def check_evaluation(stage: Stage, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of the run are there; once they are asked too, in a process, where a stand-in of Qwen cannot load."""
    models = stage.config["models"]
    assert all(Path(path).is_dir() or path == "HuggingFaceTB/SmolVLM-256M-Instruct" for path in models.values())
    assert {"base", "sicog"} <= set(models) and stage.config["suite"] == "sicog"
    if asked:
        stage.config["models"] = {name: models[name] for name in ("base", "sicog")}
        run(stage, monkeypatch)
        scores = json.loads((stage.folder / "scores.json").read_text())
        assert all(scores["models"][name]["pope"]["n"] for name in ("base", "sicog")) and not scores["failures"]


def candidates_of(stage: Stage) -> list[list]:
    return load(str(stage.folder), split="candidates")["candidates"]


def differing(before: Path, after: Path) -> set[str]:
    """Return the parts of a LLaVA that training has moved."""
    old, new = (T.AutoModelForImageTextToText.from_pretrained(folder).model.state_dict() for folder in (before, after))
    return {key.split(".")[0] for key in old if not torch.equal(old[key], new[key])}
