"""What the report says about the stages of the line: rows in, kept and dropped, labels, health and cost."""

from typing import Any

from .sections import TRAINING, TREATED, difference, duration, number, share, steps_by_arm, title, verb


REASON_COLOURS = ("#b5533c", "#d08a4e", "#8a6fa8", "#8f8f8f", "#5f7f8f", "#c0a65a", "#a35b78", "#6b6b6b")
BAR_LEFT, BAR_WIDTH = 352.0, 400.0
HEALTH = (
    ("mean_length", "curate", "mean length of kept texts", 1),
    ("distinct_texts", "curate", "distinct kept texts", 0),
    ("mean_consistency", "curate", "mean agreement of kept rows", 3),
    ("distinct_per_row", "generate", "distinct candidates per row", 2),
    ("truncated_share", "generate", "truncated candidates", None),
    ("empty_share", "generate", "empty candidates", None),
)


def counts_of(stage: dict) -> dict:
    """Return the counts of a stage; an unfinished one has none."""
    return stage.get("counts") or {}


def rounds_of(stages: list[dict], arm: str = TREATED) -> dict[Any, list[dict]]:
    """Return the stages of one arm by round, in the order in which they ran."""
    rounds: dict[Any, list[dict]] = {}
    for stage in stages:
        if stage.get("arm") == arm and stage.get("round") is not None:
            rounds.setdefault(stage["round"], []).append(stage)
    return rounds


def _total(stages: list[dict], recipes: tuple[str, ...], key: str) -> float | None:
    values = [counts_of(stage).get(key) for stage in stages if verb(stage) in recipes]
    return sum(values) if values and all(isinstance(value, int | float) for value in values) else None


