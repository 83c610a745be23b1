"""What TRL lacks: a fixed global batch, batches of like length, weights that come back, a record."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DeepSpeedPlugin
from datasets import Dataset
from transformers import set_seed
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
from transformers.trainer_pt_utils import BatchRebalanceSampler
from trl import DPOConfig, DPOTrainer, ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from ..checkpoints import resolve_adapter
from ..data import texts_of
from ..data.rows import TEXTS
from ..files import write_json
from ..provenance import versions
from .adapters import load_adapter, quantization
from .collators import ImageInEveryBatch
from .data import NamedRows, check_rows, has_images, read_row, refuse_image_loss
from .freezing import parts_table
from .preview import preview
from .publishing import Publishing
from .resume import ResumeFix, claim_folder, last_checkpoint


@dataclass
class BatchConfig:
    """
    How many rows a step learns from.

    Args:
        global_batch_size (`int`, *optional*):
            Rows per step over all processes. `gradient_accumulation_steps` follows from it, so that a run is the same
            on any number of devices. Only the last step of an epoch differs if its rows do not suffice for all of
            them: some then count twice, unless `dataloader_drop_last` leaves that step out.
    """

    global_batch_size: int | None = field(
        default=None, metadata={"help": "Rows per step over all processes; accumulation follows from it."}
    )

    def __post_init__(self) -> None:
        if self.global_batch_size is not None and self.global_batch_size < 1:
            raise ValueError(f"global_batch_size is at least 1, got {self.global_batch_size}")


def set_accumulation(args: SFTConfig | DPOConfig, config: BatchConfig) -> None:
    """
    Derive `args.gradient_accumulation_steps` from the global batch and the number of processes, and print it.

    Raises:
        `ValueError`: if it does not come out even, with numbers that would.
    """
    rows, each, processes = config.global_batch_size, args.per_device_train_batch_size, args.world_size
    if rows is None:
        return
    if args.gradient_accumulation_steps != 1 or args.auto_find_batch_size:
        name = "auto_find_batch_size" if args.auto_find_batch_size else "gradient_accumulation_steps"
        raise ValueError(
            f"both global_batch_size and {name} are given: leave {name} out, accumulation follows from the global "
            "batch, per_device_train_batch_size and the number of processes"
        )
    at_once = args.train_batch_size * processes  # more than `each` for GPUs that share one process
    steps, rest = divmod(rows, at_once)
    if rest:
        near = [str(number * at_once) for number in (steps, steps + 1) if number]
        fits = [str(size) for size in range(1, rows + 1) if rows % (size * at_once // each) == 0]
        raise ValueError(
            f"global_batch_size {rows} is not a multiple of {at_once} = {each} per device x {at_once // each} "
            f"processes. What fits: global_batch_size {' or '.join(near)}; or per_device_train_batch_size "
            f"{', '.join(fits) or f'with at most {rows} processes'}"
        )
    args.gradient_accumulation_steps = steps
    if args.deepspeed:  # its "auto" was filled in with the accumulation of before
        args.hf_deepspeed_config = HfTrainerDeepSpeedConfig(args.deepspeed)
        args.hf_deepspeed_config.trainer_config_process(args)
        args.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=args.hf_deepspeed_config)
    PartialState().print(
        f"global batch {rows} = {each} per device x {at_once // each} processes x {steps} accumulation"
    )


class _VisionTraining(Publishing, ResumeFix):
    """Weights that come back, a collator of its own for training, and samplers that know the lengths of the texts."""

    train_collator: Callable[[list[dict]], dict] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.plain_collator = self.data_collator
        # not for texts alone: what no row uses is left alone, by weight decay too
        if self.args.world_size > 1 and has_images(self.train_dataset):
            pad = self.processing_class.tokenizer.pad_token_id
            self.data_collator = ImageInEveryBatch(self.data_collator, self.processing_class, pad)

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> NamedRows:
        return NamedRows(super()._remove_unused_columns(dataset, description), dataset)

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

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        # in the order of the rows; for batches of like length Transformers would look for lengths that are not there
        return None

    def _text_lengths(self) -> list[int]:
        """Count the tokens of each row, without those of its images; no image is decoded."""
        names = [name for name in TEXTS if name in self.train_dataset.column_names]
        rows = self.train_dataset.select_columns(names)
        texts = ["\n".join(text for messages in row.values() for text in texts_of(messages)) for row in rows]
        return [len(ids) for ids in self.processing_class.tokenizer(texts)["input_ids"]]


class ResumableSFTTrainer(_VisionTraining, SFTTrainer):
    """TRL's SFTTrainer, with weights that come back."""


