"""Data from strangers: nothing of it is run, fetched or unpacked elsewhere, and what is bad is an error."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import socket
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from curating import RED, described, row, table
from datasets import Dataset, Features, Value
from jinja2.exceptions import SecurityError
from PIL import Image as PILImage
from test_inputs import BOMB, HOSTILE, encoded, jsonl, png, read, stored, write, write_tar
from trl import TrlParser

import sicog_trl
from sicog_trl.cards.counts import Counts
from sicog_trl.checkpoints import load_for_generation, load_processor
from sicog_trl.curation import CurationConfig, curate
from sicog_trl.curation.selection import overview
from sicog_trl.data import CURATED_FEATURES, IMAGES, IMAGES_FEATURES, load, save, validate
from sicog_trl.data.__main__ import main
from sicog_trl.decontamination import Pool
from sicog_trl.evaluation import EvaluationConfig, select_tasks
from sicog_trl.evaluation.conditions import conditions_of
from sicog_trl.evaluation.task_files import task_settings
from sicog_trl.files import write_text
from sicog_trl.generation import CandidateConfig, load_images
from sicog_trl.generation.tars import MAX_BYTES
from sicog_trl.images import UnreadableImageError, open_image
from sicog_trl.loop.arguments import arguments_of
from sicog_trl.preferences import PairConfig, make_pairs
from sicog_trl.report.gallery import data_uri
from sicog_trl.training.data import NamedRows, check_rows, read_row


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails the test, whatever it does with the error."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no test connects to anything")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    yield
    assert not asked


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """What a hostile file would write if it were run."""
    yield tmp_path / "owned"
    assert not (tmp_path / "owned").exists()


class Touch:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def curated(*images: dict) -> Dataset:
    row = {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}
    row |= {"task": "description", "mode": "short_caption", "consistency": 1.0, "num_candidates": 1}
    rows = [{**row, "id": str(number), "images": [image]} for number, image in enumerate(images)]
    return Dataset.from_list(rows, features=CURATED_FEATURES)


# Archives and file names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["secret.png", "{folder}/secret.png", "./secret.png", "../{base}/secret.png"])
def test_a_member_is_never_taken_for_a_file_of_that_name(name, tmp_path, monkeypatch):
    """The builder of `datasets` takes the file, and the picture of somebody's disk ends in the dataset."""
    write(tmp_path, {"secret.png": png("red")})
    monkeypatch.chdir(tmp_path)
    name = name.format(folder=tmp_path, base=tmp_path.name)
    (row,) = read(write_tar(tmp_path / "a.tar", [(name, png("blue"))]))
    assert row["images"] == [stored(png("blue"), name)]


