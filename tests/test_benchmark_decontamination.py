"""The benchmark of decontamination: what it measures is what it says."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_size_is_measured_and_what_was_planted_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as it is for a script
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # put back what the benchmark changes
    spec = importlib.util.spec_from_file_location("benchmark_of_decontamination", BENCHMARKS / "decontamination.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size = {"rows": [100, 200], "benchmark": 5, "photos": 1}
    result = module.main(size, tmp_path, executor=lambda: ThreadPoolExecutor(1))
    assert json.loads((tmp_path / "decontamination.json").read_text()) == json.loads(json.dumps(result))
    for rows, one in result["sizes_measured"].items():
        planted = int(rows) // 100
        assert one["dropped"] == {"contaminated": planted, "duplicate": planted}
        assert one["rows_in"] == int(rows) == one["kept"] + 2 * planted
        assert one["rows_per_second"] == result["rows_per_second"][rows] > 0
    assert result["seconds_per_photo"] > 0 and result["versions"] and result["hardware"]
    assert capsys.readouterr().out.strip() in (tmp_path / "decontamination.md").read_text()
