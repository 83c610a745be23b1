"""Inputs of `generate`: every kind of source becomes rows of one contract, and a bad image stays a row."""

import io
import json
import logging
import os
import pickle
import random
import struct
import tarfile
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Json, List, Value
from PIL import Image as PILImage
from PIL import ImageFile

from sicog_trl.data import IMAGES_FEATURES, ids, save
from sicog_trl.generation import ImageRows, inputs, load_images, sources
from sicog_trl.images import UnreadableImageError, identity, open_image


RNG = np.random.default_rng(0)
NOISE = PILImage.fromarray(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8))


def encoded(picture: PILImage.Image = NOISE, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(colour: str = "red") -> bytes:
    return encoded(PILImage.new("RGB", (8, 8), colour))


def stored(content: bytes | None, path: str | None = None) -> dict:
    return {"bytes": content, "path": path}


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def jsonl(*rows: dict) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def read(source: Dataset | Path | str, **options) -> list[dict]:
    """All rows as the contract has them, which `ImageRows` gives in pieces as well."""
    rows = ImageRows(source if isinstance(source, Dataset) else load_images(str(source), **options))
    table = rows.table(range(len(rows)))
    assert table.schema.equals(IMAGES_FEATURES.arrow_schema)
    apart = [rows.table(range(n, n + 1)) for n in range(len(rows))]
    assert pa.concat_tables(apart).to_pylist() == table.to_pylist()
    table.validate(full=True)
    return table.to_pylist()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Datasets keeps what it has read; a test must not find what another one has written."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


# Artefacts and Parquet -----------------------------------------------------------------------------------------------


ROWS = [
    {"id": "a", "images": [stored(png(), "a.png")], "question": "Why?", "answer": "so"},
    {"id": "b", "images": [], "question": None, "answer": None},
    {"id": "c", "images": None, "question": "Text?", "answer": None},
    {"id": "d", "images": [stored(b""), None, stored(None, "gone.png")], "question": None, "answer": ""},
]


def test_artefact_folder(tmp_path):
    save(Dataset.from_list(ROWS, features=IMAGES_FEATURES), tmp_path, "train")
    assert read(tmp_path) == ROWS
    with pytest.raises(FileNotFoundError, match="has no split 'test'; it has: train"):
        load_images(str(tmp_path), split="test")


def test_parquet_file_and_folder(tmp_path):
    schema = pa.schema({"id": pa.int64(), "image": pa.large_binary(), "question": pa.large_string(), "x": pa.int8()})
    for part in range(2):
        rows = [{"id": 2 * part + n, "image": png(), "question": None, "x": n} for n in range(2)]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / f"part[{part}].parquet")
    found = read(tmp_path)
    assert [row["id"] for row in found] == ["0", "1", "2", "3"]
    assert found[0] == {"id": "0", "images": [stored(png())], "question": None, "answer": None}
    assert read(tmp_path / "part[1].parquet") == found[2:]


def test_parquet_that_cannot_be_used_says_why(tmp_path):
    write(tmp_path, {"broken.parquet": b"no parquet"})
    with pytest.raises(ValueError, match=r"cannot read .*broken\.parquet.*: .*magic bytes"):
        load_images(str(tmp_path))
    pq.write_table(pa.table({"id": ["a"], "question": ["?"]}).slice(1), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="the input has no rows; there is nothing to generate for"):
        load_images(str(tmp_path / "empty.parquet"))
    pq.write_table(pa.table({"id": ["a"], "question": ["?"]}), tmp_path / "broken.parquet")
    assert len(load_images(str(tmp_path))) == 1


def test_files_belong_to_the_split_in_their_name(tmp_path, caplog):
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(pa.table({"id": [name], "question": ["?"]}), tmp_path / f"{name}.parquet")
    assert [row["id"] for row in read(tmp_path)] == ["train-00000-of-00001"]
    assert "1 files are not of the split 'train' and left out: test-00000-of-00001.parquet" in caplog.text
    assert [row["id"] for row in read(tmp_path, split="test")] == ["test-00000-of-00001"]
    with pytest.raises(FileNotFoundError, match="has no split 'dev'; it has: test, train"):
        load_images(str(tmp_path), split="dev")
    assert len(read(tmp_path / "test-00000-of-00001.parquet")) == 1  # a file that is named is wanted


