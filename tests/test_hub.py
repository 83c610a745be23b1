"""Pushing and pulling against a server that speaks as the Hub does, by the real clients."""

import json
import logging
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image, load_dataset
from hub_server import HubServer
from huggingface_hub import DatasetCard, HfApi
from pushing import REPO, TOKEN, api, make_run, png, settings

from sicog_trl.data import load, save
from sicog_trl.files import AnotherRunError, write_json
from sicog_trl.hub import overview, push


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def data_files(server: HubServer) -> list[str]:
    return sorted(path for path in server.files(REPO) if path.endswith(".parquet"))


def test_one_commit_holds_data_and_card_and_the_repository_is_private(hub, run, tmp_path):
    report = push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    repo = hub.dataset(REPO)
    assert repo.private and list(repo.messages.values()) == ["initial commit", "Push round-1"]
    assert repo.tags == {"round-1": report["commit"]} and repo.branches["main"] == report["commit"]
    assert set(hub.files(REPO)) == {*report["files"], ".gitattributes"} and "README.md" in report["files"]
    names = ["candidates", "curated", "dropped"]
    assert data_files(hub) == [f"data/{name}-00000-of-00001.parquet" for name in names]


def test_what_is_pulled_is_what_was_pushed_and_ready_for_trl(hub, run, tmp_path):
    push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    pulled = load_dataset(REPO, "curated", revision="round-1", split="curated")
    local = load(str(run / "curated"), split="curated")
    assert pulled.features["images"] == local.features["images"] and list(pulled["id"]) == list(local["id"])
    for name in ("prompt", "completion", "consistency"):
        assert pulled[:][name] == local[:][name]
    raw = pulled.cast_column("images", [Image(decode=False)])[:]["images"]
    assert raw[0][0]["bytes"] == local.cast_column("images", [Image(decode=False)])[0]["images"][0]["bytes"]
    assert pulled[0]["images"][0].size == (8, 8)
    # without a name the first configuration, and by the package as by a folder
    assert list(load(f"{REPO}@round-1", None, "curated")["id"]) == list(local["id"])
    dropped = load(str(run / "curated"), split="dropped")
    assert load(REPO, "dropped", "dropped")[:]["reason"] == dropped[:]["reason"] != []


def test_rows_stream(hub, run, tmp_path):
    push(settings(run), tmp_path / "push", api(hub))
    rows = list(load_dataset(REPO, "candidates", split="candidates", streaming=True))
    assert [row["id"] for row in rows][-1] == "scene-question" and rows[0]["images"][0].size == (8, 8)


def test_a_pinned_round_stays_what_it_was_when_the_next_one_is_pushed(hub, run, tmp_path):
    push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    later = make_run(tmp_path / "later", rows=5)
    report = push(settings(later, tag="round-2"), tmp_path / "push", api(hub))
    assert report["files"]["data/curated-00000-of-00001.parquet"]["is"] == "changed"
    first, second = (load(f"{REPO}@round-{n}", "candidates", "candidates") for n in (1, 2))
    assert (len(first), len(second)) == (8, 5)
    with pytest.raises(ValueError, match="the tag round-1 stands for something else"):
        push(settings(later, tag="round-1"), tmp_path / "push", api(hub))
    assert len(hub.dataset(REPO).commits) == 3


def test_the_same_push_again_sends_and_commits_nothing(hub, run, tmp_path):
    first = push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    hub.received.clear()
    again = push(settings(run, tag="round-1"), tmp_path / "other", api(hub))
    assert again["commit"] == first["commit"] and len(hub.dataset(REPO).commits) == 2 and not hub.received
    assert {file["is"] for file in again["files"].values()} == {"unchanged"}
    assert overview(again).startswith("nothing new for me/digits (private)")


