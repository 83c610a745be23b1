"""A run of `generate` as its users see it: many workers, kills, full disks, more candidates later."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from generating import LENGTH, EchoSampler, command, shards
from openai_server import StubServer
from PIL import Image as PILImage

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.data import IMAGES_FEATURES, load, save
from sicog_trl.files import AnotherRunError
from sicog_trl.generation import (
    CandidateConfig,
    ImageRows,
    TransformersSampler,
    asking,
    generate_candidates,
    make_plan,
    make_shards,
    summarize,
    transformers_sampler,
)


MODES = ("chain_of_description", "detailed_description")


def config(count: int = 3, **options) -> CandidateConfig:
    modes = {"description_modes": {MODES[0]: count}, "reasoning_modes": {"direct_answer": count}}
    return CandidateConfig(**{"max_completion_length": LENGTH, "rows_per_shard": 5, **modes, **options})


def rows(folder: Path) -> list[dict]:
    return load(str(folder), split="candidates").remove_columns("images").to_list()


def questions(count: int) -> Dataset:
    """Rows without images, which cost nothing but their text."""
    table = {
        "id": [f"row-{i}" for i in range(count)],
        "images": [[] for _ in range(count)],
        "question": [f"What is {i} + 1?" for i in range(count)],
        "answer": [str(i + 1) for i in range(count)],
    }
    return Dataset.from_dict(table, features=IMAGES_FEATURES)


def pictures(count: int, asked: list[str | None] | None = None) -> Dataset:
    """Rows with an image, and without a question unless some are given."""
    table = {
        "id": [f"row-{i}" for i in range(count)],
        "images": [[PILImage.new("RGB", (8, 8), (i, 0, 0))] for i in range(count)],
        "question": asked or [None] * count,
        "answer": [None] * count,
    }
    return Dataset.from_dict(table, features=IMAGES_FEATURES)


def run(program: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(program, capture_output=True, text=True, timeout=250, check=False, **options)


# More candidates later -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"views": True}, {"corruptions": ["gaussian_blur", "half_plane_mask"]}])
def test_top_up_ends_with_the_bytes_of_one_run(options, world, sampler, tmp_path):
    for count in (1, 3, 4):
        generate_candidates(load(world), sampler, config(count, **options), tmp_path / "grown", "m")
    generate_candidates(load(world), sampler, config(4, **options), tmp_path / "whole", "m")
    assert shards(tmp_path / "grown") == shards(tmp_path / "whole")


def test_top_up_samples_only_what_is_missing(tmp_path):
    dataset = questions(12)
    asked = []
    for count in (3, 6, 9):
        echo = EchoSampler()
        plan = generate_candidates(dataset, echo, config(count), tmp_path, "m")
        asked.append(echo.asked)
        assert plan.missing() == []
    assert [len(seeds) for seeds in asked] == [36, 36, 36]
    assert not set(asked[0]) & set(asked[1]) and not set(asked[1]) & set(asked[2])
    for row in rows(tmp_path):
        seeds = [candidate["seed"] for candidate in row["candidates"]]
        assert seeds == list(range(seeds[0], seeds[0] + 9))


def test_top_up_of_a_run_that_was_cut_off(tmp_path):
    dataset = questions(20)  # four shards
    generate_candidates(dataset, EchoSampler(), config(2), tmp_path / "cut", "m", 0, 2)  # two of them
    generate_candidates(dataset, EchoSampler(), config(5), tmp_path / "cut", "m", 1, 2)  # the others, with more
    echo = EchoSampler()
    plan = generate_candidates(dataset, echo, config(5), tmp_path / "cut", "m")
    assert len(echo.asked) == 10 * 3
    assert plan.missing() == []
    generate_candidates(dataset, EchoSampler(), config(5), tmp_path / "whole", "m")
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")


def test_a_mode_can_be_added(tmp_path):
    dataset = Dataset.from_dict({"id": ["a"], "images": [[PILImage.new("RGB", (8, 8))]]})
    dataset = dataset.cast_column("images", IMAGES_FEATURES["images"])
    for modes in ({MODES[0]: 2}, {MODES[0]: 2, MODES[1]: 1}):
        echo = EchoSampler()
        generate_candidates(dataset, echo, config(description_modes=modes), tmp_path, "m")
    assert len(echo.asked) == 1
    assert [candidate["mode"] for candidate in rows(tmp_path)[0]["candidates"]] == [MODES[0], MODES[0], MODES[1]]


def test_rounds_accumulate_what_earlier_models_wrote(tmp_path):
    """SICOG: 3, 6, 9 candidates, three of them by the model of each round."""
    dataset = questions(12)
    folders = [str(tmp_path / name) for name in "abc"]
    for number, (count, folder) in enumerate(zip((3, 6, 9), folders, strict=True)):
        echo = EchoSampler(f"model {number} ")
        options = {"previous": folders[number - 1] if number else None, "seed": 1000 * number}
        generate_candidates(dataset, echo, config(count, **options), folder, f"model {number}")
        assert len(echo.asked) == 12 * 3
    for row in rows(tmp_path / "c"):
        assert [candidate["text"][:7] for candidate in row["candidates"]] == [
            *["model 0"] * 3,
            *["model 1"] * 3,
            *["model 2"] * 3,
        ]
    assert rows(tmp_path / "b")[0]["candidates"] == rows(tmp_path / "c")[0]["candidates"][:6]


def test_rounds_of_two_modes_stand_by_mode_and_leave_the_older_ones_as_they_were(tmp_path):
    """SICOG's own counts, three more each round by another model: none of the older ones changes or moves."""
    dataset = pictures(7)
    folders = [tmp_path / name for name in "abc"]
    for number, folder in enumerate(folders):
        modes = {MODES[0]: 2 * (number + 1), MODES[1]: number + 1}
        options = {"previous": str(folders[number - 1]) if number else None, "seed": number, "logprobs": number == 1}
        settings = config(description_modes=modes, task="description", **options)
        echo = EchoSampler(f"model {number} ")
        generate_candidates(dataset, echo, settings, folder, f"model {number}")
        assert len(echo.asked) == 7 * 3
    for one, two, three in zip(*map(rows, folders), strict=True):
        assert [len(row["candidates"]) for row in (one, two, three)] == [3, 6, 9]
        for earlier, later in ((one, two), (two, three)):
            for mode in MODES:
                before, after = ([c for c in row["candidates"] if c["mode"] == mode] for row in (earlier, later))
                assert after[: len(before)] == before
        assert [candidate["mode"] for candidate in three["candidates"]] == [MODES[0]] * 6 + [MODES[1]] * 3
        models = [candidate["text"][6] for candidate in three["candidates"]]
        assert "".join(models) == "001122" + "012"
        assert len({candidate["text"] for candidate in three["candidates"]}) == 9


