"""Going on with training that was cut off: which checkpoint is whole, whose run it is, weights that come back."""

import json
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open

from ..cards.lineage import pushed_to
from ..checkpoints import resolve_adapter
from ..credentials import refuse_credentials
from ..files import claim, refuse_another_run
from ..provenance import weights_fingerprint


# Arguments that change where, how fast or how loudly a run trains, not what it trains. A resumed run may change them.
_PLACE = (
    "output_dir resume run_name log report project trackio disable_tqdm save_ hub_ push_to_hub eval do_ use_cpu "
    "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers "
    "skip_memory_metrics local_rank ddp fsdp deepspeed accelerator_config parallelism_config debug tpu"
)
SETTINGS = "settings.json"


class ResumeFix:
    """
    Restore weights when a run resumes or takes its best checkpoint.

    Checkpoints of LLaVA, Qwen2-VL, Gemma 3 and others are saved under the names of their original format, which
    `Trainer` then fails to match, with no more than a warning (transformers#43701). Loading through the model class
    renames them. Adapters, DeepSpeed and FSDP restore by other ways, which work.

    A run that was cut off behind its last step, by a failed push for example, is not trained further: `Trainer` looks
    at `max_steps` only after a step.
    """

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

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


def settings_of(training_args: Any, *configs: Any, **extra: Any) -> dict[str, Any]:
    """
    Return what decides which model a run ends with.

    How a global batch is divided into processes, devices and accumulation does not, if rows are drawn at random: a
    resumed run may have more or fewer processes, and its losses are the same but for rounding.

    Args:
        training_args (`TrainingArguments`):
            Of the trainer.
        configs:
            The other dataclasses of the recipe, one with `model_name_or_path` among them.
        extra:
            What else is to be the same in a resumed run, such as hashes of the data.
    """
    settings: dict[str, Any] = {}
    for config in (training_args, *configs):
        settings |= {each.name: getattr(config, each.name) for each in fields(config)}
    plain = (str, int, float, bool, list, dict, type(None))
    names = tuple(_PLACE.split())
    settings = {
        key: value for key, value in settings.items() if isinstance(value, plain) and not key.startswith(names)
    }
    model = [part for part in resolve_adapter(settings["model_name_or_path"]) if part]
    settings["weights"] = "+".join(weights_fingerprint(part, settings.get("model_revision")) for part in model)
    at_once = training_args.train_batch_size * training_args.world_size
    settings["global_batch_size"] = at_once * training_args.gradient_accumulation_steps
    if training_args.train_sampling_strategy == "random":
        # The same rows in the same steps, however a step is divided. Batches of like length do depend on that.
        for part in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            del settings[part]
    else:
        settings["processes"] = training_args.world_size
    refuse_credentials(settings, "settings of the training")
    return json.loads(json.dumps({**settings, **extra}, default=str))


def refuse_other_settings(output_dir: str | Path, settings: dict[str, Any]) -> None:
    """Refuse a folder in which a run with other settings, data or weights was started; see [`settings_of`]."""
    path = Path(output_dir, SETTINGS)
    if path.exists():
        refuse_another_run(output_dir, json.loads(path.read_text(encoding="utf-8")), settings)


def already_trained(args: Any, settings: dict[str, Any]) -> bool:
    """
    Return whether a training ended in its folder before, and say so; refuse the folder of another run.

    Args:
        args (`TrainingArguments`):
            Of the trainer.
        settings (`dict[str, Any]`):
            What the run is, see [`settings_of`].
    """
    refuse_other_settings(args.output_dir, settings)
    if done := Path(args.output_dir, "training.json").exists():
        unpublished = args.push_to_hub and not pushed_to(args.output_dir)
        advice = "publish it with recipes/push_model.py" if unpublished else "nothing to do"
        PartialState().print(f"{args.output_dir} holds a finished model; {advice}")
    return done


def claim_folder(output_dir: str | Path, settings: dict[str, Any]) -> None:
    """Write down what the run in `output_dir` is, or refuse the folder if another run works there."""
    refuse_other_settings(output_dir, settings)
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        claim(Path(output_dir, SETTINGS), settings)
