"""What a model comes from: the model it started as, and the datasets it was trained on, as others can find them."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..checkpoints import resolve_adapter
from ..files import is_local
from .common import listed, metadata_of


PUSHED = "pushed.json"


def lineage(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Return where a trained model comes from, without a place of this machine.

    Args:
        settings (`dict[str, Any]`):
            What [`~sicog_trl.training.resume.settings_of`] returned. Folders are looked at, so it is asked where the
            run is.

    Returns:
        `dict[str, Any]`: `model`, the name of what it started as; `base`, the same but for an adapter that went on
        training, of which it is the model below; `base_model`, that or the first of its ancestors that is on the Hub,
        if any, and `exact`, whether it is that very model; its `revision`; `adapter`; `datasets`, each with `name`,
        `split`, `weight`, `hub_id` and `revision`.
    """
    start = settings["model_name_or_path"]
    below = resolve_adapter(start)[0]  # an adapter goes on training on the model that it was made for
    sources = settings.get("datasets") or [
        {"path": settings.get("dataset_name"), "split": settings.get("dataset_train_split")}
    ]
    base, exact = hub_base(below)
    return {
        "model": last_part(start),
        "base": last_part(below),
        "base_model": base,
        "exact": exact,
        "revision": settings.get("model_revision") if base == below else None,
        "adapter": bool(settings.get("use_peft")),
        "datasets": [_source(source) for source in sources if source.get("path")],
    }


def last_part(name: str) -> str:
    """Return a Hub id as it is, and of a folder the last part."""
    return Path(name).expanduser().absolute().name if is_local(name) else name


def hub_base(name: str | Path) -> tuple[str | None, bool]:
    """
    Return the model on the Hub that a model is, or that it descends from, and whether it is that very model.

    Of a folder that was pushed it is where to; else what its card says, and for an adapter its configuration, which
    may be a folder again. The card of a model that was trained here names the first such ancestor.
    """
    seen: set[Path] = set()
    while True:
        if is_hub_id(str(name)):
            return str(name), not seen
        folder = Path(name).expanduser().absolute()
        if folder in seen or not folder.is_dir():
            return None, False
        exact = not seen
        seen.add(folder)
        if pushed := pushed_to(folder):
            return pushed["repository"], exact
        named = _named_by(folder)
        if named is None:
            return None, False
        beside = folder / named
        name = beside if not is_hub_id(named) and not Path(named).is_dir() and beside.is_dir() else named


def _named_by(folder: Path) -> str | None:
    card, adapter = folder / "README.md", folder / "adapter_config.json"
    named = None
    if card.is_file():
        try:
            named = listed(metadata_of(card.read_text(encoding="utf-8")).get("base_model"))[0]
        except ValueError as error:
            raise ValueError(f"{card}: {error}") from error
    if not named and adapter.is_file():
        named = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return str(named) if named else None


def is_hub_id(name: str) -> bool:
    """Return whether `name` may be a repository of the Hub, and is no folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not is_local(name)


def pushed_to(folder: str | Path) -> dict[str, Any] | None:
    """Return the record of the push of a folder, if there was one."""
    path = Path(folder).expanduser() / PUSHED
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return record if record.get("repository") and record.get("commit") else None


def _source(source: dict[str, Any]) -> dict[str, Any]:
    path, _, revision = str(source["path"]).partition("@")
    about = {"split": source.get("split") or "train", "weight": source.get("weight")}
    if is_hub_id(path):
        return {"name": path, **about, "hub_id": path, "revision": revision or None}
    pushed = pushed_to(source["path"]) or {}
    found = {"hub_id": pushed.get("repository"), "revision": pushed.get("tag")}
    return {"name": last_part(source["path"]), **about, **found}
