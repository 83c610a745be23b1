"""The column contract on disk: written whole or not at all, read by name, mixed by weight."""

import hashlib
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value

from sicog_trl.data import (
    ANNOTATED_FEATURES,
    CURATED_FEATURES,
    DROPPED_FEATURES,
    IMAGES_FEATURES,
    MixtureConfig,
    load,
    load_mixture,
    num_rows,
    save,
    split_file,
    write_card,
    writing,
)
from sicog_trl.files import is_local, replacing, write_json


GARBAGE = {"bytes": b"this is no image", "path": None}


def numbers(*values: int) -> Dataset:
    return Dataset.from_dict({"id": [str(value) for value in values], "value": list(values)})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def training_rows(name: str, count: int) -> Dataset:
    row = {"images": [GARBAGE], "task": "description", "mode": "short_caption"}
    rows = [
        {
            **row,
            "id": f"{name}-{i}",
            "source_id": f"{name}-{i}",
            "prompt": [{"role": "user", "content": f"{name}?"}],
            "completion": [{"role": "assistant", "content": f"{name} {i}"}],
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows, features=ANNOTATED_FEATURES)


def sources_of(mixed: Dataset) -> list[str]:
    return [row["prompt"][0]["content"].rstrip("?") for row in mixed.select_columns("prompt")]


def test_saved_split_is_an_ordinary_dataset(tmp_path):
    dataset = numbers(3, 1, 2)
    path = save(dataset, tmp_path / "artefact", "train")
    assert path == split_file(tmp_path / "artefact", "train")
    assert files(tmp_path) == ["artefact/data/train-00000-of-00001.parquet"]
    for loaded in (load(str(tmp_path / "artefact")), datasets.load_dataset(str(tmp_path / "artefact"), split="train")):
        assert loaded.to_list() == dataset.to_list()
        assert loaded.features == dataset.features
    assert num_rows(tmp_path / "artefact", "train") == 3


def test_selected_rows_are_saved_in_their_order(tmp_path):
    save(numbers(*range(5)).select([4, 0, 2]), tmp_path, "train")
    assert load(str(tmp_path))["value"][:] == [4, 0, 2]


def test_config_is_a_sub_folder(tmp_path):
    save(numbers(1), tmp_path / "one", "train")
    assert load(str(tmp_path), "one")["value"][:] == [1]


@pytest.mark.parametrize("features", [IMAGES_FEATURES, ANNOTATED_FEATURES, CURATED_FEATURES, DROPPED_FEATURES])
def test_split_without_rows_is_read_with_its_columns(features, tmp_path):
    save(Dataset.from_dict({name: [] for name in features}, features=features), tmp_path, "train")
    loaded = load(str(tmp_path))
    assert len(loaded) == 0
    assert loaded.features == features


def test_law_2_images_are_copied_without_decoding(tmp_path):
    """Law 2: bytes that are no image pass through saving, loading and mixing untouched."""
    row = {"id": "a", "images": [GARBAGE, GARBAGE], "question": None, "answer": None}
    save(Dataset.from_list([row], features=IMAGES_FEATURES), tmp_path / "one", "train")
    save(load(str(tmp_path / "one")), tmp_path / "two", "train")
    assert pq.read_table(split_file(tmp_path / "two", "train"))["images"].to_pylist() == [[GARBAGE, GARBAGE]]
    save(training_rows("x", 2), tmp_path / "x", "train")
    mixed = load_mixture(MixtureConfig(datasets=[{"path": str(tmp_path / "x")}]))
    assert mixed.with_format("arrow")[:]["images"].to_pylist() == [[GARBAGE]] * 2


def test_law_4_split_appears_whole_or_not_at_all(tmp_path):
    """Law 4: what fails or is killed while writing leaves the split as it was."""
    schema = pa.schema({"value": pa.int64()})
    with pytest.raises(RuntimeError, match="cut off"), writing(tmp_path, "train", schema) as writer:
        writer.write_table(pa.table({"value": [1]}, schema=schema))
        assert not split_file(tmp_path, "train").exists()
        raise RuntimeError("cut off")
    assert files(tmp_path) == []

    save(numbers(1, 2), tmp_path, "train")
    before = split_file(tmp_path, "train").read_bytes()
    with pytest.raises(RuntimeError), writing(tmp_path, "train", schema):
        raise RuntimeError("cut off")
    assert split_file(tmp_path, "train").read_bytes() == before
    assert len(files(tmp_path)) == 1


def test_unfinished_file_of_a_killed_process_is_not_read(tmp_path):
    save(numbers(1), tmp_path, "train")
    (tmp_path / "data" / ".train-00000-of-00001.parquet.4711").write_bytes(b"half a fi")
    assert load(str(tmp_path))["value"][:] == [1]
    assert datasets.load_dataset(str(tmp_path), split="train")["value"][:] == [1]


def test_missing_split_names_what_is_there(tmp_path):
    save(numbers(1), tmp_path, "curated")
    save(numbers(1), tmp_path, "dropped")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no split 'train'; it has: curated, dropped"):
        load(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it has: nothing"):
        load(str(tmp_path / "empty"))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no/where does not exist; run the stage that writes it"):
        load(str(tmp_path / "no" / "where"))


def test_names_of_folders_are_told_from_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gone", "owner/gone"):
        assert not is_local(name)
    for name in (".", "./gone", "../gone", "/gone", "~/gone", "runs/gone/model", str(tmp_path)):
        assert is_local(name)
    (tmp_path / "owner" / "gone").mkdir(parents=True)
    assert is_local("owner/gone")


def test_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "record.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")}, allow_nan=False)
    with pytest.raises(RuntimeError), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert files(tmp_path) == ["new/record.json"]
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["00000-of-00003", "00002-of-00003"], "2 of 3 files"),
        (["00001-of-00002"], "1 of 2 files"),
        (["00000-of-00002", "00000-of-00003"], "2 of 2 or 3 files"),  # left over from a run with other shards
    ],
)
def test_incomplete_set_of_shards_is_refused(names, message, tmp_path):
    save(numbers(1), tmp_path, "other")
    for name in names:
        (tmp_path / "data" / f"train-{name}.parquet").write_bytes(split_file(tmp_path, "other").read_bytes())
    with pytest.raises(FileNotFoundError, match=f"{message} of split 'train'"):
        load(str(tmp_path))


