"""
Score models with lmms-eval and compare them row by row; started again, it does what is missing.

accelerate launch recipes/evaluate.py --config recipes/digits/evaluate.yaml
"""

import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import TrlParser

from sicog_trl.evaluation import EvaluationConfig, Task, evaluate, tasks_of
from sicog_trl.evaluation.model_card import results_to_card
from sicog_trl.report import aligned_table
from sicog_trl.report.evaluation import write_evaluation_report


ARGUMENTS = (EvaluationConfig,)
TROUBLES = ("empty", "truncated", "unparsed", "unscored", "judge_failed")


def scores_table(scores: dict[str, Any], tasks: dict[str, Task]) -> str:
    """Return the leading metric of each benchmark: points of 100, or its own scale; protocols stand side by side."""
    columns = list(dict.fromkeys((model, task.protocol) for model in scores["models"] for task in tasks.values()))
    found: dict[str, dict[tuple[str, str], str]] = {}
    rows = {}
    for model, task in ((model, task) for model in scores["models"] for task in tasks.values()):
        metric, benchmark = task.benchmark.headline[0], task.benchmark
        values = found.setdefault(benchmark.name, {})
        if entry := scores["models"][model].get(task.name):
            rows[benchmark.name] = [benchmark.name, metric, str(entry["n"])]
            values[model, task.protocol] = f"{entry[metric] * (100 if benchmark.full_marks == 1 else 1):.1f}"
    several = len({protocol for _, protocol in columns}) > 1
    header = [f"{model}, {protocol.replace('_', ' ')}" if several else model for model, protocol in columns]
    lines = [[*row, *(found[name].get(column, "-") for column in columns)] for name, row in rows.items()]
    return aligned_table(["benchmark", "metric", "n", *header], lines, left=2)


def comparison_tables(scores: dict[str, Any]) -> list[str]:
    """Return one table of differences per pair of models."""
    blocks = []
    for before, after in dict.fromkeys((entry["before"], entry["after"]) for entry in scores["comparisons"]):
        header = [f"{after} - {before}", "metric", "n", "points", "95 % interval", "fixed", "broken", "p", "Holm"]
        rows = []
        for entry in scores["comparisons"]:
            if (entry["before"], entry["after"]) == (before, after):
                row = [entry["task"], entry["metric"], str(entry["n"])]
                if entry["difference"] is None:  # no row could be scored on both sides
                    rows.append([*row, *["-"] * 6])
                    continue
                points, low, high = (f"{100 * entry[key]:+.1f}" for key in ("difference", "low", "high"))
                holm = "" if entry["p_holm"] is None else f"{entry['p_holm']:.3g}"  # of the leading metrics alone
                changes = [str(entry["fixed"]), str(entry["broken"]), f"{entry['p']:.3g}", holm]
                rows.append([*row, points, f"[{low}, {high}]", *changes])
        blocks.append(aligned_table(header, rows, left=2))
    return blocks


def health_table(scores: dict[str, Any]) -> list[str]:
    """Return what went wrong where, if anything did: rows, or questions to the judge."""
    lines = [
        [model, task, *(str(health.get(name) or 0) for name in TROUBLES)]
        for model, tasks in scores["health"].items()
        for task, health in tasks.items()
        if any(health.get(name) for name in TROUBLES)
    ]
    header = ["answers", "task", *(name.replace("_", " ") for name in TROUBLES)]
    return [aligned_table(header, lines, left=2)] if lines else []


def publish(config: EvaluationConfig, scores: dict[str, Any]) -> None:
    """Write the page, and the cards if asked."""
    print(f"\npage: {write_evaluation_report(config.output_dir)}")
    if config.update_model_cards:
        for name, path in config.models.items():
            if scores["models"][name] and Path(path).is_dir():
                results_to_card(Path(config.output_dir, "scores.json"), name, Path(path, "README.md"))


def main(config: EvaluationConfig) -> None:
    """Evaluate, compare, print the tables; a result that is missing ends it with an error, after all the others."""
    scores = evaluate(config)
    blocks = [scores_table(scores, tasks_of(config)), *comparison_tables(scores), *health_table(scores)]
    if failures := scores["failures"]:
        reasons = ["- {model}, {task}: {reason}".format(**failure) for failure in failures]
        note = f"{len(failures)} results are missing; the same command does what is missing:"
        blocks.append("\n".join([note, *reasons]))
    PartialState().print("\n\n".join(blocks))
    if PartialState().is_main_process:
        publish(config, scores)  # a card that cannot be read ends it here, when everything else is said
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    # The folder of a script stands first on the path, where this one would pass for the library of its name.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
