"""What the cards of datasets and of models have in common."""

import re
from typing import Any

from huggingface_hub import RepoCard
from huggingface_hub.utils import yaml_dump

from ..credentials import TOKEN


LICENSE_KEYS = ("license", "license_name", "license_link")


def metadata_of(card: str | None) -> dict[str, Any]:
    """
    Return the metadata of a card as they stand there.

    Raises:
        `ValueError`: if they cannot be read.
    """
    if not card or not card.lstrip().startswith("---"):
        return {}
    try:
        return dict(RepoCard(card, ignore_metadata_errors=False).data.to_dict())
    except Exception as error:  # the parser of YAML has its own errors, a list in the place of a mapping others
        raise ValueError(f"its metadata cannot be read ({error}); put it right first") from error


def text_of(card: str | None) -> str:
    """Return a card without its metadata."""
    return RepoCard(card, ignore_metadata_errors=True).text if card else ""


def merged(
    existing: dict[str, Any], ours: dict[str, Any], settled: tuple[str, ...] = LICENSE_KEYS, where: str = "on the Hub"
) -> dict[str, Any]:
    """
    Return existing metadata with ours added: what is there stays, lists are joined.

    Args:
        existing (`dict[str, Any]`):
            Metadata of the card that is there.
        ours (`dict[str, Any]`):
            What to add.
        settled (`tuple[str, ...]`, *optional*):
            Keys of which two values would contradict each other.
        where (`str`, *optional*, defaults to `"on the Hub"`):
            Where the card is, for the error.

    Raises:
        `ValueError`: if a settled key has another value there.
    """
    for key in settled:
        if existing.get(key) and ours.get(key) and listed(existing[key]) != listed(ours[key]):
            raise ValueError(
                f"the card {where} says {key}: {existing[key]}, and this push {ours[key]}; change one of them"
            )
    result = dict(existing)
    for key, value in ours.items():
        if isinstance(value, list) and existing.get(key):
            result[key] = list(dict.fromkeys([*listed(existing[key]), *value]))
        elif not existing.get(key):
            result[key] = value
    return result


def listed(value: Any) -> list:
    """Return `value` as a list; metadata may have one thing or several under the same key."""
    return value if isinstance(value, list) else [value]


def between(text: str, part: str, begin: str, end: str) -> str | None:
    """
    Return `text` with what stands between two marks replaced, the marks included; `None` if they are not there.

    The last end counts: what a model said may stand between the marks, and may hold one.
    """
    start, stop = text.find(begin), text.rfind(end)
    if start < 0 or stop < start:
        return None
    return text[:start] + str(part).rstrip("\n") + text[stop + len(end) :]  # beside Markup a str would be escaped


def with_part(text: str, part: str, begin: str, end: str) -> str:
    """Return `text` with our part in it: in the place of an earlier one, or behind everything."""
    part = f"{begin}\n{_squeezed(part)}\n{end}\n"
    replaced = between(text, part, begin, end)
    if replaced is not None:
        return replaced
    return f"{text.rstrip()}\n\n{part}" if text.strip() else part


def _squeezed(text: str) -> str:
    """Return Markdown without repeated empty lines, but for those in blocks of code, which are shown as they are."""
    lines, fence = [], ""
    for line in text.strip().split("\n"):
        mark = re.match("`{3,}", line)
        if mark and not fence:
            fence = mark[0]
        elif fence and line == fence:
            fence = ""
        if line or fence or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines)


def whole(metadata: dict[str, Any], text: str) -> str:
    """
    Return a card.

    Raises:
        `ValueError`: if a token stands in it.
    """
    card = f"---\n{yaml_dump(metadata, sort_keys=False).strip()}\n---\n{text.lstrip()}"
    if found := TOKEN.search(card):
        number = card.count("\n", 0, found.start()) + 1
        raise ValueError(
            f"something that looks like an access token, {found[0][:6]}…, stands in line {number} of the card: it is "
            "not pushed. Take it out of the rows, the settings or the card that it comes from, and revoke it"
        )
    return card
