"""What may be wrong with a conversation, or with candidates for one."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import LargeList, List, Value

from .rows import short, texts_of


_ROLES = ("system", "user", "assistant")


def kind_of(feature: Any) -> str | None:
    """Return what a column of messages holds as content, `"text"` or `"parts"`; `None` for any other column."""
    message = feature.feature if isinstance(feature, (List, LargeList)) else None
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        return None
    content = message["content"]
    if isinstance(content, Value) and content.dtype in ("string", "large_string"):
        return "text"
    part = content.feature if isinstance(content, (List, LargeList)) else None
    if not isinstance(part, dict) or getattr(part.get("text"), "dtype", "string") not in ("string", "large_string"):
        return None
    return "parts"


def conversation_faults(
    columns: dict[str, list | None], placeholders: Sequence[str], num_images: int, max_characters: int
) -> Iterator[tuple[str, str]]:
    """
    Yield the kind of each fault of the conversations of a row, and what it is.

    Args:
        columns (`dict[str, list]`):
            Those of `messages`, `prompt`, `completion`, `chosen` and `rejected` that there are.
        placeholders (`Sequence[str]`):
            What no text may hold.
        num_images (`int`):
            Images of the row.
        max_characters (`int`):
            Of one text.
    """
    for name, messages in columns.items():
        if not messages or any(not message or _is_empty(message["content"]) for message in messages):
            yield "empty", f"there is no text in the column {name}; leave out that row"
            continue
        for text in texts_of(messages):
            if token := next((token for token in placeholders if token in text), None):
                yield (
                    "placeholder",
                    f"the column {name} holds {token!r}: {short(text)}; take it out, one is placed for each image of "
                    "the row",
                )
            if len(text) > max_characters:
                yield "too long", f"the column {name} holds {len(text):,} characters; {max_characters:,} are allowed"
    for before, after in (("messages", None), ("prompt", "completion"), ("prompt", "chosen"), ("prompt", "rejected")):
        if columns.get(before) and (after is None or columns.get(after)):
            names = [name for name in (before, after) if name]
            messages = [message for name in names for message in columns[name]]
            if None in messages:
                continue  # said above
            yield from _turn_faults(" + ".join(names), messages, num_images)
    if columns.get("chosen") and columns.get("chosen") == columns.get("rejected"):
        yield "same sides", "chosen and rejected are the same"


def candidate_faults(row: dict[str, Any], max_characters: int) -> Iterator[tuple[str, str]]:
    """Yield the kind of each fault of the candidates of a row, and what it is."""
    if not row["candidates"] and "error" in row and not row["error"]:
        yield "empty", "it has neither candidates nor an error"
    texts = [candidate and candidate.get("text") for candidate in row["candidates"] or []]
    if any(text is None for text in texts):
        yield "empty", "a candidate has no text"
    elif longest := max((len(text) for text in texts if len(text) > max_characters), default=0):
        yield "too long", f"a candidate has {longest:,} characters; {max_characters:,} are allowed"


def _is_empty(content: Any) -> bool:
    if isinstance(content, str) or not content:
        return not (content or "").strip()
    return None in content or all(
        part.get("type") != "image" and not (part.get("text") or "").strip() for part in content
    )


def _turn_faults(name: str, messages: list[dict[str, Any]], num_images: int) -> Iterator[tuple[str, str]]:
    roles = [message["role"] for message in messages]
    if unknown := [role for role in roles if role not in _ROLES]:
        yield "roles", f"{name}: the role {short(unknown[0])} is none of {', '.join(_ROLES)}"
    else:
        turns = roles[1:] if roles[0] == "system" else roles
        if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
            shown = ", ".join(roles[:6]) + ", ..." * (len(roles) > 6)
            yield "roles", f"{name}: roles do not alternate from user to assistant: {shown}"
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    placed = sum(part.get("type") == "image" for parts in contents for part in parts if part)
    if placed and placed != num_images:
        yield "images", f"{name}: {placed} images are placed in the text, and the row has {num_images}"
