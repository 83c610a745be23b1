"""Annotations: every record is a row or counted under the name of its fault, and no teacher is paid twice."""

import copy
import hashlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image
from trl import TrlParser


pytest.importorskip("openai")

from openai_server import StubServer

from sicog_trl.annotation import READERS, AnnotationConfig, TeacherConfig, Unusable, annotate, annotate_with_teacher
from sicog_trl.annotation.answers import Answers
from sicog_trl.annotation.records import read_json
from sicog_trl.annotation.turns import clean_question, turns_of
from sicog_trl.data import load
from sicog_trl.files import AnotherRunError
from sicog_trl.generation import ImageRows
from sicog_trl.generation.openai_client import ServerGoneError
from sicog_trl.hub import PushConfig, push
from sicog_trl.prompts import CHAIN_OF_DESCRIPTION_STEPS, prompt_for
from sicog_trl.responses import build_steps, split_steps


RECIPE = str(Path(__file__).parent.parent / "recipes" / "annotate.py")
TAGGED = (
    "<SUMMARY> Count. </SUMMARY>\n\n<CAPTION> Two dots. </CAPTION>\n\n<REASONING> One and one. </REASONING>\n\n"
    "<CONCLUSION> 2 </CONCLUSION>"
)
QUESTION = "How many dots are there?"
STEPS = ["A dot.", "It is red.", "It is alone.", "The edge is white.", "A single red dot on white. " * 6]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("sicog_trl.generation.openai_client.FIRST_DELAY", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def picture(folder: Path, name: str, shade: int = 0) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 100, 200)).save(path)
    return name


def talk(*turns: str) -> list[dict]:
    return [{"from": ("human", "gpt")[at % 2], "value": turn} for at, turn in enumerate(turns)]


def tagged(folder: Path, row_id: str = "a", answer: str = TAGGED, **fields) -> dict:
    image = picture(folder, f"{row_id}.png", len(row_id))
    question = f"<image>\n{QUESTION}\nAnswer the question using a single word or phrase."
    return {"id": row_id, "image": image, "conversations": talk(question, answer), **fields}


def write(folder: Path, records: list[dict], name: str = "records.json") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    lines = "\n".join(map(json.dumps, records))
    path.write_text(lines + "\n" if name.endswith("l") else json.dumps(records, indent=1))
    return str(path)


def convert(source: str, output_dir: str | Path, source_format: str = "chain_of_thought_tags", **options) -> dict:
    config = AnnotationConfig(source_format, **options)
    return annotate(config.records(source, None, "train"), config, output_dir)


def rows(folder: str | Path, split: str) -> list[dict]:
    dataset = load(str(folder), split=split)
    return dataset.remove_columns([name for name in dataset.column_names if name == "images"]).to_list()


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("data/*"))}


# What the released conversion of LLaVA-CoT spoils (A.1, A.2)


def test_long_and_short_answers_are_made_from_the_same_untouched_record(tmp_path):
    record = tagged(tmp_path)
    before = copy.deepcopy(record)
    first, second = (READERS["chain_of_thought_tags"](record, 1, None) for _ in range(2))
    assert record == before and first == second
    chain, short = first.rows
    assert split_steps(chain["completion"][0]["content"], "chain_of_thought")[-1] == "2"
    assert short["completion"][0]["content"] == "2"
    for row in (chain, short):
        assert row["prompt"] == [{"role": "user", "content": prompt_for(row["mode"], QUESTION)}]
    assert (first.question, first.answer) == (QUESTION, "2")


