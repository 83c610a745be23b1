"""Records to annotate: a JSON or JSON Lines file beside its images, or a dataset; streamed, no image is decoded."""

import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from datasets import Dataset
from tqdm.auto import tqdm

from ..data.rows import image_columns
from ..generation.sources import load_images
from .turns import Unusable


_CHUNK = 1 << 20  # characters
_MOST = 64 << 20  # ours: characters of one record; far above any, and a damaged file is found before it fills memory
_BETWEEN = re.compile(r"[\s,]*")
_BATCH = 64  # rows of a dataset, whose images come with them


@dataclass(frozen=True)
class Record:
    """
    One record of the source.

    Args:
        id (`str`):
            Its name, unique within the source.
        fields (`dict[str, Any]`):
            What it holds, as the source has it.
        images (`list[dict]`):
            Its images as `{"bytes", "path"}`; `path` is not checked yet, see [`Records.stored`].
    """

    id: str
    fields: dict[str, Any]
    images: list[dict[str, Any]]


class Records:
    """
    The records of a source, in its order; they can be gone through several times.

    Args:
        dataset_name (`str`):
            A `.json` (one list of objects) or `.jsonl` file, or whatever [`~sicog_trl.generation.load_images`] reads.
        config, split (`str`, *optional*):
            Of a dataset; a file has none.
        image_root (`str`, *optional*):
            Folder that relative image paths start from; the folder of the file unless given.
        number_rows (`bool`, *optional*, defaults to `False`):
            Name the records by their number instead of by their `id`.
        max_rows (`int`, *optional*):
            Draw this many. A larger number draws the same ones and more.
        seed (`int`, *optional*, defaults to `0`):
            Of the draw, which depends on the ids alone and not on their order.

    Raises:
        `ValueError`: if an id is missing or occurs twice, or the file is damaged.
    """

    def __init__(
        self,
        dataset_name: str,
        config: str | None = None,
        split: str = "train",
        image_root: str | None = None,
        number_rows: bool = False,
        max_rows: int | None = None,
        seed: int = 0,
    ):
        path = Path(dataset_name).expanduser()
        self.name = dataset_name
        self.number_rows = number_rows
        self.file = path if path.suffix.lower() in (".json", ".jsonl") else None
        self.dataset = None if self.file else load_images(dataset_name, config, split)
        if self.file and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; name a .json or .jsonl file, a folder or a Hub id")
        self.image_root = Path(image_root).expanduser() if image_root else path.parent if self.file else None
        if self.image_root and not self.image_root.is_dir():
            raise FileNotFoundError(f"image_root {self.image_root} does not exist; name the folder of the images")
        ids = self._read_ids()
        self.total = len(ids)
        self._drawn = None
        if max_rows is not None and max_rows < len(ids):
            self._drawn = set(heapq.nsmallest(max_rows, ids, key=lambda row_id: (_draw(seed, row_id), row_id)))

    def __len__(self) -> int:
        return self.total if self._drawn is None else len(self._drawn)

    def __iter__(self) -> Iterator[Record]:
        for number, fields in enumerate(self._raw()):
            row_id = self._id(number, fields)
            if self._drawn is None or row_id in self._drawn:
                yield Record(row_id, fields, self._images(fields))

    def progress(self, what: str) -> Iterator[Record]:
        """Go through the records under a progress bar."""
        return iter(tqdm(self, desc=what, unit="row", delay=5))

    def _raw(self) -> Iterator[dict[str, Any]]:
        return read_json(self.file) if self.file else _rows(self.dataset)

    def _read_ids(self) -> set[str]:
        ids: set[str] = set()
        if self.dataset is not None and "id" in self.dataset.column_names:
            rows = _rows(self.dataset.select_columns(["id"]))
        else:
            rows = self._raw() if self.file else iter([{}] * len(self.dataset))
        for number, fields in enumerate(tqdm(rows, desc="ids", unit="row", delay=5)):
            row_id = self._id(number, fields)
            if row_id in ids:
                raise ValueError(
                    f"{self.name}, record {number}: the id {row_id!r} was used before; ids must be unique. Set "
                    "number_rows to name the records by their number"
                )
            ids.add(row_id)
        if not ids:
            raise ValueError(f"{self.name} has no records; there is nothing to annotate")
        return ids

    def _id(self, number: int, fields: dict[str, Any]) -> str:
        if self.number_rows:
            return str(number)
        row_id = fields.get("id")
        if isinstance(row_id, bool) or not isinstance(row_id, (str, int)) or row_id == "":
            raise ValueError(
                f"{self.name}, record {number}: the id is {row_id!r}; a text or a number is needed. Set "
                "number_rows to name the records by their number"
            )
        return str(row_id)

    def _images(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        names = image_columns(self.dataset.features) if self.dataset is not None else ("images", "image")
        found = []
        for value in (fields.get(name) for name in names):
            if value is None or value == "":
                continue
            for image in value if isinstance(value, list) else [value]:
                stored = {"bytes": None, "path": image} if isinstance(image, str) else image
                found.append(stored if isinstance(stored, dict) else {"path": stored})
        return found

    def stored(self, record: Record, embed: bool) -> list[dict[str, Any]]:
        """
        Return the images of a record as an artefact holds them, undecoded.

        Args:
            record ([`Record`]):
                One of these.
            embed (`bool`):
                Read the files, so that the artefact stands alone; otherwise their absolute paths are kept.

        Raises:
            [`Unusable`]: naming the file, if there is none, it is empty or cannot be read, or it lies outside of
            `image_root`; or what stands in the place of an image, if that is neither bytes nor a path.
        """
        stored = []
        for image in record.images:
            data, path = image.get("bytes"), image.get("path")
            if isinstance(data, bytes) and isinstance(path, str | None):
                stored.append({"bytes": data, "path": path})
            elif data is None and isinstance(path, str) and path:
                stored.append(self._of_file(path, embed))
            else:
                raise Unusable("unknown_image", f"{image!r:.80}")
        return stored

    def _of_file(self, name: str, embed: bool) -> dict[str, Any]:
        path = Path(name)
        if self.image_root:
            root = os.path.abspath(self.image_root)
            path = Path(os.path.abspath(os.path.join(root, name)))
            # The list of somebody else must not carry other files of this machine into a dataset that is published.
            if not path.is_relative_to(root):
                raise Unusable("outside_image_root", name)
        try:
            if not path.is_file():
                raise Unusable("missing_image", name)
            if not path.stat().st_size:
                raise Unusable("empty_image", name)
            if not embed:
                return {"bytes": None, "path": str(path.absolute())}
            return {"bytes": path.read_bytes(), "path": path.name}
        except OSError as error:  # such as a picture in base64 where a path is expected: that is too long a name
            raise Unusable("unreadable_image", f"{name:.80}: {error.strerror}") from error


def read_json(path: Path) -> Iterator[dict[str, Any]]:
    """
    Yield the objects of a JSON list or of JSON Lines one by one: a file of a gigabyte is never in memory as a whole.

    Raises:
        `ValueError`: naming the record, if it is no JSON object or the file ends within it.
    """
    decoder, number, text, at = json.JSONDecoder(), 0, "", 0
    with open(path, encoding="utf-8-sig") as file:
        listed = False
        while chunk := _read(file, path):
            text, at = text[at:] + chunk, 0
            if not listed and not number and (start := text.lstrip()).startswith("["):
                text, listed = start[1:], True
            while True:
                at = _BETWEEN.match(text, at).end()
                if at == len(text) or (listed and text[at] == "]"):
                    break
                try:
                    record, at = decoder.raw_decode(text, at)
                except RecursionError as error:
                    raise ValueError(f"{path}: record {number} is nested too deeply") from error
                except json.JSONDecodeError as error:
                    if len(text) - at > _MOST:
                        raise ValueError(f"{path}: record {number} is no JSON: {error.msg}") from error
                    break  # or it goes on in the next chunk
                if not isinstance(record, dict):
                    raise ValueError(f"{path}: record {number} is {record!r:.50}; a JSON object is needed")
                yield record
                number += 1
    left = text[at:].strip()
    if left != ("]" if listed else ""):
        raise ValueError(f"{path}: record {number} is no JSON, or the file is cut off there: {left[:80]!r}")


def _read(file: TextIO, path: Path) -> str:
    try:
        return file.read(_CHUNK)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 ({error}); convert it") from error


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for table in dataset.with_format("arrow").iter(_BATCH):  # images stay as they are stored
        yield from table.to_pylist()


def _draw(seed: int, row_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}|{row_id}".encode(errors="surrogatepass"), digest_size=8).digest()
