"""What a paired difference is worth: its interval, its p-values, and what could have been seen at all."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


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
