"""The column contract is checked: what breaks it is named, what keeps it passes, memory and images are left alone."""

import io
import subprocess
import sys
import tracemalloc

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from sicog_trl.data import (
    CANDIDATES_FEATURES,
    CURATED_FEATURES,
    IMAGES,
    IMAGES_FEATURES,
    MESSAGES,
    PREFERENCE_FEATURES,
    load,
    save,
    splits,
    validate,
)
from sicog_trl.data.__main__ import main, plain
from sicog_trl.data.ids import repeated_id, repeated_rows


def stored(content: bytes | None = None, path: str | None = None) -> dict:
    return {"bytes": content, "path": path}


def png(size: tuple[int, int] = (8, 8)) -> dict:
    buffer = io.BytesIO()
    PILImage.new("RGB", size, "red").save(buffer, "PNG")
    return stored(buffer.getvalue())


def turn(role: str, content: str | None) -> dict:
    return {"role": role, "content": content}


ASKED, ANSWERED = [turn("user", "What is it?")], [turn("assistant", "A red square.")]
ROW = {
    "images": [png()],
    "prompt": ASKED,
    "completion": ANSWERED,
    "task": "description",
    "mode": "short_caption",
    "consistency": 0.5,
    "num_candidates": 3,
}


def curated(*changes: dict, count: int = 3) -> Dataset:
    """Rows that keep the contract, of which the last ones are changed."""
    rows = [{**ROW, "id": f"row-{n}"} for n in range(count)]
    for row, change in zip(rows[-len(changes) :] if changes else [], changes, strict=True):
        row |= change
    return Dataset.from_list(rows, features=CURATED_FEATURES)


@pytest.mark.parametrize("pool", ["annotated", "preference", "unlabelled", "development", "test"])
@pytest.mark.parametrize("decode", [False, True])
def test_the_digits_world_keeps_the_contract(pool, decode, digits_world):
    for split in splits(digits_world / pool):
        dataset = load(str(digits_world / pool), split=split)
        found = validate(dataset, decode_images=decode)
        assert found, found.lines()
        assert (found.num_rows, found.num_images) == (len(dataset), len(dataset))
        assert found.sizes.total() == len(dataset)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"id": None}, "no id", "it has no id"),
        ({"id": ""}, "no id", "it has no id"),
        ({"id": "row-0"}, "repeated id", "the id stands in row 0 too"),
        ({"prompt": []}, "empty", "there is no text in the column prompt"),
        ({"completion": None}, "empty", "there is no text in the column completion"),
        ({"completion": [turn("assistant", " \n")]}, "empty", "there is no text in the column completion"),
        ({"completion": [turn("assistant", None)]}, "empty", "there is no text in the column completion"),
        ({"completion": [None]}, "empty", "there is no text in the column completion"),
        ({"prompt": ANSWERED}, "roles", "roles do not alternate from user to assistant: assistant, assistant"),
        ({"prompt": ASKED * 2}, "roles", "roles do not alternate from user to assistant: user, user, assistant"),
        ({"completion": ASKED}, "roles", "roles do not alternate"),
        ({"completion": ANSWERED + ASKED}, "roles", "prompt + completion: roles do not alternate"),
        ({"prompt": [*ASKED, turn("system", "x")]}, "roles", "user, system, assistant"),
        ({"prompt": [turn("human", "x")]}, "roles", "the role 'human' is none of system, user, assistant"),
        ({"prompt": [turn("user", "Look: <image> !")]}, "placeholder", "the column prompt holds '<image>': 'Look:"),
        ({"completion": [turn("assistant", "<|image_pad|>")]}, "placeholder", "the column completion holds"),
        ({"completion": [turn("assistant", "x" * 1_000_001)]}, "too long", "completion holds 1,000,001 characters"),
        ({"id": "x" * 1_000_001}, "too long", "the column id holds 1,000,001 characters; 1,000,000 are allowed"),
        ({"images": [None]}, "image", "its image cannot be read: ValueError: one of its images is null"),
        ({"images": [png(), stored()]}, "image", "image 2 of 2 cannot be read"),
        ({"images": [stored(b"")]}, "image", "its image cannot be read: the file is empty"),
        ({"images": [stored(None, "https://e.org/a.png")]}, "image", "'https://e.org/a.png' is a web address"),
    ],
)
def test_a_row_that_breaks_the_contract_is_named(change, kind, message):
    found = validate(curated(change))
    assert not found and found.bad_rows == 1 and found.faults == {kind: 1}
    assert list(found.named) == [2] and not found.columns
    assert message in found.lines()[1] and found.lines()[1].startswith("row 2 (id ")
    assert len(found.lines()[1]) < 400
    with pytest.raises(ValueError, match=r"the pool cannot be used as it is\n1 of 3 rows cannot be used"):
        found.refuse("the pool")


