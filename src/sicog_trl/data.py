"""The column contract: what each artefact of the line holds, and how it is written and read.

An artefact is a Hub dataset or a folder with `data/<split>-00000-of-00001.parquet`, which `datasets.load_dataset`
reads alike. Rows are followed by `id`, never by position.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value, interleave_datasets, load_dataset


MESSAGES = List({"role": Value("string"), "content": Value("string")})

IMAGES_FEATURES = Features(
    {
        "id": Value("string"),
        "images": List(Image()),
        "question": Value("string"),
        "answer": Value("string"),  # only ever used to measure the quality of labels
    }
)
CANDIDATE = {
    "text": Value("string"),
    "mode": Value("string"),
    "prompt": Value("string"),  # the user turn as the model saw it
    "seed": Value("int64"),
    "finish_reason": Value("string"),  # "stop" or "length"
    "num_tokens": Value("int32"),
}
CANDIDATES_FEATURES = Features(
    {**IMAGES_FEATURES, "task": Value("string"), "candidates": List(CANDIDATE), "error": Value("string")}
)
CURATED_FEATURES = Features(
    {
        "id": Value("string"),
        "images": List(Image()),
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "task": Value("string"),
        "mode": Value("string"),
        "consistency": Value("float64"),
        "num_candidates": Value("int32"),
    }
)
ANNOTATED_FEATURES = Features(
    {name: feature for name, feature in CURATED_FEATURES.items() if name not in ("consistency", "num_candidates")}
)
PREFERENCE_FEATURES = Features(
    {"id": Value("string"), "images": List(Image()), "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}
)
DROPPED_FEATURES = Features(
    {
        "id": Value("string"),
        "images": List(Image()),
        "task": Value("string"),
        "candidates": List(CANDIDATE),
        "consistency": Value("float64"),
        "reason": Value("string"),
    }
)
TRAINING_COLUMNS = ("images", "prompt", "completion", "chosen", "rejected")


@dataclass
class MixtureConfig:
    """
    Datasets to train on, mixed with fixed weights.

    Args:
        datasets (`list[dict]`, *optional*):
            One mapping per source with the keys `path` (Hub id or folder), `config`, `split` (`"train"` if missing)
            and `weight` (1.0 if missing). Leave it out to train on `dataset_name` alone.
        mixture_seed (`int`, *optional*, defaults to `0`):
            Seed of the interleaving.
    """

    datasets: list[dict] | None = field(
        default=None, metadata={"help": "Sources: mappings with path, config, split and weight."}
    )
    mixture_seed: int = field(default=0, metadata={"help": "Seed of the interleaving."})


def load(name: str, config: str | None = None, split: str = "train", revision: str | None = None) -> Dataset:
    """
    Load one split of an artefact.

    Args:
        name (`str`):
            Folder of Parquet files or Hub id.
        config (`str`, *optional*):
            Configuration of a Hub dataset, or sub-folder of a local one.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub dataset.

    Returns:
        `datasets.Dataset`: the rows; images are decoded only when they are read.
    """
    folder = Path(name, config) if config else Path(name)
    if not folder.is_dir():
        if os.sep in str(name) and str(name).count(os.sep) != 1:
            raise FileNotFoundError(f"dataset folder {folder} does not exist; run the stage that writes it first")
        return load_dataset(name, config, split=split, revision=revision)
    pattern = f"{split}-{'[0-9]' * 5}-of-{'[0-9]' * 5}.parquet"
    files = sorted(str(file) for file in (folder / "data").glob(pattern))
    if not files:
        found = sorted({file.name.split("-")[0] for file in (folder / "data").glob("*.parquet")})
        raise FileNotFoundError(f"{folder} has no split {split!r}; it has: {', '.join(found) or 'nothing'}")
    of = {int(file.rsplit("-of-", 1)[1].removesuffix(".parquet")) for file in files}
    if of != {len(files)}:
        raise FileNotFoundError(
            f"{folder}: {len(files)} of {' or '.join(map(str, sorted(of)))} files of split {split!r} are there; "
            "run the stage that writes it again"
        )
    if not num_rows(folder, split):  # `load_dataset` takes a split without rows for a split that is not there
        features = Features.from_arrow_schema(pq.read_schema(files[0]))
        return Dataset.from_dict({column: [] for column in features}, features=features)
    return load_dataset("parquet", data_files={split: files}, split=split)


def save(dataset: Dataset, output_dir: str | Path, split: str) -> Path:
    """Write `dataset` as the split `split` of the artefact folder `output_dir`, in one step or not at all."""
    schema = dataset.features.arrow_schema
    with writing(output_dir, split, schema) as writer:
        for batch in dataset.with_format("arrow").iter(1000):
            writer.write_table(batch.cast(schema))
    return split_file(output_dir, split)


def split_file(output_dir: str | Path, split: str) -> Path:
    """Return the file of a split that is written whole, as one file."""
    return Path(output_dir, "data", f"{split}-00000-of-00001.parquet")


@contextmanager
def writing(output_dir: str | Path, split: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a split batch by batch; it appears under its name only when the block ends without an error."""
    path = split_file(output_dir, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(unfinished, schema) as writer:
            yield writer
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def num_rows(name: str | Path, split: str) -> int:
    """Return the number of rows of a split of a local artefact folder, from the Parquet footers alone."""
    return sum(pq.read_metadata(file).num_rows for file in Path(name, "data").glob(f"{split}-*-of-*.parquet"))


def load_mixture(mixture: MixtureConfig) -> Dataset:
    """
    Load the sources of `mixture` and interleave them by weight.

    A source that runs out is started again until every source has been seen whole once, so that the weights hold over
    the whole dataset. Columns that training does not read are left out.

    Returns:
        `datasets.Dataset`: with the columns of TRL's vision format (`images`, `prompt`, `completion` or `chosen` and
        `rejected`).
    """
    known = {"path", "config", "split", "weight"}
    parts = []
    for number, source in enumerate(mixture.datasets or []):
        if unknown := set(source) - known:
            raise ValueError(f"datasets[{number}]: unknown key {sorted(unknown)[0]!r}; known are {sorted(known)}")
        if not source.get("path"):
            raise ValueError(f"datasets[{number}]: the key 'path' is missing; it names a Hub id or a folder")
        part = load(source["path"], source.get("config"), source.get("split") or "train")
        parts.append(part.select_columns([column for column in TRAINING_COLUMNS if column in part.column_names]))
    if not parts:
        raise ValueError("datasets is empty: name at least one source with a `path`")
    weights = [float(source.get("weight", 1.0)) for source in mixture.datasets]
    if len(parts) == 1:
        return parts[0]
    columns = [set(part.column_names) for part in parts]
    if any(names != columns[0] for names in columns):
        raise ValueError(f"the sources of the mixture have different training columns: {[sorted(c) for c in columns]}")
    return interleave_datasets(
        parts,
        probabilities=[weight / sum(weights) for weight in weights],
        seed=mixture.mixture_seed,
        stopping_strategy="all_exhausted",
    )
