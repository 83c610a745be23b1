"""How a record of somebody else's data is read: pure functions from its fields to questions, steps and answers.

Nothing is guessed and nothing is repaired: what does not read is [`Unusable`] for a reason with a name, and the caller
counts it. The released code of SICOG cut texts at tags that were not there and trained on what was left.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..prompts import CHAIN_OF_DESCRIPTION_STEPS, prompt_for, task_of
from ..responses import HEADING, SEPARATOR, build_steps, chain_fault, split_steps
from .turns import Unusable, check_text, clean_question, turns_of


TAGS = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
_TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")
_DRESS = " \t\n*_#"
_TITLE_WORDS = 12  # ours: the longest title of the released prompts has 8 words; a longer line is part of the text


@dataclass(frozen=True)
class Reading:
    """
    What one record gives.

    Args:
        rows (`list[dict]`):
            Annotations with `name` (of the row within its record), `prompt`, `completion`, `task` and `mode`.
        question, answer (`str`, *optional*):
            For the row of the split `images`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    question: str | None = None
    answer: str | None = None


def row_of(mode: str, completion: str, question: str | None = None) -> dict[str, Any]:
    """Return the annotation of a record in `mode`, asked for as generation will ask for it."""
    return {
        "name": mode,
        "prompt": [{"role": "user", "content": prompt_for(mode, question)}],
        "completion": [{"role": "assistant", "content": completion}],
        "task": task_of(mode),
        "mode": mode,
    }


def read_tags(text: str) -> list[str]:
    """
    Return what stands between the four tags of a LLaVA-CoT answer.

    Raises:
        [`Unusable`]: `no_tags`, `missing_tag`, `repeated_tag`, `tags_out_of_order`, `unclosed_tag`, `empty_tag` or
        `text_outside_tags`.
    """
    found = [(bool(mark[1]), mark[2]) for mark in _TAG.finditer(text)]
    opened = [name for closes, name in found if not closes]
    if not found:
        raise Unusable("no_tags", text[:80])
    if missing := [name for name in TAGS if name not in opened]:
        raise Unusable("missing_tag", missing[0])
    if len(opened) > len(TAGS):
        raise Unusable("repeated_tag", next(name for name in opened if opened.count(name) > 1))
    if opened != list(TAGS):
        raise Unusable("tags_out_of_order", ", ".join(opened))
    if found != [(closes, name) for name in TAGS for closes in (False, True)]:
        raise Unusable("unclosed_tag", ", ".join(f"<{'/' * closes}{name}>" for closes, name in found))
    pieces = [piece.strip() for piece in _TAG.split(text)[::3]]
    if outside := "".join(pieces[::2]):
        raise Unusable("text_outside_tags", outside[:80])
    bodies = pieces[1::2]
    if empty := [name for name, body in zip(TAGS, bodies, strict=True) if not body.strip(_DRESS)]:
        raise Unusable("empty_tag", empty[0])
    return bodies


def read_chain_of_thought_tags(fields: dict[str, Any], num_images: int, step_keys: list[str] | None) -> Reading:
    """Read a LLaVA-CoT record: the four steps, and the conclusion alone."""
    turns = _with_images(fields, num_images)
    if len(turns) != 2:
        raise Unusable("several_questions", f"{len(turns)} turns")
    question = clean_question(turns[0]["content"])
    if not question:
        raise Unusable("no_question", turns[0]["content"][:80])
    bodies = read_tags(turns[1]["content"])
    if fault := chain_fault(bodies[-1], "direct_answer"):
        raise Unusable(fault, bodies[-1][:80])
    chain = _chain("chain_of_thought", bodies)
    rows = [row_of("chain_of_thought", chain, question), row_of("direct_answer", bodies[-1], question)]
    return Reading(rows, question, bodies[-1])


