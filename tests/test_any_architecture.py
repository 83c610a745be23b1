"""The same recipes on six architectures: SFT, DPO, candidates, scores, each from what the one before has written."""

import contextlib
import io
import json
import math
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import training
from datasets import Dataset
from safetensors.torch import load_file
from tiny_models import BUILDERS, build
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from trl import TrlParser

from sicog_trl.checkpoints import load_for_generation, placeholders, prepare_for_generation
from sicog_trl.data import load, save
from sicog_trl.generation import Request, TransformersSampler, transformers_sampler
from sicog_trl.training.freezing import PARTS, parts


ROOT = Path(__file__).parents[1]
ARCHITECTURES = pytest.mark.parametrize("name", BUILDERS)
LENGTH = 12
# One scene of 32 pixels; see the builders for where the numbers come from.
IMAGE_TOKENS = {"llava": 16, "llava_next": 36, "idefics3": 20, "qwen2_5_vl": 4, "qwen3_vl": 4, "gemma3": 4}
# Built without weights: only where they keep their parts is looked at.
OTHERS = (
    "qwen2_vl qwen3_5 paligemma internvl llava_onevision smolvlm mistral3 gemma4 granite_docling paddleocr_vl "
    "lighton_ocr deepseek_vl ovis2 kimi_k25 ernie4_5_vl_moe glm4v mllama video_llama_3"
).split()
# Two steps see all eight rows. A high learning rate moves every parameter by more than rounding.
TRAINING = {**training.COMMON, "max_steps": 2}


def run(recipe: str, **settings) -> None:
    """Run a recipe as its command line does."""
    module = training.recipe(recipe)
    module.main(*TrlParser(module.ARGUMENTS).parse_dict(settings))


class Stages:
    """What each stage makes of each architecture; made when it is first asked for. Some rows have no image, or two."""

    def __init__(self, folder: Path, world: Path):
        self.folder, self.development = folder, world / "development"
        self.shown: dict[str, str] = {}  # by SFT
        self.base = cache(lambda name: build(name, folder / name / "base"))
        self.sft, self.dpo, self.candidates = cache(self._sft), cache(self._dpo), cache(self._candidates)
        self.annotated = self._rows(world, "annotated", "cognition", text=3, two=6)
        self.pairs = self._rows(world, "preference", "train", text=1, two=4)
        self.images = self._rows(world, "unlabelled", "train", text=1, two=4)  # 1 and 4 have questions

    def _rows(self, world: Path, pool: str, split: str, text: int, two: int) -> Path:
        found = load(world / pool, split=split)
        rows = found.select(range(min(8, len(found)))).to_list()
        rows[text]["images"] = []
        rows[two]["images"] += rows[0]["images"]
        save(Dataset.from_list(rows, features=found.features), self.folder / pool, "train")
        return self.folder / pool

    def sft_settings(self, name: str) -> dict:
        model = {"model_name_or_path": str(self.base(name)), "dataset_name": str(self.annotated)}
        return {**TRAINING, **model, "save_steps": 1}

    def _sft(self, name: str) -> Path:
        settings = {**self.sft_settings(name), "freeze_vision_tower": True}
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            run("sft", **settings, output_dir=str(self.folder / name / "sft"))
        self.shown[name] = shown.getvalue()
        return self.folder / name / "sft"

    def _dpo(self, name: str) -> Path:
        model = {"model_name_or_path": str(self.sft(name)), "dataset_name": str(self.pairs)}
        run("dpo", **TRAINING, **model, save_strategy="no", output_dir=str(self.folder / name / "dpo"))
        return self.folder / name / "dpo"

    def _candidates(self, name: str) -> Path:
        model = {"model_name_or_path": str(self.sft(name)), "dataset_name": str(self.images)}
        output = {"max_completion_length": LENGTH, "output_dir": str(self.folder / name / "candidates")}
        run("generate", **model, **output)
        return self.folder / name / "candidates"


@pytest.fixture(scope="session")
def stages(tmp_path_factory, digits_world) -> Stages:
    return Stages(tmp_path_factory.mktemp("architectures"), digits_world)


def weights(folder: Path) -> dict[str, list[torch.Tensor]]:
    return parts(AutoModelForImageTextToText.from_pretrained(folder))


def moved(before: Path, after: Path) -> dict[str, int]:
    """Return how many tensors of each part differ."""
    old, new = weights(before), weights(after)
    return {part: sum(not torch.equal(a, b) for a, b in zip(old[part], new[part], strict=True)) for part in old}


@ARCHITECTURES
def test_every_parameter_belongs_to_a_part(name, stages):
    found = {part: len(owned) for part, owned in weights(stages.base(name)).items()}
    assert found.pop("other") == 0
    assert found.keys() == PARTS.keys() and all(found.values())


@pytest.mark.parametrize("model_type", OTHERS)
def test_the_parts_of_other_architectures_are_found(model_type):
    vision = {"vision_config": {}} if model_type == "gemma4" else {}  # it has none unless asked
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **vision))
    found = {part: len(owned) for part, owned in parts(model).items()}
    assert found.pop("other") == 0 and all(found.values())


@ARCHITECTURES
def test_sft_shows_what_the_model_sees_and_moves_what_trains(name, stages):
    folder = stages.sft(name)
    assert f" tokens, {IMAGE_TOKENS[name]} of images, " in stages.shown[name]
    never_ends = "no token with loss ends the answer (</s>)" in stages.shown[name]
    assert never_ends == (name == "llava")  # by its chat template
    changed = moved(stages.base(name), folder)
    assert changed["vision_tower"] == 0
    assert changed["multi_modal_projector"] > 0 and changed["language_model"] > 0
    record = json.loads((folder / "training.json").read_text())
    assert (record["steps"], record["samples"]) == (2, 8)
    assert record["tokens"] > 8 * IMAGE_TOKENS[name] and math.isfinite(record["last_loss"])


@ARCHITECTURES
def test_a_trained_model_reads_and_stops_as_its_base_does(name, stages):
    (base, before), (trained, after) = (load_for_generation(str(each(name))) for each in (stages.base, stages.sft))
    assert prepare_for_generation(base, before) == prepare_for_generation(trained, after)
    assert after.chat_template == before.chat_template and after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    scene = load(stages.annotated)["images"][0]
    seen = [processor.image_processor(scene)["pixel_values"] for processor in (before, after)]
    assert np.array_equal(*seen)


@ARCHITECTURES
def test_neither_data_nor_answers_may_hold_what_stands_for_an_image(name, stages):
    model, processor = load_for_generation(str(stages.base(name)))
    prepare_for_generation(model, processor)
    token = processor.tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    assert {token, processor.image_token} <= set(placeholders(processor))
    forbidden = processor.tokenizer.convert_tokens_to_ids([token, processor.image_token])
    assert set(forbidden) <= set(model.generation_config.suppress_tokens)


@ARCHITECTURES
def test_a_resumed_step_is_the_step_of_an_uninterrupted_run(name, stages, tmp_path):
    whole = stages.sft(name)
    shutil.copytree(whole / "checkpoint-1", tmp_path / "checkpoint-1")
    shutil.copy(whole / "settings.json", tmp_path)
    run("sft", **stages.sft_settings(name), freeze_vision_tower=True, output_dir=str(tmp_path))
    assert not any(moved(whole, tmp_path).values())


@ARCHITECTURES
def test_dpo_starts_from_its_own_reference_and_moves_every_part(name, stages):
    record = json.loads((stages.dpo(name) / "training.json").read_text())
    assert record["first_loss"] == pytest.approx(math.log(2), abs=5e-5)
    changed = moved(stages.sft(name), stages.dpo(name))
    assert all(changed[part] for part in PARTS)