# Image folders -------------------------------------------------------------------------------------------------------


def test_image_folder(tmp_path, caplog):
    files = {"b.PNG": png(), "sub[1]/test_c.png": b"", "sub[1]/deep/d.jpg": b"broken", "train_a.jpeg": png("blue")}
    write(tmp_path / "in", {**files, ".hidden/x.png": png(), "notes.txt": "x", "e.svg": "<svg/>"})
    found = read(tmp_path / "in")
    assert {row["id"] for row in found} == set(files)
    for row in found:
        assert row["images"] == [stored(None, str(tmp_path / "in" / row["id"]))]
    assert "2 files are no image files and are ignored; the first is e.svg" in caplog.text


def test_image_folder_may_be_named_in_any_way(tmp_path, monkeypatch):
    write(tmp_path / "a [1] *.tar", {"x/b.png": png()})
    monkeypatch.chdir(tmp_path)
    assert [row["id"] for row in read("./a [1] *.tar")] == ["x/b.png"]
    assert [row["id"] for row in read(".", config="a [1] *.tar")] == ["x/b.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [row["id"] for row in read("~/a [1] *.tar/x")] == ["b.png"]


def test_image_folder_with_metadata(tmp_path, caplog):
    rows = [
        {"file_name": "a.png", "id": 7, "question": "Which?", "answer": "red"},
        {"file_name": "sub/b.png", "id": 8, "question": None, "answer": None},
        {"file_name": None, "id": 9, "question": "Text?", "answer": None},
        {"file_name": None, "id": 10, "question": None, "answer": None},
        {"file_name": "gone.png", "id": 11, "question": None, "answer": None},
    ]
    images = {"a.png": png(), "sub/b.png": png(), "other.png": png()}
    write(tmp_path, {**images, "metadata.jsonl": jsonl(*rows)})
    found = {row["id"]: row for row in read(tmp_path)}
    assert list(found) == ["7", "8", "9", "10", "11"]
    assert found["7"]["images"] == [stored(None, str(tmp_path / "a.png"))]
    assert (found["7"]["question"], found["7"]["answer"]) == ("Which?", "red")
    assert (found["9"]["images"], found["10"]["images"]) == ([], [None])  # text only; nothing at all
    assert found["11"]["images"] == [stored(None, str(tmp_path / "gone.png"))]
    assert "1 images are not named by the metadata and ignored; the first is other.png" in caplog.text


@pytest.mark.parametrize("key", ["file_names", "frames_file_names"])
def test_image_folder_with_several_images_per_row(key, tmp_path, caplog):
    rows = [{key: ["b.png", "a.png"], "question": "Same?"}, {key: ["a.png"], "question": "Which?"}]
    write(tmp_path, {"a.png": png(), "b.png": png(), "metadata.jsonl": jsonl(*rows)})
    found = read(tmp_path)
    names = [[Path(image["path"]).name for image in row["images"]] for row in found]
    assert names == [["b.png", "a.png"], ["a.png"]]
    assert [row["id"] for row in found] == ["0", "1"]
    assert "the ids are the numbers of the rows" in caplog.text
    assert "not named" not in caplog.text


def test_image_folder_with_csv_metadata_and_columns_of_images(tmp_path):
    write(tmp_path, {"a.png": png(), "b.png": png(), "metadata.csv": "left_file_name,right_file_name\nb.png,a.png\n"})
    assert [Path(image["path"]).name for image in read(tmp_path)[0]["images"]] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images, Parquet files or WebDataset tars; it is empty"),
        ({"a.txt": "x"}, r"holds no images, .*, only files such as a\.txt"),
        ({"a.png": b"", "b.parquet": b""}, r"a mix: 1 image files \(the first is a\.png\), 1 Parquet files"),
        (
            {"data/train-00000-of-00001-ab12.parquet": b""},
            "1 Parquet files lie in sub-folders, the first is data/train",
        ),
        ({"x/b.tar": b""}, "1 tar files lie in sub-folders, the first is x/b.tar; name one sub-folder"),
        ({"train/a.png": b"", "test/b.png": b""}, r"has sub-folders for splits \(test, train\); name the one to use"),
        ({"a.png": b"", "metadata.jsonl": jsonl({"file": "a.png"})}, r"see metadata\.jsonl: `file_name`"),
        ({"a.png": b"", "metadata.jsonl": jsonl({"file_name": "../a.png"})}, r"Invalid metadata file_name '\.\./a"),
        ({"a.png": b"", "metadata.jsonl": jsonl({"file_names": []})}, "a list of at least one in `file_names`"),
        ({"a.png": b"", "metadata.jsonl": ""}, "Every row of the metadata names an image in `file_name`"),
        ({"a.tar": b"no tar"}, r"a\.tar is damaged or no tar file"),
    ],
)
def test_folder_that_cannot_be_used_says_why(files, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_images(str(write(tmp_path, files)))


def test_missing_source_is_named(tmp_path):
    for name in (str(tmp_path / "gone"), "gone.parquet", "./gone.tar"):
        with pytest.raises(
            FileNotFoundError, match=r"does not exist; run the stage .*a folder, a Parquet file, a \.tar"
        ):
            load_images(name)
    write(tmp_path, {"a.png": png(), "b.csv": "x"})
    with pytest.raises(ValueError, match="is neither a Parquet file nor a WebDataset"):
        load_images(str(tmp_path / "b.csv"))
    with pytest.raises(FileNotFoundError, match="has no split 'test'; name a sub-folder"):
        load_images(str(tmp_path), split="test")


def test_hub_dataset_is_loaded_as_everywhere_else(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "load", lambda *options: asked.append(options))
    load_images("owner/name@v1", "config", "test")
    load_images("name")
    assert asked == [("owner/name@v1", "config", "test"), ("name", None, "train")]


# WebDataset ----------------------------------------------------------------------------------------------------------


def test_webdataset(tmp_path, caplog):
    """The fields of late samples count too, and names that lead out of a folder are only names."""
    early = [(f"{n}.png", png()) for n in range(8)]
    text = json.dumps({"question": "Which?", "answer": 3, "more": [1]}).encode()
    late = [("../../x.jpg", b""), ("y.json", text), ("y.txt", b"unused"), ("z.json", b'{"id": 5, "question": "Z?"}')]
    write_tar(tmp_path / "part[1].tar", early)
    write_tar(tmp_path / "part[2].tar", late)
    found = read(tmp_path)
    assert [row["id"] for row in found] == [*map(str, range(8)), "../../x", "y", "5"]
    assert found[0]["images"] == [stored(png(), "0.png")]
    assert found[8]["images"] == [stored(b"", "../../x.jpg")]
    assert (found[9]["images"], found[9]["question"], found[9]["answer"]) == ([], "Which?", "3")
    assert "the fields txt are not used" in caplog.text
    assert read(tmp_path / "part[1].tar") == found[:8]


def test_webdataset_with_several_images_per_sample(tmp_path):
    names = ["a.10.png", "a.9.png", "a.0.PNG", "b.9.png", "c.txt"]
    found = read(write_tar(tmp_path / "w.tar", [(name, name.encode()) for name in names]))
    assert [[image and image["bytes"] for image in row["images"]] for row in found] == [
        [b"a.0.PNG", b"a.9.png", b"a.10.png"],
        [b"b.9.png"],
        [None],
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no samples with an image or a json"),
        ([("a.txt", b"x"), ("README", b"x")], "holds no samples with an image or a json; its fields: txt"),
        ([("a.png", b""), ("a.json", b"{nope")], r"w\.tar: a\.json is no JSON: Expecting property name"),
        ([("a.png", b""), ("a.png", b"")], "as webdataset: Duplicate field 'png' for sample 'a'"),
    ],
)
def test_webdataset_that_cannot_be_used_says_why(files, message, tmp_path):
    write_tar(tmp_path / "w.tar", files)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / "w.tar"))


