"""The benchmark of decontamination: what it measures is what it says."""

import importlib.util
import json
from pathlib import Path

import pytest


KINDS = ("saved again", "scaled", "cropped", "quoted", "two words changed", "repeated")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EARLIER = {
    **{"processes": 1, "load_before": 0.5, "commit": "0123456", "rows_per_second": 1.0, "seconds": 7.0},
    **{"peak_gib": 1.0, "peak_gib_own": 0.5, "killed": 0, "planted": dict.fromkeys(KINDS, 0)},
    **{"found": dict.fromkeys(KINDS, 0), "false_alarms": {}},
}


def test_what_was_planted_is_found_and_a_killed_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as it is for a script
    spec = importlib.util.spec_from_file_location("benchmark_of_decontamination", BENCHMARKS / "decontamination.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size = {"rows": [3000], "asked": 50, "processes": 1, "kill_from": 3000, "photos": 1}
    (tmp_path / "decontamination.json").write_text(json.dumps({"sizes_measured": {"7": EARLIER}}))
    result = module.main(size, tmp_path, tmp_path)
    assert json.loads((tmp_path / "decontamination.json").read_text()) == json.loads(json.dumps(result))
    assert list(result["sizes_measured"]) == ["7", "3000"] and result["sizes_measured"]["7"] == EARLIER
    one = result["sizes_measured"]["3000"]
    assert set(one["planted"].values()) == {30} and one["found"].keys() == one["planted"].keys()
    assert min(one["found"].values()) >= 28 and not one["false_alarms"]
    assert one["rows_in"] == 3000 == one["kept"] + sum(one["found"].values())
    assert one["killed"] == 1 and 1 <= one["parts_before_kill"] < 3 and one["parts_done_again"] == 0
    assert one["rows_per_second"] > 0 and 0 < one["peak_gib_own"] <= one["peak_gib"]
    assert result["seconds_per_photo"] > 0 and result["versions"] and result["hardware"]
    assert capsys.readouterr().out.strip() in (tmp_path / "decontamination.md").read_text()