class ResumableDPOTrainer(_VisionTraining, DPOTrainer):
    """TRL's DPOTrainer, with weights that come back."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Of a quantized model TRL rounds the adapter to bfloat16 after it was copied to be the reference.
        for name, parameter in self.model.named_parameters():
            if ".ref." in name:
                parameter.data = self.model.get_parameter(name.replace(".ref.", ".default.")).data.clone()
        if "ref" in getattr(self.model, "peft_config", {}):
            # The reference lies where it came from, and whoever resumes reads it there; ZeRO-3 could not even save it.
            self.model.save_pretrained = partial(self.model.save_pretrained, selected_adapters=["default"])


def trainer_inputs(
    args: SFTConfig | DPOConfig, model_args: ModelConfig, train_dataset: Dataset, eval_dataset: Dataset | None
) -> dict[str, Any]:
    """
    Return the arguments that TRL's trainers share.

    The model is handed over by name, not as an instance: DPOTrainer loads its reference from that name, and it must be
    this very model. Only an adapter that goes on training is loaded here.
    """
    refuse_image_loss(args, train_dataset)
    for dataset in filter(None, (train_dataset, eval_dataset)):
        check_rows(dataset, model_args.model_name_or_path, model_args.model_revision)
        read_row(dataset, 0)  # TRL does, without a name for the row
    start = {"quantization_config": quantization(model_args)}
    init = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    if resolve_adapter(model_args.model_name_or_path)[1]:
        set_seed(args.seed)
        init = {"trust_remote_code": args.trust_remote_code, **init}  # left out, it would ask on the terminal
        alone = args.distributed_state.distributed_type not in ("MULTI_GPU", "DEEPSPEED")
        start = load_adapter(model_args, {**init, **{k: v for k, v in start.items() if v}}, device_map=alone)
    else:
        args.model_init_kwargs = init
        start |= {"model": model_args.model_name_or_path, "peft_config": get_peft_config(model_args)}
    return {**start, "args": args, "train_dataset": train_dataset, "eval_dataset": eval_dataset}


def train_and_save(trainer: ResumableSFTTrainer | ResumableDPOTrainer, settings: dict[str, Any]) -> dict[str, Any]:
    """
    Train, resuming what was cut off, then save model, processor and card, push if asked, and write `training.json`.

    Args:
        trainer ([`ResumableSFTTrainer`] or [`ResumableDPOTrainer`]):
            Ready to train.
        settings (`dict[str, Any]`):
            What the run is, see [`~sicog_trl.training.resume.settings_of`]; the folder is claimed for it.

    Returns:
        `dict[str, Any]`: `steps`, `samples`, `tokens`, `seconds` (of this process), `first_loss`, `last_loss` and
        `resumed_from`.
    """
    args = trainer.args
    say = trainer.accelerator.print
    if trainer.accelerator.is_main_process:
        say(f"{parts_table(trainer.model)}\n\n{preview(trainer)}\n", flush=True)
    trainer.remember(settings)
    # not before: what fails above leaves no trace that would refuse the next try
    claim_folder(args.output_dir, settings)
    # the trainer's own count survives a resume, TRL's `num_tokens` begins at zero again
    args.include_num_input_tokens_seen = "non_padding"
    checkpoint = args.resume_from_checkpoint or last_checkpoint(args.output_dir)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir, _internal_call=True)  # it would push, before there is a card
    record = {**_record(trainer), "seconds": time.monotonic() - started, "resumed_from": checkpoint}
    say(f"{args.output_dir}: {json.dumps(record)}")
    trainer.record |= {**record, "versions": versions()}
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    if trainer.accelerator.is_main_process:  # last: it says that nothing is left to do, so a failed push is repeated
        write_json(Path(args.output_dir, "training.json"), trainer.record)
    # Gloo frees the tensors of its last work in a thread of its own, which needs the interpreter. Without a barrier
    # that may happen while the interpreter ends, and then each waits for the other for ever (pytorch#190489).
    trainer.accelerator.wait_for_everyone()
    trainer.end()
    return record


def _record(trainer: SFTTrainer | DPOTrainer) -> dict[str, Any]:
    args, state, rows = trainer.args, trainer.state, len(trainer.train_dataset)
    at_once = args.train_batch_size * args.world_size
    batch = at_once * args.gradient_accumulation_steps
    rows -= rows % at_once if args.dataloader_drop_last else 0
    epochs, steps = divmod(state.global_step, max(-(-rows // batch), 1))  # the last batch of an epoch may be short
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return {
        "steps": state.global_step,
        "samples": epochs * rows + steps * batch,
        "tokens": int(state.num_input_tokens_seen),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }
