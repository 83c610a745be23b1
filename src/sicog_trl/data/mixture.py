"""Datasets to train on, mixed with fixed weights."""

import math
from dataclasses import dataclass, field

from datasets import Dataset, Features, Value, interleave_datasets

from .artefacts import load
from .features import IMAGES, MESSAGES, TRAINING_COLUMNS
from .ids import refuse_repeated_ids


@dataclass
class MixtureConfig:
    """
    Datasets to train on, mixed with fixed weights.

    Args:
        datasets (`list[dict]`, *optional*):
            One mapping per source with the keys `path` (folder or Hub id, such as `me/digits@round-1`), `config`,
            `split` (`"train"` if missing) and `weight` (1.0 if missing). Leave it out to train on `dataset_name`
            alone.
        mixture_seed (`int`, *optional*, defaults to `0`):
            Seed of the interleaving.
    """

    datasets: list[dict] | None = field(
        default=None, metadata={"help": "Sources: mappings with path, config, split and weight."}
    )
    mixture_seed: int = field(default=0, metadata={"help": "Seed of the interleaving."})


def load_mixture(mixture: MixtureConfig) -> Dataset:
    """
    Load the sources of `mixture` and interleave them by weight.

    A source that runs out is started again until every source has been seen whole once, so that the weights hold over
    the whole dataset. Columns that training does not read are left out, but for an `id` that all sources have. Rows of
    a source without images get an empty list of them if another source has some: text-only data may be mixed in
    (SICOG's pre-training does).

    Returns:
        `datasets.Dataset`: with the columns of TRL's vision format (`images`, `prompt`, `completion` or `chosen` and
        `rejected`; or `messages`).
    """
    parts, weights = [], []
    for number, source in enumerate(mixture.datasets or []):
        weights.append(_check_source(f"datasets[{number}]", source))
        split = source.get("split") or "train"
        part = load(source["path"], source.get("config"), split)
        if not len(part):
            raise ValueError(f"datasets[{number}]: the split {split!r} of {source['path']} is empty; leave it out")
        if "image" in part.column_names and "images" not in part.column_names:
            raise ValueError(
                f"datasets[{number}]: {source['path']} has one image in the column 'image'; a mixture reads lists of "
                "them from 'images', so write the dataset with that column"
            )
        refuse_repeated_ids(part, f"datasets[{number}] ({source['path']})")
        parts.append(part.select_columns([name for name in ("id", *TRAINING_COLUMNS) if name in part.column_names]))
    if not parts:
        raise ValueError("datasets is empty: name at least one source with a `path`")
    if len(parts) == 1:
        return parts[0]
    parts = _alike(parts)
    columns = [set(part.column_names) for part in parts]
    if any(names != columns[0] for names in columns):
        raise ValueError(f"the sources of the mixture have different training columns: {[sorted(c) for c in columns]}")
    return interleave_datasets(
        parts,
        probabilities=[weight / sum(weights) for weight in weights],
        seed=mixture.mixture_seed,
        stopping_strategy="all_exhausted",
    )


def _alike(parts: list[Dataset]) -> list[Dataset]:
    """Give sources the same features: text-only ones an empty list of images, all of them the order of our fields."""
    if any("images" in part.column_names for part in parts):
        parts = [
            part if "images" in part.column_names else part.add_column("images", [[]] * len(part), feature=IMAGES)
            for part in parts
        ]
    if not all("id" in part.column_names for part in parts):  # it only names a row in an error
        parts = [part.select_columns([name for name in part.column_names if name != "id"]) for part in parts]
    wanted = {**dict.fromkeys(TRAINING_COLUMNS, MESSAGES), "images": IMAGES, "id": Value("string")}
    for number, part in enumerate(parts):
        for name in set(part.column_names) - {"id", "images"}:
            message = getattr(part.features[name], "feature", None)
            if not isinstance(message, dict) or not isinstance(message.get("content"), Value):
                raise ValueError(
                    f"datasets[{number}]: the column {name!r} holds {part.features[name]}; a mixture reads messages, "
                    "[{'role': ..., 'content': ...}] with one text as content"
                )
        features = Features({name: wanted[name] for name in part.features})
        if features != part.features:
            parts[number] = part.cast(features)
    return parts


def _check_source(name: str, source: dict) -> float:
    """Return the weight of a source of a mixture, whose keys are checked first."""
    known = {"path", "config", "split", "weight"}
    if unknown := set(source) - known:
        raise ValueError(f"{name}: unknown key {sorted(unknown)[0]!r}; known are {sorted(known)}")
    if not source.get("path"):
        raise ValueError(f"{name}: the key 'path' is missing; it names a Hub id or a folder")
    weight = source.get("weight", 1.0)
    # YAML reads a number such as 1e-3 as text.
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not (0 < number < math.inf):
        raise ValueError(f"{name} ({source['path']}): weight is a number above 0, got {weight!r}")
    return number