def test_splits_whose_names_begin_alike_are_told_apart(tmp_path):
    save(numbers(1), tmp_path, "train")
    save(numbers(2), tmp_path, "train-more")
    assert load(str(tmp_path))["value"][:] == [1]


def test_a_folder_of_the_same_name_is_not_read_from_the_cache_of_another(tmp_path):
    for parent, values in (("a", (1, 2)), ("b", (3, 4))):
        folder = tmp_path / parent / "curate"
        save(numbers(*values), folder, "kept")
        save(numbers(), folder, "dropped")
        write_card(folder, ["kept", "dropped"])
    for parent, values in (("a", [1, 2]), ("b", [3, 4])):
        folder = str(tmp_path / parent / "curate")
        assert list(datasets.load_dataset(folder, split="kept")["value"]) == values
        assert list(datasets.load_dataset(folder, "kept", split="kept")["value"]) == values
    assert "0 rows in `dropped`" in (tmp_path / "a/curate/README.md").read_text()


def test_mixture_follows_weights_and_seed(tmp_path):
    for name, count in (("a", 60), ("b", 60)):
        save(training_rows(name, count), tmp_path / name, "train")
    sources = [{"path": str(tmp_path / "a"), "weight": 3}, {"path": str(tmp_path / "b")}]
    mixed = load_mixture(MixtureConfig(datasets=sources, mixture_seed=1))
    assert set(mixed.column_names) == {"id", "images", "prompt", "completion"}
    names = sources_of(mixed)
    assert names.count("a") / len(names) == pytest.approx(0.75, abs=0.08)
    # Every row of every source is seen at least once.
    completions = {row["completion"][0]["content"] for row in mixed.select_columns("completion")}
    assert completions == {f"{name} {i}" for name in "ab" for i in range(60)}

    again = load_mixture(MixtureConfig(datasets=sources, mixture_seed=1))
    other = load_mixture(MixtureConfig(datasets=sources, mixture_seed=2))
    assert sources_of(again) == names
    assert sources_of(other) != names