def test_shards_are_bounded_and_older_ones_go_in_the_same_commit(hub, run, tmp_path):
    push(settings(run), tmp_path / "push", api(hub))
    hub.dataset(REPO).commits[hub.dataset(REPO).branches["main"]]["data/mine-00000-of-00001.parquet"] = next(
        file
        for path, file in hub.dataset(REPO).commits[hub.dataset(REPO).branches["main"]].items()
        if "curated" in path
    )
    many = make_run(tmp_path / "many", rows=600)
    report = push(settings(many, max_shard_size="10KB"), tmp_path / "push", api(hub))
    # batches of 250 rows are not split
    assert [path for path in data_files(hub) if "candidates" in path] == [
        f"data/candidates-{number:05d}-of-00003.parquet" for number in range(3)
    ]
    assert report["files"]["data/candidates-00000-of-00001.parquet"]["is"] == "deleted"
    assert "data/mine-00000-of-00001.parquet" in data_files(hub)  # of somebody else
    assert len(load(REPO, "candidates", "candidates")) == 600 and len(hub.dataset(REPO).commits) == 3


def test_a_dry_run_shows_everything_and_writes_nothing(hub, run, tmp_path, monkeypatch):
    report = push(settings(run, dry_run=True, tag="round-1"), tmp_path / "push", api(hub, token=False))
    shown = overview(report)
    assert "would push to me/digits (private), tag round-1" in shown and "new       README.md" in shown
    assert not hub.repos and {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    prepared = load_dataset(str(tmp_path / "push"), "curated", split="curated")
    assert list(prepared["id"]) == list(load(str(run / "curated"), split="curated")["id"])
    push(settings(run), tmp_path / "push", api(hub))
    hub.requests.clear()
    report = push(settings(run, dry_run=True), tmp_path / "push", api(hub))
    assert {file["is"] for file in report["files"].values()} == {"unchanged"}
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push(settings(run, dry_run=True), tmp_path / "push", api(hub))["commit"] is None


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_a_good_token_nothing_is_made(hub, run, tmp_path, token, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with pytest.raises(PermissionError, match="hf auth login"):
        push(settings(run), tmp_path / "push", api(hub, token))
    assert not hub.repos


def test_a_private_repository_is_not_there_for_those_without_a_token(hub, run, tmp_path, monkeypatch):
    push(settings(run), tmp_path / "push", api(hub))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Exception, match="doesn't exist on the Hub or cannot be accessed"):
        load_dataset(REPO, "curated", split="curated")


def test_a_public_repository_is_refused_unless_it_is_meant(hub, run, tmp_path):
    api(hub).create_repo(REPO, repo_type="dataset", private=False)
    with pytest.raises(ValueError, match="is public; say `private: false`"):
        push(settings(run), tmp_path / "push", api(hub))
    assert "(PUBLIC)" in overview(push(settings(run, private=False), tmp_path / "push", api(hub)))


def test_a_private_repository_stays_private_and_it_is_said(hub, run, tmp_path):
    push(settings(run), tmp_path / "push", api(hub))
    shown = overview(push(settings(run, private=False), tmp_path / "push", api(hub)))
    assert hub.dataset(REPO).private and "and private, and stays that" in shown


def test_a_server_that_is_busy_for_a_while_is_asked_again(hub, run, tmp_path):
    left = {"POST /preupload": 2, "PUT /large": 2, "POST /batch": 1}

    def busy(method, path):
        for key in left:
            if method == key.split()[0] and key.split()[1] in path and left[key]:
                left[key] -= 1
                return "503"
        return None

    hub.fault = busy
    push(settings(run), tmp_path / "push", api(hub))
    assert not any(left.values()) and len(load(REPO, "candidates", "candidates")) == 8


@pytest.mark.parametrize("fault", ["cut", "500"])
def test_an_upload_that_breaks_changes_nothing_and_the_next_push_sends_only_the_rest(hub, run, tmp_path, fault):
    first = []

    def one_alone(method, path):
        if method == "PUT":
            first.append(path)
            return None if path == first[0] else fault
        return None

    hub.fault = one_alone
    with pytest.raises(Exception, match="Error while uploading"):
        push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    assert len(hub.received) == 1 and data_files(hub) == [] and not hub.dataset(REPO).tags
    hub.fault = lambda method, path: None
    sent = list(hub.received)
    push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    assert len(hub.received) == 3 and len(set(hub.received)) == 3 and hub.received[:1] == sent
    assert len(hub.dataset(REPO).commits) == 2 and len(load(f"{REPO}@round-1", "curated", "curated")) > 0


def test_large_files_go_up_in_parts(hub, run, tmp_path):
    hub.part_size = 2_000
    push(settings(run), tmp_path / "push", api(hub))
    parts = [path for method, path in hub.requests if method == "PUT"]
    assert len(parts) > 6 and all("/part/" in path for path in parts)
    assert len(load(REPO, "candidates", "candidates")) == 8


def test_what_a_killed_preparation_left_behind_is_not_pushed(hub, run, tmp_path):
    data = tmp_path / "push" / "data"
    data.mkdir(parents=True)
    for name in (".curated.00003", "curated-00001-of-00002.parquet"):
        (data / name).write_bytes(b"half of a file")
    write_json(tmp_path / "push" / "settings.json", {"hub_dataset_id": REPO})  # it is written first
    push(settings(run), tmp_path / "push", api(hub))
    assert sorted(file.name for file in data.iterdir()) == [path.split("/")[1] for path in data_files(hub)]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, run, tmp_path):
    hub.fault = lambda method, path: "lost" if "/commit/" in path else None
    with pytest.raises(Exception):  # noqa: B017 - whatever the client says of a connection that has gone
        push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    hub.fault = lambda method, path: None
    report = push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    assert len(hub.dataset(REPO).commits) == 2 and hub.dataset(REPO).tags == {"round-1": report["commit"]}


def test_a_commit_of_somebody_else_meanwhile_is_not_undone(hub, run, tmp_path):
    push(settings(run), tmp_path / "push", api(hub))

    def meanwhile(method, path):
        if "/preupload/" in path and len(hub.dataset(REPO).commits) == 2:
            repo = hub.dataset(REPO)
            repo.commit(dict(repo.commits[repo.branches["main"]]), "by somebody else")
        return None

    hub.fault = meanwhile
    with pytest.raises(RuntimeError, match=r"somebody else pushed meanwhile.*start again"):
        push(settings(run, pretty_name="Another name"), tmp_path / "push", api(hub))
    assert list(hub.dataset(REPO).messages.values())[-1] == "by somebody else"


def test_images_that_may_not_be_copied_are_named_instead(hub, run, tmp_path):
    reference = {"images": "reference", "image_reference": "https://images.example/{source_id}?{path}#{number}"}
    named = [{"path": str(run / "candidates")}]
    with pytest.raises(ValueError, match="'scene-question': an image has no path"):
        push(settings(run, artefacts=named, **reference), tmp_path / "other", api(hub))
    reference["image_reference"] = "https://images.example/{source_id}#{number}"
    push(settings(run, artefacts=named, **reference), tmp_path / "push", api(hub))
    rows = load(REPO, "candidates", "candidates", without_images=True)
    assert "images" not in rows.column_names
    assert rows[1]["image_references"] == ["https://images.example/scene-1#0"]
    assert png(1)[:8] not in hub.files(REPO)["data/candidates-00000-of-00001.parquet"]
    assert b"not in this repository" in hub.files(REPO)["README.md"]


def test_the_token_and_places_of_this_machine_are_told_to_nobody(hub, run, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    report = push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    load_dataset(REPO, "curated", split="curated")
    said = caplog.text + "".join(capfd.readouterr()) + json.dumps(report) + overview(report)
    assert TOKEN not in said
    written = [file for file in (tmp_path / "push").rglob("*") if file.is_file()]
    everything = [*hub.files(REPO).values(), *(file.read_bytes() for file in written)]
    assert written and not any(TOKEN.encode() in content for content in everything)
    assert not any(b"somebody" in content or b"10.0.0.1" in content for content in everything)
    paths = pq.read_table(tmp_path / "push/data/candidates-00000-of-00001.parquet")["images"].to_pylist()
    assert paths[1][0]["path"] == "1.png" and paths[-1][0]["path"] is None


def test_a_push_that_is_killed_changes_nothing_and_the_next_one_sends_the_rest(hub, run, tmp_path):
    arguments = (settings(run, tag="round-1"), tmp_path / "push", api(hub))
    child = multiprocessing.get_context("fork").Process(target=push, args=arguments)
    uploads = []

    def kill_at_the_second_upload(method: str, path: str) -> str | None:
        if method == "PUT":
            uploads.append(path)
            if len(uploads) == 2:
                child.kill()
                return "cut"
        return None

    hub.fault = kill_at_the_second_upload
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL and data_files(hub) == [] and not hub.dataset(REPO).tags
    hub.fault = lambda method, path: None
    push(*arguments)
    assert len(hub.received) == len(set(hub.received)) == 3 and len(hub.dataset(REPO).commits) == 2


@pytest.mark.slow
def test_the_recipe_is_killed_goes_on_and_plain_clients_pull_by_hf_endpoint(run, tmp_path):
    with HubServer() as server:
        config = {key: value for key, value in vars(settings(run, tag="round-1")).items() if value is not None}
        (tmp_path / "push.yaml").write_text(json.dumps({**config, "output_dir": str(tmp_path / "push")}))
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_VERBOSITY": "debug"}
        started, uploads = [], []

        def start(*command: str) -> subprocess.CompletedProcess:
            options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            process = subprocess.Popen([sys.executable, *command], text=True, **options)
            started.append(process)
            output, _ = process.communicate(timeout=300)
            return subprocess.CompletedProcess(command, process.returncode, output)

        def kill_at_the_second_upload(method: str, path: str) -> str | None:
            if method == "PUT":
                uploads.append(path)
                if len(uploads) == 2:
                    started[0].kill()
                    return "cut"
            return None

        server.fault = kill_at_the_second_upload
        killed = start("recipes/push.py", "--config", str(tmp_path / "push.yaml"))
        assert killed.returncode == -signal.SIGKILL and data_files(server) == []
        pushed = start("recipes/push.py", "--config", str(tmp_path / "push.yaml"))
        assert pushed.returncode == 0, pushed.stdout
        assert "pushed to me/digits (private), tag round-1" in pushed.stdout and len(server.received) == 3
        pull = "rows = load_dataset('me/digits', 'curated', revision='round-1'); print('rows:', len(rows['curated']))"
        pulled = start("-c", f"from datasets import load_dataset; {pull}")
        assert f"rows: {len(load(str(run / 'curated'), split='curated'))}" in pulled.stdout
        assert not any(TOKEN in output.stdout for output in (killed, pushed, pulled))
        assert server.dataset(REPO).private


def busy_with(path: str, status: str):
    """A fault of all requests whose path holds `path`."""
    return lambda method, there: status if path in there and method == "POST" else None


@pytest.mark.parametrize(
    ("path", "status", "kind", "message"),
    [
        ("/repos/create", "403", PermissionError, "may not write there; use one with the permission to write"),
        ("/preupload/", "403", PermissionError, "may not write there"),
        ("/commit/", "403", PermissionError, "may not write there"),
        ("/commit/", "429", RuntimeError, "the Hub asks to wait; start again later"),
        ("/repos/create", "409", RuntimeError, "somebody else made it, or the tag, meanwhile; start again"),
    ],
)
def test_what_the_hub_refuses_is_explained(hub, run, tmp_path, path, status, kind, message):
    hub.fault = busy_with(path, status)
    with pytest.raises(kind, match=f"me/digits: .*{message}.*The Hub says: made to fail"):
        push(settings(run), tmp_path / "push", api(hub))
    hub.fault = lambda method, path: None
    push(settings(run), tmp_path / "push", api(hub))
    assert len(hub.dataset(REPO).commits) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (None, ConnectionError, "me/digits: no uploads by Xet there; set HF_HUB_DISABLE_XET=1"),
        ("403", PermissionError, "me/digits: the token may not write there"),
    ],
)
def test_a_hub_that_takes_nothing_by_xet_is_explained_too(hub, run, tmp_path, monkeypatch, fault, kind, message):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.fault = lambda method, path: fault if "xet-write-token" in path else None
    with pytest.raises(kind, match=message):
        push(settings(run), tmp_path / "push", api(hub))
    assert data_files(hub) == []


def test_a_token_that_may_only_read_is_refused_before_anything_is_prepared(hub, run, tmp_path):
    hub.role = "read"
    with pytest.raises(PermissionError, match=r"may only read; log in .* a token that may write"):
        push(settings(run), tmp_path / "push", api(hub))
    assert not (tmp_path / "push" / "data").exists()


def test_a_gated_repository_and_one_with_another_name_are_not_taken_for_none(hub, run, tmp_path):
    push(settings(run), tmp_path / "push", api(hub))
    hub.fault = lambda method, path: "403 GatedRepo" if "/api/datasets/" in path else None
    for dry_run in (True, False):
        with pytest.raises(PermissionError, match=r"me/digits is gated, .* ask for access on its page"):
            push(settings(run, dry_run=dry_run), tmp_path / "push", api(hub))
    hub.fault = lambda method, path: None
    hub.repos["datasets", "me/numbers"] = hub.repos.pop(("datasets", REPO))
    hub.renamed[REPO] = "me/numbers"
    with pytest.raises(ValueError, match="me/digits is me/numbers now; say so in `hub_dataset_id`"):
        push(settings(run), tmp_path / "push", api(hub))
    assert len(hub.dataset("me/numbers").commits) == 2


def test_a_tag_that_a_push_could_not_set_any_more_is_set_by_the_next_one(hub, run, tmp_path):
    hub.fault = busy_with("/tag/", "500")
    with pytest.raises(Exception, match="500"):
        push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    assert len(hub.dataset(REPO).commits) == 2 and not hub.dataset(REPO).tags
    hub.fault = lambda method, path: None
    report = push(settings(run, tag="round-1"), tmp_path / "push", api(hub))
    assert hub.dataset(REPO).tags == {"round-1": report["commit"]} and len(hub.dataset(REPO).commits) == 2


def test_a_repository_of_an_organization_is_made_under_its_name(hub, run, tmp_path):
    config = settings(run)
    config.hub_dataset_id = "team/digits"
    push(config, tmp_path / "push", api(hub))
    assert set(hub.repos) == {("datasets", "team/digits")} and hub.dataset("team/digits").private
    assert len(load("team/digits", "curated", "curated")) > 0


def test_a_configuration_that_has_no_rows_any_more_goes_with_its_files_and_its_metadata(hub, run, tmp_path):
    artefacts = [{"path": str(run / "curated"), "split": name} for name in ("dropped", "curated")]
    push(settings(run, artefacts=artefacts, tag="round-1"), tmp_path / "push", api(hub))
    later = tmp_path / "later"
    for name, rows in (("curated", None), ("dropped", 0)):
        there = load(str(run / "curated"), split=name)
        save(there if rows is None else there.select(range(rows)), later, name)
    artefacts = [{"path": str(later), "split": name} for name in ("dropped", "curated")]
    report = push(settings(run, artefacts=artefacts, tag="round-2"), tmp_path / "push", api(hub))
    assert report["left_out"] == ["dropped"] and data_files(hub) == ["data/curated-00000-of-00001.parquet"]
    metadata = DatasetCard(hub.files(REPO)["README.md"].decode()).data
    assert [entry["config_name"] for entry in metadata["configs"]] == ["curated"] and metadata["configs"][0]["default"]
    assert len(load(f"{REPO}@round-1", "dropped", "dropped")) > 0
    with pytest.raises(ValueError, match="dropped"):
        load_dataset(REPO, "dropped")


def test_a_dry_run_needs_no_network(run, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    nobody = HfApi(endpoint="http://127.0.0.1:1", token=TOKEN)
    assert push(settings(run, dry_run=True), tmp_path / "push", nobody)["before"] == "not asked, ConnectError"


@pytest.mark.parametrize("where", ["/whoami-v2", "/api/datasets/", "/preupload/"])
def test_a_hub_that_is_out_of_order_or_away_ends_in_advice(hub, run, tmp_path, where):
    hub.fault = lambda method, path: "500" if where in path else None
    with pytest.raises(ConnectionError, match=r"me/digits: the Hub is out of order \(500\); start again later"):
        push(settings(run), tmp_path / "push", api(hub))
    hub.fault = lambda method, path: "lost" if where in path else None
    with pytest.raises(ConnectionError, match="me/digits: the Hub cannot be reached; start again later"):
        push(settings(run), tmp_path / "push", api(hub))


def test_the_recipe_ends_in_one_line_where_the_hub_is_away(run, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    recipe = runpy.run_path(str(ROOT / "recipes/push.py"))
    with pytest.raises(SystemExit, match="error: me/digits: the Hub cannot be reached; start again later"):
        recipe["main"](recipe["PushArguments"](str(tmp_path / "push")), settings(run))


def test_what_was_only_tried_may_get_another_name_and_what_was_pushed_may_not(hub, run, tmp_path):
    for name in ("me/other", REPO):
        config = settings(run, dry_run=True)
        config.hub_dataset_id = name
        push(config, tmp_path / "push", api(hub))
    push(settings(run), tmp_path / "push", api(hub))
    config.hub_dataset_id = "me/other"
    with pytest.raises(AnotherRunError, match="hub_dataset_id is 'me/digits' there and 'me/other' here"):
        push(config, tmp_path / "push", api(hub))


def test_a_push_is_never_prepared_in_the_folder_of_another_step(run, tmp_path):
    """Files of the same name would be lost: those that `generate` writes have no settings beside them."""
    shutil.copytree(run, tmp_path / "other")
    for folder in ("candidates", "curated"):
        there = {path: path.read_bytes() for path in (tmp_path / "other" / folder).rglob("*.*") if path.is_file()}
        with pytest.raises(ValueError, match="holds the artefact of another step; prepare the push elsewhere"):
            push(settings(run, dry_run=True), tmp_path / "other" / folder)
        assert all(path.read_bytes() == content for path, content in there.items()) and there


def test_two_pushes_do_not_prepare_their_files_in_one_folder(hub, run, tmp_path):
    inside = []

    def meanwhile(method, path):
        if "/commit/" in path and not inside:
            with pytest.raises(RuntimeError, match="another push prepares its files here; wait for it"):
                inside.append(1)
                push(settings(run), tmp_path / "push", api(hub))
            inside.append(2)
        return None

    hub.fault = meanwhile
    push(settings(run), tmp_path / "push", api(hub))
    assert inside == [1, 2]


def test_a_prepared_folder_is_read_as_it_is_now_and_not_as_it_was(run, tmp_path):
    """`datasets` knows a folder with a card by what the card says."""
    rows = {"id": ["a"], "text": ["one"]}
    for text in ("one", "two"):
        save(Dataset.from_dict({**rows, "text": [text]}), tmp_path / "run", "train")
        artefacts = [{"path": str(tmp_path / "run")}]
        config = settings(run, artefacts=artefacts, dry_run=True)
        push(config, tmp_path / "push", HfApi(endpoint="http://127.0.0.1:1", token=TOKEN))
        assert load_dataset(str(tmp_path / "push"), "train", split="train")["text"][:] == [text]
