"""Does thinking in steps pay: the tasks asked step by step against the same rows asked directly."""

from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.comparison import compare_scores, read_samples, row_keys
from .sections import BEHAVIOUR, difference, models_of, number, title, unit


STEPS, DIRECT = "step_by_step", "direct"


def task_pairs(scores: dict) -> list[tuple[str, str]]:
    """Return pairs of task names that differ only in how the question is asked: (direct, step by step)."""
    tasks = list(dict.fromkeys(task for metrics in scores.get("models", {}).values() for task in metrics))
    pairs = []
    for task in tasks:
        if STEPS in task:
            plain = (task.replace(STEPS, DIRECT), task.replace(f"_{STEPS}", ""))
            pairs += [(other, task) for other in plain if other in tasks][:1]
    return pairs


def chain_against_direct(scores: dict, run_dir: Path) -> list[dict[str, Any]]:
    """Return one row per pair of tasks, metric and model: both scores and their paired difference."""
    rows = []
    for direct, steps in task_pairs(scores):
        for model in models_of(scores):
            asked = [scores["models"][model].get(task, {}) for task in (direct, steps)]
            for metric in [name for name in asked[0] if name in asked[1] and name not in {"n", *BEHAVIOUR}]:
                factor, digits = unit(each[metric] for each in asked)
                rows.append(
                    {
                        "model": title(model),
                        "direct_task": direct,
                        "steps_task": steps,
                        "metric": metric,
                        "direct": number(factor * asked[0][metric], digits),
                        "steps": number(factor * asked[1][metric], digits),
                        "change": _paired(run_dir / "evaluate" / model, direct, steps, metric, asked),
                    }
                )
    return sorted(rows, key=lambda row: (row["direct_task"], row["metric"]))


def _paired(folder: Path, direct: str, steps: str, metric: str, asked: list[dict]) -> dict | None:
    """Compare the answers to the same rows, which are followed by `id`: the prompts differ on purpose."""
    headlines = {"metric": metric, "difference": asked[1][metric] - asked[0][metric]}
    factor, digits = unit(each[metric] for each in asked)
    if not all((folder / f"samples_{task}.jsonl").is_file() for task in (direct, steps)):
        return difference(headlines, factor, digits)
    samples = [read_samples(folder, task) for task in (direct, steps)]
    found = [
        {key: row["scores"].get(metric) for key, row in zip(row_keys(rows), rows, strict=True)} for rows in samples
    ]
    ids = [key for key in found[0] if key in found[1]]
    if not ids or any(values[key] is None for values in found for key in ids):
        return difference(headlines, factor, digits)
    values = [np.array([side[key] for key in ids], dtype=float) for side in found]
    return difference({"metric": metric, **compare_scores(*values)})
