"""Paired comparison of two evaluated checkpoints: is the difference more than the luck of the rows?

Both checkpoints answered the same rows, so the differences per row are what is resampled; the spread between rows,
which is much larger, drops out. An interval over rows says nothing about what another training seed would have given.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .significance import (
    bootstrap_interval,
    exact_mcnemar,
    holm,
    sign_flip_test,
    smallest_detectable_difference,
)


Sample = dict[str, Any]
# What is known of a task none of whose rows could be scored on both sides.
_NOTHING = {"n": 0, "fixed": 0, "broken": 0} | dict.fromkeys(
    ("before_score", "after_score", "difference", "low", "high", "p", "test", "smallest_detectable")
)


def compare(
    before: str | Path,
    after: str | Path,
    tasks: Mapping[str, Sequence[str]],
    num_resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """
    Compare two checkpoints on the tasks that both were evaluated on.

    Args:
        before, after (`str` or `Path`):
            Folders that [`~sicog_trl.evaluation.run.evaluate`] wrote for the two checkpoints.
        tasks (`Mapping[str, Sequence[str]]`):
            Task -> metrics to compare, the leading one first. Where the rows have no score of any of these names,
            because the headline is no mean over rows, the score that they do have is compared (`accuracy` or
            `score`).
        num_resamples (`int`, *optional*, defaults to `10_000`):
            Of the bootstrap and of the sign-flip test.
        seed (`int`, *optional*, defaults to `0`):
            Of both.

    Returns:
        `list[dict[str, Any]]`: one entry per task and metric with `task`, `metric`, the result of [`compare_scores`],
        `unscored` (rows left out because one side or both could not be scored), the mean number of tokens that were
        written for all rows, `before_tokens` and `after_tokens`, and `p_holm`, corrected over the leading metric of
        every task given here. `p_holm` is `None` for the other metrics, which are not in that family.
    """
    entries = []
    for task, metrics in tasks.items():
        _check_conditions(before, after, task)
        rows = pair(read_samples(before, task), read_samples(after, task), f"{task}: {before} and {after}")
        lengths = [_mean_tokens(side) for side in zip(*rows, strict=True)] or [None, None]
        for metric in row_metrics(rows, metrics):
            # A row without an entry is part of another one's score; one whose score is null could not be scored.
            scored = [both for both in rows if any(metric in row["scores"] for row in both)]
            scores = np.array([[row["scores"].get(metric) for row in both] for both in scored], dtype=float)
            known = ~np.isnan(scores.reshape(-1, 2)).any(axis=1)
            result = compare_scores(*scores[known].T, num_resamples, seed) if known.any() else dict(_NOTHING)
            result |= {"unscored": int((~known).sum()), "before_tokens": lengths[0], "after_tokens": lengths[1]}
            entries.append({"task": task, "metric": metric, **result, "p_holm": None})
    leading = [
        entry for index, entry in enumerate(entries) if not index or entries[index - 1]["task"] != entry["task"]
    ]
    leading = [entry for entry in leading if entry["p"] is not None]
    for entry, p in zip(leading, holm([entry["p"] for entry in leading]), strict=True):
        entry["p_holm"] = p
    return entries


def row_metrics(rows: Sequence[tuple[Sample, Sample]], metrics: Sequence[str]) -> list[str]:
    """Return which scores of the rows to compare: those called like `metrics`, else those that there are."""
    found = list(dict.fromkeys(name for both in rows for row in both for name in row["scores"]))
    chosen = [metric for metric in metrics if metric in found] or found
    if not chosen:
        raise ValueError(f"no row has a score that could be compared; expected {', '.join(metrics)}")
    return chosen


def _mean_tokens(side: Sequence[Sample]) -> float | None:
    """Return how many tokens were written per row; `None` unless every row counted them."""
    counts = [row.get("num_tokens") for row in side]
    return None if None in counts else float(np.mean(counts))


def read_samples(folder: str | Path, task: str) -> list[Sample]:
    """Read the per-sample records of one task of one checkpoint."""
    path = Path(folder, f"samples_{task}.jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run recipes/evaluate.py again, it does what is missing")
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def row_keys(samples: Sequence[Sample]) -> list[Any]:
    """Return what rows are followed by where the prompts differ on purpose: `id`, or `doc_id` if that occurs twice."""
    keys = [sample.get("id") or sample["doc_id"] for sample in samples]
    return keys if len(set(keys)) == len(keys) else [sample["doc_id"] for sample in samples]


def _check_conditions(before: str | Path, after: str | Path, task: str) -> None:
    """Refuse two results that were not made under the same conditions."""
    first, second = (_conditions(Path(folder, f"results_{task}.json")) for folder in (before, after))
    if differing := [name for name in {**first, **second} if first.get(name) != second.get(name)]:
        name = differing[0]
        raise ValueError(
            f"{task}: {before} and {after} were evaluated under different conditions and cannot be compared; "
            f"{name} is {first.get(name)!r} and {second.get(name)!r}. Evaluate both again in one run"
        )


def _conditions(path: Path) -> dict[str, Any]:
    """Return the conditions that a result was planned under, and what was found when it was asked."""
    result = json.loads(path.read_text(encoding="utf-8"))
    made = result.get("manifest") or {}
    return result["conditions"] | {name: made.get(name) for name in ("prompt_hash", "task_version")}


def pair(before: Sequence[Sample], after: Sequence[Sample], what: str = "samples") -> list[tuple[Sample, Sample]]:
    """
    Join two lists of records by `doc_id` and by the hash of input and target.

    Args:
        before, after (`Sequence[dict]`):
            Records with `doc_id`, `hash`, `input` and `target`.
        what (`str`, *optional*):
            What is joined, for the error message.

    Returns:
        `list[tuple[dict, dict]]`: pairs in the order of `doc_id`. Anything that does not match is an error.
    """
    first, second = ({sample["doc_id"]: sample for sample in samples} for samples in (before, after))
    if len(first) != len(before) or len(second) != len(after):
        raise ValueError(f"{what}: a doc_id occurs twice")
    if only := sorted(set(first) ^ set(second)):
        side = "first" if only[0] in first else "second"
        raise ValueError(f"{what}: {len(only)} rows are only on one side, such as doc_id {only[0]} of the {side}")
    for doc_id, sample in first.items():
        if sample["hash"] != second[doc_id]["hash"]:
            parts = [name for name in ("input", "target", "id") if sample.get(name) != second[doc_id].get(name)]
            raise ValueError(
                f"{what}: doc_id {doc_id} is not the same row on both sides; they differ in "
                f"{', '.join(parts) or 'hash'}: "
                + "; ".join(f"{sample.get(name)!r} and {second[doc_id].get(name)!r}" for name in parts)
            )
    return [(first[doc_id], second[doc_id]) for doc_id in sorted(first)]


def compare_scores(
    before: np.ndarray, after: np.ndarray, num_resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """
    Compare the scores of the same rows before and after.

    Args:
        before, after (`np.ndarray` of shape `(num_rows,)`):
            Scores, where higher is better.
        num_resamples, seed (`int`, *optional*):
            See [`compare`].

    Returns:
        `dict[str, Any]`: `n`, `before_score`, `after_score`, `difference` with the ends `low` and `high` of its 95 %
        interval (all in the unit of the scores), `fixed` and `broken` (rows that got better and worse), `p` and the
        `test` it comes from: `"mcnemar"` (exact) for scores that are right or wrong, else `"sign_flip"`;
        `smallest_detectable`, see [`smallest_detectable_difference`].
    """
    if len(before) == 0 or len(before) != len(after):
        raise ValueError(f"cannot compare {len(before)} scores with {len(after)}")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("cannot compare scores that are not finite numbers")
    differences = after - before
    fixed, broken = int((differences > 0).sum()), int((differences < 0).sum())
    binary = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
    low, high = bootstrap_interval(differences, num_resamples, seed)
    return {
        "n": len(before),
        "before_score": float(before.mean()),
        "after_score": float(after.mean()),
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "fixed": fixed,
        "broken": broken,
        "p": exact_mcnemar(fixed, broken) if binary else sign_flip_test(differences, num_resamples, seed),
        "test": "mcnemar" if binary else "sign_flip",
        "smallest_detectable": smallest_detectable_difference(differences),
    }