@pytest.mark.parametrize(
    ("reason", "answer"),
    [
        ("no_tags", "The answer is 2."),
        ("missing_tag", TAGGED.replace("<CAPTION> Two dots. </CAPTION>", "")),
        ("repeated_tag", TAGGED + "<CONCLUSION> 3 </CONCLUSION>"),
        ("tags_out_of_order", re.sub("CAPTION", "X", TAGGED).replace("SUMMARY", "CAPTION").replace("X", "SUMMARY")),
        ("unclosed_tag", TAGGED.replace("</CAPTION>", "")),
        ("empty_tag", TAGGED.replace("Two dots.", "")),
        ("text_outside_tags", TAGGED + "\nI hope that helps."),
        ("text_after_answer", TAGGED.replace(" 2 ", "2\n\nBecause I counted.")),
        ("heading_in_step", TAGGED.replace("One and one.", "Step 1: one.\nStep 2: and one.")),
        ("placeholder", TAGGED.replace("Two dots.", "Two dots in <image>.")),
        ("broken_text", TAGGED.replace("Two dots.", "Two dots \ud83d.")),
    ],
)
def test_a_record_without_sound_tags_is_dropped_by_name_and_never_cut(tmp_path, reason, answer):
    source = write(tmp_path, [tagged(tmp_path, "good"), tagged(tmp_path, "bad", answer)])
    summary = convert(source, tmp_path / "out")
    assert summary["dropped"] == {reason: 1}
    assert (summary["rows_in"], summary["kept"]) == (2, 1)
    [dropped] = rows(tmp_path / "out", "dropped")
    assert (dropped["id"], dropped["reason"]) == ("bad", reason)
    assert "SUMMARY" in dropped["text"] or reason == "no_tags"
    assert {row["source_id"] for row in rows(tmp_path / "out", "annotated")} == {"good"}


def test_an_output_folder_may_be_a_bare_name_and_keeps_it(tmp_path, monkeypatch):
    source = write(tmp_path, [tagged(tmp_path)])
    monkeypatch.chdir(tmp_path)
    convert(source, "annotated_set")
    assert [path.name for path in tmp_path.glob("annotated_set*")] == ["annotated_set"]
    assert len(rows("./annotated_set", "annotated")) == 2


@pytest.mark.parametrize(
    "suffix",
    [
        "\nAnswer the question using a single word or phrase.",
        " Answer the question step-by-step.",
        "\nAnswer with the option's letter from the given choices directly.",
        " Please answer step by step. Let's think step by step.",
    ],
)
def test_a_question_loses_what_other_prompts_asked_for_and_nothing_else(suffix):
    assert clean_question(QUESTION + suffix) == QUESTION
    assert clean_question("Why is a single word or phrase enough?") == "Why is a single word or phrase enough?"
    assert clean_question("Is the dance shown step by step?") == "Is the dance shown step by step?"


def test_a_long_text_of_line_breaks_is_read_at_once():
    """By backtracking 20,000 line breaks took 40 seconds once."""
    spent = []
    for blank in (" x", " \n"):
        question = f"Why?{blank * 10_000} x"
        started = time.perf_counter()
        assert clean_question(question) == question
        turns_of({"conversations": talk(f"<image>{question}", "a")}, 1)
        spent.append(time.perf_counter() - started)
    assert spent[1] < 500 * spent[0]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image": 5}, "unknown_image"),
        ({"image": ["a.png", None]}, "unknown_image"),
        ({"image": [["a.png"]]}, "unknown_image"),
        ({"image": {"url": "a.png"}}, "unknown_image"),
        ({"image": {"bytes": "aGFsbG8="}}, "unknown_image"),
        ({"image": {"path": 5}}, "unknown_image"),
        ({"image": "iVBOR" * 1000}, "unreadable_image"),
        ({"image": "."}, "missing_image"),
        ({"conversations": {"from": ["human", "gpt"], "value": ["Why?"]}}, "no_conversation"),
        ({"conversations": {"from": "human", "value": 5}}, "no_conversation"),
    ],
)
def test_a_malformed_record_is_counted_and_neither_stops_the_run_nor_loses_its_image(tmp_path, fields, reason):
    picture(tmp_path / "in", "a.png")
    good = {"id": "a", "image": "a.png", "conversations": talk("<image>\nWhy?", "So.")}
    bad = {"id": "b", "conversations": talk("Why?", "So."), **fields}
    counts = convert(write(tmp_path / "in", [bad, good]), tmp_path / "out", "conversations")
    assert (counts["kept"], counts["dropped"]) == (1, {reason: 1})


@pytest.mark.parametrize(
    ("content", "message"), [("é".encode("latin-1"), "UTF-8"), (b'{"a":' + b"[" * 100_000, "record 0 is nested")]
)
def test_a_file_that_is_no_json_is_named(tmp_path, content, message):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"in\.jsonl.*{message}"):
        list(read_json(tmp_path / "in.jsonl"))


# Captions in five steps