def test_candidates_without_a_logprob_stand_beside_those_with_one(sampler, tmp_path, monkeypatch):
    """Of an earlier round, and of one whose file has no such column at all."""
    dataset = questions(3)
    plan = generate_candidates(dataset, sampler, config(1), tmp_path / "a", "m")
    table = pq.read_table(plan.path(0))
    assert [row[0]["mean_logprob"] for row in table["candidates"].to_pylist()] == [None] * 3
    without = [
        [{k: v for k, v in c.items() if k != "mean_logprob"} for c in row] for row in table["candidates"].to_pylist()
    ]
    pq.write_table(
        table.set_column(table.schema.get_field_index("candidates"), "candidates", pa.array(without)), plan.path(0)
    )
    monkeypatch.setattr(sampler, "logprobs", True)
    for count in (2, 3):  # the second time as a top-up
        settings = config(count, previous=str(tmp_path / "a"), logprobs=True)
        generate_candidates(dataset, sampler, settings, tmp_path / "b", "m")
    for row, old in zip(rows(tmp_path / "b"), without, strict=True):
        first, *others = row["candidates"]
        assert first == {**old[0], "mean_logprob": None}
        assert len(others) == 2 and all(-20 < candidate["mean_logprob"] < 0 for candidate in others)


def test_an_earlier_round_must_be_whole_and_of_the_same_rows(tmp_path):
    dataset = questions(12)
    with pytest.raises(FileNotFoundError, match=r"previous: .*plan\.json does not exist"):
        generate_candidates(dataset, EchoSampler(), config(previous=str(tmp_path)), tmp_path / "b", "m")
    generate_candidates(dataset, EchoSampler(), config(), tmp_path / "a", "m", 0, 2)
    grown = config(6, previous=str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"previous: 1 shards of .* are missing"):
        generate_candidates(dataset, EchoSampler(), grown, tmp_path / "b", "m")
    generate_candidates(dataset, EchoSampler(), config(), tmp_path / "a", "m")
    with pytest.raises(AnotherRunError, match=r"a holds another run: its input is not that of this one"):
        generate_candidates(questions(11), EchoSampler(), grown, tmp_path / "b", "m")
    assert not (tmp_path / "b").exists()
    generate_candidates(dataset, EchoSampler(), grown, tmp_path / "b", "m")
    with pytest.raises(AnotherRunError, match=r"previous is \{'"):
        generate_candidates(dataset, EchoSampler(), config(6), tmp_path / "b", "m")
    with pytest.raises(AnotherRunError, match=r"a holds another run: .* is .*: 3} there and .*: 2} here"):
        generate_candidates(dataset, EchoSampler(), config(2, previous=str(tmp_path / "a")), tmp_path / "c", "m")
    with pytest.raises(ValueError, match=r"previous: corruptions is None there and \['gaussian_blur'\] here"):
        blurred = config(6, previous=str(tmp_path / "a"), corruptions=["gaussian_blur"])
        generate_candidates(dataset, EchoSampler(), blurred, tmp_path / "c", "m")
    (tmp_path / "a" / "data" / "candidates-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"previous: 1 shards of .* are missing"):
        generate_candidates(dataset, EchoSampler(), grown, tmp_path / "b", "m")


def test_an_earlier_round_may_grow_later(tmp_path):
    """What a round has taken stays what it was, and nothing that was sampled is dropped."""
    dataset = questions(12)
    failing = EchoSampler("one ", refused="What is 3 + 1?")
    generate_candidates(dataset, failing, config(3), tmp_path / "a", "m1")
    grown = config(6, previous=str(tmp_path / "a"))
    generate_candidates(dataset, EchoSampler("two "), grown, tmp_path / "b", "m2")
    before = {row["id"]: [c["text"] for c in row["candidates"]] for row in rows(tmp_path / "b")}
    assert len(before["row-3"]) == 3 and len(before["row-4"]) == 6
    generate_candidates(dataset, EchoSampler("one "), config(5), tmp_path / "a", "m1", retry_failed=True)
    echo = EchoSampler("two ")
    more = config(7, previous=str(tmp_path / "a"))
    generate_candidates(dataset, echo, more, tmp_path / "b", "m2")
    assert len(echo.asked) == 12
    for row in rows(tmp_path / "b"):
        texts = [candidate["text"] for candidate in row["candidates"]]
        assert [text[:3] for text in texts] == ["one"] * 3 + ["two"] * 4
        assert set(before[row["id"]]) <= set(texts)


def test_refusals_say_where_rows_differ_and_when_nothing_would_be_lost(tmp_path):
    images = ImageRows(questions(12))
    make_plan(images, config(), tmp_path, "m")
    with pytest.raises(AnotherRunError, match=r"model is 'm' there and 'n' here.* delete .*plan\.json"):
        make_plan(images, config(), tmp_path, "n")
    generate_candidates(images, EchoSampler(), config(), tmp_path, "m", 0, 3)
    with pytest.raises(AnotherRunError, match="model is 'm' there and 'n' here") as error:
        make_plan(images, config(), tmp_path, "n")
    assert "delete" not in str(error.value)
    changed = questions(12).map(lambda row: {"question": "Why?" if row["id"] == "row-7" else row["question"]})
    with pytest.raises(AnotherRunError, match="from row 5 on"):
        make_plan(ImageRows(changed), config(), tmp_path, "m")
    with pytest.raises(AnotherRunError, match=r"from row 10 on.* An input that has grown"):
        make_plan(ImageRows(questions(13)), config(), tmp_path, "m")


def test_a_worker_with_an_older_plan_takes_nothing_away(tmp_path):
    """Two workers, one of which does not know yet that more candidates are asked for."""
    images = ImageRows(questions(12))
    old = make_plan(images, config(3), tmp_path, "m")
    generate_candidates(images, EchoSampler(), config(6), tmp_path, "m")
    finished = shards(tmp_path)
    assert old.missing() == []
    make_shards(old, [0, 1, 2], config(3), images, EchoSampler(), show_progress=False)
    assert shards(tmp_path) == finished


def test_more_candidates_make_the_summary_of_fewer_go_away(tmp_path):
    generate_candidates(questions(12), EchoSampler(), config(1), tmp_path, "m")
    (tmp_path / "summary.json").write_text("{}")
    generate_candidates(questions(12), EchoSampler(), config(1), tmp_path, "m")
    assert (tmp_path / "summary.json").exists()
    generate_candidates(questions(12), EchoSampler(), config(2), tmp_path, "m", 0, 3)
    assert not (tmp_path / "summary.json").exists()


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_law_5_a_refused_request_is_an_error_of_its_row(tmp_path):
    """Law 5: the candidates that came are kept, the row says what is missing, other rows know nothing of it."""
    modes = {"reasoning_modes": {"direct_answer": 2, "chain_of_thought": 1}}
    echo = EchoSampler(refused="What is 3 + 1?\nAnswer in four steps")
    plan = generate_candidates(questions(7), echo, config(**modes), tmp_path, "m")
    found = {row["id"]: row for row in rows(tmp_path)}
    assert found["row-3"]["error"] == "refused: row 'row-3': not that one"
    assert [candidate["mode"] for candidate in found["row-3"]["candidates"]] == ["direct_answer"] * 2
    assert all(len(row["candidates"]) == 3 and not row["error"] for key, row in found.items() if key != "row-3")
    assert summarize(plan)["failed_by_reason"] == {"refused": 1}
    again = EchoSampler()
    generate_candidates(questions(7), again, config(**modes), tmp_path, "m")
    assert again.asked == []
    generate_candidates(questions(7), again, config(**modes), tmp_path, "m", retry_failed=True)
    assert len(again.asked) == 1
    generate_candidates(questions(7), EchoSampler(), config(**modes), tmp_path / "whole", "m")
    assert shards(tmp_path) == shards(tmp_path / "whole")


def test_what_concerns_all_requests_stops_the_run_and_publishes_nothing(tmp_path):
    class Dying(EchoSampler):
        def sample(self, requests):
            for answer in super().sample(requests):
                if len(self.asked) > 20:
                    raise ConnectionError("the server is gone")
                yield answer

    with pytest.raises(ConnectionError, match="the server is gone"):
        generate_candidates(questions(12), Dying(), config(), tmp_path, "m")
    assert len(shards(tmp_path)) == 1
    assert len(list((tmp_path / "data").iterdir())) == 1
    echo = EchoSampler()
    generate_candidates(questions(12), echo, config(), tmp_path, "m")
    assert len(echo.asked) == 3 * 7


def test_a_sampler_that_forgets_a_request_is_found_out(tmp_path):
    class Forgetful(EchoSampler):
        def sample(self, requests):
            yield from list(super().sample(requests))[1:]

    with pytest.raises(RuntimeError, match="Forgetful left 1 requests without an answer"):
        generate_candidates(questions(5), Forgetful(), config(), tmp_path, "m")
    assert shards(tmp_path) == {}


def test_a_sampler_that_answers_twice_is_found_out(tmp_path):
    class Stuttering(EchoSampler):
        def sample(self, requests):
            answers = list(super().sample(requests))
            yield from [answers[0], answers[0], *answers[2:]]

    with pytest.raises(RuntimeError, match="Stuttering answered request 4, which was not waiting"):
        generate_candidates(questions(5), Stuttering(), config(), tmp_path, "m")
    assert shards(tmp_path) == {}


def test_when_everything_is_refused_from_the_start_the_run_stops(tmp_path):
    """A wrong setting must not turn a million rows into errors; rows that were refused before may be tried again."""
    with pytest.raises(RuntimeError, match=r"first 20 requests have all failed.*refused: row 'row-4': not that one"):
        generate_candidates(questions(50), EchoSampler(refused="What"), config(), tmp_path, "m")
    assert len(shards(tmp_path)) == 3
    late = tmp_path / "late"
    generate_candidates(questions(50), EchoSampler(refused="1 + 1"), config(rows_per_shard=50), late, "m")
    options = {"rows_per_shard": 50, "reasoning_modes": {"direct_answer": 4}}
    plan = generate_candidates(questions(50), EchoSampler(refused="What"), config(**options), late, "m")
    assert summarize(plan)["failed"] == 50


def test_a_broken_machine_is_nobodys_failure(sampler, tmp_path, monkeypatch):
    def broken(requests, prompts):
        raise ImportError("torchvision is missing")

    monkeypatch.setattr(sampler, "_encode", broken)
    with pytest.raises(ImportError, match="torchvision is missing"):
        generate_candidates(questions(5), sampler, config(), tmp_path, "m")
    assert shards(tmp_path) == {}


def test_a_prompt_beyond_the_context_is_an_error_of_its_row(digits_model, tmp_path):
    sampler = TransformersSampler(str(digits_model), max_completion_length=LENGTH)
    dataset = questions(3).map(lambda row: {"question": row["question"] * (500 if row["id"] == "row-1" else 1)})
    generate_candidates(dataset, sampler, config(), tmp_path, "m")
    found = rows(tmp_path)
    assert [len(row["candidates"]) for row in found] == [3, 0, 3]
    assert "the prompt has" in found[1]["error"]


def test_rows_that_nobody_can_ask_say_why(tmp_path):
    image = PILImage.new("RGB", (8, 8))
    content = {
        "id": ["nothing", "blank", "no modes"],
        "images": [[], [image], [image]],
        "question": [None, "  ", "Why?"],
    }
    dataset = Dataset.from_dict(content).cast_column("images", IMAGES_FEATURES["images"])
    generate_candidates(dataset, EchoSampler(), config(reasoning_modes={}), tmp_path, "m")
    found = {row["id"]: row for row in rows(tmp_path)}
    assert found["nothing"]["error"] == "no_image: row 'nothing' has neither an image nor a question"
    assert (found["blank"]["task"], len(found["blank"]["candidates"])) == ("description", 3)
    assert found["no modes"]["error"] == "not_asked: row 'no modes': reasoning_modes is empty"


def test_views_of_gigantic_images_are_an_error_of_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "_MOST_ALTERED", 100)
    images = [[PILImage.new("RGB", size)] for size in ((10, 10), (10, 11))]
    dataset = Dataset.from_dict({"id": ["a", "b"], "images": images})
    dataset = dataset.cast_column("images", IMAGES_FEATURES["images"])
    for number, options in enumerate(({"views": True}, {"corruptions": ["half_plane_mask"]})):
        generate_candidates(dataset, EchoSampler(), config(**options), tmp_path / str(number), "m")
        found = rows(tmp_path / str(number))
        assert len(found[0]["candidates"]) == 3
        assert found[1]["error"].startswith("unreadable_image: row 'b': views and damage of 110 pixels")


