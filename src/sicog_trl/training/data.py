"""What a model trains on, checked before anything is loaded."""

from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset, Image, List, Value
from trl import DPOConfig, ScriptArguments, SFTConfig

from ..checkpoints import load_processor, placeholders
from ..data import MixtureConfig, label_of, load, load_mixture, pin, refuse_repeated_ids, split_files, validate
from ..data.rows import TEXTS
from ..files import is_local
from ..provenance import hash_files


COLUMNS = {"sft": ({"prompt", "completion"}, {"messages"}), "dpo": ({"prompt", "chosen", "rejected"},)}


def training_data(
    kind: str, script_args: ScriptArguments, mixture: MixtureConfig, evaluates: bool = False
) -> tuple[Dataset, Dataset | None]:
    """
    Load what to train and what to evaluate on: a mixture, or the splits of one dataset.

    Hub datasets are given their commit in `script_args` and `mixture`, see [`~sicog_trl.data.pin`]: what is written
    down of the run names the rows that it read, and it does not go on with others.

    Args:
        kind (`str`):
            `"sft"` or `"dpo"`: decides which columns have to be there.
        script_args (`ScriptArguments`):
            Name one dataset and its splits.
        mixture ([`MixtureConfig`]):
            Its `datasets`, if any, are trained on; `dataset_name` then serves evaluation alone.
        evaluates (`bool`, *optional*, defaults to `False`):
            Whether there is something to evaluate on.

    Returns:
        `tuple[Dataset, Dataset | None]`: training and evaluation dataset. Texts alone get empty lists of images, so
        that they take the same way.
    """
    name = script_args.dataset_name
    for option in ("dataset_streaming", "ignore_bias_buffers"):
        if getattr(script_args, option):
            raise ValueError(
                f"{option} has no effect here; leave it out. Datasets are read from disk as they are used"
            )
    if not mixture.datasets and not name:
        raise ValueError("there is nothing to train on: give dataset_name, or datasets for a mixture")
    if mixture.datasets and name and not evaluates:
        raise ValueError("both dataset_name and datasets are given: leave one of them out")
    if evaluates and not name:
        raise ValueError("eval_strategy needs dataset_name, the dataset to evaluate on")
    script_args.dataset_name = name = pin(name) if name else None
    if mixture.datasets:
        mixture.datasets = [
            {**each, "path": pin(each["path"])} if each.get("path") else each for each in mixture.datasets
        ]
        train = load_mixture(mixture)
    else:
        train = load(name, script_args.dataset_config, script_args.dataset_train_split)
        refuse_repeated_ids(train, f"split {script_args.dataset_train_split!r} of {name}")
    train = _checked(train, kind, "training dataset")
    if not evaluates:
        return train, None
    split = script_args.dataset_test_split
    evaluation = load(name, script_args.dataset_config, split)
    return train, _checked(evaluation, kind, f"split {split!r} of {name}")


def _checked(dataset: Dataset, kind: str, name: str) -> Dataset:
    if not len(dataset):
        raise ValueError(f"the {name} is empty")
    columns = set(dataset.column_names)
    if not any(wanted <= columns for wanted in COLUMNS[kind]):
        wanted = " or ".join(" + ".join(sorted(names)) for names in COLUMNS[kind])
        raise ValueError(f"the {name} needs the columns {wanted}; it has {', '.join(sorted(columns))}")
    if plain := [column for column in TEXTS if isinstance(dataset.features.get(column), Value)]:
        raise ValueError(
            f"the {name} has plain text in the column {plain[0]}: TRL puts no image in front of it and no end behind "
            "it, so the model would not learn to stop. Make messages of it: [{'role': 'user', 'content': ...}] in the "
            "prompt, and the role 'assistant' in what is learned"
        )
    if columns & {"image", "images"}:
        return dataset
    return dataset.add_column("images", [[]] * len(dataset), feature=List(Image()))


