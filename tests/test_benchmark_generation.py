"""The benchmark of generation: each ratio is one of two things that were measured in the same run, and says so."""

import importlib.util
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from sicog_trl.generation import Response


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LENGTH = 3
SIZES = {
    "5m": {"rows": 2, "released_rows": 1, "batch_size": 4, "completion_length": LENGTH, "repeats": 2},
    "commit": {"rows": 4, "repeats": 2},
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as it is for a script
    spec = importlib.util.spec_from_file_location("benchmark_of_generation", BENCHMARKS / "generation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def here() -> ThreadPoolExecutor:
    """A place for a side without a process of its own: loading torch again takes longer than all of this."""
    return ThreadPoolExecutor(1)


def test_ratios_are_those_of_what_was_measured(benchmark, tmp_path, capsys):
    result = benchmark.main(SIZES, tmp_path, executor=here)
    assert json.loads((tmp_path / "generation.json").read_text()) == json.loads(json.dumps(result))
    row = result["rows"]["5m"]
    assert 4.5e6 < row["parameters"] < 5.5e6
    rate = {}
    for name, candidates in (("released", 3), ("embedded", 6), ("limit", 6)):
        turns = row["sides"][name]["turns"]
        assert [(one["candidates"], one["tokens"]) for one in turns] == [(candidates, candidates * LENGTH)] * 2
        rate[name] = candidates / median(one["seconds"] for one in turns)
        assert row["sides"][name]["peak_memory_mb"] > 0
    assert result["ratio_to_released_5m"] == pytest.approx(rate["embedded"] / rate["released"])
    assert result["fraction_of_limit_5m"] == pytest.approx(rate["embedded"] / rate["limit"])
    assert result["versions"] and result["hardware"] and result["threads"]
    shown = capsys.readouterr().out
    assert re.search(r"\| 5m +\| server +\| +not measured", shown) and re.search(r"\| 7b +\| not measured", shown)
    assert "ratio_to_released_256m" in result and result["ratio_to_released_256m"] is None
    assert shown.strip() in (tmp_path / "generation.md").read_text()


def test_publishing_is_a_share_of_the_time_of_a_shard(benchmark, tmp_path):
    turns = [{"seconds": 2.0}, {"seconds": 4.0}, {"seconds": 3.0}]
    measured = {"sides": {"embedded": {"turns": turns}}}
    found = benchmark.commit_overhead(tmp_path, {"rows": 4, "repeats": 3}, SIZES["5m"], measured)
    assert found["seconds_per_row"] == pytest.approx(3.0 / 2)
    for one in (found["small pictures"], found["pictures of 100 KB"]):
        seconds = median(one["seconds"])
        assert len(one["seconds"]) == 3
        assert one["overhead"] == pytest.approx(seconds / (seconds + 4 * 1.5))
    assert 100_000 < found["pictures of 100 KB"]["bytes_per_row"] < 120_000


def test_a_server_is_a_side_of_the_shape_that_it_serves(benchmark, tmp_path, monkeypatch):
    """The same requests, and its own rate over that of the released way."""
    asked = []

    class Sampler:
        def __init__(self, model: str, base_url: str, **sampling: float):
            asked.append((model, base_url, sampling["max_completion_length"]))

        def sample(self, requests):
            for number, request in enumerate(requests):
                yield number, [Response("word", "length", LENGTH)] * len(request.seeds)

    monkeypatch.setattr("sicog_trl.generation.openai_sampler.OpenAISampler", Sampler)
    monkeypatch.setattr(benchmark, "model_names", lambda url: ["folder/5m"])
    row = benchmark.main(SIZES, None, base_urls=["http://somewhere/v1"], executor=here)["rows"]["5m"]
    assert asked[-1] == ("folder/5m", "http://somewhere/v1", LENGTH)
    sides = row["sides"]
    assert sides["server"]["turns"][0]["tokens"] == 6 * LENGTH
    expected = sides["server"]["candidates_per_second"] / sides["released"]["candidates_per_second"]
    assert row["ratio_to_released"]["server"] == pytest.approx(expected)
    monkeypatch.setattr(benchmark, "model_names", lambda url: ["llama"])
    with pytest.raises(SystemExit, match=r"serves \['llama'\]"):
        benchmark.main(SIZES, None, base_urls=["http://somewhere/v1"], executor=here)


def test_the_models_cannot_end_an_answer(benchmark, tmp_path):
    """Or the sides would be compared over candidates of different lengths."""
    benchmark.build_model(benchmark.SHAPES["5m"], tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer.eos_token_id >= model.get_output_embeddings().out_features
    assert model.generation_config.eos_token_id is None
