"""Which candidates may be rejected: what is wrong with each, and by how much it differs from the chosen response."""

from typing import Any

import numpy as np
from scipy.sparse import issparse

from ..curation.embedding import Embed
from ..prompts import STEPS
from ..responses import canonical, chain_fault, final_part, normalize_answer
from .rows import PairRow


# What is asked of a candidate last, in this order: how near it came to being used.
_LAST = ("other_prompt", "identical", "same_answer", "small_margin")


def judge(rows: list[PairRow], min_margin: float, embed: Embed | None = None) -> None:
    """
    Find what is wrong with every candidate, its margin, and why a row gets no pair.

    Args:
        rows (`list[PairRow]`):
            Their `faults`, `margins` and `reason` are filled in.
        min_margin (`float`):
            Smallest margin.
        embed (`Callable`, *optional*):
            Candidates are about damaged images, all of them, and their margins are measured with these vectors; else
            they are about whole ones, and margins are known.
    """
    for row in rows:
        if row.mode is not None and row.mode not in STEPS:
            raise ValueError(f"row {row.id!r}: unknown mode {row.mode!r}; choose one of {', '.join(STEPS)}")
        if row.reason is None and (fault := chain_fault(row.chosen, row.mode)):
            row.reason = f"chosen_{fault}"
        if row.reason is None:
            row.faults = [_fault(row, candidate, embed is not None) for candidate in row.options]
    if embed:
        _measure(rows, embed)
    for row in rows:
        for number, fault in enumerate(row.faults):
            if fault is None and row.margins[number] < min_margin:
                row.faults[number] = "small_margin"
        if row.reason is None and all(row.faults):
            row.reason = row.faults[nearest(row)]


def _fault(row: PairRow, candidate: dict[str, Any], by_damage: bool) -> str | None:
    """Return why a candidate cannot be rejected, whatever the margin."""
    if by_damage != bool(candidate["corruption"]):
        return "not_damaged" if by_damage else "damaged"
    text = candidate["text"]
    if text.strip() and candidate["finish_reason"] == "length":
        return "truncated"
    if fault := chain_fault(text, row.mode):
        return fault
    if row.prompt != [{"role": "user", "content": candidate["prompt"]}]:
        return "other_prompt"
    if canonical(text, row.mode).split() == canonical(row.chosen, row.mode).split():
        return "identical"
    if row.task == "reasoning" and len({normalize_answer(final_part(s, row.mode)) for s in (text, row.chosen)}) == 1:
        return "same_answer"  # what was seen in spite of the damage is no answer to reject
    return None


def _measure(rows: list[PairRow], embed: Embed) -> None:
    """Set the margins to 1 - cosine similarity of the final parts of both sides, in one go for all rows."""
    sides = []
    for row in rows:
        row.margins = [None] * len(row.options)
        for candidate, fault in zip(row.options, row.faults, strict=False):  # a row without a pair has no faults
            if fault is None:
                sides.append((final_part(row.chosen, row.mode), final_part(candidate["text"], row.mode)))
    if not sides:
        return
    chosen, rejected = (embed(list(part)) for part in zip(*sides, strict=True))
    product = chosen.multiply(rejected) if issparse(chosen) else np.multiply(chosen, rejected)
    margins = iter(np.clip(1 - np.asarray(product.sum(axis=1), dtype=float).ravel(), 0, 1).tolist())
    for row in rows:
        for number, fault in enumerate(row.faults):
            if fault is None:
                row.margins[number] = next(margins)


def nearest(row: PairRow) -> int | None:
    """Return the candidate that came nearest to being used; `None` if none was looked at."""
    if not row.faults:
        return None
    stages = [_LAST.index(fault) if fault in _LAST else -1 for fault in row.faults]
    return max(range(len(stages)), key=lambda i: (stages[i], row.margins[i] or 0, -i))


def ranking(row: PairRow) -> list[int]:
    """Return the candidates that make a pair, largest margin first."""
    usable = [i for i, fault in enumerate(row.faults) if fault is None]
    return sorted(usable, key=lambda i: (-row.margins[i], i))
