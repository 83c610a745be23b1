"""What is pushed: Parquet files of bounded size, with the images or with references where copies are forbidden."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from ..cards.counts import Counts
from ..cards.places import tell_no_places
from ..data import HASHES, REFERENCES, split_files
from ..files import replacing
from .images import HELD_BYTES, embedded, pieces, references


_ROWS = 250  # held at once, or fewer if they are large


def write_shards(
    folder: str, split: str, name: str, output_dir: Path, max_bytes: int, image_reference: str | None
) -> tuple[list[Path], Counts]:
    """
    Write a split of an artefact folder as the Parquet files that are pushed, image bytes untouched.

    The same rows give the same bytes. A file is closed when it holds `max_bytes`, so what is held at once more may be
    in it: 250 rows, or 64 MiB, or one row.

    Args:
        folder (`str`):
            Artefact folder.
        split (`str`):
            Split of it.
        name (`str`):
            Name of the configuration, and of its one split.
        output_dir (`Path`):
            Gets `data/<name>-00000-of-00001.parquet` and so on.
        max_bytes (`int`):
            Size of a file before compression.
        image_reference (`str` or `None`):
            Template of what stands for an image, see [`PushConfig`]; `None` embeds the images.

    Returns:
        `tuple`: the files, and what was counted on the way. No rows, no files: `load_dataset` reads no empty split.
    """
    files = split_files(folder, None, split)
    data = output_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    _sweep(data, name)
    features = _pushed(_checked(Features.from_arrow_schema(pq.read_schema(files[0])), files[0]), image_reference)
    counts = Counts(features, sum(pq.read_metadata(file).num_rows for file in files))
    unfinished: list[Path] = []
    tables = _tables(files, image_reference, features.arrow_schema)
    table = next(tables, None)
    while table is not None:
        # How many files there will be is known at the end, and stands in their names.
        unfinished.append(data / f".{name}.{len(unfinished):05d}")
        with replacing(unfinished[-1]) as file, pq.ParquetWriter(file, features.arrow_schema) as writer:
            table = _fill(writer, table, tables, counts, max_bytes)
    done = [data / f"{name}-{i:05d}-of-{len(unfinished):05d}.parquet" for i in range(len(unfinished))]
    for before, after in zip(unfinished, done, strict=True):
        os.replace(before, after)
    return done, counts


def _fill(
    writer: pq.ParquetWriter, table: pa.Table, tables: Iterator[pa.Table], counts: Counts, max_bytes: int
) -> pa.Table | None:
    """Write and count tables until the file holds `max_bytes`; return the first one of the next file."""
    held, following = 0, table
    while following is not None and held < max_bytes:
        writer.write_table(following)
        counts.add(following)
        held += following.nbytes
        following = next(tables, None)
    return following


def _checked(features: Features, file: Path) -> Features:
    """Refuse columns whose images would be left behind, or whose paths would be told."""
    images = features.get("images")
    if "id" not in features:
        raise ValueError(f"{file} has no column `id`; rows are followed by it")
    if images is not None and not isinstance(getattr(images, "feature", None), Image):
        raise ValueError(f"{file}: the column `images` is no list of images but {images}")
    others = Features({name: feature for name, feature in features.items() if name != "images"})
    if "Image(" in repr(others):
        raise ValueError(f"{file} has an image outside the column `images`; write the dataset with that column")
    return features


def _pushed(features: Features, image_reference: str | None) -> Features:
    """Return the columns as they are pushed: where images are left out, with what stands for them in their place."""
    if not image_reference or "images" not in features:
        return features
    stand_in = {REFERENCES: List(Value("string")), HASHES: List(Value("string"))}
    pushed: dict = {}
    for name, feature in features.items():
        pushed |= stand_in if name == "images" else {name: feature}
    return Features(pushed)


def _sweep(data: Path, name: str) -> None:
    """Delete what an earlier preparation wrote under the same name, which may have had another number of files."""
    for file in data.iterdir():
        if re.fullmatch(rf"{re.escape(name)}-\d{{5}}-of-\d{{5}}\.parquet|\.{re.escape(name)}\.\d{{5}}", file.name):
            file.unlink()


def _tables(files: list[Path], image_reference: str | None, schema: pa.Schema) -> Iterator[pa.Table]:
    for file in files:
        with pq.ParquetFile(file) as source:
            for batch in source.iter_batches(_batch_rows(source.metadata)):
                table = tell_no_places(pa.Table.from_batches([batch]))
                for piece in pieces(table) if "images" in table.column_names else (table,):
                    try:
                        yield _stored(piece, image_reference).select(schema.names).cast(schema)
                    except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                        raise ValueError(
                            f"{file} has other columns than the first file of its split: {error}"
                        ) from error


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Return how many rows to read at once: of the row group with the largest rows, what may be held."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_ROWS, int(HELD_BYTES / max(1, largest))))


def _stored(table: pa.Table, image_reference: str | None) -> pa.Table:
    """Return rows with their images embedded, or left out and named."""
    if "images" not in table.column_names:
        return table
    position = table.column_names.index("images")
    if not image_reference:
        return table.set_column(position, "images", embedded(table))
    named, hashes = references(table, image_reference)
    return table.set_column(position, REFERENCES, named).add_column(position + 1, HASHES, hashes)
