"""The table beside a paper: its numbers as printed, ours on its scale, the difference with its interval, the notes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sicog_trl.evaluation.benchmarks import SUITES, benchmarks, select_tasks


ROOT = Path(__file__).parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = script("compare")


@pytest.fixture
def scores(tmp_path):
    models = {
        "base": {"mmstar": {"average": 0.4, "n": 1500}, "ocrbench": {"ocrbench_accuracy": 0.5, "n": 1000}},
        "trained": {"mmstar": {"average": 0.45, "n": 1500}, "ocrbench": {"ocrbench_accuracy": 0.6, "n": 1000}},
    }
    models["base"]["mmstar_step_by_step"] = models["trained"]["mmstar_step_by_step"] = {"average": 0.6, "n": 1500}
    entry = {"before": "base", "after": "trained", "task": "mmstar", "metric": "accuracy", "n": 1500}
    entry |= {"difference": 0.048, "low": 0.02, "high": 0.076, "p_holm": 0.012}
    failures = [{"model": "trained", "task": "pope", "reason": "killed"}]
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"models": models, "comparisons": [entry], "failures": failures, "manifest": {}}))
    return path


def run(*arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "compare.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done


def cells(page, benchmark):
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {benchmark} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_paper_stands_beside_and_is_not_mixed_in(scores, tmp_path):
    done = run(scores, "--paper", "sicog", "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "out" / "compare_sicog_direct.md").read_text()
    assert done.stdout.startswith(page)
    assert cells(page, "MMStar") == ["MMStar", "52.5", "+3.6", "40.0", "45.0", "+4.8 [+2.0, +7.6]", "0.012", "1,500"]
    # Scored, but not compared: the columns stay apart, nothing is filled in from the paper.
    assert cells(page, "OCRBench") == ["OCRBench", "57.7", "+2.5", "50.0", "60.0", "–", "–", "–"]
    assert cells(page, "DocVQA") == ["DocVQA", "73.7", "+3.5", "–", "–", "–", "–", "–"]
    assert "measured with VLMEvalKit" in page
    assert "- missing: trained, pope: killed" in page
    content = json.loads((tmp_path / "out" / "compare_sicog_direct.json").read_text())
    assert len(content["rows"]) == 12
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == content["rows"]


def test_what_stands_in_for_a_judged_benchmark_is_named(scores, tmp_path):
    content = json.loads(scores.read_text())
    for found in content["models"].values():
        found["mathvista_rules"] = {"accuracy": 0.25, "n": 1000}
    content["failures"][0]["reason"] = "killed\n# by a heading"
    scores.write_text(json.dumps(content))
    page = run(scores, "--paper", "sicog").stdout
    assert cells(page, "MathVista")[3] == "25.0"
    assert "Not scored as the paper did, but by what stands in for it: MathVista: mathvista_rules." in page
    assert "- missing: trained, pope: killed # by a heading" in page


def test_a_way_of_asking_that_is_not_there_is_refused(scores):
    done = run(scores, "--protocol", "stepbystep")
    assert done.returncode == 2 and "invalid choice: 'stepbystep'" in done.stderr


def test_ours_is_shown_on_the_scale_of_the_paper(scores):
    rows = compare.table(json.loads(scores.read_text()), "base", "trained", "direct", compare.read_paper("insight_v"))
    (row,) = [row for row in rows if row["benchmark"] == "OCRBench"]
    assert (row["paper_base"], row["paper"], row["base"], row["ours"]) == (553, 663, 500, 600)


def test_without_a_paper_every_benchmark_of_the_evaluation_stands_on_its_own_scale(scores):
    rows = compare.table(json.loads(scores.read_text()), "base", "trained", "step_by_step")
    assert [(row["benchmark"], row["base"], row["ours"], row["paper"]) for row in rows] == [("MMStar", 0.6, 0.6, None)]


def test_an_unknown_model_is_refused(scores):
    with pytest.raises(SystemExit, match="no model 'other' among base, trained"):
        compare.table(json.loads(scores.read_text()), "base", "other", "direct")


@pytest.mark.parametrize("name", compare.PAPERS)
def test_papers_name_benchmarks_of_ours_and_their_notes(name):
    paper = compare.read_paper(name)
    assert paper["harness"] and paper["note"] and set(paper["models"]) == {"base", "trained"}
    for title, row in paper["benchmarks"].items():
        assert set(row) == {"ours", "full_marks", "base", "trained"}, title
        assert set(row["ours"]) <= set(benchmarks()), title
        assert 0 < row["base"] <= row["full_marks"]
        assert 0 < row["trained"] <= row["full_marks"]
    # The suite of the same name asks what the paper reports.
    assert name in SUITES
    suite = {task.benchmark.name for task in select_tasks(name).values()}
    assert {row["ours"][0] for row in paper["benchmarks"].values() if row["ours"]} <= suite


def test_the_printed_numbers_agree_with_the_printed_gains():
    gains = {name: compare.read_paper(name)["benchmarks"] for name in compare.PAPERS}
    gains = {
        name: {title: row["trained"] - row["base"] for title, row in rows.items()} for name, rows in gains.items()
    }
    assert gains["sicog"]["MMStar"] == pytest.approx(3.6)
    assert gains["sicog"]["AI2D"] == pytest.approx(3.5)
    assert sum(gains["stic"].values()) / 7 == pytest.approx(4.0, abs=0.1)
    assert gains["stic"]["ScienceQA"] == pytest.approx(6.4)