@pytest.mark.parametrize(
    "dress",
    [
        "Step {n}: {title}\n{body}\n",
        "**Step {n}: Anything else at all**\n\n{body}\n\n",
        "### STEP {n}. Examine what is there\n{body}\n",
        "**Step {n}: Bold title.** {body}\n",
    ],
)
def test_five_steps_are_read_under_any_title(tmp_path, dress):
    text = "".join(
        dress.format(n=number, title=title, body=body)
        for number, (title, body) in enumerate(zip(CHAIN_OF_DESCRIPTION_STEPS, STEPS, strict=True), 1)
    )
    reading = READERS["chain_of_description"]({"conversations": talk("<image>\nDescribe.", text)}, 1, None)
    chain, last = reading.rows
    assert split_steps(chain["completion"][0]["content"], "chain_of_description") == [s.strip() for s in STEPS]
    assert last["mode"] == "detailed_description"
    assert last["completion"][0]["content"] == STEPS[-1].strip() == reading.answer
    assert reading.question is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("no_steps", "A red dot."),
        ("missing_step", "Step 1: A\nx\nStep 2: B\ny"),
        ("repeated_step", "".join(f"Step {n}: T\nx\n" for n in (1, 2, 3, 4, 5, 5))),
        ("extra_step", "".join(f"Step {n}: T\nx\n" for n in (1, 2, 3, 4, 5, 6))),
        ("steps_out_of_order", "".join(f"Step {n}: T\nx\n" for n in (2, 1, 3, 4, 5))),
        ("text_before_steps", "Sure!\n" + "".join(f"Step {n}: T\nx\n" for n in range(1, 6))),
        ("empty_step", "".join(f"Step {n}: A title, or is it the text\n" for n in range(1, 6))),
        ("no_title", "".join(f"Step {n}: {'the text goes on ' * 5}\nx\n" for n in range(1, 6))),
    ],
)
def test_steps_that_do_not_read_are_named_and_no_full_text_passes_for_the_last_step(reason, text):
    with pytest.raises(Unusable) as error:
        READERS["chain_of_description"]({"conversations": talk("Describe.", text)}, 1, None)
    assert error.value.reason == reason


def test_steps_may_be_columns_or_a_list(tmp_path):
    columns = dict(zip("vwxyz", STEPS, strict=True))
    by_column = READERS["chain_of_description"](columns, 1, list("vwxyz"))
    assert by_column == READERS["chain_of_description"]({"steps": STEPS}, 1, ["steps"])
    with pytest.raises(Unusable, match="missing_step: w"):
        READERS["chain_of_description"]({**columns, "w": None}, 1, list("vwxyz"))
    with pytest.raises(Unusable, match="missing_step: 4 steps"):
        READERS["chain_of_description"]({"steps": STEPS[:4]}, 1, ["steps"])


# Conversations


def test_each_answer_of_a_conversation_is_a_row_that_starts_from_what_was_said(tmp_path):
    image = picture(tmp_path, "deep/down/x.jpg")
    records = [
        {"id": 7, "image": image, "conversations": talk("What?\n<image>", "A dot.", "Which colour?", "Red.")},
        {"id": "text", "conversations": talk("Hello", "Good day.")},
        {"id": "gone", "image": "no/such.jpg", "conversations": talk("<image>\nWhat?", "A dot.")},
        {"id": "none", "conversations": talk("<image>\nWhat?", "A dot.")},
        {"id": "../secret", "image": "../secret.png", "conversations": talk("<image>\nWhat?", "A dot.")},
        {"id": "inside", "image": image, "conversations": talk("What is in <image> there?", "A dot.")},
        {"id": "cut", "image": image, "conversations": talk("<image>\nWhat?", "A dot.", "And?")},
    ]
    picture(tmp_path, "secret.png")
    summary = convert(
        write(tmp_path / "set", records), tmp_path / "out", "conversations", image_root=str(tmp_path / ".")
    )
    assert summary["dropped"] == {"missing_image": 1, "no_image": 1, "outside_image_root": 1, "placeholder": 1} | {
        "turns_out_of_order": 1
    }
    first, second, text = rows(tmp_path / "out", "annotated")
    assert [row["id"] for row in (first, second, text)] == ["7-1", "7-2", "text-1"]
    assert first["prompt"] == [{"role": "user", "content": "What?"}]
    assert [turn["content"] for turn in second["prompt"]] == ["What?", "A dot.", "Which colour?"]
    assert second["completion"] == [{"role": "assistant", "content": "Red."}]
    assert first["task"] is first["mode"] is None
    stored = load(str(tmp_path / "out"), split="annotated").with_format("arrow")[:]["images"].to_pylist()
    assert [len(images) for images in stored] == [1, 1, 0]
    assert stored[0][0]["bytes"] == (tmp_path / image).read_bytes()
    details = {row["id"]: row["detail"] for row in rows(tmp_path / "out", "dropped")}
    assert details["gone"] == "no/such.jpg"


