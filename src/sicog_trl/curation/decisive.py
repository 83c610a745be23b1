"""The words that embeddings confuse: numbers, colours, negations and places."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property


_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_KINDS = {
    "colour": "red green blue yellow purple orange pink brown black white gray grey gold silver violet cyan",
    "number": f"{' '.join(_NUMBER_WORDS)} none several many",
    "negation": "no not never without cannot nothing nobody neither nor",
    "place": (
        "left right top bottom above below under over behind front inside outside upper lower north south east west "
        "first second third last"
    ),
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_SAME = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {"grey": "gray"}
_SAME |= dict.fromkeys(_KINDS["negation"].split(), "not")  # "no cats" says what "not any cats" says
# A minus follows nothing: in "5-10" it is none. Digits are apart from letters, for "7m" and scripts without spaces.
_TOKEN = re.compile(r"(?:(?<![\w.,)])[-\N{MINUS SIGN}])?\d+(?:[.,]\d+)*|[^\W\d]+(?:'t)?")
_UNLISTED = re.compile(r"\d|n't")  # most texts have neither, and are read in half the time
_THOUSANDS = re.compile(r",(?=\d{3}\b)")
# ours: two honest sentences name the same things; two honest paragraphs never name all the same ones.
PARAGRAPH_WORDS = 40


def decisive_words(text: str) -> tuple[str, ...]:
    """
    Return the numbers, colours, negations and spatial words of `text`, in order, in lower case.

    Embeddings score a changed colour above a true paraphrase; these words tell what they confuse.
    """
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    tokens = _TOKEN.findall(text)
    if not _UNLISTED.search(text):
        return tuple([token for token in tokens if token in _KIND_OF])
    return tuple(token for token in tokens if token in _KIND_OF or token[-1].isdecimal() or token.endswith("n't"))


@dataclass
class Decisive:
    """
    The decisive words of a text, in one spelling: `two` as `2`, `grey` as `gray`, `isn't` and `no` as `not`.

    Args:
        text (`str`):
            The text.
    """

    text: str

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words, in order."""
        return tuple(map(_one_spelling, decisive_words(self.text)))

    @cached_property
    def counts(self) -> Counter:
        """How often each of them stands there."""
        return Counter(self.words)

    @cached_property
    def is_paragraph(self) -> bool:
        """Whether the text is more than a sentence or two."""
        return len(self.text.split()) > PARAGRAPH_WORDS

    def agreement(self, other: "Decisive") -> float:
        """
        Return how far the words of two texts agree, from 0 (a veto) to 1.

        Sentences must have the same words in the same order. If one of the two is a paragraph, what it leaves out is
        no contradiction: of each kind only as many words count as *both* have and the other lacks (two colours said
        otherwise, one number for another), negations always, as a share of all decisive words.
        """
        if self.words == other.words:
            return 1.0
        if not (self.is_paragraph or other.is_paragraph):
            return 0.0
        mine, others = _surplus(self.counts, other.counts), _surplus(other.counts, self.counts)
        differing = sum(2 * min(mine[kind], others[kind]) for kind in mine if kind != "negation")
        differing += mine["negation"] + others["negation"]
        return 1 - differing / (len(self.words) + len(other.words))


def _one_spelling(word: str) -> str:
    if word[-1].isdecimal():
        word = _THOUSANDS.sub("", word).replace("\N{MINUS SIGN}", "-")
        return word.rstrip("0").rstrip(".") if "." in word else word
    return "not" if word.endswith("n't") else _SAME.get(word, word)


def _surplus(mine: Counter, others: Counter) -> Counter:
    """Return how many words of each kind `mine` has and `others` lacks."""
    surplus: Counter = Counter()
    for word, count in mine.items():
        if count > others[word]:
            surplus[_KIND_OF.get(word, "number")] += count - others[word]
    return surplus
