"""What a model trains on, checked before anything is loaded and shown as the model will see it."""

import dataclasses
from typing import Any

from datasets import Dataset

from .checkpoints import load_processor, placeholders
from .data import MixtureConfig, load, load_mixture, split_files
from .files import is_local
from .tasks import hash_files


TEXTS = ("messages", "prompt", "completion", "chosen", "rejected")
COLUMNS = {"sft": ({"prompt", "completion"}, {"messages"}), "dpo": ({"prompt", "chosen", "rejected"},)}


def training_data(
    kind: str,
    mixture: MixtureConfig,
    dataset_name: str | None,
    dataset_config: str | None,
    train_split: str,
    eval_split: str | None,
) -> tuple[Dataset, Dataset | None]:
    """
    Load what to train and what to evaluate on: a mixture, or the splits of one dataset.

    Args:
        kind (`str`):
            `"sft"` or `"dpo"`: decides which columns have to be there.
        mixture ([`MixtureConfig`]):
            Its `datasets`, if any, are trained on; `dataset_name` then serves evaluation alone.
        dataset_name, dataset_config (`str`, *optional*):
            One dataset.
        train_split (`str`):
            Its split to train on.
        eval_split (`str`, *optional*):
            Its split to evaluate on.

    Returns:
        `tuple[Dataset, Dataset | None]`: training and evaluation dataset.
    """
    if not mixture.datasets and not dataset_name:
        raise ValueError("there is nothing to train on: give dataset_name, or datasets for a mixture")
    if mixture.datasets and dataset_name and not eval_split:
        raise ValueError("both dataset_name and datasets are given: leave one of them out")
    if eval_split and not dataset_name:
        raise ValueError("eval_strategy needs dataset_name, the dataset to evaluate on")
    train = load_mixture(mixture) if mixture.datasets else load(dataset_name, dataset_config, train_split)
    _check(train, kind, "training dataset")
    if not eval_split:
        return train, None
    evaluation = load(dataset_name, dataset_config, eval_split)
    _check(evaluation, kind, f"split {eval_split!r} of {dataset_name}")
    return train, evaluation


def _check(dataset: Dataset, kind: str, name: str) -> None:
    if not len(dataset):
        raise ValueError(f"the {name} is empty")
    columns = set(dataset.column_names)
    if not any(wanted <= columns for wanted in COLUMNS[kind]):
        wanted = " or ".join(" + ".join(sorted(names)) for names in COLUMNS[kind])
        raise ValueError(f"the {name} needs the columns {wanted}; it has {', '.join(sorted(columns))}")


def data_fingerprint(
    mixture: MixtureConfig, dataset_name: str | None, dataset_config: str | None, *splits: str | None
) -> dict[str, str]:
    """Return a hash of the files of each local split that [`training_data`] reads; a Hub id stands for itself."""
    sources = [(each["path"], each.get("config"), each.get("split") or "train") for each in mixture.datasets or []]
    trains = 1 if mixture.datasets else 0  # the first split is the one to train on; a mixture takes its place
    sources += [(dataset_name, dataset_config, split) for split in splits[trains:] if split]
    return {
        "/".join(filter(None, source)): hash_files(split_files(*source)) if is_local(source[0]) else "not local"
        for source in sources
    }


def refuse_placeholders(dataset: Dataset | None, model_name_or_path: str, revision: str | None = None) -> None:
    """
    Refuse texts that hold what the processor takes for an image: TRL places one for each image of the row.

    Args:
        dataset (`datasets.Dataset`, *optional*):
            Its text columns are read, no image is decoded.
        model_name_or_path (`str`):
            Whose processor will read them.
        revision (`str`, *optional*):
            Revision of a Hub model.
    """
    if dataset is None:
        return
    tokens = placeholders(load_processor(model_name_or_path, revision=revision))
    names = [name for name in TEXTS if name in dataset.column_names]
    labels = dataset["id"] if "id" in dataset.column_names else None
    for number, row in enumerate(dataset.select_columns(names)):
        for name, value in row.items():
            for text in [value] if isinstance(value, str) else [message["content"] for message in value or []]:
                if token := next((token for token in tokens if isinstance(text, str) and token in text), None):
                    label = f"row {number}" if labels is None else f"row {number} (id {labels[number]!r})"
                    raise ValueError(
                        f"{label}: the column {name} holds {token!r}: {text[:80]!r}; take it out, one is placed for "
                        "each image of the row"
                    )


def preview(trainer: Any, dataset: Dataset) -> str:
    """
    Render the first row as the model will see it, and count what `max_length` cuts off.

    Args:
        trainer (`SFTTrainer` or `DPOTrainer`):
            Its collator and processor are asked.
        dataset (`datasets.Dataset`):
            The dataset that it trains on.

    Returns:
        `str`: the text, its tokens, image tokens and tokens with loss, and how many rows are cut.
    """
    collator = trainer.data_collator
    batch = collator([dataset[0]])
    ids = batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist()
    # of the model, not of the processor: that of Gemma 3 names the mark in the text, for which many tokens are put in
    image_token = trainer.model.config.image_token_id
    learned = int((batch["labels"][0] != -100).sum() if "labels" in batch else batch["completion_mask"][0].sum())
    text = trainer.processing_class.tokenizer.decode([token for token in ids if token != image_token])
    lines = [text, f"[{len(ids)} tokens, {ids.count(image_token)} of images, {learned} with loss]"]
    if limit := trainer.args.max_length:
        whole = dataclasses.replace(collator, max_length=None)
        rows = range(0, len(dataset), -(-len(dataset) // 100))
        cut = sum(int(whole([dataset[row]])["attention_mask"].sum(dim=1).max()) > limit for row in rows)
        lines.append(f"max_length: {limit} cuts {cut} of {len(rows)} sampled rows; null cuts none")
    return "\n".join(lines)
