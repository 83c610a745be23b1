"""LoRA and 4-bit training through the real recipes: what moves, what goes on, what generation loads."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_accelerate_configs import launch
from training import COMMON, ROOT, cut_off, losses, train
from transformers import AutoModelForImageTextToText

from sicog_trl.checkpoints import load_for_generation
from sicog_trl.training.freezing import parts


LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"], "lora_dropout": 0.0}
PROJECTOR = {"lora_modules_to_save": ["multi_modal_projector"]}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def difference(before: str | Path, after: str | Path) -> set[str]:
    """Names of the weights in which two checkpoints differ as generation loads them, with their adapters merged."""
    old, new = (load_for_generation(str(folder))[0].state_dict() for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.fixture(scope="module")
def cognition(digits_model, digits_world) -> dict:
    sources = [{"path": str(digits_world / "annotated"), "split": "base"}]
    return {"model_name_or_path": str(digits_model), "datasets": sources, "save_strategy": "no"}


@pytest.fixture(scope="module")
def stage1(tmp_path_factory, cognition) -> Path:
    """LoRA on the language model and the whole projector, the vision tower frozen."""
    folder = tmp_path_factory.mktemp("stage1")
    train("sft", **cognition, **LORA, **PROJECTOR, output_dir=str(folder), max_steps=2, freeze_vision_tower=True)
    return folder


def test_lora_with_a_frozen_tower_and_a_whole_projector(stage1, digits_model):
    changed = difference(digits_model, stage1)
    assert changed and not any("vision_tower" in name for name in changed)
    untouched = ("embed_tokens", "lm_head", "norm")
    assert not any(part in name for name in changed for part in untouched)
    whole = AutoModelForImageTextToText.from_pretrained(digits_model).state_dict()
    assert {name for name in whole if "multi_modal_projector" in name} <= changed
    assert {name for name in whole if "language_model" in name and "proj" in name} <= changed
    saved = adapter(stage1)
    assert any("multi_modal_projector.linear_1.weight" in name for name in saved)
    assert all(not tensor.any() for name, tensor in saved.items() if "vision_tower" in name and "lora_B" in name)


def test_projector_only(tmp_path, cognition, digits_model):
    frozen = {"freeze_vision_tower": True, "freeze_language_model": True}
    train("sft", **cognition, **frozen, output_dir=str(tmp_path), max_steps=2)
    every = AutoModelForImageTextToText.from_pretrained(digits_model).state_dict()
    assert difference(digits_model, tmp_path) == {name for name in every if "multi_modal_projector" in name}


def test_an_adapter_goes_on_training(tmp_path, cognition, stage1, digits_model):
    settings = {**cognition, **LORA, **PROJECTOR, "model_name_or_path": str(stage1), "freeze_vision_tower": True}
    train("sft", **settings, output_dir=str(tmp_path), max_steps=1)
    before, after = adapter(stage1), adapter(tmp_path)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("vision_tower" in name for name in moved)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(digits_model)
    assert difference(stage1, tmp_path)
    model, processor = load_for_generation(str(tmp_path))
    inputs = processor(images=[Image.new("RGB", (32, 32))], text=["<image>"], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("start", ["base", "adapter"])
def test_preference_training_with_lora_starts_from_its_own_reference(
    tmp_path, start, stage1, digits_model, digits_world
):
    model = digits_model if start == "base" else stage1
    settings = {**LORA, **(PROJECTOR if start == "adapter" else {}), "lora_dropout": 0.0}
    settings |= {"model_name_or_path": str(model), "dataset_name": str(digits_world / "preference")}
    folders = [tmp_path / name for name in ("whole", "resumed")]
    train("dpo", **settings, output_dir=str(folders[0]), max_steps=3, save_steps=1)
    record = json.loads((folders[0] / "training.json").read_text())
    assert record["first_loss"] == pytest.approx(math.log(2), abs=5e-5)
    assert losses(folders[0], 3)[1] != pytest.approx(math.log(2), abs=1e-4)
    assert difference(model, folders[0])
    cut_off(folders[0], folders[1], 2)
    train("dpo", **settings, output_dir=str(folders[1]), max_steps=3, save_steps=1)
    assert losses(folders[1], 3) == losses(folders[0], 3)
    assert not difference(*folders)
    assert not list(folders[0].rglob("ref"))


def test_an_adapter_that_cannot_go_on_says_why(tmp_path, cognition, stage1):
    settings = {**cognition, "model_name_or_path": str(stage1), "output_dir": str(tmp_path), "max_steps": 1}
    with pytest.raises(ValueError, match=r"is an adapter on .*use_peft: true.*merge it"):
        train("sft", **settings)
    with pytest.raises(ValueError, match=r"lora_r is 4 in the adapter .* and 16 here"):
        train("sft", **settings, **{**LORA, **PROJECTOR, "lora_r": 16})
    with pytest.raises(ValueError, match=r"lora_target_modules is .* in the adapter .* and .'q_proj', 'v_proj'. here"):
        train("sft", **settings, **{**LORA, **PROJECTOR, "lora_target_modules": ["q_proj", "v_proj"]})
    with pytest.raises(ValueError, match=r"lora_modules_to_save is .'multi_modal_projector'. in the adapter"):
        train("sft", **settings, **LORA)


def test_a_resumed_adapter_is_bit_equal(tmp_path, cognition):
    settings = {**cognition, **LORA, "lora_dropout": 0.1, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    train("sft", **settings, output_dir=str(tmp_path / "whole"))
    (tmp_path / "resumed").mkdir()
    cut_off(tmp_path / "whole", tmp_path / "resumed", 2)
    train("sft", **settings, output_dir=str(tmp_path / "resumed"))
    assert losses(tmp_path / "resumed", 4) == losses(tmp_path / "whole", 4)
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_quantized_weights_need_adapters_and_bitsandbytes(tmp_path, cognition, monkeypatch):
    settings = {**cognition, "output_dir": str(tmp_path), "load_in_4bit": True}
    with pytest.raises(ValueError, match="load_in_4bit: quantized weights do not train; set use_peft: true"):
        train("sft", **settings)
    monkeypatch.setattr("sicog_trl.training.adapters.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"load_in_4bit needs bitsandbytes.*sicog-trl\[qlora\]"):
        train("sft", **settings, **LORA)


@pytest.mark.slow  # the quick tests do without bitsandbytes
def test_qlora_trains_goes_on_and_is_loaded_by_generation(tmp_path, cognition, digits_world, digits_model, capsys):
    pytest.importorskip("bitsandbytes")
    settings = {**COMMON, **cognition, **LORA, "load_in_4bit": True, "freeze_vision_tower": True}
    train("sft", **settings, output_dir=str(tmp_path / "sft"), max_steps=2)
    shown = re.search(r"language_model +([\d,]+) +([\d,]+)\n", capsys.readouterr().out)
    whole, trained = (int(number.replace(",", "")) for number in shown.groups())
    plain = AutoModelForImageTextToText.from_pretrained(digits_model)
    assert whole - trained == sum(parameter.numel() for parameter in parts(plain)["language_model"])
    changed = difference(digits_model, tmp_path / "sft")
    assert changed and not any("vision_tower" in name for name in changed)
    del settings["datasets"]
    settings |= {"model_name_or_path": str(tmp_path / "sft"), "dataset_name": str(digits_world / "preference")}
    train("dpo", **settings, output_dir=str(tmp_path / "dpo"), max_steps=2)
    record = json.loads((tmp_path / "dpo" / "training.json").read_text())
    assert record["first_loss"] == pytest.approx(math.log(2), abs=5e-5)
    assert difference(tmp_path / "sft", tmp_path / "dpo")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # DeepSpeed compiles its operators the first time
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")
def test_an_adapter_goes_on_with_its_shared_reference_under_zero3(tmp_path, stage1, digits_world):
    settings = {**COMMON, **LORA, **PROJECTOR, "model_name_or_path": str(stage1), "max_steps": 2, "save_steps": 2}
    settings |= {"dataset_name": str(digits_world / "preference"), "global_batch_size": 2}
    settings |= {"per_device_train_batch_size": 1, "learning_rate": 1e-3}
    train("dpo", **settings, output_dir=str(tmp_path / "one"))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "two")}))
    script = (ROOT / "recipes" / "dpo.py", "--config", tmp_path / "two.yaml")
    launch("zero3", *script, options=("--num_processes", "2", "--mixed_precision", "no"), timeout=900)
    assert losses(tmp_path / "two", 2) == pytest.approx(losses(tmp_path / "one", 2), abs=1e-3)
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
