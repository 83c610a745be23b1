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
        config[stage] |= {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        config[stage] |= {"logging_steps": 1, "save_steps": 1}
    config["instruct"] = {}
    config["generate"] |= {"max_completion_length": 96, "rows_per_shard": 4}  # room to stop now and then
    # An untrained model agrees with itself on nothing and finishes no chain: what it writes must come through anyway.
    config["curate"] |= {"min_consistency": 0.0, "strategy": "oracle"}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return folder / "small.yaml"


def start(config: Path) -> subprocess.Popen:
    command = [sys.executable, "recipes/self_improve.py", "--config", str(config)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


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
