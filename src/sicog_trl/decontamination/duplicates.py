"""Rows of a pool that are there twice: the same pictures, near enough, with the same words, near enough.

Of rows that are near to each other the first is kept. A picture with other questions is no duplicate, nor is a
question about another picture. Candidates come from indices, so the time grows with the number of rows, and with the
square only of how many rows share one picture (or, without pictures, much of one text).
"""

from collections.abc import Iterator

import numpy as np

from .facts import Facts
from .images import HammingIndex, fine_distance
from .texts import SIGNATURE_BANDS, similarity


_QUERIES = 1024
_PAIRS = 1 << 21  # compared at once


def find_duplicates(facts: Facts, max_distance: int, max_fine_distance: int, min_similarity: float) -> np.ndarray:
    """Return, for each row, the earlier row that it repeats, or -1."""
    repeats = _equal_rows(facts)
    left = np.flatnonzero(facts.sound & (repeats < 0))
    found = [np.empty((0, 2), dtype=np.int64)]
    for first, second in _candidates(facts, left, max_distance):
        near = _same_texts(facts, first, second, min_similarity)
        first, second = first[near], second[near]
        near = _same_images(facts, first, second, max_distance, max_fine_distance)
        found.append(np.stack([first[near], second[near]], axis=1))
    pairs = np.unique(np.concatenate(found)[:, ::-1], axis=0)  # by the later row, then by the earlier one
    for later, earlier in pairs.tolist():
        if repeats[later] < 0 and repeats[earlier] < 0:
            repeats[later] = earlier
    return _followed(repeats)


def _followed(repeats: np.ndarray) -> np.ndarray:
    """Name the row that was kept where a row repeats one that repeats another."""
    while ((rows := np.flatnonzero(repeats >= 0)).size) and (repeats[repeats[rows]] >= 0).any():
        again = repeats[repeats[rows]]
        repeats[rows] = np.where(again >= 0, again, repeats[rows])
    return repeats


def _equal_rows(facts: Facts) -> np.ndarray:
    """Return which rows have the very pictures and words of an earlier one."""
    key = facts.num_images.astype(np.uint64)
    owners = np.repeat(np.arange(len(key)), facts.num_images)
    place = (np.arange(len(owners)) - np.repeat(facts.offsets[:-1], facts.num_images)).astype(np.uint64)
    np.add.at(key, owners, _mixed(facts.contents + place))
    for number in facts.fields:
        key = _mixed(key ^ facts.words[:, number])
    repeats = np.full(len(key), -1, dtype=np.int64)
    rows = np.flatnonzero(facts.sound)
    _, first, inverse = np.unique(key[rows], return_index=True, return_inverse=True)
    earliest = rows[first[inverse]]
    repeats[rows] = np.where(earliest < rows, earliest, -1)
    return repeats


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread numbers over all 64 bits (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _candidates(facts: Facts, rows: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of rows, the earlier one first, whose first pictures or, without any, texts are near."""
    illustrated = facts.num_images[rows] > 0
    with_images, bare = rows[illustrated], rows[~illustrated]
    first = facts.offsets[with_images]
    flat = facts.flat[first]
    yield from _pairs_within(with_images[flat], facts.contents[first[flat]])
    yield from _pairs_of_pictures(with_images[~flat], facts.near[first[~flat]], max_distance)
    for number in facts.fields:
        signed = bare[facts.signed[bare, number]]
        width = facts.signatures.shape[2] // SIGNATURE_BANDS
        for band in range(SIGNATURE_BANDS):
            columns = facts.signatures[signed, number, band * width : (band + 1) * width].astype(np.uint64)
            key = np.zeros(len(signed), dtype=np.uint64)
            for column in columns.T:
                key = _mixed(key ^ column)
            yield from _pairs_within(signed, key)


def _pairs_within(rows: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of rows that have the same key."""
    _, inverse = np.unique(keys, return_inverse=True)
    groups = np.arange(inverse.max() + 1 if len(inverse) else 0)
    yield from _crossed(rows, _grouped(inverse), groups, groups)


def _pairs_of_pictures(
    rows: np.ndarray, hashes: np.ndarray, max_distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of rows whose hashes differ in at most `max_distance` bits."""
    distinct, inverse = np.unique(hashes, return_inverse=True)
    index, members = HammingIndex(distinct, max_distance), _grouped(inverse)
    for start in range(0, len(distinct), _QUERIES):
        query, entry, _ = index.near(distinct[start : start + _QUERIES])
        query += start
        once = entry >= query
        yield from _crossed(rows, members, query[once], entry[once])


def _grouped(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the group of each place, and the places in the order of their groups, which begin and are as many."""
    counts = np.bincount(groups)
    return groups, np.argsort(groups, kind="stable"), np.concatenate([[0], np.cumsum(counts)]), counts


def _crossed(
    rows: np.ndarray, members: tuple, left: np.ndarray, right: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every row of the groups `left` with every row of the groups `right`, some at a time, once each."""
    groups, order, starts, counts = members
    alone = (left == right) & (counts[left] < 2)
    left, right = left[~alone], right[~alone]
    one = order[_spread(starts[left], counts[left])]
    right = np.repeat(right, counts[left])
    done = np.concatenate([[0], np.cumsum(counts[right])])
    begin = 0
    while begin < len(one):
        end = max(begin + 1, int(np.searchsorted(done, done[begin] + _PAIRS, side="right")) - 1)
        some = right[begin:end]
        first = rows[np.repeat(one[begin:end], counts[some])]
        second = rows[order[_spread(starts[some], counts[some])]]
        # Within a group every pair comes in both orders, between two groups in one.
        within = np.repeat(groups[one[begin:end]] == some, counts[some])
        keep = (first < second) | ((first > second) & ~within)
        yield np.minimum(first, second)[keep], np.maximum(first, second)[keep]
        begin = end


def _spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the numbers of all ranges, one range after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - counts - starts, counts)


def _same_texts(facts: Facts, first: np.ndarray, second: np.ndarray, min_similarity: float) -> np.ndarray:
    """Return which pairs have equal or long and similar texts."""
    same = np.ones(len(first), dtype=bool)
    for number in facts.fields:
        equal = facts.words[first, number] == facts.words[second, number]
        doubtful = np.flatnonzero(same & ~equal & facts.signed[first, number] & facts.signed[second, number])
        for some in np.array_split(doubtful, 1 + len(doubtful) // 10_000):
            texts = (facts.signatures[rows[some], number] for rows in (first, second))
            equal[some] = similarity(*texts) >= min_similarity
        same &= equal
    return same


def _same_images(
    facts: Facts, first: np.ndarray, second: np.ndarray, max_distance: int, max_fine_distance: int
) -> np.ndarray:
    """Return which pairs have as many pictures, each near to the one at its place."""
    same = facts.num_images[first] == facts.num_images[second]
    for place in range(int(facts.num_images[first[same]].max(initial=0))):
        doubtful = np.flatnonzero(same & (facts.num_images[first] > place))
        one, other = (facts.offsets[rows[doubtful]] + place for rows in (first, second))
        equal = facts.contents[one] == facts.contents[other]
        near = ~facts.flat[one] & ~facts.flat[other]
        near &= np.bitwise_count(facts.near[one] ^ facts.near[other]) <= max_distance
        near &= fine_distance(facts.fine[one], facts.fine[other]) <= max_fine_distance
        same[doubtful] = equal | near
    return same
