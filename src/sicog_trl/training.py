"""What TRL lacks: views of the images, batches of like length, weights that come back, a record."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import get_worker_info
from transformers import TrainerCallback
from transformers.trainer_pt_utils import BatchRebalanceSampler
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    SFTConfig,
    SFTTrainer,
    get_peft_config,
    get_quantization_config,
)

from .files import write_json
from .freezing import parts_table
from .provenance import versions
from .resume import ResumeFix, claim_folder, last_checkpoint
from .training_data import TEXTS, preview
from .views import VIEWS


@dataclass
class ViewsConfig:
    """
    Augmentation of the images while training.

    Args:
        image_views (`str`, *optional*):
            Show the model a `"light"` or `"strong"` view instead of the image, another one at every visit.
    """

    image_views: str | None = field(
        default=None, metadata={"help": "Train on `light` or `strong` views of the images."}
    )

    def __post_init__(self) -> None:
        if self.image_views is not None and self.image_views not in VIEWS:
            raise ValueError(f"image_views is one of {', '.join(VIEWS)}, got {self.image_views!r}")


class _VisionTraining(ResumeFix):
    """Weights that come back, a collator of its own for training, and samplers that know the lengths of the texts."""

    train_collator: Callable[[list[dict]], dict] | None = None

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        # evaluation must see the images as they are, so only the loader for training is built with views
        collator = self.data_collator
        self.data_collator = self.train_collator or collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        # Transformers would look for the lengths in a column that it has dropped before it asks for the sampler
        if self.args.train_sampling_strategy not in ("group_by_length", "batch_rebalance"):
            return super()._get_train_sampler(train_dataset)
        lengths = Dataset.from_dict({self.args.length_column_name: self._text_lengths()})
        sampler = super()._get_train_sampler(lengths)
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.seed = self.args.seed  # it is 42 in every run otherwise
        return sampler

    def _text_lengths(self) -> list[int]:
        """Count the tokens of each row, without those of its images; no image is decoded."""
        names = self.train_dataset.column_names
        columns = [name for name in TEXTS if name in names]
        rows = zip(*(self.train_dataset[name] for name in columns), strict=True)
        texts = ["\n".join(message["content"] for part in row for message in part) for row in rows]
        return [len(ids) for ids in self.processing_class.tokenizer(texts)["input_ids"]]


class ResumableSFTTrainer(_VisionTraining, SFTTrainer):
    """TRL's SFTTrainer, with weights that come back."""


class ResumableDPOTrainer(_VisionTraining, DPOTrainer):
    """TRL's DPOTrainer, with weights that come back."""


class ViewCollator:
    """
    Collate views instead of the images; the rows stay as they are.

    A view is seeded by the run, the process, the epoch, the batch in the epoch and the position in the batch, so that
    a resumed run sees exactly what an uninterrupted one sees.

    Args:
        collator (`Callable`):
            TRL's vision collator.
        view (`Callable[[PIL.Image.Image, int], PIL.Image.Image]`):
            Image and seed -> view.
        seed (`int`):
            Seed of the run.
        rank (`int`, *optional*, defaults to `0`):
            Process; each sees other rows and other views.
    """

    def __init__(self, collator: Callable[[list[dict]], dict], view: Callable, seed: int, rank: int = 0):
        self.collator, self.view, self.seed, self.rank = collator, view, seed, rank
        self.start(epoch=0, batch=0)

    def start(self, epoch: int, batch: int) -> None:
        """Say which batch comes next. Batches that a resumed run skips are never collated."""
        self.epoch, self.first, self.calls = epoch, batch, 0

    def __call__(self, examples: list[dict]) -> dict:
        worker = get_worker_info()  # each worker has a copy of this collator and every n-th batch
        place = self.calls if worker is None else self.calls * worker.num_workers + worker.id
        self.calls += 1
        batch = (self.seed, self.rank, self.epoch, self.first + place)
        shown = [{**row, "images": list(self._views(row["images"], (*batch, n)))} for n, row in enumerate(examples)]
        return self.collator(shown)

    def _views(self, images: list, place: tuple[int, ...]) -> Iterator:
        for index, image in enumerate(images):
            yield self.view(image, int(np.random.SeedSequence((*place, index)).generate_state(1, np.uint64)[0]))


