"""What is compared part by part: rows of benchmarks become hashes, rows of the pool hashes and what they are near to.

A part is a fixed range of rows and one Parquet file, which is there if and only if the part is done: a killed run goes
on, and several processes share the parts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import replacing
from ..images import UnreadableImageError
from .evaluation_sets import Benchmark
from .images import HammingIndex, Hasher, Picture, fine_distance
from .reading import ROWS_AT_ONCE, Pool, Rows, read_benchmark
from .texts import SequenceIndex, exact, sequences, signature, words


ROWS = 1000  # ours: of a part; as many are hashed again after a kill
KINDS = ("question", "caption")
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
        **{kind: pa.list_(pa.uint64()) for kind in KINDS},
    }
)
POOL = pa.schema(
    {
        "images": pa.list_(PICTURE),
        "error": pa.string(),
        **{name: pa.uint64() for name in ("asked", "said")},  # hashes of all words
        **{f"{name}_signature": pa.binary() for name in ("asked", "said")},  # null for short texts
        "near": pa.list_(NEAR),
    }
)


def num_parts(rows: int) -> int:
    """Return the number of parts of so many rows."""
    return -(-rows // ROWS)


def part_file(folder: Path, name: str, part: int) -> Path:
    """Return where a part is; the name `pool` is that of the pool, which no benchmark has."""
    return folder / name / f"{part:05d}.parquet"


def read_parts(folder: Path, name: str, rows: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield all parts in order."""
    for part in range(num_parts(rows)):
        yield pq.read_table(part_file(folder, name, part), columns=columns)


def hash_benchmark(benchmark: Benchmark, part: int, min_words: int, hasher: Hasher, folder: Path) -> None:
    """Write a part of a benchmark; its unreadable images are counted and no reason to stop."""
    start, stop = part * ROWS, min((part + 1) * ROWS, len(benchmark.rows))
    lines = []
    try:
        for rows in read_benchmark(benchmark.rows.select(range(start, stop))):
            for images, *texts in zip(rows.images, rows.asked, rows.said, strict=True):
                pictures, faults = _hash_all(images, hasher)
                found = [words(text) for text in texts]
                kept = [sequences(one if len(one) >= min_words else []) for one in found]
                lines.append({"images": pictures, "unreadable": len(faults), **dict(zip(KINDS, kept, strict=True))})
    except ValueError as error:
        raise ValueError(f"{benchmark.name} ({benchmark.origin}): {error}") from error
    _write(lines, _BENCHMARK, part_file(folder, benchmark.name, part))


def _hash_all(images: list, hasher: Hasher) -> tuple[list[dict[str, Any]], list[str]]:
    pictures, faults = [], []
    for number, image in enumerate(images):
        try:
            pictures.append(hasher(image)._asdict())
        except UnreadableImageError as error:
            faults.append(f"image {number}: {error}")
    return pictures, faults