def test_an_image_that_the_processor_refuses_is_an_error_of_its_row(sampler, tmp_path, monkeypatch):
    """Models with dynamic resolution refuse very thin images, in the middle of a batch."""
    images = [PILImage.new("RGB", size) for size in ((32, 32), (1, 900), (32, 32))]
    dataset = Dataset.from_dict({"id": list("abc"), "images": [[image] for image in images]})
    dataset = dataset.cast_column("images", IMAGES_FEATURES["images"])
    real = sampler._encode

    def encode(requests, prompts):
        if any(image.height > 200 * image.width for request in requests for image in request.images):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return real(requests, prompts)

    monkeypatch.setattr(sampler, "_encode", encode)
    generate_candidates(dataset, sampler, config(), tmp_path / "mixed", "m")
    found = rows(tmp_path / "mixed")
    assert [len(row["candidates"]) for row in found] == [3, 0, 3]
    assert found[1]["error"].startswith("refused: row 'b': the processor cannot take it: ValueError: absolute aspect")
    generate_candidates(dataset.select([0, 2]), sampler, config(), tmp_path / "clean", "m")
    assert [row["candidates"] for row in rows(tmp_path / "clean")] == [found[0]["candidates"], found[2]["candidates"]]


def test_rows_that_change_after_the_plan_was_made_are_refused(world, tmp_path):
    images = ImageRows(questions(12))
    plan = make_plan(images, config(), tmp_path, "m")
    other = ImageRows(questions(13).select(range(1, 13)))
    with pytest.raises(ValueError, match=r"rows 5 to 9 of the input are not those that .*plan\.json was made of"):
        make_shards(plan, [1], config(), other, EchoSampler(), show_progress=False)


