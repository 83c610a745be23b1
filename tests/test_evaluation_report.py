"""The page of an evaluation: what it says, what it does without pictures or images, that hostile text stays text."""

import json
import re
import sys

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sicog_trl.data import IMAGES_FEATURES, save
from sicog_trl.evaluation.benchmarks import select_tasks
from sicog_trl.evaluation.comparison import compare
from sicog_trl.evaluation.task_files import write_task_files
from sicog_trl.report.evaluation import MAX_TEXT, write_evaluation_report
from sicog_trl.report.evaluation_tables import describe, protocols, results


HOSTILE = (
    "<script>alert('a')</script><svg onload=alert(1)></svg> [x](https://evil.example) ![i](//evil.example/i) | `code` "
    "{{ 7 * 7 }}"
)
NUM_ROWS = 60
# Share of right rows: training helps either way; asking step by step helps by itself.
SHARES = {("base", "direct"): 0.3, ("trained", "direct"): 0.6, ("base", "steps"): 0.5, ("trained", "steps"): 0.8}
HEALTH = {"empty": 1, "truncated": 2, "unparsed": 3, "unscored": 0, "judge_calls": 0, "judge_failed": 0}


def write_task(folder, model, task, scores, metric="accuracy", headline=None, response=HOSTILE):
    rows = [
        {"doc_id": i, "id": f"row-{i}", "hash": f"{i}", "input": f"{HOSTILE} {i}", "target": f"three {HOSTILE}"}
        | {"response": response, "answer": "A", "scores": {metric: score}, "num_tokens": 7}
        for i, score in enumerate(scores)
    ]
    (folder / model).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / model / f"samples_{task}.jsonl").write_text(text)
    (folder / model / f"results_{task}.json").write_text(json.dumps({"conditions": {}}))
    known = [score for score in scores if score is not None]
    return {**(headline or {metric: float(np.mean(known)) if known else 0.0}), "n": len(scores)}


def right(share):
    return [float(i < share * NUM_ROWS) for i in range(NUM_ROWS)]


def write_scores(folder, models, failures=()):
    metrics = {task: describe(task)["headline"] for task in next(iter(models.values()))}
    names = list(models)
    entries = [
        {"before": names[0], "after": after, **entry}
        for after in names[1:]
        for entry in compare(folder / names[0], folder / after, metrics, num_resamples=200)
    ]
    health = {name: {task: {**HEALTH, "mean_tokens": 7.0} for task in found} for name, found in models.items()}
    scores = {"models": models, "comparisons": entries, "health": health, "failures": list(failures)}
    scores["manifest"] = {"command": f"evaluate {HOSTILE}", "versions": {"lmms-eval": "0.7.3"}}
    (folder / "scores.json").write_text(json.dumps(scores))
    return scores


@pytest.fixture
def run(tmp_path):
    """Two models on our own questions, on MMStar and MME both ways, and on a task that no judge scored."""
    images = [{"id": f"row-{i}", "images": [Image.new("RGB", (32, 32))]} for i in range(NUM_ROWS)]
    rows = [{**row, "question": "Which?", "answer": "three"} for row in images]
    save(Dataset.from_list(rows, features=IMAGES_FEATURES), tmp_path / "rows", "vqa")
    folder = tmp_path / "run"
    write_task_files(folder / "tasks", str(tmp_path / "rows"), select_tasks("digits", ["digits_vqa"]))
    models = {}
    for model in ("base", "trained"):
        direct, steps = right(SHARES[model, "direct"]), right(SHARES[model, "steps"])
        perception = {"mme_perception_score": 2000 * SHARES[model, "direct"], "mme_cognition_score": 250.0}
        models[model] = {
            "digits_vqa": write_task(folder, model, "digits_vqa", direct),
            "mmstar": write_task(folder, model, "mmstar", direct, headline={"average": SHARES[model, "direct"]}),
            "mme": write_task(folder, model, "mme", direct, headline=perception),
            "mmstar_step_by_step": write_task(
                folder, model, "mmstar_step_by_step", steps, headline={"average": SHARES[model, "steps"]}
            ),
            "mmvet": write_task(folder, model, "mmvet", [None] * 4, headline={"gpt_eval_score": 0.0}),
        }
    write_scores(folder, models, [{"model": "trained", "task": "pope", "reason": HOSTILE}])
    return folder