def test_cut_off_tar_is_an_error(tmp_path):
    whole = write_tar(tmp_path / "w.tar", [(f"{n}.png", bytes(5000)) for n in range(9)]).read_bytes()
    (tmp_path / "w.tar").write_bytes(whole[:30_000])
    with pytest.raises(ValueError, match=r"w\.tar is damaged or no tar file: unexpected end of data"):
        load_images(str(tmp_path / "w.tar"))


# Columns -------------------------------------------------------------------------------------------------------------


def test_columns_of_images_stand_in_their_order():
    """As in MMMU: seven columns, most of them empty."""
    features = Features({"q": Value("string"), "image_1": Image(), "x": Value("int8"), "image_2": List(Image())})
    one, two = stored(b"1"), stored(b"2")
    rows = [
        {"q": "", "image_1": one, "x": 0, "image_2": [two, None]},
        {"q": "", "image_1": None, "x": 0, "image_2": [two]},
        {"q": "", "image_1": None, "x": 0, "image_2": None},
        {"q": "", "image_1": one, "x": 0, "image_2": []},
    ]
    found = read(Dataset.from_list(rows, features=features).rename_column("q", "question"))
    assert [row["images"] for row in found] == [[one, two, None], [two], [None], [one]]


def test_scalars_become_texts():
    features = Features(
        {"id": Value("float64"), "question": ClassLabel(names=["cat", "dog"]), "answer": Value("bool")}
    )
    dataset = Dataset.from_dict({"id": [1.5, 2], "question": [1, -1], "answer": [True, None]}, features=features)
    found = read(dataset)
    assert [list(row.values()) for row in found] == [["1.5", [], "dog", "true"], ["2", [None], None, None]]