def test_windows_bound_the_open_images_and_change_nothing(world, sampler, tmp_path, monkeypatch):
    generate_candidates(load(world), sampler, config(rows_per_shard=100), tmp_path / "one", "m")
    sizes, real = [], sampler._sample
    monkeypatch.setattr(asking, "_WINDOW_PIXELS", 3 * 32 * 32)
    monkeypatch.setattr(transformers_sampler, "_WINDOW_PIXELS", 10 * 32 * 32)
    monkeypatch.setattr(sampler, "_sample", lambda first, window: sizes.append(len(window)) or real(first, window))
    generate_candidates(load(world), sampler, config(rows_per_shard=100), tmp_path / "many", "m")
    assert shards(tmp_path / "one") == shards(tmp_path / "many")
    assert sizes == [10, 8]


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(world, digits_model, tmp_path):
    """Files may not grow beyond what the plan needs: the shard fails to be written, as on a full disk."""
    program = """
        import resource, runpy, sys
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    recipe = command(digits_model, world, tmp_path / "full", rows_per_shard=9)
    done = run([recipe[0], "-c", textwrap.dedent(program), *recipe[1:]])
    assert done.returncode != 0
    assert "no room to write" in done.stderr and "candidates-00000-of-00002.parquet" in done.stderr
    assert (tmp_path / "full" / "plan.json").exists()
    assert not list((tmp_path / "full" / "data").iterdir())
    done = run(recipe)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(shards(tmp_path / "full")) == 2


def test_damaged_images_are_what_the_model_sees_and_no_training_data(tmp_path):
    """Each candidate is shown the image damaged in the next way, says which, and is kept out of the curated rows."""
    noise = PILImage.effect_noise((40, 30), 80).convert("RGB")
    dataset = Dataset.from_dict({"id": ["a", "b"], "images": [[noise], [noise, noise]]})
    dataset = dataset.cast_column("images", IMAGES_FEATURES["images"])
    ways = ["gaussian_blur", "color_jitter", "mirror_rotate", "half_plane_mask"]
    echo = EchoSampler()
    generate_candidates(dataset, echo, config(4, corruptions=ways), tmp_path / "c", "m")
    assert len(echo.requests) == 8
    for request in echo.requests:
        assert all(image.tobytes() != noise.tobytes() for image in request.images)
        assert not any(request.stored)  # the file on the disk is not what is to be shown
    found = rows(tmp_path / "c")
    assert [sorted(c["corruption"] for c in row["candidates"]) for row in found] == [sorted(ways)] * 2
    curate(load(str(tmp_path / "c"), split="candidates"), CurationConfig(), tmp_path / "k")
    assert load(str(tmp_path / "k"), split="dropped")["reason"][:] == ["corrupted"] * 2


# Rows of one task ----------------------------------------------------------------------------------------------------


def mixed(count: int) -> Dataset:
    """Every third row asks something."""
    asked = [f"What is {i} + 1?" if i % 3 == 0 else None for i in range(count)]
    return pictures(count, asked)


def test_two_models_apart_write_what_one_run_over_all_rows_would(tmp_path, caplog):
    caplog.set_level("INFO")
    both = generate_candidates(mixed(17), EchoSampler(), config(), tmp_path / "both", "m")
    found = []
    for task, count in (("reasoning", 6), ("description", 11)):
        plan = generate_candidates(mixed(17), EchoSampler(), config(task=task), tmp_path / task, "m")
        assert f"{count} of 17 rows are of the task {task}" in caplog.text
        summary = summarize(plan)
        assert (summary["rows"], summary["left_out"], summary["failed"]) == (count, 17 - count, 0)
        assert json.loads((tmp_path / task / "plan.json").read_text())["left_out"] == 17 - count
        found += rows(tmp_path / task)
        echo = EchoSampler()
        assert generate_candidates(mixed(17), echo, config(task=task), tmp_path / task, "m").missing() == []
        assert not echo.requests
    assert sorted(found, key=lambda row: int(row["id"][4:])) == rows(tmp_path / "both")
    assert summarize(both)["left_out"] == 0


def test_a_round_goes_on_with_the_rows_of_its_own_task(tmp_path):
    generate_candidates(mixed(9), EchoSampler(), config(1), tmp_path / "a", "m")
    with pytest.raises(ValueError, match="previous: task is None there and reasoning here"):
        grown = config(2, previous=str(tmp_path / "a"), task="reasoning")
        generate_candidates(mixed(9), EchoSampler(), grown, tmp_path / "b", "m")
    with pytest.raises(ValueError, match="task is 'reasoning', but the rows are those of None"):
        make_plan(ImageRows(mixed(9)), config(task="reasoning"), tmp_path / "b", "m")


def test_the_recipe_takes_the_rows_of_a_task_and_says_how_far_a_run_is(world, digits_model, tmp_path):
    options = {"task": "reasoning", "logprobs": "true", "rows_per_shard": 1}
    first = run(command(digits_model, world, tmp_path / "out", shard_index=0, num_shards=2, **options))
    assert first.returncode == 0, first.stderr[-2000:]
    said = f"{tmp_path / 'out'}: {{}} of {{}} shards are there, {{}} to do"
    total = len(list((tmp_path / "out" / "data").iterdir())) * 2
    half = said.format(total // 2, total, total // 2)
    assert first.stdout.strip() == half
    assert f"{total} of 18 rows are of the task reasoning" in first.stderr
    again = run(command(digits_model, world, tmp_path / "out", **options))
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.splitlines()[0] == half
    found = rows(tmp_path / "out")
    assert len(found) == total and {row["task"] for row in found} == {"reasoning"}
    assert all(candidate["mean_logprob"] < 0 for row in found for candidate in row["candidates"])


# Many workers --------------------------------------------------------------------------------------------------------


def test_jobs_of_an_array_share_the_shards(world, digits_model, sampler, tmp_path):
    """Plan once, then three jobs in any order; the last one writes the summary."""
    done = run(command(digits_model, world, tmp_path / "array", plan_only="true"))
    assert "array: 0 of 9 shards are there, 9 to do" in done.stdout, done.stderr[-2000:]
    assert not (tmp_path / "array" / "data").exists()
    for job, made in ((2, 3), (0, 6), (1, 9)):
        assert not (tmp_path / "array" / "summary.json").exists()
        done = run(command(digits_model, world, tmp_path / "array", shard_index=job, num_shards=3))
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(shards(tmp_path / "array")) == made
    summary = json.loads((tmp_path / "array" / "summary.json").read_text())
    assert (summary["rows"], summary["candidates"]) == (18, 54)
    assert "tokens/s, 6 kept, 0 failed" in done.stderr
    plan = json.loads((tmp_path / "array" / "plan.json").read_text())
    whole = CandidateConfig(max_completion_length=LENGTH, rows_per_shard=2)
    generate_candidates(load(world), sampler, whole, tmp_path / "one", plan["model"])
    assert shards(tmp_path / "array") == shards(tmp_path / "one")


def test_a_worker_that_finds_nothing_to_do_loads_no_model(world, digits_model, tmp_path):
    recipe = command(digits_model, world, tmp_path / "out")
    assert run(recipe).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    done = run(recipe)
    assert done.returncode == 0
    assert "Loading weights" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == before


@pytest.mark.slow
def test_law_4_killed_ten_times_in_a_row(world, digits_model, sampler, tmp_path):
    """Law 4: killed at ten random moments, nothing is lost, nothing is made twice, and the bytes are the same."""
    options = {"rows_per_shard": 1, "max_completion_length": 40, "batch_size": 1}
    recipe = command(digits_model, world, tmp_path / "killed", **options)
    started = time.monotonic()
    whole = run(command(digits_model, world, tmp_path / "whole", **options))
    assert whole.returncode == 0, whole.stderr[-2000:]
    length = time.monotonic() - started
    draw = random.Random(0)
    published: dict[str, int] = {}
    for _ in range(10):
        process = subprocess.Popen(recipe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=length * draw.uniform(0.5, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        found = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "killed" / "data").glob("cand*")}
        assert published.items() <= found.items()  # what was published is neither gone nor made again
        assert all(pq.read_metadata(tmp_path / "killed" / "data" / name).num_rows == 1 for name in found)
        published = found
    done = run(recipe)
    assert done.returncode == 0, done.stderr[-2000:]
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "data").glob(".*"))
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["candidates"] == 54


@pytest.mark.slow
def test_ray_makes_the_same_bytes_and_survives_the_death_of_a_worker(world, digits_model, tmp_path):
    pytest.importorskip("ray", reason="install the extra `ray`")
    options = {"rows_per_shard": 1, "max_completion_length": 60, "batch_size": 1}
    one = run(command(digits_model, world, tmp_path / "one", **options))
    assert one.returncode == 0, one.stderr[-2000:]
    recipe = command(digits_model, world, tmp_path / "ray", scheduler="ray", num_workers=2, **options)
    process = subprocess.Popen(recipe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 150
    while len(shards(tmp_path / "ray")) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    names = {child.pid: " ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)}
    workers = [pid for pid, name in names.items() if name.startswith("ray::") and "ShardWorker" in name]
    if workers:
        os.kill(workers[0], signal.SIGKILL)
    early = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "ray" / "data").glob("candidates-*")}
    output, _ = process.communicate(timeout=200)
    assert workers and len(early) < 18, output[-3000:]
    assert process.returncode == 0, output[-3000:]
    assert shards(tmp_path / "ray") == shards(tmp_path / "one")
    late = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "ray" / "data").glob("candidates-*")}
    assert early.items() <= late.items()


def test_a_hundred_thousand_rows_in_bounded_memory(tmp_path):
    """Planned, cut off and resumed; ten times as many rows may not need ten times as much."""
    program = """
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        from generating import EchoSampler
        from test_workers import config
        from sicog_trl.data import load
        from sicog_trl.generation import generate_candidates, summarize
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        peaks = [peak()]
        settings = config(1, rows_per_shard=1000)
        class Counting(EchoSampler):
            def sample(self, requests):
                for number, answer in super().sample(requests):
                    self.asked.clear()
                    self.requests.clear()
                    yield number, answer
        for index in (0, 1):
            dataset = load(sys.argv[2])
            generate_candidates(dataset, Counting(), settings, sys.argv[3], "m", index, 2, show_progress=False)
            peaks.append(peak())
        plan = generate_candidates(load(sys.argv[2]), None, settings, sys.argv[3], "m")  # nothing is left to ask
        assert summarize(plan)["candidates"] == plan.num_rows
        print(plan.num_rows, peaks[-1] - peaks[0])
    """
    grown = {}
    for count in (10_000, 100_000):
        save(questions(count), tmp_path / f"in-{count}", "train")
        call = [sys.executable, "-c", textwrap.dedent(program), str(Path(__file__).parent)]
        done = run([*call, str(tmp_path / f"in-{count}"), str(tmp_path / f"out-{count}")])
        assert done.returncode == 0, done.stderr[-2000:]
        found, megabytes = map(int, done.stdout.split()[-2:])
        assert found == count
        grown[count] = megabytes
    assert grown[100_000] < grown[10_000] + 60, grown


# A server ------------------------------------------------------------------------------------------------------------


def test_a_run_over_a_server_that_stumbles_and_dies(tmp_path):
    """The recipe over real HTTP: faults are retried, a refused row is a row, a dead server stops the run."""
    save(questions(20), tmp_path / "images", "train")
    stumbled: set[str] = set()

    def stumble(prompt: str) -> str | None:
        if "What is 7 + 1?" in prompt:
            return "400"
        fault = {"What is 2 ": "429", "What is 3 ": "500", "What is 4 ": "cut", "What is 5 ": "invalid"}
        name = next((name for name in fault if name in prompt), None)
        if name is None or name in stumbled:
            return None
        stumbled.add(name)
        return fault[name]

    with StubServer() as server:
        server.fault = stumble
        recipe = command("stub", tmp_path / "images", tmp_path / "out", sampler="openai", rows_per_shard=5)
        done = run([*recipe, "--base_url", server.base_url, "--concurrency", "4"])
        assert done.returncode == 0, done.stderr[-3000:]
    found = {row["id"]: row for row in rows(tmp_path / "out")}
    assert found["row-7"]["error"].startswith("refused: row 'row-7': ")
    assert all(len(row["candidates"]) == 3 for key, row in found.items() if key != "row-7")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["failed_by_reason"], summary["distinct_per_row"]) == ({"refused": 1}, 3.0)
    assert len(stumbled) == 4
    done = run([*recipe, "--base_url", server.base_url, "--retry_failed", "true"])  # nobody listens any more
    assert done.returncode != 0
    assert server.base_url in done.stderr.splitlines()[-1]
    assert {row["id"]: row for row in rows(tmp_path / "out")} == found
