"""Tables of an evaluation: what the templates of its page show, as plain values."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.benchmarks import Task, benchmarks, select_tasks
from ..evaluation.comparison import compare_scores, read_samples, row_keys, row_metrics
from ..evaluation.protocols import PROTOCOLS
from .sections import BEHAVIOUR, MINUS, MISSING, difference, number


DIRECT, STEPS = "direct", "step_by_step"
HEALTH = ("empty", "truncated", "unparsed", "unscored", "judge_calls", "judge_failed")


@cache
def known_tasks() -> dict[str, Task]:
    """Return every task that the package knows, by name."""
    return select_tasks("digits", list(benchmarks()), list(PROTOCOLS))


def describe(task: str) -> dict[str, Any]:
    """Return what a reader needs to know of a task: `title`, `protocol`, `benchmark`, `headline`, `full_marks`."""
    if found := known_tasks().get(task):
        benchmark = found.benchmark
        known = {"headline": benchmark.headline, "full_marks": benchmark.full_marks}
        return {"title": benchmark.title, "protocol": found.protocol, "benchmark": benchmark.name, **known}
    # Of another version of the package: what its name says, and every metric.
    protocol = STEPS if STEPS in task else DIRECT
    benchmark = task.replace(f"_{STEPS}", "").removesuffix(f"_{DIRECT}")
    return {"title": task, "protocol": protocol, "benchmark": benchmark, "headline": (), "full_marks": None}


def label(task: str) -> str:
    """Return title and protocol of a task in one line."""
    about = describe(task)
    return about["title"] + (", step by step" if about["protocol"] == STEPS and about["title"] != task else "")


def tasks_of(scores: Mapping[str, Any]) -> list[str]:
    """Return all tasks with a result, benchmark by benchmark in the order of the file."""
    tasks = list(dict.fromkeys(task for found in scores.get("models", {}).values() for task in found))
    order = list(dict.fromkeys(describe(task)["benchmark"] for task in tasks))
    return sorted(tasks, key=lambda task: order.index(describe(task)["benchmark"]))


def results(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table of scores: one row per task and headline metric, raw on the benchmark's own scale."""
    rows = []
    for task in tasks_of(scores):
        about, found = describe(task), [entries.get(task, {}) for entries in scores["models"].values()]
        named = list(dict.fromkeys(name for entry in found for name in entry if name not in {"n", *BEHAVIOUR}))
        # `metric,filter` names the metric as lmms-eval writes it; the result may have kept the metric alone.
        headline = [
            name for name in named if name in {part for key in about["headline"] for part in (key, short(key))}
        ]
        sizes = sorted({entry["n"] for entry in found if "n" in entry})
        for position, metric in enumerate(headline or named):
            full = about["full_marks"] if position == 0 else None
            digits = 1 if (about["full_marks"] or 1) > 1 else 3
            rows.append(
                {
                    "task": task,
                    "title": about["title"],
                    "protocol": about["protocol"].replace("_", " "),
                    "metric": metric,
                    "n": " / ".join(number(size) for size in sizes) or MISSING,
                    "full_marks": number(full),
                    "leading": position == 0,
                    "scores": [number(entry.get(metric), digits) for entry in found],
                    "values": [entry.get(metric) for entry in found],
                    "per_cent": 100 / full if full else None,
                }
            )
    return rows


def short(metric: str) -> str:
    """Return a metric without the filter behind it."""
    return metric.partition(",")[0]


