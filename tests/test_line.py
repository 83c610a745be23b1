"""The whole line for real: every recipe launched by accelerate, scored by lmms-eval, reported; killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml


pytest.importorskip("lmms_eval")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The YAML of the quickstart on a handful of scenes, for two steps."""
    folder = tmp_path_factory.mktemp("line")
    config = yaml.safe_load((ROOT / "recipes/digits/self_improve.yaml").read_text())
    scenes = {"annotated": 4, "unlabelled": 8, "development": 1, "test": 4, "tower_steps": 0}
    config["prepare"] = {"world": {**config["prepare"]["world"], **scenes}}
    config |= {"output_dir": str(folder / "run"), "base_model": "$run/world/model", "rounds": 1, "keep": [0.5]}
    for stage in ("cognition", "pretrain"):
        config[stage] |= {"max_steps": 2, "per_device_train_batch_size": 2, "global_batch_size": 4}
        config[stage] |= {"logging_steps": 1, "save_steps": 1}
    config["instruct"] = {}
    config["generate"] |= {"max_completion_length": 96, "rows_per_shard": 4}  # room to stop now and then
    # An untrained model agrees with itself on nothing and finishes no chain: what it writes must come through anyway.
    config["curate"] |= {"min_consistency": 0.0, "strategy": "oracle"}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """The paper's way on a handful of scenes: two models, preferences, two rounds that accumulate, fresh starts."""
    folder = tmp_path_factory.mktemp("paper")
    config = yaml.safe_load((ROOT / "recipes/digits/paper.yaml").read_text())
    scenes = {"annotated": 40, "unlabelled": 16, "development": 1, "test": 4, "tower_steps": 100}
    config["prepare"]["world"] |= scenes
    for stage in (config["prepare"]["base"], config["perception"], config["reasoning"]):
        stage |= {"max_steps": 60, "logging_steps": 20}  # after these it ends its short texts
    for stage in ("preference", "pretrain"):
        config[stage] |= {"max_steps": 2, "logging_steps": 1}
    # It cannot yet finish a chain.
    config["damage"] |= {"description_modes": {"detailed_description": 2}, "reasoning_modes": {"direct_answer": 2}}
    config["curate"] |= {"min_consistency": 0.0}
    config |= {"output_dir": str(folder / "run"), "instruct": {}, "controls": []}
    (folder / "paper.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "paper.yaml"


def start(config: Path) -> subprocess.Popen:
    command = [sys.executable, "recipes/self_improve.py", "--config", str(config)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.timeout(900)  # two minutes on two quiet cores, and many processes that a busy machine starts slowly
def test_the_line_from_world_to_report_killed_once_and_resumed(small):
    run = small.parent / "run"
    killed = start(small)
    deadline = time.monotonic() + 300
    while not (run / "sicog/round-1/generate/plan.json").exists() and time.monotonic() < deadline:
        assert killed.poll() is None, killed.communicate()[0][-3000:]
        time.sleep(0.2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    trained = (run / "stage1/model.safetensors").stat().st_mtime_ns

    resumed = start(small)
    output, _ = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, output[-3000:]
    assert "stage1: done before" in output
    assert (run / "stage1/model.safetensors").stat().st_mtime_ns == trained

    stages = {stage["name"]: stage for stage in json.loads((run / "stages.json").read_text())}
    assert {stage["status"] for stage in stages.values()} == {"done"}
    counts = stages["sicog/round-1/curate"]["counts"]
    assert counts["rows_in"] == 12 == counts["kept"] + sum(counts["dropped"].values())
    kept = pq.read_table(run / "sicog/round-1/curate/data/curated-00000-of-00001.parquet", columns=["id"])["id"]
    dropped = pq.read_table(run / "sicog/round-1/curate/data/dropped-00000-of-00001.parquet", columns=["id"])["id"]
    assert len({*kept.to_pylist(), *dropped.to_pylist()}) == 12

    scores = json.loads((run / "evaluate/scores.json").read_text())
    assert list(scores["models"]) == ["base", "stage1", "sicog", "annotated_only"]
    assert all(task["n"] == 4 for model in scores["models"].values() for task in model.values())
    page = (run / "report.html").read_text()
    assert "annotated_only" in page and (run / "report.md").exists()
    assert f"report: {run / 'report.html'}" in output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_line_as_in_the_paper(paper):
    """Stage 1 apart and by preferences, candidates that grow from 3 to 6, every pre-training from the same model."""
    finished = start(paper)
    output, _ = finished.communicate(timeout=850)
    assert finished.returncode == 0, output[-3000:]
    run = paper.parent / "run"
    stages = {stage["name"]: stage for stage in json.loads((run / "stages.json").read_text())}
    assert {stage["status"] for stage in stages.values()} == {"done"}
    for part in ("perception", "reasoning"):
        pairs = stages[f"{part}-pair"]["counts"]
        assert pairs["pairs"] > 0 and pairs["rows_in"] == pairs["paired"] + sum(pairs["dropped"].values())
        assert (
            stages[f"{part}-preference"]["counts"]["first_loss"] > 0.69
        )  # ln 2 and the cross-entropy of the chosen side
    for number in (1, 2):
        for task, count in (("description", 16), ("reasoning", 8)):
            asked = stages[f"sicog/round-{number}/generate-{task}"]["counts"]
            assert asked["rows"] == count and asked["candidates"] == 3 * number * count
        assert stages[f"sicog/round-{number}/curate"]["counts"]["rows_in"] == 24
        started = (run / f"sicog/round-{number}/pretrain/config.yaml").read_text()
        assert yaml.safe_load(started)["model_name_or_path"] == str(run / "base")
    assert list(json.loads((run / "evaluate/scores.json").read_text())["models"]) == [
        "base",
        "perception",
        "perception-preference",
        "reasoning",
        "reasoning-preference",
        "sicog",
    ]
