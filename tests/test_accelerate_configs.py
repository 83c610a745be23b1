"""The files in accelerate_configs/ load, start as many processes as they say, and train like one process does."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file


CONFIGS = Path(__file__).parents[1] / "accelerate_configs"
NAMES = ["cpu", "fsdp2", "multi_cpu", "multi_gpu", "single_gpu", "zero2", "zero3"]

COUNT_PROCESSES = """
import json, sys
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), reduction="sum")
backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
if accelerator.is_main_process:
    record = {"num_processes": accelerator.num_processes, "total": total.item(), "backend": backend}
    open(sys.argv[1], "w").write(json.dumps(record))
accelerator.end_training()
"""

# The global batch is four rows however many processes share it, so the losses must not depend on their number. Weights
# come from disk, because a model built under ZeRO-3 holds only a part of them.
TRAIN = """
import json, os, sys
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

model_dir, output_dir = sys.argv[1:]
words = ["one", "two", "three", "four", "five", "six"]
rows = [" ".join(words[(i + j) % 6] for j in range(8)) for i in range(16)]
args = SFTConfig(
    output_dir=output_dir, max_steps=3, learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1, seed=0,
    per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")), use_cpu=True, bf16=False, tf32=False,
    activation_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True,
)
trainer = SFTTrainer(
    model=model_dir, args=args, train_dataset=Dataset.from_dict({"text": rows}),
    processing_class=AutoTokenizer.from_pretrained(model_dir),
)
trainer.train()
if trainer.accelerator.is_main_process:
    record = {
        "num_processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
    }
    open(os.path.join(output_dir, "record.json"), "w").write(json.dumps(record))
trainer.accelerator.end_training()
"""


def launch(config: str, script: Path, *args: str | Path, options: tuple[str, ...] = (), timeout: float = 120) -> str:
    """Runs a script under `accelerate launch` and returns what it printed; shows all it wrote when it fails."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml"]
    # Port 0 lets the launcher take a free one, so that tests can run side by side.
    command += ["--main_process_port", "0", *options, script, *args]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def save_tiny_model(folder: Path) -> Path:
    """Saves a Llama of a few thousand weights with a tokenizer that knows six words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "one", "two", "three", "four", "five", "six"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny_model"))


def train(config: str, model: Path, folder: Path, *options: str, timeout: float = 120) -> dict:
    """Trains for three steps and returns the number of processes, their kind, and the losses."""
    script = folder / "train.py"
    script.write_text(TRAIN)
    launch(config, script, model, folder / config, options=options, timeout=timeout)
    return json.loads((folder / config / "record.json").read_text())


def test_all_configs_are_listed():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_config_loads_in_accelerate(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # raises on an unknown key
    assert config.use_cpu == name.endswith("cpu")
    assert config.mixed_precision == ("no" if name.endswith("cpu") else "bf16")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", {"num_processes": 1, "total": 1.0, "backend": None}),
        ("multi_cpu", {"num_processes": 2, "total": 3.0, "backend": "gloo"}),
    ],
)
def test_cpu_configs_start_the_processes_they_name(name, expected, tmp_path):
    script = tmp_path / "count.py"
    script.write_text(COUNT_PROCESSES)
    launch(name, script, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == expected


def test_two_processes_train_like_one(tiny_model, tmp_path):
    one = train("cpu", tiny_model, tmp_path)
    two = train("multi_cpu", tiny_model, tmp_path)
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-3)
    assert one["losses"][-1] < one["losses"][0]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # DeepSpeed compiles its operators the first time
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_zero_trains_like_one_process(name, tiny_model, tmp_path):
    one = train("cpu", tiny_model, tmp_path)
    zero = train(name, tiny_model, tmp_path, "--num_processes", "2", "--mixed_precision", "no", timeout=900)
    assert (zero["num_processes"], zero["distributed_type"]) == (2, "DEEPSPEED")
    assert zero["losses"] == pytest.approx(one["losses"], abs=1e-3)
