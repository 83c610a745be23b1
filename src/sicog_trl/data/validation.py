"""Whether a dataset keeps the column contract: every row is looked at, and the first that do not are named."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..images import URL, UnreadableImageError, image_size, open_image
from .columns import FEATURES, column_fault, faults_together
from .ids import repeated_rows
from .messages import candidate_faults, conversation_faults, kind_of
from .rows import TEXTS, batches, image_column, label_of, short, texts_of


NAMED = 10  # offending rows that are named
MAX_CHARACTERS = 1_000_000  # ours: of one text; a thousand pages are no caption and no answer
# Of the models that the recipes are for, and of others; a processor knows its own, see `checkpoints.placeholders`.
PLACEHOLDERS = (
    "<image>",
    "<video>",
    "<|image|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<image_soft_token>",
    "<start_of_image>",
    "<fake_token_around_image>",
    "[IMG]",
    "<IMG_CONTEXT>",
)
_THREADS = 4  # ours: each holds a decoded image


@dataclass
class Validation:
    """
    What was found.

    Args:
        num_rows, num_images (`int`):
            How many there are.
        columns (`list[str]`, *optional*):
            What is wrong with the columns as a whole.
        unfit (`set[str]`, *optional*):
            Those of another type than the contract has, which were not read.
        faults (`Counter`, *optional*):
            Rows with a fault, by its kind; a row may have several.
        bad_rows (`int`, *optional*, defaults to `0`):
            Rows with any.
        named (`dict[int, list[str]]`, *optional*):
            Number of a row -> its name and what is wrong with it, for the first ten.
        sizes (`Counter`, *optional*):
            Pixels of the images, `(width, height)`; 1,000 sizes at most.
        characters (`dict[str, tuple[int, int, int]]`, *optional*):
            Column -> rows, characters in total, characters of the longest.
    """

    num_rows: int
    num_images: int = 0
    columns: list[str] = field(default_factory=list)
    unfit: set[str] = field(default_factory=set)
    faults: Counter = field(default_factory=Counter)
    bad_rows: int = 0
    named: dict[int, list[str]] = field(default_factory=dict)
    sizes: Counter = field(default_factory=Counter)
    characters: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether the dataset keeps the contract."""
        return not self.columns and not self.bad_rows

    def lines(self) -> list[str]:
        """Return what is wrong, for a person: the columns, then how many rows for which reason, then the rows."""
        lines = list(self.columns)
        if self.bad_rows:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.faults.most_common())
            lines.append(f"{self.bad_rows:,} of {self.num_rows:,} rows cannot be used ({kinds}):")
            lines += [f"{name}: {'; '.join(faults)}" for name, *faults in self.named.values()]
            if self.bad_rows > len(self.named):
                lines.append(f"... and {self.bad_rows - len(self.named):,} more")
        return lines

    def refuse(self, name: str) -> None:
        """Raise a `ValueError` that names the first rows, unless the dataset keeps the contract."""
        if not self:
            raise ValueError("\n".join([f"{name} cannot be used as it is", *self.lines()]))


def validate(
    dataset: Dataset,
    placeholders: Sequence[str] = PLACEHOLDERS,
    unique_ids: bool = True,
    columns: bool = True,
    decode_images: bool = False,
) -> Validation:
    """
    Look at every row, in one pass and with the memory of one batch, and 16 bytes per row for the ids.

    Args:
        dataset (`datasets.Dataset`):
            Any artefact of the line, or rows with some of their columns; others are not looked at.
        placeholders (`Sequence[str]`, *optional*):
            What no text may hold, since one is placed for each image of the row.
        unique_ids (`bool`, *optional*, defaults to `True`):
            Whether each row has an id of its own; in a mixture that repeats a source they have not.
        columns (`bool`, *optional*, defaults to `True`):
            Whether columns of the contract must have its types.
        decode_images (`bool`, *optional*, defaults to `False`):
            Whether each image is decoded, which costs as much as training does for it. Without that each is opened,
            which tells whether it is there, an image, and not too large, but not whether it is whole.
    """
    found = Validation(len(dataset))
    names = [name for name in dataset.column_names if name in ("id", "image", *FEATURES, *TEXTS)]
    unfit = {name: text for name in names if (text := column_fault(name, dataset.features[name]))}
    found.unfit = set(unfit)
    if columns:
        found.columns += [*unfit.values(), *faults_together(dataset, names)]
    names = [name for name in names if name not in unfit or name == "id"]
    unique_ids = unique_ids and "id" in names and "id" not in unfit
    data = dataset.select_columns(names).with_format("arrow")
    repeated = _repeated(data) if unique_ids else {}
    checker = _Checker(dataset, names, placeholders, unique_ids, found)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start, raw in batches(data):
            looks = checker.images(raw, pool, decode_images)
            texts = raw.drop_columns([name for name in ("images", "image") if name in names]) if looks else raw
            for number, row in enumerate(texts.to_pylist(), start):
                faults = list(checker.row(row, looks[number - start] if looks else None))
                if number in repeated:
                    faults.append(("repeated id", f"the id stands in row {repeated[number]} too"))
                _note(found, number, row, faults)
    return found