def comparisons(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one block per pair of models: `title`, `before`, `after` and a row per task and metric."""
    blocks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in scores.get("comparisons") or []:
        lengths = [number(entry.get(key), 1) for key in ("before_tokens", "after_tokens")]
        smallest = entry.get("smallest_detectable")
        blocks.setdefault((entry["before"], entry["after"]), []).append(
            {
                "task": entry["task"],
                "title": label(entry["task"]),
                "metric": entry["metric"],
                "n": number(entry.get("n")),
                "unscored": number(entry.get("unscored")),
                "scores": [_points(entry.get(key)) for key in ("before_score", "after_score")],
                "difference": difference(entry),
                "fixed": number(entry.get("fixed")),
                "broken": number(entry.get("broken")),
                "p": _chance(entry.get("p")),
                "p_holm": _chance(entry.get("p_holm")),
                "smallest": _points(smallest),
                "too_small": smallest is not None and abs(entry["difference"]) < smallest,
                "tokens": " → ".join(lengths),
            }
        )
    titles = {pair: f"{pair[1]} {MINUS} {pair[0]}" for pair in blocks}
    return [
        {"title": titles[pair], "before": pair[0], "after": pair[1], "rows": rows} for pair, rows in blocks.items()
    ]


def _points(value: float | None) -> str:
    return number(None if value is None else 100 * value, 1)


def _chance(p: float | None) -> str:
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def protocols(scores: Mapping[str, Any], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """
    Return what asking step by step is worth, and how much of a gain depends on the way of asking.

    Args:
        scores (`Mapping[str, Any]`):
            Content of `scores.json`.
        folder (`Path`):
            Where it lies; the samples are beside it.

    Returns:
        `dict[str, list[dict]]`: `models` (per benchmark and model: both scores and their paired difference) and
        `gains` (per benchmark and pair of models: the gain either way, and the paired difference of the two).
    """
    ways: dict[str, dict[str, str]] = {}
    for task in tasks_of(scores):
        about = describe(task)
        ways.setdefault(about["benchmark"], {})[about["protocol"]] = task
    compared = list(dict.fromkeys((c["before"], c["after"]) for c in scores.get("comparisons") or []))
    models, gains = [], []
    for tasks in (found for found in ways.values() if {DIRECT, STEPS} <= set(found)):
        both = [tasks[DIRECT], tasks[STEPS]]
        # Samples without a result are not finished, or of another run: the table of scores has nothing of them either.
        read = {
            name: [_row_scores(folder / name, task) if task in found else {} for task in both]
            for name, found in scores["models"].items()
        }
        for name, sides in read.items():
            if values := _aligned(sides):
                models.append({"title": describe(both[0])["title"], "model": name, **_paired(*values)})
        for before, after in compared:
            if values := _aligned([*read[before], *read[after]]):
                pair = {"title": describe(both[0])["title"], "before": before, "after": after}
                gains.append({**pair, **_paired(values[2] - values[0], values[3] - values[1])})
    return {"models": models, "gains": gains}


def _row_scores(folder: Path, task: str) -> dict[Any, float]:
    """Return the leading score of every row that has one."""
    if not (folder / f"samples_{task}.jsonl").is_file():
        return {}
    rows = read_samples(folder, task)
    if not any(row["scores"] for row in rows):
        return {}
    metric = row_metrics([(row, row) for row in rows], describe(task)["headline"])[0]
    found = {key: row["scores"].get(metric) for key, row in zip(row_keys(rows), rows, strict=True)}
    return {key: value for key, value in found.items() if value is not None}


def _aligned(sides: Sequence[Mapping[Any, float]]) -> list[np.ndarray]:
    """Return the scores of the rows that all sides have, in one order."""
    keys = [key for key in sides[0] if all(key in side for side in sides)]
    return [np.array([side[key] for key in keys], dtype=float) for side in sides] if keys else []


def _paired(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    result = compare_scores(first, second)
    ends = {DIRECT: _points(result["before_score"]), "steps": _points(result["after_score"])}
    return {**ends, "n": number(result["n"]), "change": difference(result)}


def health(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how each model answered each task: what was empty, cut, unread or unscored, and the mean length."""
    rows = []
    for task in tasks_of(scores):
        for model, found in (scores.get("health") or {}).items():
            if task in found:
                counts = [number(found[task].get(name)) for name in HEALTH]
                bad = any(found[task].get(name) for name in HEALTH if name != "judge_calls")
                length = number(found[task].get("mean_tokens"), 1)
                rows.append({"title": label(task), "model": model, "counts": counts, "tokens": length, "bad": bad})
    return rows