@pytest.mark.parametrize("as_struct", [True, False])
def test_json_of_a_webdataset_from_the_hub(as_struct):
    content = {"id": 3, "question": "Which?", "answer": None}
    kind = {"id": Value("int64"), "question": Value("string"), "answer": Value("string")} if as_struct else Json()
    features = Features({"__key__": Value("string"), "json": kind})
    dataset = Dataset.from_list([{"__key__": "a", "json": content}, {"__key__": "b", "json": None}], features=features)
    assert [(row["id"], row["question"], row["answer"]) for row in read(dataset)] == [
        ("3", "Which?", None),
        ("b", None, None),
    ]


def test_rows_may_be_shuffled_sliced_and_selected():
    dataset = Dataset.from_list(ROWS, features=IMAGES_FEATURES)
    assert read(dataset.select([3, 0, 2])) == [ROWS[3], ROWS[0], ROWS[2]]
    assert read(dataset.select(range(1, 3))) == ROWS[1:3]
    assert sorted(row["id"] for row in read(dataset.shuffle(seed=0))) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["x"]}, r"the input has no column 'images'; it has \['id'\]"),
        ({"id": [], "question": []}, "the input has no rows; there is nothing to generate for"),
        ({"id": ["x"], "image": [[[1, 2]]]}, "the column 'image' holds .*; images are needed"),
        ({"id": ["x"], "question": [["a", "b"]]}, "the column 'question' holds list"),
        ({"id": ["x"], "question": ["?"], "answer": [{"a": 1}]}, "the column 'answer' holds struct"),
    ],
)
def test_unusable_columns_are_refused_at_once(columns, message):
    with pytest.raises(ValueError, match=message):
        ImageRows(Dataset.from_dict(columns))


def test_columns_of_large_images_are_gathered_in_pieces(monkeypatch):
    """An Arrow array ends at two gigabytes, which the images of a few columns may exceed together."""
    columns = {f"image_{c}": [stored(b"%d %d" % (c, n)) for n in range(9)] for c in range(3)}
    dataset = Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Image())))
    rows = ImageRows(dataset)
    expected = rows.table(range(9))
    monkeypatch.setattr(inputs, "_GATHERED_BYTES", 100)
    found = rows.table(range(9))
    assert found.to_pylist() == expected.to_pylist()
    assert found["images"].num_chunks > expected["images"].num_chunks == 1
    assert [image["bytes"] for image in found["images"][8].as_py()] == [b"0 8", b"1 8", b"2 8"]


def test_rows_travel_to_other_processes(tmp_path):
    write(tmp_path, {"a.png": png(), "b.png": png()})
    rows = ImageRows(load_images(str(tmp_path)))
    copy = pickle.loads(pickle.dumps(rows))
    assert copy.table(range(2)).equals(rows.table(range(2)))
    assert (copy.digests(1), copy.source) == (rows.digests(1), rows.source)


def test_source_tells_whether_files_were_touched(tmp_path):
    write(tmp_path, {"a.png": png(), "b.png": png()})
    before = ImageRows(load_images(str(tmp_path))).source
    assert ImageRows(load_images(str(tmp_path))).source == before
    os.utime(tmp_path / "a.png", (1, 1))
    assert ImageRows(load_images(str(tmp_path))).source != before


