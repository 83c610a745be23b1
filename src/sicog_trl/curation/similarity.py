"""How much the candidates of a row agree.

Final parts become unit vectors, so that similarity is a product; what vectors cannot see, a changed number, colour,
negation or place, is looked for in the words; and short answers are counted instead.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, islice, pairwise

import numpy as np
from scipy.sparse import issparse
from sklearn.preprocessing import normalize

from ..responses import chain_fault, final_part, normalize_answer
from .decisive import Decisive
from .embedding import Embed


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/0*[1-9]\d*)?")
# ours: "a small brown dog" can be said otherwise; "brown dog" or "in 1998" either matches or does not.
SHORT_ANSWER_WORDS = 3
_LONGEST_NUMBER = 100  # digits; what repeats one digit for ever is no number, and Python refuses thousands of them
# An option or a yes or no, and where it may end if a candidate goes on after it: "B. red", "Yes, it is".
_LONGEST_LEAD = 60  # characters: "The correct answer is (B) red."
_SHORT_FORM = re.compile(r"[a-z]|yes|no")
_END_OF_SHORT_FORM = re.compile(r"[).:,;!](?=\s)")
_PAIRS_AT_ONCE = 4096
_DIGITS = 6  # of a similarity: what lies below is noise of how texts were batched, and would break ties by chance
_EXACT = 12  # of a score: what lies below is the order of a sum


def read_candidate(text: str, mode: str, finish_reason: str | None, corruption: str | None) -> tuple[str | None, ...]:
    """Return the part of a candidate that is compared, and what is wrong with it in detail; one of them is `None`."""
    if corruption:
        return None, "corrupted"  # about a damaged image: for the rejected side of a pair
    if not text.strip():
        return None, "empty"
    if finish_reason == "length":
        return None, "truncated"
    fault = chain_fault(text, mode)
    return (None, fault) if fault else (final_part(text, mode), None)


def coarse_fault(fault: str | None) -> str | None:
    """Return the reason of a dropped row for a fault in detail: what is wrong with a chain is `incomplete`."""
    return fault if fault in (None, "corrupted", "empty", "truncated") else "incomplete"


@lru_cache(maxsize=4096)  # the same few numbers and words answer most questions
def answer_key(answer: str) -> str:
    """Return the form in which answers that mean the same are equal: normalised, numbers by their value."""
    key = normalize_answer(answer) or answer.strip().casefold()  # "?" and "..." are not equal because nothing is left
    if len(key) <= _LONGEST_NUMBER and _NUMBER.fullmatch(key):
        return str(Fraction(*map(Fraction, key.split("/"))))
    return key


def answer_keys(answers: Sequence[str | None]) -> list[str | None]:
    """
    Return the keys of the answers to one question, `None` for a broken one; see [`answer_key`].

    What says at length what another one gives in short has its key: `B. red` beside `B`, `Yes, it is.` beside `Yes`.
    """
    keys = [answer and answer_key(answer) for answer in answers]
    short = {key for key in keys if key and _SHORT_FORM.fullmatch(key)}
    if not short:
        return keys
    return [
        key if key is None or key in short else _short_form(answer, short) or key
        for answer, key in zip(answers, keys, strict=True)
    ]


def _short_form(answer: str, known: set[str]) -> str | None:
    """Return which of the `known` options, or yes or no, an answer begins with; "A, B" does not begin with A."""
    answer = answer.replace("**", "")
    for end in islice(_END_OF_SHORT_FORM.finditer(answer[:_LONGEST_LEAD]), 2):
        key = answer_key(answer[: end.start()])
        if key in known and (end[0] in ").:" or len(key) > 1):
            return key
    return None


def self_consistency(candidates: Sequence[dict], task: str, embed: Embed, veto: bool = True) -> list[float]:
    """
    Score each candidate by its agreement with the *other* candidates of its row; see [`score_rows`].

    Returns:
        `list[float]`: one score in [0, 1] per candidate; 0 for a broken one.
    """
    fields = ("text", "mode", "finish_reason", "corruption")
    parts = [read_candidate(*map(candidate.get, fields))[0] for candidate in candidates]
    return score_rows([task], [parts], embed, veto)[0][0]


def score_rows(
    tasks: Sequence[str], parts: Sequence[Sequence[str | None]], embed: Embed, veto: bool = True
) -> list[tuple[list[float], list[float]]]:
    """
    Score the candidates of many rows at once.

    A score is the mean agreement with the *other* candidates of the row. (The paper's code counts each one's agreement
    with itself too, which makes a threshold depend on their number: `s_paper = (1 + (n - 1) * s) / n`.) Descriptions
    agree by the cosine of their vectors. Answers agree wholly if they are equal (`7`, `Seven.`, `7.0`; see
    [`answer_keys`]); otherwise not at all, unless both have more than three words: such free text agrees by its
    cosine. A cosine is multiplied by [`Decisive.agreement`]. A broken candidate agrees with none, so it lowers the
    scores of the rest.

    Args:
        tasks (`Sequence[str]`):
            Task of each row.
        parts (`Sequence[Sequence[str or None]]`):
            Final part of each candidate of each row; `None` for a broken one.
        embed (`Callable`):
            See [`embedder`]. Vectors of any length will do; they are normalised here.
        veto (`bool`, *optional*, defaults to `True`):
            Whether decisive words count.

    Returns:
        `list[tuple[list[float], list[float]]]`: per row the scores of its candidates, and by what to choose between
        those that lead with as many votes: how near the answer is to the others.
    """
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    keys = [answer_keys(row) if task == "reasoning" else None for task, row in zip(tasks, parts, strict=True)]
    certain, compared = [], []
    for start, row, row_keys in zip(starts, parts, keys, strict=False):
        for i, j in combinations([i for i, part in enumerate(row) if part is not None], 2):
            if row_keys and row_keys[i] == row_keys[j]:
                certain.append((start + i, start + j))
            elif not row_keys or (_is_free_text(row_keys[i]) and _is_free_text(row_keys[j])):
                compared.append((start + i, start + j, row[i], row[j]))
    totals = _totals(starts[-1], certain, np.ones(len(certain)))
    totals += _totals(starts[-1], compared, _similarities([pair[2:] for pair in compared], embed, veto))
    others = np.repeat([max(1, len(row) - 1) for row in parts], [len(row) for row in parts]) if parts else 1
    scores = np.round(totals / others, _EXACT).tolist()
    tied = _tied_pairs(starts, keys, scores)
    nearness = (
        _totals(starts[-1], tied, _similarities([pair[2:] for pair in tied], embed, veto)).round(_EXACT).tolist()
    )
    return [(scores[start:end], nearness[start:end]) for start, end in pairwise(starts)]


def _is_free_text(key: str) -> bool:
    return key.count(" ") >= SHORT_ANSWER_WORDS


def _totals(size: int, pairs: Sequence[tuple], values: np.ndarray) -> np.ndarray:
    """Return for each candidate the sum of the values of its pairs."""
    if not pairs:
        return np.zeros(size)
    left, right = ([pair[side] for pair in pairs] for side in (0, 1))
    return np.bincount(np.array(left + right, dtype=int), np.concatenate([values, values]), minlength=size)


def _tied_pairs(starts: list[int], keys: Sequence[list | None], scores: list[float]) -> list[tuple]:
    """Return the pairs of different answers of the rows in which several answers lead."""
    pairs = []
    for start, row in zip(starts, keys, strict=False):
        sound = [i for i, key in enumerate(row or []) if key is not None]
        best = max((scores[start + i] for i in sound), default=0.0)
        if len({row[i] for i in sound if scores[start + i] == best}) > 1:
            pairs += [(start + i, start + j, row[i], row[j]) for i, j in combinations(sound, 2) if row[i] != row[j]]
    return pairs


def _similarities(pairs: Sequence[tuple[str, str]], embed: Embed, veto: bool) -> np.ndarray:
    """Return the cosine similarity of the texts of each pair, times the agreement of their decisive words."""
    weights = np.ones(len(pairs))
    if veto:
        decisive = {text: Decisive(text) for text in dict.fromkeys(text for pair in pairs for text in pair)}
        weights = np.array([decisive[a].agreement(decisive[b]) for a, b in pairs])
    wanted = np.flatnonzero(weights)
    if not len(wanted):
        return weights
    rows: dict[str, int] = {}  # each text is embedded once
    indices = np.array([[rows.setdefault(text, len(rows)) for text in pairs[number]] for number in wanted])
    vectors = normalize(embed(list(rows)))
    for start in range(0, len(wanted), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        left, right = (vectors[indices[some, side]] for side in (0, 1))
        products = left.multiply(right).sum(axis=1).A1 if issparse(vectors) else np.einsum("ij,ij->i", left, right)
        cosines = np.where(indices[some, 0] == indices[some, 1], 1.0, np.clip(products, 0, 1))
        weights[wanted[some]] *= cosines
    return weights.round(_DIGITS)