def test_several_turns_and_a_system_turn_are_no_fault():
    chat = [turn("system", "Be brief."), *ASKED, *ANSWERED, *ASKED]
    assert validate(curated({"prompt": chat}, {"images": []}, {"images": None}))
    rows = Dataset.from_list([{"messages": [*chat, *ANSWERED]}], features=Features({"messages": MESSAGES}))
    assert validate(rows, columns=False)
    assert not validate(rows.map(lambda row: {"messages": row["messages"][:-1]}), columns=False)


def test_the_first_ten_rows_are_named_and_all_are_counted():
    found = validate(curated(*[{"completion": []}] * 3, *[{"images": [None], "prompt": []}] * 20, count=50))
    assert (found.bad_rows, found.faults) == (23, {"empty": 23, "image": 20})
    assert list(found.named) == list(range(27, 37))
    first, *named, last = found.lines()
    assert first == "23 of 50 rows cannot be used (empty 23, image 20):"
    assert [line.split(":")[0] for line in named] == [f"row {n} (id 'row-{n}')" for n in range(27, 37)]
    assert named[-1].count("; ") == 2 and last == "... and 13 more"


def test_images_are_opened_and_decoded_only_when_asked(monkeypatch):
    cut = stored(png((30, 50))["bytes"][:-30])
    images = [stored(b"no image")], [stored(None, "gone.png"), png((3, 5))], [cut]
    dataset = curated(*({"images": each} for each in images))
    found = validate(dataset, decode_images=True)
    assert found.faults == {"image": 3} and found.sizes == {(3, 5): 1}
    monkeypatch.setattr("sicog_trl.data.validation.open_image", None)
    found = validate(dataset)
    assert found.faults == {"image": 2} and found.sizes == {(3, 5): 1, (30, 50): 1}
    assert "not an image that Pillow can read" in found.named[0][1]
    assert found.named[1][1] == "image 1 of 2 cannot be read: no such file: gone.png"


def test_one_image_instead_of_a_list():
    rows = [{"id": str(n), "image": image} for n, image in enumerate([png(), None, stored(b"")])]
    found = validate(Dataset.from_list(rows, features=Features({"id": Value("string"), "image": Image()})))
    assert (found.num_images, list(found.named)) == (2, [2])


def test_sides_of_a_pair_differ():
    row = {**ROW, "id": "a", "chosen": ANSWERED, "rejected": ANSWERED}
    row = {name: row.get(name) for name in PREFERENCE_FEATURES}
    assert validate(Dataset.from_list([row], features=PREFERENCE_FEATURES)).faults == {"same sides": 1}
    row |= {"rejected": [turn("assistant", "A blue square.")]}
    assert validate(Dataset.from_list([row], features=PREFERENCE_FEATURES))


def test_candidates_have_texts_or_an_error():
    def rows(candidates: list[dict], error: str | None) -> Dataset:
        row = {"id": "a", "images": [], "question": "Q?", "answer": None, "task": "reasoning"}
        return Dataset.from_list([{**row, "candidates": candidates, "error": error}], features=CANDIDATES_FEATURES)

    blank = dict.fromkeys(CANDIDATES_FEATURES["candidates"].feature)
    assert validate(rows([{**blank, "text": ""}], None)) and validate(rows([], "unreadable_image"))
    assert validate(rows([], None)).faults == {"empty": 1}
    assert validate(rows([blank], None)).faults == {"empty": 1}
    assert validate(rows([{**blank, "text": "x" * 1_000_001}], None)).faults == {"too long": 1}


