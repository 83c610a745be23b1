"""What TRL lacks: freezing by part, resuming full fine-tuning of vision-language models, views of the images."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from trl import DPOTrainer, SFTTrainer

from .provenance import versions
from .views import light_view


# Part -> names that architectures give its module.
PARTS = {
    "vision_tower": ("vision_tower", "visual", "vision_model"),
    "multi_modal_projector": ("multi_modal_projector", "connector", "merger"),
    "language_model": ("language_model", "text_model"),
}


@dataclass
class FreezeConfig:
    """
    Parts that do not train.

    Args:
        freeze_vision_tower, freeze_multi_modal_projector, freeze_language_model (`bool`, *optional*):
            The part keeps its weights. An output head counts with the language model.
    """

    freeze_vision_tower: bool = field(default=False, metadata={"help": "Keep the vision tower as it is."})
    freeze_multi_modal_projector: bool = field(default=False, metadata={"help": "Keep the projector as it is."})
    freeze_language_model: bool = field(default=False, metadata={"help": "Keep the language model as it is."})


@dataclass
class ViewsConfig:
    """
    Augmentation of the images while training.

    Args:
        image_views (`bool`, *optional*, defaults to `False`):
            Show the model a light view (shift, brightness, noise) instead of the image, another one at every visit.
    """

    image_views: bool = field(default=False, metadata={"help": "Train on light views of the images."})


def freeze(model: torch.nn.Module, config: FreezeConfig) -> None:
    """
    Stop the named parts of `model` from training.

    Raises:
        `ValueError`: if the architecture has no module of one of the known names for a part.
    """
    for part, names in PARTS.items():
        if getattr(config, f"freeze_{part}"):
            modules = [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]
            if not modules:
                raise ValueError(
                    f"freeze_{part}: {type(model).__name__} has no module named {' or '.join(names)}; leave it out or name "
                    "the module in sicog_trl.training.PARTS"
                )
            for module in modules:
                module.requires_grad_(False)


def parts_table(model: torch.nn.Module) -> str:
    """Return a table of the parts of `model`, their parameters and how many of them train."""
    counts = {part: [0, 0] for part in [*PARTS, "other"]}
    for name, parameter in model.named_parameters():
        path = name.split(".")
        part = next((part for part, names in PARTS.items() if any(step in names for step in path)), "other")
        counts[part][0] += parameter.numel()
        counts[part][1] += parameter.numel() * parameter.requires_grad
    rows = [f"{part:22}  {total:>14,}  {trained:>14,}" for part, (total, trained) in counts.items() if total]
    return "\n".join([f"{'part':22}  {'parameters':>14}  {'trainable':>14}", *rows])


class ResumeFix:
    """
    Restore weights when a run resumes or takes its best checkpoint.

    Checkpoints of LLaVA, Qwen2-VL, Gemma 3 and others are saved under the names of their original format, which
    `Trainer` then fails to match, with no more than a warning (transformers#43701). Loading through the model class
    renames them.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if not self._restore(model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._restore(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _restore(self, model: Any, checkpoint: str | None) -> bool:
        adapter = hasattr(model, "peft_config")
        if not checkpoint or adapter or self.is_deepspeed_enabled or not Path(checkpoint, "config.json").exists():
            return False
        model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=model.dtype).state_dict(), strict=True)
        return True


class ResumableSFTTrainer(ResumeFix, SFTTrainer):
    """TRL's SFTTrainer, with weights that come back."""


class ResumableDPOTrainer(ResumeFix, DPOTrainer):
    """TRL's DPOTrainer, with weights that come back."""


class ViewCollator:
    """
    Show the trainer light views of the images, seeded by the place of a row in training.

    Args:
        collator (`Callable`):
            TRL's vision collator.
        seed (`int`):
            Seed of the run.
        rank (`int`, *optional*, defaults to `0`):
            Process; each sees other rows and other views.
    """

    def __init__(self, collator: Callable[[list[dict]], dict], seed: int, rank: int = 0):
        self.collator, self.seed, self.rank = collator, seed, rank
        self.batch = 0

    def __call__(self, examples: list[dict]) -> dict:
        shown = [
            {**example, "images": list(self._views(example["images"], number))} for number, example in enumerate(examples)
        ]
        self.batch += 1
        return self.collator(shown)

    def _views(self, images: list, number: int) -> Iterator:
        for index, image in enumerate(images):
            digest = hash((self.seed, self.rank, self.batch, number, index))  # of integers: the same in every process
            yield light_view(image, digest % 2**63)


class _CountBatches(TrainerCallback):
    """Start the count of [`ViewCollator`] where a resumed run goes on; skipped batches are not collated."""

    def __init__(self, collator: ViewCollator):
        self.collator = collator

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.batch = state.global_step * args.gradient_accumulation_steps


def show_views(trainer: SFTTrainer, config: ViewsConfig) -> None:
    """Let `trainer` train on views if `config` says so."""
    if config.image_views:
        if trainer.args.dataloader_num_workers:
            raise ValueError("image_views counts batches in this process: set dataloader_num_workers to 0")
        trainer.data_collator = ViewCollator(trainer.data_collator, trainer.args.seed, trainer.args.process_index)
        trainer.add_callback(_CountBatches(trainer.data_collator))


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest whole checkpoint in `output_dir`; one that was being written when the run was killed is passed over."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if fault := _fault(path):
            print(f"{path} is not whole ({fault}); passing it over")
        else:
            print(f"resuming from {path}")
            return str(path)
    return None


def _fault(checkpoint: Path) -> str | None:
    """Return what a checkpoint lacks; `trainer_state.json` is written last but for the random states."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def preview(trainer: SFTTrainer | DPOTrainer, dataset: Dataset) -> str:
    """
    Render the first rows as the model will see them.

    Returns:
        `str`: the text of one example, its tokens, image tokens and tokens with loss.
    """
    collator = trainer.data_collator.collator if isinstance(trainer.data_collator, ViewCollator) else trainer.data_collator
    batch = collator([dataset[0]])
    ids = batch["input_ids"][0].tolist()
    image_token = getattr(trainer.model.config, "image_token_id", None)
    labels = batch.get("labels")
    learned = int((labels[0] != -100).sum()) if labels is not None else int(batch["completion_mask"][0].sum())
    text = trainer.processing_class.tokenizer.decode([token for token in ids if token != image_token])
    return f"{text}\n[{len(ids)} tokens, {ids.count(image_token)} of images, {learned} with loss]"


def finished(output_dir: str | Path) -> bool:
    """Return whether [`train_and_save`] ended in `output_dir` before."""
    return Path(output_dir, "training.json").exists()


def train_and_save(trainer: SFTTrainer | DPOTrainer, dataset_name: str | None = None) -> dict[str, Any]:
    """
    Train, resuming what was cut off, then save model, processor, card and `training.json`, and push if asked.

    Args:
        trainer (`SFTTrainer` or `DPOTrainer`):
            Ready to train.
        dataset_name (`str`, *optional*):
            For the model card.

    Returns:
        `dict[str, Any]`: `steps`, `samples`, `tokens`, `seconds`, `first_loss`, `last_loss` and `versions`.
    """
    args = trainer.args
    print(parts_table(trainer.model))
    print(preview(trainer, trainer.train_dataset))
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_checkpoint(args.output_dir))
    trainer.save_model(args.output_dir)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    record = {
        "steps": trainer.state.global_step,
        "samples": trainer.state.global_step * batch,
        "tokens": int(tokens[-1]) if tokens else None,
        "seconds": time.monotonic() - started,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "versions": versions(),
    }
    if trainer.accelerator.is_main_process:
        trainer.create_model_card(dataset_name=dataset_name)
        unfinished = Path(args.output_dir, ".training.json")
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(unfinished, Path(args.output_dir, "training.json"))
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    trainer.end()
    return record
