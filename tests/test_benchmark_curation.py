"""The benchmark of curation: what it curates is what it says, and its figures are those of the largest size."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sicog_trl.data import CANDIDATES_FEATURES, load
from sicog_trl.responses import chain_fault, final_part


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SIZE = {"rows": [40, 80], "texts": {"word_ngram": 20, "char_ngram": 20}}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as it is for a script
    monkeypatch.setenv("HF_DATASETS_CACHE", "")  # put back what the benchmark changes
    spec = importlib.util.spec_from_file_location("benchmark_of_curation", BENCHMARKS / "curation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "given_vectors", small_vectors)
    return module


def small_vectors(path: Path) -> None:
    """Vectors of the first rows: the whole table takes longer to draw than all of this."""
    from _curation import given_vectors

    given_vectors(path, groups=128)


def here() -> ThreadPoolExecutor:
    """A place without a process of its own: loading torch again takes longer than all of this."""
    return ThreadPoolExecutor(1)


def test_every_size_is_measured_and_named(benchmark, tmp_path, capsys):
    result = benchmark.main(SIZE, tmp_path, executor=here)
    assert json.loads((tmp_path / "curation.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["seconds_per_size"]) == {"40", "80"}
    for rows, one in result["sizes_measured"].items():
        assert one["seconds"] == result["seconds_per_size"][rows] > 0
        assert one["rows_in"] == int(rows) == one["kept"] + sum(one["dropped"].values())
        assert one["peak_gib"] > 0.1
    assert result["seconds_213k"] is None and result["peak_gib_213k"] is None  # not measured here
    assert all(seconds > 0 for seconds in result["seconds_to_embed_1000_texts"].values())
    assert result["versions"] and result["hardware"]
    shown = capsys.readouterr().out
    assert shown.strip() in (tmp_path / "curation.md").read_text()


def test_the_headline_is_the_size_of_the_paper(benchmark, monkeypatch):
    measured = {"213000": {"seconds": 41.5, "cpu_seconds": 40.0, "peak_gib": 0.9}}
    monkeypatch.setattr(benchmark, "selection", lambda *_: measured)
    result = benchmark.main({"rows": [213_000], "texts": {}}, None)
    assert (result["seconds_213k"], result["peak_gib_213k"]) == (41.5, 0.9)
    assert benchmark.FULL["rows"][-1] == 213_000 and len(benchmark.FULL["rows"]) == 3


def test_rows_are_like_those_of_the_paper(benchmark, tmp_path):
    benchmark.write_candidates(tmp_path, 200)
    rows = load(str(tmp_path), split="candidates")
    assert rows.features == CANDIDATES_FEATURES
    tasks = rows["task"][:]
    assert tasks.count("reasoning") == tasks.count("description") == 100
    captions, faults = [], 0
    for row in rows.remove_columns("images"):
        modes = [candidate["mode"] for candidate in row["candidates"]]
        assert len(modes) == 3 and len(set(modes)) == 2
        for candidate in row["candidates"]:
            fault = chain_fault(candidate["text"], candidate["mode"])
            faults += fault is not None
            if row["task"] == "description" and not fault:
                captions.append(len(final_part(candidate["text"], candidate["mode"]).split()))
    assert min(captions) >= 55 and max(captions) <= 110
    assert 0 < faults < 30


def test_given_vectors_of_a_row_are_near_to_each_other(benchmark, tmp_path):
    small_vectors(tmp_path / "vectors.npy")
    embed = benchmark.lookup(tmp_path / "vectors.npy")
    from _curation import code

    vectors = embed([f"A caption that ends in {code(3 * row + c)}." for row in (0, 70) for c in range(3)] + ["cat"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors[:3] @ vectors[:3].T).min() > 0.5 > abs(vectors[:3] @ vectors[3:6].T).max()
