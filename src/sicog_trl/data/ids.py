"""Which ids stand in more than one row, found without holding them all."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from datasets import Dataset, Value


def repeated_rows(ids: Callable[[], Iterable[list[str]]]) -> dict[str, list[int]]:
    """
    Return the ids that stand in more than one row, each with the numbers of its rows, the first repetition first.

    Memory is 16 bytes per row: hashes are held, and only ids whose hash repeats are looked at again.

    Args:
        ids (`Callable[[], Iterable[list[str]]]`):
            Reads the ids of all rows, in batches; asked a second time if a hash repeats.
    """
    hashes = [np.fromiter(map(hash, batch), np.int64, len(batch)) for batch in ids()]
    ordered = np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.int64)
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return {}
    rows: dict[str, list[int]] = {}
    number = 0
    for batch in ids():
        for row_id in batch:
            # Equal hashes are a sign, equal ids the proof.
            if hash(row_id) in suspects:
                rows.setdefault(row_id, []).append(number)
            number += 1
    found = [(row_id, numbers) for row_id, numbers in rows.items() if len(numbers) > 1]
    return dict(sorted(found, key=lambda each: each[1][1]))


def refuse_repeated_ids(dataset: Dataset, name: str) -> None:
    """Raise a `ValueError` if an id stands in more than one row of `dataset`, which is called `name`."""
    if dataset.features.get("id") != Value("string"):
        return
    found = repeated_rows(lambda: _ids([dataset]))
    for row_id, (first, second, *_) in found.items():
        raise ValueError(
            f"{name}: the id {row_id!r} stands in row {first} and in row {second}, and {len(found) - 1:,} others in "
            "several rows too; give every row an id of its own, or take the column out"
        )


def repeated_id(datasets: Sequence[Dataset]) -> tuple[str, list[int]] | None:
    """
    Return the first id that stands in more than one row of `datasets`, with the number of the dataset of each of its
    rows; `None` if no id does.
    """
    for row_id, numbers in repeated_rows(lambda: _ids(datasets)).items():
        ends = np.cumsum([len(dataset) for dataset in datasets])
        return row_id, np.searchsorted(ends, numbers, side="right").tolist()
    return None


def _ids(datasets: Sequence[Dataset]) -> Iterator[list[str]]:
    for dataset in datasets:
        for batch in dataset.select_columns("id").with_format("arrow").iter(10_000):
            yield batch["id"].to_pylist()