def _write(lines: list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    with replacing(path) as unfinished:
        pq.write_table(pa.Table.from_pylist(lines, schema=schema), unfinished)


class EvaluationIndex:
    """
    Everything that the benchmarks ask, found by what is near to it.

    Args:
        benchmarks (`dict[str, int]`):
            Their names and numbers of rows.
        folder (`Path`):
            Where their parts are.
        max_distance, max_fine_distance (`int`), min_overlap (`float`):
            What is near, see [`DecontaminationConfig`].

    Attributes:
        counts (`dict[str, dict[str, int]]`):
            Per benchmark: `rows`, `images`, `unreadable_images`, `flat_images` (found only if equal), `texts` that
            are compared, `texts_too_common` (hardly a sequence of words is theirs alone).
    """

    def __init__(
        self,
        benchmarks: dict[str, int],
        folder: Path,
        max_distance: int,
        max_fine_distance: int,
        min_overlap: float,
    ):
        self.names = list(benchmarks)
        self.max_fine_distance = max_fine_distance
        self.counts: dict[str, dict[str, int]] = {}
        self._flat: dict[bytes, list[tuple[int, int]]] = {}
        hashes, fine, self._images = [], [], []
        texts, self._texts, unreadable = [], [], dict.fromkeys(benchmarks, 0)
        for group, (name, rows) in enumerate(benchmarks.items()):
            numbers = iter(range(rows))
            for table in read_parts(folder, name, rows):
                unreadable[name] += sum(table["unreadable"].to_pylist())
                kinds = (table[kind] for kind in KINDS)
                for number, images, *sequences_of in zip(numbers, table["images"].to_pylist(), *kinds, strict=False):
                    for picture in (Picture(**image) for image in images):
                        if picture.near is None:
                            self._flat.setdefault(picture.content, []).append((group, number))
                            continue
                        hashes.append(picture.near)
                        fine.append(picture.fine)
                        self._images.append((group, number))
                    for kind, found in enumerate(sequences_of):
                        texts.append(np.asarray(found.values.to_numpy(), dtype=np.uint64))
                        self._texts.append((group, number, kind))
        self._pictures = HammingIndex(np.array(hashes, dtype=np.uint64), max_distance)
        self._fine = fine_words(fine)
        self._sequences = SequenceIndex(texts, np.array([place[0] for place in self._texts], np.int64), min_overlap)
        self._count(benchmarks, texts, unreadable)

    def _count(self, benchmarks: dict[str, int], texts: list[np.ndarray], unreadable: dict[str, int]) -> None:
        flat = [group for places in self._flat.values() for group, _ in places]
        for group, name in enumerate(self.names):
            mine = [i for i, place in enumerate(self._texts) if place[0] == group and len(texts[i])]
            compared = sum(bool(self._sequences.sizes[i]) for i in mine)
            self.counts[name] = {
                "rows": benchmarks[name],
                "images": sum(place[0] == group for place in self._images) + flat.count(group),
                "unreadable_images": unreadable[name],
                "flat_images": flat.count(group),
                "texts": compared,
                "texts_too_common": len(mine) - compared,
            }

    def near(self, pictures: list[list[Picture]], texts: list[np.ndarray]) -> list[list[dict[str, Any]]]:
        """Return, for each row, the nearest row of every benchmark in which something is near, images first."""
        found: list[dict[tuple[int, str], dict[str, Any]]] = [{} for _ in texts]

        def add(row: int, group: int, number: int, matched: str, distance: int | None, overlap: float | None) -> None:
            nearness = (distance or 0, -(overlap or 0), number)
            before = found[row].get((group, matched))
            if before is None or nearness < before["nearness"]:
                what = {"row": number, "matched": matched, "distance": distance, "overlap": overlap}
                found[row][group, matched] = {"benchmark": self.names[group], **what, "nearness": nearness}

        owners = [row for row, some in enumerate(pictures) for one in some if one.near is not None]
        known = [one for some in pictures for one in some if one.near is not None]
        query, entry, distance = self._pictures.near(np.array([one.near for one in known], dtype=np.uint64))
        confirmed = fine_distance(fine_words([one.fine for one in known])[query], self._fine[entry])
        for place in np.flatnonzero(confirmed <= self.max_fine_distance):
            group, number = self._images[entry[place]]
            add(owners[query[place]], group, number, "image", int(distance[place]), None)
        for row, some in enumerate(pictures):
            for one in some:
                for group, number in self._flat.get(one.content, ()) if one.near is None else ():
                    add(row, group, number, "image", 0, None)
        for row, text, share in zip(*self._sequences.near(texts), strict=True):
            group, number, kind = self._texts[text]
            add(int(row), group, number, KINDS[kind], None, float(share))
        order = ("image", *KINDS)
        keys = [sorted(row, key=lambda key: (order.index(key[1]), key[0])) for row in found]
        return [
            [{k: v for k, v in row[key].items() if k != "nearness"} for key in some]
            for row, some in zip(found, keys, strict=True)
        ]


def fine_words(fine: list[bytes]) -> np.ndarray:
    """Return finer hashes as rows of four numbers."""
    return np.frombuffer(b"".join(fine), dtype="<u8").reshape(-1, 4)


def compare_part(
    pool: Pool, part: int, index: EvaluationIndex | None, min_words: int, hasher: Hasher, folder: Path
) -> None:
    """Write a part of the pool: the hashes of its rows, and what of the benchmarks they are near to."""
    lines: list[dict[str, Any]] = []
    stop = min((part + 1) * ROWS, len(pool))
    for start in range(part * ROWS, stop, ROWS_AT_ONCE):
        lines += _compare_some(pool.read(start, min(start + ROWS_AT_ONCE, stop)), index, min_words, hasher)
    _write(lines, POOL, part_file(folder, "pool", part))


def _compare_some(rows: Rows, index: EvaluationIndex | None, min_words: int, hasher: Hasher) -> list[dict[str, Any]]:
    lines, pictures, texts = [], [], []
    for images, *spoken in zip(rows.images, rows.asked, rows.said, strict=True):
        hashed, faults = _hash_all(images, hasher)
        line: dict[str, Any] = {"images": hashed, "error": "; ".join(faults) or None}
        row_texts = []
        for name, text in zip(("asked", "said"), spoken, strict=True):
            found = words(text)
            row_texts.append(sequences(found))
            long = len(found) >= min_words
            line |= {name: exact(found), f"{name}_signature": signature(row_texts[-1]).tobytes() if long else None}
        lines.append(line)
        pictures.append([Picture(**one) for one in hashed])
        texts.append(np.union1d(*row_texts))
    near = index.near(pictures, texts) if index else [[] for _ in lines]
    return [{**line, "near": some} for line, some in zip(lines, near, strict=True)]
