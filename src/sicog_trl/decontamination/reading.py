"""Rows of a pool or of a benchmark as images and texts, a few at a time; nothing is decoded here."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from ..curation.columns import combined
from ..data import IMAGES_FEATURES, batches, repeated_rows
from ..data.rows import image_columns
from ..generation.columns import as_images
from ..generation.inputs import ImageRows


ROWS_AT_ONCE = 64  # ours: as many rows of large images are held in memory
# Columns of the benchmarks' Parquet files. Options, hints and lectures are not compared: training splits share them.
QUESTIONS = ("question", "query", "problem", "instruction")
CAPTIONS = ("caption", "captions", "answer", "answers", "gpt_answer", "solution")
_ENDINGS = ("messages", "completion", "chosen", "rejected")


@dataclass
class Rows:
    """
    Some rows.

    Args:
        images (`list[list]`):
            The images of each row, as `{"bytes", "path"}`.
        asked, said (`list[list[str]]`):
            The texts that ask in each row, and those that answer or describe. Each is compared by itself: one of five
            captions is a copy, though it is a fifth of the words.
    """

    images: list[list[dict[str, Any] | None]]
    asked: list[list[str]]
    said: list[list[str]]

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
        is_artefact = "id" in names and not {"images", "candidates", "prompt", *_ENDINGS}.isdisjoint(names)
        self._rows = None if is_artefact else ImageRows(dataset)
        if is_artefact and dataset.features["id"] != Value("string"):
            raise ValueError(f"the column 'id' holds {dataset.features['id']}; texts are needed")
        if is_artefact and not len(dataset):
            raise ValueError("the input has no rows; there is nothing to look through")
        self._data = dataset.with_format("arrow")
        self.features = dataset.features if is_artefact else IMAGES_FEATURES
        # What was said in training data tells rows apart. A label that only measures does not, nor do candidates,
        # which are drawn by chance: the same image with the same question is there twice, whatever the model said.
        self.is_training_data = not set(_ENDINGS).isdisjoint(names)

    def __len__(self) -> int:
        return len(self._data)

    def table(self, start: int, stop: int) -> pa.Table:
        """Return a range of rows; images are as they are stored."""
        stop = min(stop, len(self))
        return self._rows.table(range(start, stop)) if self._rows else self._data[start:stop]

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield where ranges of rows begin and end that may be held at once with the bytes of their images."""
        for start, raw in batches(self._data):
            yield start, start + len(raw)

    def ids(self) -> pa.ChunkedArray:
        """Return all ids; that one is missing or occurs twice is an error."""
        data = self._data.select_columns("id") if self._rows is None else None
        step = 10_000 if data else ROWS_AT_ONCE
        ranges = ((start, start + step) for start in range(0, len(self), step))
        pieces = [combined((data[a:b] if data else self.table(a, b))["id"]) for a, b in ranges]
        ids = pa.chunked_array(pieces, pa.string())
        if ids.null_count:
            raise ValueError(f"row {pc.index(pc.is_null(ids), True)}: the id is null; give every row one")
        for row_id in repeated_rows(lambda: (piece.to_pylist() for piece in pieces)):
            raise ValueError(f"the id {row_id!r} stands in several rows; ids must be unique")
        return ids

    def fingerprint(self) -> str:
        """Return a hash by which a killed run knows the pool again."""
        self.ids()
        return _fingerprint(self.table, len(self), self.features)

    def texts(self, start: int, stop: int) -> tuple[list[list[str]], list[list[str]]]:
        """Return what is asked and what is said in a range of rows, as in [`Rows`]."""
        return _pool_texts(self.table(start, stop))

    def read(self, start: int, stop: int) -> Rows:
        """Return the images and texts of a range of rows."""
        table = self.table(start, stop)
        return Rows(_images(table, image_columns(self.features)), *_pool_texts(table))


def benchmark_fingerprint(dataset: Dataset) -> str:
    """Return a hash by which a killed run knows the rows of a benchmark again."""
    data = dataset.with_format("arrow")
    return _fingerprint(lambda start, stop: data[start:stop], len(data), dataset.features)


def _fingerprint(read: Callable[[int, int], pa.Table], rows: int, features: Features) -> str:
    """Return a hash of everything but the content of images, of which size and path must do: they may be terabytes."""
    digest, images = hashlib.sha256(repr(features).encode()), image_columns(features)
    for start in range(0, rows, ROWS_AT_ONCE):
        table = read(start, min(start + ROWS_AT_ONCE, rows))
        for name in images:
            counts, values = as_images(combined(table[name]), name)
            sizes = pc.fill_null(pc.binary_length(pc.struct_field(values, "bytes")), -1)
            digest.update(repr((counts.tolist(), sizes.to_pylist())).encode())
            digest.update(repr(pc.struct_field(values, "path").to_pylist()).encode())
        rest = table.drop_columns(images).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rest.schema) as stream:
            stream.write_table(rest)
        digest.update(sink.getvalue())
    return f"sha256:{digest.hexdigest()[:16]}"


def read_benchmark(dataset: Dataset) -> Iterator[Rows]:
    """Yield the rows of a benchmark, a few at a time."""
    images = image_columns(dataset.features)
    texts = [[name for name in kind if name in dataset.column_names] for kind in (QUESTIONS, CAPTIONS)]
    if not images and not any(texts):
        raise ValueError(f"there are neither images nor texts that are known, only {dataset.column_names}")
    data = dataset.select_columns([*images, *texts[0], *texts[1]]).with_format("arrow")
    for start in range(0, len(data), ROWS_AT_ONCE):
        table = data[start : start + ROWS_AT_ONCE]
        columns = [[table[name].to_pylist() for name in kind] or [[None] * len(table)] for kind in texts]
        yield Rows(_images(table, images), *([_texts(row) for row in zip(*kind, strict=True)] for kind in columns))


def _texts(value: Any) -> list[str]:
    """Return all texts in a value of whatever columns."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


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


def _pool_texts(table: pa.Table) -> tuple[list[list[str]], list[list[str]]]:
    """Return the texts that ask in each row and those that say something, of whichever columns there are."""

    def column(name: str) -> list[Any]:
        return table[name].to_pylist() if name in table.column_names else [None] * len(table)

    endings = [name for name in _ENDINGS if name in table.column_names]
    if endings:
        rows = list(zip(column("prompt"), *map(column, endings), strict=True))
        # Where there is no prompt, the question stands in the ending; an earlier answer stands in the prompt.
        asked = [[_joined(_said_by(prompt, True, True), _said_by(first, True, False))] for prompt, first, *_ in rows]
        said = [
            [_joined(_said_by(row[0], False, True), _said_by(end, False, False)) for end in row[1:]] for row in rows
        ]
        return asked, said
    candidates = [[each["text"] for each in some or [] if each] for some in column("candidates")]
    answers = zip(column("answer"), candidates, strict=True)
    return [_texts(question) for question in column("question")], [_texts(row) for row in answers]


def _said_by(part: list[dict[str, Any]] | str | None, user: bool, is_prompt: bool) -> str:
    """Return what one side says in a part of a conversation; a prompt that is plain text is of the user."""
    if not isinstance(part, list):
        return part if part and user == is_prompt else ""
    return " ".join(
        _content(turn.get("content")) for turn in part if turn and (turn.get("role") != "assistant") == user
    )


def _joined(*texts: str) -> str:
    return " ".join(text for text in texts if text)


def _content(content: Any) -> str:
    if isinstance(content, list):  # typed parts
        return " ".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""
