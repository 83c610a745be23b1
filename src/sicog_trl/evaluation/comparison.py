"""Paired comparison of two evaluated checkpoints: is the difference more than the luck of the rows?

Both checkpoints answered the same rows, so the differences per row are what is resampled; the spread between rows,
which is much larger, drops out. An interval over rows says nothing about what another training seed would have given.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np


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


def _check_conditions(before: str | Path, after: str | Path, task: str) -> None:
    """Refuse two results that were not made under the same conditions."""
    first, second = (
        json.loads(Path(folder, f"results_{task}.json").read_text(encoding="utf-8"))["conditions"]
        for folder in (before, after)
    )
    if differing := [name for name in {**first, **second} if first.get(name) != second.get(name)]:
        name = differing[0]
        raise ValueError(
            f"{task}: {before} and {after} were evaluated under different conditions and cannot be compared; "
            f"{name} is {first.get(name)!r} and {second.get(name)!r}. Evaluate both again in one run"
        )


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


def bootstrap_interval(differences: np.ndarray, num_resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of `differences`, resampled over rows."""
    rng = np.random.default_rng(seed)
    values, counts = np.unique(differences, return_counts=True)
    # A resample is known by how often it drew each value, which is quicker than drawing row by row and the same.
    share = counts / counts.sum()
    chunk = max(1, 4_000_000 // len(values))  # bounds the memory
    means = [
        rng.multinomial(counts.sum(), share, size=min(chunk, num_resamples - start)) @ values / counts.sum()
        for start in range(0, num_resamples, chunk)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def sign_flip_test(differences: np.ndarray, num_resamples: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of a mean difference, against signs that fall by chance."""
    rng = np.random.default_rng(seed)
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    chunk = max(1, 4_000_000 // len(sizes))
    sums = np.concatenate(
        [
            (2 * rng.binomial(counts, 0.5, size=(min(chunk, num_resamples - start), len(sizes))) - counts) @ sizes
            for start in range(0, num_resamples, chunk)
        ]
    )
    extreme = (np.abs(sums) >= abs(differences.sum()) - 1e-9).sum()
    return float((1 + extreme) / (1 + num_resamples))


def exact_mcnemar(fixed: int, broken: int) -> float:
    """Return the two-sided p-value of `fixed` against `broken` rows, if each change were a toss of a coin."""
    changed, fewer = fixed + broken, min(fixed, broken)
    term = tail = 1
    for k in range(fewer):
        term = term * (changed - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Return p-values corrected for their number by Holm's step-down method, in the order given.

    The chance that any of them falls below 0.05 by luck alone is then at most 5 %, however they depend on each other
    (Holm 1979, A simple sequentially rejective multiple test procedure).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return corrected.tolist()


def smallest_detectable_difference(
    differences: np.ndarray, power: float = 0.8, significance: float = 0.05
) -> float | None:
    """
    Return the smallest true difference that a test of as many rows as these would find with probability `power`.

    `(z(1 - significance / 2) + z(power)) * s / sqrt(n)`, where `s` is the standard deviation of the paired
    differences that were seen: the minimum detectable effect of Miller 2024, Adding Error Bars to Evals
    (arXiv:2411.00640), section 5, at one answer per row. A difference of another size would scatter a little
    differently, and a correction for several tests needs more: read it as the order of magnitude.

    Args:
        differences (`np.ndarray` of shape `(num_rows,)`):
            After minus before.
        power, significance (`float`, *optional*, default to `0.8` and `0.05`):
            Of a two-sided test.

    Returns:
        `float` or `None`: in the unit of the scores; `None` where every row differs by the same, since nothing was
        seen of the scatter then.
    """
    if len(differences) < 2 or not (scatter := differences.std(ddof=1)) > 0:
        return None
    z = NormalDist().inv_cdf
    return float((z(1 - significance / 2) + z(power)) * scatter / np.sqrt(len(differences)))
