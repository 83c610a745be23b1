"""The verdict: what the page says first, and the reservations that belong to it."""

from .sections import (
    CONTROL,
    HEADLINE,
    MINUS,
    MISSING,
    TREATED,
    comparisons_of,
    difference,
    number,
    results,
    steps_by_arm,
    unit,
)


def headline(scores: dict) -> dict | None:
    """Return the comparison that the page leads with; which one it is does not depend on any score."""
    against = [c for c in comparisons_of(scores) if c.get("before") == CONTROL and c.get("after") == TREATED]
    preferred = [c for c in against if (c.get("task"), c.get("metric")) == HEADLINE]
    return next(iter(preferred or against), None)


def verdict(scores: dict, stages: list[dict]) -> dict:
    """Return what the page says first: sign, sentence, and the reservations that belong to it."""
    chosen = headline(scores)
    notes = [*_unfinished(stages), *(_tally(scores) if chosen else []), *_reservations(stages)]
    shown = difference(chosen, *unit([chosen.get("before_score"), chosen.get("after_score")])) if chosen else None
    if shown is None:
        sentence = (
            f"No verdict: {TREATED} was not compared with the equal-step control {CONTROL}, and without it a "
            "before/after difference proves nothing."
        )
        return {"sign": "open", "sentence": sentence, "notes": notes}
    lead = {
        "gain": "Better than the control",
        "loss": "Worse than the control",
        "open": "No gain over the control",
    }[shown["sign"]]
    better = "more" if shown["value"] >= 0 else "less"
    sentence = (
        f"{lead}: {TREATED} scores {shown['text'].lstrip('+' + MINUS)} points {better} than {CONTROL} in "
        f"{chosen['metric'].replace('_', ' ')} on {chosen['task']}"
    )
    if shown["low"] is None:
        sentence += "; without an interval no gain can be claimed."
    else:
        inside = ", which includes zero" if shown["sign"] == "open" else ""
        sentence += f" (95 % interval {shown['interval'].strip('[]').replace(', ', ' to ')}{inside})."
    return {"sign": shown["sign"], "sentence": sentence, "notes": notes}


def _tally(scores: dict) -> list[str]:
    rows = [row[CONTROL]["sign"] for row in results(scores)["rows"] if row[CONTROL]]
    counts = {sign: rows.count(sign) for sign in ("gain", "loss", "open")}
    return [
        f"Over all {len(rows)} measures against {CONTROL}: {counts['gain']} better, {counts['loss']} worse, "
        f"{counts['open']} undecided. Intervals are per measure and not corrected for their number.",
        "Intervals are over test samples of one run; they leave out what another training seed would change.",
    ]


def _reservations(stages: list[dict]) -> list[str]:
    trained = steps_by_arm(stages)
    arms = {arm: trained.get(arm) for arm in dict.fromkeys([TREATED, CONTROL, *trained]) if arm != "shared"}
    if unknown := [arm for arm, steps in arms.items() if steps is None]:
        return [f"Whether all arms trained for equally many steps was not recorded; unknown: {', '.join(unknown)}."]
    if len(set(arms.values())) == 1:
        every = "Both" if len(arms) == 2 else f"All {len(arms)}"
        return [f"{every} arms trained for {number(arms[TREATED])} steps after the shared start: {', '.join(arms)}."]
    each = [f"{arm} {'trained for ' if arm == TREATED else 'for '}{number(steps)}" for arm, steps in arms.items()]
    return [f"Not a comparison at equal steps: {', '.join(each)}."]


def _unfinished(stages: list[dict]) -> list[str]:
    open_stages = [str(stage.get("name", MISSING)) for stage in stages if stage.get("status") != "done"]
    if not stages:
        return ["No stage of this run was recorded."]
    return [f"This run is not finished; not done: {', '.join(open_stages)}."] if open_stages else []
