"""Candidates: the same bytes however they are made, nothing lost, nothing made twice."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from generating import LENGTH, RECIPE, ROOT, EchoSampler, arguments, command, shards
from peft import LoraConfig, get_peft_model
from PIL import Image as PILImage
from PIL import ImageFile
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from trl import TrlParser

from sicog_trl.checkpoints import prepare_for_generation
from sicog_trl.data import IMAGES_FEATURES, load, save, split_file
from sicog_trl.files import AnotherRunError
from sicog_trl.generation import (
    CandidateConfig,
    Request,
    Response,
    TransformersSampler,
    generate_candidates,
    sampling,
    summarize,
)
from sicog_trl.generation.sampling import SeededSampling, candidate_seed, uniform
from sicog_trl.views import light_view


def scenes(*rows: dict) -> Dataset:
    empty = {"images": [], "question": None, "answer": None}
    return Dataset.from_list([{**empty, **row} for row in rows], features=IMAGES_FEATURES)


def png(colour: str = "red", size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def texts(folder: Path) -> dict[str, list[str]]:
    rows = load(str(folder), split="candidates").select_columns(["id", "candidates"])
    return {row["id"]: [candidate["text"] for candidate in row["candidates"]] for row in rows}


def config(**options) -> CandidateConfig:
    return CandidateConfig(**{"max_completion_length": LENGTH, "rows_per_shard": 5, **options})


# The same bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [False, True])
def test_law_3_bytes_do_not_depend_on_the_batch_size(views, world, digits_model, tmp_path):
    """Law 3: the text of a candidate belongs to its row and seed, not to the batch it was sampled in."""
    written = []
    for batch_size in (1, 4, 16):
        sampler = TransformersSampler(str(digits_model), batch_size=batch_size, max_completion_length=LENGTH)
        generate_candidates(load(world), sampler, config(views=views), tmp_path / str(batch_size), "m")
        written.append(shards(tmp_path / str(batch_size)))
    assert len(written[0]) == 4
    assert written[0] == written[1] == written[2]
    candidates = [text for row in texts(tmp_path / "1").values() for text in row]
    assert len(set(candidates)) > 0.9 * len(candidates)  # seeds do differ


def test_views_change_what_the_model_sees(world, sampler, tmp_path):
    for views in (False, True):
        generate_candidates(load(world), sampler, config(views=views), tmp_path / str(views), "m")
    assert texts(tmp_path / "False") != texts(tmp_path / "True")


def test_shard_size_and_workers_do_not_change_the_rows(world, sampler, tmp_path):
    generate_candidates(load(world), sampler, config(rows_per_shard=100), tmp_path / "one", "m")
    for worker in (2, 0, 1):
        generate_candidates(load(world), sampler, config(rows_per_shard=4), tmp_path / "many", "m", worker, 3)
    rows = [load(str(tmp_path / name), split="candidates").with_format("arrow")[:] for name in ("one", "many")]
    assert rows[0].to_pylist() == rows[1].to_pylist()


def launch(name: str, *options: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    program += ["--config_file", str(ROOT / "accelerate_configs" / f"{name}.yaml"), str(RECIPE), *options]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(program, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_law_3_bytes_do_not_depend_on_the_number_of_processes(world, digits_model, tmp_path):
    """Law 3: one process and two, started by `accelerate launch`, write the same shards."""
    for name in ("cpu", "multi_cpu"):
        done = launch(name, *arguments(digits_model, world, tmp_path / name, batch_size=8 if name == "cpu" else 3))
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(shards(tmp_path / "cpu")) == 9
    assert shards(tmp_path / "cpu") == shards(tmp_path / "multi_cpu")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("cpu", "multi_cpu")]
    assert [summary.pop("sampler")["batch_size"] for summary in summaries] == [8, 3]
    assert summaries[0] == summaries[1]
    assert (summaries[0]["rows"], summaries[0]["candidates"], summaries[0]["failed"]) == (18, 54, 0)


def test_law_4_killed_and_started_again(world, digits_model, sampler, tmp_path):
    """Law 4: after `kill -9` a re-run repeats no published shard and ends with the bytes of an uninterrupted run."""
    options = {"rows_per_shard": 1, "max_completion_length": 40, "batch_size": 1}
    recipe = command(digits_model, world, tmp_path / "killed", **options)
    process = subprocess.Popen(recipe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while len(shards(tmp_path / "killed")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    published = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "data").glob("candidates-*")}
    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(published) < 18

    echo = TransformersSampler(str(digits_model), batch_size=16, max_completion_length=40)
    sampled = []
    real = echo.sample
    echo.sample = lambda requests: real(sampled.append(request) or request for request in requests)
    plan = json.loads((tmp_path / "killed" / "plan.json").read_text())
    settings = config(rows_per_shard=1, max_completion_length=40)
    generate_candidates(load(world), echo, settings, tmp_path / "killed", plan["model"], dtype=plan["dtype"])
    assert len(sampled) == 2 * (18 - len(published))  # two modes per row that was missing, and no other
    assert {path: path.stat().st_mtime_ns for path in published} == published
    assert not list((tmp_path / "killed" / "data").glob(".*"))

    del echo.sample
    generate_candidates(load(world), echo, settings, tmp_path / "whole", plan["model"])
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")


# The plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"temperature": 0.5}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"views": True}, "views"),
        ({"max_completion_length": 5}, "max_completion_length"),
        ({"rows_per_shard": 4}, "rows_per_shard"),
        ({"corruptions": ["gaussian_blur"]}, "corruptions"),
        ({"max_pixels": 99}, "max_pixels"),
        ({"logprobs": True}, "logprobs"),
        ({"task": "reasoning"}, "task"),
        ({"description_modes": {"short_caption": 1}}, "description_modes"),
        ({"description_modes": {"chain_of_description": 1, "detailed_description": 1}}, "description_modes"),  # fewer
        ({"reasoning_modes": {"direct_answer": 1, "chain_of_thought": 2}}, "reasoning_modes"),  # another order
    ],
)
def test_another_run_in_the_folder_is_refused(change, key, world, tmp_path):
    generate_candidates(load(world), EchoSampler(), config(), tmp_path, "m")
    before = shards(tmp_path)
    with pytest.raises(AnotherRunError, match=rf"holds another run: {key} is "):
        generate_candidates(load(world), EchoSampler(), config(**change), tmp_path, "m")
    assert shards(tmp_path) == before


def test_other_input_or_model_is_refused(world, tmp_path):
    dataset = load(world)
    generate_candidates(dataset, EchoSampler(), config(), tmp_path, "m")
    with pytest.raises(AnotherRunError, match="model is 'm' there and 'n' here"):
        generate_candidates(dataset, EchoSampler(), config(), tmp_path, "n")
    with pytest.raises(AnotherRunError, match="its input is not that of this one"):
        generate_candidates(dataset.select(range(17, -1, -1)), EchoSampler(), config(), tmp_path, "m")
    with pytest.raises(AnotherRunError, match=r"dtype is None there and 'torch\.bfloat16'"):
        generate_candidates(dataset, EchoSampler(), config(), tmp_path, "m", dtype="torch.bfloat16")


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Which?"},
        {"answer": "three"},
        {"images": [{"bytes": png("blue"), "path": "a.png"}]},
        {"images": [{"bytes": None, "path": "b.png"}]},
        {"images": []},
    ],
)
def test_changed_rows_are_refused(change, tmp_path):
    row = {"id": "a", "images": [{"bytes": png(), "path": "a.png"}]}
    generate_candidates(scenes(row), EchoSampler(), config(), tmp_path, "m")
    generate_candidates(scenes(row), EchoSampler(), config(), tmp_path, "m")
    with pytest.raises(AnotherRunError, match="its input is not that of this one"):
        generate_candidates(scenes({**row, **change}), EchoSampler(), config(), tmp_path, "m")


def test_finished_run_is_not_made_again(world, tmp_path):
    generate_candidates(load(world), EchoSampler(), config(), tmp_path, "m")
    again = EchoSampler()
    generate_candidates(load(world), again, config(), tmp_path, "m")
    assert again.requests == []


# Random numbers ------------------------------------------------------------------------------------------------------


def test_uniform_is_uniform_and_belongs_to_the_seed():
    seeds = np.arange(2000, dtype=np.uint64) + np.uint64(candidate_seed(0, "row", "prompt", 0))
    draws = np.stack([uniform(seeds, step) for step in range(50)])
    assert draws.min() >= 0 and draws.max() < 1
    counts, _ = np.histogram(draws, bins=50, range=(0, 1))
    chi2 = ((counts - draws.size / 50) ** 2 / (draws.size / 50)).sum()
    assert chi2 < 49 + 5 * np.sqrt(2 * 49)
    assert len(np.unique(draws)) == draws.size
    limit = 5 / np.sqrt(draws.size)
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < limit  # neighbouring seeds
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < limit  # neighbouring steps
    assert abs(np.corrcoef(draws[:-1, 1:].ravel(), draws[1:, :-1].ravel())[0, 1]) < limit  # diagonal
    alone = np.concatenate([uniform(seeds[i : i + 1], 7) for i in range(100)])
    assert (alone == draws[7, :100]).all()  # whatever else is in the batch


def test_sampled_frequencies_are_the_models_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    count = 20_000
    draw = SeededSampling(range(count), prompt_length=1, temperature=0.7, top_p=1.0)
    tokens = draw(torch.zeros(count, 1, dtype=torch.long), logits.expand(count, -1)).argmax(-1)
    expected = (logits / 0.7).softmax(-1)
    observed = torch.bincount(tokens, minlength=5) / count
    assert torch.allclose(observed.double(), expected.double(), atol=0.015)
    nucleus = SeededSampling(range(count), prompt_length=1, temperature=0.7, top_p=0.8)
    tokens = nucleus(torch.zeros(count, 1, dtype=torch.long), logits.expand(count, -1)).argmax(-1)
    assert set(tokens.tolist()) == {0, 1}  # 0.76 are too few, 0.94 enough
    share = (expected[0] / expected[:2].sum()).item()
    assert (tokens == 0).double().mean().item() == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 10.0])
def test_the_nucleus_is_the_same_however_it_is_found(sharpness, monkeypatch):
    """Flat distributions take the way of the whole vocabulary, sharp ones the short one, rows of a batch either."""
    logits = torch.randn(64, 3000, generator=torch.Generator().manual_seed(0)) * sharpness
    logits[::2] *= 0.1
    seeds, ids = range(64), torch.zeros(64, 1, dtype=torch.long)
    drawn = [SeededSampling(seeds, 1, 0.7, 0.9)(ids, logits).argmax(-1)]
    monkeypatch.setattr(sampling, "_FEW", 3000)
    drawn.append(SeededSampling(seeds, 1, 0.7, 0.9)(ids, logits).argmax(-1))
    alone = [SeededSampling([i], 1, 0.7, 0.9)(ids[:1], logits[i : i + 1]).argmax(-1) for i in range(64)]
    assert drawn[0].tolist() == drawn[1].tolist() == torch.cat(alone).tolist()
    probabilities, order = (logits.double() / 0.7).softmax(-1).sort(descending=True)
    sizes = 1 + (probabilities.cumsum(-1) < 0.9).sum(-1)
    ranks = (order == drawn[0][:, None]).float().argmax(-1)
    assert (ranks < sizes).all()
    assert sharpness != 3.0 or {bool(size > 64) for size in sizes} == {True, False}


def test_equally_likely_tokens_are_all_kept_or_none():
    """A tie at the border of the nucleus must not depend on how the tokens were sorted."""
    logits = torch.tensor([3.0, *[1.0] * 400, *[-9.0] * 100])
    draw = SeededSampling(range(20_000), prompt_length=1, temperature=1.0, top_p=0.5)
    tokens = draw(torch.zeros(20_000, 1, dtype=torch.long), logits.expand(20_000, -1)).argmax(-1)
    assert set(tokens.tolist()) == set(range(401))


def test_temperature_zero_is_greedy(digits_model):
    images = [PILImage.new("RGB", (32, 32), "blue")]
    sampler = TransformersSampler(str(digits_model), max_completion_length=LENGTH, temperature=0)
    [(_, [one, other])] = sampler.sample([Request(images, "Describe the image in detail.", [1, 99])])
    assert one == other
    inputs = sampler.processor(
        images=images, text=sampler.render(Request(images, "Describe the image in detail.", [1])), return_tensors="pt"
    )
    model = AutoModelForImageTextToText.from_pretrained(digits_model).eval()
    image_token = sampler.processor.image_token_id
    greedy = model.generate(**inputs, do_sample=False, max_new_tokens=LENGTH, suppress_tokens=[image_token])
    tokens = greedy[0, inputs["input_ids"].shape[1] :]
    assert one.text == sampler.processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_more_candidates_extend_a_run(world, sampler, tmp_path):
    few, many = {"chain_of_description": 1}, {"chain_of_description": 4}
    for name, modes in (("few", few), ("many", many)):
        generate_candidates(load(world), sampler, config(description_modes=modes), tmp_path / name, "m")
    seeds = [candidate_seed(0, "a", "p", index) for index in range(4)]
    assert seeds == list(range(seeds[0], seeds[0] + 4))
    described = [row["id"] for row in load(world).select_columns(["id", "question"]) if not row["question"]]
    few, many = texts(tmp_path / "few"), texts(tmp_path / "many")
    assert all(many[row][:1] == few[row] for row in described)


# What the model is asked ---------------------------------------------------------------------------------------------


def test_rows_are_asked_in_the_modes_of_their_task(world, tmp_path):
    echo = EchoSampler()
    generate_candidates(load(world), echo, config(), tmp_path, "m")
    rows = list(load(str(tmp_path), split="candidates").remove_columns("images"))
    assert [row["id"] for row in rows] == load(world)["id"][:]
    for row in rows:
        modes = Counter(candidate["mode"] for candidate in row["candidates"])
        if row["question"]:
            assert (row["task"], modes) == ("reasoning", {"chain_of_thought": 2, "direct_answer": 1})
            assert all(candidate["prompt"].startswith(row["question"]) for candidate in row["candidates"])
        else:
            assert (row["task"], modes) == ("description", {"chain_of_description": 2, "detailed_description": 1})
        for candidate in row["candidates"]:
            assert candidate["text"] == f"{candidate['prompt'][:8]} {candidate['seed']}"


@pytest.mark.parametrize("batch_size", [1, 6, 100])
def test_an_image_is_encoded_once_for_all_modes_and_candidates(batch_size, digits_model, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    modes = {"Describe the image in detail.": [7, 8], "Describe the image in one short sentence.": [9]}
    requests = [
        Request(images, prompt, seeds)
        for images in ([PILImage.fromarray(pixels)] for pixels in noise)
        for prompt, seeds in modes.items()
    ]
    sampler = TransformersSampler(str(digits_model), batch_size=batch_size, max_completion_length=LENGTH)
    tower = next(module for name, module in sampler.model.named_modules() if name.endswith("vision_tower"))
    seen = []
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    answers = dict(sampler.sample(requests))
    assert [len(answers[number]) for number in range(10)] == [2, 1] * 5
    assert sum(seen) == 5
    monkeypatch.setattr(sampler, "_look", lambda inputs, requests: inputs)
    assert dict(sampler.sample(requests)) == answers
    assert sum(seen) == 15


def test_image_token_is_never_sampled(digits_model):
    """A model that would say nothing but image placeholders says something else."""
    sampler = TransformersSampler(str(digits_model), max_completion_length=LENGTH)
    token = sampler.processor.image_token_id

    def favour(module, inputs, output):
        output[..., token] += 1000
        return output

    handle = sampler.model.lm_head.register_forward_hook(favour)
    read = []
    sampler._read, real = lambda tokens: read.append(tokens) or real(tokens), sampler._read
    list(sampler.sample([Request([PILImage.new("RGB", (32, 32))], "Describe the image in detail.", [1, 2, 3])]))
    handle.remove()
    assert read and not any(token in tokens for tokens in read)


def test_law_5_literal_image_token_in_a_question_is_a_row_with_an_error(sampler, tmp_path, capsys):
    """Law 5: the row is kept and says why; the others are asked as if it were not there."""
    image = [{"bytes": png(), "path": None}]
    good, bad = ({"id": name, "images": image, "question": "Which digit?"} for name in ("good", "bad"))
    bad["question"] = "<image>\nWhich digit?"
    plan = generate_candidates(scenes(bad, good), sampler, config(), tmp_path / "mixed", "m")
    generate_candidates(scenes(good), sampler, config(), tmp_path / "clean", "m")
    found = {row["id"]: row for row in pq.read_table(plan.path(0)).to_pylist()}
    assert found["bad"]["error"].startswith("placeholder: the question of row 'bad' holds '<image>'")
    assert found["bad"]["candidates"] == []
    assert texts(tmp_path / "mixed")["good"] == texts(tmp_path / "clean")["good"]
    assert "1 rows lack candidates; the first: placeholder" in capsys.readouterr().err


def test_several_images_and_none(sampler, tmp_path):
    image = {"bytes": png(), "path": None}
    rows = scenes(
        {"id": "none", "question": "Why?"}, {"id": "one", "images": [image]}, {"id": "three", "images": [image] * 3}
    )
    generate_candidates(rows, sampler, config(), tmp_path / "c", "m")
    found = load(str(tmp_path / "c"), split="candidates")
    assert [len(row["images"]) for row in found] == [0, 1, 3]
    assert found["error"][:] == [None] * 3
    assert [len(candidates) for candidates in found["candidates"]] == [3, 3, 3]
    for count in (0, 1, 3):
        images = [PILImage.new("RGB", (32, 32))] * count
        assert sampler.render(Request(images, "x", [0])).count("<image>") == count


def test_finish_reason_and_number_of_tokens(digits_model):
    sampler = TransformersSampler(str(digits_model), max_completion_length=60)
    request = Request([PILImage.new("RGB", (32, 32))], "Describe the image in detail.", list(range(40)))
    [(_, responses)] = sampler.sample([request])
    assert {response.finish_reason for response in responses} == {"stop", "length"}
    for response in responses:
        assert (response.num_tokens == 60) >= (response.finish_reason == "length")
        tokens = sampler.processor.tokenizer(response.text, add_special_tokens=False)["input_ids"]
        if "unk" not in response.text:
            assert len(tokens) <= response.num_tokens


# Log-probabilities ---------------------------------------------------------------------------------------------------


def noise(count: int) -> list[PILImage.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [PILImage.fromarray(one) for one in pixels]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_mean_logprob_is_that_of_the_model_itself(temperature, cached, digits_model, monkeypatch):
    """The same as when the model reads prompt and candidate at once, whatever the batch; and no text changes by it."""
    if not cached:
        monkeypatch.setattr("sicog_trl.generation.transformers_sampler.growing_cache", lambda model: None)
    requests = [
        Request([image], prompt, [3 * number, 3 * number + 1])
        for number, image in enumerate(noise(3))
        for prompt in ("Describe the image in detail.", "Describe the image in one short sentence.")
    ]
    settings = {"max_completion_length": 50, "temperature": temperature, "top_p": 0.9}
    expected = dict(TransformersSampler(str(digits_model), batch_size=16, **settings).sample(requests))
    for batch_size in (1, 4, 16):
        sampler = TransformersSampler(str(digits_model), batch_size=batch_size, logprobs=True, **settings)
        read = remember_tokens(sampler)
        answers = dict(sampler.sample(requests))
        for number, request in enumerate(requests):
            for answer, plain in zip(answers[number], expected[number], strict=True):
                assert plain == replace(answer, mean_logprob=None)
                tokens = read[plain][: answer.num_tokens]
                assert answer.mean_logprob == pytest.approx(teacher_forced(sampler, request, tokens), abs=1e-4)
    reasons = {answer.finish_reason for row in expected.values() for answer in row}
    assert temperature == 0 or reasons == {"stop", "length"}  # with and without an end token, padded and not


def remember_tokens(sampler: TransformersSampler) -> dict[Response, list[int]]:
    """Return a dict that gets the tokens of every response."""
    found, real = {}, sampler._read

    def read(tokens: list[int]) -> Response:
        response = real(tokens)
        found[response] = tokens
        return response

    sampler._read = read
    return found


def teacher_forced(sampler: TransformersSampler, request: Request, tokens: list[int]) -> float:
    inputs = sampler.processor(images=request.images, text=sampler.render(request), return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        logits = sampler.model(**inputs).logits[0, length - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).mean().item()


def test_law_3_logprobs_stand_in_the_shards_whatever_the_batch_size(world, digits_model, tmp_path):
    written = []
    for batch_size in (1, 16):
        sampler = TransformersSampler(
            str(digits_model), batch_size=batch_size, max_completion_length=LENGTH, logprobs=True
        )
        plan = generate_candidates(load(world), sampler, config(logprobs=True), tmp_path / str(batch_size), "m")
        table = pq.read_table(plan.path(0))
        written.append([c["mean_logprob"] for row in table["candidates"].to_pylist() for c in row])
    assert len(written[0]) == 15 and all(-10 < value < 0 for value in written[0])
    assert written[0] == pytest.approx(written[1], abs=2e-4)
    assert texts(tmp_path / "1") == texts(tmp_path / "16")


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lenient", [False, True])
def test_law_5_unreadable_images_are_rows_with_an_error(lenient, sampler, tmp_path, monkeypatch):
    """Law 5: what cannot be read is kept as a row that says why, and disturbs no other row."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # lmms-eval turns it on for the whole process
    good = {"bytes": png(), "path": None}
    damaged = bytearray(png())
    damaged[37:41] = b"/\xfaC-"  # the name of a chunk; Pillow calls that a SyntaxError
    bad = {
        "garbage": {"bytes": b"no image", "path": None},
        "empty": {"bytes": b"", "path": None},
        "cut": {"bytes": png("blue", (300, 300))[:150], "path": None},
        "chunk": {"bytes": bytes(damaged), "path": None},
        "gone": {"bytes": None, "path": str(tmp_path / "missing.png")},
        "null": None,
        "nowhere": {"bytes": None, "path": None},
    }
    rows = [{"id": name, "images": [good, image]} for name, image in bad.items()]
    rows = [{"id": "first", "images": [good]}, *rows, {"id": "last", "images": [good]}]
    plan = generate_candidates(scenes(*rows), sampler, config(rows_per_shard=50), tmp_path / "mixed", "m")
    generate_candidates(scenes(rows[0], rows[-1]), sampler, config(), tmp_path / "clean", "m")
    table = pq.read_table(plan.path(0))
    found = {row["id"]: row for row in table.to_pylist()}
    for name in bad:
        assert found[name]["error"].startswith("unreadable_image: "), name
        assert found[name]["candidates"] == []
        if bad[name] is not None:
            assert found[name]["images"] == [good, bad[name]]
    mixed = {name: [c["text"] for c in found[name]["candidates"]] for name in ("first", "last")}
    assert mixed == texts(tmp_path / "clean")
    assert summarize(plan)["failed"] == len(bad)


