"""The images of rows that are pushed: embedded as they are, or named and hashed where copies are forbidden."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image as Picture

from ..cards.places import file_name
from ..curation.columns import combined
from ..images import URL, identity


UNREADABLE = "unreadable_image"
HELD_BYTES = 64 << 20  # ours: of images held at once; an Arrow array of bytes ends at two gigabytes
_MOST_BYTES = 2**31 - 1


def pieces(table: pa.Table) -> Iterator[pa.Table]:
    """Yield `table` in ranges of rows whose images, files included, may be held at once, or of one row."""
    lists, flat, _ = _images(table)
    contents, paths = pc.struct_field(flat, "bytes"), pc.struct_field(flat, "path").to_pylist()
    sizes = [
        _file_size(path) if size is None else size
        for size, path in zip(pc.binary_length(contents).to_pylist(), paths, strict=True)
    ]
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[_bounds(lists)]
    start = 0
    while start < len(table):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + HELD_BYTES, side="right")) - 1)
        yield table.slice(start, stop - start)
        start = stop


def _file_size(path: str | None) -> int:
    try:
        return os.path.getsize(path) if path and not URL.match(path) else 0
    except OSError:
        return 0  # what is wrong with it is said where it is read


def embedded(table: pa.Table) -> pa.Array:
    """
    Return the images of `table` with all bytes in the rows; of paths only the last part is kept.

    What is read from a path must be an image: a row may name any file of this machine. Where a row says itself that
    an image could not be read, one that is only named is null.
    """
    lists, flat, owners = _images(table)
    contents, paths = pc.struct_field(flat, "bytes"), pc.struct_field(flat, "path").to_pylist()
    named = [i for i, there in enumerate(contents.is_valid().to_pylist()) if not there and paths[i] is not None]
    nulls = flat.is_null()
    if named:
        ids, given_up = table["id"].to_pylist(), _given_up(table)
        given, lost = contents.to_pylist(), nulls.to_pylist()
        for i in named:
            if given_up[owners[i]]:
                lost[i] = True
            else:
                given[i] = _read(paths[i], ids[owners[i]])
        contents, nulls = pa.array(given, contents.type), pa.array(lost)
    names = pa.array([file_name(path) for path in paths], pa.string())
    fields = [pa.field("bytes", contents.type), pa.field("path", pa.string())]
    return _as_lists(lists, pa.StructArray.from_arrays([contents, names], fields=fields, mask=nulls))


def _given_up(table: pa.Table) -> list[bool]:
    """Return which rows say that an image of theirs could not be read."""
    columns = [table[name].to_pylist() for name in ("error", "reason") if name in table.column_names]
    return [any(str(value).startswith(UNREADABLE) for value in row) for row in zip(*columns, strict=True)] or [
        False
    ] * len(table)


def _read(path: str, owner: str) -> bytes:
    if URL.match(path):
        raise ValueError(
            f"row {owner!r}: its image is the address {path}, which nothing fetches here; download the images first, "
            "or push with `images: reference`"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"row {owner!r}: its image {path} is not there")
    if os.path.getsize(path) > _MOST_BYTES:
        raise ValueError(f"row {owner!r}: {path} has more than {_MOST_BYTES:,} bytes, which no row can hold")
    if not is_image(path):
        raise ValueError(f"row {owner!r}: {path} is no image, so it is not put into the row")
    return Path(path).read_bytes()


def with_bytes(image: dict[str, Any], owner: str) -> dict[str, Any]:
    """Return an image with its bytes and the last part of its path; `owner` names its row, should it be no image."""
    content = image["bytes"] if image["bytes"] is not None else _read(image["path"], owner)
    return {"bytes": content, "path": file_name(image["path"])}


def is_image(path: str | None) -> bool:
    """Return whether `path` is a file here that begins as an image does."""
    if path is None or URL.match(path) or not os.path.isfile(path):
        return False
    try:
        Picture.open(path).close()  # reads the header alone
    except (OSError, Picture.DecompressionBombError):  # that it is no image, or may not be read
        return False
    return True


def references(table: pa.Table, template: str) -> tuple[pa.Array, pa.Array]:
    """
    Return what stands for the images of `table`, which are left out: texts made from `template`, and hashes.

    The hash is SHA-256 of the bytes of the image; it is null for one that is an address or not there. An image that
    is null has neither.
    """
    lists, flat, owners = _images(table)
    ids = table["id"].to_pylist()
    sources = table["source_id"].to_pylist() if "source_id" in table.column_names else ids
    starts = _bounds(lists)
    texts, hashes = [], []
    for place, (owner, image) in enumerate(zip(owners, images_of(flat), strict=True)):
        found = identity(image)
        if found is None:  # there is no image to stand for
            texts.append(None)
            hashes.append(None)
            continue
        path = image["path"]
        name = path if path is None or URL.match(path) else file_name(path)
        if name is None and "{path}" in template:
            raise ValueError(f"row {ids[owner]!r}: an image has no path; make `image_reference` from {{id}}")
        number = place - int(starts[owner])
        texts.append(template.format(id=ids[owner], source_id=sources[owner], path=name, number=number))
        hashes.append(found if re.fullmatch(r"[0-9a-f]{64}", found) else None)
    return tuple(_as_lists(lists, pa.array(values, pa.string())) for values in (texts, hashes))


def images_of(flat: pa.StructArray) -> Iterator[dict[str, Any] | None]:
    """Yield images as `{"bytes", "path"}`; the bytes are a view, not a copy."""
    contents, paths = pc.struct_field(flat, "bytes"), pc.struct_field(flat, "path")
    for there, content, path in zip(flat.is_valid().to_pylist(), contents, paths, strict=True):
        yield {"bytes": content.as_buffer() if content.is_valid else None, "path": path.as_py()} if there else None


def _images(table: pa.Table) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Return the lists of images, all images one after the other, and the number of the row that each is of."""
    lists = combined(table["images"])
    return lists, lists.flatten(), np.repeat(np.arange(len(lists)), np.diff(_bounds(lists)))


def _bounds(lists: pa.Array) -> np.ndarray:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths)])


def _as_lists(lists: pa.Array, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(_bounds(lists).astype(np.int32)), values, mask=lists.is_null())