def has_images(dataset: Dataset) -> bool:
    """Return whether any row of `dataset` has an image; only lengths of lists are read."""
    if "images" not in dataset.column_names:
        return "image" in dataset.column_names
    return bool(pc.max(pc.list_value_length(dataset.data.column("images"))).as_py())


def data_fingerprint(script_args: ScriptArguments, mixture: MixtureConfig, evaluates: bool = False) -> dict[str, str]:
    """Return what identifies each split that [`training_data`] reads: a hash of local files, the commit on the Hub."""
    sources = [(each["path"], each.get("config"), each.get("split") or "train") for each in mixture.datasets or []]
    splits = [] if mixture.datasets else [script_args.dataset_train_split]
    splits += [script_args.dataset_test_split] if evaluates else []
    sources += [(script_args.dataset_name, script_args.dataset_config, split) for split in splits]
    found = {}
    for name, *part in sources:
        local = is_local(name)
        key = "/".join(filter(None, (name if local else name.partition("@")[0], *part)))
        found[key] = hash_files(split_files(name, *part)) if local else pin(name)
    return found


def refuse_image_loss(args: SFTConfig | DPOConfig, dataset: Dataset) -> None:
    """Refuse settings under which a model would learn to write the placeholders of the images of `dataset`."""
    whole = "messages" in dataset.column_names and not getattr(args, "assistant_only_loss", True)
    if has_images(dataset) and (whole or getattr(args, "completion_only_loss", None) is False):
        change = "set assistant_only_loss: true" if whole else "leave completion_only_loss out"
        raise ValueError(
            f"the loss would count the whole text, the placeholders of images among it: {change}, or put what is "
            "asked in a column prompt and the answer in a column completion"
        )


def check_rows(dataset: Dataset, model_name_or_path: str, revision: str | None = None) -> None:
    """
    Refuse rows that cannot be trained on, before anything is loaded: see [`~sicog_trl.data.validate`].

    Ids may repeat, as they do in a mixture that goes through a source twice; in a source they may not.

    Args:
        dataset (`datasets.Dataset`):
            Each image of it is opened, but not decoded, and none is fetched.
        model_name_or_path (`str`):
            Whose processor will read them: no text may hold what it takes for an image.
        revision (`str`, *optional*):
            Revision of a Hub model.
    """
    tokens = placeholders(load_processor(model_name_or_path, revision=revision))
    validate(dataset, tokens, unique_ids=False, columns=False).refuse("the dataset")


def row_label(dataset: Dataset, number: int) -> str:
    """Return how to find a row again, see [`~sicog_trl.data.label_of`]."""
    names = [name for name in ("id", *TEXTS) if name in dataset.column_names]
    return label_of(number, dataset.select_columns(names)[number])


def read_row(dataset: Dataset, number: int, labels: Dataset | None = None) -> dict[str, Any]:
    """
    Return a row, with an empty list if it says nothing of images; one whose image cannot be read is named.

    Args:
        dataset (`datasets.Dataset`):
            What is trained on.
        number (`int`):
            Of the row.
        labels (`datasets.Dataset`, *optional*):
            The same rows with their ids, if `dataset` has none.
    """
    try:
        return _listed(dataset[number])
    # Decoders meet hostile bytes with whatever they stumble over, and an image that is too large has its own error.
    except Exception as error:
        raise ValueError(
            f"{row_label(dataset if labels is None else labels, number)} of the dataset cannot be read: "
            f"{type(error).__name__}: {error}. Repair or leave out that row"
        ) from error


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    if "images" not in row:
        return row
    if None in (images := row["images"] or []):
        raise ValueError("one of its images is null")
    return {**row, "images": images}


class NamedRows(torch.utils.data.Dataset):
    """Rows for a `DataLoader`, see [`read_row`]."""

    def __init__(self, dataset: Dataset, labels: Dataset):
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return read_row(self.dataset, number, self.labels)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        try:
            return [_listed(row) for row in self.dataset.__getitems__(numbers)]
        except Exception:
            return [self[number] for number in numbers]  # one of them says which
