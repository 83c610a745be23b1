"""Rows that were published without images get back those that somebody has, and only those."""

import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value, load_dataset
from pushing import REPO, api, make_run, png, settings
from trl import ScriptArguments

from sicog_trl.data import ANNOTATED_FEATURES, IMAGES, MixtureConfig, load, load_mixture, num_rows, save
from sicog_trl.data.__main__ import main
from sicog_trl.generation import ImageRows, load_images
from sicog_trl.hub import push
from sicog_trl.hub.attach import AttachConfig, attach, overview
from sicog_trl.training.data import training_data


def published(name: str | Path, split: str) -> Dataset:
    """Rows without their images."""
    return load(str(name), split=split, without_images=True)


def stored(dataset: Dataset) -> list:
    """The bytes of the images of each row."""
    raw = dataset.cast_column("images", [Image(decode=False)])[:]["images"]
    return [row and [image and image["bytes"] for image in row] for row in raw]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def pushed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a push without images prepares; a folder is read as the Hub is."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    push(settings(run, images="reference", dry_run=True), tmp_path / "pushed")
    return tmp_path / "pushed"


def write_images(kind: str, folder: Path, run: Path) -> str:
    """Write the images of a run in another form, most of them under other names than the rows have."""
    candidates = load(str(run / "candidates"), split="candidates")
    contents = [row[0] for row in stored(candidates)]
    names = list(candidates["id"])
    folder.mkdir()
    if kind == "folder":
        (folder / "deep").mkdir()
        for number, content in enumerate(contents):
            (folder / "deep" / f"{number}.png").write_bytes(content)
    elif kind == "Parquet":
        features = Features({"id": Value("string"), "image": Image()})
        rows = {"id": names, "image": [{"bytes": content, "path": None} for content in contents]}
        Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    elif kind == "WebDataset":
        with tarfile.open(folder / "images.tar", "w") as tar:
            for number, content in enumerate(contents):
                member = tarfile.TarInfo(f"{number:04}.png")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    else:
        shutil.copytree(run / "candidates", folder, dirs_exist_ok=True)
    return str(folder)


def attached(rows: Dataset, images: str, output_dir: Path, split: str = "curated", **changes) -> dict:
    there = ImageRows(load_images(images, None, changes.pop("images_split", "train")))
    return attach(rows, there, AttachConfig(**changes), split, output_dir)


@pytest.mark.parametrize("kind", ["folder", "Parquet", "WebDataset", "artefact"])
def test_rows_are_again_what_they_were_before_they_were_pushed_without_images(kind, run, pushed, tmp_path):
    images = write_images(kind, tmp_path / "images", run)
    for split in ("curated", "candidates"):
        before = load(str(run / split), split=split)
        options = {"split": split, "images_split": "candidates" if kind == "artefact" else "train"}
        summary = attached(published(pushed, split), images, tmp_path / split, **options)
        after = load(str(tmp_path / split), split=split)
        assert summary == {
            "rows_in": len(before),
            "kept": len(before),
            "dropped": {},
            "images": len(before),
            "unchecked": 0,
        }
        assert after.features == before.features and stored(after) == stored(before)
        texts = [name for name in before.column_names if name != "images"]
        assert after.select_columns(texts)[:] == before.select_columns(texts)[:]
        assert num_rows(tmp_path / split, "dropped") == 0


def test_the_commands_of_the_card_bring_the_images_back_from_the_hub(hub, run, tmp_path):
    push(settings(run, images="reference", tag="round-1"), tmp_path / "push", api(hub))
    card = hub.files(REPO)["README.md"].decode()
    assert f"recipes/attach.py \\\n  --dataset_name {REPO}@round-1 --dataset_split curated" in card
    assert 'load_dataset("runs/attached", "curated", split="curated")' in card
    images = write_images("folder", tmp_path / "images", run)
    attached(published(f"{REPO}@round-1", "curated"), images, tmp_path / "attached")
    rows = load_dataset(str(tmp_path / "attached"), "curated", split="curated")
    assert rows[0]["images"][0].size == (8, 8) and "image_references" not in rows.column_names