def test_an_image_that_generate_could_not_read_is_no_news():
    row = dict.fromkeys(CANDIDATES_FEATURES) | {"id": "a", "images": [stored(b"no image")], "candidates": []}
    rows = [{**row, "error": error} for error in ("unreadable_image: row 'a'", None)]
    found = validate(Dataset.from_list(rows, features=CANDIDATES_FEATURES), unique_ids=False, decode_images=True)
    assert list(found.named) == [1] and found.faults == {"image": 1, "empty": 1}


def test_a_row_of_images_has_an_image_or_a_question():
    rows = [{"id": "a", "images": [], "question": " "}, {"id": "b", "images": [], "question": "Q?"}]
    rows = [{**row, "answer": None} for row in rows]
    assert list(validate(Dataset.from_list(rows, features=IMAGES_FEATURES)).named) == [0]


def parts(texts: list[str], images: int = 0) -> list[dict]:
    content = [{"type": "image", "text": None}] * images + [{"type": "text", "text": text} for text in texts]
    return [{"role": "user", "content": content}]


def test_contents_in_parts_place_each_image_once():
    answer = [{"role": "assistant", "content": parts(["A"])[0]["content"]}]
    rows = [{"id": str(n), "images": [png()] * n, "prompt": parts(["Q"], n), "completion": answer} for n in range(3)]
    assert validate(Dataset.from_list(rows).cast_column("images", IMAGES))
    rows[1]["prompt"], rows[2]["prompt"] = parts(["Q"], 2), parts([" "])
    found = validate(Dataset.from_list(rows).cast_column("images", IMAGES))
    assert found.faults == {"images": 1, "empty": 1}
    assert found.named[1][1] == "prompt + completion: 2 images are placed in the text, and the row has 1"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": Value("int64")}, r"the column 'id' holds Value\('int64'\); Value\('string'\) is needed"),
        ({"images": List(Value("int64"))}, "the column 'images' holds List"),
        ({"prompt": Value("string")}, "the column 'prompt' holds .*; a list of messages is needed"),
        ({"prompt": List({"role": Value("string")})}, "a list of messages is needed"),
        ({"candidates": List({"text": Value("int64")})}, "the column 'candidates' holds"),
        ({"question": List(Value("string"))}, "the column 'question' holds"),
        ({"prompt": MESSAGES, "completion": List({**MESSAGES.feature, "content": List({"text": Value("string")})})},
         "some columns of messages hold texts as content and others lists of parts"),
        ({"answer": Value("string")}, "there is no column 'id'"),
        ({"image": Value("string")}, r"the column 'image' holds Value\('string'\); Image"),
        ({"conversations": List({"from": Value("string")})}, "recipes/annotate.py makes training rows"),
        ({"text": Value("string")}, r"no step reads any of the columns \['id', 'text'\]"),
    ],
)  # fmt: skip
def test_columns_of_wrong_types_are_named(columns, message):
    features = Features(columns if "answer" in columns else {"id": Value("string"), **columns})
    found = validate(Dataset.from_dict({name: [] for name in features}, features=features))
    with pytest.raises(ValueError, match=message):
        found.refuse("it")
    assert len(found.columns) == 1
    assert validate(Dataset.from_dict({name: [] for name in features}, features=features), columns=False)


def test_large_strings_and_older_candidates_are_as_good():
    features = {"id": Value("large_string"), "candidates": List({"text": Value("string")}), "error": Value("string")}
    row = {"id": "a", "candidates": [{"text": "x"}], "error": None}
    assert validate(Dataset.from_list([row], features=Features(features)))


def test_ids_of_a_mixture_may_repeat():
    dataset = curated({"id": "row-0"}, {"id": None})
    assert validate(dataset, unique_ids=False)
    found = validate(dataset)
    assert found.named[1][1] == "the id stands in row 0 too" and found.named[2][1] == "it has no id"


