"""Turns of a conversation, as other people's data has them: in order, and nothing in them stands for an image."""

import re
from typing import Any

from ..generation.openai_sampler import PLACEHOLDERS


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_IMAGE = "<image>"
_BEFORE = re.compile(rf"(?:\s*{_IMAGE})*")
# Sentences that ask for the form of an answer; the prompts of this package ask for it in their own words.
_REQUESTS = "|".join(
    (
        r"(?:answer|respond to|reply to)(?: the question)? (?:using|with|in) (?:a |one |only a )?single word"
        r"(?: or(?: a)?(?: short)? phrase)?",
        r"(?:answer|respond|reply)(?: directly)? with (?:the |only the )?(?:correct )?(?:option'?s? )?letter"
        r"(?: of the (?:correct )?option)?(?: from the given choices)?(?: directly)?",
        r"(?:answer|solve|explain)(?: the (?:question|problem))? step[- ]by[- ]step",
        r"(?:let'?s )?think(?: about it)? step[- ]by[- ]step",
    )
)
_LONGEST_REQUEST = 200  # characters; only so much of the end is looked at, as the search goes back and forth
_REQUEST = re.compile(rf"(?:^|(?<=[.?!:)\n])|\n)\s*(?:please,? )?(?:{_REQUESTS})\s*[.!]?\s*$", re.IGNORECASE)


class Unusable(Exception):
    """
    A record that does not become a row.

    Args:
        reason (`str`):
            One word by which it is counted.
        detail (`str`, *optional*):
            What exactly was found.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def turns_of(fields: dict[str, Any], num_images: int) -> list[dict[str, str]]:
    """
    Return the turns of a record as messages, without the image placeholders that open or close its first question.

    Args:
        fields (`dict[str, Any]`):
            A record with `conversations` (or `messages`): turns with `from` and `value` (or `role` and `content`).
        num_images (`int`):
            How many images it has; so many placeholders, or none.

    Raises:
        [`Unusable`]: `no_conversation`, `unknown_role`, `empty_turn`, `turns_out_of_order` (anything but an optional
        system turn and then user and assistant in turn), `placeholder` or `broken_text`.
    """
    found = fields.get("conversations") or fields.get("messages")
    if isinstance(found, dict):  # as older versions of `datasets` store a list of dicts
        try:
            found = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        except (TypeError, ValueError) as error:  # no lists, or of different lengths
            raise Unusable("no_conversation", f"{found!r:.80}") from error
    if not isinstance(found, list) or not all(isinstance(turn, dict) for turn in found):
        raise Unusable("no_conversation", f"{found!r:.80}")
    turns = []
    for turn in found:
        role = _ROLES.get(str(turn.get("from", turn.get("role"))))
        text = turn.get("value", turn.get("content"))
        if role is None:
            raise Unusable("unknown_role", f"{turn.get('from', turn.get('role'))!r:.80}")
        if not isinstance(text, str):
            raise Unusable("empty_turn", f"{text!r:.80}")
        turns.append({"role": role, "content": text.strip()})
    said = turns[1:] if turns and turns[0]["role"] == "system" else turns
    expected = ["user", "assistant"] * (len(said) // 2)
    if not said or [turn["role"] for turn in said] != expected:
        raise Unusable("turns_out_of_order", ", ".join(turn["role"] for turn in turns))
    said[0]["content"] = _without_placeholders(said[0]["content"], num_images)
    for turn in turns:
        check_text(turn["content"])
        if not turn["content"]:
            raise Unusable("empty_turn", turn["role"])
    return turns


def _without_placeholders(text: str, num_images: int) -> str:
    before = _BEFORE.match(text)[0]
    count, rest = before.count(_IMAGE), text[len(before) :].strip()
    while rest.endswith(_IMAGE):
        count, rest = count + 1, rest.removesuffix(_IMAGE).rstrip()
    # Training shows the images first; where a text points at one by its place, it would say something else.
    if count not in (0, num_images):
        raise Unusable("no_image" if not num_images else "placeholder", f"{count} placeholders, {num_images} images")
    return rest


def check_text(text: str) -> None:
    """Refuse a text that a processor takes for an image, or that cannot be stored."""
    if found := [name for name in PLACEHOLDERS if name in text]:
        raise Unusable("placeholder", found[0])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable("broken_text", error.reason) from error


def clean_question(text: str) -> str:
    """Return a question without the closing sentences that ask for a single word, a letter or steps."""
    text = text.strip()
    while found := _REQUEST.search(text, max(0, len(text) - _LONGEST_REQUEST)):
        text = text[: found.start()].strip()
    return text
