"""Two pictures of an evaluation, as SVG: where a model is strong, and how sure the differences are.

Matplotlib and `evaluate` come with the extra `eval`; they are imported when a picture is drawn.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"gain": "#1e7a4f", "loss": "#ad3a26", "open": "#5b6570"}
MIN_AXES = 3  # below that a radar is a line


def radar(scores: Mapping[str, Mapping[str, float]]) -> str | None:
    """
    Draw the scores of models on several benchmarks by the radar plot of `evaluate`.

    Args:
        scores (`Mapping[str, Mapping[str, float]]`):
            Model -> title of the benchmark -> score out of 100. Benchmarks that a model lacks are left out.

    Returns:
        `str` or `None`: the SVG; `None` where fewer than three benchmarks remain.
    """
    names = [name for name in next(iter(scores.values()), {}) if all(name in found for found in scores.values())]
    if len(names) < MIN_AXES:
        return None
    import pandas as pd
    from evaluate.visualization import radar_plot
    from matplotlib.figure import Figure

    values = [value for found in scores.values() for value in (found[name] for name in names)]
    # Left alone, every axis would have a scale of its own, from the worst model to the best, on which a tenth of a
    # point looks like a landslide; and none where all are equal. Two more models, not drawn, make all scales one.
    ends = (math.floor(min(values) / 10) * 10.0, math.floor(max(values) / 10) * 10.0 + 10)
    rows = [{_plain(name): found[name] for name in names} for found in scores.values()]
    rows += [dict.fromkeys(rows[0], end) for end in ends]
    # The plot asks pandas for a row by a tuple, which pandas 3 takes for a row and a column unless labels are tuples.
    labels = pd.MultiIndex.from_tuples([(name,) for name in [*scores, "\0low", "\0high"]])
    figure = Figure(figsize=(5.2, 4.4))
    sizes = {"rgrid_tick_lbls_args": {"fontsize": 8}, "theta_tick_lbls": {"fontsize": 9}}
    radar_plot(rows, labels, config=sizes, fig=figure)
    drawn = figure.axes[1]
    for line in drawn.lines[len(scores) :]:
        line.remove()
    for line, name in zip(drawn.lines, scores, strict=True):
        line.set_label(_plain(name))
    drawn.legend(loc="upper left", bbox_to_anchor=(1.15, 1.1), fontsize=9)
    return _svg(figure)


def bars(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """
    Draw paired differences as bars with their intervals, one panel per pair of models.

    Args:
        panels (`Mapping[str, Sequence[Mapping]]`):
            Title -> differences: `name`, `value`, `low`, `high` (in points) and `sign` (`"gain"`, `"loss"`, `"open"`).

    Returns:
        `str` or `None`: the SVG; `None` where there is no difference.
    """
    panels = {title: rows for title, rows in panels.items() if rows}
    if not panels:
        return None
    from matplotlib.figure import Figure

    heights = [len(rows) + 1.6 for rows in panels.values()]
    figure = Figure(figsize=(7.2, 0.3 * sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        places, values = range(len(rows)), [row["value"] for row in rows]
        spread = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
        axis.barh(places, values, height=0.6, color=[COLOURS[row["sign"]] for row in rows], alpha=0.55)
        axis.errorbar(values, places, xerr=spread, fmt="none", ecolor="#1d2329", elinewidth=1, capsize=2.5)
        axis.axvline(0, color="#8a939b", linewidth=0.8)
        axis.set_yticks(places, [_plain(row["name"]) for row in rows], fontsize=8)
        axis.set_title(_plain(title), fontsize=9, loc="left")
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("points, with 95 % intervals", fontsize=8)
    return _svg(figure)


def _plain(text: str) -> str:
    """Return text that is not read as a formula."""
    return str(text).replace("$", r"\$")


def _svg(figure: "Figure") -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # The same values give the same bytes: no date, and names of parts that do not come from chance.
    with mpl.rc_context({"svg.hashsalt": "sicog-trl", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    return buffer.getvalue()
