"""Texts become vectors: n-grams need no model, anything else is a sentence-transformers model."""

import sys
from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer


Embed = Callable[[Sequence[str]], csr_matrix | np.ndarray]

NGRAMS = {
    # Words in order, so that swapped attributes lower the score; no model needed.
    "word_ngram": {"analyzer": "word", "ngram_range": (1, 3), "token_pattern": r"[^\s.,;:!?]+"},
    "char_ngram": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}


def embedder(name: str, batch_size: int = 32) -> Embed:
    """
    Return the function that turns texts into unit vectors.

    Args:
        name (`str`):
            `"word_ngram"`, `"char_ngram"`, or the id or folder of a sentence-transformers model.
        batch_size (`int`, *optional*, defaults to 32):
            Texts that such a model reads at once.

    Returns:
        `Callable`: `n` texts -> `n` rows with Euclidean norm 1 (0 for an empty text), sparse for n-grams.
    """
    if name not in NGRAMS:
        return SentenceEmbedder(name, batch_size)
    vectorizer = HashingVectorizer(n_features=2**20, alternate_sign=False, norm="l2", **NGRAMS[name])
    return vectorizer.transform


class SentenceEmbedder:
    """
    A sentence-transformers model.

    Args:
        name (`str`):
            Id or folder of the model. Code that comes with a model is not run.
        batch_size (`int`):
            Texts that the model reads at once.

    Attributes:
        num_cut (`int`): how many of the texts so far were longer than the model reads; their ends counted for nothing.
        max_length (`int` or `None`): how many tokens it reads.
    """

    def __init__(self, name: str, batch_size: int):
        self.batch_size = batch_size
        self.num_cut = 0
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ValueError(
                f"unknown similarity {name!r}: choose {' or '.join(NGRAMS)}, or install the extra `similarity`, which "
                f"brings sentence-transformers, if this is one of its models ({error})"
            ) from error
        try:
            self.model = SentenceTransformer(name, trust_remote_code=False)
        except Exception as error:  # of many kinds: no such repository, no connection, no weights, foreign code
            raise ValueError(
                f"unknown similarity {name!r}: choose {' or '.join(NGRAMS)}, or the id or folder of a "
                f"sentence-transformers model; loading it as one failed: {error}"
            ) from error
        self.max_length = self.model.max_seq_length

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the unit vectors of `texts`."""
        texts = list(texts)
        self.num_cut += self._too_long(texts)
        return self.model.encode(
            texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=sys.stderr.isatty()
        )

    def _too_long(self, texts: list[str]) -> int:
        """Return how many of `texts` have more tokens than the model reads: it cuts them without a word."""
        tokenizer = self.model.tokenizer
        # Bags of words and static embeddings read texts of any length.
        if not self.max_length or not hasattr(tokenizer, "model_max_length"):
            return 0
        ids = tokenizer(texts, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
        return sum(len(one) > self.max_length for one in ids)
