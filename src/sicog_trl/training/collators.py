"""What is done to a batch before and after TRL collates it: views of its images, an image in every batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info
from transformers import ProcessorMixin, TrainerCallback

from ..views import VIEWS


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


class ViewCollator:
    """
    Collate views instead of the images; the rows stay as they are.

    A view is seeded by the run, the epoch and the place of the row in the epoch. So a resumed run sees exactly what an
    uninterrupted one sees, and so do more processes with smaller batches.

    Args:
        collator (`Callable`):
            TRL's vision collator.
        view (`Callable[[PIL.Image.Image, int], PIL.Image.Image]`):
            Image and seed -> view.
        seed (`int`):
            Seed of the run.
        rank (`int`, *optional*, defaults to `0`):
            Process; batches are dealt out to the processes in turn.
        processes (`int`, *optional*, defaults to `1`):
            Their number.
        batch_size (`int`, *optional*, defaults to `1`):
            Rows in a batch that is not the last one.
    """

    def __init__(
        self,
        collator: Callable[[list[dict]], dict],
        view: Callable,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        batch_size: int = 1,
    ):
        self.collator, self.view, self.seed = collator, view, seed
        self.rank, self.processes, self.batch_size = rank, processes, batch_size
        self.start(epoch=0, batch=0)

    def start(self, epoch: int, batch: int) -> None:
        """Say which batch comes next. Batches that a resumed run skips are never collated."""
        self.epoch, self.first, self.calls = epoch, batch, 0

    def __call__(self, examples: list[dict]) -> dict:
        worker = get_worker_info()  # each worker has a copy of this collator and every n-th batch
        place = self.calls if worker is None else self.calls * worker.num_workers + worker.id
        self.calls += 1
        row = ((self.first + place) * self.processes + self.rank) * self.batch_size
        seeds = [(self.seed, self.epoch, row + n) for n in range(len(examples))]
        pairs = zip(examples, seeds, strict=True)
        return self.collator([{**row, "images": list(self._views(row["images"], seed))} for row, seed in pairs])

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


def show_views(trainer: Any, config: ViewsConfig) -> None:
    """Let `trainer`, one of [`~sicog_trl.training.trainers`], train, not evaluate, on views if `config` says so."""
    if not config.image_views:
        return
    args = trainer.args
    if "images" not in trainer.train_dataset.column_names:
        raise ValueError(f"image_views: the dataset has no column images, only {trainer.train_dataset.column_names}")
    if args.dataloader_persistent_workers:
        raise ValueError("image_views: set dataloader_persistent_workers to false; workers that stay miss new epochs")
    place = (args.seed, args.process_index, args.world_size, args.train_batch_size)
    trainer.train_collator = ViewCollator(trainer.data_collator, VIEWS[config.image_views], *place)
    trainer.add_callback(_StartEpoch(trainer.train_collator))


class ImageInEveryBatch:
    """
    Put a blank image behind the longest text of a batch that has none, where nothing attends to it and nothing learns.

    Processes that share weights or gradients (ZeRO, FSDP) wait for each other in every part of the model. If one of
    them had a batch of texts alone, it would never reach the vision tower, and the others would wait for ever. Behind
    the text and masked like padding, the image changes no loss, no gradient and no count of tokens.

    Args:
        collator (`Callable`):
            TRL's vision collator.
        processor (`ProcessorMixin`):
            Of the model.
        pad_token_id (`int`):
            Fills the other rows.
    """

    def __init__(self, collator: Callable[[list[dict]], dict], processor: ProcessorMixin, pad_token_id: int):
        self.collator, self.processor = collator, processor
        self.fill = {"labels": -100, "input_ids": pad_token_id}  # and 0 for masks

    def __call__(self, examples: list[dict]) -> dict:
        seen = any(row.get("images") or row.get("image") for row in examples)
        batch = self.collator(examples)
        return batch if seen else self._append(batch)

    def _append(self, batch: dict) -> dict:
        message = {"role": "user", "content": [{"type": "image"}]}
        text = self.processor.apply_chat_template([message], tokenize=False)
        image = Image.new("RGB", (64, 64))
        blank = self.processor(images=[[image]], text=[text], return_tensors="pt", add_special_tokens=False)
        rows, length = batch["input_ids"].shape
        longest = int(batch["attention_mask"].sum(dim=1).argmax())
        for name, values in batch.items():
            if values.shape == (rows, length):
                tail = values.new_full((rows, blank["input_ids"].shape[1]), self.fill.get(name, 0))
                if name in blank and name != "attention_mask":  # as padding: it is no token that was learned from
                    tail[longest] = blank[name][0]
                batch[name] = torch.cat([values, tail], dim=1)
        for name in blank.keys() - batch.keys():
            batch[name] = blank[name]
        return batch
