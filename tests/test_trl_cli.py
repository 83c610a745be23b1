"""What curation writes is an ordinary dataset: plain `trl sft` trains on it, unchanged."""

import subprocess
import sys
from pathlib import Path

import torch
import yaml
from curating import described
from datasets import Dataset
from safetensors.torch import load_file

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.data import CANDIDATES_FEATURES, load


TEXTS = ("A red three.", "A red three.", "A blue nine.")


def curated(world: str, folder: Path) -> Path:
    """Curate candidates that are written by hand over images of the digits world."""
    rows = []
    for row in load(world).select(range(6)):
        options = described(*TEXTS)
        rows.append({**row, "task": "description", "candidates": options, "error": None})
    rows = [{name: row[name] for name in CANDIDATES_FEATURES} for row in rows]
    curate(Dataset.from_list(rows, features=CANDIDATES_FEATURES), CurationConfig(), folder)
    return folder


def test_plain_trl_sft_takes_the_curated_folder_as_it_is(tmp_path, world, digits_model):
    settings = {
        "model_name_or_path": str(digits_model),
        "dataset_name": str(curated(world, tmp_path / "curated")),
        "dataset_train_split": "curated",
        "output_dir": str(tmp_path / "trained"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "max_length": None,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "logging_steps": 1,
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-c", "from trl.cli import main; main()", "sft", "--config", "sft.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    before, after = (load_file(path / "model.safetensors") for path in (digits_model, tmp_path / "trained"))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert all("post_layernorm" in name for name in still)  # LLaVA reads the features in front of it
