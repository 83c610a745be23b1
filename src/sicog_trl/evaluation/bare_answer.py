r"""The bare answer for strict scorers: dress and lead-ins are taken off, what is said is kept as it was written.

Some scorers compare strings: for POPE `Yes.` is wrong, for ScienceQA `**B**`. That a chain ends in "The answer is B."
says nothing about what a model can do, so the last step of a chain is undressed. Unlike
[`~sicog_trl.responses.normalize_answer`], which serves comparison alone, this keeps case, articles and numbers.
"""

import re
from collections.abc import Iterator


def _pattern(text: str, case: bool = False) -> re.Pattern[str]:
    return re.compile(text, re.DOTALL if case else re.DOTALL | re.IGNORECASE)


_LONGEST = 1000  # ours: what has more characters is prose, not a short answer in its dress
# Each matches a whole answer; the group that took part is what stays of it.
_DRESS = (
    _pattern(r".*<answer>\s*(\S.*?)\s*</answer>.*"),
    _pattern(r"#{1,6}\s+(\S.*)|[-*•]\s+(?!\d)(\S.*)"),
    _pattern(r"\*\*([^*]+)\*\*|__([^_]+)__|\*([^*]+)\*|_([^_]+)_|`+([^`]+)`+"),
    _pattern(r"\"([^\"]+)\"|'([^']+)'|\u201c([^\u201d]+)\u201d|\u2018([^\u2019]+)\u2019"),
    _pattern(r"\$+([^$]+)\$+|\\\((.+)\\\)|\\\[(.+)\\\]|\\(?:text|textbf|mathrm|mathbf)\{([^{}]+)\}"),
    _pattern(  # "The answer is B", "So, the final answer to the question is: B", "From the table, my choice: B"
        r"(?:[^,.:;!?\n]{1,80},\s{1,9})?(?:(?:so|thus|hence|therefore)\s{1,9})?(?:(?:my|the)\s{1,9})?"
        r"(?:(?:final|correct|right|best)\s{1,9}){0,3}(?:answer|option|choice)"
        r"(?:\s{1,9}(?:to|for)\s[^,.:;!?\n]{1,80}?)?(?:\s{1,9}is(?:\s{0,9}:)?|\s{0,9}:)\s+(\S.*)"
    ),
    _pattern(r"(?:option|choice)\s+([(\[]?[a-z][)\]]?[.:]?)"),
    _pattern(r"([a-z])[.:)]*"),
)
_IN_BRACKETS = _pattern(r"[(\[{]([a-z])[)\]}][.:)]*")
# Signs that LaTeX wants escaped, in what is no LaTeX otherwise.
_ESCAPED = re.compile(r"[^\\]*(?:\\[%$][^\\]*)+")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)([^*_\n]+)\1")
# A point ends a sentence, unless it belongs to what it stands behind: an initial, `p.m.`, `Inc.`, dots.
_SHORTENED = frozenset(
    "inc corp co ltd llc jr sr dr mr mrs ms st ave blvd rd no nos vs etc al dept est approx".split()
)
# Lines that list options, and an answer that names one of them and goes on.
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+\S", re.MULTILINE)
_CHOSEN = _pattern(
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?[(\[]?([A-Z])"
    r"(?:[)\].:]+\s+(?!\s*(?:and\b|or\b|&|,))(.*)|,?\s+(?:is\b(?!\s+(?:not|wrong|incorrect|false)\b)|because\b|since\b"
    r"|as\b(?!\s+well\b))(.*)|\s*[–—-]\s(?!\W*[A-Z]\W*$)(.*)|\s+\(([^()]+)\))",
    case=True,
)
_NAMED = re.compile(r"(?<!\w)\(?([A-Z])(?:[):]|\.\s)")
_ASKS_FOR_LETTER = re.compile(r"\b(?:option(?:'s)? letter|letter of the correct option)\b", re.IGNORECASE)
_SMALL = re.compile(r"\A\(?[a-z](?=[).:]|\Z)")
_ASKS_YES_OR_NO = re.compile(r"\W*(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should)\b", re.I)
# Followed by a mark or by a word that goes on from it: neither "no parking" nor "yes and no" is one of the two.
_YES_OR_NO = _pattern(
    r"(yes|no)(?!\W+(?:(?:and|or)\s+)?(?!\1\b)(?:yes|no)\b)"
    r"(?:|\s*[^\w\s'/-].*|\s+[-\n].*|\n.*|\s+(?:there|it|they|he|she|this|that|these|those|the|because|since|as)\b.*)"
)
_ASKS_FOR_ANY = re.compile(r"\W*(?:is|are|was|were)\s+there\b", re.IGNORECASE)
_NONE = _pattern(r"(no)\s+(?!(?:idea|clue|answer|image|picture|photo|information|way|and|or)\b)\w.*")


def bare_answer(answer: str, question: str = "") -> str:
    r"""
    Take off what an answer is dressed in: emphasis, quotes, `\boxed{}`, a lead such as "The answer is", the final
    point of a sentence, the brackets of an option's letter, which is made a capital.

    What the question asks for decides about the rest. If it lists options by letter, "B. red" is B; a name such as
    "B. Smith" is left alone elsewhere. If it asks in a word whether something is so, "Yes, there is." is Yes.

    Args:
        answer (`str`):
            The last step of a chain.
        question (`str`, *optional*, defaults to `""`):
            What was asked.

    Returns:
        `str`: the answer; as it was if nothing would be left.

    Examples:

    ```python
    >>> bare_answer("**The answer is (B).**")
    'B'
    ```
    """
    text, before = answer.strip(), None
    while text != before and len(text) <= _LONGEST:
        before = text
        text = next((found for each in _undressed(text, question) if (found := each.strip()) and found != text), text)
    return text


def _undressed(text: str, question: str) -> Iterator[str]:
    """Yield what stays of `text` without one piece of dress, for each piece that it has."""
    yield _unboxed(text)
    yield from _said_yes_or_no(text, question)
    for dress in _DRESS:
        if match := dress.fullmatch(text):
            yield next(filter(None, match.groups()))
    if (not question or "option" in question.casefold()) and (match := _IN_BRACKETS.fullmatch(text)):
        yield match[1]
    yield _EMPHASIS.sub(r"\2", text)
    yield from _chosen(text, question)
    if "latex" not in question.casefold() and _ESCAPED.fullmatch(text):
        yield re.sub(r"\\([%$])", r"\1", text)
    if text.endswith(".") and _ends_sentence(text[:-1]):
        yield text[:-1]


def _chosen(text: str, question: str) -> Iterator[str]:
    """Yield the letter of the option that `text` names before it goes on, unless it goes on to name another one."""
    options = set(_OPTION.findall(question))
    if options or _ASKS_FOR_LETTER.search(question):
        text = _SMALL.sub(lambda match: match[0].upper(), text)
    if not (match := _CHOSEN.fullmatch(text)):
        if len(text) == 1:
            yield text
        return
    if match[1] in options or (not options and _ASKS_FOR_LETTER.search(question)):
        rest = next((part for part in match.groups()[1:] if part), "")
        if not set(_NAMED.findall(rest)) - {match[1]}:
            yield match[1]


def _said_yes_or_no(text: str, question: str) -> Iterator[str]:
    if not _asks_yes_or_no(question):
        return
    match = _YES_OR_NO.fullmatch(text)
    if not match and _ASKS_FOR_ANY.match(question):
        match = _NONE.fullmatch(text)
    if match:
        yield match[1]


def _unboxed(text: str) -> str:
    """Return what the box in `text` holds; of boxes that say different things, all of it without them."""
    boxes: list[tuple[int, int, str]] = []
    for match in _BOXED.finditer(text):
        if not boxes or match.start() > boxes[-1][1]:  # boxes in a box have their turn later
            boxes += _box(text, match)
    if len({held for _, _, held in boxes}) == 1:
        return boxes[0][2]
    for start, end, held in reversed(boxes):
        text = text[:start] + held + text[end + 1 :]
    return text


def _box(text: str, match: re.Match[str]) -> list[tuple[int, int, str]]:
    """Return where a box starts and ends, and what it holds, with braces of its own; nothing if it does not end."""
    depth = 1
    for at in range(match.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return [(match.start(), at, text[match.end() : at])]
    return []


def _ends_sentence(text: str) -> bool:
    """Return whether a point behind `text` ends a sentence rather than belongs to its last word."""
    *before, last = text.split() or [""]
    word = last.strip("\"'()[]\u201c\u201d\u2018\u2019").casefold()
    if not word[-1:].isalnum() and word[-1:] not in ("%", "°"):
        return False
    if word[-1].isdigit():
        return True
    return "." not in word and len(word) > 1 and not (before and word in _SHORTENED)


def _asks_yes_or_no(question: str) -> bool:
    question = question.casefold()
    if "yes or no" in question:
        return True
    # Where no short answer is asked for, as by LLaVA-Bench, the reasons are part of it.
    return (
        "single word" in question
        and bool(_ASKS_YES_OR_NO.match(question))
        and " or " not in question.partition("?")[0]
    )