def test_an_archive_writes_nothing_and_links_lead_nowhere(tmp_path):
    target = write(tmp_path / "outside", {"secret.png": png("red")}) / "secret.png"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, link in ((tarfile.SYMTYPE, str(target)), (tarfile.LNKTYPE, str(target)), (tarfile.FIFOTYPE, "")):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, link
            archive.addfile(member)
        for name in ("../../evil.png", "/evil.png", "a/../../b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png())
            archive.addfile(member, io.BytesIO(png()))
    before = sorted(tmp_path.rglob("*"))
    found = read(tmp_path / "a.tar")
    assert [row["id"] for row in found] == ["../../evil", "/evil", "a/../../b"]
    assert sorted(tmp_path.rglob("*")) == before


def test_members_that_are_not_used_are_not_unpacked_or_read(tmp_path, mark, monkeypatch):
    files = [("a.png", png()), ("a.png.gz", gzip.compress(bytes(1000))), ("a.pth", pickle.dumps(Touch(mark)))]
    files += [(f"a.{kind}", pickle.dumps(Touch(mark))) for kind in ("pyd", "pickle", "npy", "npz", "cls")]
    monkeypatch.setattr("gzip.open", None)
    (row,) = read(write_tar(tmp_path / "a.tar", files))
    assert row["images"] == [stored(png(), "a.png")]


def test_a_member_of_any_size_is_refused_before_it_is_read(tmp_path):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w"):
        member = tarfile.TarInfo("a.png")
        member.size = MAX_BYTES + 1
        whole.write(member.tobuf())
    (tmp_path / "a.tar").write_bytes(whole.getvalue() + bytes(2048))
    with pytest.raises(ValueError, match=r"a\.tar.*(has 268,435,457 bytes, more than|damaged)"):
        load_images(str(tmp_path / "a.tar"))


def test_json_of_any_depth_is_an_error_with_a_name(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", png()), ("a.json", b"[" * 100_000)])
    with pytest.raises(ValueError, match=r"a\.tar: a\.json is no JSON"):
        load_images(str(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/{folder}/secret.png", "file:///{folder}/secret.png", "x/../../s.png"]
)
def test_metadata_names_no_file_outside_its_folder(name, tmp_path):
    write(tmp_path, {"secret.png": png(), "s.png": png(), "in/a.png": png()})
    write(tmp_path / "in", {"metadata.jsonl": jsonl({"file_name": name.format(folder=tmp_path)})})
    with pytest.raises(ValueError, match="Invalid metadata file_name"):
        load_images(str(tmp_path / "in"))


def test_links_to_folders_are_not_followed_even_in_circles(tmp_path, caplog):
    write(tmp_path, {"in/a.png": png(), "out/b.png": png()})
    os.symlink(tmp_path / "out", tmp_path / "in" / "link")
    os.symlink(tmp_path / "in", tmp_path / "in" / "circle")
    assert [row["id"] for row in read(tmp_path / "in")] == ["a.png"]
    assert "2 files are no image files and are ignored" in caplog.text


def test_what_is_written_replaces_a_link_and_not_what_it_points_to(tmp_path):
    write(tmp_path, {"secret.txt": "kept"})
    os.symlink(tmp_path / "secret.txt", tmp_path / "out.txt")
    write_text(tmp_path / "out.txt", "new")
    assert (tmp_path / "secret.txt").read_text() == "kept" and not (tmp_path / "out.txt").is_symlink()


# Images --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_a_named_row_everywhere(name):
    dataset = curated(stored(png()), stored(HOSTILE[name][0], "a.png"))
    found = validate(dataset, decode_images=True)
    assert found.faults == {"image": 1} and list(found.named) == [1]
    assert data_uri(stored(HOSTILE[name][0])) is None
    for read_it in (lambda: read_row(dataset, 1), lambda: NamedRows(dataset, dataset).__getitems__([0, 1])):
        with pytest.raises(ValueError, match=r"row 1 \(id '1'\) of the dataset cannot be read"):
            read_it()


def test_a_picture_that_is_a_program_is_not_run(tmp_path, mark, monkeypatch):
    ghostscript = write(tmp_path, {"gs": f"#!/bin/sh\ntouch {mark}\n"}) / "gs"
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ValueError, match="cannot be read"):
        read_row(curated(stored(HOSTILE["program"][0])), 0)


@pytest.mark.parametrize("limit", [True, False])
def test_a_bomb_that_is_stored_by_path(limit, tmp_path, monkeypatch):
    write(tmp_path, {"a.png": BOMB})
    if not limit:
        monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", None)  # some libraries lift it
    image = stored(None, str(tmp_path / "a.png"))
    with pytest.raises(UnreadableImageError, match="more than 178,956,970 pixels"):
        open_image(image)
    assert data_uri(image) is None
    assert "more than 178,956,970 pixels" in validate(curated(image), decode_images=True).named[0][1]


def test_an_image_that_lies_about_its_format_is_what_it_is(tmp_path):
    picture = PILImage.new("RGB", (5, 3), "green")
    write(tmp_path, {"a.jpg": encoded(picture), "b.png": encoded(picture, "BMP"), "c.png": "<svg onload='x'/>"})
    images = [row["images"][0] for row in read(tmp_path)]
    assert [open_image(image)[0].size for image in images[:2]] == [(5, 3), (5, 3)]
    with pytest.raises(UnreadableImageError, match="it looks like SVG, HTML or other XML"):
        open_image(images[2])


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    image = stored(None, str(tmp_path / "a.png"))
    with pytest.raises(UnreadableImageError, match="no such file"):
        open_image(image)
    assert data_uri(image) is None  # whoever opened it would wait for ever


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/a.png", "HTTPS://e.org/a.png", "s3://b/a", "hf://datasets/a/b/c"]
)
def test_addresses_are_never_fetched(address, digits_model, tmp_path, capsys):
    image = stored(None, address)
    dataset = curated(stored(png()), image)
    with pytest.raises(ValueError, match=r"row 1 \(id '1'\): .*is a web address, and nothing is fetched"):
        check_rows(dataset, str(digits_model))
    assert data_uri(image) is None
    with pytest.raises(UnreadableImageError, match="is a web address"):
        open_image(image)
    save(dataset, tmp_path, "train")
    assert main([str(tmp_path)]) == 1 and "is a web address" in capsys.readouterr().out
    rows = Dataset.from_dict({"id": ["a"], "image": [address]})
    (row,) = read(rows.cast_column("image", IMAGES.feature))
    assert row["images"] == [image]


@pytest.mark.parametrize("kind", [IMAGES, IMAGES.feature])
def test_an_evaluation_fetches_no_image_either(kind, tmp_path):
    """lmms-eval would: it reads rows by `datasets`, which opens any address."""
    images = [stored(png(), "http://e.org/whence.png"), stored(None, "http://127.0.0.1:9/a.png")]
    (task,) = select_tasks("digits", ["digits_vqa"]).values()
    config = EvaluationConfig(models={"base": "x"}, dataset_name=str(tmp_path), output_dir=str(tmp_path / "out"))
    for shown in (images[:1], images):
        rows = [{"id": str(n), "images": [each] if kind == IMAGES else each} for n, each in enumerate(shown)]
        features = Features({"id": Value("string"), "images": kind})
        save(Dataset.from_list(rows, features=features), tmp_path, task.benchmark.split)
        if shown == images:
            with pytest.raises(
                ValueError, match=r"names the image http://127\.0\.0\.1:9/a\.png, and nothing is fetched"
            ):
                conditions_of(config, task)
        else:
            assert conditions_of(config, task)["num_rows"] == 1


# Tables and texts ----------------------------------------------------------------------------------------------------


def artefact(folder: Path, table: pa.Table) -> str:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"])
def test_a_damaged_table_is_named(content, tmp_path):
    path = Path(artefact(tmp_path, pa.table({"id": ["a"]})), "data", "train-00000-of-00001.parquet")
    path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r"train-00000-of-00001\.parquet is damaged or no Parquet file"):
        load(str(tmp_path))


def test_a_pipe_is_no_table(tmp_path):
    path = Path(artefact(tmp_path, pa.table({"id": ["a"]})), "data", "train-00000-of-00001.parquet")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is damaged or no Parquet file: it is no file"):  # and not waited for
        load(str(tmp_path))


@pytest.mark.parametrize(
    "told",
    ["{no json", {"_type": "Evil"}, {"_type": "Value", "dtype": "evil"}, "x", ["x"], None],
    ids=lambda told: json.dumps(told),
)
def test_what_a_table_says_of_its_columns_is_not_believed(told, tmp_path):
    says = told if told == "{no json" else json.dumps({"info": {"features": {"id": told}}})
    for name, rows in (("none", []), ("one", ["a"])):
        table = pa.table({"id": pa.array(rows, pa.string())}).replace_schema_metadata({"huggingface": says})
        with pytest.raises(
            ValueError, match=r"train-00000-of-00001\.parquet and its like cannot be read as a dataset"
        ):
            load(artefact(tmp_path / name, table))


@pytest.mark.parametrize("kind", ["dictionary", "large_string"])
def test_texts_that_are_stored_otherwise_are_texts(kind, tmp_path):
    ids = pa.array(["a", "a"])
    ids = ids.dictionary_encode() if kind == "dictionary" else ids.cast(pa.large_string())
    found = validate(load(artefact(tmp_path, pa.table({"id": ids, "question": ids}))))
    assert not found.columns and found.faults == {"repeated id": 1}


def test_columns_that_cannot_be_read_are_an_error_with_a_name(tmp_path):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    number = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16)))
    for name, columns in (("twice", twice), ("uuid", pa.table({"id": number}))):
        with pytest.raises(ValueError, match=rf"{name}/data/train-00000-of-00001\.parquet .* cannot be read"):
            load(artefact(tmp_path / name, columns))


