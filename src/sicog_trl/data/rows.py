"""Rows of any dataset, read a few at a time, and how to name one to a person."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, LargeList, List


TEXTS = ("messages", "prompt", "completion", "chosen", "rejected")
_BATCH_BYTES = 64 << 20  # ours: bounds what is held at once, whatever the size of an image
_BATCH_ROWS = 4096


def batches(
    data: Dataset, max_bytes: int = _BATCH_BYTES, max_rows: int = _BATCH_ROWS
) -> Iterator[tuple[int, pa.Table]]:
    """
    Yield the rows of `data`, each range with the number of its first row.

    Args:
        data (`datasets.Dataset`):
            In the format `"arrow"`; of it a slice is no copy, so that trying one costs nothing.
        max_bytes, max_rows (`int`, *optional*):
            No range is larger, unless a single row is.
    """
    start, size = 0, min(256, max_rows)
    while start < len(data):
        raw = data[start : start + size]
        while raw.nbytes > max_bytes and len(raw) > 1:
            size = max(1, len(raw) // 2)
            raw = data[start : start + size]
        yield start, raw
        start += len(raw)
        size = min(2 * size, max_rows)


def image_column(dataset: Dataset) -> str | None:
    """Return the column of the images: `images`, or `image` if each row has one; `None` if there is none."""
    for name in ("images", "image"):
        feature = dataset.features.get(name)
        if isinstance(feature.feature if isinstance(feature, (List, LargeList)) else feature, Image):
            return name
    return None


def image_columns(features: Features) -> list[str]:
    """Return the columns of images of any dataset, whatever their names; `image` may be one of bare bytes or paths."""

    def is_image(feature: Any) -> bool:
        while isinstance(feature, (List, LargeList)):
            feature = feature.feature
        return isinstance(feature, Image)

    return [name for name, kind in features.items() if is_image(kind)] or [
        name for name in features if name == "image"
    ]


def paths_of(images: pa.Array) -> list[str]:
    """Return the paths of images, or lists of them, that are not stored as bytes."""
    while pa.types.is_nested(images.type) and not pa.types.is_struct(images.type):
        images = images.flatten()
    if pa.types.is_struct(images.type):
        fields = {field.name for field in images.type}
        if "bytes" in fields:
            images = images.filter(pc.is_null(pc.struct_field(images, "bytes")))
        images = pc.struct_field(images, "path") if "path" in fields else pa.nulls(0)
    return [path for path in images.to_pylist() if isinstance(path, str)]


def texts_of(messages: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the texts of messages, whose content is one text or, as TRL allows too, a list of texts and images."""
    for message in filter(None, messages):
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text") for part in content or [] if part]
        yield from filter(None, parts)


def label_of(number: int, row: dict[str, Any]) -> str:
    """Return how to find a row again: its number, and its id or else the beginning of its texts."""
    if "id" in row:
        return f"row {number} (id {short(row['id'])})"
    columns = [row[name] for name in TEXTS if row.get(name)]
    texts = ((value[-1] or {}).get("content") if isinstance(value, list) else value for value in columns)
    return f"row {number} ({', '.join(short(str(text), 40) for text in texts)})"


def plain(text: str) -> str:
    """Return `text` without what would move the cursor of a terminal or change its colours: that shows as its code."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def short(text: Any, length: int = 80) -> str:
    """Return the beginning of `text` in quotes; what would move a cursor or change a colour shows as its code."""
    return repr(text[:length] if isinstance(text, str) else text)
