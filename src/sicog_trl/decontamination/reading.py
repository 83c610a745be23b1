"""Rows of a pool or of a benchmark as images and texts, a few at a time; nothing is decoded here."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import Dataset, Value

from ..curation.columns import combined
from ..data import IMAGES_FEATURES
from ..generation.columns import as_images, image_columns
from ..generation.inputs import ImageRows


ROWS_AT_ONCE = 64  # ours: as many rows of large images are held in memory
# Columns of the benchmarks' Parquet files; those of one kind are read as one text.
QUESTIONS = ("question", "query", "problem", "instruction")
CAPTIONS = ("caption", "captions", "answer", "answers", "gpt_answer", "solution")


@dataclass
class Rows:
    """
    Some rows.

    Args:
        images (`list[list]`):
            The images of each row, as `{"bytes", "path"}`.
        asked, said (`list[str]`):
            What is asked in each row, and what is answered or described.
    """

    images: list[list[dict[str, Any] | None]]
    asked: list[str]
    said: list[str]

    def __len__(self) -> int:
        return len(self.asked)


class Pool:
    """
    The rows to look through, in the columns that they have.

    An artefact of the line keeps all its columns; other inputs of `generate` (a folder of images, a WebDataset) become
    the columns `id`, `images`, `question`, `answer`.

    Args:
        dataset (`datasets.Dataset`):
            Rows from [`~sicog_trl.generation.sources.load_images`].
    """

    def __init__(self, dataset: Dataset):
        names = dataset.column_names
        is_artefact = "id" in names and any(n in names for n in ("images", "prompt", "messages", "candidates"))
        self._rows = None if is_artefact else ImageRows(dataset)
        if is_artefact and dataset.features["id"] != Value("string"):
            raise ValueError(f"the column 'id' holds {dataset.features['id']}; texts are needed")
        if is_artefact and not len(dataset):
            raise ValueError("the input has no rows; there is nothing to look through")
        self._data = dataset.with_format("arrow")
        self.features = dataset.features if is_artefact else IMAGES_FEATURES
        # What was said in training data tells rows apart; a label that only measures does not.
        self.is_training_data = any(name in names for name in ("completion", "chosen", "messages"))

    def __len__(self) -> int:
        return len(self._data)

    def table(self, start: int, stop: int) -> pa.Table:
        """Return a range of rows; images are as they are stored."""
        stop = min(stop, len(self))
        return self._rows.table(range(start, stop)) if self._rows else self._data[start:stop]

    def ids(self) -> list[str]:
        """Return all ids; that one is missing or occurs twice is an error."""
        ids: list[str] = []
        data = self._data.select_columns("id") if self._rows is None else None
        for start in range(0, len(self), 10_000):
            table = data[start : start + 10_000] if data else self.table(start, start + 10_000)
            ids += table["id"].to_pylist()
        if None in ids:
            raise ValueError(f"row {ids.index(None)}: the id is null; give every row one")
        if len(set(ids)) < len(ids):
            seen: set[str] = set()
            twice = next(row_id for row_id in ids if row_id in seen or seen.add(row_id))
            raise ValueError(f"the id {twice!r} stands in several rows; ids must be unique")
        return ids

    def fingerprint(self) -> str:
        """Return a hash of the ids and of what tells the files apart, which a killed run goes on with."""
        digest = hashlib.sha256(repr(self.features).encode())
        for row_id in self.ids():
            digest.update(row_id.encode() + b"\0")
        return f"sha256:{digest.hexdigest()[:16]}"

    def read(self, start: int, stop: int) -> Rows:
        """Return the images and texts of a range of rows."""
        table = self.table(start, stop)
        return Rows(_images(table, image_columns(self.features)), *_pool_texts(table))


def read_benchmark(dataset: Dataset) -> Iterator[Rows]:
    """Yield the rows of a benchmark, a few at a time."""
    images = image_columns(dataset.features)
    texts = [[name for name in kind if name in dataset.column_names] for kind in (QUESTIONS, CAPTIONS)]
    if not images and not any(texts):
        raise ValueError(f"there are neither images nor texts that are known, only {dataset.column_names}")
    data = dataset.select_columns([*images, *texts[0], *texts[1]]).with_format("arrow")
    for start in range(0, len(data), ROWS_AT_ONCE):
        table = data[start : start + ROWS_AT_ONCE]
        columns = [[table[name].to_pylist() for name in kind] for kind in texts]
        joined = [[" ".join(map(_text, row)) for row in zip(*kind, strict=True)] for kind in columns]
        yield Rows(_images(table, images), *(kind or [""] * len(table) for kind in joined))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return value if isinstance(value, str) else ""


def _images(table: pa.Table, columns: list[str]) -> list[list[dict[str, Any] | None]]:
    """Return the images of all columns of each row, in their order."""
    rows: list[list[dict[str, Any] | None]] = [[] for _ in range(len(table))]
    for name in columns:
        if not len(table):
            continue
        counts, values = as_images(combined(table[name]), name)
        images = iter(values.to_pylist())
        for row, count in zip(rows, counts, strict=True):
            row += [next(images) for _ in range(count)]
    return rows


def _pool_texts(table: pa.Table) -> tuple[list[str], list[str]]:
    """Return what is asked in each row and what is said, of whichever columns there are."""
    names, nothing = table.column_names, [None] * len(table)
    said = next((name for name in ("completion", "chosen") if name in names), None)
    if "messages" in names:
        turns = table["messages"].to_pylist()
        return [_turns(row, True) for row in turns], [_turns(row, False) for row in turns]
    if said:
        prompts = table["prompt"].to_pylist() if "prompt" in names else nothing
        return [_turns(row, True) for row in prompts], [_turns(row, False) for row in table[said].to_pylist()]
    columns = (table[name].to_pylist() if name in names else nothing for name in ("question", "answer"))
    asked, answered = ([_text(value) for value in column] for column in columns)
    return asked, answered


def _turns(messages: list[dict[str, Any]] | str | None, of_user: bool) -> str:
    """Return what one side says in a conversation; a text that is none is taken as it is."""
    if not isinstance(messages, list):
        return messages or ""
    return " ".join(
        _content(message.get("content")) for message in messages if (message.get("role") != "assistant") == of_user
    )


def _content(content: Any) -> str:
    if isinstance(content, list):  # typed parts
        return " ".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""
