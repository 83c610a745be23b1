"""Rows of the pool become hashes, and what of the benchmarks they are near to."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .evaluation_index import EvaluationIndex
from .images import Hasher, Picture
from .parts import POOL, TEXTS, hash_all, part_file, rows_of, write_part
from .reading import ROWS_AT_ONCE, Pool, Rows
from .texts import LEAST, common_sequences, exact, sequences, signature, words


_PLACES = 32  # ours: of the pool, where its wording is read, 64 rows each


class Comparison(NamedTuple):
    """
    What every part of the pool is compared with, and how.

    Args:
        index ([`EvaluationIndex`], *optional*):
            The benchmarks, if there are any.
        min_words (`int`):
            Texts of fewer words are the same only if they are equal.
        common (`np.ndarray`):
            Sequences of words that are the wording of the pool, from [`common_wording`].
    """

    index: EvaluationIndex | None
    min_words: int
    common: np.ndarray


def common_wording(pool: Pool) -> np.ndarray:
    """Return the sequences of words that much of the pool has in common, from rows that are spread over all of it."""
    texts: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(pool), max(ROWS_AT_ONCE, -(-len(pool) // _PLACES))):
        for found, spoken in zip(texts, pool.texts(start, min(start + ROWS_AT_ONCE, len(pool))), strict=True):
            found += [_union([sequences(words(text)) for text in row]) for row in spoken]
    return np.union1d(*(common_sequences(some) for some in texts))


def compare_part(pool: Pool, part: int, comparison: Comparison, hasher: Hasher, folder: Path) -> None:
    """Write a part of the pool: the hashes of its rows, and what of the benchmarks they are near to."""
    lines: list[dict[str, Any]] = []
    rows = rows_of(part, len(pool))
    for start in rows[::ROWS_AT_ONCE]:
        lines += _compare_some(pool.read(start, min(start + ROWS_AT_ONCE, rows.stop)), comparison, hasher)
    write_part(lines, POOL, part_file(folder, "pool", part))


def _compare_some(rows: Rows, comparison: Comparison, hasher: Hasher) -> list[dict[str, Any]]:
    lines, pictures, texts = [], [], []
    for images, *spoken in zip(rows.images, rows.asked, rows.said, strict=True):
        hashed, faults = hash_all(images, hasher)
        line: dict[str, Any] = {"images": hashed, "error": "; ".join(faults) or None}
        asked, said = [[words(text) for text in some] for some in spoken]
        found = [[sequences(text) for text in some] for some in (asked, said)]
        for name, some, own in zip(TEXTS, (asked, said), found, strict=True):
            line |= _told_apart(name, [word for text in some for word in text], _union(own), comparison)
        lines.append(line)
        pictures.append([Picture(**one) for one in hashed])
        # Each answer by itself, behind the question: of many together, half of a benchmark's text may be by chance.
        texts.append([_union([*found[0], one]) for one in found[1]] or [_union(found[0])])
    near = comparison.index.near(pictures, texts) if comparison.index else [[] for _ in lines]
    return [{**line, "near": some} for line, some in zip(lines, near, strict=True)]


def _told_apart(name: str, said: list[str], found: np.ndarray, comparison: Comparison) -> dict[str, Any]:
    """Return by what a text of a row, its words and their sequences, is told from those of other rows."""
    own = np.setdiff1d(found, comparison.common, assume_unique=True)
    long = len(said) >= comparison.min_words and len(own) >= LEAST
    return {name: exact(said), f"{name}_signature": signature(own).tobytes() if long else None}


def _union(some: list[np.ndarray]) -> np.ndarray:
    return some[0] if len(some) == 1 else np.unique(np.concatenate([*some, np.empty(0, np.uint64)]))