def test_a_folder_is_no_pattern(tmp_path):
    for name in ("[ab]", "a"):
        save(Dataset.from_dict({"id": [name]}), tmp_path / name, "train")
    assert load(str(tmp_path / "[ab]"))["id"][:] == ["[ab]"]


PART = pa.struct([("type", pa.string()), ("text", pa.string())])


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (pa.string(), [None]),
        (pa.string(), [{"role": None, "content": None}]),
        (pa.list_(PART), [{"role": "user", "content": [None]}]),
        (pa.list_(PART), [{"role": "user", "content": [None, {"type": "text", "text": "x"}]}]),
        (pa.list_(PART), [{"role": "user", "content": [{"type": None, "text": None}]}]),
    ],
)
def test_nulls_at_any_depth_are_a_named_row(content, messages, tmp_path, capsys):
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", content)]))
    columns = {name: pa.array([messages], kind) for name in ("prompt", "completion")}
    assert main([artefact(tmp_path, pa.table(columns))]) == 1
    assert "there is no text in the column prompt; leave out that row" in capsys.readouterr().out


def test_numbers_in_place_of_texts_are_a_column_of_another_type(tmp_path):
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(pa.struct([("text", pa.int64())])))]))
    column = pa.array([[{"role": "user", "content": [{"text": 3}]}]], kind)
    found = validate(load(artefact(tmp_path, pa.table({"id": ["a"], "messages": column}))))
    assert len(found.columns) == 1 and "a list of messages is needed" in found.columns[0]


