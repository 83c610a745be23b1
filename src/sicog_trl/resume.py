"""Going on with training that was cut off: which checkpoint is whole, whose run it is, weights that come back."""

import hashlib
import json
import os
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open

from .provenance import weights_fingerprint


# Arguments that change where, how fast or how loudly a run trains, not what it trains. A resumed run may change them.
_PLACE = (
    "output_dir resume run_name log report project trackio disable_tqdm save_ hub_ push_to_hub eval do_ use_cpu "
    "dataloader_ skip_memory_metrics local_rank ddp fsdp deepspeed accelerator_config parallelism_config debug tpu"
)
SETTINGS = "settings.json"


class ResumeFix:
    """
    Restore weights when a run resumes or takes its best checkpoint.

    Checkpoints of LLaVA, Qwen2-VL, Gemma 3 and others are saved under the names of their original format, which
    `Trainer` then fails to match, with no more than a warning (transformers#43701). Loading through the model class
    renames them. Adapters, DeepSpeed and FSDP restore by other ways, which work.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if not self._restore(model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._restore(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _restore(self, model: Any, checkpoint: str | None) -> bool:
        elsewhere = hasattr(model, "peft_config") or self.is_deepspeed_enabled or self.is_fsdp_enabled
        if elsewhere or not checkpoint or not Path(checkpoint, "config.json").exists():
            return False
        model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=model.dtype).state_dict(), strict=True)
        return True


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    Return the newest whole checkpoint in `output_dir`, and say so.

    One that was being written when the run was killed is passed over with a message; it stays where it is until the
    trainer writes it again.
    """
    say = PartialState().print
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if fault := _fault(path):
            say(f"{path} is not whole ({fault}); passing it over")
        else:
            say(f"resuming from {path}")
            return str(path)
    return None


def _fault(checkpoint: Path) -> str | None:
    """Return what a checkpoint lacks. `trainer_state.json` is written last; a full disk can cut any of the files."""
    weights = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*/*.safetensors")]
    sharded = ("global_step*", "pytorch_model*")  # DeepSpeed and FSDP
    if not weights and not any(next(checkpoint.glob(pattern), None) for pattern in sharded):
        return "no weights"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        for file in weights:
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    broken = [file.name for file in checkpoint.glob("*.pt") if not zipfile.is_zipfile(file)]
    return f"{broken[0]} is cut off" if broken else None


def claim(output_dir: str | Path, *configs: Any) -> None:
    """
    Write down what the run in `output_dir` is, or refuse the folder if another run works there.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        configs:
            The dataclasses of the recipe, one with `model_name_or_path` among them.

    Raises:
        `ValueError`: if the folder holds a run with other settings or other weights to start from; both fingerprints
            and the first setting that differs are named.
    """
    wanted = {}
    for config in configs:
        wanted |= {each.name: getattr(config, each.name) for each in fields(config)}
    plain = (str, int, float, bool, list, dict, type(None))
    names = tuple(_PLACE.split())
    wanted = {key: value for key, value in wanted.items() if isinstance(value, plain) and not key.startswith(names)}
    wanted["weights"] = weights_fingerprint(wanted["model_name_or_path"], wanted.get("model_revision"))
    wanted = json.loads(json.dumps(wanted, default=str))
    path = Path(output_dir, SETTINGS)
    if path.exists():
        found = json.loads(path.read_text())
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise ValueError(
                    f"{output_dir} holds another run: its fingerprint is {_digest(found)}, this one's is "
                    f"{_digest(wanted)}; {key} is {found.get(key)!r} there and {wanted.get(key)!r} here. Choose "
                    "another output_dir, or delete that folder."
                )
    elif PartialState().is_main_process:
        write_json(path, wanted)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` in one step or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)