def test_repeated_ids_are_found_across_datasets():
    one, two = (Dataset.from_dict({"id": ids}) for ids in (["a", "b"], ["c", "b", "a", "b"]))
    assert repeated_id([one, two]) == ("b", [0, 1, 1])
    assert repeated_id([one]) is None and repeated_id([]) is None
    assert repeated_rows(lambda: [["x", "y"], [], ["y", "x", "y"]]) == {"y": [1, 2, 4], "x": [0, 3]}


def test_memory_is_that_of_a_batch(tmp_path):
    table = curated(count=1).with_format("arrow")[:]
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for number in range(2000):
            image = [[stored(bytes([number % 256]) * 100_000)]]
            changed = {"images": image, "id": [str(number)]}
            rows = {name: changed.get(name, table[name].to_pylist()) for name in table.schema.names}
            writer.write_table(table.from_pydict(rows, schema=table.schema))
    dataset = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    tracemalloc.start()
    found = validate(dataset, decode_images=True)  # 200 MB of what is no image
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.faults == {"image": 2000} and peak < 32 << 20


# The command line ----------------------------------------------------------------------------------------------------


def test_command_line_shows_a_row_as_the_model_reads_it(digits_world, digits_model, capsys):
    assert main([str(digits_world / "annotated"), "--model_name_or_path", str(digits_model)]) == 0
    shown = capsys.readouterr().out
    for split in splits(digits_world / "annotated"):
        assert f"split {split}: " in shown
    assert shown.count("every row and column is as the contract has it") == len(splits(digits_world / "annotated"))
    assert "[4 image tokens]" in shown
    assert "pixels: 32 × 32 to 32 × 32" in shown and "tokens, 4 of images, " in shown and "<|im_end|>\n⟧" in shown
    assert main([str(digits_world / "preference"), "--model_name_or_path", str(digits_model)]) == 0
    assert "\nchosen:\n" in (shown := capsys.readouterr().out) and "\nrejected:\n" in shown
    assert main([str(digits_world / "unlabelled"), "--no_decode_images"]) == 0
    assert "[image of 32 × 32 pixels]" in capsys.readouterr().out


def test_command_line_names_what_is_wrong_and_shows_a_good_row(tmp_path, capsys):
    cut = png((30, 50))["bytes"][:-30]
    save(curated({"images": [stored(cut)]}, {"completion": []}, count=4), tmp_path, "curated")
    save(curated(), tmp_path, "more")
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "2 of 4 rows cannot be used (image 1, empty 1):\nrow 2 (id 'row-2'): its image cannot be read" in shown
    assert "row 0 (id 'row-0'):\n[image of 8 × 8 pixels]\nprompt, user: What is it?" in shown
    assert main([str(tmp_path), "--dataset_split", "curated", "--no_decode_images"]) == 1
    assert "1 of 4 rows cannot be used (empty 1)" in capsys.readouterr().out
    assert main([str(tmp_path), "--dataset_split", "more"]) == 0


def test_command_line_says_what_is_missing(tmp_path):
    for folder, message in ((tmp_path, "is no artefact folder"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(SystemExit, match=message):
            main([str(folder)])


def test_texts_cannot_steer_the_terminal(tmp_path, capsys):
    hostile = "\x1b[2J\x1b]0;owned\x07\r\b\u202eabc"
    answer = {"completion": [turn("assistant", hostile)]}
    save(curated(answer, answer | {"id": hostile, "images": [None]}, count=2), tmp_path, "train")
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "\\x1b[2J\\x1b]0;owned\\x07\\r\\x08\\u202eabc" in shown
    assert all(each.isprintable() or each == "\n" for each in shown)
    assert plain("é ×\n⟦") == "é ×\n⟦"


def test_it_runs_as_a_module(tmp_path):
    save(curated({"prompt": []}), tmp_path, "train")
    done = subprocess.run([sys.executable, "-m", "sicog_trl.data", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "there is no text in the column prompt" in done.stdout, done.stderr
