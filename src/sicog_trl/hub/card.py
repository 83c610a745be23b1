"""Dataset cards: what made the data, what it holds, what it may be used for. Metadata that exists stays."""

import fnmatch
import re
from typing import Any

from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from ..report import markdown_environment
from .content import content
from .counts import Counts
from .licences import LICENSES


BEGIN, END = "<!-- sicog-trl: begin, written anew by every push -->", "<!-- sicog-trl: end -->"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}")
_TAGS = ["synthetic", "self-generated", "vision-language", "sicog-trl"]


def write_card(about: dict[str, Any], counts: dict[str, Counts], sizes: dict[str, int], existing: str | None) -> str:
    """
    Return the card of what is pushed.

    Args:
        about (`dict[str, Any]`):
            Fields of [`PushConfig`]; as `folders` the artefact folder of each configuration, and as `left_out` the
            configurations that have no rows any more.
        counts (`dict[str, Counts]`):
            Of each configuration.
        sizes (`dict[str, int]`):
            Bytes of the files of each configuration.
        existing (`str` or `None`):
            The card that is there. Of its text only the part that an earlier push wrote is replaced; of its metadata,
            only what describes the configurations that are pushed.

    Returns:
        `str`: metadata and Markdown.

    Raises:
        `ValueError`: if the card that is there names other licences, or a token stands in what is to be published.
    """
    card = DatasetCard(existing or "---\n{}\n---\n", ignore_metadata_errors=False)
    data = DatasetCardData(**_merged(card.data.to_dict() if existing else {}, metadata(about)))
    _forget(data, about["left_out"])
    MetadataConfigs(_configs(data, counts)).to_dataset_card_data(data)
    DatasetInfosDict({name: _info(name, one, sizes[name]) for name, one in counts.items()}).to_dataset_card_data(data)
    body = markdown_environment().get_template("dataset_card.md.jinja").render(content(about, counts))
    body = f"{BEGIN}\n{_squeezed(body)}\n{END}\n"
    text = card.text if existing else ""
    if BEGIN in text and END in text:
        # The last end: what a model said stands between, and may hold one.
        body = text[: text.index(BEGIN)] + body.rstrip("\n") + text[text.rindex(END) + len(END) :]
    elif text.strip():
        body = f"{text.rstrip()}\n\n{body}"
    whole = f"---\n{data.to_yaml()}\n---\n{body.lstrip()}"
    if _TOKEN.search(whole):
        raise ValueError("something that looks like an access token stands in the card; it is not pushed")
    return whole


def _squeezed(body: str) -> str:
    """Return Markdown without repeated empty lines, but for those in blocks of code, which are shown as they are."""
    lines, fence = [], ""
    for line in body.strip().split("\n"):
        mark = re.match("`{3,}", line)
        if mark and not fence:
            fence = mark[0]
        elif fence and line == fence:
            fence = ""
        if line or fence or lines[-1]:
            lines.append(line)
    return "\n".join(lines)


def metadata(about: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that a push knows besides configurations: licences, sources, tags."""
    # The text alone is passed on if images are only referenced.
    licensed = ["text"] if about["images"] == "reference" else ["image", "text"]
    named = {part: about[f"{part}_license"] for part in licensed}
    known = {part: name if name in LICENSES else "other" for part, name in named.items()}
    licenses = list(dict.fromkeys(known.values()))
    found: dict[str, Any] = {"license": licenses[0] if len(licenses) == 1 else licenses}
    if other := next((part for part in reversed(licensed) if known[part] == "other"), None):
        found |= {"license_name": _slug(named[other]), "license_link": about[f"{other}_license_link"]}
    found |= {"pretty_name": about["pretty_name"], "language": about["language"], "tags": _TAGS}
    found |= {"task_categories": ["image-text-to-text"], "annotations_creators": ["machine-generated"]}
    found["source_datasets"] = about["source_datasets"]
    return {key: value for key, value in found.items() if value}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _merged(existing: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Return existing metadata with ours added: what is there stays, lists are joined."""
    for key in ("license", "license_name", "license_link"):
        if key in existing and key in ours and _listed(existing[key]) != _listed(ours[key]):
            raise ValueError(
                f"the card on the Hub says {key}: {existing[key]}, and this push {ours[key]}; change one of them"
            )
    merged = dict(existing)
    for key, value in ours.items():
        if isinstance(value, list) and key in existing:
            merged[key] = list(dict.fromkeys([*_listed(existing[key]), *value]))
        elif not existing.get(key):
            merged[key] = value
    return merged


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _forget(data: DatasetCardData, names: list[str]) -> None:
    """Take configurations out of the metadata that have no rows, and so no files, any more."""
    for key in ("configs", "dataset_info"):
        entries = data.get(key)
        if isinstance(entries, list):
            data[key] = [entry for entry in entries if entry.get("config_name") not in names]
        elif isinstance(entries, dict) and entries.get("config_name") in names:
            data[key] = []


def _configs(data: DatasetCardData, counts: dict[str, Counts]) -> dict[str, dict[str, Any]]:
    """Return the entries of the configurations; the first one needs no name, unless there is such a one already."""
    there = MetadataConfigs.from_dataset_card_data(data)
    has_default = any(entry.get("default") for entry in there.values())
    entries: dict[str, dict[str, Any]] = {}
    for name in counts:
        entries[name] = there.get(name, {}) | {"data_files": [{"split": name, "path": f"data/{name}-*"}]}
        if not has_default:
            entries[name]["default"] = has_default = True
    return entries


def _info(name: str, counts: Counts, size: int) -> DatasetInfo:
    splits = SplitDict()
    splits.add(SplitInfo(name=name, num_bytes=counts.num_bytes, num_examples=counts.num_rows))
    # Rows as they lie in the Parquet files are what `datasets` will have in its cache.
    sizes = {"download_size": size, "dataset_size": counts.num_bytes}
    return DatasetInfo(features=counts.features, splits=splits, config_name=name, **sizes)


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
    licenses = _listed(data.get("license"))
    if unknown := [str(name) for name in licenses if name not in LICENSES]:
        wrong.append(f"license {unknown[0]!r} is none that the Hub knows; use `other` with license_name and _link")
    if "other" in licenses and not (data.get("license_name") and data.get("license_link")):
        wrong.append("license `other` needs license_name and license_link")
    for name, entry in configs.items():
        for source in _listed(entry.get("data_files") or []):
            patterns = _listed(source["path"] if isinstance(source, dict) else source)
            if not any(fnmatch.fnmatch(file, pattern) for file in files for pattern in patterns):
                wrong.append(f"configuration {name!r} names {', '.join(patterns)}, which matches no file")
    wrong += [f"dataset_info describes {name!r}, which is no configuration" for name in infos if name not in configs]
    for code in _listed(data.get("language") or []):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", str(code)):
            wrong.append(f"language {code!r} is no ISO 639 code")
    if wrong:
        raise ValueError("the card is wrong: " + "; ".join(wrong))
    return data