def test_ids_that_only_look_alike_are_two_and_show_what_they_are(tmp_path, capsys):
    ids = ["\u00e9", "e\u0301", "a\nrow 9", "a\0b", "\x1b[2Ja", "\u202eb"]
    rows = [{"id": each, "question": None, "images": [], "answer": None} for each in ids]
    save(Dataset.from_list(rows, features=IMAGES_FEATURES), tmp_path, "train")
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "6 of 6 rows" in shown and "repeated id" not in shown
    assert all(f"(id {each!r})" in shown for each in ids) and all(c.isprintable() for c in shown.replace("\n", ""))


def test_columns_of_wrong_types_are_reported(tmp_path, capsys):
    """Even if the file itself says that they are right."""
    features = json.dumps({"info": {"features": IMAGES_FEATURES.to_dict()}})
    table = pa.table({"id": [1], "images": [3.5], "question": [["?"]], "answer": [b"\xff\xfe"]})
    folder = artefact(tmp_path, table.replace_schema_metadata({"huggingface": features}))
    assert main([folder]) == 1
    shown = capsys.readouterr().out
    for name in ("id", "images", "question", "answer"):
        assert f"the column {name!r} holds " in shown
    with pytest.raises(ValueError, match="holds"):
        read(folder)


def test_pickles_in_a_table_are_not_loaded(tmp_path, mark):
    for name in ("arrow.py_extension_type", "pyarrow.py_extension_type"):
        kept = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Touch(mark))}
        schema = pa.schema([pa.field("id", pa.string(), metadata=kept)])
        folder = artefact(tmp_path / name, pa.table([pa.array(["a"])], schema=schema))
        assert validate(load(folder))


def test_gigantic_texts_are_named_and_not_shown(tmp_path, capsys):
    dataset = curated(stored(png()), stored(png()))
    row = {**dataset.with_format("arrow")[:1].to_pylist()[0], "id": "i" * 3_000_000}
    row["completion"] = [{"role": "assistant", "content": "<image>" * 1_000_000}]
    save(Dataset.from_list([row], features=Features(CURATED_FEATURES)), tmp_path, "train")
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "the column completion holds 7,000,000 characters; 1,000,000 are allowed" in shown
    assert len(shown) < 3000


def test_candidates_with_nulls_are_counted_and_none_is_taken_for_a_text(tmp_path):
    """What looks rows through or publishes them meets what nobody curated."""
    whole = row("a", described(RED, RED))
    rows = table(whole, {**whole, "id": "b", "candidates": [None]}, {**whole, "id": "c", "candidates": None})
    assert Pool(rows).texts(0, 3)[1] == [[RED, RED], [], []]
    counts = Counts(rows.features, 3)
    counts.add(rows.with_format("arrow")[:])
    assert dict(counts.lengths())["words of candidate"][0] == "2"
    with pytest.raises(ValueError, match="the candidates name the mode None"):
        curate(rows, CurationConfig(similarity="word_ngram", min_consistency=0.5), tmp_path)


def test_messages_that_are_null_are_no_texts(tmp_path):
    dataset = curated(stored(png()), stored(png()))
    rows = dataset.with_format("arrow")[:].to_pylist()
    rows[1] |= {"completion": [None], "consistency": 1e308}
    dataset = Dataset.from_list(rows, features=CURATED_FEATURES)
    assert Pool(dataset).texts(0, 2) == ([["Q"], ["Q"]], [["A"], [""]])
    counts = Counts(dataset.features, 2)
    counts.add(dataset.with_format("arrow")[:])
    assert dict(counts.histogram())["0.9 to 1.0"] == 2
    with pytest.raises(ValueError, match="no chosen row has a candidate of its mode"):
        make_pairs([dataset], PairConfig(rejected_from="damaged"), tmp_path, [table(row("a", described(RED)))])


