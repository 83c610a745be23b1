"""Which candidate of a row, which rows of a dataset: thresholds, strategies, and what to change if nothing is left."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.rows import plain


STRATEGIES = ("self_consistency", "random", "first", "longest", "likelihood", "oracle")
FEW = 0.05  # of the rows; who keeps less is told why
_MOST_OF_A_REASON = 80  # characters, on a terminal
LEAST = 1e-12  # the first score above 0: scores are rounded to as many digits


@dataclass(slots=True)
class Verdict:
    """
    What curation thinks of a row.

    Args:
        id, task (`str`):
            The row.
        scores (`list[float]`):
            Consistency of each candidate.
        winner (`int`):
            Index of the chosen candidate; -1 if there is none.
        reason (`str` or `None`):
            Why the row is dropped; `None` if it is kept.
        accuracy_before, accuracy_after (`float` or `None`):
            Mean accuracy of the candidates, and of the winner, where the truth is known.
        is_chain (`bool`, *optional*, defaults to `False`):
            Whether the winner is a chain of steps.
    """

    id: str
    task: str
    scores: list[float]
    winner: int
    reason: str | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    is_chain: bool = False

    @property
    def consistency(self) -> float:
        """Consistency of the winner."""
        return self.scores[self.winner] if self.winner >= 0 else 0.0


def parse_threshold(name: str, value: str | float | None) -> str | float | None:
    """
    Check a threshold that YAML gives as a number or text and a command line as text.

    Args:
        name (`str`):
            The option, for the error message.
        value (`str`, `float` or `None`):
            A score in [0, 1], a quantile such as `"q0.25"`, or `None` (also `"none"`).

    Returns:
        `float`, `str` or `None`: a score, a quantile in one spelling (`"q0.25"`), or no threshold.
    """
    if value is None or str(value).strip().lower() in ("none", "null", ""):
        return None
    text = str(value).strip().lower()
    try:
        number = float(text.removeprefix("q"))
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1 or isinstance(value, bool):
        raise ValueError(f"{name} is a score in [0, 1] such as 0.75, a quantile such as q0.25, or null; got {value!r}")
    return f"q{number:g}" if text.startswith("q") else number


def score_needed(threshold: str | float | None, scores: Sequence[float]) -> float | None:
    """
    Return the least score that passes a threshold.

    A quantile is one of `scores`: with `"q0.25"` the best three quarters pass, and all that score like the last of
    them. A score of 0, with which nobody agrees, passes no quantile.

    Args:
        threshold (`str`, `float` or `None`):
            See [`parse_threshold`].
        scores (`Sequence[float]`):
            Of the rows to choose from.

    Returns:
        `float` or `None`: `None` if there is no threshold, or a quantile of no rows.
    """
    if threshold is None or isinstance(threshold, float):
        return threshold
    if not len(scores):
        return None
    quantile = float(np.quantile(scores, float(threshold[1:]), method="higher"))
    return max(quantile, LEAST)


def from_paper_threshold(threshold: float, num_candidates: int) -> float:
    """
    Convert a threshold of the paper's code, which counts each candidate's similarity to itself, into ours.

    Args:
        threshold (`float`):
            Such as 0.8, 0.85 or 0.9, the three that the code writes files for.
        num_candidates (`int`):
            Candidates per row; ours does not depend on it, theirs does.

    Examples:

    ```python
    >>> round(from_paper_threshold(0.85, 3), 3)
    0.775
    ```
    """
    if num_candidates < 2:
        raise ValueError(f"one candidate has no others to agree with; num_candidates is {num_candidates}")
    return (threshold * num_candidates - 1) / (num_candidates - 1)


def choose(
    row_id: str,
    strategy: str,
    sound: list[int],
    scores: list[float],
    nearness: list[float],
    texts: list[str],
    logprobs: list[float | None],
    seed: int,
) -> int:
    """
    Return the index of the candidate that `strategy` chooses of a row, -1 if none is `sound`; ties go to the first.

    Raises:
        `ValueError`: if `likelihood` meets a candidate whose likelihood was not recorded.
    """
    if not sound:
        return -1
    if strategy == "self_consistency":
        return max(sound, key=lambda i: (scores[i], nearness[i], -i))
    if strategy == "longest":
        return max(sound, key=lambda i: (len(texts[i]), -i))
    if strategy == "random":
        return sound[draw(seed, row_id, "candidate") % len(sound)]
    if strategy == "likelihood":
        if any(logprobs[i] is None or math.isnan(logprobs[i]) for i in sound):
            raise ValueError(
                f"row {row_id!r}: the strategy 'likelihood' needs `mean_logprob` of every candidate, and one has "
                "none; generate the candidates with `--logprobs true`"
            )
        return max(sound, key=lambda i: (logprobs[i], -i))
    return sound[0]


def draw(seed: int, row_id: str, purpose: str) -> int:
    """Return a number that chance fixed for this row and purpose."""
    text = f"{seed}|{row_id}|{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def select_rows(
    verdicts: list[Verdict],
    strategy: str,
    min_consistency: str | float,
    keep: float | None,
    seed: int,
) -> dict[str, float | None]:
    """
    Mark the rows to drop as `inconsistent`, or as `not_drawn` for the other strategies, which keep as many rows of
    each task as self-consistency would, drawn by chance.

    Returns:
        `dict[str, float | None]`: the score that each task's rows needed.
    """
    needed = {}
    for task in sorted({verdict.task for verdict in verdicts}):
        rows = [verdict for verdict in verdicts if verdict.task == task]
        choice = [verdict for verdict in rows if verdict.reason is None]
        best = [max(verdict.scores) for verdict in choice]
        needed[task] = score_needed(min_consistency, best)
        limit = len(choice) if keep is None else round(keep * len(rows))
        limit = min(limit, sum(score >= (needed[task] or 0) for score in best))
        if strategy == "self_consistency":
            reason = "inconsistent"
            choice.sort(key=lambda verdict: (-verdict.consistency, verdict.id))
        else:
            reason = "not_drawn"
            choice.sort(key=lambda verdict: (draw(seed, verdict.id, "row"), verdict.id))
        for verdict in choice[limit:]:
            verdict.reason = reason
    return needed


def chains_needed(verdicts: list[Verdict], threshold: str | float | None) -> dict[str, float]:
    """Return the score that the kept chains of each task need to be told in turns as well; empty if none are."""
    chains: dict[str, list[float]] = {}
    for verdict in verdicts:
        if verdict.reason is None and verdict.is_chain:
            chains.setdefault(verdict.task, []).append(verdict.consistency)
    return {} if threshold is None else {task: score_needed(threshold, chains[task]) for task in sorted(chains)}


_ADVICE = {
    "inconsistent": (
        "candidates disagree: lower min_consistency (a quantile such as q0.25 never keeps a row whose winner nobody "
        "agrees with), ask for more than one candidate per row, or look at `veto` and `similarity`"
    ),
    "not_drawn": "as many rows are kept as self-consistency would keep: lower min_consistency, or raise keep",
    "truncated": "answers were cut off: raise max_completion_length of generate",
    "incomplete": "chains lack steps (see candidate_faults): train stage 1 longer, or ask for fewer chains",
    "empty": "answers are empty: look at the model and its chat template",
    "corrupted": "these candidates are about damaged images, for pair.py; generate without `corruptions`",
}


def overview(summary: dict[str, Any]) -> str:
    """Return what became of the rows as a small table."""
    fates = [("kept", summary["kept"])]
    fates += [(f"dropped: {_shown(reason)}", count) for reason, count in summary["dropped"].items()]
    fates.append(("all rows", summary["rows_in"]))
    width = max(len(fate) for fate, _ in fates)
    lines = [f"{fate:<{width}}  {count:>9,}  {count / summary['rows_in']:>6.1%}" for fate, count in fates]
    lines += [f"candidates with the fault {fault}: {count:,}" for fault, count in summary["candidate_faults"].items()]
    if cut := summary["texts_longer_than_similarity_reads"]:
        lines.append(
            f"{cut:,} texts were longer than the similarity's model reads; it judged them by their beginnings"
        )
    return "\n".join(lines)


def advice(summary: dict[str, Any]) -> str | None:
    """Return what to say loudly, and what to change, if a curation kept nothing or next to nothing."""
    if summary["kept"] >= FEW * summary["rows_in"]:
        return None
    lines = [f"WARNING: {summary['kept']} of {summary['rows_in']} rows were kept."]
    for reason, count in sorted(summary["dropped"].items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  {count} {_shown(reason)}: {_ADVICE.get(reason, 'see `error` of these candidates')}")
    return "\n".join(lines)


def _shown(reason: str) -> str:
    """Return a reason for a terminal: one that is the error of a sampler may be of any length, and hold anything."""
    return plain(reason if len(reason) <= _MOST_OF_A_REASON else f"{reason[:_MOST_OF_A_REASON]} …").replace("\n", " ")