def test_photographs_are_seen_upright(tmp_path):
    """`datasets` turns images by their EXIF orientation when training reads them; generation must see the same."""
    picture = PILImage.fromarray(np.arange(32 * 16 * 3, dtype=np.uint8).reshape(32, 16, 3))
    exif = PILImage.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    rows = scenes({"id": "a", "images": [{"bytes": buffer.getvalue(), "path": None}]})
    echo = EchoSampler()
    generate_candidates(rows, echo, config(), tmp_path, "m")
    seen, trained = echo.requests[0].images[0], rows[0]["images"][0]
    assert seen.size == trained.size == (32, 16)
    assert (np.asarray(seen) == np.asarray(trained)).all()


def test_large_images_are_scaled_down(tmp_path):
    echo = EchoSampler()
    rows = scenes({"id": "a", "images": [{"bytes": png(size=(200, 100)), "path": None}]})
    generate_candidates(rows, echo, config(max_pixels=5000), tmp_path, "m")
    assert echo.requests[0].images[0].size == (100, 50)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset.from_dict({"id": ["x"]}), r"the input has no column 'images'; it has \['id'\]"),
        (scenes({"id": "a"}, {"id": "b"}, {"id": "a"}), "row 2: the id 'a' was used before"),
        (scenes({"id": "a"}).select([]), "the input has no rows"),
    ],
)
def test_unusable_input_is_refused(dataset, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate_candidates(dataset, EchoSampler(), config(), tmp_path / "out", "m")
    assert not (tmp_path / "out").exists()


def test_question_and_answer_may_be_missing(tmp_path):
    features = Features({"id": Value("int64"), "images": List(Image()), "source": Value("string")})
    dataset = Dataset.from_list(
        [{"id": i, "images": [{"bytes": png(), "path": None}], "source": "x"} for i in range(3)], features=features
    )
    generate_candidates(dataset, EchoSampler(), config(), tmp_path, "m")
    rows = load(str(tmp_path), split="candidates")
    assert rows["id"][:] == ["0", "1", "2"]
    assert rows["question"][:] == [None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"description_modes": {"direct_answer": 1}},
            "description_modes: 'direct_answer' is a mode of the task 'reas",
        ),
        ({"reasoning_modes": {"chain_of_thoughts": 1}}, "unknown mode 'chain_of_thoughts'"),
        ({"reasoning_modes": {"chain_of_thought": 0}}, "'chain_of_thought' asks for 0 candidates"),
        ({"reasoning_modes": {"chain_of_thought": "2"}}, "'chain_of_thought' asks for '2' candidates; give a whole n"),
        ({"rows_per_shard": 0}, "rows_per_shard is at least 1, got 0"),
        ({"max_pixels": 0}, "max_pixels is at least 1, got 0"),
        ({"max_completion_length": 0}, "max_completion_length is at least 1, got 0"),
        ({"temperature": -1.0}, "temperature is at least 0"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\]"),
        ({"corruptions": ["blur"]}, "corruptions: unknown 'blur'; choose from gaussian_blur"),
        ({"task": "describe"}, "task: unknown 'describe'; choose from description, reasoning"),
        ({"task": "reasoning", "reasoning_modes": {}}, "task is 'reasoning', but reasoning_modes is empty"),
    ],
)
def test_unusable_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CandidateConfig(**options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dataset_name": None}, "dataset_name is missing"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"model_name_or_path": "runs/gone/model"}, "model folder runs/gone/model does not exist"),
        ({"model_name_or_path": str(ROOT)}, "has no processor"),
        (
            {"model_name_or_path": "recipes/gone"},
            "model folder recipes/gone does not exist; run the stage that writes",
        ),
        ({"dataset_name": "recipes/gone"}, "dataset folder recipes/gone does not exist; run the stage that writes"),
        ({"load_in_4bit": True}, "load_in_4bit is True, but `sampler: transformers` does not use it; leave it out"),
        ({"use_peft": True}, "use_peft is True"),
        ({"lora_r": 8}, "lora_r is 8"),
        ({"lora_target_modules": ["q_proj"]}, "lora_target_modules is "),
        ({"dataset_streaming": True}, "dataset_streaming is True"),
        ({"dataset_test_split": "dev"}, "dataset_test_split is 'dev'"),
        (
            {"sampler": "vllm", "attn_implementation": "sdpa"},
            "attn_implementation is 'sdpa', but `sampler: vllm` does",
        ),
    ],
)
def test_unusable_input_and_options_without_effect_are_named(
    option, message, world, digits_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)  # where there is a folder `recipes`
    spec = importlib.util.spec_from_file_location("recipe_generate", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    settings = {"dataset_name": world, "model_name_or_path": str(digits_model), "output_dir": str(tmp_path / "out")}
    settings = {name: value for name, value in {**settings, **option}.items() if value is not None}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module.main(*TrlParser(module.ARGUMENTS).parse_dict(settings))
    assert not (tmp_path / "out").exists()


def test_attention_is_computed_as_asked(digits_model):
    found = [
        TransformersSampler(str(digits_model), attn_implementation=name).model.config._attn_implementation
        for name in ("eager", "sdpa")
    ]
    assert found == ["eager", "sdpa"]


def test_an_adapter_is_sampled_with_its_base(digits_model, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(digits_model)
    adapter = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    get_peft_model(model, adapter).save_pretrained(tmp_path)
    adapted, base = (TransformersSampler(str(path)).model.state_dict() for path in (tmp_path, digits_model))
    changed = {name for name in base if not torch.equal(base[name], adapted[name])}
    assert changed and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


def test_stop_and_suppressed_tokens_are_those_of_model_and_processor(digits_model):
    """Evaluation and generation prepare a checkpoint by the same function."""
    model = AutoModelForImageTextToText.from_pretrained(digits_model)
    processor = AutoProcessor.from_pretrained(digits_model)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(eos_token_id=[7], temperature=5.0, repetition_penalty=9.0)
    model.config.video_token_id = 11
    tokenizer.pad_token = None
    assert prepare_for_generation(model, processor, do_sample=False) == {7, tokenizer.eos_token_id}
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id
    assert model.generation_config.suppress_tokens == sorted([11, processor.image_token_id])
    assert model.generation_config.repetition_penalty is None


def test_rows_with_and_without_images_do_not_share_a_batch(sampler, monkeypatch):
    batches, real = [], sampler._encode
    monkeypatch.setattr(sampler, "_encode", lambda requests, *rest: batches.append(requests) or real(requests, *rest))
    image = [PILImage.new("RGB", (32, 32))]
    list(sampler.sample([Request(image if n % 2 else [], "Describe the image in detail.", [n]) for n in range(6)]))
    assert [{len(request.images) for request in batch} for batch in batches] == [{0}, {1}]


def test_law_6_unknown_key_is_an_error(world, digits_model, tmp_path):
    """Law 6: a misspelt key stops the recipe before it starts, and is named."""
    recipe = command(digits_model, world, tmp_path / "out", temprature=0.5)
    done = subprocess.run(recipe, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "temprature" in done.stderr
    assert not (tmp_path / "out").exists()


def test_law_2_input_is_not_touched(world, sampler, tmp_path):
    """Law 2: files of the input stay as they are, and images reach the output byte for byte."""
    path = split_file(world, "train")
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(Path(world).rglob("*"))
    generate_candidates(load(world), sampler, config(views=True, max_pixels=100), tmp_path, "m")
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(Path(world).rglob("*"))) == before
    written = [
        row for file in sorted((tmp_path / "data").iterdir()) for row in pq.read_table(file)["images"].to_pylist()
    ]
    assert written == pq.read_table(path)["images"].to_pylist()


def test_summary_counts_what_was_written(tmp_path):
    good, bad = ([{"bytes": content, "path": None}] for content in (png(), b"x"))
    rows = scenes({"id": "a", "images": good}, {"id": "b", "images": bad}, {"id": "c", "question": "Why?"})
    save(rows, tmp_path / "images", "train")

    class Fixed(EchoSampler):
        def sample(self, requests):
            answers = [Response("same", "stop", 2), Response(" ", "length", None)]
            for number, request in enumerate(requests):
                yield number, [answers[min(i, 1)] for i in range(len(request.seeds))]

    plan = generate_candidates(load(str(tmp_path / "images")), Fixed(), config(), tmp_path / "c", "m")
    assert summarize(plan) == {
        "rows": 3,
        "left_out": 0,
        "failed": 1,
        "failed_by_reason": {"unreadable_image": 1},
        "candidates": 6,
        "tokens": 2 * (2 + 2),
        "without_token_count": 2,
        "distinct_per_row": 3.0,
        "truncated_share": 2 / 6,
        "empty_share": 2 / 6,
    }


def test_light_view_is_light_and_seeded():
    image = PILImage.fromarray(np.random.default_rng(0).integers(60, 180, (64, 48, 3), dtype=np.uint8))
    before = image.tobytes()
    view = light_view(image, 5)
    assert image.tobytes() == before
    assert (view.size, view.mode) == (image.size, "RGB")
    assert view.tobytes() == light_view(image, 5).tobytes()
    assert view.tobytes() != light_view(image, 6).tobytes()
    flat = PILImage.new("RGB", (64, 64), (120, 120, 120))
    means = [np.asarray(light_view(flat, seed), dtype=float).mean() for seed in range(50)]
    assert 120 * 0.79 < min(means) < 120 < max(means) < 120 * 1.21
