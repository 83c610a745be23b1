"""Results as plain values for the templates: numbers as text, scores of all models, paired differences."""

from collections.abc import Iterable
from functools import partial
from pathlib import PurePath
from typing import Any


TREATED = "sicog"
CONTROL = "annotated_only"
BASE = "base"
CHANCE = "random_candidate"
ORACLE = "oracle"
# (before, after) of the differences in the result table; the last two are shown where those controls were run.
PAIRS = ((BASE, TREATED), (CONTROL, TREATED), (CHANCE, TREATED), (CONTROL, ORACLE))
EXPLANATIONS = {
    CHANCE: f"In every round {CHANCE} learns from as many rows and candidates as {TREATED}, drawn by chance from the "
    f"same candidates, which the model of {TREATED} wrote.",
    ORACLE: f"The {ORACLE} trains on the true description or short answer of as many rows, never on chains, so its "
    "step-by-step scores are no upper bound.",
}
HEADLINE = ("digits_caption", "object_accuracy")  # fixed before any result: what saturates last on the digits world
BEHAVIOUR = {"yes_ratio": 1, "complete": 1, "empty": 0, "truncated": 0, "mean_tokens": 1}  # not better or worse
MODEL_ORDER = (BASE, "stage1", TREATED, CONTROL, CHANCE, ORACLE)
MODEL_TITLES = {"stage1": "stage 1"}
LOWER_IS_BETTER = ("hallucination", "hallucinated", "chair", "invented", "error")
TRAINING = ("sft", "dpo")
MISSING = "–"
MINUS = "\N{MINUS SIGN}"


def number(value: Any, digits: int = 0) -> str:
    """Return `value` with thousands separated, or a dash where it was not recorded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return MISSING
    return f"{value:,.{digits}f}"


def share(value: Any) -> str:
    """Return a fraction as a percentage, or a dash where it was not recorded."""
    text = number(100 * value, 1) if isinstance(value, int | float) else MISSING
    return text if text == MISSING else f"{text} %"


def duration(seconds: Any) -> str:
    """Return seconds as a person says them, or a dash where they were not recorded."""
    if number(seconds) == MISSING:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def title(model: str) -> str:
    """Return the heading of a model's column."""
    return MODEL_TITLES.get(model, model.replace("_", " "))


def models_of(scores: dict) -> list[str]:
    """Return the models that were scored: base, stage 1, trained, controls, then any other by name."""
    known = [name for name in MODEL_ORDER if name in scores.get("models", {})]
    return known + sorted(set(scores.get("models", {})) - set(known))


def lower_is_better(metric: str) -> bool:
    """Tell whether a smaller value of `metric` is the better one."""
    return any(word in metric for word in LOWER_IS_BETTER)


def _task_metrics(scores: dict) -> list[tuple[str, str]]:
    models = scores.get("models", {})
    pairs: dict[tuple[str, str], None] = {}
    for model in models_of(scores):
        for task, metrics in models[model].items():
            pairs.update({(task, metric): None for metric in metrics if metric != "n" and "stderr" not in metric})
    tasks = list(dict.fromkeys(task for task, _ in pairs))
    return sorted(pairs, key=lambda pair: tasks.index(pair[0]))


def unit(values: Iterable[Any]) -> tuple[float, int]:
    """Return factor and digits: fractions are shown in percent, everything else as it is."""
    numbers = [value for value in values if isinstance(value, int | float)]
    return (100.0, 1) if all(-1 <= value <= 1 for value in numbers) else (1.0, 2)


def _signed(value: Any, digits: int) -> str:
    # A typographic minus aligns with the plus; a sign before zero would claim a direction that is not there.
    if not isinstance(value, int | float) or value != value:
        return MISSING
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def difference(comparison: dict | None, factor: float = 100.0, digits: int = 1) -> dict | None:
    """
    Return one paired comparison as the page shows it.

    Args:
        comparison (`dict`, *optional*):
            Entry of `comparisons` in `scores.json`.
        factor (`float`, *optional*, defaults to `100.0`):
            Factor from score to shown value.
        digits (`int`, *optional*, defaults to `1`):
            Digits after the point.

    Returns:
        `dict` or `None`: `value`, `low`, `high` (scaled), `text`, `interval`, and `sign`, which is `"gain"` or
        `"loss"` only if the interval excludes zero, else `"open"`.
    """
    if not comparison or not isinstance(comparison.get("difference"), int | float):
        return None
    value, low, high = (comparison.get(key) for key in ("difference", "low", "high"))
    sign = "open"
    # Rows that all changed alike, such as one or two, have an interval without width, which proves nothing.
    scatter = comparison.get("smallest_detectable", 1) is not None
    if scatter and low is not None and high is not None and (low > 0 or high < 0):
        sign = "gain" if (low > 0) != lower_is_better(comparison.get("metric", "")) else "loss"
    scaled = [None if bound is None else factor * bound for bound in (value, low, high)]
    known = low is not None and high is not None
    return {
        "value": scaled[0],
        "low": scaled[1],
        "high": scaled[2],
        "text": _signed(scaled[0], digits),
        "interval": f"[{_signed(scaled[1], digits)}, {_signed(scaled[2], digits)}]" if known else "no interval",
        "sign": sign,
        "fixed": number(comparison.get("fixed")),
        "broken": number(comparison.get("broken")),
    }


