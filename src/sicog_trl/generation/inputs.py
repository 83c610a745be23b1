"""What `generate` reads: any dataset of images, brought to the images contract a few rows at a time, undecoded."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from tqdm.auto import tqdm

from ..data import IMAGES_FEATURES, batches, repeated_rows
from ..data.rows import image_columns
from ..images import identity
from .columns import as_images, as_text, from_json, is_question, join, json_keys


logger = logging.getLogger(__name__)

_BATCH_BYTES = 64 << 20  # ours: bounds what is held at once while planning, whatever the size of an image
_GATHERED_BYTES = 256 << 20
NO_ROWS = "the input has no rows; there is nothing to generate for"
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
        task (`str`, *optional*):
            Take only rows without a question (`"description"`) or with one (`"reasoning"`), which is said. They keep
            the ids that they have among all of them.

    Attributes:
        left_out (`int`):
            Rows of the other task.

    Raises:
        `ValueError`: if there are no rows, or a column is missing or holds something else.
    """

    def __init__(self, dataset: Dataset, task: str | None = None):
        names, features = dataset.column_names, dataset.features
        self._images = ["images"] if "images" in names else image_columns(features)
        if not self._images and "question" not in names and "question" not in json_keys(features):
            raise ValueError(
                f"the input has no column 'images'; it has {names}. Rename the column of the images to 'images' or "
                "'image', or give a 'question' if there are no images"
            )
        if not len(dataset):
            raise ValueError(NO_ROWS)
        self._features = features
        self._ids = [name for name in ("id", "__key__") if name in names][:1]
        if "id" not in names and "id" in json_keys(features):
            self._ids.append("json")
        if not self._ids:
            logger.warning("the input has no column 'id'; the ids are the numbers of the rows")
        texts = [name for name in ("question", "answer", "json") if name in names and name not in self._ids]
        self._data = dataset.select_columns([*self._ids, *texts, *self._images]).with_format("arrow")
        self.task, self.left_out, self._total = task, 0, len(dataset)
        self._numbers: np.ndarray | None = None  # of the rows in the dataset, if some are left out
        self._contract(pa.RecordBatch.from_pylist([], schema=self._data[:1].schema), 0)  # refuses unfit types at once
        if task:
            self._take(task)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def source(self) -> str:
        """What the rows were loaded from: files with their times of change, not what is in them."""
        return self._data._fingerprint

    def _take(self, task: str) -> None:
        """Leave out the rows of the other task; only questions are read."""
        kept, asking = [], task == "reasoning"
        names = [name for name in ("question", "json") if name in self._data.column_names]
        for start, raw in batches(self._data.select_columns(names or self._data.column_names), _BATCH_BYTES):
            questions = self._text(raw, "question").to_pylist()
            kept += [number for number, text in enumerate(questions, start) if is_question(text) == asking]
        logger.info("%s of %s rows are of the task %s", f"{len(kept):,}", f"{self._total:,}", task)
        if not kept:
            has = "a question that is not empty" if asking else "no question"
            raise ValueError(f"none of the {self._total:,} rows is of the task {task!r}; such rows have {has}")
        self.left_out = self._total - len(kept)
        if self.left_out:
            self._numbers = np.array(kept)
            self._data = self._data.select(self._numbers)

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
            for start, raw in batches(self._data, _BATCH_BYTES):
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

    def _refuse_duplicates(self) -> None:
        if not self._ids:
            return
        data = self._data.select_columns(self._ids)
        repeated = repeated_rows(
            lambda: (self._row_ids(raw, start).to_pylist() for start, raw in batches(data, _BATCH_BYTES))
        )
        for row_id, (_, second, *_) in repeated.items():
            number = self._numbers_of(second, 1)[0]
            raise ValueError(f"row {number}: the id {row_id!r} was used before; ids must be unique")

    def _row_ids(self, raw: pa.Table | pa.RecordBatch, start: int) -> pa.Array | pa.ChunkedArray:
        if not self._ids:
            width = len(str(self._total - 1))
            return pa.array([f"{number:0{width}d}" for number in self._numbers_of(start, len(raw))], pa.string())
        ids = as_text(raw[self._ids[0]], self._ids[0], self._features)
        if "json" in self._ids:
            ids = pc.coalesce(from_json(raw["json"], "id"), ids)
        if ids.null_count:
            row = self._numbers_of(start + pc.index(pc.is_null(ids), True).as_py(), 1)[0]
            raise ValueError(f"row {row}: the id is null; give every row one, or leave the column out")
        return ids

    def _numbers_of(self, start: int, count: int) -> Sequence[int]:
        """Return the numbers that rows have in the dataset."""
        rows = range(start, start + count)
        return rows if self._numbers is None else self._numbers[rows.start : rows.stop]

    def _text(self, columns: pa.Table | pa.RecordBatch, name: str) -> pa.Array | pa.ChunkedArray:
        if name in columns.schema.names:
            return as_text(columns[name], name, self._features)
        if "json" in columns.schema.names:
            return from_json(columns["json"], name)
        return pa.nulls(len(columns), pa.string())

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
        texts = {name: self._text(batch, name) for name in ("question", "answer")}
        lists = [as_images(batch[name], name) for name in self._images]
        if self._images == ["images"]:
            (counts, values), valid = lists[0], batch["images"].is_valid().to_numpy(zero_copy_only=False)
        else:
            bare = pc.equal(pc.utf8_length(pc.coalesce(texts["question"], "")), 0).to_numpy(zero_copy_only=False)
            (counts, values), valid = join(lists, bare), None
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        mask = None if valid is None or valid.all() else pa.array(~valid)
        images = pa.ListArray.from_arrays(offsets, values, type=schema.field("images").type, mask=mask)
        return pa.RecordBatch.from_arrays([self._row_ids(batch, start), images, *texts.values()], schema=schema)


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
