"""How answers are read: steps built and split, the part that is compared, answers normalised.

Reading is strict. A chain that lacks a step, repeats one or has them out of order is *incomplete*: it is counted and
dropped by curation rather than repaired, because a model trained on repaired chains learns to write broken ones.
"""

import re

from .prompts import STEPS


_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = {"a", "an", "the"}
_HEADING = re.compile(r"^Step (\d+): (.+)$", re.MULTILINE)
_OPTION = re.compile(r"\(?([a-z])[).:]*")


def build_steps(mode: str, bodies: list[str]) -> str:
    """Write `bodies`, one per step of `mode`, under their headings. [`split_steps`] reads the result back."""
    titles = STEPS[mode]
    if len(bodies) != len(titles):
        raise ValueError(f"mode {mode!r} has {len(titles)} steps, got {len(bodies)} bodies")
    return "\n".join(
        f"Step {number}: {title}\n{body}" for number, (title, body) in enumerate(zip(titles, bodies, strict=True), 1)
    )


def split_steps(text: str, mode: str) -> list[str] | None:
    """
    Read the steps of a chain.

    Args:
        text (`str`):
            The response of the model.
        mode (`str`):
            The mode that was asked for; it fixes the number and the titles of the steps.

    Returns:
        `list[str]` or `None`: the body of each step, stripped; `None` if a step is missing, repeated, renamed, empty
        or out of order, or if text stands before the first heading.
    """
    titles = STEPS[mode]
    headings = list(_HEADING.finditer(text))
    if [(int(h[1]), h[2].strip()) for h in headings] != list(enumerate(titles, 1)):
        return None
    if not headings or text[: headings[0].start()].strip():
        return None
    ends = [h.start() for h in headings[1:]] + [len(text)]
    bodies = [text[h.end() : end].strip() for h, end in zip(headings, ends, strict=True)]
    return bodies if all(bodies) else None


def is_complete(text: str, mode: str) -> bool:
    """Return whether `text` has what `mode` asks for: any text, or all steps in order."""
    return split_steps(text, mode) is not None if STEPS[mode] else bool(text.strip())


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
    if not STEPS[mode]:
        return text.strip() or None
    steps = split_steps(text, mode)
    return steps[-1] if steps else None


def normalize_answer(answer: str) -> str:
    """
    Bring a short answer to the form in which equal answers are equal strings: lower case, no articles or closing
    punctuation, number words as digits, thousands separators and closing zeros removed, `(B).` as `b`.

    Examples:

    ```python
    >>> normalize_answer("The Seven.")
    '7'
    ```
    """
    text = answer.strip().lower()
    option = _OPTION.fullmatch(text)
    if option:
        return option[1]
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<![\w.])(\d+)(?:\.0+|(\.\d*[1-9])0*)(?![\w]|\.\d)", r"\1\2", text)
    words = [word.strip(".,;:!?\"'()[]") for word in text.split()]
    words = [_NUMBERS.get(word, word) for word in words if word and word not in _ARTICLES]
    return " ".join(word for word in words if word)
