"""The page that a person reads: one run folder becomes one self-contained HTML page and a Markdown twin."""

import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .chain import chain_against_direct
from .contamination import contamination, write_contamination_report
from .gallery import gallery, stage_folder
from .line import arms, cost, health, label_accuracy, line
from .pages import aligned_table, fenced, flat, markdown_environment, markdown_text, marked, read_json, write_pages
from .publishing import published
from .sections import CONTROL, MISSING, TREATED, behaviour, explanations, results
from .verdicts import verdict


__all__ = [
    "aligned_table",
    "fenced",
    "flat",
    "markdown_environment",
    "markdown_text",
    "read_json",
    "read_run",
    "summary_table",
    "write_contamination_report",
    "write_pages",
    "write_report",
]


def write_report(run_dir: str | Path) -> Path:
    """
    Write `report.html` and `report.md` into the folder of a run, from nothing but the files of that folder.

    Whatever a stage did not record is shown as a dash. The same files give the same bytes.

    Args:
        run_dir (`str` or `Path`):
            Folder that `recipes/self_improve.py` wrote: `config.yaml`, `manifest.json`, `stages.json`,
            `evaluate/scores.json` and the folders of the stages.

    Returns:
        `Path`: path of `report.html`.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir} is not a folder; give the output_dir of a run")
    return write_pages(run_dir, "report", read_run(run_dir))


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return everything that the two templates show."""
    scores = read_json(run_dir / "evaluate" / "scores.json", dict)
    stages = read_json(run_dir / "stages.json", list)
    config = run_dir / "config.yaml"
    return {
        "treated": TREATED,
        "control": CONTROL,
        "missing": MISSING,
        "verdict": verdict(scores, stages),
        "results": results(scores),
        "explanations": explanations(scores),
        "result_table": Markup(summary_table(scores)),
        "behaviour": behaviour(scores),
        "line": line(stages),
        "arms": arms(stages),
        "contamination": contamination(run_dir, stages),
        "labels": label_accuracy(stages),
        "health": health(stages),
        "chain": chain_against_direct(scores, run_dir),
        "gallery": gallery(run_dir, stages),
        "published": published(run_dir, stages),
        "cost": cost(stages),
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
        "manifest": flat(read_json(run_dir / "manifest.json", dict)),
        "evaluation": flat(scores.get("manifest") or {}),
        "stage_commands": "\n".join(_command(run_dir, stage) for stage in stages if stage.get("output_dir")),
    }


def summary_table(scores: dict) -> str:
    """
    Return the result table as aligned Markdown, which reads as plain text too.

    Args:
        scores (`dict`):
            Content of `evaluate/scores.json`.

    Returns:
        `str`: rows are tasks, columns the models and the paired differences with their 95 % intervals; ▲ and ▼ mark
        a difference for the better or the worse whose interval excludes zero.
    """
    table = results(scores)
    header = ["task", "metric", "n", *table["models"], *table["pairs"]]
    rows = []
    for row in table["rows"]:
        rows.append([row["task"], row["metric"], row["n"], *row["scores"], *map(marked, row["differences"])])
    if not rows:
        return "No scores were recorded."
    return aligned_table(header, rows, left=2)


def _command(run_dir: Path, stage: dict) -> str:
    """Return the recorded command of a stage, or where there is none the one that its recipe names."""
    folder = stage_folder(run_dir, stage)
    if folder and (recorded := read_json(folder / "stage.json", dict).get("command")):
        return str(recorded)
    config = shlex.quote(f"{stage['output_dir']}/config.yaml")
    return f"accelerate launch recipes/{shlex.quote(str(stage.get('recipe', MISSING)))} --config {config}"
