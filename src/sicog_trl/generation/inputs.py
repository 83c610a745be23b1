"""What `generate` reads: any dataset of images, brought to the images contract a few rows at a time, undecoded."""

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image, Json, LargeList, List
from tqdm.auto import tqdm

from ..data import IMAGES_FEATURES
from .images import identity


logger = logging.getLogger(__name__)

_BATCH_BYTES = 64 << 20  # ours: bounds what is held at once while planning, whatever the size of an image
_GATHERED_BYTES = 256 << 20
NO_ROWS = "the input has no rows; there is nothing to generate for"
_BATCH_ROWS = 4096
_HASHING_THREADS = 8  # ours: files on a network drive answer slowly, but many at once


class ImageRows:
    """
    The rows of a dataset in the columns of the images contract, made for a range of rows when they are asked for.

    The `id` is the column of that name, or WebDataset's `__key__`, or else the number of the row. The images are the
    column `images`, or else all columns of images in their order, of which empty ones are left out; a row that then
    has neither image nor question keeps one image that is null, so that it is reported like an unreadable one.
    `question` and `answer` may be missing. A WebDataset may hold `id`, `question` and `answer` in its `json` field.

    Args:
        dataset (`datasets.Dataset`):
            Rows from [`load_images`] or from anywhere else; it is not copied.

    Raises:
        `ValueError`: if there are no rows, or a column is missing or holds something else.
    """

    def __init__(self, dataset: Dataset):
        names, features = dataset.column_names, dataset.features
        self._images = ["images"] if "images" in names else image_columns(features)
        if not self._images and "question" not in names and "question" not in _json_keys(features):
            raise ValueError(
                f"the input has no column 'images'; it has {names}. Rename the column of the images to 'images' or "
                "'image', or give a 'question' if there are no images"
            )
        if not len(dataset):
            raise ValueError(NO_ROWS)
        self._features = features
        self._ids = [name for name in ("id", "__key__") if name in names][:1]
        if "id" not in names and "id" in _json_keys(features):
            self._ids.append("json")
        if not self._ids:
            logger.warning("the input has no column 'id'; the ids are the numbers of the rows")
        texts = [name for name in ("question", "answer", "json") if name in names and name not in self._ids]
        self._data = dataset.select_columns([*self._ids, *texts, *self._images]).with_format("arrow")
        self._contract(pa.RecordBatch.from_pylist([], schema=self._data[:1].schema), 0)  # refuses unfit types at once

    def __len__(self) -> int:
        return len(self._data)

    @property
    def source(self) -> str:
        """What the rows were loaded from: files with their times of change, not what is in them."""
        return self._data._fingerprint

    def table(self, rows: range) -> pa.Table:
        """Return a range of rows with the columns of `IMAGES_FEATURES`; images are as they are stored."""
        return self._convert(self._data[rows.start : rows.stop], rows.start)

    def digests(self, rows_per_shard: int) -> list[str]:
        """
        Return a hash of each shard: of its ids, texts and the content of its images, in a single pass.

        Raises:
            `ValueError`: if an id is null or occurs twice, which is found first, before any image is read.
        """
        self._refuse_duplicates()
        digests, digest = [], hashlib.sha256()
        with tqdm(total=len(self), desc="plan", unit="row", delay=5) as progress:
            for start, raw in self._batches(self._data):
                for number, entry in enumerate(_entries(self._convert(raw, start)), start):
                    if number and number % rows_per_shard == 0:
                        digests.append(digest.hexdigest()[:16])
                        digest = hashlib.sha256()
                    digest.update(entry)
                progress.update(len(raw))
        return [*digests, digest.hexdigest()[:16]]

    @staticmethod
    def digest_of(table: pa.Table) -> str:
        """Return the hash of the rows of one shard, as [`~ImageRows.digests`] does."""
        digest = hashlib.sha256()
        for entry in _entries(table):
            digest.update(entry)
        return digest.hexdigest()[:16]

    def _batches(self, data: Dataset) -> Iterator[tuple[int, pa.Table]]:
        """Yield row ranges of at most `_BATCH_BYTES`; a slice is no copy, so that trying one costs nothing."""
        start, size = 0, 256
        while start < len(data):
            raw = data[start : start + size]
            while raw.nbytes > _BATCH_BYTES and len(raw) > 1:
                size = max(1, len(raw) // 2)
                raw = data[start : start + size]
            yield start, raw
            start += len(raw)
            size = min(2 * size, _BATCH_ROWS)

    def _refuse_duplicates(self) -> None:
        if not self._ids:
            return
        hashes = np.empty(len(self), dtype=np.int64)
        data = self._data.select_columns(self._ids)
        for start, raw in self._batches(data):
            ids = self._row_ids(raw, start).to_pylist()
            hashes[start : start + len(ids)] = np.fromiter(map(hash, ids), np.int64, len(ids))
        for number in _again(hashes):
            row_id = self._row_id(data, number)
            # Equal hashes are a sign, equal ids the proof.
            if any(self._row_id(data, other) == row_id for other in np.flatnonzero(hashes[:number] == hashes[number])):
                raise ValueError(f"row {number}: the id {row_id!r} was used before; ids must be unique")

    def _row_id(self, data: Dataset, number: int) -> str:
        return self._row_ids(data[int(number) : int(number) + 1], number)[0].as_py()

    def _row_ids(self, raw: pa.Table | pa.RecordBatch, start: int) -> pa.Array | pa.ChunkedArray:
        if not self._ids:
            width = len(str(len(self) - 1))
            return pa.array([f"{number:0{width}d}" for number in range(start, start + len(raw))], pa.string())
        ids = _as_text(raw[self._ids[0]], self._ids[0], self._features)
        if "json" in self._ids:
            ids = pc.coalesce(_from_json(raw["json"], "id"), ids)
        if ids.null_count:
            row = start + pc.index(pc.is_null(ids), True).as_py()
            raise ValueError(f"row {row}: the id is null; give every row one, or leave the column out")
        return ids

    def _convert(self, raw: pa.Table, start: int) -> pa.Table:
        if raw.nbytes <= _BATCH_BYTES:
            raw = raw.combine_chunks()  # shuffled rows come one by one
        # Rows of several image columns are gathered, in pieces, since an Arrow array ends at two gigabytes.
        size = max(1, len(raw) * _GATHERED_BYTES // max(1, raw.nbytes)) if len(self._images) > 1 else None
        pieces = []
        for batch in raw.to_batches(max_chunksize=size):
            pieces.append(self._contract(batch, start))
            start += len(batch)
        return pa.Table.from_batches(pieces, schema=IMAGES_FEATURES.arrow_schema)

    def _contract(self, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        schema = IMAGES_FEATURES.arrow_schema
        texts = {name: pa.nulls(len(batch), pa.string()) for name in ("question", "answer")}
        for name in texts:
            if name in batch.schema.names:
                texts[name] = _as_text(batch[name], name, self._features)
            elif "json" in batch.schema.names:
                texts[name] = _from_json(batch["json"], name)
        lists = [_as_images(batch[name], name) for name in self._images]
        if self._images == ["images"]:
            (counts, values), valid = lists[0], batch["images"].is_valid().to_numpy(zero_copy_only=False)
        else:
            bare = pc.equal(pc.utf8_length(pc.coalesce(texts["question"], "")), 0).to_numpy(zero_copy_only=False)
            (counts, values), valid = _join(lists, bare), None
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        mask = None if valid is None or valid.all() else pa.array(~valid)
        images = pa.ListArray.from_arrays(offsets, values, type=schema.field("images").type, mask=mask)
        return pa.RecordBatch.from_arrays([self._row_ids(batch, start), images, *texts.values()], schema=schema)


def _again(hashes: np.ndarray) -> np.ndarray:
    """Return where a number stands that stood before, in order; memory is 16 bytes per number if there is none."""
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return np.empty(0, dtype=np.int64)
    order = np.argsort(hashes, kind="stable")
    return np.sort(order[1:][hashes[order[1:]] == hashes[order[:-1]]])


def image_columns(features: Features) -> list[str]:
    def is_image(feature: Any) -> bool:
        while isinstance(feature, (List, LargeList)):
            feature = feature.feature
        return isinstance(feature, Image)

    return [name for name, feature in features.items() if is_image(feature)] or [
        n for n in ("image",) if n in features
    ]


def _json_keys(features: Features) -> set[str]:
    """Return the keys that the `json` field of a WebDataset may have: known, or unknown until it is read."""
    feature = features.get("json")
    if isinstance(feature, dict):
        return set(feature)
    return {"id", "question", "answer"} if isinstance(feature, Json) else set()


def _from_json(array: pa.Array | pa.ChunkedArray, key: str) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_struct(array.type):
        if array.type.get_field_index(key) < 0:
            return pa.nulls(len(array), pa.string())
        return _as_text(pc.struct_field(array, key), f"json.{key}", Features())
    values = []
    for text in array.to_pylist():
        content = json.loads(text) if isinstance(text, str) else text
        value = content.get(key) if isinstance(content, dict) else None
        if isinstance(value, (list, dict)):
            raise ValueError(f"the key {key!r} of a json field holds {value!r:.100}; one text or number is needed")
        values.append(value if value is None or isinstance(value, str) else json.dumps(value))
    return pa.array(values, pa.string())


def _as_text(array: pa.Array | pa.ChunkedArray, name: str, features: Features) -> pa.Array | pa.ChunkedArray:
    if isinstance(label := features.get(name), ClassLabel):
        return pc.take(pa.array(label.names), pc.if_else(pc.less(array, 0), None, array))
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        raise ValueError(f"the column {name!r} holds {array.type}; one text or number per row is needed")
    return array.cast(pa.string())


def _as_images(array: pa.Array, name: str) -> tuple[np.ndarray, pa.StructArray]:
    """Return how many images each row has, and all of them one after the other."""
    if _is_list(array.type):
        counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        return counts, _as_structs(array.flatten(), name)
    images = _as_structs(array, name)
    return images.is_valid().to_numpy(zero_copy_only=False).astype(np.int64), images.drop_null()


def _as_structs(array: pa.Array, name: str) -> pa.StructArray:
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), Image.pa_type)
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not fields & {"bytes", "path"} and not any(fits(kind) for fits in plain):
        raise ValueError(f"the column {name!r} holds {kind}; images are needed: bytes, a path, or a struct of both")
    return Image().cast_storage(array)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _join(lists: list[tuple[np.ndarray, pa.StructArray]], bare: np.ndarray) -> tuple[np.ndarray, pa.StructArray]:
    """Put the images of several columns in the order of the rows; a bare row that has none gets one that is null."""
    counts = sum((counts for counts, _ in lists), np.zeros(len(bare), np.int64))
    lonely = np.flatnonzero((counts == 0) & bare)
    if len(lists) == 1 and not len(lonely):
        return lists[0]
    values = pa.concat_arrays([*(values for _, values in lists), pa.nulls(len(lonely), Image.pa_type)])
    owners = [np.repeat(np.arange(len(bare)), counts) for counts, _ in lists]
    order = np.argsort(np.concatenate([*owners, lonely]), kind="stable")
    counts[lonely] = 1
    return counts, values.take(pa.array(order))


def _entries(table: pa.Table) -> Iterator[bytes]:
    """Yield, for each row of the images contract, what tells it from others."""
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        for batch in table.to_batches():
            images = batch["images"]
            # A view of the bytes, not a copy of them.
            stored = [
                {"bytes": image["bytes"].as_buffer(), "path": image["path"].as_py()} if image.is_valid else None
                for image in images.flatten()
            ]
            on_disk = any(image and image["bytes"] is None for image in stored)
            found = iter(pool.map(identity, stored) if on_disk else map(identity, stored))
            texts = (batch[name].to_pylist() for name in ("id", "question", "answer"))
            counts = pc.list_value_length(images).to_pylist()
            for *row, count in zip(*texts, counts, strict=True):
                identities = None if count is None else [next(found) for _ in range(count)]
                yield repr((row, identities)).encode()
