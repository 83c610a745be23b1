"""
Put an evaluation beside what a paper reports: paper | base | ours | difference with its interval.

python benchmarks/compare.py runs/evaluation/scores.json --paper sicog --before base --after trained
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from sicog_trl.evaluation.protocols import PROTOCOLS
from sicog_trl.files import write_json, write_text
from sicog_trl.provenance import made_by
from sicog_trl.report import aligned_table
from sicog_trl.report.evaluation_tables import describe, tasks_of
from sicog_trl.report.sections import MINUS, MISSING, difference, number


PAPER = Path(__file__).parent / "paper"
PAPERS = tuple(sorted(path.stem for path in PAPER.glob("*.yaml")))


def read_paper(name: str) -> dict[str, Any]:
    """Return what a paper reports; its head says where the numbers come from."""
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))


def table(
    scores: dict[str, Any], before: str, after: str, protocol: str, paper: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """
    Return one row per benchmark of the paper, or of the evaluation if there is no paper.

    Args:
        scores (`dict[str, Any]`):
            Content of a `scores.json`.
        before, after (`str`):
            Names of two of its models.
        protocol (`str`):
            How the questions were asked: `"direct"` or `"step_by_step"`.
        paper (`dict[str, Any]`, *optional*):
            What [`read_paper`] returned.

    Returns:
        `list[dict[str, Any]]`: `benchmark`, `full_marks`, `paper_base`, `paper`, `paper_gain`, `task`, `base`, `ours`
        (headlines of lmms-eval, on the paper's scale so that they can be read beside it), and the paired `difference`
        per row with `low`, `high`, `p_holm`, `n` in shares of a row's full marks. What there is not is `None`.
    """
    for name in (before, after):
        if name not in scores["models"]:
            raise SystemExit(f"there is no model {name!r} among {', '.join(scores['models'])}")
    asked = {describe(task)["benchmark"]: task for task in tasks_of(scores) if describe(task)["protocol"] == protocol}
    if paper is None:
        known = {describe(task)["title"]: {"ours": [name]} for name, task in asked.items()}
    else:
        known = paper["benchmarks"]
    compared = {}
    for entry in reversed(scores["comparisons"]):  # the first entry of a task is its leading metric
        if (entry["before"], entry["after"]) == (before, after):
            compared[entry["task"]] = entry
    rows = []
    for title, printed in known.items():
        task = next((asked[name] for name in printed["ours"] if name in asked), None)
        full = printed.get("full_marks")
        row = {"benchmark": title, "full_marks": full, "task": task}
        row |= {"paper_base": printed.get("base"), "paper": printed.get("trained")}
        row["paper_gain"] = None if paper is None else round(row["paper"] - row["paper_base"], 2)
        row |= {"base": _headline(scores, before, task, full), "ours": _headline(scores, after, task, full)}
        entry = compared.get(task, {})
        rows.append({**row, **{key: entry.get(key) for key in ("difference", "low", "high", "p_holm", "n")}})
    return rows


def _headline(scores: dict[str, Any], model: str, task: str | None, full_marks: float | None) -> float | None:
    """Return the leading metric of a model on a task, out of `full_marks`, or on the benchmark's own scale."""
    about, found = describe(task) if task else {"headline": ()}, scores["models"][model].get(task, {})
    names = (part for name in about["headline"] for part in (name, name.partition(",")[0]))
    value = next((found[name] for name in names if name in found), None)
    return value if value is None or full_marks is None else value * full_marks / about["full_marks"]


def page(content: dict[str, Any]) -> str:
    """Return the table as Markdown, with what a reader has to know of the paper's column."""
    paper, rows = content["paper"], []
    for row in content["rows"]:
        digits = 3 if row["full_marks"] is None else 1
        ours = [number(row[key], digits) for key in ("base", "ours")]
        shown = difference({**row, "metric": ""})
        printed = []
        if paper:
            gain = MISSING if row["paper_gain"] is None else f"{row['paper_gain']:+.1f}".replace("-", MINUS)
            printed = [number(row["paper"], 1), gain]
        delta = f"{shown['text']} {shown['interval']}" if shown else MISSING
        holm = MISSING if row["p_holm"] is None else f"{row['p_holm']:.3f}"
        rows.append([row["benchmark"], *printed, *ours, delta, holm, number(row["n"])])
    columns = [paper["paper"], f"{paper['paper']}, gain"] if paper else []
    header = ["benchmark", *columns, content["before"], content["after"], "Δ and 95 % interval", "p (Holm)", "n"]
    scale = f"the scale on which {paper['paper']} prints them" if paper else "the benchmark's own scale"
    notes = [
        f"Asked {content['protocol'].replace('_', ' ')}, with lmms-eval. Scores are headlines, on {scale}. Δ is the "
        f"paired difference per row of {content['after']} {MINUS} {content['before']}, in points out of 100."
    ]
    if paper:
        models = paper["models"]
        notes.append(
            f"Columns of {paper['paper']}: {models['trained']} and its gain over {models['base']}, as reported, "
            f"measured with {paper['harness']}. {paper['note']}"
        )
        named = {row["benchmark"]: describe(row["task"])["benchmark"] for row in content["rows"] if row["task"]}
        other = [f"{title}: {name}" for title, name in named.items() if paper["benchmarks"][title]["ours"][0] != name]
        if other:
            notes.append(f"Not scored as the paper did, but by what stands in for it: {', '.join(other)}.")
    failures = [
        f"- missing: {entry['model']}, {entry['task']}: {' '.join(entry['reason'].split())}"
        for entry in content["failures"]
    ]
    return "\n\n".join([aligned_table(header, rows), *notes, *(["\n".join(failures)] if failures else [])]) + "\n"


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table, write it if there is an `output_dir`, and return it."""
    scores = json.loads(args.scores.read_text(encoding="utf-8"))
    names = list(scores["models"])
    before, after = args.before or names[0], args.after or names[-1]
    paper = read_paper(args.paper) if args.paper else None
    content = {"benchmark": "compare", "before": before, "after": after, "protocol": args.protocol, "paper": paper}
    content |= {"rows": table(scores, before, after, args.protocol, paper), "failures": scores.get("failures") or []}
    content |= {"evaluation": scores.get("manifest"), "gathered": made_by()}
    if args.output_dir:
        name = "_".join(["compare", *([args.paper] if args.paper else []), args.protocol])
        write_json(args.output_dir / f"{name}.json", content)
        write_text(args.output_dir / f"{name}.md", page(content))
    print(page(content))
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="the scores.json of an evaluation")
    parser.add_argument("--paper", choices=PAPERS, help="whose numbers stand beside")
    parser.add_argument("--before", help="name of a model; the first one by default")
    parser.add_argument("--after", help="name of a model; the last one by default")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="direct", help="how it was asked")
    parser.add_argument("--output_dir", type=Path, help="gets the table as JSON and Markdown")
    shown = main(parser.parse_args())
    print(json.dumps({key: shown[key] for key in ("benchmark", "before", "after", "protocol", "rows")}))
