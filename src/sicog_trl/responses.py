"""How answers are read: steps built and split, the part that is compared, answers normalised.

Reading is strict about what is said and lenient about how it is dressed: a heading may be bold, a Markdown title, in
capitals, or have its text on the same line, but a chain that lacks a step, repeats one, has them out of order or goes
on after its answer is *incomplete*. Curation counts and drops it rather than repairs it, because a model trained on
repaired chains learns to write broken ones.
"""

import re
from functools import lru_cache

from .prompts import STEPS


_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = {"a", "an", "the"}
# What stands in front of "Step", the number, and the rest of the line. No two neighbouring parts match the same
# characters, or a text of spaces would take minutes.
HEADING = re.compile(r"^([#>*_ \t]*)step[ \t]+(\d{1,9})[ \t*_]*[:.)–—-](.*)$", re.MULTILINE | re.IGNORECASE)
# Between a title and a text on the same line; a sign or a point that belongs to a number is none.
SEPARATOR = re.compile(r"^[ \t]*(?::|\.(?![\d.])|[–—](?!\d)|-(?=[ \t]|$))")
_DRESS = " \t*_#"
_MARKS = re.compile(r"\*+|_+")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_OPTION = re.compile(r"\(?([a-z])[).:]*")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct )?(?:answer|option)(?: is:?|:)\s+(?=\S)"
)
# Modes that end in an answer, which is one paragraph.
_ANSWERS = ("chain_of_thought", "direct_answer")


def build_steps(mode: str, bodies: list[str]) -> str:
    """
    Write `bodies`, one per step of `mode`, under their headings. [`split_steps`] reads the result back.

    Raises:
        `ValueError`: if that would not be so: another number of bodies, an empty one, or one with a line that reads
        like a heading.
    """
    titles = STEPS[mode]
    if len(bodies) != len(titles):
        raise ValueError(f"mode {mode!r} has {len(titles)} steps, got {len(bodies)} bodies")
    text = "\n".join(
        f"Step {number}: {title}\n{body.strip()}"
        for number, (title, body) in enumerate(zip(titles, bodies, strict=True), 1)
    )
    if fault := chain_fault(text, mode):
        raise ValueError(f"the bodies do not make a {mode} that can be read back ({fault}): {bodies!r}")
    return text


@lru_cache(maxsize=256)  # the same few texts are asked for their fault, their steps and their last part
def _read_steps(text: str, mode: str) -> tuple[tuple[str, ...], str | None]:
    """Return the bodies of a chain, or what is wrong with it."""
    titles = STEPS[mode]
    headings = list(HEADING.finditer(text))
    if not headings:
        return (), "no_steps"
    numbers = [int(heading[2]) for heading in headings]
    expected = list(range(1, len(titles) + 1))
    if numbers != expected:
        if len(set(numbers)) < len(numbers):
            return (), "repeated_step"
        if set(expected) - set(numbers):
            return (), "missing_step"
        return (), "extra_step" if set(numbers) - set(expected) else "steps_out_of_order"
    if text[: headings[0].start()].strip(_DRESS + "\n"):
        return (), "text_before_steps"
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    bodies = []
    for title, heading, end in zip(titles, headings, ends, strict=True):
        rest = _behind_title(heading, title)
        if rest is None:
            return (), "renamed_step"
        bodies.append(f"{rest}{text[heading.end() : end]}".strip())
    if not all(body.strip(_DRESS + "\n") for body in bodies):
        return (), "empty_step"
    return tuple(bodies), None


def _behind_title(heading: re.Match[str], title: str) -> str | None:
    """Return what stands behind the title on its line, without the dress of the heading; `None` without the title."""
    line = heading[3].lstrip(_DRESS)
    rest = line[len(title) :]
    if line[: len(title)].casefold() != title.casefold() or rest[:1].isalnum() or rest[:1] in ("'", "\u2019"):
        return None
    before = _MARKS.findall(heading[0].removesuffix(line))
    if len(before) % 2:  # the emphasis that was opened there ends here, at the title or at the end of the line
        rest = rest.replace(before[-1], "", 1)
    rest = rest if rest.strip(_DRESS + "\r") else ""
    return SEPARATOR.sub("", rest).strip()


def chain_fault(text: str, mode: str) -> str | None:
    """
    Return why `text` is not what `mode` asks for, or `None`.

    Returns:
        `str` or `None`: `"empty"`; for chains `"no_steps"`, `"missing_step"`, `"repeated_step"`, `"extra_step"`,
        `"steps_out_of_order"`, `"renamed_step"`, `"empty_step"` or `"text_before_steps"`; for the modes that end in an
        answer `"text_after_answer"`, if another paragraph follows it.
    """
    if not text.strip():
        return "empty"
    bodies, fault = _read_steps(text, mode) if STEPS[mode] else ((text.strip(),), None)
    if not fault and mode in _ANSWERS and _PARAGRAPH.search(bodies[-1]):
        return "text_after_answer"
    return fault


def split_steps(text: str, mode: str) -> list[str] | None:
    """
    Read the steps of a chain.

    Args:
        text (`str`):
            The response of the model.
        mode (`str`):
            The mode that was asked for; it fixes the number and the titles of the steps.

    Returns:
        `list[str]` or `None`: the body of each step, stripped; `None` if [`chain_fault`] finds one.
    """
    if not STEPS[mode] or chain_fault(text, mode):
        return None
    return list(_read_steps(text, mode)[0])


def canonical(text: str, mode: str) -> str:
    """Return a complete response as training data has it: its steps under plain headings, its ends stripped."""
    steps = split_steps(text, mode)
    return build_steps(mode, steps) if steps else text.strip()


def is_complete(text: str, mode: str) -> bool:
    """Return whether `text` has what `mode` asks for: any text, or all steps in order."""
    return chain_fault(text, mode) is None


def final_part(text: str, mode: str) -> str | None:
    """
    Return the part by which responses are compared: the cohesive description or the final answer.

    Args:
        text (`str`):
            The response of the model.
        mode (`str`):
            The mode that was asked for.

    Returns:
        `str` or `None`: the last step of a chain, the whole text of any other mode; `None` if the response is
        incomplete.
    """
    if chain_fault(text, mode):
        return None
    return _read_steps(text, mode)[0][-1] if STEPS[mode] else text.strip()


def normalize_answer(answer: str) -> str:
    """
    Bring a short answer to the form in which equal answers are equal strings: lower case, no articles or closing
    punctuation, number words as digits, thousands separators and closing zeros removed, `(B).` as `b`, no emphasis, no
    lead such as "The answer is".

    Examples:

    ```python
    >>> normalize_answer("The Seven.")
    '7'
    ```
    """
    text = answer.replace("**", "").replace("\u2212", "-").strip(" \t\r\n*_\"'`").lower()
    if lead := _LEAD.match(text):
        text = text[lead.end() :]
    if option := _OPTION.fullmatch(text):
        return option[1]
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<![\w.])(\d+)(?:\.0+|(\.\d*[1-9])0*)(?![\w]|\.\d)", r"\1\2", text)
    words = [word.strip(".,;:!?\"'()[]") for word in text.split()]
    words = [word for word in words if word]
    return " ".join(_NUMBERS.get(word, word) for at, word in enumerate(words) if not _is_article(words, at))


def _is_article(words: list[str], at: int) -> bool:
    """Return whether a word may be left out; the "a" of "A, B" or of "vitamin A" is a name and no article."""
    if words[at] != "a":
        return words[at] in _ARTICLES
    return at + 1 < len(words) and not (len(words[at + 1]) == 1 and words[at + 1].isalpha())