def test_a_missing_image_and_another_one_of_its_name_drop_the_row_and_say_which(pushed, run, tmp_path):
    images = Path(write_images("folder", tmp_path / "images", run))
    rows = published(pushed, "candidates")
    (images / "deep" / "1.png").unlink()
    (images / "deep" / "2.png").rename(images / "scene-2")  # not an image by its name
    (images / "scene-3.png").write_bytes(png(99))
    (images / "deep" / "3.png").unlink()
    named = rows.map(lambda row: {"image_references": [f"http://127.0.0.1:1/{row['id']}.png?x=1"]})
    summary = attached(named, str(images), tmp_path / "out", split="candidates")
    assert summary["kept"] == 5 and summary["dropped"] == {"missing_image": 2, "other_image": 1}
    dropped = published(tmp_path / "out", "dropped")
    assert list(zip(dropped["id"], dropped["reason"], dropped["detail"], strict=True)) == [
        ("scene-1", "missing_image", "http://127.0.0.1:1/scene-1.png?x=1"),
        ("scene-2", "missing_image", "http://127.0.0.1:1/scene-2.png?x=1"),
        ("scene-3", "other_image", "http://127.0.0.1:1/scene-3.png?x=1"),
    ]
    assert dropped["candidates"] == rows.select([1, 2, 3])["candidates"]
    assert overview(summary) == "8 rows: 5 kept with 5 images; dropped: 2 missing_image, 1 other_image"


def references(path: Path, rows: list[tuple], hashes: list | None = None) -> Dataset:
    table = {"id": [f"row-{n}" for n in range(len(rows))], "image_references": [list(row) for row in rows]}
    if hashes is not None:
        table["image_hashes"] = hashes
    features = {name: [Value("string")] if name != "id" else Value("string") for name in table}
    save(Dataset.from_dict(table, features=Features(features)), path, "curated")
    return published(path, "curated")


def test_without_hashes_ids_and_file_names_that_are_alone_are_taken(tmp_path):
    images = tmp_path / "images"
    for name, shade in (("a/1.png", 1), ("a/2.png", 2), ("b/2.png", 3), ("3.png", 4)):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(png(shade))
    rows = references(
        tmp_path / "rows", [("a/1.png",), ("b/2.png",), ("1.png",), ("2.png",), ("x/3.png", "a/1.png"), ()]
    )
    summary = attached(rows, str(images), tmp_path / "out")
    assert summary["dropped"] == {"ambiguous_image": 1} and summary["unchecked"] == summary["images"] == 5
    found = load(str(tmp_path / "out"), split="curated")
    assert dict(zip(found["id"], stored(found), strict=True)) == {
        "row-0": [png(1)], "row-1": [png(3)], "row-2": [png(1)], "row-4": [png(4), png(1)], "row-5": [],
    }  # fmt: skip
    assert published(tmp_path / "out", "dropped")["detail"][:] == ["2.png"]


def test_names_are_enough_if_it_is_said_so(pushed, run, tmp_path):
    images = Path(write_images("folder", tmp_path / "images", run))
    for file in list((images / "deep").iterdir()):
        file.unlink()
    (images / "scene-1").with_suffix(".png").write_bytes(png(77))
    rows = published(pushed, "candidates").map(lambda row: {"image_references": [f"{row['id']}.png"]})
    assert attached(rows, str(images), tmp_path / "a", split="candidates")["dropped"]["other_image"] == 1
    summary = attached(rows, str(images), tmp_path / "b", split="candidates", check_hashes=False)
    assert (summary["kept"], summary["unchecked"]) == (1, 1)
    assert stored(load(str(tmp_path / "b"), split="candidates")) == [[png(77)]]


def test_rows_with_several_images_none_and_null_ones_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one, two = {"bytes": png(1), "path": "1.png"}, {"bytes": png(2), "path": None}
    kinds = {"two": [one, two], "null": [None, two], "none": [], "nothing": None}
    said = {"source_id": "s", "prompt": [{"role": "user", "content": "Look."}], "task": "description", "mode": "m"}
    said["completion"] = [{"role": "assistant", "content": "A three."}]
    rows = [{"id": name, "images": images, **said} for name, images in kinds.items()]
    save(Dataset.from_list(rows, features=ANNOTATED_FEATURES), tmp_path / "run", "annotated")
    config = settings(tmp_path, artefacts=[{"path": str(tmp_path / "run")}], images="reference", dry_run=True)
    push(config, tmp_path / "push")
    written = published(tmp_path / "push", "annotated")
    assert written["image_references"][:] == [["s", "s"], [None, "s"], [], None]
    pool = [{"id": "s", "images": [two, one], "question": None, "answer": None}]
    features = Features(
        {"id": Value("string"), "images": IMAGES, "question": Value("string"), "answer": Value("string")}
    )
    save(Dataset.from_list(pool, features=features), tmp_path / "images", "train")
    summary = attached(written, str(tmp_path / "images"), tmp_path / "out", split="annotated")
    assert summary["images"] == 3
    assert stored(load(str(tmp_path / "out"), split="annotated")) == [[png(1), png(2)], [None, png(2)], [], None]
    # by names alone the images of a row are those of the row of that id, in their order
    by_name = attached(written, str(tmp_path / "images"), tmp_path / "names", split="annotated", check_hashes=False)
    assert by_name["kept"] == 4
    assert stored(load(str(tmp_path / "names"), split="annotated"))[:2] == [[png(2), png(1)], [None, png(1)]]