def test_no_image_is_decoded(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("an image was decoded")

    write(tmp_path, {"a.png": png(), "b.png": png()})
    monkeypatch.setattr(PILImage, "open", refuse)
    for dataset in (load_images(str(tmp_path)), Dataset.from_list(ROWS, features=IMAGES_FEATURES)):
        rows = ImageRows(dataset)
        rows.digests(1)
        rows.table(range(2))


# Rows of one task ----------------------------------------------------------------------------------------------------


ASKED = [None, "Which?", "", " \n", "Where?", "3"]


def with_questions(folder: Path, kind: str) -> Dataset:
    """The same six rows with these questions, from several kinds of sources."""
    pictures = [encoded(PILImage.new("RGB", (8, 8), (40 * n, 0, 0))) for n in range(6)]
    if kind == "folder":
        names = [f"{n}.png" for n in range(6)]
        lines = [{"file_name": name, "question": text} for name, text in zip(names, ASKED, strict=True)]
        write(folder, {**dict(zip(names, pictures, strict=True)), "metadata.jsonl": jsonl(*lines)})
        return load_images(str(folder))
    if kind == "tar":
        samples = zip(pictures, ASKED, strict=True)
        files = [
            (f"{n}.{end}", content)
            for n, (picture, text) in enumerate(samples)
            for end, content in (("png", picture), ("json", json.dumps({"question": text}).encode()))
        ]
        return load_images(str(write_tar(folder / "a.tar", files)))
    dataset = Dataset.from_dict({"image": list(map(stored, pictures)), "question": ASKED}).cast_column(
        "image", Image()
    )
    if kind == "memory":
        return dataset
    dataset.to_parquet(folder / "a.parquet")
    return load_images(str(folder / "a.parquet"))


@pytest.mark.parametrize("kind", ["memory", "parquet", "folder", "tar"])
def test_rows_of_one_task_are_those_of_the_whole(kind, tmp_path, monkeypatch, caplog):
    """Ids, images and texts are as in a run over all rows, nothing is decoded, and the hashes stay the same."""
    dataset = with_questions(tmp_path, kind)
    monkeypatch.setattr(PILImage, "open", lambda *args, **options: pytest.fail("an image was decoded"))
    caplog.set_level("INFO")
    whole = read(dataset)
    for task, numbers in (("reasoning", [1, 4, 5]), ("description", [0, 2, 3])):
        rows = ImageRows(dataset, task)
        assert rows.table(range(3)).to_pylist() == [whole[number] for number in numbers]
        assert rows.table(range(1, 2)).to_pylist() == [whole[numbers[1]]]
        assert (len(rows), rows.left_out) == (3, 3)
        assert f"3 of 6 rows are of the task {task}" in caplog.text
        assert rows.digests(2) == [rows.digest_of(rows.table(part)) for part in (range(2), range(2, 3))]
        again = ImageRows(dataset, task)
        assert (again.source, again.digests(2)) == (rows.source, rows.digests(2))
    assert len({ImageRows(dataset, task).source for task in (None, "description", "reasoning")}) == 3


def test_ids_are_the_numbers_of_all_rows_and_so_are_those_in_errors():
    questions = ["Why?" if n % 2 else None for n in range(300)]
    dataset = many(300).add_column("question", questions)
    rows = ImageRows(dataset.remove_columns("id"), "reasoning")
    assert rows.table(range(148, 150))["id"].to_pylist() == ["297", "299"]
    for last, message in ((None, "row 299: the id is null"), ("5", "row 299: the id '5' was used before")):
        bad = many(300, id=[*map(str, range(299)), last]).add_column("question", questions)
        with pytest.raises(ValueError, match=message):
            ImageRows(bad, "reasoning").digests(10)
        assert len(ImageRows(bad, "description").digests(10)) == 15


def test_a_task_without_rows_is_refused():
    with pytest.raises(ValueError, match="none of the 3 rows is of the task 'reasoning'; such rows have a question"):
        ImageRows(many(3), "reasoning")
    rows = ImageRows(many(3), "description")
    assert (len(rows), rows.left_out, rows.source) == (3, 0, ImageRows(many(3)).source)


# Digests -------------------------------------------------------------------------------------------------------------


def many(count: int, **columns) -> Dataset:
    rows = {"id": [f"row {n}" for n in range(count)], "image": [stored(b"%d" % n) for n in range(count)], **columns}
    return Dataset.from_dict(rows, features=Features({"id": Value("string"), "image": Image()}))


@pytest.mark.parametrize("batch_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("rows_per_shard", [1, 7, 300, 1000])
def test_digest_of_a_shard_is_that_of_its_table(rows_per_shard, batch_bytes, monkeypatch):
    rows = ImageRows(many(600))
    expected = rows.digests(rows_per_shard)
    monkeypatch.setattr(inputs, "_BATCH_BYTES", batch_bytes)
    assert rows.digests(rows_per_shard) == expected
    ranges = [range(start, min(start + rows_per_shard, 600)) for start in range(0, 600, rows_per_shard)]
    assert [rows.digest_of(rows.table(shard)) for shard in ranges] == expected
    assert len(set(expected)) == len(ranges)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in expected)


def test_digest_sees_every_change():
    base = {"id": "a", "images": [stored(b"1", "x")], "question": "Q", "answer": "A"}
    changes = [
        {},
        {"id": "b"},
        {"images": [stored(b"2", "x")]},
        {"images": [stored(b"1", "x")] * 2},
        {"images": []},
        {"images": None},
        {"images": [None]},
        {"images": [stored(None, "x")]},
        {"question": "A", "answer": "Q"},
        {"question": None},
        {"question": ""},
    ]
    rows = [Dataset.from_list([{**base, **change}], features=IMAGES_FEATURES) for change in changes]
    assert len({ImageRows(dataset).digests(5)[0] for dataset in rows}) == len(changes)


def test_digest_is_of_the_content_wherever_it_is_stored(tmp_path):
    files = {f"{n}.png": png() + bytes([n]) for n in range(20)}
    folders = [write(tmp_path / name, files) for name in ("one", "two")]
    digests = [ImageRows(load_images(str(folder))).digests(8) for folder in folders]
    assert digests[0] == digests[1]
    rows = [{"id": name, "images": [stored(files[name])]} for name in sorted(files)]
    features = Features({name: IMAGES_FEATURES[name] for name in ("id", "images")})
    assert ImageRows(Dataset.from_list(rows, features=features)).digests(8) == digests[0]
    (folders[1] / "3.png").write_bytes(png() + bytes([99]))  # of the same size
    assert ImageRows(load_images(str(folders[1]))).digests(8) != digests[0]


def test_identity_of_what_cannot_be_read(tmp_path):
    one, two = (stored(None, str(tmp_path / name / "a.png")) for name in ("x", "y"))
    assert identity(one) == identity(two) == "missing:a.png"
    assert identity(stored(None, "https://example.org/a.png")) == "missing:https://example.org/a.png"
    assert identity(None) is None and identity(stored(None)) is None
    assert identity(stored(b"")) is not None


@pytest.mark.parametrize("count", [3, 10_000])
def test_duplicates_are_found_however_far_apart(count, monkeypatch):
    ids = [f"row {n}" for n in range(count)]
    ids[-1] = "row 0"
    with pytest.raises(ValueError, match=f"row {count - 1}: the id 'row 0' was used before; ids must be unique"):
        ImageRows(many(count, id=ids)).digests(512)
    with pytest.raises(ValueError, match="row 1: the id 'x' was used before"):
        ImageRows(many(count, id=["x"] * count)).digests(512)


def test_equal_hashes_of_different_ids_are_no_duplicates(monkeypatch):
    monkeypatch.setattr(ids, "hash", lambda text: 1, raising=False)
    expected = ImageRows(many(20)).digests(5)
    monkeypatch.undo()
    assert ImageRows(many(20)).digests(5) == expected


def test_null_id_is_named():
    with pytest.raises(ValueError, match="row 601: the id is null"):
        ImageRows(many(700, id=[None if n == 601 else str(n) for n in range(700)])).digests(100)


def peak_of(rows: ImageRows) -> int:
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        rows.digests(512)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def test_planning_100_000_rows_takes_bounded_memory(tmp_path):
    content = pa.array([b"%090d" % n for n in range(100_000)])
    table = pa.table({"image": content, "id": pa.array(range(100_000)), "question": ["?" * 100] * 100_000})
    pq.write_table(table, tmp_path / "a.parquet")
    del table, content
    peak = peak_of(ImageRows(load_images(str(tmp_path / "a.parquet"))))
    assert peak < 12 << 20  # 32 MB of rows; 16 bytes per id and a batch are held


def test_planning_large_images_takes_bounded_memory(monkeypatch):
    monkeypatch.setattr(inputs, "_BATCH_BYTES", 1 << 20)
    image = stored(bytes(500_000))
    features = Features({"id": Value("string"), "left": Image(), "right": Image()})
    rows = [{"id": str(n), "left": image, "right": image} for n in range(50)]
    assert peak_of(ImageRows(Dataset.from_list(rows, features=features))) < 5 << 20  # 50 MB of images


# Images --------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width: int, height: int, depth: int = 8, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


BOMB = png_of(60_000, 60_000)
ICON = struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(BOMB), 22) + BOMB
_FRAME = b"," + struct.pack("<HHHH", 0, 0, 20_000, 20_000) + b"\0\2\2\x4c\1\0;"
GIF = b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0" + bytes(6) + _FRAME  # the screen is small, a frame is not
_TAGS = ((256, 20_000), (257, 20_000), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, 20_000), (279, 16))
TIFF = b"II*\0\10\0\0\0\x09\0" + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in _TAGS) + bytes(300)
_MOVING = encoded(
    PILImage.new("RGB", (9, 9)), "WEBP", save_all=True, append_images=[PILImage.new("RGB", (9, 9), "red")]
)
_CANVAS = _MOVING.index(b"VP8X") + 12
ANIMATION = _MOVING[:_CANVAS] + b"\xff\x3f\0\xff\x3f\0" + _MOVING[_CANVAS + 6 :]
TEXT = (
    BOMB[:8]
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
)
LARGE = PILImage.fromarray(RNG.integers(0, 256, (100, 100, 3), dtype=np.uint8))
HOSTILE = {
    "empty": (b"", "the file is empty"),
    "garbage": (b"no image", "not an image that Pillow can read$"),
    "svg": (b"\xef\xbb\xbf <svg xmlns='http://www.w3.org/2000/svg'/>", "it looks like SVG, HTML or other XML"),
    "html": (b"<!DOCTYPE html><p>404", "it looks like SVG, HTML or other XML"),
    "bomb": (BOMB, "more than 178,956,970 pixels are not decoded; scale the image down"),
    "just too large": (png_of(13_378, 13_377), "more than 178,956,970 pixels are not decoded"),
    "bomb in an icon": (ICON, "more than 178,956,970 pixels are not decoded"),
    "bomb in a frame": (GIF, "more than 178,956,970 pixels are not decoded"),
    "bomb in a TIFF": (TIFF, "more than 178,956,970 pixels are not decoded"),
    "bomb in an animation": (ANIMATION, "more than 178,956,970 pixels are not decoded"),
    "bomb in a text": (TEXT, "Decompressed data too large"),
    "absurd": (png_of(2**31 - 1, 2**31 - 1), "more than 178,956,970 pixels are not decoded"),
    "no pixels": (png_of(0, 5), "not an image|no pixels"),
    "cut PNG": (encoded(LARGE)[:9_000], "damaged or not supported: OSError"),
    "cut JPEG": (encoded(LARGE, "JPEG")[:2_000], "damaged or not supported: OSError: image file is truncated"),
    "cut WebP": (encoded(LARGE, "WEBP")[:1_000], "damaged or not supported|not an image"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS is a program"),
    "chunk": (png()[:37] + b"/\xfaC-" + png()[41:], "damaged or not supported|not an image"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("switches", [(False, 89_478_485), (True, None), (True, 1)])
def test_hostile_images_are_refused(name, switches, monkeypatch, tmp_path):
    """Whatever other libraries have switched on for the whole process, which they find again as it was."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", switches[0])
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", switches[1])
    content, message = HOSTILE[name]
    (tmp_path / "a.png").write_bytes(content)
    tracemalloc.start()
    for image in (stored(content), stored(None, str(tmp_path / "a.png"))):
        with pytest.raises(UnreadableImageError, match=message) as caught:
            open_image(image)
        assert "0x" not in str(caught.value)  # an address in memory would differ from run to run
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert switches == (ImageFile.LOAD_TRUNCATED_IMAGES, PILImage.MAX_IMAGE_PIXELS)
    assert open_image(stored(png()))[0].size == (8, 8)


def test_threads_do_not_switch_strictness_off_for_each_other(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encoded(PILImage.fromarray(RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8)), "JPEG")

    def refused(number: int) -> bool:
        try:
            open_image(stored(whole if number % 2 else whole[: len(whole) // 2]))
        except UnreadableImageError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(refused, range(200))) == [True, False] * 100
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "neither bytes nor path"),
        (stored(None), "neither bytes nor path"),
        (stored(None, "/gone/a.png"), "no such file: /gone/a.png"),
        (stored(None, "/"), "no such file: /"),
        (stored(None, "HTTP://example.org/a.png"), "is a web address, and nothing is fetched"),
        (stored(None, "file:///a.png"), "is a web address, and nothing is fetched"),
        (stored(None, "a\0b"), "damaged or not supported|no such file"),
    ],
)
def test_image_that_is_not_there_is_refused(image, message):
    with pytest.raises(UnreadableImageError, match=message):
        open_image(image)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_raise_nothing_else():
    rng = random.Random(0)
    refused = 0
    files = [encoded(NOISE, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "JPEG2000")]
    for content in files:
        for _ in range(60):
            damaged = bytearray(content[: rng.randrange(1, len(content) + 1)])
            for _ in range(4):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                open_image(stored(bytes(damaged)))
            except UnreadableImageError:
                refused += 1
    assert refused > 100


TRANSPARENT = PILImage.fromarray(RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA")
TURNED = PILImage.Exif()
TURNED[0x0112] = 6
PALETTE = NOISE.quantize(8)
SIXTEEN = PILImage.fromarray(RNG.integers(0, 65536, (9, 7), dtype=np.uint16))
MOVING = {"save_all": True, "append_images": [NOISE.rotate(180)]}
READABLE = {
    "png": (encoded(), True),
    "jpeg": (encoded(kind="JPEG"), True),
    "webp": (encoded(kind="WEBP"), True),
    "turned": (encoded(exif=TURNED), False),
    "bmp": (encoded(kind="BMP"), False),
    "palette": (encoded(PALETTE), False),
    "transparent palette": (encoded(PALETTE, transparency=0), False),
    "transparent colour": (encoded(transparency=(1, 2, 3)), False),
    "transparent": (encoded(TRANSPARENT), False),
    "grey": (encoded(NOISE.convert("L")), False),
    "grey and transparent": (encoded(TRANSPARENT.convert("LA")), False),
    "sixteen bits": (encoded(SIXTEEN), False),
    "sixteen bits, colour": (png_of(2, 2, 16, (b"\0" + b"\x12\x34" * 6) * 2), False),
    "cmyk": (encoded(NOISE.convert("CMYK"), "JPEG"), False),
    "gif": (encoded(kind="GIF", **MOVING), False),
    "moving webp": (encoded(kind="WEBP", lossless=True, **MOVING), False),
    "moving png": (encoded(**MOVING), False),
}


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_generation_sees_what_training_will_see(name):
    content, plain = READABLE[name]
    picture, unchanged = open_image(stored(content, "misnamed.txt"))
    trained = Image().decode_example(stored(content)).convert("RGB")
    assert (picture.mode, picture.size) == ("RGB", trained.size)
    assert (np.asarray(picture) == np.asarray(trained)).all()
    assert unchanged is plain


def test_scaled_image_is_not_unchanged():
    picture, unchanged = open_image(stored(encoded(LARGE)), max_pixels=2_500)
    assert (picture.size, unchanged) == ((50, 50), False)
    assert open_image(stored(encoded(LARGE)), max_pixels=10_000)[1] is True
    assert open_image(stored(encoded(LARGE.resize((1, 900)))), max_pixels=10)[0].size == (1, 94)


def test_warnings_go_to_the_log_of_this_module(tmp_path, caplog):
    write(tmp_path, {"a.png": png(), "b.txt": "x"})
    with caplog.at_level(logging.WARNING):
        load_images(str(tmp_path))
    assert {record.name for record in caplog.records} == {"sicog_trl.generation.sources"}
