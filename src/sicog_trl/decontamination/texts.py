"""Which texts are near: shared sequences of words, exactly against benchmarks, by MinHash inside a pool.

A benchmark is small, so the share of its word sequences that stand in a text of the pool is counted exactly: that
finds a question inside a longer prompt too, which no symmetric measure does. A pool is large, so its texts are
compared by MinHash (datasketch), whose signatures have a fixed size.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from datasketch import MinHash


WORDS_IN_A_ROW = 3  # ours: one exchanged word breaks three sequences, so a slightly changed text stays near
SIGNATURE = 64  # ours: numbers in a signature; the similarity that they estimate is off by at most 0.1 (two sigma)
# Sixteen bands of four: texts of which 0.8 is common meet with probability 0.9998, of which 0.5 is with 0.64.
SIGNATURE_BANDS = 16
COMMON = 10  # ours: a sequence in more rows of one benchmark than this is its wording, not its content
COMMON_SHARE = 0.02  # ours: and so is one in more than this share of a pool
LEAST = 5  # ours: sequences that must be left of a text, or it is not compared
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Chinese, Japanese, Korean: every character counts as a word
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


def words(text: str | None) -> list[str]:
    """Return the words of a text, without case, punctuation and typographic variants."""
    return _WORD.findall(unicodedata.normalize("NFKC", text or "").lower())


def sequences(text: Sequence[str]) -> np.ndarray:
    """Return the distinct hashes of the word sequences of a text, sorted."""
    last = max(1, len(text) - WORDS_IN_A_ROW + 1) if text else 0
    joined = (" ".join(text[start : start + WORDS_IN_A_ROW]).encode() for start in range(last))
    hashes = b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in joined)
    return np.unique(np.frombuffer(hashes, dtype="<u8"))


def common_sequences(texts: list[np.ndarray]) -> np.ndarray:
    """Return the sequences that stand in so many of these texts that they are their wording, not their content."""
    found, counts = np.unique(np.concatenate([*texts, np.empty(0, np.uint64)]), return_counts=True)
    return found[counts > max(COMMON, COMMON_SHARE * len(texts))]


def exact(text: Sequence[str]) -> int:
    """Return a hash of all words of a text."""
    return int.from_bytes(hashlib.blake2b(" ".join(text).encode(), digest_size=8).digest(), "little")


_START = MinHash(num_perm=SIGNATURE, seed=1, hashfunc=int)


def signature(hashes: np.ndarray) -> np.ndarray:
    """Return the MinHash of word sequences."""
    minhash = _START.copy()
    minhash.update_batch((hashes & np.uint64(0xFFFFFFFF)).tolist())
    return minhash.hashvalues.astype(np.uint32)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the estimated share of word sequences that two texts have in common (Jaccard), row by row."""
    return (first == second).mean(axis=-1)


class SequenceIndex:
    """
    The word sequences of the texts of benchmarks.

    Args:
        texts (`list[np.ndarray]`):
            The sequences of each text; an empty array for one that is not compared.
        groups (`np.ndarray` of `int64`):
            The benchmark that each text is of. Sequences that stand in many of its texts are left out.
        min_overlap (`float`):
            Share of the sequences of a text that must be found.
    """

    def __init__(self, texts: list[np.ndarray], groups: np.ndarray, min_overlap: float):
        self.min_overlap = min_overlap
        sizes = np.array([len(text) for text in texts], dtype=np.int64)
        owners = np.repeat(np.arange(len(texts)), sizes)
        hashes = np.concatenate([*texts, np.empty(0, np.uint64)])
        keep = _is_rare(hashes, groups[owners])
        left = np.bincount(owners[keep], minlength=len(texts))
        keep &= (left >= LEAST)[owners]
        self.sizes = np.bincount(owners[keep], minlength=len(texts))
        self.num_common = int(((sizes > 0) & (self.sizes == 0)).sum())
        order = np.argsort(hashes[keep], kind="stable")
        self._hashes, self._owners = hashes[keep][order], owners[keep][order]

    def near(self, queries: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all pairs that are near: the place of the query, that of the text, and the share found, in order."""
        query = np.repeat(np.arange(len(queries)), [len(one) for one in queries])
        hashes = np.concatenate([*queries, np.empty(0, np.uint64)])
        first = np.searchsorted(self._hashes, hashes, side="left")
        counts = np.searchsorted(self._hashes, hashes, side="right") - first
        ends = np.cumsum(counts)
        places = np.arange(int(counts.sum())) - np.repeat(ends - counts - first, counts)
        pairs, hits = np.unique(np.repeat(query, counts) * len(self.sizes) + self._owners[places], return_counts=True)
        query, text = np.divmod(pairs, max(1, len(self.sizes)))
        share = hits / np.maximum(self.sizes[text], 1)
        found = share >= self.min_overlap
        return query[found], text[found], share[found]


def _is_rare(hashes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return which sequences stand in few texts of their group."""
    if not len(hashes):
        return np.zeros(0, dtype=bool)
    order = np.lexsort((hashes, groups))
    ordered, grouped = hashes[order], groups[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]) | (grouped[1:] != grouped[:-1])])
    counts = np.diff(np.r_[starts, len(ordered)])
    rare = np.empty(len(hashes), dtype=bool)
    rare[order] = np.repeat(counts, counts) <= COMMON
    return rare
