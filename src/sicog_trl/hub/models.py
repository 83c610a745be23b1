"""Publish a model: weights, processor and card in one commit. Nothing else of its folder leaves this machine."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..cards import metadata_of, model_card, validate_model_card
from ..cards.common import text_of, with_part
from ..cards.lineage import PUSHED, hub_base
from ..cards.model import BEGIN, END
from ..checkpoints import resolve_adapter
from ..credentials import TOKEN
from ..files import missing_folder, write_json, write_text
from .model_config import PushModelConfig, given_metadata
from .push import overview as overview_of_rows
from .remote import Remote, check_login, compare, explained


_WEIGHTS = r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
# What `from_pretrained` of a model, a processor or an adapter reads; `training_args.bin` and optimizers are pickles.
_SETTINGS = (
    r"((adapter_|generation_|processor_|preprocessor_|video_preprocessor_|tokenizer_)?config|chat_template)\.json"
)
_PUBLISHED = rf"""{_WEIGHTS}|{_SETTINGS}|tokenizer\.(json|model)|(sentencepiece\.bpe|spiece)\.model|.+\.tiktoken
    |vocab\.(json|txt)|merges\.txt|added_tokens\.json|special_tokens_map\.json
    |chat_template\.jinja|additional_chat_templates/[\w-]+\.jinja|(LICENSE|NOTICE)(\.(md|txt))?"""


def push_model(
    config: PushModelConfig,
    output_dir: str | Path,
    api: HfApi | None = None,
    record: dict[str, Any] | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """
    Push a model to the Hub: the files that `from_pretrained` reads and the card, in one commit.

    Args:
        config ([`PushModelConfig`]):
            Which model to publish, and as what.
        output_dir (`str` or `Path`):
            Gets `README.md`, the card as it is pushed, and `pushed.json`; may be the folder of the model.
        api (`huggingface_hub.HfApi`, *optional*):
            How the Hub is reached.
        record (`dict[str, Any]`, *optional*):
            How the model was trained, where `training.json` is not written yet. Such a model needs no licence while it
            is private.
        message (`str`, *optional*):
            Of the commit.

    Returns:
        `dict[str, Any]`: `repository`, `before` (its state), `commit` (`None` in a dry run), `tag`, `private`,
        `files`: size by path and whether each is new, changed, unchanged or deleted, and `left_out`, what of the
        folder was not pushed.

    Raises:
        `ValueError`: if there is no licence, if the repository is public against the settings, its card contradicts
        this one, or the tag stands for something else. `PermissionError`: if the Hub does not accept the token.
        `ConnectionError`: if it cannot be reached.
    """
    with explained(config.hub_model_id):
        return _push(
            config, Path(output_dir), api or HfApi(), record, message or f"Push {config.tag or 'model and card'}"
        )


def _push(
    config: PushModelConfig, output_dir: Path, api: HfApi, record: dict[str, Any] | None, message: str
) -> dict[str, Any]:
    folder = Path(config.model_name_or_path).expanduser()
    local, left_out = published_files(folder)
    if not config.dry_run:
        check_login(api)
    remote = Remote(api, config, "model")
    given = given_metadata(config)
    with tempfile.TemporaryDirectory() as prepared:
        if "adapter_config.json" in local:
            given["base_model"] = _adapter_base(folder, config.base_model)
            local["adapter_config.json"] = _rewritten(
                local["adapter_config.json"], given["base_model"], Path(prepared)
            )
        for name, file in local.items():
            if re.fullmatch(_SETTINGS, name):
                _refuse_secrets(name, json.loads(file.read_text(encoding="utf-8")))
        plan = _plan(local, remote.files)
        same = all(state == "unchanged" for path, state in plan.items() if re.fullmatch(_WEIGHTS, path))
        card = model_card(folder, record, config.hub_model_id, given, remote.card, same)
        _check_license(validate_model_card(card).get("license"), needed=record is None or not config.private)
        left_out += _unseen(folder / "README.md", card)
        write_text(output_dir / "README.md", card)
        plan = _plan({**local, "README.md": output_dir / "README.md"}, remote.files)
        local["README.md"] = output_dir / "README.md"
        return remote.push(local, plan, output_dir, message, left_out=left_out)


def overview(report: dict[str, Any]) -> str:
    """Return what [`push_model`] did, or would do, for a person."""
    lines = [overview_of_rows({**report, "rows": {}, "left_out": []})]
    return "\n".join([*lines, *(f"  {'not pushed':>28} {name}" for name in report["left_out"])])


def published_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """
    Return the files of a model that are published, by their path in the repository, and what else is in its folder.

    Raises:
        `ValueError`: if its weights are no safetensors.
    """
    if not folder.is_dir():
        raise missing_folder("model", folder)
    found: dict[str, Path] = {}
    left_out = []
    for path in sorted(folder.iterdir()):
        inside = sorted(path.iterdir()) if path.name == "additional_chat_templates" else [path]
        for file in inside:
            name = file.relative_to(folder).as_posix()
            if re.fullmatch(_PUBLISHED, name, re.VERBOSE) and file.is_file():
                found[name] = file
            elif name not in ("README.md", PUSHED) and not name.startswith("."):
                left_out.append(f"{name}/" if file.is_dir() else name)
    if not any(re.fullmatch(_WEIGHTS, name) for name in found):
        raise ValueError(f"{folder} holds no weights as safetensors, and others are not published: save it again")
    if not any(name in found for name in ("processor_config.json", "preprocessor_config.json")):
        raise ValueError(f"{folder} holds no processor; save the one of its base model beside the weights")
    return found, left_out


def _plan(local: dict[str, Path], remote: dict[str, str]) -> dict[str, str]:
    """Return for every path what the push does to it; weights of an earlier model go, they would be loaded too."""
    plan = compare(local, remote, set())
    old = [path for path in remote if re.fullmatch(_WEIGHTS, path) and path not in local]
    return plan | dict.fromkeys(sorted(old), "deleted")


def _check_license(name: Any, needed: bool) -> None:
    if needed and not name:
        raise ValueError(
            "license is missing: no model is pushed without one; name one that the Hub knows (apache-2.0, ...), or "
            "another one by its name with license_link. What the base model and the data demand is yours to look up"
        )


def _adapter_base(folder: Path, named: str | None) -> str:
    """Return the Hub id of the very model that an adapter is for."""
    if named:
        return named
    below = resolve_adapter(str(folder))[0]
    base, exact = hub_base(below)
    if not exact:
        raise _nobodys_base(folder, below)
    return base


def _nobodys_base(adapter: Path | str, below: str) -> ValueError:
    return ValueError(
        f"the adapter {adapter} is for the model in the folder {below}, which others do not have: push that one first "
        "and name it in base_model of recipes/push_model.py, or merge the adapter into it"
    )


def _rewritten(file: Path, base: str, prepared: Path) -> Path:
    """Return the configuration of an adapter with the name under which others find its base."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("base_model_name_or_path") == base:
        return file
    write_json(prepared / file.name, {**content, "base_model_name_or_path": base})
    return prepared / file.name


