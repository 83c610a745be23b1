"""How an artefact is written and read."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, load_dataset

from ..files import is_local, missing_folder, replacing, write_text


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
    if not is_local(name):
        return load_dataset(name, config, split=split, revision=revision)
    files = split_files(name, config, split)
    if not sum(pq.read_metadata(file).num_rows for file in files):
        # `load_dataset` takes a split without rows for a split that is not there
        features = Features.from_arrow_schema(pq.read_schema(files[0]))
        return Dataset.from_dict({column: [] for column in features}, features=features)
    return load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)


def split_files(name: str | Path, config: str | None, split: str) -> list[Path]:
    """Return the Parquet files of a split of a local artefact folder; that one is missing is an error."""
    folder = Path(name, config) if config else Path(name)
    if not folder.is_dir():
        raise missing_folder("dataset", folder)
    files = sorted((folder / "data").glob(f"{split}-{'[0-9]' * 5}-of-{'[0-9]' * 5}.parquet"))
    if not files:
        found = sorted({file.name.split("-")[0] for file in (folder / "data").glob("*.parquet")})
        raise FileNotFoundError(f"{folder} has no split {split!r}; it has: {', '.join(found) or 'nothing'}")
    of = {int(file.stem.rsplit("-of-", 1)[1]) for file in files}
    if of != {len(files)}:
        raise FileNotFoundError(
            f"{folder}: {len(files)} of {' or '.join(map(str, sorted(of)))} files of split {split!r} are there; "
            "run the stage that writes it again"
        )
    return files


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
    with replacing(split_file(output_dir, split)) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        yield writer


def num_rows(name: str | Path, split: str) -> int:
    """Return the number of rows of a split of a local artefact folder, from the Parquet footers alone."""
    return sum(pq.read_metadata(file).num_rows for file in Path(name, "data").glob(f"{split}-*-of-*.parquet"))


def write_card(output_dir: str | Path, splits: Sequence[str]) -> None:
    """
    Write the `README.md` that lets `datasets.load_dataset(output_dir, <split>, split=<split>)` find the splits; the
    first one needs no name.

    Each split is a configuration of its own, because `load_dataset` wants one set of columns in all splits of one. One
    without rows cannot be loaded that way, so the card does not promise it. `datasets` knows a folder with a card by
    its last name and what the card says, not by its files: without a hash in the description `runs/b/curate` would be
    read from the cache of `runs/a/curate`.
    """
    counts = {split: num_rows(output_dir, split) for split in splits}
    lines = ["---", "configs:"] if any(counts.values()) else ["---"]
    for split, count in counts.items():
        if count:
            lines += [f"- config_name: {split}", *["  default: true"] * (split == splits[0])]
            lines += [f"  description: sha256:{_digest(output_dir, split)}"]
            lines += [f"  data_files: [{{split: {split}, path: data/{split}-*}}]"]
    lines += ["---", "", *[f"- {count} rows in `{split}`" for split, count in counts.items()]]
    write_text(Path(output_dir, "README.md"), "\n".join(lines) + "\n")


def _digest(output_dir: str | Path, split: str) -> str:
    """Return a hash of the settings of an artefact, which name its input, and of the footer of a split."""
    settings = Path(output_dir, "settings.json")
    digest = hashlib.sha256(settings.read_bytes() if settings.exists() else b"")
    with open(split_file(output_dir, split), "rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        digest.update(file.read(length))
    return digest.hexdigest()