@ARCHITECTURES
def test_an_adapter_trains_resumes_goes_on_with_dpo_and_answers(name, stages, tmp_path):
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear"}
    if name == "gemma3":  # its projector is a bare matrix, which no adapter finds
        lora["lora_modules_to_save"] = ["multi_modal_projector"]
    settings, first = {**stages.sft_settings(name), **lora}, tmp_path / "sft"
    run("sft", **settings, output_dir=str(first))
    shutil.copytree(first / "checkpoint-1", tmp_path / "again" / "checkpoint-1")
    shutil.copy(first / "settings.json", tmp_path / "again")
    run("sft", **settings, output_dir=str(tmp_path / "again"))
    whole, again = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("sft", "again"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    pairs = {"dataset_name": str(stages.pairs), "save_strategy": "no", "output_dir": str(tmp_path / "dpo")}
    run("dpo", **TRAINING, **lora, **pairs, model_name_or_path=str(first))
    record = json.loads((tmp_path / "dpo" / "training.json").read_text())
    assert record["first_loss"] == pytest.approx(math.log(2), abs=5e-5)
    merged = load_for_generation(str(tmp_path / "dpo"))[0]
    base = AutoModelForImageTextToText.from_pretrained(stages.base(name))
    found = zip(parts(merged).items(), parts(base).values(), strict=True)
    changed = {part: sum(not torch.equal(*pair) for pair in zip(now, old, strict=True)) for (part, now), old in found}
    assert all(changed[part] for part in PARTS)


@ARCHITECTURES
def test_candidates_for_every_row(name, stages):
    rows = load(stages.candidates(name), split="candidates").to_list()
    assert len(rows) == 8 and not any(row["error"] for row in rows)
    assert [len(row["images"]) for row in rows] == [1, 0, 1, 1, 2, 1, 1, 1]
    for row in rows:
        assert len({candidate["seed"] for candidate in row["candidates"]}) == len(row["candidates"]) == 3
        assert all(0 < candidate["num_tokens"] <= LENGTH for candidate in row["candidates"])


@ARCHITECTURES
def test_what_is_read_once_is_what_transformers_reads_again(name, stages, monkeypatch):
    sampler = TransformersSampler(str(stages.sft(name)), max_completion_length=LENGTH)
    scenes = load(stages.images)["images"][2:4]
    asked = [(scene, prompt) for scene in scenes for prompt in ("What is there?", "Describe all of it, cell by cell.")]
    requests = [Request(scene, prompt, [n, n + 1, n + 2]) for n, (scene, prompt) in enumerate(asked)]
    encoded = []
    names = ("vision_tower", "visual", "vision_model")
    tower = next(part for path, part in sampler.model.named_modules() if path.rsplit(".", 1)[-1] in names)
    tower.register_forward_pre_hook(lambda module, given: encoded.append(1))
    with monkeypatch.context() as plain:
        plain.setattr(transformers_sampler, "growing_cache", lambda model: None)
        plain.setattr(sampler, "_look", lambda inputs, requests: inputs)
        expected = dict(sampler.sample(requests))
    assert len({answer.text for row in expected.values() for answer in row}) > 3
    encoded.clear()
    assert dict(sampler.sample(requests)) == expected
    assert len(encoded) == 1  # both prompts of both scenes


def first_input(model: torch.nn.Module, seen: list) -> None:
    """Note what the language model is given first."""
    model.register_forward_pre_hook(lambda module, args, given: seen.append(given["input_ids"]), with_kwargs=True)


@ARCHITECTURES
def test_training_generation_and_evaluation_read_the_same_prompt(name, stages):
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.instance import Instance
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from sicog_trl.evaluation.harness import load_model

    folder = stages.sft(name)
    row = load(stages.annotated)[0]
    image, prompt = row["images"][0], row["prompt"][0]["content"]
    collator = DataCollatorForVisionLanguageModeling(AutoProcessor.from_pretrained(folder), completion_only_loss=True)
    batch = collator([row])
    trained = batch["input_ids"][batch["labels"] == -100].tolist()

    generated, evaluated = [], []
    sampler = TransformersSampler(str(folder), max_completion_length=1)
    first_input(sampler.model, generated)
    list(sampler.sample([Request([image], prompt, [0])]))
    wrapper = load_model(str(folder))
    first_input(wrapper.model, evaluated)
    content = [{"type": "image", "url": image}, {"type": "text", "text": prompt}]
    wrapper.task_dict = {"task": {"test": [[{"role": "user", "content": content}]]}}
    arguments = ("", lambda doc: doc, {"max_new_tokens": 1}, 0, "task", "test")
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    wrapper.generate_until([Instance("generate_until", arguments, 0, metadata=metadata)])
    assert generated[0][0].tolist() == trained
    assert evaluated[0][0].tolist() == trained


@ARCHITECTURES
def test_what_lmms_eval_is_answered_does_not_depend_on_the_batch(name, stages):
    """Rows with an image, without one, and with several in any place."""
    pytest.importorskip("lmms_eval")
    from wrapper_rows import ROWS, answers

    from sicog_trl.evaluation.harness import load_model

    found = []
    for batch_size in (1, 3):
        wrapper = load_model(str(stages.sft(name)), batch_size=batch_size)
        found.append((answers(wrapper, ROWS), wrapper.replies))
    assert found[0] == found[1]
    assert len(set(found[0][0])) > 1


def adapter_on(base: Path, folder: Path) -> str:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForImageTextToText.from_pretrained(base), lora).save_pretrained(folder)
    return str(folder)


def test_lmms_eval_scores_all_of_them_in_one_run(stages, tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval")
    from sicog_trl.evaluation import processes
    from sicog_trl.evaluation.worker import run_job

    # Elsewhere it is tested that every task has a process of its own.
    monkeypatch.setattr(processes, "run_process", lambda job: (not run_job(json.loads(json.dumps(job))), ""))
    models = {f"{name}-{stage}": str(getattr(stages, stage)(name)) for name in BUILDERS for stage in ("base", "sft")}
    models |= {f"{name}-adapter": adapter_on(stages.base(name), tmp_path / "adapters" / name) for name in BUILDERS}
    settings = {"dataset_name": str(stages.development), "tasks": ["digits_vqa"], "limit": 2}
    run("evaluate", models=models, **settings, output_dir=str(tmp_path / "scores"), num_resamples=100)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["models"].keys() == models.keys()
    assert all(0 <= scores["models"][model]["digits_vqa"]["accuracy"] <= 1 for model in models)
    assert all(scores["health"][model]["digits_vqa"]["mean_tokens"] > 0 for model in models)