def test_images_are_not_decoded_and_may_stay_where_they_are(tmp_path):
    record = tagged(tmp_path)
    (tmp_path / record["image"]).write_bytes(b"not even an image")
    source = write(tmp_path, [record])
    convert(source, tmp_path / "copied")
    convert(source, tmp_path / "linked", embed_images=False)
    copied, linked = (
        load(str(tmp_path / name), split="images").with_format("arrow")[:]["images"].to_pylist()[0][0]
        for name in ("copied", "linked")
    )
    assert copied["bytes"] == b"not even an image"
    assert linked == {"bytes": None, "path": str(tmp_path / "a.png")}


# The artefact


def test_every_split_loads_without_this_package_and_generation_reads_the_images(tmp_path):
    records = [tagged(tmp_path, "a"), tagged(tmp_path, "b", "no tags")]
    source = write(tmp_path, records, "records.jsonl")
    summary = convert(source, tmp_path / "out")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rows_in"] == summary["kept"] + sum(summary["dropped"].values())
    assert summary["rows"] == {"chain_of_thought": 1, "direct_answer": 1}
    cache = {"cache_dir": str(tmp_path / "cache")}
    for split, columns in {"annotated": "completion", "images": "question", "dropped": "reason"}.items():
        dataset = load_dataset(str(tmp_path / "out"), split, split=split, **cache)
        assert columns in dataset.column_names
    assert load_dataset(str(tmp_path / "out"), split="annotated", **cache)["id"][:] == [
        "a-chain_of_thought",
        "a-direct_answer",
    ]
    table = ImageRows(load(str(tmp_path / "out"), split="images")).table(range(1))
    assert table.drop_columns("images").to_pylist() == [{"id": "a", "question": QUESTION, "answer": "2"}]
    # An artefact is itself a source, with its image bytes.
    again = AnnotationConfig("conversations").records(str(tmp_path / "out"), None, "images")
    [record] = again
    assert again.stored(record, embed=True)[0]["bytes"] == (tmp_path / "a.png").read_bytes()


def test_law_3_same_source_same_bytes_and_a_draw_does_not_depend_on_the_order(tmp_path):
    records = [tagged(tmp_path, f"r{number}") for number in range(12)]
    forwards, backwards = write(tmp_path, records), write(tmp_path, records[::-1], "backwards.json")
    drawn = {}
    for name, source, size in (("a", forwards, 5), ("b", forwards, 5), ("c", backwards, 5), ("d", forwards, 8)):
        convert(source, tmp_path / name, max_rows=size)
        drawn[name] = [row["id"] for row in rows(tmp_path / name, "images")]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(drawn["a"]) == 5 and drawn["a"] == drawn["c"][::-1]
    assert set(drawn["a"]) < set(drawn["d"])
    assert drawn["a"] != [f"r{number}" for number in range(5)], "by chance, not the first ones"


