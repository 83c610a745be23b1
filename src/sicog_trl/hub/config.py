"""What to publish, and as what."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..cards.licences import LICENSES
from ..data import splits


IMAGES = ("embed", "reference")
_KEYS = {"path", "split", "config"}


@dataclass
class PushConfig:
    """
    What to publish, and as what.

    Args:
        hub_dataset_id (`str`):
            Dataset repository, `owner/name`; made if it is not there.
        artefacts (`list[dict]`):
            One mapping per artefact folder with the keys `path`, `split` (all of its splits if missing) and `config`
            (named after the split if missing). Each becomes a configuration with one split of the same name; the first
            one is what `load_dataset` loads when none is named.
        image_license (`str`):
            Licence of the images: a name that the Hub knows, see [`LICENSES`], or any other name with a link.
        text_license (`str`):
            Licence of the text.
        image_license_link (`str`, *optional*):
            Where the licence of the images can be read.
        text_license_link (`str`, *optional*):
            Where the licence of the text can be read.
        made_by (`list[str]`, *optional*):
            Folders of earlier steps whose settings the card tells too, such as the one of `generate` where candidates
            are not published.
        source_datasets (`list[str]`, *optional*):
            Datasets that the images come from, Hub ids or names.
        images (`str`, *optional*, defaults to `"embed"`):
            `"embed"` puts the images into the repository; `"reference"` leaves them out, for licences that forbid
            copies, and writes `image_references` and `image_hashes` in their place; `attach.py` puts them back.
        image_reference (`str`, *optional*, defaults to `"{source_id}"`):
            What stands for an image: a text with `{id}` and `{source_id}` of its row, `{path}` (of the image, its last
            part unless it is an address) and `{number}` (among the images of its row, from 0). Pairs and turns have
            ids of their own; there the hash finds the image.
        private (`bool`, *optional*, defaults to `True`):
            Make the repository private. A repository that is public is refused while this is set.
        tag (`str`, *optional*):
            Name of this version, such as `round-1`. A tag is never moved.
        dry_run (`bool`, *optional*, defaults to `False`):
            Prepare everything and show what would be pushed; write nothing to the Hub.
        max_shard_size (`str`, *optional*, defaults to `"500MB"`):
            Size of a Parquet file before compression.
        pretty_name (`str`, *optional*):
            Title of the card.
        language (`list[str]`, *optional*):
            ISO 639 codes of the languages of the text.
        citation (`str`, *optional*):
            BibTeX of the dataset.
    """

    hub_dataset_id: str = field(metadata={"help": "Dataset repository, owner/name."})
    artefacts: list[dict] | None = field(default=None, metadata={"help": "Mappings with path, split and config."})
    image_license: str | None = field(default=None, metadata={"help": "Licence of the images; required."})
    text_license: str | None = field(default=None, metadata={"help": "Licence of the text; required."})
    image_license_link: str | None = field(default=None, metadata={"help": "Where it can be read."})
    text_license_link: str | None = field(default=None, metadata={"help": "Where it can be read."})
    made_by: list[str] | None = field(default=None, metadata={"help": "Folders of earlier steps."})
    source_datasets: list[str] | None = field(default=None, metadata={"help": "Where the images come from."})
    images: str = field(default="embed", metadata={"help": "In the repository or not.", "choices": IMAGES})
    image_reference: str = field(default="{source_id}", metadata={"help": "What stands for an image."})
    private: bool = field(default=True, metadata={"help": "Make the repository private."})
    tag: str | None = field(default=None, metadata={"help": "Name of this version, such as round-1."})
    dry_run: bool = field(default=False, metadata={"help": "Show what would be pushed, push nothing."})
    max_shard_size: str = field(default="500MB", metadata={"help": "Size of a Parquet file before compression."})
    pretty_name: str | None = field(default=None, metadata={"help": "Title of the card."})
    language: list[str] | None = field(default=None, metadata={"help": "ISO 639 codes."})
    citation: str | None = field(default=None, metadata={"help": "BibTeX of the dataset."})

    def __post_init__(self) -> None:
        check_target(self, "hub_dataset_id")
        for key in ("image_license", "text_license"):
            if not getattr(self, key):
                raise ValueError(
                    f"{key} is {getattr(self, key)!r}: nothing is pushed without the licences of images and of text; "
                    f"name one that the Hub knows (cc-by-4.0, ...), or another one by its name with {key}_link"
                )
            check_license(key, getattr(self, key), getattr(self, f"{key}_link"))
        if self.images not in IMAGES:
            raise ValueError(f"unknown images {self.images!r}; choose one of {', '.join(IMAGES)}")
        if not self.artefacts:
            raise ValueError("artefacts is empty: name at least one folder with a `path`")
        try:
            self.image_reference.format(id="", source_id="", path="", number=0)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"image_reference knows id, source_id, path and number, not {error}") from error
        for number, artefact in enumerate(self.artefacts):
            if not isinstance(artefact, dict):
                raise ValueError(f"artefacts[{number}] is {artefact!r}; write it as `path: {artefact}`, `split: ...`")
            if unknown := set(artefact) - _KEYS:
                raise ValueError(f"artefacts[{number}]: unknown key {min(unknown)!r}; known are {sorted(_KEYS)}")
            if not artefact.get("path") or (artefact.get("config") and not artefact.get("split")):
                raise ValueError(f"artefacts[{number}]: needs a `path`, and a `split` if it has a `config`")


def check_target(config: Any, key: str) -> None:
    """Refuse what can be no repository of an owner, or no tag of one, and what might make it public by mistake."""
    repository, tag = getattr(config, key), config.tag
    for name in ("private", "dry_run"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} is true or false, got {getattr(config, name)!r}")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{key} is owner/name, got {repository!r}: {error}") from error
    if "/" not in repository:
        raise ValueError(f"{key} is owner/name, got {repository!r}")
    if tag is not None and (not re.fullmatch(r"\w[\w.-]*", tag) or tag == "main"):
        raise ValueError(f"tag holds letters, digits, '-', '_' and '.' and is not 'main', got {tag!r}")


def check_license(key: str, name: str, link: str | None) -> None:
    """Refuse a licence that nobody could look up."""
    if name in ("unknown", "other") or (name not in LICENSES and not link):
        raise ValueError(
            f"{key} {name!r} is none that the Hub knows; name it, and say in {key}_link where it can be read"
        )


def named_splits(artefacts: list[dict], output_dir: Path) -> dict[str, tuple[str, str]]:
    """Return for the name of every configuration the folder and the split that it is made from."""
    named: dict[str, tuple[str, str]] = {}
    for number, artefact in enumerate(artefacts):
        folder = Path(artefact["path"]).expanduser()
        if folder.resolve() == output_dir.resolve():
            raise ValueError(f"artefacts[{number}]: {folder} is output_dir too; prepare the push somewhere else")
        if not (found := splits(folder)):
            raise FileNotFoundError(f"artefacts[{number}]: {folder} holds no data/<split>-00000-of-00001.parquet")
        for split in [artefact["split"]] if artefact.get("split") else found:
            name = artefact.get("config") or split
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"artefacts[{number}]: a config is named with letters, digits and '_', got {name!r}")
            if name in named:
                raise ValueError(
                    f"artefacts[{number}]: {named[name][0]} has a configuration {name!r} too; give one of them "
                    "another name with `split` and `config`"
                )
            named[name] = str(folder), split
    return named
