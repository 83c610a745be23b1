"""How good the labels are, where the truth is known. It only measures: no choice depends on it."""

from collections.abc import Callable
from importlib import import_module

import numpy as np

from ..responses import final_part
from .selection import Verdict
from .similarity import answer_keys


def grade(
    verdict: Verdict, texts: list[str], modes: list[str], truth: str, measure: Callable | None, oracle: bool
) -> None:
    """Fill in how accurate the candidates are, and the winner."""
    compare = measure if verdict.task == "description" else _equal_answers
    if not compare:
        return
    try:
        grades = [compare(final_part(text, mode) or "", truth) for text, mode in zip(texts, modes, strict=True)]
    except Exception as error:
        message = (
            f"row {verdict.id!r}: description_accuracy cannot be measured against the answer {truth!r}: {error!r}"
        )
        raise ValueError(message) from error
    verdict.accuracy_before = float(np.mean(grades))
    if verdict.winner >= 0:
        verdict.accuracy_after = 1.0 if oracle else grades[verdict.winner]


def _equal_answers(answer: str, truth: str) -> float:
    given, true = answer_keys([answer, truth])
    return float(given == true)


def resolve(name: str | None) -> Callable[[str, str], float] | None:
    """Return the function that `description_accuracy` names."""
    if name is None:
        return None
    module, _, function = name.rpartition(".")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"description_accuracy: cannot import {name!r} as `module.function`: {error}") from error


def mean_accuracy(verdicts: list[Verdict], which: str) -> dict[str, float | None]:
    """Return the mean of what is known, overall and per task; `None` where nothing is."""
    groups = {"overall": verdicts} | {
        task: [verdict for verdict in verdicts if verdict.task == task]
        for task in sorted({verdict.task for verdict in verdicts})
    }
    known = {
        name: [getattr(verdict, which) for verdict in group if getattr(verdict, which) is not None]
        for name, group in groups.items()
    }
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}