def pair_title(before: str, after: str) -> str:
    """Return the heading of a difference."""
    return f"{title(after)} {MINUS} {title(before)}" + (" (headroom)" if after == ORACLE else "")


def explanations(scores: dict) -> list[str]:
    """Return what a reader has to know of the controls that were scored."""
    return [text for name, text in EXPLANATIONS.items() if name in scores.get("models", {})]


def results(scores: dict) -> dict:
    """Return the result table: one row per task and metric, one column per model, and the paired differences."""
    comparisons = {
        (c.get("task"), c.get("metric"), c.get("before"), c.get("after")): c for c in comparisons_of(scores)
    }
    models, rows = models_of(scores), []
    made = {key[2:] for key in comparisons}
    pairs = [pair for pair in PAIRS if pair in made or pair in PAIRS[:2]]
    others = [name for name in models if (CONTROL, name) in made and (CONTROL, name) not in pairs]
    measures = [pair for pair in _task_metrics(scores) if pair[1] not in BEHAVIOUR]
    leading = dict(reversed(measures))  # the first one of each task
    for task, metric in measures:
        found = {model: scores["models"][model].get(task, {}) for model in models}
        values = {model: found[model].get(metric) for model in models}
        factor, digits = unit(values.values())
        compared = partial(_compared, comparisons, task, metric, leading[task] == metric, factor, digits)
        sizes = sorted({entry["n"] for entry in found.values() if isinstance(entry.get("n"), int)})
        rows.append(
            {
                "task": task,
                "metric": metric + (" (lower is better)" if lower_is_better(metric) else ""),
                "n": " / ".join(number(size) for size in sizes) or MISSING,
                "unit": "points" if factor == 100 else "",
                "scores": [number(None if v is None else factor * v, digits) for v in values.values()],
                "differences": [compared(pair) for pair in pairs],
                CONTROL: compared((CONTROL, TREATED)),
                "others": [compared((CONTROL, name)) for name in others],
            }
        )
    ends = [abs(row[CONTROL][key] or 0) for row in rows if row[CONTROL] for key in ("value", "low", "high")]
    return {
        "models": [title(model) for model in models],
        "pairs": [pair_title(*pair) for pair in pairs],
        "forest": pairs.index((CONTROL, TREATED)),
        "rows": rows,
        "reach": max([*ends, 1e-9]),
        "others": [title(name) for name in others],
    }


def _compared(
    comparisons: dict, task: str, metric: str, leads: bool, factor: float, digits: int, pair: tuple[str, str]
) -> dict | None:
    """Return a difference; that of the rows, which have a score of their own, where the metric is none of rows."""
    if found := comparisons.get((task, metric, *pair)):
        return difference(found, factor, digits)
    of_rows = (comparisons.get((task, name, *pair)) for name in ("accuracy", "score"))
    return difference(next(filter(None, of_rows), None)) if leads else None


def behaviour(scores: dict) -> list[dict]:
    """Return how the models answered, which no score tells: length, empty and cut answers, share of yes."""
    rows = []
    for task, metric in [pair for pair in _task_metrics(scores) if pair[1] in BEHAVIOUR]:
        values = [scores["models"][model].get(task, {}).get(metric) for model in models_of(scores)]
        form = share if metric in ("yes_ratio", "complete") else partial(number, digits=BEHAVIOUR[metric])
        rows.append({"task": task, "metric": metric.replace("_", " "), "values": [form(value) for value in values]})
    return rows


def comparisons_of(scores: dict) -> list[dict]:
    """Return the paired comparisons of `scores.json`."""
    return scores.get("comparisons") or []


def verb(stage: dict) -> str:
    """Return the verb that a stage ran: its recipe without folder and suffix."""
    return PurePath(str(stage.get("recipe") or MISSING)).stem


def steps_by_arm(stages: list[dict]) -> dict[str, int | None]:
    """Return the training steps of every arm, `None` where a stage did not record its own."""
    totals: dict[str, int | None] = {}
    for stage in stages:
        if verb(stage) in TRAINING:
            arm, steps = str(stage.get("arm") or "shared"), (stage.get("counts") or {}).get("steps")
            before = totals.get(arm, 0)
            totals[arm] = None if steps is None or before is None else before + steps
    return totals