class _StartEpoch(TrainerCallback):
    """Tell [`ViewCollator`] the epoch and how many of its batches a resumed run skips, as `Trainer` counts them."""

    def __init__(self, collator: ViewCollator):
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        steps = max(-(-len(train_dataloader) // args.gradient_accumulation_steps), 1)
        epoch, done = divmod(state.global_step, steps)
        self.collator.start(epoch, done * args.gradient_accumulation_steps)


def show_views(trainer: SFTTrainer | DPOTrainer, config: ViewsConfig) -> None:
    """Let `trainer` train, not evaluate, on views if `config` says so."""
    if not config.image_views:
        return
    if "images" not in trainer.train_dataset.column_names:
        raise ValueError(f"image_views: the dataset has no column images, only {trainer.train_dataset.column_names}")
    if trainer.args.dataloader_persistent_workers:
        raise ValueError("image_views: set dataloader_persistent_workers to false; workers that stay miss new epochs")
    trainer.train_collator = ViewCollator(
        trainer.data_collator, VIEWS[config.image_views], trainer.args.seed, trainer.args.process_index
    )
    trainer.add_callback(_StartEpoch(trainer.train_collator))


def trainer_inputs(
    args: SFTConfig | DPOConfig, model_args: ModelConfig, train_dataset: Dataset, eval_dataset: Dataset | None
) -> dict[str, Any]:
    """
    Return the arguments that TRL's trainers share.

    The model is handed over by name, not as an instance: DPOTrainer loads its reference from that name, and it must be
    this very model.
    """
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    return {
        "model": model_args.model_name_or_path,
        "args": args,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "peft_config": get_peft_config(model_args),
        "quantization_config": get_quantization_config(model_args),
    }


def finished(output_dir: str | Path) -> bool:
    """Return whether [`train_and_save`] ended in `output_dir` before."""
    return Path(output_dir, "training.json").exists()


def train_and_save(
    trainer: SFTTrainer | DPOTrainer, settings: dict[str, Any], dataset_name: str | None = None
) -> dict[str, Any]:
    """
    Train, resuming what was cut off, then save model, processor and card, push if asked, and write `training.json`.

    Args:
        trainer (`SFTTrainer` or `DPOTrainer`):
            Ready to train.
        settings (`dict[str, Any]`):
            What the run is, see [`~sicog_trl.resume.settings_of`]; the folder is claimed for it.
        dataset_name (`str`, *optional*):
            For the model card.

    Returns:
        `dict[str, Any]`: `steps`, `samples`, `tokens`, `seconds` (of this process), `first_loss`, `last_loss` and
        `resumed_from`.
    """
    args = trainer.args
    say = trainer.accelerator.print
    say(f"{parts_table(trainer.model)}\n\n{preview(trainer, trainer.train_dataset)}\n", flush=True)
    # not before: what fails above leaves no trace that would refuse the next try
    claim_folder(args.output_dir, settings)
    # the trainer's own count survives a resume, TRL's `num_tokens` begins at zero again
    args.include_num_input_tokens_seen = "non_padding"
    checkpoint = args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    record = {**_record(trainer), "seconds": time.monotonic() - started, "resumed_from": checkpoint}
    say(f"{args.output_dir}: {json.dumps(record)}")
    if trainer.accelerator.is_main_process:
        trainer.create_model_card(dataset_name=dataset_name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    if trainer.accelerator.is_main_process:  # last: it says that nothing is left to do, so a failed push is repeated
        write_json(Path(args.output_dir, "training.json"), {**record, "versions": versions()})
    trainer.end()
    return record


def _record(trainer: SFTTrainer | DPOTrainer) -> dict[str, Any]:
    args, state, rows = trainer.args, trainer.state, len(trainer.train_dataset)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs, steps = divmod(state.global_step, max(-(-rows // batch), 1))  # the last batch of an epoch may be short
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return {
        "steps": state.global_step,
        "samples": epochs * rows + steps * batch,
        "tokens": int(state.num_input_tokens_seen),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }
