"""Publishing a model against a server that speaks as the Hub does; what was pushed is loaded by its name there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer, Stored
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from training import ROOT, train, weights
from transformers import AutoModelForImageTextToText, AutoProcessor

from sicog_trl.cards import validate_model_card
from sicog_trl.checkpoints import load_for_generation
from sicog_trl.evaluation.model_card import results_to_card
from sicog_trl.files import write_json
from sicog_trl.hub.model_config import PushModelConfig
from sicog_trl.hub.models import overview, push_model


REPO = "me/learner"
FILES = {
    *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
}
OTHERS = """---
license: apache-2.0
custom: kept
tags: [theirs]
model-index:
- name: theirs
  results:
  - task: {type: image-text-to-text}
    dataset: {name: Theirs, type: them/rows}
    metrics: [{type: accuracy, value: 0.5}]
---
Words of somebody.
"""


@pytest.fixture(autouse=True)
def default_client(request, monkeypatch) -> None:
    """PEFT asks by the client that `huggingface_hub` made when it was imported, Transformers by its first one."""
    if "hub" in request.fixturenames:
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", request.getfixturevalue("hub").endpoint)


@pytest.fixture(scope="module")
def models(tmp_path_factory, digits_model, digits_world) -> Path:
    """A folder with a trained model and an adapter for the learner of the digits world."""
    folder = tmp_path_factory.mktemp("models")
    common = {"model_name_or_path": str(digits_model), "dataset_name": str(digits_world / "annotated")}
    common |= {"dataset_train_split": "base", "max_steps": 1, "save_steps": 1}
    train("sft", **common, output_dir=str(folder / "learner"))
    train("sft", **common, **LORA, output_dir=str(folder / "adapter"))
    return folder


LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}


def config(models: Path, name: str = "learner", **changes) -> PushModelConfig:
    return PushModelConfig(REPO, str(models / name), **{"license": "apache-2.0", **changes})


def api(server: HubServer, token: str | bool = TOKEN) -> HfApi:
    return HfApi(endpoint=server.endpoint, token=token)


def pushed(server: HubServer, revision: str = "main") -> dict[str, bytes]:
    return server.files(REPO, revision, "models")


def put(server: HubServer, **files: str) -> None:
    """Let somebody else make the repository and write files into it."""
    api(server).create_repo(REPO, private=True, exist_ok=True)
    repo = server.model(REPO)
    there = repo.commits[repo.branches["main"]]
    added = {path.replace("_md", ".md"): Stored(text.encode(), False) for path, text in files.items()}
    repo.commit({**there, **added}, "by somebody")


def scores(folder: Path, model: str, accuracy: float) -> Path:
    values = {model: {"mmstar": {"average": accuracy, "n": 1500}}}
    write_json(folder / "scores.json", {"models": values, "manifest": {"versions": {"lmms-eval": "0.7.3"}}})
    return folder / "scores.json"


def test_one_commit_holds_weights_processor_and_card_and_nothing_else(hub, models, tmp_path):
    report = push_model(config(models, tag="round-1"), tmp_path, api(hub))
    repo = hub.model(REPO)
    assert repo.private and list(repo.messages.values()) == ["initial commit", "Push round-1"]
    assert repo.tags == {"round-1": report["commit"]}
    assert set(pushed(hub)) == {*FILES, ".gitattributes"} == {*report["files"], ".gitattributes"}
    left = {"checkpoint-1/", "settings.json", "training.json", "training_args.bin"}
    assert set(report["left_out"]) == left and all(name in overview(report) for name in left)
    card = pushed(hub)["README.md"].decode()
    assert (
        validate_model_card(card).license == "apache-2.0"
        and "## Licence\n\napache-2.0." in card
        and f'from_pretrained("{REPO}")' in card
    )
    assert "is the folder of this model" not in card and card == (tmp_path / "README.md").read_text()
    before = (models / "learner" / "README.md").read_text()
    assert "apache-2.0" not in before  # the folder is as it was
    everything = b"".join([*pushed(hub).values(), (tmp_path / "pushed.json").read_bytes()])
    assert str(models).encode() not in everything and TOKEN.encode() not in everything


def test_what_was_pushed_is_loaded_by_its_name_and_tag(hub, models, tmp_path):
    push_model(config(models, tag="round-1"), tmp_path, api(hub))
    model = AutoModelForImageTextToText.from_pretrained(REPO, revision="round-1")
    trained = AutoModelForImageTextToText.from_pretrained(models / "learner")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trained.state_dict().items())
    assert AutoProcessor.from_pretrained(REPO, revision="round-1").chat_template


def test_the_same_push_again_commits_nothing_and_another_one_keeps_the_tag(hub, models, digits_model, tmp_path):
    push_model(config(models, tag="round-1"), tmp_path, api(hub))
    again = push_model(config(models, tag="round-1"), tmp_path, api(hub))
    assert {file["is"] for file in again["files"].values()} == {"unchanged"}
    assert len(hub.model(REPO).commits) == 2
    other = PushModelConfig(REPO, str(digits_model), license="apache-2.0", tag="round-1")
    with pytest.raises(ValueError, match="the tag round-1 stands for something else"):
        push_model(other, tmp_path, api(hub))
    with pytest.raises(ValueError, match="the card on the Hub says license"):
        push_model(config(models, license="mit"), tmp_path, api(hub))
    assert len(hub.model(REPO).commits) == 2


def test_the_card_of_others_on_the_hub_is_merged(hub, models, tmp_path):
    put(hub, README_md=OTHERS, notes_md="theirs")
    push_model(config(models, language=["en"], datasets=["me/digits"]), tmp_path, api(hub))
    card, data = pushed(hub)["README.md"].decode(), validate_model_card(pushed(hub)["README.md"].decode())
    assert card.index("Words of somebody.") < card.index("## Quick start") and data["custom"] == "kept"
    assert data.tags[0] == "theirs" and "sicog-trl" in data.tags and data.datasets == ["me/digits"]
    assert [result.dataset_type for result in data.eval_results] == ["them/rows"] and "Theirs" in card
    assert pushed(hub)["notes.md"] == b"theirs" and "[me/digits](https://huggingface.co/datasets/me/digits)" in card


def test_scores_are_pushed_and_those_of_other_weights_are_not_kept(hub, models, digits_model, tmp_path):
    pytest.importorskip("lmms_eval")
    put(hub, README_md=OTHERS)
    readme = models / "learner" / "README.md"
    before = readme.read_text()
    results_to_card(scores(tmp_path, "learner", 0.25), "learner", readme)
    push_model(config(models), tmp_path, api(hub))
    readme.write_text(before)

    def found() -> dict[str, float]:
        data = validate_model_card(pushed(hub)["README.md"].decode())
        return {result.dataset_type: result.metric_value for result in data.eval_results}

    assert found() == {"them/rows": 0.5, "Lin-Chen/MMStar": 0.25}
    assert re.search(r"\| MMStar .* 0.25 \|", pushed(hub)["README.md"].decode())
    push_model(config(models, language=["en"]), tmp_path, api(hub))  # same weights, and the folder names no scores
    assert found() == {"them/rows": 0.5, "Lin-Chen/MMStar": 0.25}
    push_model(PushModelConfig(REPO, str(digits_model)), tmp_path, api(hub))  # the licence stands there
    assert found() == {"them/rows": 0.5}


def test_weights_of_an_earlier_model_do_not_stay_beside_the_new_ones(hub, models, tmp_path):
    push_model(config(models), tmp_path, api(hub))
    model = AutoModelForImageTextToText.from_pretrained(models / "learner")
    model.save_pretrained(tmp_path / "parts", max_shard_size="1MB")
    AutoProcessor.from_pretrained(models / "learner").save_pretrained(tmp_path / "parts")
    report = push_model(PushModelConfig(REPO, str(tmp_path / "parts")), tmp_path, api(hub))
    assert report["files"]["model.safetensors"]["is"] == "deleted" and "model.safetensors" not in pushed(hub)
    assert sum(path.endswith(".safetensors") for path in pushed(hub)) > 1
    assert AutoModelForImageTextToText.from_pretrained(REPO).num_parameters() == model.num_parameters()


def test_an_adapter_is_pushed_for_a_base_that_others_have(hub, models, digits_model, tmp_path):
    with pytest.raises(ValueError, match=r"is for the model in the folder .*, which others do not have"):
        push_model(config(models, "adapter"), tmp_path, api(hub))
    base = PushModelConfig("me/base", str(digits_model), license="apache-2.0")
    push_model(base, tmp_path / "base", api(hub))
    push_model(config(models, "adapter", base_model="me/base", tag="v1"), tmp_path, api(hub))
    assert json.loads(pushed(hub)["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    kept = json.loads((models / "adapter" / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == str(digits_model)
    data = validate_model_card(pushed(hub)["README.md"].decode())
    assert (data.base_model, data["base_model_relation"], data.library_name) == ("me/base", "adapter", "peft")
    assert str(digits_model).encode() not in b"".join(pushed(hub).values())
    there, here = (load_for_generation(name)[0].state_dict() for name in (REPO, str(models / "adapter")))
    assert all(torch.equal(there[name], value) for name, value in here.items())


def test_a_dry_run_shows_everything_and_writes_nothing(hub, models, tmp_path, monkeypatch):
    report = push_model(config(models, dry_run=True, tag="round-1"), tmp_path, api(hub, token=False))
    shown = overview(report)
    assert "would push to me/learner (private), tag round-1" in shown and "new       model.safetensors" in shown
    assert not hub.repos and {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    assert f'from_pretrained("{REPO}")' in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "pushed.json").exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push_model(config(models, dry_run=True), tmp_path, api(hub))["before"] == "not asked, offline"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub_model_id": "learner"}, "hub_model_id is owner/name"),
        ({"license": "unknown"}, "license 'unknown' is none that the Hub knows"),
        ({"license": "My terms"}, "say in license_link"),
        ({"base_model": "/home/me/base"}, "base_model '/home/me/base' is no Hub id"),
        ({"datasets": ["./rows"]}, "datasets './rows' is no Hub id"),
        ({"tag": "../main"}, "tag holds letters"),
        ({"tag": "main"}, "is not 'main'"),
        ({"private": None}, "private is true or false, got None"),
    ],
)
def test_a_bad_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PushModelConfig(**{"hub_model_id": REPO, "model_name_or_path": "x", "license": "mit", **changes})


def test_what_may_not_be_pushed_is_refused(hub, models, digits_model, tmp_path):
    with pytest.raises(ValueError, match="license is missing: no model is pushed without one"):
        push_model(config(models, license=None), tmp_path, api(hub))
    with pytest.raises(PermissionError, match="hf auth login"):
        push_model(config(models), tmp_path, api(hub, token="hf_wrong"))
    (tmp_path / "pickled").mkdir()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights as safetensors"):
        push_model(PushModelConfig(REPO, str(tmp_path / "pickled"), license="mit"), tmp_path, api(hub))
    save_file({"x": torch.zeros(1)}, tmp_path / "pickled" / "model.safetensors")
    with pytest.raises(ValueError, match="holds no processor"):
        push_model(PushModelConfig(REPO, str(tmp_path / "pickled"), license="mit"), tmp_path, api(hub))
    shutil.copytree(models / "learner", tmp_path / "older")
    settings = json.loads((tmp_path / "older" / "config.json").read_text())
    write_json(tmp_path / "older" / "config.json", {**settings, "text_config": {"_name_or_path": "/home/me/base"}})
    with pytest.raises(ValueError, match=r"config\.json: text_config\._name_or_path names a place of this machine"):
        push_model(PushModelConfig(REPO, str(tmp_path / "older"), license="mit"), tmp_path, api(hub))
    write_json(tmp_path / "older" / "config.json", settings)
    write_json(tmp_path / "older" / "tokenizer_config.json", {"init": [{"use_auth_token": TOKEN}]})
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json: init\.0\.use_auth_token holds what .* token"
    ) as told:
        push_model(PushModelConfig(REPO, str(tmp_path / "older"), license="mit"), tmp_path, api(hub))
    assert TOKEN not in str(told.value)
    assert not hub.repos
    api(hub).create_repo(REPO, private=False)
    with pytest.raises(ValueError, match="is public; say `private: false`"):
        push_model(config(models), tmp_path, api(hub))
    assert "(PUBLIC)" in overview(push_model(config(models, private=False), tmp_path, api(hub)))


def test_a_licence_of_ones_own_is_named_with_its_link(hub, models, tmp_path):
    own = {"license": "My Terms 1.0", "license_link": "https://example.org/terms"}
    push_model(config(models, **own), tmp_path, api(hub))
    data = validate_model_card(pushed(hub)["README.md"].decode())
    assert (data.license, data["license_name"], data["license_link"]) == ("other", "my-terms-1.0", own["license_link"])


def learn(model: Path | str, digits_world: Path, output_dir: Path, **changes) -> None:
    settings = {"model_name_or_path": str(model), "dataset_name": str(digits_world / "annotated")}
    settings |= {"dataset_train_split": "base", "max_steps": 2, "save_steps": 1, "push_to_hub": True}
    train("sft", **{**settings, "hub_model_id": REPO, "output_dir": str(output_dir), **changes})


def test_training_publishes_our_card_in_private_when_it_is_done(hub, digits_model, digits_world, tmp_path, capfd):
    learn(digits_model, digits_world, tmp_path / "out")
    repo = hub.model(REPO)
    assert repo.private and list(repo.messages.values()) == ["initial commit", "End of training"]
    assert set(pushed(hub)) == {*FILES, ".gitattributes"}
    card = pushed(hub)["README.md"].decode()
    assert f'from_pretrained("{REPO}")' in card and "| steps | 2 |" in card and "text-generation" not in card
    validate_model_card(card)
    assert card == (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "model.safetensors").write_bytes(pushed(hub)["model.safetensors"])
    kept = weights(tmp_path / "out")
    assert all(torch.equal(kept[name], value) for name, value in load_file(tmp_path / "model.safetensors").items())
    assert TOKEN not in "".join(capfd.readouterr())
    learn(digits_model, digits_world, tmp_path / "out")
    assert "holds a finished model; nothing to do" in capfd.readouterr().out
    # what is trained from it names it, not the folder
    learn(tmp_path / "out", digits_world, tmp_path / "next", push_to_hub=False, max_steps=1)
    assert validate_model_card((tmp_path / "next" / "README.md").read_text()).base_model == REPO
    learn(tmp_path / "out", digits_world, tmp_path / "next", max_steps=1)
    assert "holds a finished model; publish it with recipes/push_model.py" in capfd.readouterr().out


def test_an_adapter_is_published_from_training_on_a_branch(hub, digits_model, digits_world, tmp_path):
    push_model(PushModelConfig("me/base", str(digits_model), license="mit"), tmp_path / "base", api(hub))
    learn("me/base", digits_world, tmp_path / "out", **LORA, hub_revision="round-1", hub_token=TOKEN)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(pushed(hub, "round-1"))
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert set(pushed(hub)) == {".gitattributes"}
    data = validate_model_card(pushed(hub, "round-1")["README.md"].decode())
    assert (data.base_model, data["base_model_relation"]) == ("me/base", "adapter")
    load_for_generation("me/base")  # a Hub id is as good as a folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub_private_repo": False}, "hub_private_repo: false publishes a model, which needs a licence"),
        ({"hub_strategy": "checkpoint"}, "hub_strategy: checkpoint is not possible"),
        ({"hub_token": "hf_wrong"}, "does not accept the token"),
        ({"model_init_kwargs": {"token": "x"}}, r"model_init_kwargs\.token would be written .* leave it out"),
    ],
)
def test_what_would_fail_after_training_is_refused_before(hub, digits_model, digits_world, tmp_path, changes, message):
    with pytest.raises((ValueError, PermissionError), match=message):
        learn(digits_model, digits_world, tmp_path / "out", **changes)
    assert not hub.repos


def test_what_the_hub_has_is_looked_at_before_training_too(hub, digits_model, digits_world, tmp_path):
    with pytest.raises(ValueError, match=r"is for the model in the folder .*, which others do not have"):
        learn(digits_model, digits_world, tmp_path / "out", **LORA)
    put(hub, README_md="---\nlibrary_name: timm\n---\n")
    with pytest.raises(ValueError, match="the card on the Hub says library_name: timm"):
        learn(digits_model, digits_world, tmp_path / "out")
    assert not (tmp_path / "out" / "settings.json").exists()


def test_a_public_repository_is_refused_unless_it_is_meant(hub, digits_model, digits_world, tmp_path):
    api(hub).create_repo(REPO, private=False)
    with pytest.raises(ValueError, match="is public; say `hub_private_repo: false`"):
        learn(digits_model, digits_world, tmp_path / "out")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n")
    learn(digits_model, digits_world, tmp_path / "out", hub_private_repo=False, max_steps=1)
    assert validate_model_card(pushed(hub)["README.md"].decode()).license == "mit"


def test_the_recipe_pushes_and_plain_clients_load_by_hf_endpoint(models, tmp_path):
    with HubServer() as server:
        settings = {"hub_model_id": REPO, "model_name_or_path": str(models / "learner"), "license": "mit"}
        settings |= {"tag": "round-1", "output_dir": str(tmp_path / "push")}
        (tmp_path / "push.yaml").write_text(json.dumps(settings))
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

        def start(*command: str) -> str:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
            assert TOKEN not in done.stdout + done.stderr
            return done.stdout

        said = start("recipes/push_model.py", "--config", str(tmp_path / "push.yaml"))
        assert "pushed to me/learner (private), tag round-1" in said and server.model(REPO).private
        load = "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P; "
        load += f"m = M.from_pretrained('{REPO}', revision='round-1'); p = P.from_pretrained('{REPO}'); "
        load += "from sicog_trl.generation import TransformersSampler as S; "
        load += f"S('{REPO}', max_completion_length=4); print('parameters:', m.num_parameters())"
        assert re.search(r"parameters: \d+", start("-c", load))
