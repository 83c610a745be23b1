"""The card of a model: what it is, how to ask it, what it was trained on and how, what it scores, its risks."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..report import markdown_environment, read_json
from .common import LICENSE_KEYS, listed, merged, metadata_of, text_of, whole, with_part
from .licences import LICENSES
from .model_content import content, hub_link, plain
from .scores import check_index, joined_index, scores_part


BEGIN = "<!-- sicog-trl: begin, written anew by every training and push -->"
END = "<!-- sicog-trl: end -->"
# What two cards of one model cannot both be right about.
_SETTLED = (*LICENSE_KEYS, "base_model", "base_model_relation", "library_name")


def model_card(
    folder: str | Path,
    record: dict[str, Any] | None = None,
    hub_model_id: str | None = None,
    given: dict[str, Any] | None = None,
    remote: str | None = None,
    same_weights: bool = False,
) -> str:
    """
    Return the card of a model, from what its folder records.

    Of a card that is there only the part that this package wrote is replaced, and its metadata stay: scores of an
    evaluation, a licence, whatever somebody wrote.

    Args:
        folder (`str` or `Path`):
            What [`~sicog_trl.training.train_and_save`] wrote, or any model.
        record (`dict[str, Any]`, *optional*):
            Content of `training.json`, where that is not written yet.
        hub_model_id (`str`, *optional*):
            Where the model is published.
        given (`dict[str, Any]`, *optional*):
            Metadata that whoever publishes it names, such as `license`. Its `base_model` takes the place of what the
            card in the folder says.
        remote (`str`, *optional*):
            The card on the Hub.
        same_weights (`bool`, *optional*, defaults to `False`):
            Whether the weights on the Hub are these; otherwise the scores that this package wrote there are left out.

    Returns:
        `str`: metadata and Markdown.

    Raises:
        `ValueError`: if a card cannot be read, or the one on the Hub contradicts this one.
    """
    folder, given = Path(folder), given or {}
    record = record or read_json(folder / "training.json", dict)
    about = content(folder, record, hub_model_id, given)
    readme = folder / "README.md"
    local = readme.read_text(encoding="utf-8") if readme.is_file() else None
    existing = _metadata(local, str(readme))
    if given.get("base_model"):
        existing = {key: value for key, value in existing.items() if not key.startswith("base_model")}
    found = merged(existing, metadata(about, given), LICENSE_KEYS, f"in {folder.name}")
    text = text_of(local)
    if remote:
        there = _metadata(remote, "the card on the Hub")
        index = joined_index(there, found, same_weights)
        found = merged({key: value for key, value in there.items() if key != "model-index"}, found, _SETTLED)
        found |= {"model-index": index} if index else {}
        text = text_of(remote)
    named = listed(found.get("license_name") or found.get("license") or [])
    licence = ", ".join(str(each) for each in [*named, *listed(found.get("license_link") or [])])
    environment = markdown_environment()
    environment.filters |= {"plain": plain, "hub_link": hub_link}
    body = environment.get_template("model_card.md.jinja").render(
        {**about, "scores": scores_part(found), "licence": licence}
    )
    return whole(found, with_part(text, body, BEGIN, END))


def _metadata(card: str | None, name: str) -> dict[str, Any]:
    try:
        found = metadata_of(card)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if found.get("model-index"):
        check_index(name, found["model-index"])
    return found


def metadata(about: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that are known of a model: base model, datasets, tags, and what was given."""
    found: dict[str, Any] = {key: given.get(key) for key in (*LICENSE_KEYS, "language")}
    found |= {"base_model": about["base_model"], "base_model_relation": about["relation"]}
    hub_ids = [source["hub_id"] for source in about["datasets"] if source["hub_id"]]
    found["datasets"] = list(dict.fromkeys([*hub_ids, *(given.get("datasets") or [])]))
    found |= {"pipeline_tag": "image-text-to-text", "library_name": "peft" if about["adapter"] else "transformers"}
    found["tags"] = ["sicog-trl", "vision-language"]
    if about["method"]:
        found["tags"] += ["trl", about["method"], "generated_from_trainer"]
    return {key: value for key, value in found.items() if value}


def validate_model_card(text: str) -> ModelCardData:
    """
    Check a card without asking anybody.

    Args:
        text (`str`):
            The card.

    Returns:
        `huggingface_hub.ModelCardData`: its metadata.

    Raises:
        `ValueError`: with everything that is wrong: metadata that cannot be read, a `model-index` that is incomplete,
        a licence that the Hub does not know, a base model or dataset that can be none of the Hub.
    """
    try:
        data = ModelCard(text, ignore_metadata_errors=False).data
    except Exception as error:  # the libraries below have each their own
        raise ValueError(f"the metadata of the card cannot be read: {error}") from error
    wrong = []
    for name in listed(data.get("license") or []):
        if name not in LICENSES:
            wrong.append(
                f"license {name!r} is none that the Hub knows; use `other` with license_name and license_link"
            )
        elif name == "other" and not (data.get("license_name") and data.get("license_link")):
            wrong.append("license `other` needs license_name and license_link")
    for key in ("base_model", "datasets"):
        for name in listed(data.get(key) or []):
            try:
                validate_repo_id(name)
            except HFValidationError:
                wrong.append(f"{key} {name!r} can be no repository of the Hub")
    if data.get("base_model_relation") not in (None, "finetune", "adapter", "merge", "quantized"):
        wrong.append(f"base_model_relation {data.get('base_model_relation')!r} is none that the Hub knows")
    if wrong:
        raise ValueError("the card is wrong: " + "; ".join(wrong))
    return data