def _note(found: Validation, number: int, row: dict[str, Any], faults: list[tuple[str, str]]) -> None:
    if not faults:
        return
    found.bad_rows += 1
    found.faults.update({kind for kind, _ in faults})
    if len(found.named) < NAMED:
        found.named[number] = [label_of(number, row), *dict.fromkeys(text for _, text in faults)]


def _repeated(data: Dataset) -> dict[int, int]:
    """Return the rows whose id stood before, with the row where it stood first."""
    ids = data.select_columns("id")
    rows = repeated_rows(lambda: ([each for each in raw["id"].to_pylist() if each] for _, raw in batches(ids)))
    if not rows:
        return {}
    # Rows without an id were left out of the numbers, and are faults of their own.
    filled = [n for start, raw in batches(ids) for n, each in enumerate(raw["id"].to_pylist(), start) if each]
    return {filled[again]: filled[first] for first, *more in rows.values() for again in more}


class _Checker:
    """What is checked of each row of a dataset with these columns."""

    def __init__(self, dataset: Dataset, names: list[str], placeholders: Sequence[str], ids: bool, found: Validation):
        self.placeholders, self.ids, self.found = tuple(placeholders), ids, found
        self.image_column = image_column(dataset.select_columns(names))
        self.messages = [name for name in TEXTS if name in names and kind_of(dataset.features[name])]
        self.asks = {"question", "images"} <= set(names) and "candidates" not in names

    def images(self, raw: pa.Table, pool: ThreadPoolExecutor, decode: bool) -> list[list[str | None] | None]:
        """Return for each row what is wrong with each of its images; nothing if there is no column of them."""
        if self.image_column is None:
            return []
        column = raw[self.image_column]
        looks: list[list[str | None] | None] = []
        for chunk in column.chunks:
            if pa.types.is_struct(chunk.type):  # one image, or none if it is null
                flat, counts = chunk.drop_null(), chunk.is_valid().cast(pa.int8()).to_pylist()
            else:
                flat, counts = chunk.flatten(), pc.list_value_length(chunk).to_pylist()
            faults = iter(self._look(flat, pool, decode))
            looks += [None if count is None else [next(faults) for _ in range(count)] for count in counts]
            self.found.num_images += len(flat)
        return looks

    def _look(self, flat: pa.StructArray, pool: ThreadPoolExecutor, decode: bool) -> list[str | None]:
        sizes = pc.binary_length(pc.struct_field(flat, "bytes")).to_pylist()
        paths = pc.struct_field(flat, "path").to_pylist()
        faults = [_stored_fault(size, path) for size, path in zip(sizes, paths, strict=True)]
        places = [number for number, fault in enumerate(faults) if fault is None]
        # A view of the bytes, not a copy of them.
        stored = (
            {"bytes": None if sizes[n] is None else flat[n]["bytes"].as_buffer(), "path": paths[n]} for n in places
        )
        for number, seen in zip(places, pool.map(partial(_size, decode=decode), stored), strict=True):
            if isinstance(seen, str):
                faults[number] = seen
            elif seen in self.found.sizes or len(self.found.sizes) < 1000:
                self.found.sizes[seen] += 1
        return faults

    def row(self, row: dict[str, Any], looks: list[str | None] | None) -> Iterator[tuple[str, str]]:
        """Yield the kind of each fault and what it is."""
        if self.ids and not row["id"]:
            yield "no id", "it has no id"
        known = row.get("error") or row.get("reason")  # generate and curate say themselves what they could not use
        for number, fault in enumerate(looks or []):
            if fault and not known:
                place = f"image {number + 1} of {len(looks)}" if len(looks) > 1 else "its image"
                yield "image", f"{place} cannot be read: {fault}"
        if self.asks and not looks and not (row["question"] or "").strip():
            yield "empty", "it has neither an image nor a question"
        if "candidates" in row:
            yield from candidate_faults(row, MAX_CHARACTERS)
        columns = {name: row[name] for name in self.messages}
        yield from conversation_faults(columns, self.placeholders, len(looks or []), MAX_CHARACTERS)
        for name, value in row.items():
            self._measure(name, value)
            if isinstance(value, str) and len(value) > MAX_CHARACTERS:
                yield "too long", f"the column {name} holds {len(value):,} characters; {MAX_CHARACTERS:,} are allowed"

    def _measure(self, name: str, value: Any) -> None:
        if name in self.messages and value:
            length = sum(map(len, texts_of(value)))
        elif isinstance(value, str) and name in ("question", "answer"):
            length = len(value)
        else:
            return
        rows, total, longest = self.found.characters.get(name, (0, 0, 0))
        self.found.characters[name] = (rows + 1, total + length, max(longest, length))


def _stored_fault(size: int | None, path: str | None) -> str | None:
    if size is None and path is None:
        return "ValueError: one of its images is null"
    if size is None and URL.match(path):
        return f"{short(path)} is a web address, and nothing is fetched; store the bytes of the image"
    return "the file is empty" if size == 0 else None


def _size(image: dict[str, Any], decode: bool) -> str | tuple[int, int]:
    """Return the size of an image, or why it is none."""
    try:
        return open_image(image)[0].size if decode else image_size(image)
    except UnreadableImageError as error:
        return str(error)
