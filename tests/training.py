"""Recipes run in this process, and what their training left behind."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from trl import TrlParser


ROOT = Path(__file__).parents[1]
# A high learning rate: a few steps must move every parameter by more than rounding.
COMMON = {
    "max_length": None,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 4,
    "bf16": False,
    "activation_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}


def recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train(name: str, **settings) -> None:
    module = recipe(name)
    module.main(*TrlParser(module.ARGUMENTS).parse_dict({**COMMON, **settings}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "model.safetensors"))


def moved(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def losses(folder: Path, step: int) -> list[float]:
    history = json.loads(Path(folder, f"checkpoint-{step}", "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def cut_off(folder: Path, to: Path, step: int) -> None:
    """Leave what a run that was killed after `step` leaves."""
    shutil.copytree(folder / f"checkpoint-{step}", to / f"checkpoint-{step}")
    shutil.copy(folder / "settings.json", to)
