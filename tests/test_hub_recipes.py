"""Recipes read a dataset of the Hub as they read a folder: by one name, at one commit, and never other rows."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from curating import described
from datasets import Dataset, Features, Image, List, Value, load_dataset
from generating import EchoSampler
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi
from pushing import REPO, api, png
from training import COMMON, recipe, train, weights
from trl import ScriptArguments, TrlParser

from sicog_trl.annotation.records import Records
from sicog_trl.curation import CurationConfig, curate, load_candidates
from sicog_trl.data import (
    CANDIDATES_FEATURES,
    CURATED_FEATURES,
    IMAGES_FEATURES,
    PREFERENCE_FEATURES,
    MixtureConfig,
    load,
    load_mixture,
    pin,
    save,
)
from sicog_trl.data.__main__ import main
from sicog_trl.files import AnotherRunError
from sicog_trl.generation import CandidateConfig, ImageRows, generate_candidates, load_images, make_plan
from sicog_trl.hub import PushConfig, push
from sicog_trl.preferences import PairConfig, load_scores, make_pairs
from sicog_trl.training import data_fingerprint


ROOT = Path(__file__).parents[1]
TEXTS = {1: "A red three.", 2: "A green four."}


def make_round(folder: Path, world: str, number: int) -> Path:
    """Write a round of the line over the scenes of the digits world, with candidates that are written by hand."""
    rows = []
    for row in load(world).with_format("arrow")[:6].to_pylist():
        options = described(TEXTS[number], TEXTS[number], "Nothing at all to see.")
        rows.append({**row, "question": None, "task": "description", "candidates": options, "error": None})
    candidates = Dataset.from_list(rows, features=CANDIDATES_FEATURES)
    save(candidates, folder / "candidates", "candidates")
    curate(candidates, CurationConfig(), folder / "curated")
    scores = [load_scores(folder / "curated")]
    make_pairs([candidates], PairConfig(rejected_from="ranked"), folder / "pairs", scores=scores)
    save(load(world).select(range(6)), folder / "images", "train")
    return folder


def publish(server: HubServer, folder: Path, tag: str | None, **changes) -> str:
    """Push a round; return the commit."""
    artefacts = [
        {"path": str(folder / "candidates")},
        {"path": str(folder / "curated"), "split": "curated"},
        {"path": str(folder / "pairs"), "split": "preference"},
        {"path": str(folder / "images")},
    ]
    given = {"artefacts": artefacts, "image_license": "cc0-1.0", "text_license": "cc0-1.0", "tag": tag}
    return push(PushConfig(REPO, **{**given, **changes}), folder / "push", api(server))["commit"]


@dataclass
class Published:
    """Two rounds, their commits, and what processes need to reach the Hub that has them."""

    rounds: dict[int, Path]
    commits: dict[int, str]
    server: HubServer
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path = ROOT, token: str = TOKEN) -> str:
        environment = {**self.environment, "HF_TOKEN": token}
        done = subprocess.run(
            [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout

    def launch(self, name: str, path: Path, **settings) -> str:
        """Run a recipe by `accelerate launch`."""
        path.write_text(yaml.safe_dump(settings))
        how = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
        return self.run(*how, f"recipes/{name}.py", "--config", str(path))


@pytest.fixture(scope="module")
def published(tmp_path_factory, world) -> Published:
    folder = tmp_path_factory.mktemp("published")
    rounds = {number: make_round(folder / f"round-{number}", world, number) for number in (1, 2)}
    with HubServer() as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
            commits = {number: publish(server, rounds[number], f"round-{number}") for number in (1, 2)}
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        yield Published(rounds, commits, server, environment)


@pytest.fixture
def pulled(hub, published) -> Published:
    """The same for clients in this process, with caches of their own."""
    hub.repos = deepcopy(published.server.repos)
    return Published(published.rounds, published.commits, hub, {})


def run(name: str, **settings) -> None:
    module = recipe(name)
    module.main(*TrlParser(module.ARGUMENTS).parse_dict(settings))


def offline(monkeypatch) -> None:
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)


def completions(dataset: Dataset) -> set[str]:
    return {row[0]["content"] for row in dataset["completion"]}


def test_sft_on_a_pinned_round_gives_the_model_that_the_folder_gives(pulled, tmp_path, digits_model):
    settings = {**COMMON, "model_name_or_path": str(digits_model), "dataset_train_split": "curated", "max_steps": 1}
    names = {"hub": f"{REPO}@round-1", "folder": str(pulled.rounds[1] / "curated")}
    hub, folder = ({**settings, "dataset_name": name, "output_dir": str(tmp_path / at)} for at, name in names.items())
    for given in (hub, folder):
        train("sft", **given)
    (hub, folder), before = (weights(tmp_path / where) for where in names), weights(digits_model)
    assert all(hub[name].equal(folder[name]) for name in folder) and any(not hub[n].equal(before[n]) for n in hub)
    said = json.loads((tmp_path / "hub" / "settings.json").read_text())
    assert said["dataset_name"] == f"{REPO}@{pulled.commits[1]}"


# Real processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dpo_trains_on_pairs_of_the_hub(published, tmp_path, digits_model):
    settings = {**COMMON, "model_name_or_path": str(digits_model), "max_steps": 1, "output_dir": str(tmp_path / "out")}
    data = {"dataset_name": REPO, "dataset_train_split": "preference"}
    published.launch("dpo", tmp_path / "dpo.yaml", **settings, **data)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["samples"] == 4 and record["first_loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.slow
def test_trls_own_command_trains_on_what_was_pushed(published, tmp_path, digits_model):
    settings = {key: value for key, value in COMMON.items() if key != "disable_tqdm"}
    settings |= {"model_name_or_path": str(digits_model), "max_steps": 1, "output_dir": str(tmp_path / "out")}
    settings |= {"dataset_name": REPO, "dataset_config": "curated", "dataset_train_split": "curated"}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings))
    published.run("-c", "from trl.cli import main; main()", "sft", "--config", "sft.yaml", cwd=tmp_path)
    after, before = weights(tmp_path / "out"), weights(digits_model)
    assert any(not after[name].equal(before[name]) for name in before)


@pytest.mark.slow
def test_generate_and_curate_read_the_hub(published, tmp_path, digits_model):
    names = {"images": f"{REPO}@round-1", "folder": str(published.rounds[1] / "images")}
    common = {"model_name_or_path": str(digits_model), "max_completion_length": 8, "rows_per_shard": 3, "seed": 3}
    common |= {"description_modes": {"detailed_description": 2}}
    images, folder = ({**common, "dataset_name": name, "output_dir": str(tmp_path / at)} for at, name in names.items())
    published.launch("generate", tmp_path / "generate.yaml", **images)
    run("generate", **folder)
    made, wanted = (load(str(tmp_path / where), split="candidates")[:]["candidates"] for where in names)
    assert made == wanted and any(candidate["text"] for row in made for candidate in row)
    plan = json.loads((tmp_path / "images" / "plan.json").read_text())
    assert plan["dataset_name"] == f"{REPO}@{published.commits[1]}"
    curated = {"dataset_name": f"{REPO}@round-1", "output_dir": str(tmp_path / "curated")}
    (tmp_path / "curate.yaml").write_text(yaml.safe_dump(curated))
    published.run("recipes/curate.py", "--config", str(tmp_path / "curate.yaml"))
    made, wanted = (load(str(folder / "curated"), split="curated") for folder in (tmp_path, published.rounds[1]))
    columns = ["id", "prompt", "completion", "consistency"]
    assert made.select_columns(columns)[:] == wanted.select_columns(columns)[:]
    summary = json.loads((tmp_path / "curated" / "summary.json").read_text())
    assert summary["dataset_name"] == [f"{REPO}@{published.commits[1]}"]


# Names ---------------------------------------------------------------------------------------------------------------


def test_every_configuration_has_the_columns_of_the_contract_and_streams(pulled):
    wanted = {"candidates": CANDIDATES_FEATURES, "curated": CURATED_FEATURES, "preference": PREFERENCE_FEATURES}
    for name, features in {**wanted, "train": IMAGES_FEATURES}.items():
        assert load_dataset(REPO, name, split=name).features == features
        assert load(f"{REPO}@round-2", split=name).features == features
    streamed = load_dataset(REPO, "curated", split="curated", revision="round-1", streaming=True)
    stored = load(str(pulled.rounds[1] / "curated"), split="curated")
    for row, local in zip(streamed, stored, strict=True):
        assert (row["id"], row["completion"]) == (local["id"], local["completion"])
        assert row["images"][0].tobytes() == local["images"][0].tobytes()


def test_a_pinned_name_stays_and_others_move(pulled, tmp_path, world):
    for name in (f"{REPO}@round-1", f"{REPO}@{pulled.commits[1]}"):
        assert pin(name) == f"{REPO}@{pulled.commits[1]}"
        assert completions(load(name, split="curated")) == {TEXTS[1]}
    assert completions(load(REPO, split="curated")) == completions(load(f"{REPO}@main", split="curated")) == {TEXTS[2]}
    HfApi().create_branch(REPO, repo_type="dataset", branch="wip/mine", revision="round-1")
    assert pin(f"{REPO}@wip/mine") == f"{REPO}@{pulled.commits[1]}"


def test_the_configuration_is_the_one_named_like_the_split(pulled, tmp_path):
    folder = str(pulled.rounds[2] / "curated")
    for name in (REPO, folder):
        for config in (None, "curated"):
            assert completions(load(name, config, "curated")) == {TEXTS[2]}
    # of an artefact folder too where images are read, but not of what is no split
    assert len(load_images(str(pulled.rounds[2] / "images"), "train")) == len(load_images(REPO)) == 6
    with pytest.raises(FileNotFoundError, match=r"curated/x does not exist"):
        load(folder, "x", "curated")
    with pytest.raises(ValueError, match=f"{REPO} has no configuration 'x'; it has: candidates, curated, preference"):
        load(REPO, "x", "curated")
    message = r"configuration 'curated': Unknown split \"dropped\".*configurations are: candidates, curated"
    with pytest.raises(ValueError, match=message):
        load(REPO, "curated", "dropped")


def test_no_default_configuration_is_guessed(hub, tmp_path):
    HfApi().create_repo("me/two", repo_type="dataset")
    card = "---\nconfigs:\n" + "".join(f"- {{config_name: {name}, data_files: {name}.csv}}\n" for name in "ab") + "---"
    for path, text in {"README.md": card, "a.csv": "x\n1\n", "b.csv": "x\n2\n"}.items():
        HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id="me/two", repo_type="dataset")
    assert load("me/two", "b")["x"][:] == [2]
    with pytest.raises(ValueError, match=r"several configurations, none .* like the split 'train': .*: a, b"):
        load("me/two")


def test_a_folder_whose_name_holds_an_at_is_a_folder(pulled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(load(str(pulled.rounds[1] / "curated"), split="curated"), tmp_path / "me" / "digits@round-2", "curated")
    assert pin(f"{REPO}@round-2") == f"{REPO}@round-2"
    assert completions(load(f"{REPO}@round-2", split="curated")) == {TEXTS[1]}
    (tmp_path / "me").rename(tmp_path / "runs@1")
    assert completions(load("runs@1/digits@round-2", split="curated")) == {TEXTS[1]}
    with pytest.raises(FileNotFoundError, match="runs@1/digits does not exist"):
        load("runs@1/digits", split="curated")


def test_every_loader_takes_a_pinned_name(pulled, tmp_path):
    name = f"{REPO}@round-1"
    assert len(load_candidates([name])) == 6 and len(Records(name, None, "candidates")) == 6
    config = {"dataset_name": name, "dataset_split": "candidates"}
    scores = str(pulled.rounds[1] / "curated")
    run("pair", **config, scores=scores, rejected_from="ranked", output_dir=str(tmp_path / "pairs"))
    wanted = load(str(pulled.rounds[1] / "pairs"), split="preference").remove_columns("images")
    assert load(str(tmp_path / "pairs"), split="preference").remove_columns("images")[:] == wanted[:]
    run("decontaminate", **config, output_dir=str(tmp_path / "clean"))
    parts = [load(str(tmp_path / "clean"), split=split)["id"][:] for split in ("candidates", "dropped")]
    assert sorted(parts[0] + parts[1]) == sorted(load_candidates([name])["id"])


def test_a_mixture_takes_both(pulled):
    folder = str(pulled.rounds[1] / "curated")
    sources = [{"path": REPO, "split": "curated"}, {"path": folder, "config": "curated", "split": "curated"}]
    mixed = load_mixture(MixtureConfig(sources))
    assert completions(mixed) == set(TEXTS.values()) and mixed.features["images"] == CURATED_FEATURES["images"]


def test_a_dataset_is_checked_by_its_name(pulled, capsys):
    assert main([f"{REPO}@round-1", "--dataset_split", "curated"]) == 0
    shown = capsys.readouterr().out
    assert f"{REPO}@{pulled.commits[1]}, split curated: " in shown and TEXTS[1] in shown
    assert main([REPO]) == 0
    shown = capsys.readouterr().out
    assert [f"split {name}: " in shown for name in ("candidates", "curated", "preference", "train")] == [True] * 4


# What is not there ---------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_said(pulled, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=f"{REPO} has no revision 'round-9'; it has: main, round-1, round-2"):
        load(f"{REPO}@round-9", split="curated")
    with pytest.raises(ValueError, match=f"{REPO} has no revision '0000"):
        load(f"{REPO}@{'0' * 40}", split="curated")
    with pytest.raises(ValueError, match="no revision behind the @"):
        load(f"{REPO}@", split="curated")
    with pytest.raises(FileNotFoundError, match="me/digit is no folder here, and the Hub has no such dataset"):
        load("me/digit", split="curated")
    with pytest.raises(FileNotFoundError, match="neither a folder here nor the id"):
        load("me/digits of mine", split="curated")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    for name in (REPO, f"{REPO}@round-1", f"{REPO}@{pulled.commits[1]}"):
        with pytest.raises(FileNotFoundError, match=f"{REPO}.* if it is private, log in with `hf auth login`"):
            load(name, split="curated")


def test_without_a_network_what_was_pulled_is_read_and_nothing_else(pulled, monkeypatch):
    load(f"{REPO}@round-1", split="curated")
    load(REPO, split="curated")  # `datasets` alone would take this one, the newest, for any revision
    asked = len(pulled.server.requests)
    offline(monkeypatch)
    for name in (f"{REPO}@round-1", f"{REPO}@{pulled.commits[1]}"):
        assert completions(load(name, split="curated")) == completions(load(name, "curated", "curated")) == {TEXTS[1]}
    assert completions(load(REPO, split="curated")) == {TEXTS[2]}
    for name, split in ((f"{REPO}@round-2", "curated"), (REPO, "preference"), (f"{REPO}@{'0' * 40}", "curated")):
        with pytest.raises(ConnectionError, match=f"{REPO}.* not in the cache.*HF_HUB_OFFLINE.*-m sicog_trl.data"):
            load(name, split=split)
    assert len(pulled.server.requests) == asked


def test_a_hub_that_is_down_is_no_reason_for_other_rows(pulled):
    load(f"{REPO}@round-1", split="curated")
    load(REPO, split="curated")
    pulled.server.fault = lambda method, path: "503"
    assert completions(load(f"{REPO}@round-1", split="curated")) == {TEXTS[1]}
    with pytest.raises(ConnectionError, match="not in the cache of this machine"):
        load(f"{REPO}@round-2", split="curated")


def test_a_dataset_of_the_hub_shows_no_image_of_this_machine(hub, tmp_path, monkeypatch):
    for name in ("secret.png", "datasets_cache/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    HfApi().create_repo("me/pictures", repo_type="dataset")

    def pull(path: Path) -> Dataset:
        rows = [{"id": "a", "images": [{"bytes": png(0), "path": None}], "question": None, "answer": None}]
        rows.append({**rows[0], "id": "b", "images": [{"bytes": None, "path": str(path)}]})
        file = save(Dataset.from_list(rows, features=IMAGES_FEATURES), tmp_path / "made", "train")
        place = {"path_in_repo": f"data/{file.name}", "repo_id": "me/pictures", "repo_type": "dataset"}
        HfApi().upload_file(path_or_fileobj=file, **place)
        return load("me/pictures")

    with pytest.raises(ValueError, match=r"me/pictures@\w+ names '.*secret.png' as an image: a file of this machine"):
        pull(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="a file of this machine"):
        pull(tmp_path / "datasets_cache" / ".." / "secret.png")
    assert len(pull(tmp_path / "datasets_cache" / "mine.png")) == len(pull(tmp_path / "gone.png")) == 2
    offline(monkeypatch)
    assert len(load("me/pictures")) == 2  # a dataset without a card


@pytest.mark.parametrize(
    ("name", "kind", "wrap"),
    [
        ("picture", Image(), lambda image: image),
        ("0.jpg", List(List(Image())), lambda image: [[image]]),
        ("images", List(Value("string")), lambda image: [image["path"]]),
        ("image", Value("string"), lambda image: image["path"]),
        ("image", {"path": Value("string")}, lambda image: {"path": image["path"]}),
    ],
)
def test_nor_in_any_other_column_that_generation_would_read(name, kind, wrap, hub, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(1))
    rows = [{"id": "a", name: wrap({"bytes": None, "path": str(tmp_path / "secret.png")})}]
    file = save(Dataset.from_list(rows, features=Features({"id": Value("string"), name: kind})), tmp_path, "train")
    HfApi().create_repo("me/pictures", repo_type="dataset")
    place = {"path_in_repo": f"data/{file.name}", "repo_id": "me/pictures", "repo_type": "dataset"}
    HfApi().upload_file(path_or_fileobj=file, **place)
    for pull in (load, load_images):
        with pytest.raises(ValueError, match="as an image: a file of this machine"):
            pull("me/pictures")


@pytest.mark.parametrize(
    "path",
    [
        *("{here}/a.parquet", "../../../..{here}/a.parquet", "file://{here}/a.parquet", "{server}/a.parquet"),
        *("hf://datasets/me/other/a.parquet", "../other/a.parquet", "../../me/other/a.parquet"),
    ],
)
def test_a_card_names_no_files_elsewhere(path, hub, tmp_path):
    """Neither on this machine, nor on another server, nor in a repository that only its reader may see."""
    save(Dataset.from_dict({"id": ["secret"]}), tmp_path, "train").rename(tmp_path / "a.parquet")
    file = path.format(here=tmp_path, server=hub.endpoint)
    card = f"---\nconfigs:\n- config_name: default\n  data_files: [{{split: train, path: '{file}'}}]\n---\n"
    api = HfApi()
    for repo, files in (("me/other", {}), ("her/digits", {"README.md": card.encode()})):
        api.create_repo(repo, repo_type="dataset", private=True)
        for name, content in {"a.parquet": (tmp_path / "a.parquet").read_bytes(), **files}.items():
            api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo, repo_type="dataset")
    hub.requests.clear()
    with pytest.raises((ValueError, FileNotFoundError), match=r"other addresses|don't belong to|Couldn't find"):
        load("her/digits")
    assert not any(asked.startswith(("/a.parquet", "/api/datasets/me/other")) for _, asked in hub.requests)


# Runs that are started again -----------------------------------------------------------------------------------------


def test_training_does_not_go_on_with_other_rows(hub, published, tmp_path, digits_model, capsys):
    first = publish(hub, published.rounds[1], None)
    settings = {"model_name_or_path": str(digits_model), "output_dir": str(tmp_path / "out"), "max_steps": 1}
    mixed = {"datasets": [{"path": REPO, "split": "curated"}], **settings}
    alone = {"dataset_name": REPO, "dataset_train_split": "curated", **settings, "output_dir": str(tmp_path / "alone")}
    for given in (mixed, alone):
        train("sft", **given)
    fingerprint = data_fingerprint(ScriptArguments(), MixtureConfig(mixed["datasets"]))
    assert fingerprint == {f"{REPO}/curated": f"{REPO}@{first}"}
    publish(hub, published.rounds[2], None)
    for given in (mixed, alone):
        with pytest.raises(AnotherRunError, match=rf"holds another run: data is .*{REPO}@{first}.* there and"):
            train("sft", **given)
    capsys.readouterr()
    train("sft", **{**mixed, "datasets": [{"path": f"{REPO}@{first}", "split": "curated"}]})
    train("sft", **{**alone, "dataset_name": f"{REPO}@{first}"})
    assert capsys.readouterr().out.count("holds a finished model") == 2


def test_generation_does_not_go_on_with_other_rows(hub, published, tmp_path, world):
    first = publish(hub, published.rounds[1], None)
    config = CandidateConfig(description_modes={"detailed_description": 2}, rows_per_shard=2)

    def planned(name: str):
        name = pin(name)
        return make_plan(ImageRows(load_images(name)), config, tmp_path / "out", "model", None, name)

    generate_candidates(load_images(REPO), EchoSampler(), config, tmp_path / "out", "model", 0, 2)
    save(load(world).select(range(1, 6)), tmp_path / "other", "train")
    publish(hub, published.rounds[1], None, artefacts=[{"path": str(tmp_path / "other")}])
    with pytest.raises(AnotherRunError, match="its input is not that of this one"):
        planned(REPO)
    assert planned(f"{REPO}@{first}").missing() == [1]
    generate_candidates(load_images(f"{REPO}@{first}"), EchoSampler(), config, tmp_path / "out", "model")
    planned(f"{REPO}@{first}")
    publish(hub, published.rounds[1], "made", artefacts=[{"path": str(tmp_path / "out")}])
    assert f"{REPO}@{first}" in hub.files(REPO)["README.md"].decode()  # the card says what the candidates are of


@pytest.mark.parametrize("name", ["sft", "generate"])
def test_streaming_is_refused(published, tmp_path, digits_model, name):
    settings = {"dataset_name": str(published.rounds[1] / "images"), "dataset_streaming": True}
    settings |= {"model_name_or_path": str(digits_model), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"dataset_streaming .*leave it out"):
        train(name, **settings) if name == "sft" else run(name, **settings)
