"""How an artefact is written and read."""

import glob
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, load_dataset

from ..files import is_local, missing_folder, replacing, write_text
from .features import REFERENCES
from .pulling import pull


def load(name: str, config: str | None = None, split: str = "train", without_images: bool = False) -> Dataset:
    """
    Load one split of an artefact.

    Args:
        name (`str`):
            Folder of Parquet files, Hub id, or Hub id at a branch, a tag or a commit, such as `me/digits@round-1`.
        config (`str`, *optional*):
            Configuration of a Hub dataset; unless given the one that is named like the split, or else the default one.
            Sub-folder of a local one; the name of the split, which is its configuration too, is the folder itself.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        without_images (`bool`, *optional*, defaults to `False`):
            Whether rows that were published without their images are read too. Other steps than `attach` would take
            them for texts alone.

    Returns:
        `datasets.Dataset`: the rows; images are decoded only when they are read.

    Raises:
        `ValueError`: if a file is damaged, a Hub dataset names images of this machine, or the images were left out.
        See [`~sicog_trl.data.pulling.pin`] for what else a Hub dataset may lack.
    """
    dataset = _load(name, config, split) if is_local(name) else pull(name, config, split)
    if not without_images and REFERENCES in dataset.column_names and "images" not in dataset.column_names:
        raise ValueError(
            f"{name}, split {split!r}: the rows were published without their images, which {REFERENCES!r} names; put "
            "those that you have into them with recipes/attach.py"
        )
    return dataset


def _load(name: str, config: str | None, split: str) -> Dataset:
    files = split_files(name, config, split)
    num_rows = sum(map(_num_rows, files))
    try:
        if not num_rows:
            # `load_dataset` takes a split without rows for a split that is not there
            features = Features.from_arrow_schema(pq.read_schema(files[0]))
            return Dataset.from_dict({column: [] for column in features}, features=features)
        return load_dataset("parquet", data_files={split: [glob.escape(str(file)) for file in files]}, split=split)
    except OSError:
        raise
    # `datasets` believes what a file says of its own columns, and stumbles over it with whatever it happens to raise.
    except Exception as error:
        raise ValueError(f"{files[0]} and its like cannot be read as a dataset: {error.__cause__ or error}") from error


def _num_rows(file: Path) -> int:
    if file.exists() and not file.is_file():  # whoever opened a pipe would wait for ever
        raise ValueError(f"{file} is damaged or no Parquet file: it is no file; make it again")
    try:
        return pq.read_metadata(file).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is damaged or no Parquet file: {error}; make it again") from error


def artefact_folder(name: str | Path, config: str | None, split: str) -> Path:
    """Return where a split lies: in the sub-folder `config`, which may also name the split, as on the Hub."""
    folder = Path(name, config) if config else Path(name)
    return Path(name) if config == split and not folder.is_dir() else folder


def split_files(name: str | Path, config: str | None, split: str) -> list[Path]:
    """Return the Parquet files of a split of a local artefact folder; that one is missing is an error."""
    folder = artefact_folder(name, config, split)
    if not folder.is_dir():
        raise missing_folder("dataset", folder)
    files = sorted((folder / "data").glob(f"{split}-{'[0-9]' * 5}-of-{'[0-9]' * 5}.parquet"))
    if not files:
        found = ", ".join(splits(folder)) or "nothing"
        raise FileNotFoundError(f"{folder} has no split {split!r}; it has: {found}")
    of = {int(file.stem.rsplit("-of-", 1)[1]) for file in files}
    if of != {len(files)}:
        raise FileNotFoundError(
            f"{folder}: {len(files)} of {' or '.join(map(str, sorted(of)))} files of split {split!r} are there; "
            "run the stage that writes it again"
        )
    return files


def splits(name: str | Path, config: str | None = None) -> list[str]:
    """Return the splits of a local artefact folder."""
    folder = Path(name, config) if config else Path(name)
    if not folder.is_dir():
        raise missing_folder("dataset", folder)
    return sorted({file.name.rsplit("-of-", 1)[0].rsplit("-", 1)[0] for file in folder.glob("data/*-of-*.parquet")})


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