def _refuse_secrets(name: str, content: Any, key: str = "") -> None:
    """Refuse settings with a token or a place of this machine, as older versions of Transformers wrote them."""
    if isinstance(content, (dict, list)):
        for part, inner in content.items() if isinstance(content, dict) else enumerate(content):
            _refuse_secrets(name, inner, f"{key}.{part}".lstrip("."))
    elif isinstance(content, str) and TOKEN.search(content):
        raise ValueError(f"{name}: {key} holds what looks like an access token; take it out, and revoke it")
    elif (
        isinstance(content, str) and key.endswith(("path", "dir", "file")) and content.startswith(("/", "~", "file:"))
    ):
        raise ValueError(f"{name}: {key} names a place of this machine; take it out, nobody else can use it")


def _unseen(readme: Path, card: str) -> list[str]:
    """Return a note if somebody wrote around our part of the card in the folder what the one on the Hub lacks."""
    if not readme.is_file():
        return []
    local, pushed = (with_part(text_of(text), "", BEGIN, END) for text in (readme.read_text(encoding="utf-8"), card))
    return [] if local in pushed or local == pushed else ["the text of README.md around our part: the Hub has its own"]


def rehearse(config: PushModelConfig, record: dict[str, Any], api: HfApi) -> None:
    """
    Refuse what [`push_model`] would refuse of a model that is yet to be trained.

    Args:
        config ([`PushModelConfig`]):
            Which model to publish, and as what.
        record (`dict[str, Any]`):
            How it is going to be trained.
        api (`huggingface_hub.HfApi`):
            How the Hub is reached.
    """
    made = record["made_from"]
    if made["adapter"] and not made["exact"]:
        raise _nobodys_base(config.model_name_or_path, made["base"])
    with explained(config.hub_model_id):
        remote = Remote(api, config, "model")
    model_card(config.model_name_or_path, record, config.hub_model_id, remote=remote.card)


def claim_repository(repository: str, private: bool, token: str | None = None, readme: Path | None = None) -> str:
    """
    Make a repository for a model that is going to be trained, and refuse what would fail only when it is.

    Args:
        repository (`str`):
            `owner/name`, or a name alone for one of one's own.
        private (`bool`):
            Whether it is to be private. A public model needs a licence.
        token (`str`, *optional*):
            Instead of the one of the login.
        readme (`Path`, *optional*):
            Card of the model, which may name the licence.

    Returns:
        `str`: `owner/name`.
    """
    api = HfApi(token=token)
    with explained(repository):
        check_login(api)
    named = readme is not None and readme.is_file() and metadata_of(readme.read_text(encoding="utf-8")).get("license")
    if not private and not named:
        raise ValueError(
            "hub_private_repo: false publishes a model, which needs a licence: write `license: ...` into the metadata "
            f"of {readme}, or train without push_to_hub and publish with recipes/push_model.py"
        )
    with explained(repository):
        found = api.create_repo(repository, private=private, exist_ok=True).repo_id
        seen = api.model_info(found)
    if private and not seen.private:
        raise ValueError(f"{found} is public; say `hub_private_repo: false` if that is meant")
    return found
