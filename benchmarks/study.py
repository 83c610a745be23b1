"""
Gather the seeds of a study: what each arm scored, and what it differs from the control of equal steps.

make study, or for runs that are there: python benchmarks/study.py runs/study/seed-*
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student

from sicog_trl.evaluation.benchmarks import select_tasks
from sicog_trl.evaluation.comparison import compare_scores, pair, read_samples
from sicog_trl.files import write_json, write_text
from sicog_trl.provenance import made_by
from sicog_trl.report import aligned_table, summary_table
from sicog_trl.report.line import counts_of
from sicog_trl.report.sections import (
    BASE,
    CONTROL,
    PAIRS,
    TREATED,
    difference,
    explanations,
    pair_title,
    steps_by_arm,
    verb,
)
from sicog_trl.report.verdicts import headline


CAVEAT = (
    "{k} seeds. Each seed draws its own scenes, model, candidates and test rows. The interval of the mean over seeds "
    "resamples seeds, and rows within them; with so few seeds it is too narrow, because seeds that were not run "
    "cannot be drawn. The Student interval over the {k} seed means beside it is the cautious one. Intervals are not "
    "corrected for the number of tasks."
)


def find_runs(folders: list[Path]) -> dict[int, Path]:
    """Return the run of each seed; every one must be finished, of another seed, and otherwise configured alike."""
    runs: dict[int, Path] = {}
    for run in folders:
        if not (run / "evaluate" / "scores.json").is_file():
            raise SystemExit(f"{run} has no evaluate/scores.json: finish this run first")
        manifest = _read(run / "manifest.json")
        if not manifest.get("finished"):
            raise SystemExit(f"{run} is not finished (manifest.json): run its command again, it goes on from there")
        seed = manifest["seed"]
        if seed in runs:
            raise SystemExit(f"{run} and {runs[seed]} are both of seed {seed}")
        runs[seed] = run
    if not runs:
        raise SystemExit("there are no runs runs/study/seed-*: run `make study`, or name the folders of the runs")
    check_alike(list(runs.values()))
    return runs


def check_alike(runs: list[Path]) -> None:
    """Refuse runs whose configurations differ in anything but the seed and the folder: seeds alone may differ."""
    configs = []
    for run in runs:
        if not (run / "config.yaml").is_file():
            raise SystemExit(f"{run / 'config.yaml'} is missing: finish this run first")
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        configs.append({key: value for key, value in config.items() if key not in ("seed", "output_dir")})
    for run, config in zip(runs, configs, strict=True):
        if differing := [key for key in sorted({*config, *configs[0]}) if config.get(key) != configs[0].get(key)]:
            key = differing[0]
            raise SystemExit(
                f"{runs[0]} and {run} are not of one study: {key} is {configs[0].get(key)!r} and {config.get(key)!r}"
            )


def caveats(described: dict[str, dict[str, Any]]) -> list[str]:
    """Return what keeps the runs from being of one and the same code."""
    commits = {name for run in described.values() for name in run["commits"]}
    dirty = [seed for seed, run in described.items() if run["dirty"]]
    notes = []
    if len(commits) > 1:
        notes.append(f"Caution: the runs are of different commits: {', '.join(sorted(commits))}.")
    if "unknown" in commits:
        notes.append("Caution: the commit of some run is not known.")
    if dirty:
        notes.append(f"Caution: files differed from their commit when seed {', '.join(dirty)} ran.")
    return notes


def paired(run: Path, before: str, after: str, task: str, metric: str) -> np.ndarray:
    """Return the scores of two arms on the same rows, one row each."""
    folder = run / "evaluate"
    rows = pair(read_samples(folder / before, task), read_samples(folder / after, task), f"{run} {task}")
    return np.array([[side["scores"][metric] for side in both] for both in rows], dtype=float)


def over_seeds(differences: list[np.ndarray], num_resamples: int, seed: int = 0) -> dict[str, Any]:
    """
    Return the mean over seeds of the mean difference, with two intervals.

    Args:
        differences (`list[np.ndarray]`):
            Per seed the differences of its rows.
        num_resamples (`int`):
            Of the hierarchical bootstrap: seeds with replacement, then the rows of each drawn seed.
        seed (`int`, *optional*, defaults to `0`):
            Of the resampling.

    Returns:
        `dict[str, Any]`: `difference`, `low` and `high` (hierarchical), `student_low` and `student_high` (over the
        means of the seeds), both 95 % and `None` for a single seed.
    """
    means = np.array([rows.mean() for rows in differences])
    k = len(means)
    result = {"difference": float(means.mean()), "per_seed": means.tolist(), "num_seeds": k}
    if k < 2:
        return result | dict.fromkeys(("low", "high", "student_low", "student_high"))
    rng = np.random.default_rng(seed)
    drawn = np.empty((num_resamples, k))
    chosen = rng.integers(k, size=(num_resamples, k))
    for index, rows in enumerate(differences):
        values, counts = np.unique(rows, return_counts=True)
        places = chosen == index
        drawn[places] = rng.multinomial(len(rows), counts / len(rows), size=places.sum()) @ values / len(rows)
    low, high = np.quantile(drawn.mean(axis=1), (0.025, 0.975))
    half = student.ppf(0.975, k - 1) * means.std(ddof=1) / np.sqrt(k)
    cautious = {"student_low": float(means.mean() - half), "student_high": float(means.mean() + half)}
    return result | {"low": float(low), "high": float(high)} | cautious


def gather(runs: dict[int, Path], num_resamples: int) -> dict[str, Any]:
    """Return the scores of every arm and the differences to base and control, per seed and over seeds."""
    scores = {seed: _read(run / "evaluate" / "scores.json")["models"] for seed, run in runs.items()}
    arms = list(next(iter(scores.values())))
    for seed, models in scores.items():
        if missing := set(arms) ^ set(models):
            raise SystemExit(f"{runs[seed]}: {sorted(missing)[0]} was not scored in every seed")
    if CONTROL not in arms:
        raise SystemExit(f"no run has the control {CONTROL}; a study without it proves nothing")
    tasks = select_tasks("digits")
    measures = [(task, metric) for task in scores[min(scores)][arms[0]] for metric in tasks[task].benchmark.headline]
    models: dict[str, Any] = {arm: {} for arm in arms}
    for arm in arms:
        for task, metric in measures:
            each = [scores[seed][arm][task] for seed in scores]
            entry = models[arm].setdefault(task, {"n": sum(values["n"] for values in each)})
            entry[metric] = float(np.mean([values[metric] for values in each]))
    # Against the control first; then what selection is worth, the headroom, and the other arms.
    wanted = [*PAIRS[1:], PAIRS[0], *((CONTROL, arm) for arm in arms if arm not in (BASE, CONTROL))]
    pairs = [pair for pair in dict.fromkeys(wanted) if set(pair) <= set(arms)]
    comparisons = []
    for before, after in pairs:
        for task, metric in measures:
            rows = {seed: paired(run, before, after, task, metric) for seed, run in runs.items()}
            single = {str(seed): compare_scores(*both.T, num_resamples, seed) for seed, both in rows.items()}
            pooled = over_seeds([both[:, 1] - both[:, 0] for both in rows.values()], num_resamples)
            means = {"before_score": models[before][task][metric], "after_score": models[after][task][metric]}
            names = {"task": task, "metric": metric, "before": before, "after": after}
            comparisons.append({**names, **means, **pooled, "seeds": single})
    return {"models": models, "comparisons": comparisons}


def label_rows(runs: dict[int, Path]) -> list[list[str]]:
    """Return label accuracy before and after curation, mean over seeds, per round and task."""
    found: dict[tuple, list[tuple[float, float]]] = {}
    for run in runs.values():
        for stage in _read(run / "stages.json"):
            if stage["arm"] == TREATED and verb(stage) == "curate":
                before, after = (counts_of(stage).get(f"label_accuracy_{when}") or {} for when in ("before", "after"))
                for task in before.keys() & after.keys():
                    if before[task] is not None and after[task] is not None:
                        found.setdefault((stage["round"], task), []).append((before[task], after[task]))
    means = {key: 100 * np.mean(values, axis=0) for key, values in sorted(found.items())}
    return [[str(number), task, f"{first:.1f}", f"{last:.1f}"] for (number, task), (first, last) in means.items()]


def page(study: dict[str, Any]) -> str:
    """Return the study as Markdown."""
    seeds = study["seeds"]
    rows = []
    for entry in study["comparisons"]:
        student_ends = {"low": entry["student_low"], "high": entry["student_high"]}
        over, cautious = difference(entry), difference({**entry, **student_ends})
        each = [difference(entry["seeds"][str(seed)]) for seed in seeds]
        singles = [f"{shown['text']} {shown['interval']}" for shown in each]
        over_all = f"{over['text']} {over['interval']}"
        names = [pair_title(entry["before"], entry["after"]), entry["task"], entry["metric"]]
        rows.append([*names, over_all, cautious["interval"], *singles])
    header = ["difference", "task", "metric", "mean over seeds", "Student", *(f"seed {seed}" for seed in seeds)]
    parts = [
        "# Study: the digits line over seeds",
        f"**{study['verdict']}**",
        CAVEAT.format(k=len(seeds)),
        *study["caveats"],
        "## Scores, mean over seeds",
        summary_table(study),
        *explanations(study),
        "## Differences between arms",
        "In points, with 95 % intervals: over seeds, and within each seed over its test rows.",
        aligned_table(header, rows, left=3),
        "## Label accuracy before and after curation, mean over seeds",
        aligned_table(["round", "task", "before", "after"], study["labels"], left=2) if study["labels"] else "–",
        "## What was run",
        f"```json\n{json.dumps({key: study[key] for key in ('runs', 'gathered')}, indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def say(scores: dict[str, Any]) -> str:
    """Return the verdict over seeds in one sentence; a gain needs both intervals."""
    entry = headline(scores)
    if entry is None:
        return f"No verdict: {TREATED} was not compared with {CONTROL}."
    shown = difference(entry)
    cautious = difference({**entry, "low": entry["student_low"], "high": entry["student_high"]})
    signs = {shown["sign"], cautious["sign"]}
    lead = {"gain": "Better than the control", "loss": "Worse than the control"}.get(shown["sign"])
    if len(signs) > 1:
        lead = "Undecided with so few seeds"
    what = f"{entry['metric'].replace('_', ' ')} on {entry['task']}"
    return (
        f"{lead or 'No gain over the control'}: {TREATED} minus {CONTROL} in {what} is {shown['text']} points over "
        f"{entry['num_seeds']} seeds (95 % interval {shown['interval']}, Student {cautious['interval']})."
    )


def describe_run(run: Path) -> dict[str, Any]:
    """Return what a run says of itself."""
    manifest = _read(run / "manifest.json")
    stages = _read(run / "stages.json")
    known = {key: manifest.get(key) for key in ("command", "versions", "hardware")}
    # A run that was resumed may hold stages of several commits; its manifest names the last one.
    code = [stage for stage in stages if stage.get("commit")] or [manifest]
    known["commits"] = sorted({entry.get("commit") or "unknown" for entry in code})
    known["dirty"] = any(entry.get("dirty") for entry in code)
    seconds = [stage["seconds"] for stage in stages if stage.get("seconds") is not None]
    return {**known, "seconds": round(sum(seconds), 1), "steps": steps_by_arm(stages)}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: finish this run first")
    return json.loads(path.read_text(encoding="utf-8"))


def main(folders: list[Path], output_dir: Path | None, num_resamples: int) -> dict[str, Any]:
    """Gather, print, write `study.json` and `study.md` if there is an `output_dir`, and return the headline."""
    runs = find_runs(folders)
    scores = gather(runs, num_resamples)
    made = {"gathered": {**made_by(), "num_resamples": num_resamples}}
    made["runs"] = {str(seed): describe_run(run) for seed, run in runs.items()}
    study = {"verdict": say(scores), "caveats": caveats(made["runs"]), "seeds": list(runs), **scores}
    study |= {"labels": label_rows(runs), **made}
    if output_dir:
        write_json(output_dir / "study.json", study)
        write_text(output_dir / "study.md", page(study))
    print(page(study))
    first = headline(scores) or {}
    keys = ("task", "metric", "difference", "low", "high", "student_low", "student_high", "per_seed")
    return {"benchmark": "study", "seeds": list(runs), **{key: first.get(key) for key in keys}, **made["gathered"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of the runs; runs/study/seed-* by default")
    parser.add_argument(
        "--output_dir", type=Path, help="gets study.json and study.md; benchmarks/results, or with --quick nothing"
    )
    parser.add_argument("--quick", action="store_true", help="500 resamples instead of 10,000")
    args = parser.parse_args()
    output_dir = args.output_dir or (None if args.quick else Path("benchmarks/results"))
    folders = args.runs or sorted(Path("runs/study").glob("seed-*"))
    print(json.dumps(main(folders, output_dir, 500 if args.quick else 10_000)))
