"""Which model to publish, and as what."""

from dataclasses import dataclass, field
from typing import Any

from ..cards.licences import LICENSES, slug
from ..cards.lineage import is_hub_id
from .config import check_license, check_target


@dataclass
class PushModelConfig:
    """
    Which model to publish, and as what.

    Args:
        hub_model_id (`str`):
            Model repository, `owner/name`; made if it is not there.
        model_name_or_path (`str`):
            Folder of a model or of an adapter.
        license (`str`, *optional*):
            A name that the Hub knows, or any other name with a link. A model is not pushed without one, unless the
            card that is there names it.
        license_link (`str`, *optional*):
            Where the licence can be read.
        base_model (`str`, *optional*):
            Hub id of the model that this one was trained from, where that was a folder. An adapter needs the very
            model that it is for.
        datasets (`list[str]`, *optional*):
            Hub ids of the datasets that it was trained on, where these were folders.
        language (`list[str]`, *optional*):
            ISO 639 codes.
        private (`bool`, *optional*, defaults to `True`):
            Make the repository private. A repository that is public is refused while this is set.
        tag (`str`, *optional*):
            Name of this version, such as `round-1`. A tag is never moved.
        hub_revision (`str`, *optional*):
            Branch that gets the commit; made if it is not there. The main one unless given.
        dry_run (`bool`, *optional*, defaults to `False`):
            Write the card and show what would be pushed; write nothing to the Hub.
    """

    hub_model_id: str = field(metadata={"help": "Model repository, owner/name."})
    model_name_or_path: str = field(metadata={"help": "Folder of a model or of an adapter."})
    license: str | None = field(default=None, metadata={"help": "A name that the Hub knows, or one with a link."})
    license_link: str | None = field(default=None, metadata={"help": "Where it can be read."})
    base_model: str | None = field(default=None, metadata={"help": "Hub id of what it was trained from."})
    datasets: list[str] | None = field(default=None, metadata={"help": "Hub ids of what it was trained on."})
    language: list[str] | None = field(default=None, metadata={"help": "ISO 639 codes."})
    private: bool = field(default=True, metadata={"help": "Make the repository private."})
    tag: str | None = field(default=None, metadata={"help": "Name of this version, such as round-1."})
    hub_revision: str | None = field(default=None, metadata={"help": "Branch that gets the commit."})
    dry_run: bool = field(default=False, metadata={"help": "Show what would be pushed, push nothing."})

    def __post_init__(self) -> None:
        check_target(self, "hub_model_id")
        if self.license:
            check_license("license", self.license, self.license_link)
        for key, names in (("base_model", [self.base_model]), ("datasets", self.datasets or [])):
            if wrong := [name for name in names if name is not None and not is_hub_id(name)]:
                raise ValueError(f"{key} {wrong[0]!r} is no Hub id; links in a card lead to the Hub")


def given_metadata(config: PushModelConfig) -> dict[str, Any]:
    """Return what a card says because somebody said so: licence, base model, datasets, languages."""
    known = config.license in LICENSES
    given: dict[str, Any] = {"license": config.license if known or not config.license else "other"}
    if config.license and not known:
        given["license_name"] = slug(config.license)
    given |= {"license_link": config.license_link, "base_model": config.base_model}
    return {**given, "datasets": config.datasets, "language": config.language}
