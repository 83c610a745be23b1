"""Rows become hashes, part by part.

A part is a fixed range of rows and one Parquet file, which is there if and only if the part is done: a killed run goes
on, and several processes share the parts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import replacing
from ..images import UnreadableImageError
from .evaluation_sets import Benchmark
from .images import Hasher
from .reading import read_benchmark
from .texts import sequences, words


ROWS = 1000  # ours: of a part; as many are hashed again after a kill
KINDS = ("question", "caption")  # of texts of a benchmark
TEXTS = ("asked", "said")  # of texts of a pool
PICTURE = pa.struct({"content": pa.binary(16), "near": pa.uint64(), "fine": pa.binary(32)})
NEAR = pa.struct(
    {
        "benchmark": pa.string(),  # null if it is a row of the pool itself
        "row": pa.int64(),  # its number in the benchmark's split, `doc_id` of lmms-eval
        "id": pa.string(),  # of a row of the pool
        "matched": pa.string(),  # "image", "question", "caption", or "row"
        "distance": pa.int32(),  # of images, in bits of 64
        "overlap": pa.float64(),  # of texts, share of their word sequences
    }
)
_BENCHMARK = pa.schema(
    {
        "images": pa.list_(PICTURE),
        "unreadable": pa.int32(),
        **{kind: pa.list_(pa.list_(pa.uint64())) for kind in KINDS},
    }
)
POOL = pa.schema(
    {
        "images": pa.list_(PICTURE),
        "error": pa.string(),
        **{name: pa.uint64() for name in TEXTS},  # hashes of all words
        **{f"{name}_signature": pa.binary() for name in TEXTS},  # null where there is little of its own
        "near": pa.list_(NEAR),
    }
)


def num_parts(rows: int) -> int:
    """Return the number of parts of so many rows."""
    return -(-rows // ROWS)


def rows_of(part: int, rows: int) -> range:
    """Return the rows of a part, of so many in all."""
    return range(part * ROWS, min((part + 1) * ROWS, rows))


def part_file(folder: Path, name: str, part: int) -> Path:
    """Return where a part is; the name `pool` is that of the pool, which no benchmark has."""
    return folder / name / f"{part:05d}.parquet"


def read_parts(folder: Path, name: str, rows: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield all parts in order."""
    for part in range(num_parts(rows)):
        yield pq.read_table(part_file(folder, name, part), columns=columns)


def hash_benchmark(benchmark: Benchmark, part: int, min_words: int, hasher: Hasher, folder: Path) -> None:
    """Write a part of a benchmark; its unreadable images are counted and no reason to stop."""
    lines = []
    try:
        for rows in read_benchmark(benchmark.rows.select(rows_of(part, len(benchmark.rows)))):
            for images, *texts in zip(rows.images, rows.asked, rows.said, strict=True):
                pictures, faults = hash_all(images, hasher)
                found = [[words(text) for text in kind] for kind in texts]
                kept = [[sequences(one) for one in kind if len(one) >= min_words] for kind in found]
                lines.append({"images": pictures, "unreadable": len(faults), **dict(zip(KINDS, kept, strict=True))})
    except ValueError as error:
        raise ValueError(f"{benchmark.name} ({benchmark.origin}): {error}") from error
    write_part(lines, _BENCHMARK, part_file(folder, benchmark.name, part))


def hash_all(images: list, hasher: Hasher) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what is known of the images of a row, and what is wrong with those that cannot be read."""
    pictures, faults = [], []
    for number, image in enumerate(images):
        try:
            pictures.append(hasher(image)._asdict())
        except UnreadableImageError as error:
            faults.append(f"image {number}: {error}")
    return pictures, faults


def write_part(lines: list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write a part, whole or not at all."""
    with replacing(path) as unfinished:
        pq.write_table(pa.Table.from_pylist(lines, schema=schema), unfinished)