def test_what_is_no_image_is_not_taken_for_one(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_text("root:x:0:0")
    pool = {"id": ["a", "b", "c"], "images": [[{"bytes": None, "path": path}] for path in (
        str(secret), "http://127.0.0.1:1/b.png", str(tmp_path / "gone.png"))]}  # fmt: skip
    save(
        Dataset.from_dict(pool, features=Features({"id": Value("string"), "images": IMAGES})),
        tmp_path / "images",
        "train",
    )
    rows = references(tmp_path / "rows", [("a",), ("b",), ("c",), ("secret.png",), ("gone.png",)])
    summary = attached(rows, str(tmp_path / "images"), tmp_path / "out")
    assert summary["kept"] == 0 and sum(summary["dropped"].values()) == 5


def test_what_cannot_be_attached_is_refused(pushed, run, tmp_path):
    images = write_images("folder", tmp_path / "images", run)
    with pytest.raises(ValueError, match="no column 'image_references'"):
        attached(load(str(run / "curated"), split="curated"), images, tmp_path / "a")
    with pytest.raises(ValueError, match="the split 'dropped' is where rows without an image go"):
        attached(published(pushed, "dropped"), images, tmp_path / "b", split="dropped")
    with pytest.raises(ValueError, match="row 'row-0': 2 image_references, but 1 image_hashes"):
        attached(references(tmp_path / "rows", [("a", "b")], [["0" * 64]]), images, tmp_path / "c")
    flat = Dataset.from_dict({"id": ["a"], "image_references": ["a"]})
    with pytest.raises(ValueError, match=r"the column 'image_references' holds .*; a list of texts is needed"):
        attached(flat, images, tmp_path / "f")
    twice = {"id": ["a", "a"], "images": [[{"bytes": png(1), "path": None}]] * 2}
    save(
        Dataset.from_dict(twice, features=Features({"id": Value("string"), "images": IMAGES})),
        tmp_path / "twice",
        "train",
    )
    with pytest.raises(ValueError, match="the id 'a' stands in several rows"):
        attached(published(pushed, "curated"), str(tmp_path / "twice"), tmp_path / "d")
    attached(published(pushed, "curated"), images, tmp_path / "e")
    with pytest.raises(ValueError, match="holds another run: check_hashes"):
        attached(published(pushed, "curated"), images, tmp_path / "e", check_hashes=False)


def test_no_step_takes_rows_without_their_images_for_texts_alone(pushed, capsys):
    script_args = ScriptArguments(dataset_name=str(pushed), dataset_train_split="curated")
    with pytest.raises(ValueError, match=r"published without their images, .*recipes/attach\.py"):
        training_data("sft", script_args, MixtureConfig())
    with pytest.raises(ValueError, match="published without their images"):
        load_mixture(MixtureConfig(datasets=[{"path": str(pushed), "split": "curated"}]))
    with pytest.raises(ValueError, match="published without their images"):
        load_images(str(pushed), None, "candidates")
    assert main([str(pushed), "--dataset_split", "curated"]) == 0
    assert "no column of images, but image_references: recipes/attach.py" in capsys.readouterr().out


def test_the_same_again_gives_the_same_bytes_and_a_kill_leaves_no_half(pushed, run, tmp_path, monkeypatch):
    images = write_images("folder", tmp_path / "images", run)
    rows = published(pushed, "curated")

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("sicog_trl.hub.attach._with_images", killed)
        attached(rows, images, tmp_path / "a")
    assert not list((tmp_path / "a" / "data").glob("curated-*"))
    attached(rows, images, tmp_path / "a")
    attached(rows, images, tmp_path / "b")
    contents = [{f.name: f.read_bytes() for f in (tmp_path / n).rglob("*") if f.is_file()} for n in "ab"]
    assert contents[0] == contents[1] and "settings.json" in contents[0]


def test_the_recipe_attaches(pushed, run, tmp_path, monkeypatch, capsys):
    import runpy

    images = write_images("folder", tmp_path / "images", run)
    arguments = {"dataset_name": str(pushed), "images_dataset_name": images, "output_dir": str(tmp_path / "out")}
    monkeypatch.setattr(
        "sys.argv", ["attach.py", *(part for key, value in arguments.items() for part in (f"--{key}", value))]
    )
    runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "attach.py"), run_name="__main__")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["dataset_name"], summary["images_dataset_name"]) == (str(pushed), images)
    assert summary["kept"] == num_rows(tmp_path / "out", "curated") > 0 and "kept with" in capsys.readouterr().out