def read_steps(text: str) -> list[str]:
    """
    Return the five steps of a chain of description under headings of any title.

    A heading is a line `Step N: title`; a body stands below it, or behind a bold title on the same line.

    Raises:
        [`Unusable`]: `no_steps`, `missing_step`, `repeated_step`, `extra_step`, `steps_out_of_order`,
        `text_before_steps`, `empty_step`, or `no_title` if a line is too long for a title: it may be the text itself.
    """
    if steps := split_steps(text, "chain_of_description"):
        return steps
    headings = list(HEADING.finditer(text))
    numbers = [int(heading[2]) for heading in headings]
    # Under titles of ours it may read: then only the titles, the length of which is looked at below, are others.
    ours = "\n".join(f"Step {number}: {_ours(number)}\nx" for number in numbers)
    if fault := chain_fault(ours or text, "chain_of_description"):
        raise Unusable(fault, ", ".join(map(str, numbers)) or text[:80])
    if before := text[: headings[0].start()].strip(_DRESS):
        raise Unusable("text_before_steps", before[:80])
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    bodies = []
    for heading, end in zip(headings, ends, strict=True):
        title, _, inline = heading[3].strip().partition("**") if "*" in heading[1] else (heading[3], "", "")
        if len(title.split()) > _TITLE_WORDS:
            raise Unusable("no_title", heading[0][:80])
        body = f"{SEPARATOR.sub('', inline).strip()}{text[heading.end() : end]}".strip()
        if not body.strip(_DRESS):
            raise Unusable("empty_step", heading[0][:80])
        bodies.append(body)
    return bodies


def _ours(number: int) -> str:
    return CHAIN_OF_DESCRIPTION_STEPS[number - 1] if 0 < number <= len(CHAIN_OF_DESCRIPTION_STEPS) else "other"


def read_chain_of_description(fields: dict[str, Any], num_images: int, step_keys: list[str] | None) -> Reading:
    """Read a caption in five steps: the five steps, and the cohesive description alone."""
    if not step_keys:
        turns = _with_images(fields, num_images)
        if len(turns) != 2:
            raise Unusable("several_questions", f"{len(turns)} turns")
        return description_of(read_steps(turns[1]["content"]))
    if not num_images:
        raise Unusable("no_image")
    if missing := [key for key in step_keys if fields.get(key) is None]:
        raise Unusable("missing_step", missing[0])
    values = [fields[key] for key in step_keys]
    if len(values) == 1:
        values = read_steps(values[0]) if isinstance(values[0], str) else values[0]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Unusable("unknown_steps", f"{values!r:.80}")
    return description_of(values)


def description_of(bodies: list[str]) -> Reading:
    """Return the rows of a description whose five steps are `bodies`."""
    bodies = [body.strip() for body in bodies]
    for body in bodies:
        check_text(body)
        if not body.strip(_DRESS):
            raise Unusable("empty_step")
    if len(bodies) != len(CHAIN_OF_DESCRIPTION_STEPS):
        few = len(bodies) < len(CHAIN_OF_DESCRIPTION_STEPS)
        raise Unusable("missing_step" if few else "extra_step", f"{len(bodies)} steps")
    chain = _chain("chain_of_description", bodies)
    rows = [row_of("chain_of_description", chain), row_of("detailed_description", bodies[-1])]
    return Reading(rows, answer=bodies[-1])


def read_conversations(fields: dict[str, Any], num_images: int, step_keys: list[str] | None) -> Reading:
    """Read a conversation: one row per assistant turn, with what was said before as its prompt."""
    turns = turns_of(fields, num_images)
    return Reading(
        [
            {"name": str(number), "prompt": turns[:at], "completion": [turns[at]], "task": None, "mode": None}
            for number, at in enumerate((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), 1)
        ]
    )


def _with_images(fields: dict[str, Any], num_images: int) -> list[dict[str, str]]:
    if not num_images:
        raise Unusable("no_image")
    return turns_of(fields, num_images)


def _chain(mode: str, bodies: list[str]) -> str:
    try:
        return build_steps(mode, bodies)
    except ValueError as error:  # of non-empty bodies: a line in one of them reads like a heading
        raise Unusable("heading_in_step", str(error)[:80]) from error


READERS: dict[str, Callable[[dict[str, Any], int, list[str] | None], Reading]] = {
    "chain_of_thought_tags": read_chain_of_thought_tags,
    "chain_of_description": read_chain_of_description,
    "conversations": read_conversations,
}
