"""
The benchmarks. The study: seeds are gathered by their own numbers, and the interval over seeds is as wide as seeds
differ. The pipeline: it measures both sides of every ratio, whatever they are on this machine.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = script("study")

LEVELS = {"base": 0.1, "sicog": 0.8, "annotated_only": 0.6}
CONTROLS = {"random_candidate": 0.7, "oracle": 0.9}


def make_seed(folder: Path, seed: int, levels: dict[str, float] = LEVELS, n: int = 100) -> None:
    models = {}
    for arm, level in levels.items():
        right = [float(i < level * n) for i in range(n)]
        rows = [
            {"doc_id": i, "hash": f"{seed}-{i}", "id": f"r{i}", "scores": {"accuracy": value}}
            for i, value in enumerate(right)
        ]
        path = folder / "evaluate" / arm / "samples_digits_vqa.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(map(json.dumps, rows)))
        models[arm] = {"digits_vqa": {"accuracy": float(np.mean(right)), "n": n}}
    (folder / "evaluate" / "scores.json").write_text(json.dumps({"models": models, "comparisons": []}))
    manifest = {"seed": seed, "command": "x", "commit": "abc", "dirty": False, "finished": "2026-01-01"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = {"seed": seed, "output_dir": str(folder), "rounds": 2, "pretrain": {"max_steps": 500, "seed": "$seed"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    counts = {"label_accuracy_before": {"overall": 0.5}, "label_accuracy_after": {"overall": 0.75}}
    stage = {"name": "c", "arm": "sicog", "round": 1, "recipe": "curate.py", "seconds": 2.0, "counts": counts}
    (folder / "stages.json").write_text(json.dumps([stage]))


def test_gathers_every_seed(tmp_path):
    for seed in (0, 1, 2):
        make_seed(tmp_path / "runs" / f"seed-{seed}", seed)
    result = study.main(sorted(tmp_path.glob("runs/seed-*")), tmp_path / "results", 200)
    assert result["seeds"] == [0, 1, 2]
    assert result["difference"] == pytest.approx(0.2)
    assert result["per_seed"] == pytest.approx([0.2, 0.2, 0.2])
    written = json.loads((tmp_path / "results" / "study.json").read_text())
    assert written["models"]["sicog"]["digits_vqa"]["accuracy"] == pytest.approx(0.8)
    page = (tmp_path / "results" / "study.md").read_text()
    assert "Better than the control" in page and "+20.0" in page and "3 seeds" in page
    assert "75.0" in page  # label accuracy after curation


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    agree, disagree = (
        study.over_seeds([rng.normal(mean, 0.1, 200) for mean in means], 2000)
        for means in ([0.1, 0.1, 0.1], [-0.2, 0.1, 0.4])
    )
    assert 0.05 < agree["low"] < agree["high"] < 0.15
    assert disagree["low"] < 0 < disagree["high"]
    assert disagree["student_low"] < disagree["low"]


def test_one_seed_has_no_interval_and_no_gain(tmp_path):
    make_seed(tmp_path / "runs" / "seed-0", 0)
    assert study.main(sorted(tmp_path.glob("runs/seed-*")), tmp_path / "results", 200)["low"] is None
    assert "No gain over the control" in (tmp_path / "results" / "study.md").read_text()


def test_incomplete_studies_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="there are no runs"):
        study.main(sorted(tmp_path.glob("seed-*")), tmp_path, 10)
    make_seed(tmp_path / "seed-0", 0)
    make_seed(tmp_path / "seed-1", 0)
    with pytest.raises(SystemExit, match="are both of seed 0"):
        study.main(sorted(tmp_path.glob("seed-*")), tmp_path, 10)
    (tmp_path / "seed-1" / "evaluate" / "scores.json").unlink()
    with pytest.raises(SystemExit, match=r"has no evaluate/scores\.json"):
        study.main(sorted(tmp_path.glob("seed-*")), tmp_path, 10)


def test_without_the_control_there_is_no_study(tmp_path):
    make_seed(tmp_path / "seed-0", 0, {"base": 0.1, "sicog": 0.8})
    with pytest.raises(SystemExit, match="annotated_only"):
        study.main(sorted(tmp_path.glob("seed-*")), tmp_path, 10)


def change(path: Path, **values: object) -> None:
    """Replace keys of a file of JSON or YAML; the first stage of a list of them."""
    content = yaml.safe_load(path.read_text())
    (content[0] if isinstance(content, list) else content).update(values)
    path.write_text(json.dumps(content))


def test_differences_to_the_other_controls_are_shown_per_seed_and_over_seeds(tmp_path):
    for seed in (0, 1):
        make_seed(tmp_path / f"seed-{seed}", seed, LEVELS | CONTROLS)
    study.main(sorted(tmp_path.glob("seed-*")), tmp_path, 200)
    made = json.loads((tmp_path / "study.json").read_text())["comparisons"]
    found = {(entry["before"], entry["after"]): entry for entry in made}
    assert found["random_candidate", "sicog"]["difference"] == pytest.approx(0.1)
    assert found["annotated_only", "oracle"]["seeds"]["1"]["difference"] == pytest.approx(0.3)
    page = (tmp_path / "study.md").read_text()
    assert page.count("sicog \N{MINUS SIGN} random candidate") == 2  # among the scores, and seed by seed
    assert page.count("oracle \N{MINUS SIGN} annotated only (headroom)") == 2
    assert "which the model of sicog wrote" in page and "no upper bound" in page


def test_unfinished_and_differently_configured_runs_are_refused(tmp_path):
    runs = [tmp_path / f"seed-{seed}" for seed in (0, 1)]
    for seed, run in enumerate(runs):
        make_seed(run, seed)
    change(runs[1] / "config.yaml", pretrain={"max_steps": 50, "seed": "$seed"})
    with pytest.raises(SystemExit, match=r"not of one study: pretrain is .*500.* and .*50"):
        study.main(runs, None, 10)
    (runs[1] / "config.yaml").unlink()
    with pytest.raises(SystemExit, match=r"config\.yaml is missing"):
        study.main(runs, None, 10)
    change(runs[1] / "manifest.json", finished=None)
    with pytest.raises(SystemExit, match="seed-1 is not finished"):
        study.main(runs, None, 10)


def test_several_commits_are_a_caveat(tmp_path, capsys):
    runs = [tmp_path / f"seed-{seed}" for seed in (0, 1)]
    for seed, run in enumerate(runs):
        make_seed(run, seed)
    study.main(runs, None, 10)
    assert "Caution" not in capsys.readouterr().out
    change(runs[1] / "stages.json", commit="def", dirty=True)  # the manifest still says abc
    study.main(runs, None, 10)
    shown = capsys.readouterr().out
    assert "different commits: abc, def." in shown
    assert "files differed from their commit when seed 1 ran" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]  # nothing written unasked


def test_pipeline_measures_both_sides(tmp_path, capsys):
    result = script("pipeline").main({"repeats": 2, "curated_rows": (4, 8), "steps": 1}, tmp_path)
    assert json.loads((tmp_path / "pipeline.json").read_text()) == json.loads(json.dumps(result))
    for stage in ("curation", "training"):
        sides = list(result[stage]["sides"].values())
        assert [len(side["seconds"]) for side in sides] == [2, 2]
        assert result[stage]["ratio"] == pytest.approx(sides[1]["per_second"] / sides[0]["per_second"])
    assert "batch_rebalance" in capsys.readouterr().out
    assert result["versions"] and result["hardware"]