def test_an_id_that_repeats_is_an_error_that_names_it(tmp_path):
    source = write(tmp_path, [tagged(tmp_path, "x"), tagged(tmp_path, "y"), tagged(tmp_path, "x")])
    with pytest.raises(ValueError, match=r"record 2: the id 'x' was used before.*number_rows"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", number_rows=True)
    assert [row["id"] for row in rows(tmp_path / "out", "images")] == ["0", "1", "2"]
    del (records := [tagged(tmp_path, "x")])[0]["id"]
    with pytest.raises(ValueError, match="record 0: the id is None"):
        convert(write(tmp_path, records), tmp_path / "other")


def test_the_recipe_does_what_the_functions_do(tmp_path, capsys):
    source = write(tmp_path, [tagged(tmp_path)])
    convert(source, tmp_path / "function")
    config = tmp_path / "annotate.yaml"
    config.write_text(f"dataset_name: {source}\noutput_dir: {tmp_path}/recipe\nsource_format: chain_of_thought_tags\n")
    spec = importlib.util.spec_from_file_location("annotate_recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    recipe.main(*TrlParser(recipe.ARGUMENTS).parse_args_and_config(["--config", str(config)]))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 1
    assert files_of(tmp_path / "recipe") == files_of(tmp_path / "function")


def test_another_conversion_is_refused_in_the_same_folder(tmp_path):
    source = write(tmp_path, [tagged(tmp_path)])
    convert(source, tmp_path / "out")
    with pytest.raises(AnotherRunError, match="source_format"):
        convert(source, tmp_path / "out", "conversations")


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_a_file_is_read_record_by_record_and_one_that_is_cut_off_is_an_error(tmp_path, name, monkeypatch):
    records = [{"id": str(number), "text": "a, [b], {c} ü " * number} for number in range(50)]
    path = Path(write(tmp_path, records, name))
    for size in (7, 64, 1 << 20):
        monkeypatch.setattr("sicog_trl.annotation.records._CHUNK", size)
        assert list(read_json(path)) == records
    path.write_text(path.read_text()[:-4])
    with pytest.raises(ValueError, match=rf"{name}: record \d+ .*cut off"):
        list(read_json(path))
    path.write_text('[{"id": 1}]' if name.endswith("n") else '{"id": 1}\n')
    assert list(read_json(path)) == [{"id": 1}]
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="record 0 is 1; a JSON object is needed"):
        list(read_json(path))


# The teacher (A.4)


def chain_for(name: str) -> str:
    return build_steps("chain_of_description", [*STEPS[:4], f"This is {name}. {STEPS[-1]}"])


class Teacher(StubServer):
    """A stub that answers `reply(name)` to a record whose caption is `caption <name>`."""

    def __init__(self, reply: Callable[[str], str | tuple[str, str]] = chain_for):
        super().__init__()
        self.reply = reply

    def choice(self, payload: dict, prompt: str, images: list[str], index: int) -> dict:
        reply = self.reply(name_of(prompt)) if "caption" in prompt else f"word {payload['seed'] + index}"
        text, ended = (reply, "stop") if isinstance(reply, str) else reply
        return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": ended}

    def asked(self) -> Counter:
        """How often each record was asked about."""
        prompts = [payload["messages"][0]["content"][-1]["text"] for payload in self.requests]
        return Counter(name_of(prompt) for prompt in prompts if "caption" in prompt)


def name_of(prompt: str) -> str:
    return re.search(r"caption (\w+)", prompt)[1]


def captioned(folder: Path, names: list[str], suffix: str = "png") -> str:
    records = []
    for shade, name in enumerate(names):
        image = picture(folder, f"{name}.{suffix}", shade)
        records.append({"id": name, "image": image, "conversations": talk("<image>\nDescribe.", f"caption {name}")})
    return write(folder, records)


def teach(source: str, output_dir: Path, server: StubServer, retry_failed: bool = False, **options) -> dict:
    config = AnnotationConfig("teacher", max_rows=options.pop("max_rows", None))
    teacher = TeacherConfig("stub", server.base_url, **{"concurrency": 2, **options})
    records = config.records(source, None, "train")
    return annotate_with_teacher(records, config, teacher, output_dir, retry_failed)


def test_a_teacher_sees_image_and_caption_and_its_steps_replace_the_caption(tmp_path):
    source = captioned(tmp_path, ["a", "b"])
    with Teacher() as server:
        summary = teach(source, tmp_path / "new" / "folder", server)
        asked = [payload for payload in server.requests if "caption" in str(payload["messages"])]
    assert summary["rows"] == {"chain_of_description": 2, "detailed_description": 2}
    image, text = asked[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,"), "the kind of the file, not always JPEG"
    assert all(f"Step {n}: {title}" in text["text"] for n, title in enumerate(CHAIN_OF_DESCRIPTION_STEPS, 1))
    assert (asked[0]["temperature"], asked[0]["max_tokens"]) == (0.2, 2048)
    chain, last, *_ = rows(tmp_path / "new" / "folder", "annotated")
    assert (chain["id"], chain["source_id"], chain["task"]) == ("a-chain_of_description", "a", "description")
    assert chain["completion"][0]["content"] == chain_for("a")
    assert last["completion"][0]["content"].startswith("This is a.")
    assert "caption" not in str(rows(tmp_path / "new" / "folder", "images"))
    artefacts = [{"path": str(tmp_path / "new" / "folder"), "split": "annotated"}]
    licences = {"image_license": "cc0-1.0", "text_license": "cc0-1.0"}
    push(PushConfig("me/annotated", artefacts, **licences, dry_run=True), tmp_path / "push")
    card = (tmp_path / "push" / "README.md").read_text()
    assert f"```\n{text['text'].replace('caption a', '{reference}')}\n```" in card and "| teacher | stub |" in card


def test_an_answer_that_is_no_annotation_is_dropped_by_name_kept_raw_and_asked_again_only_on_request(tmp_path):
    replies = {
        "bold": chain_for("bold").replace("Step 5:", "**Step 5:**"),
        "prose": "A red dot.",
        "four": chain_for("four").partition("Step 5")[0],
        "cut": (chain_for("cut"), "length"),
        "filtered": (chain_for("filtered"), "content_filter"),
        "short": build_steps("chain_of_description", [*STEPS[:4], "A tiny dot."]),
        "copied": build_steps("chain_of_description", [*STEPS[:4], "caption copied"]),
        "token": chain_for("token").replace("A dot.", "A <image>."),
        "down": chain_for("down"),
        "no": chain_for("no"),
    }
    source = captioned(tmp_path, list(replies))
    faults = {"down": "500", "no": "400"}
    with Teacher(replies.get) as server:
        server.fault = lambda prompt: faults.get(name_of(prompt)) if "caption" in prompt else None
        summary = teach(source, tmp_path / "out", server)
        reasons = {row["id"]: row["reason"] for row in rows(tmp_path / "out", "dropped")}
        assert reasons == {
            "prose": "no_steps",
            "four": "missing_step",
            "cut": "truncated",
            "filtered": "unfinished",
            "short": "too_short",
            "copied": "copied_reference",
            "token": "placeholder",
            "down": "server_error",
            "no": "refused",
        }
        assert {row["id"]: row["text"] for row in rows(tmp_path / "out", "dropped")}["prose"] == "A red dot."
        assert {row["source_id"] for row in rows(tmp_path / "out", "annotated")} == {"bold"}
        assert "told to say" not in str(rows(tmp_path / "out", "annotated"))
        assert server.asked()["down"] == 3, "three attempts"

        server.requests.clear()
        assert teach(source, tmp_path / "out", server, min_words=1)["kept"] == summary["kept"] + 1
        cost = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert (cost["teacher"], cost["calls"]) == ("stub", len(replies)) and cost["tokens"] > 100
        assert not server.requests, "thresholds are changed without asking anybody"

        faults.clear()
        server.reply = chain_for
        server.requests.clear()
        assert teach(source, tmp_path / "out", server, retry_failed=True)["kept"] == len(replies)
        assert server.asked() == Counter(reasons.keys())


def test_a_useless_answer_is_asked_for_with_another_seed(tmp_path):
    source = captioned(tmp_path, ["a"])
    with Teacher(lambda name: "A red dot.") as server:
        for retry_failed in (False, True, True):
            teach(source, tmp_path / "out", server, retry_failed)
        seeds = [payload["seed"] for payload in server.requests if "caption" in str(payload["messages"])]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]


@pytest.mark.parametrize("message", [None, {"role": "assistant", "content": [{"type": "text", "text": "A dot."}]}])
def test_a_choice_that_holds_no_text_costs_one_record_and_not_the_run(tmp_path, message):
    class Odd(Teacher):
        def answer(self, payload: dict) -> tuple[int, dict]:
            status, body = super().answer(payload)
            if "caption odd" in str(payload["messages"]):
                body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
            return status, body

    source = captioned(tmp_path, ["odd", "even"])
    with Odd() as server:
        summary = teach(source, tmp_path / "out", server, max_retries=0)
        assert summary == teach(source, tmp_path / "out", server)
        assert server.asked() == {"odd": 1, "even": 1}
    assert (summary["kept"], summary["dropped"]) == (1, {"server_error": 1})


def test_an_error_does_not_lose_what_was_answered_before_it(tmp_path, monkeypatch):
    """Answers that waited to be written were thrown away with the run, and paid for again."""
    names = list("abcdefgh")
    source = captioned(tmp_path, names)
    add = Answers.add
    monkeypatch.setattr(Answers, "add", lambda self, answer: (time.sleep(0.4), add(self, answer))[1])

    def fault(prompt: str) -> str | None:
        if "caption h" not in prompt:
            return None
        time.sleep(0.2)
        return "401"

    with Teacher() as server:
        server.fault = fault
        with pytest.raises(PermissionError):
            teach(source, tmp_path / "out", server, concurrency=8)
        monkeypatch.undo()
        monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
        server.fault = lambda prompt: None
        assert teach(source, tmp_path / "out", server)["kept"] == 8
        assert server.asked() == {**dict.fromkeys(names, 1), "h": 2}


def test_two_runs_in_one_folder_do_not_both_pay(tmp_path):
    source = captioned(tmp_path, ["a"])
    with Teacher() as server, Answers(tmp_path / "out" / "answers.jsonl").opened():
        with pytest.raises(RuntimeError, match="another process"):
            teach(source, tmp_path / "out", server)
        assert not server.requests


def test_a_server_that_goes_away_is_an_error_and_nothing_is_paid_twice(tmp_path):
    source = captioned(tmp_path, list("abcdef"))
    with Teacher() as server:
        server.fault = lambda prompt: "dead" if "caption e" in prompt else None
        with pytest.raises(ServerGoneError):
            teach(source, tmp_path / "out", server, concurrency=1)
        assert not (tmp_path / "out" / "summary.json").exists()
        server.dead, server.fault = False, lambda prompt: None
        before = server.asked()
        assert teach(source, tmp_path / "out", server)["kept"] == 6
        assert server.asked() - before == Counter("ef")


def test_more_rows_pay_only_for_the_new_ones_and_another_teacher_is_refused(tmp_path):
    source = captioned(tmp_path, list("abcdef"))
    with Teacher() as server:
        teach(source, tmp_path / "out", server, max_rows=2)
        teach(source, tmp_path / "out", server, max_rows=5)
        assert sorted(server.asked().values()) == [1] * 5
        with pytest.raises(AnotherRunError, match="temperature"):
            teach(source, tmp_path / "out", server, temperature=0.9)
        picture(tmp_path, "a.png", 250)
        picture(tmp_path, "b.png", 250)
        picture(tmp_path, "c.png", 250)
        with pytest.raises(AnotherRunError, match="another image or caption"):
            teach(source, tmp_path / "out", server, max_rows=5)


def test_an_image_that_cannot_be_shown_costs_nothing(tmp_path):
    source = captioned(tmp_path, ["a", "b", "c"])
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.png").unlink()
    with Teacher() as server:
        summary = teach(source, tmp_path / "out", server)
        assert server.asked() == {"a": 1}
    assert summary["dropped"] == {"missing_image": 1, "unreadable_image": 1}


def test_a_torn_last_line_is_asked_again_alone_and_a_damaged_one_elsewhere_is_an_error(tmp_path):
    source = captioned(tmp_path, list("abcd"))
    path = tmp_path / "out" / "answers.jsonl"
    with Teacher() as server:
        teach(source, tmp_path / "out", server)
        before = files_of(tmp_path / "out")
        torn = json.loads(path.read_bytes().splitlines()[-1])["id"]
        path.write_bytes(path.read_bytes()[:-9])
        server.requests.clear()
        teach(source, tmp_path / "out", server)
        assert server.asked() == {torn: 1}
        assert files_of(tmp_path / "out") == before
        path.write_bytes(b"{]\n" + path.read_bytes())
        with pytest.raises(ValueError, match=r"answers.jsonl, line 1"):
            teach(source, tmp_path / "out", server)


def test_law_4_after_kill_9_only_calls_that_were_under_way_are_paid_again(tmp_path):
    source, path = captioned(tmp_path, [f"r{number}" for number in range(12)]), tmp_path / "out" / "answers.jsonl"
    released, lock, told = threading.Event(), threading.Lock(), []

    def reply(name: str) -> str:
        with lock:
            told.append(name)
            waits = len(told) > 5
        if waits:
            released.wait(60)
        return chain_for(name)

    with Teacher(reply) as server:
        options = ["--dataset_name", source, "--output_dir", str(tmp_path / "out"), "--source_format", "teacher"]
        options += ["--teacher", "stub", "--base_url", server.base_url, "--concurrency", "2"]
        process = subprocess.Popen([sys.executable, RECIPE, *options], stderr=subprocess.PIPE, text=True)
        while not path.exists() or path.read_bytes().count(b"\n") < 5 or len(told) < 7:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = {json.loads(line)["id"] for line in path.read_bytes().splitlines()}
        released.set()
        summary = teach(source, tmp_path / "out", server)
        asked = server.asked()
    assert summary["kept"] == len(asked) == 12
    assert len(kept) == 5 and all(asked[name] == 1 for name in kept)
    assert sorted(asked.values()) == [1] * 10 + [2] * 2, "two were under way"
    with Teacher() as server:
        teach(source, tmp_path / "whole", server)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
