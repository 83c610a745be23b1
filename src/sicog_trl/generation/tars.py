"""WebDataset tars as rows: only the members that are used are read, and nothing is unpacked to disk.

The builder of `datasets` would take a file of this machine that has the name of a member for that member, and would
unpack and decode members that nobody asked for.
"""

import json
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Json, Value
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder


logger = logging.getLogger(__name__)

MAX_BYTES = 256 << 20  # ours: of one member; an image of as many pixels as are decoded is smaller, but as a bitmap
_ROWS_AT_ONCE = 100  # ours: written together, with the bytes of their images
# What `Image` stores. Given as an image, `datasets` would look for the name of a member among the files here.
_STORED = {"bytes": Value("binary"), "path": Value("string")}


def load_tars(files: list[Path]) -> Dataset:
    """
    Load WebDataset tars.

    Args:
        files (`list[Path]`):
            The tars, in order.

    Returns:
        `datasets.Dataset`: `__key__`, a column of images per field that holds some, and `json`.
    """
    images, texts = _fields(files)
    features = Features({"__key__": Value("string"), **dict.fromkeys(images, _STORED), **dict.fromkeys(texts, Json())})
    stats = [(os.path.abspath(file), os.stat(file)) for file in files]
    # When they were changed, so that what was read of older files is not taken for theirs.
    changed = tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    what = {"files": changed, "images": tuple(images), "texts": tuple(texts)}
    try:
        dataset = Dataset.from_generator(_rows, features, gen_kwargs=what, writer_batch_size=_ROWS_AT_ONCE)
    except DatasetGenerationError as error:
        raise ValueError(f"{error.__cause__ or error}") from error
    for field in images:
        dataset = dataset.cast_column(field, Image())
    return dataset


def _fields(files: list[Path]) -> tuple[list[str], list[str]]:
    """Return the fields that hold images and those that hold texts, of all samples."""
    fields = dict.fromkeys(field for file in files for _, _, field in _members(file))
    # `10.jpg` follows `9.jpg`; what has no number stays in the order of the archive.
    ordered = sorted(fields, key=lambda field: int(field.split(".")[0]) if field.split(".")[0].isdecimal() else -1)
    images = [field for field in ordered if "." + field.split(".")[-1].lower() in ImageFolder.EXTENSIONS]
    texts = [field for field in ordered if field == "json"]
    if not images and not texts:
        raise ValueError(f"{files[0]} holds no samples with an image or a json; its fields: {', '.join(fields)}")
    if ignored := [field for field in fields if field not in images + texts]:
        logger.warning("%s: the fields %s are not used", files[0].parent, ", ".join(ignored))
    return images, texts


def _members(file: str | Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Yield the members of a tar that belong to a sample, and their field: all that follows the first dot."""
    try:
        with tarfile.open(file) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep all of them
                stem, _, field = os.path.basename(member.name).partition(".")
                # Links and devices are no files; what they point to is not read.
                if member.isreg() and stem and field and not stem.startswith("__"):
                    yield tar, member, field
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{file} is damaged or no tar file: {error}; make it again") from error


def _rows(files: tuple, images: tuple[str, ...], texts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the samples of the tars: the members one after the other that have the same name up to the first dot."""
    for file, *_ in files:
        row: dict[str, Any] = {}
        for tar, member, field in _members(file):
            key = member.name[: -len(field) - 1]
            if row and row["__key__"] != key:
                yield row
                row = {}
            row = row or {"__key__": key, **dict.fromkeys((*images, *texts))}
            if field not in row:
                continue
            if row[field] is not None:
                raise ValueError(f"cannot read {file} as webdataset: Duplicate field {field!r} for sample {key!r}")
            if member.size > MAX_BYTES:  # a few bytes of a compressed or sparse archive may become any number
                raise ValueError(f"{file}: {member.name} has {member.size:,} bytes, more than {MAX_BYTES:,}")
            content = tar.extractfile(member).read()
            row[field] = {"bytes": content, "path": member.name} if field in images else _parsed(content, file, member)
        if row:
            yield row


def _parsed(content: bytes, file: str, member: tarfile.TarInfo) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {member.name} is no JSON: {error}") from error
