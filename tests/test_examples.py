"""Rows that training fixed or broke: which are shown, and how their images are found again."""

import base64
import io
import json
import subprocess
from pathlib import Path

import pytest
from benchmark_rows import write_rows
from datasets import Dataset
from PIL import Image

from sicog_trl.data import IMAGES_FEATURES, save
from sicog_trl.evaluation.benchmarks import select_tasks
from sicog_trl.evaluation.examples import MAX_IMAGES, MAX_SIDE, find_examples, find_images, pictures
from sicog_trl.evaluation.task_files import write_task_files


def size(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))).size


def write_samples(folder, task, scores):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"doc_id": i, "id": f"row-{i}", "hash": str(i), "input": f"Question {i}?", "target": "three"}
        | {"response": f"steps, then {score}", "answer": str(score), "scores": {"accuracy": score}}
        for i, score in enumerate(scores)
    ]
    (folder / f"samples_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def digits_run(tmp_path):
    """A run on eight rows of our own: four fixed, one broken, one that could not be scored."""
    pictures = [Image.new("RGB", (40 + i, 30), "red") for i in range(8)]
    rows = [
        {"id": f"row-{i}", "images": [image], "question": "Which?", "answer": "three"}
        for i, image in enumerate(pictures)
    ]
    save(Dataset.from_list(rows, features=IMAGES_FEATURES), tmp_path / "rows", "vqa")
    write_task_files(tmp_path / "run" / "tasks", str(tmp_path / "rows"), select_tasks("digits", ["digits_vqa"]))
    write_samples(tmp_path / "run" / "base", "digits_vqa", [0, 0, 0, 0, 1, 1, None, 0])
    write_samples(tmp_path / "run" / "trained", "digits_vqa", [1, 1, 1, 1, 0, 1, 1, 0])
    return tmp_path / "run"


COMPARISON = {
    **{"before": "base", "after": "trained", "task": "digits_vqa", "metric": "accuracy", "difference": 0.3},
}


def test_fixed_and_broken_rows_with_their_own_images(digits_run):
    rows = find_examples(digits_run, [COMPARISON, {**COMPARISON, "metric": "precision"}])
    assert [(row["side"], row["doc_id"]) for row in rows] == [("fixed", 1), ("fixed", 3), ("broken", 4)]
    assert rows[0]["answers"] == ["0", "1"]
    assert rows[0]["responses"] == ["steps, then 0", "steps, then 1"]
    assert [size(row["images"][0]) for row in rows] == [(41, 30), (43, 30), (44, 30)]
    assert {row["note"] for row in rows} == {None}


def test_images_that_only_lmms_eval_can_find(digits_run, tmp_path):
    pytest.importorskip("lmms_eval")
    questions = write_rows(tmp_path / "benchmarks", ["mmstar"])["mmstar"]
    tasks = select_tasks("judge_free", ["mmstar"], ["direct"])
    write_task_files(digits_run / "tasks", str(tmp_path / "benchmarks"), tasks)
    gone = f"dataset_path: parquet\ndataset_kwargs: {{data_files: {{test: {tmp_path}/gone.parquet}}}}\n"
    (digits_run / "tasks" / "broken.yaml").write_text(f"task: broken\n{gone}")
    rows = {"broken": {0: None}, "mmstar": {0: "0", len(questions) + 7: None}, "digits_vqa": {0: "row-9"}}
    found = find_images(digits_run, rows)
    assert found["broken", 0]["images"] == []
    # Another row at the same place is no image of the one that was asked.
    assert found["digits_vqa", 0]["images"] == []
    assert "not those that were asked" in found["digits_vqa", 0]["note"]
    assert found["mmstar", 0] == {"images": found["mmstar", 0]["images"], "note": None}
    assert size(found["mmstar", 0]["images"][0]) == questions[0].row["image"].size
    assert "IndexError" in found["mmstar", len(questions) + 7]["note"]


def test_images_are_small_and_what_is_left_out_is_said():
    big = Image.effect_noise((900, 600), 80)
    found = pictures([big] * (MAX_IMAGES + 2))
    assert [size(uri) for uri in found["images"]] == [(MAX_SIDE, MAX_SIDE * 2 // 3)] * MAX_IMAGES
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in found["images"])
    assert found["note"] == "2 more images"
    assert pictures([{"bytes": b"no image", "path": None}])["note"].startswith("an image cannot be read")
    assert pictures([]) == {"images": [], "note": "the row has no image"}


def test_what_was_found_before_the_time_was_up_is_kept(tmp_path, monkeypatch):
    def run(command, **options):
        found = [["mmstar", 0, {"images": ["data:"], "note": None}]]
        Path(command[-1]).write_text(json.dumps(found))
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    found = find_images(tmp_path, {"mmstar": {0: None}, "docvqa": {3: None}})
    assert found["mmstar", 0]["images"] == ["data:"]
    assert "did not find the rows within" in found["docvqa", 3]["note"]