def test_text_only_rows_are_mixed_in_without_images(tmp_path):
    save(training_rows("seen", 4), tmp_path / "seen", "train")
    told = (
        [{"content": "told?", "role": "user"}],
        [{"content": "told", "role": "assistant"}],
    )  # another order of fields
    rows = [{"prompt": told[0], "completion": told[1], "topic": "x"}] * 4
    save(Dataset.from_list(rows), tmp_path / "told", "train")
    mixed = load_mixture(MixtureConfig([{"path": str(tmp_path / name)} for name in ("seen", "told")]))
    assert set(mixed.column_names) == {"images", "prompt", "completion"}
    bare = mixed.cast_column("images", List(Image(decode=False)))
    images = {
        source: {len(row["images"]) for row in bare if row["prompt"][0]["content"] == f"{source}?"}
        for source in ("seen", "told")
    }
    assert images == {"seen": {1}, "told": {0}}


def test_mixture_of_one_source_is_that_source(tmp_path):
    save(training_rows("a", 3), tmp_path / "a", "base")
    mixed = load_mixture(MixtureConfig(datasets=[{"path": str(tmp_path / "a"), "split": "base"}]))
    assert sources_of(mixed) == ["a"] * 3


def test_mixture_refuses_what_it_cannot_read(tmp_path):
    """Law 6: an unknown key is an error."""
    save(training_rows("a", 1), tmp_path / "a", "train")
    plain = Dataset.from_dict({"prompt": ["x"]}, features=Features({"prompt": Value("string")}))
    save(plain, tmp_path / "b", "train")
    save(training_rows("a", 1).select([]), tmp_path / "none", "train")
    save(training_rows("a", 1).rename_column("images", "image"), tmp_path / "one", "train")
    save(training_rows("a", 1).rename_column("completion", "chosen"), tmp_path / "told", "train")
    path = str(tmp_path / "a")
    for sources, message in [
        ([{"path": path, "wieght": 2}], r"datasets\[0\]: unknown key 'wieght'"),
        ([{"path": path}, {"split": "train"}], r"datasets\[1\]: the key 'path' is missing"),
        ([{"path": path, "weight": 0}], r"datasets\[0\] \(.*a\): weight is a number above 0, got 0"),
        ([{"path": path}, {"path": path, "weight": "much"}], r"datasets\[1\] \(.*a\): weight is .*, got 'much'"),
        (
            [{"path": path}, {"path": str(tmp_path / "none")}],
            r"datasets\[1\]: the split 'train' of .*none is empty; leave it out",
        ),
        ([], "datasets is empty"),
        (None, "datasets is empty"),
        ([{"path": path}, {"path": str(tmp_path / "b")}], r"datasets\[1\]: the column 'prompt' holds Value.*messages"),
        ([{"path": str(tmp_path / "one")}], r"datasets\[0\]: .*one image in the column 'image'"),
        ([{"path": path}, {"path": str(tmp_path / "told")}], "different training columns"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_mixture(MixtureConfig(datasets=sources))


def test_law_2_input_files_stay_as_they_are(digits_world):
    """Law 2: reading an artefact, images included, does not touch its files."""
    path = split_file(digits_world / "unlabelled", "train")
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    assert load(str(digits_world / "unlabelled"))[0]["images"][0].size == (32, 32)
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before
    assert len(files(digits_world / "unlabelled")) == 1
