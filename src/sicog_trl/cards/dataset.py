"""Dataset cards: what made the data, what it holds, what it may be used for. Metadata that exists stays."""

import fnmatch
import re
from collections.abc import Iterable
from typing import Any

from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from ..report import markdown_environment
from .common import listed, merged, metadata_of, text_of, whole, with_part
from .counts import Counts
from .dataset_content import content
from .licences import LICENSES, slug


BEGIN, END = "<!-- sicog-trl: begin, written anew by every push -->", "<!-- sicog-trl: end -->"
_TAGS = ["synthetic", "self-generated", "vision-language", "sicog-trl"]


def write_card(
    about: dict[str, Any], counts: dict[str, Counts], files: dict[str, tuple[int, str]], existing: str | None
) -> str:
    """
    Return the card of what is pushed.

    Args:
        about (`dict[str, Any]`):
            Fields of [`PushConfig`]; as `folders` the artefact folder of each configuration, and as `left_out` the
            configurations that have no rows any more.
        counts (`dict[str, Counts]`):
            Of each configuration.
        files (`dict[str, tuple[int, str]]`):
            Bytes of the files of each configuration, and a hash of them.
        existing (`str` or `None`):
            The card that is there. Of its text only the part that an earlier push wrote is replaced; of its metadata,
            only what describes the configurations that are pushed.

    Returns:
        `str`: metadata and Markdown.

    Raises:
        `ValueError`: if the card that is there names other licences, or a token stands in what is to be published.
    """
    data = DatasetCardData(**merged(metadata_of(existing), metadata(about)))
    _forget(data, about["left_out"])
    MetadataConfigs(_configs(data, {name: digest for name, (_, digest) in files.items()})).to_dataset_card_data(data)
    infos = {name: _info(name, one, files[name][0]) for name, one in counts.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    body = markdown_environment().get_template("dataset_card.md.jinja").render(content(about, counts))
    return whole(data.to_dict(), with_part(text_of(existing), body, BEGIN, END))


def metadata(about: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that a push knows besides configurations: licences, sources, tags."""
    # The text alone is passed on if images are only referenced.
    licensed = ["text"] if about["images"] == "reference" else ["image", "text"]
    named = {part: about[f"{part}_license"] for part in licensed}
    known = {part: name if name in LICENSES else "other" for part, name in named.items()}
    licenses = list(dict.fromkeys(known.values()))
    found: dict[str, Any] = {"license": licenses[0] if len(licenses) == 1 else licenses}
    if other := next((part for part in reversed(licensed) if known[part] == "other"), None):
        found |= {"license_name": slug(named[other]), "license_link": about[f"{other}_license_link"]}
    found |= {"pretty_name": about["pretty_name"], "language": about["language"], "tags": _TAGS}
    found |= {"task_categories": ["image-text-to-text"], "annotations_creators": ["machine-generated"]}
    found["source_datasets"] = about["source_datasets"]
    return {key: value for key, value in found.items() if value}


def _forget(data: DatasetCardData, names: list[str]) -> None:
    """Take configurations out of the metadata that have no rows, and so no files, any more."""
    for key in ("configs", "dataset_info"):
        entries = data.get(key)
        if isinstance(entries, list):
            data[key] = [entry for entry in entries if entry.get("config_name") not in names]
        elif isinstance(entries, dict) and entries.get("config_name") in names:
            data[key] = []


def _configs(data: DatasetCardData, digests: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the entries of the configurations; the first one needs no name, unless there is such a one already."""
    there = MetadataConfigs.from_dataset_card_data(data)
    has_default = "default" in there or any(entry.get("default") for entry in there.values())
    entries: dict[str, dict[str, Any]] = {}
    for name, digest in digests.items():
        entries[name] = there.get(name, {}) | {"data_files": [{"split": name, "path": f"data/{name}-*"}]}
        # `datasets` takes a folder whose card says the same for the folder that it has in its cache.
        if str(entries[name].get("description", "sha256:")).startswith("sha256:"):
            entries[name]["description"] = f"sha256:{digest}"
        if not has_default:
            entries[name]["default"] = has_default = True
    return entries


def _info(name: str, counts: Counts, size: int) -> DatasetInfo:
    splits = SplitDict()
    splits.add(SplitInfo(name=name, num_bytes=counts.num_bytes, num_examples=counts.num_rows))
    # Rows as they lie in the Parquet files are what `datasets` will have in its cache.
    sizes = {"download_size": size, "dataset_size": counts.num_bytes}
    return DatasetInfo(features=counts.features, splits=splits, config_name=name, **sizes)


def _patterns(entry: dict[str, Any]) -> list[list[str]]:
    """Return what a configuration names as its files: patterns for each of its splits."""
    sources = listed(entry.get("data_files") or [])
    return [listed(source["path"] if isinstance(source, dict) else source) for source in sources]


def refuse_others(existing: str | None, names: list[str], files: Iterable[str]) -> None:
    """
    Refuse to replace rows of somebody else, or to mix ours with theirs.

    Args:
        existing (`str` or `None`):
            The card that is there.
        names (`list[str]`):
            Configurations that are pushed.
        files (`Iterable[str]`):
            Paths that are there.

    Raises:
        `ValueError`: if a configuration has such a name, or takes in such files, that no push of this package made.
    """
    configs = MetadataConfigs.from_dataset_card_data(DatasetCardData(**metadata_of(existing)))
    for name in names:
        ours, file = f"data/{name}-*", f"data/{name}-00000-of-00001.parquet"
        for other, entry in configs.items():
            patterns = [pattern for each in _patterns(entry) for pattern in each]
            if any(p != ours for p in patterns) if other == name else any(fnmatch.fnmatch(file, p) for p in patterns):
                raise ValueError(
                    f"on the Hub the configuration {other!r} has the files {', '.join(patterns)}, which no push of "
                    f"{name!r} made; name yours otherwise with `split` and `config`, or push to another repository"
                )
        if name not in configs and (found := fnmatch.filter(files, ours)):
            raise ValueError(
                f"on the Hub {found[0]} belongs to no configuration, and would be lost; name yours otherwise than "
                f"{name!r} with `split` and `config`, or push to another repository"
            )


def validate_card(text: str, files: list[str]) -> DatasetCardData:
    """
    Check a card without asking anybody.

    Args:
        text (`str`):
            The card.
        files (`list[str]`):
            Paths in the repository.

    Returns:
        `huggingface_hub.DatasetCardData`: its metadata.

    Raises:
        `ValueError`: with everything that is wrong: metadata that cannot be read, licences that the Hub does not know,
        configurations whose files are missing, several default ones, languages that are no codes.
    """
    try:
        data = DatasetCard(text, ignore_metadata_errors=False).data
        configs = MetadataConfigs.from_dataset_card_data(data)
        infos = DatasetInfosDict.from_dataset_card_data(data)
        configs.get_default_config_name()
    except Exception as error:  # each of the libraries has its own
        raise ValueError(f"the metadata of the card cannot be read: {error}") from error
    wrong = []
    licenses = listed(data.get("license"))
    if unknown := [str(name) for name in licenses if name not in LICENSES]:
        wrong.append(f"license {unknown[0]!r} is none that the Hub knows; use `other` with license_name and _link")
    if "other" in licenses and not (data.get("license_name") and data.get("license_link")):
        wrong.append("license `other` needs license_name and license_link")
    for name, entry in configs.items():
        for patterns in _patterns(entry):
            if not any(fnmatch.fnmatch(file, pattern) for file in files for pattern in patterns):
                wrong.append(f"configuration {name!r} names {', '.join(patterns)}, which matches no file")
    wrong += [f"dataset_info describes {name!r}, which is no configuration" for name in infos if name not in configs]
    for code in listed(data.get("language") or []):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", str(code)):
            wrong.append(f"language {code!r} is no ISO 639 code")
    if wrong:
        raise ValueError("the card is wrong: " + "; ".join(wrong))
    return data