@pytest.fixture(autouse=True)
def no_lmms_eval(monkeypatch):
    """Images of packaged tasks are looked for in tests/test_examples.py; here every look-up finds nothing."""
    monkeypatch.setattr("sicog_trl.evaluation.examples._from_lmms_eval", lambda folder, wanted: {})


def pages(folder, **options):
    page = write_evaluation_report(folder, **options)
    assert page == folder / "evaluation.html"
    return page.read_text(), (folder / "evaluation.md").read_text()


def cells(page, start):
    """Return the cells of the first row of a Markdown table that begins with `start`."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start} ")][:1]
    return [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]


def test_scores_stand_on_their_own_scales(run):
    _, page = pages(run)
    assert cells(page, "MMStar | direct") == ["MMStar", "direct", "average", "60", "1", "0.300", "0.600"]
    assert cells(page, "MMStar | step by step")[-2:] == ["0.500", "0.800"]
    assert cells(page, "MME | direct | mme_perception_score")[3:] == ["60", "2,000", "600.0", "1,200.0"]
    assert cells(page, "MME | direct | mme_cognition_score")[3:] == ["60", "–", "250.0", "250.0"]


def test_differences_say_what_they_may_be_worth(run):
    html, page = pages(run)
    row = cells(page, "MMStar | accuracy")
    assert row[2:6] == ["60", "0", "30.0", "60.0"]
    assert row[6].startswith("+30.0 [") and row[6].endswith("] ▲")
    assert row[7:10] == ["18 / 0", "&lt; 0.001", "&lt; 0.001"]
    assert row[11] == "7.0 → 7.0"
    unscored = cells(page, "MM-Vet | accuracy")
    assert unscored[2:4] == ["0", "4"]
    assert set(unscored[4:7]) == {"–"}
    assert "trained \N{MINUS SIGN} base" in html


def test_a_difference_below_the_smallest_detectable_one_is_marked(tmp_path):
    before = [0.0] * 30 + [1.0] * 30
    after = [1.0] * 5 + [0.0] * 29 + [1.0] * 26
    models = {
        name: {"mmstar": write_task(tmp_path, name, "mmstar", scores, headline={"average": 0.5})}
        for name, scores in (("base", before), ("trained", after))
    }
    write_scores(tmp_path, models)
    row = cells(pages(tmp_path)[1], "MMStar | accuracy")
    assert row[7] == "5 / 4"
    assert float(row[10].removesuffix(" ·")) > 10
    assert row[10].endswith(" ·")


def test_protocols_stand_side_by_side(run):
    scores = json.loads((run / "scores.json").read_text())
    both = protocols(scores, run)
    assert [(row["model"], row["direct"], row["steps"], row["change"]["text"]) for row in both["models"]] == [
        ("base", "30.0", "50.0", "+20.0"),
        ("trained", "60.0", "80.0", "+20.0"),
    ]
    # Thirty points either way: nothing of the gain depends on how the question was asked.
    (gain,) = both["gains"]
    assert (gain["direct"], gain["steps"], gain["change"]["sign"]) == ("30.0", "30.0", "open")


def test_health_failures_and_manifest_are_shown(run):
    html, page = pages(run)
    assert cells(page, "MMStar, step by step | base") == [
        *("MMStar, step by step", "base", "1", "2", "3", "0", "0", "0", "7.0"),
    ]
    assert "## Missing results" in page
    assert "trained, pope" in page
    assert "0.7.3" in html


def test_rows_that_changed_have_images_or_a_reason(run):
    html, page = pages(run)
    cards = re.findall(r'<div class="rowid"><b>(.*?)</b>', html)
    assert cards.count("Digits, questions") == cards.count("MMStar") == 2
    assert html.count("data:image/png;base64,") == page.count("data:image/png;base64,") == 2
    assert "no image: the row was not found" in html
    assert "![image of the row][image-1-1]" in page


def test_hostile_text_stays_text(run):
    html, page = pages(run)
    assert "<script" not in html and "<svg onload" not in html
    assert "<script" not in page and "<svg" not in page
    assert "&lt;script&gt;" in html and "&lt;svg onload" in html
    assert "{{ 7 * 7 }}" in html
    assert not re.search(r"(?<!\\)\]\((https?:)?//", page)
    assert not re.search(r"<(?!/?(svg|br)\b)[a-z]+[^>]*(onload|src=.//)", html)


def test_text_that_is_no_text_is_shown_and_does_nothing(tmp_path):
    models = {
        name: {"mmstar": write_task(tmp_path, name, "mmstar", [score], response="\x1b[2J\0 \x9b \ud800 one\r\ntwo")}
        for name, score in (("base", 0.0), ("trained", 1.0))
    }
    write_scores(tmp_path, models)
    for page in pages(tmp_path):
        assert "\u241b" in page and "\u2400 \ufffd \ufffd one" in page
        assert all(char.isprintable() or char in "\n\t" or ord(char) > 0x9F for char in page)


def test_samples_without_a_result_are_not_shown(run):
    scores = json.loads((run / "scores.json").read_text())
    del scores["models"]["trained"]["mmstar_step_by_step"]
    both = protocols(scores, run)
    assert [row["model"] for row in both["models"]] == ["base"]
    assert both["gains"] == []


def test_a_task_whose_rows_have_no_score_is_no_end_of_the_page(run):
    path = run / "trained" / "samples_mmstar.jsonl"
    rows = [{**json.loads(line), "scores": {}} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = json.loads((run / "scores.json").read_text())
    assert [row["model"] for row in protocols(scores, run)["models"]] == ["base"]


def test_a_long_text_is_cut_and_says_so(tmp_path):
    models = {
        name: {"mmstar": write_task(tmp_path, name, "mmstar", [score], response="x" * (MAX_TEXT + 1234))}
        for name, score in (("base", 0.0), ("trained", 1.0))
    }
    write_scores(tmp_path, models)
    assert "(1,234 more characters)" in pages(tmp_path)[0]


def test_pictures_lie_beside_the_page_and_in_it(run):
    pytest.importorskip("matplotlib")
    pytest.importorskip("evaluate")
    html, page = pages(run)
    # Step by step there is one benchmark, which makes no radar.
    assert {file.name for file in run.glob("*.svg")} == {"radar_direct.svg", "differences.svg"}
    assert html.count("data:image/svg+xml;base64,") == 2
    assert "(radar_direct.svg)" in page


def test_the_same_files_give_the_same_bytes(run):
    first = [*pages(run), *(file.read_bytes() for file in sorted(run.glob("*.svg")))]
    assert first == [*pages(run), *(file.read_bytes() for file in sorted(run.glob("*.svg")))]


def test_without_matplotlib_the_page_says_what_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    html, page = pages(run)
    assert "come with the extra eval" in html
    assert "come with the extra eval" in page
    assert not list(run.glob("*.svg"))


def test_scores_of_the_first_version_are_still_read(tmp_path):
    # Tasks by their old names, many metrics, no protocol, no health of ours, no comparison with lengths or Holm.
    entry = {"task": "digits_reasoning_direct", "metric": "accuracy", "before_score": 0.1, "after_score": 0.2}
    entry |= {
        "before": "base",
        "after": "sicog",
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
        "fixed": 3,
        "broken": 1,
    }
    task = {"digits_reasoning_direct": {"accuracy": 0.1, "empty": 0.0, "n": 4}, "digits_older": {"chair": 0.5, "n": 4}}
    models = {"base": task, "sicog": task}
    (tmp_path / "scores.json").write_text(
        json.dumps({"models": models, "comparisons": [{**entry, "n": 4, "p": 0.04}]})
    )
    _, page = pages(tmp_path)
    assert cells(page, "Digits, reasoning | direct")[2:] == ["accuracy", "4", "1", "0.100", "0.100"]
    assert cells(page, "digits_older")[2:] == ["chair", "4", "–", "0.500", "0.500"]
    row = cells(page, "Digits, reasoning | accuracy")
    assert (row[6], row[9], row[10]) == ("+10.0 [+5.0, +15.0] ▲", "–", "–")


def test_a_filter_in_the_name_of_a_headline_is_found(tmp_path):
    scores = {"models": {"base": {"ai2d": {"exact_match": 0.5, "other": 0.1, "n": 2}}}}
    assert [row["metric"] for row in results(scores)] == ["exact_match"]


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scores\.json is missing; run recipes/evaluate\.py"):
        write_evaluation_report(tmp_path)