def test_a_row_of_candidates_without_an_id_is_named(tmp_path):
    rows = table(row("a", described(RED, RED)), row(None, described(RED, RED)))
    with pytest.raises(ValueError, match="row 1 has no id"):
        curate(rows, CurationConfig(similarity="word_ngram", min_consistency=0.5), tmp_path)


def test_an_error_that_somebody_wrote_does_not_run_on_the_terminal(tmp_path):
    error = "\x1b[2J<script>\n" * 10_000
    rows = table(row("a", described(RED, RED)), row("b", [], task="description", error=error))
    config = CurationConfig(similarity="word_ngram", min_consistency=0.5)
    shown = overview(curate(rows, config, tmp_path))
    assert "\\x1b[2J<script>" in shown and "\x1b" not in shown and len(shown) < 1000


@pytest.mark.parametrize("tag", ["python/object/apply:pathlib.Path.touch", "python/object/new:pathlib.Path"])
def test_a_yaml_makes_no_objects(tag, tmp_path, mark):
    file = write(tmp_path, {"a.yaml": f"max_new_tokens: !!{tag} [{mark}]\n"}) / "a.yaml"
    reads = [
        lambda: TrlParser((CandidateConfig,)).parse_args_and_config(["--config", str(file)]),
        lambda: arguments_of({"config": str(file)}),
        lambda: task_settings(file),
    ]
    for read_it in reads:
        with pytest.raises(yaml.constructor.ConstructorError, match="could not determine a constructor"):
            read_it()


def test_a_task_names_functions_and_none_is_imported(tmp_path, mark):
    write(tmp_path, {"a.yaml": "doc_to_text: !function evil.f\n", "evil.py": f"open({str(mark)!r}, 'w')\n"})
    assert task_settings(tmp_path / "a.yaml") == {"doc_to_text": "evil.f"}


# Code ----------------------------------------------------------------------------------------------------------------


def test_code_beside_a_model_is_not_run_and_nobody_is_asked(tmp_path, mark, monkeypatch):
    named = {"auto_map": {"AutoConfig": "evil.A", "AutoProcessor": "evil.A", "AutoModelForImageTextToText": "evil.A"}}
    for file in ("config.json", "processor_config.json", "preprocessor_config.json"):
        write(tmp_path, {file: json.dumps({"model_type": "evil", "processor_class": "A", **named})})
    write(tmp_path, {"evil.py": f"open({str(mark)!r}, 'w')\nclass A: pass\n"})
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("somebody is asked whether to run the code"))
    for load_it in (load_processor, load_for_generation):
        with pytest.raises(ValueError, match="trust_remote_code"):
            load_it(str(tmp_path))


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9)|list|length }}",
    ],
)
def test_a_chat_template_runs_nothing_and_reads_no_file(template, digits_model, tmp_path, mark):
    copied = Path(shutil.copytree(digits_model, tmp_path / "model"))
    for file in [copied / "chat_template.jinja", *copied.glob("chat_template.json")]:
        file.unlink(missing_ok=True)
    (copied / "chat_template.jinja").write_text(template.replace("MARK", str(mark)))
    folder = str(save(curated(stored(png())), tmp_path / "rows", "train").parents[1])
    with pytest.raises((SecurityError, OverflowError, TypeError), match=r"is unsafe|no loader|Range too big"):
        main([folder, "--model_name_or_path", str(copied)])


def test_weights_in_a_pickle_are_not_run(digits_model, tmp_path, mark):
    for file in digits_model.iterdir():
        if file.suffix != ".safetensors":
            write(tmp_path, {file.name: file.read_bytes()})
    torch.save({"weight": Touch(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_for_generation(str(tmp_path))


def test_the_package_names_nothing_that_runs_data():
    package = Path(sicog_trl.__file__).parent
    sources = {file: file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    assert len(sources) > 80
    unsafe = r"import (pickle|dill|joblib|marshal|shelve)|torch\.load\(|allow_pickle=True|(?<![\w.])(eval|exec)\("
    unsafe += r"|trust_remote_code=True|unsafe_load|weights_only=False|extractall\(|shell=True"
    assert {file.name for file, text in sources.items() if re.search(unsafe, text)} == set()
