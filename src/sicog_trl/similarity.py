"""How much the candidates of a row agree.

Texts become unit vectors, so that similarity is a product; a veto sees what vectors cannot, and short answers are
counted instead.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from .responses import final_part, normalize_answer


Embed = Callable[[Sequence[str]], csr_matrix]

_COLOURS = "red green blue yellow purple orange pink brown black white gray grey gold silver violet cyan".split()
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve none several many".split()
_NEGATIONS = "no not never without cannot nothing nobody neither nor".split()
_PLACES = (
    "left right top bottom above below under over behind front inside outside upper lower north south east west "
    "first second third last"
).split()
_DECISIVE = re.compile(rf"\b(?:{'|'.join([*_COLOURS, *_NUMBERS, *_NEGATIONS, *_PLACES])}|\w+n't|\d[\d.,]*)\b")

_NGRAMS = {
    # Words in order, so that swapped attributes lower the score; no model needed.
    "word_ngram": {"analyzer": "word", "ngram_range": (1, 3), "token_pattern": r"[^\s.,;:!?]+"},
    "char_ngram": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}


def embedder(name: str) -> Embed:
    """
    Return the function that turns texts into unit vectors.

    Args:
        name (`str`):
            `"word_ngram"` or `"char_ngram"`.

    Returns:
        `Callable`: `n` texts -> sparse matrix of `n` rows with Euclidean norm 1 (0 for an empty text).
    """
    if name not in _NGRAMS:
        raise ValueError(f"unknown similarity {name!r}; choose one of {', '.join(_NGRAMS)}")
    vectorizer = HashingVectorizer(n_features=2**20, alternate_sign=False, norm="l2", **_NGRAMS[name])
    return vectorizer.transform


def decisive_words(text: str) -> tuple[str, ...]:
    """
    Return the numbers, colours, negations and spatial words of `text`, in order.

    Embeddings score a changed colour above a true paraphrase; two texts that differ in these words disagree.
    """
    return tuple(_DECISIVE.findall(text.lower()))


def mean_similarity_to_others(vectors: csr_matrix, allowed: np.ndarray | None = None) -> np.ndarray:
    """
    Return the mean cosine similarity of each text to the *other* texts of its row.

    The mean released with the paper counts each text's similarity to itself as well, which makes a threshold depend on
    the number of candidates: `s_paper = (1 + (n - 1) * s) / n`.

    Args:
        vectors (`csr_matrix` of shape `(n, d)`):
            Unit vectors of the `n` texts of one row.
        allowed (`np.ndarray` of shape `(n, n)`, *optional*):
            Pairs that are not vetoed; a vetoed pair counts as 0.
    """
    pairs = (vectors @ vectors.T).toarray()
    if allowed is not None:
        pairs = pairs * allowed
    np.fill_diagonal(pairs, 0)
    return pairs.sum(axis=1) / max(1, len(pairs) - 1)


def fault_of(candidate: dict[str, Any]) -> str | None:
    """Return why a candidate cannot be chosen (`empty`, `truncated` or `incomplete`), or `None`."""
    if candidate.get("corruption"):
        return "corrupted"  # about a damaged image: for the rejected side of a pair
    if not candidate["text"].strip():
        return "empty"
    if candidate["finish_reason"] == "length":
        return "truncated"
    return None if final_part(candidate["text"], candidate["mode"]) else "incomplete"


def self_consistency(candidates: Sequence[dict], task: str, embed: Embed, veto: bool = True) -> list[float]:
    """
    Score each candidate by its agreement with the *other* candidates of its row.

    Descriptions: mean cosine similarity of the final parts. Reasoning: share of the others with an equal final
    answer. A broken candidate agrees with none, so it lowers the scores of the rest.

    Returns:
        `list[float]`: one score in [0, 1] per candidate; 0 for a broken one.
    """
    parts = [None if fault_of(c) else final_part(c["text"], c["mode"]) for c in candidates]
    sound = [i for i, part in enumerate(parts) if part is not None]
    scores = [0.0] * len(parts)
    if len(sound) < 2:
        return scores
    if task == "reasoning":
        votes = Counter(normalize_answer(parts[i]) for i in sound)
        agreement = [(votes[normalize_answer(parts[i])] - 1) for i in sound]
    else:
        allowed = None
        if veto:
            words = [decisive_words(parts[i]) for i in sound]
            allowed = np.array([[a == b for b in words] for a in words])
        agreement = mean_similarity_to_others(embed([parts[i] for i in sound]), allowed) * (len(sound) - 1)
    for i, value in zip(sound, agreement, strict=True):
        scores[i] = float(value) / (len(parts) - 1)
    return scores
