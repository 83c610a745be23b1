"""
Score checkpoints with lmms-eval and compare them row by row; started again, it does what is missing.

accelerate launch recipes/evaluate.py --config recipes/digits/evaluate.yaml
"""

from typing import Any

from accelerate import PartialState
from trl import TrlParser

from sicog_trl.evaluation import EvaluationConfig, Task, evaluate, select_tasks
from sicog_trl.report import aligned_table


ARGUMENTS = (EvaluationConfig,)


def table(scores: dict[str, Any], tasks: dict[str, Task]) -> str:
    """Return the headline metric of each task and model in points, and the differences with their intervals."""
    models = list(scores["models"])
    rows = []
    for task in scores["models"][models[0]]:
        metric = tasks[task].benchmark.headline[0]
        found = [scores["models"][model][task] for model in models]
        rows.append([task, metric, str(found[0]["n"]), *(f"{100 * entry[metric]:.1f}" for entry in found)])
    blocks = [aligned_table(["task", "metric", "n", *models], rows, left=2)]
    for before, after in dict.fromkeys((entry["before"], entry["after"]) for entry in scores["comparisons"]):
        header, rows = [f"{after} - {before}", "metric", "points", "95 % interval", "fixed", "broken", "p"], []
        for entry in scores["comparisons"]:
            if (entry["before"], entry["after"]) == (before, after):
                points, low, high = (f"{100 * entry[key]:+.1f}" for key in ("difference", "low", "high"))
                changes = [str(entry["fixed"]), str(entry["broken"]), f"{entry['p']:.3g}"]
                rows.append([entry["task"], entry["metric"], points, f"[{low}, {high}]", *changes])
        blocks.append(aligned_table(header, rows, left=2))
    return "\n\n".join(blocks)


def main(config: EvaluationConfig) -> None:
    """Evaluate, compare, print the table; a result that is missing ends it with an error."""
    scores = evaluate(config)
    PartialState().print(table(scores, select_tasks(config.suite, config.tasks)))


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