def _dropped(stages: list[dict]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for stage in stages:
        for reason, count in (counts_of(stage).get("dropped") or {}).items():
            reasons[reason] = reasons.get(reason, 0) + count
    return reasons


def line(stages: list[dict]) -> dict:
    """Return the figure of the line: per round its rows, candidates, a bar of kept and dropped rows, and steps."""
    rounds = rounds_of(stages)
    reasons = list(dict.fromkeys(reason for members in rounds.values() for reason in _dropped(members)))
    colours = {reason: REASON_COLOURS[index % len(REASON_COLOURS)] for index, reason in enumerate(reasons)}
    rows, top = [], 34
    for name, members in rounds.items():
        kept, dropped = _total(members, ("curate",), "kept"), _dropped(members)
        rows_in = _total(members, ("curate",), "rows_in")
        parts = [("kept", kept, "#3d7a5f"), *((reason, dropped[reason], colours[reason]) for reason in dropped)]
        row = {
            "name": f"Round {name}",
            "top": top,
            "rows": number(_total(members, ("generate",), "rows")),
            "failed": number(_total(members, ("generate",), "failed")),
            "candidates": number(_total(members, ("generate",), "candidates")),
            "rows_in": number(rows_in),
            "steps": number(_total(members, TRAINING, "steps")),
            "samples": number(_total(members, TRAINING, "samples")),
            "segments": _segments(parts, rows_in),
            "adds_up": None if rows_in is None or kept is None else kept + sum(dropped.values()) == rows_in,
        }
        row["legend"] = _wrapped(row["segments"])
        rows.append(row)
        top += 52 + 15 * len(row["legend"])
    return {"rows": rows, "height": top, "bar_left": BAR_LEFT, "bar_width": BAR_WIDTH}


def _wrapped(segments: list[dict], width: int = 78) -> list[list[dict]]:
    """Break the legend of a bar into lines of at most `width` characters."""
    lines: list[list[dict]] = [[]]
    used = 0
    for segment in segments:
        size = len(segment["label"] + segment["count"] + segment["share"]) + 8
        if lines[-1] and used + size > width:
            lines.append([])
            used = 0
        lines[-1].append(segment)
        used += size
    return lines


def _segments(parts: list[tuple[str, float | None, str]], rows_in: float | None) -> list[dict]:
    segments, left = [], BAR_LEFT
    for label, count, colour in parts:
        fraction = count / rows_in if count is not None and rows_in else None
        width = BAR_WIDTH * (fraction or 0)
        segments.append(
            {
                "label": label.replace("_", " "),
                "count": number(count),
                "share": share(fraction),
                "colour": colour,
                "left": round(left, 1),
                "width": round(width, 1),
            }
        )
        left += width
    return segments


def arms(stages: list[dict]) -> list[dict]:
    """Return what each arm trained on, in the order of the run."""
    rows = []
    for arm, steps in steps_by_arm(stages).items():
        trained = [s for s in stages if str(s.get("arm") or "shared") == arm and verb(s) in TRAINING]
        rows.append(
            {
                "arm": title(arm),
                "stages": number(len(trained)),
                "steps": number(steps),
                "samples": number(_total(trained, TRAINING, "samples")),
                "tokens": number(_total(trained, TRAINING, "tokens")),
                "loss": f"{number(counts_of(trained[0]).get('first_loss'), 3)} → "
                f"{number(counts_of(trained[-1]).get('last_loss'), 3)}",
            }
        )
    return rows


def label_accuracy(stages: list[dict]) -> list[dict]:
    """Return label accuracy before and after curation per arm, round and task; empty where no labels exist."""
    rows = []
    for stage in stages:
        before, after = (_by_task(counts_of(stage).get(f"label_accuracy_{when}")) for when in ("before", "after"))
        for task in dict.fromkeys([*before, *after]):
            first, last = before.get(task), after.get(task)
            known = isinstance(first, int | float) and isinstance(last, int | float)
            rows.append(
                {
                    "arm": title(str(stage.get("arm") or "shared")),
                    "round": number(stage.get("round")),
                    "task": task.replace("_", " "),
                    "before": share(first),
                    "after": share(last),
                    "change": difference({"difference": last - first})["text"] if known else number(None),
                    "ends": [round(160 * first, 1), round(160 * last, 1)] if known else None,
                }
            )
    return rows


def _by_task(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {task: accuracy for task, accuracy in value.items() if accuracy is not None}
    return {} if value is None else {"overall": value}


def health(stages: list[dict]) -> dict:
    """Return the signs of collapse over the rounds: length, diversity, agreement, truncated and empty texts."""
    rounds = rounds_of(stages)
    rows = []
    for key, recipe, label, digits in HEALTH:
        values = [_mean(members, recipe, key) for members in rounds.values()]
        shown = [share(value) if digits is None else number(value, digits) for value in values]
        ends = [value for value in values if value is not None]
        change = ends[-1] / ends[0] - 1 if len(ends) > 1 and ends[0] else None
        rows.append(
            {
                "label": label,
                "values": shown,
                "change": "–" if change is None else difference({"difference": change}, digits=0)["text"] + " %",
                "points": _sparkline(values),
            }
        )
    return {"rounds": [f"round {name}" for name in rounds], "rows": rows}


def _mean(members: list[dict], recipe: str, key: str) -> float | None:
    if key == "distinct_texts":
        return _total(members, (recipe,), key)
    values = [counts_of(stage).get(key) for stage in members if verb(stage) == recipe]
    values = [value for value in values if isinstance(value, int | float)]
    return sum(values) / len(values) if values else None


def _sparkline(values: list[float | None]) -> list[tuple[float, float]]:
    # From zero, not from the smallest value: a harmless wobble must not look like a collapse.
    top = max((value for value in values if value is not None), default=0) or 1
    step = 90 / max(len(values) - 1, 1)
    return [(round(5 + step * i, 1), round(21 - 18 * v / top, 1)) for i, v in enumerate(values) if v is not None]


def cost(stages: list[dict]) -> dict:
    """Return seconds and tokens of every stage, and their sums over what was recorded."""
    longest = max((stage.get("seconds") or 0 for stage in stages), default=0) or 1
    rows = []
    for stage in stages:
        rows.append(
            {
                "name": str(stage.get("name", "–")),
                "arm": title(str(stage.get("arm") or "shared")),
                "round": number(stage.get("round")),
                "recipe": verb(stage),
                "status": str(stage.get("status", "–")),
                "seconds": duration(stage.get("seconds")),
                "width": round(120 * (stage.get("seconds") or 0) / longest, 1),
                "tokens": number(counts_of(stage).get("tokens")),
                "output_dir": str(stage.get("output_dir", "–")),
            }
        )
    seconds = [stage["seconds"] for stage in stages if isinstance(stage.get("seconds"), int | float)]
    tokens = [counts_of(stage)["tokens"] for stage in stages if isinstance(counts_of(stage).get("tokens"), int)]
    return {"rows": rows, "seconds": duration(sum(seconds)), "tokens": number(sum(tokens)), "timed": len(seconds)}
