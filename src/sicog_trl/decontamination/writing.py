"""What decontamination writes: the rows that stay, those that do not and why, and lines for a terminal."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from ..data import write_card, writing
from .images import BITS
from .parts import NEAR
from .reading import Pool


DROPPED = "dropped"
DETAILS = pa.schema({"reason": pa.string(), "detail": pa.string(), "near": pa.list_(NEAR)})
_SHOWN = 3  # examples per benchmark in the summary


def write(
    pool: Pool,
    split: str,
    output_dir: str | Path,
    reasons: list[str | None],
    errors: list[str | None],
    near: list[list[dict[str, Any]] | None],
) -> None:
    """
    Write the rows without a reason as `split` and the others, with what is known of them, as `dropped`.

    Args:
        pool ([`Pool`]), split (`str`), output_dir (`str` or `Path`):
            What is written where.
        reasons, errors, near (`list`):
            For each row why it is dropped, what is wrong with its images, and what it is near to; `None` if nothing.
    """
    kept_schema = pool.features.arrow_schema
    dropped_schema = Features({**pool.features, **Features.from_arrow_schema(DETAILS)}).arrow_schema
    with ExitStack() as stack:
        kept_file = stack.enter_context(writing(output_dir, split, kept_schema))
        dropped_file = stack.enter_context(writing(output_dir, DROPPED, dropped_schema))
        for begin, end in pool.ranges():
            table, some = pool.table(begin, end).cast(kept_schema), range(begin, end)
            mask = np.array([reasons[row] is None for row in some])
            if mask.any():
                kept_file.write_table(table.filter(pa.array(mask)))
            if mask.all():
                continue
            dropped = table.filter(pa.array(~mask))
            rows = [row for row in some if reasons[row]]
            details = {
                "reason": [reasons[row] for row in rows],
                "detail": [errors[row] or "; ".join(map(describe, near[row] or [])) for row in rows],
                "near": [near[row] or [] for row in rows],
            }
            arrays = [pa.array(details[name], DETAILS.field(name).type) for name in DETAILS.names]
            dropped_file.write_table(pa.Table.from_arrays([*dropped.columns, *arrays], schema=dropped_schema))
    write_card(output_dir, [split, DROPPED])


def describe(near: dict[str, Any]) -> str:
    """Return in words what a row is near to."""
    if not near["benchmark"]:
        return f"repeats {near['id']}"
    how = f"{near['distance']} of {BITS} bits" if near["matched"] == "image" else f"{near['overlap']:.0%} of its words"
    return f"{near['matched']} of {near['benchmark']}, row {near['row']}: {how}"


def by_benchmark(ids: pa.ChunkedArray, near: list, reasons: list[str | None]) -> dict[str, dict[str, Any]]:
    """Return, for each benchmark, how many rows are near to it, by what, and the nearest ones."""
    found: dict[str, dict[str, Any]] = {}
    for row, reason in enumerate(reasons):
        if reason != "contaminated":
            continue
        for name in dict.fromkeys(one["benchmark"] for one in near[row]):
            mine = [one for one in near[row] if one["benchmark"] == name]
            counts = found.setdefault(name, {"rows": 0, "image": 0, "question": 0, "caption": 0, "nearest": []})
            counts["rows"] += 1
            for one in mine:
                counts[one["matched"]] += 1
            nearest = [
                *counts["nearest"],
                {"id": ids[row].as_py(), **{k: v for k, v in mine[0].items() if k in _EXAMPLE}},
            ]
            counts["nearest"] = sorted(nearest, key=_farness)[:_SHOWN]
    return dict(sorted(found.items()))


_EXAMPLE = ("row", "matched", "distance", "overlap")


def _farness(example: dict[str, Any]) -> tuple:
    return (example["distance"] is None, example["distance"] or 0, -(example["overlap"] or 0))


def overview(summary: dict[str, Any]) -> str:
    """Return the summary as lines for a terminal."""
    return "\n".join(_lines(summary))


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items()) or "none"
    yield f"{summary['rows_in']:,} rows: {summary['kept']:,} kept; dropped: {dropped}"
    for name, counts in summary["contaminated"].items():
        how = ", ".join(f"{counts[kind]:,} by {kind}" for kind in ("image", "question", "caption") if counts[kind])
        nearest = counts["nearest"][0]
        near = describe({"benchmark": name, **nearest})
        yield f"  {name}: {counts['rows']:,} rows ({how}); the nearest: {nearest['id']}, {near}"
    for name, counts in summary["benchmarks"].items():
        if counts["unreadable_images"]:
            yield f"  {name}: {counts['unreadable_images']:,} of its images are unreadable and were not compared"
        if not counts["images"] and not counts["texts"]:
            yield f"  {name}: nothing of its {counts['rows']:,} rows could be compared"
