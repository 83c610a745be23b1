"""What `generate` reads: any source of images, brought to the images contract a few rows at a time, undecoded."""

import glob
import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Json, LargeList, List, Value, load_dataset
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from tqdm.auto import tqdm

from ..data import IMAGES_FEATURES, load
from ..files import is_local
from .images import identity


logger = logging.getLogger(__name__)

_SUFFIXES = dict.fromkeys(ImageFolder.EXTENSIONS, "image") | {".parquet": "Parquet", ".tar": "tar"}
_SPLITS = frozenset("train training validation valid val dev test testing eval evaluation".split())
_BATCH_BYTES = 64 << 20  # ours: bounds what is held at once while planning, whatever the size of an image
_GATHERED_BYTES = 256 << 20
_NO_ROWS = "the input has no rows; there is nothing to generate for"
_BATCH_ROWS = 4096
_HASHING_THREADS = 8  # ours: files on a network drive answer slowly, but many at once


def load_images(name: str, config: str | None = None, split: str = "train", revision: str | None = None) -> Dataset:
    """
    Load images from wherever they are; nothing is decoded, and files of an image folder are not copied.

    Args:
        name (`str`):
            An artefact folder or a Hub id, as [`~sicog_trl.data.load`] takes them; a Parquet file or a folder of them;
            a WebDataset `.tar` or a folder of them; or a folder of image files, at any depth, which may hold
            `metadata.csv`, `metadata.jsonl` or `metadata.parquet` with `file_name` (or `file_names`, several images
            per row) and `id`, `question`, `answer`. Hidden files and links to folders are not followed.
        config (`str`, *optional*):
            Configuration of a Hub dataset, or sub-folder of a local one.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split. Parquet and tar files belong to the split that their name begins with.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub dataset.

    Returns:
        `datasets.Dataset`: rows that [`ImageRows`] reads.
    """
    path = Path(name).expanduser()
    kind = _SUFFIXES.get(path.suffix.lower())
    if path.is_file():
        if kind not in ("Parquet", "tar"):
            raise ValueError(
                f"{path} is neither a Parquet file nor a WebDataset .tar; name one, or a folder of images"
            )
        if config:
            raise ValueError(f"{path} is a file and has no configuration {config!r}; leave it out")
        return _load_files(kind, [path] if split == "train" else _of_split([path], split, str(path)))
    if not is_local(name) and kind is None:
        return load(name, config, split, revision)
    folder = path / config if config else path
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; name a folder, a Parquet file, a .tar or a Hub id")
    if any((folder / "data").glob(f"*-{'[0-9]' * 5}-of-{'[0-9]' * 5}.parquet")):
        return load(str(path), config, split)
    kind, found = _survey(folder)
    if kind == "image":
        return _load_folder(folder, found, split)
    if nested := [file for file in found[kind] if "/" in file]:
        raise ValueError(
            f"{folder}: {len(nested)} {kind} files lie in sub-folders, the first is {nested[0]}; name one sub-folder"
        )
    return _load_files(kind, _of_split([folder / file for file in found[kind]], split, str(folder)))


def _survey(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """Return the one kind of input that a folder holds, and its files by kind; what is ignored is said."""
    found: dict[str, list[str]] = {"image": [], "Parquet": [], "tar": [], "metadata": [], "other": []}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for file in sorted(name for name in files if not name.startswith(".")) + links:
            kind = "other" if file in links else _SUFFIXES.get(os.path.splitext(file)[1].lower(), "other")
            if file in ImageFolder.METADATA_FILENAMES:
                kind = "metadata"
            found[kind].append(os.path.relpath(os.path.join(parent, file), folder))
    kinds = [kind for kind in ("image", "Parquet", "tar") if found[kind]]
    if not kinds:
        first = next((f", only files such as {files[0]}" for files in found.values() if files), "; it is empty")
        raise ValueError(f"{folder} holds no images, Parquet files or WebDataset tars{first}")
    if len(kinds) > 1:
        parts = ", ".join(f"{len(found[kind])} {kind} files (the first is {found[kind][0]})" for kind in kinds)
        raise ValueError(f"{folder} holds a mix: {parts}; name a file, or a folder with one kind of them")
    if found["other"]:
        logger.warning(
            "%s: %d files are no %s files and are ignored; the first is %s",
            *(folder, len(found["other"]), kinds[0], found["other"][0]),
        )
    return kinds[0], found


def _of_split(files: list[Path], split: str, where: str) -> list[Path]:
    """Return the files of a split, which their names begin with; without such names there is only `train`."""
    split_of = {file: re.split(r"[-_.]", file.name.lower())[0] for file in files}
    splits = {name for name in split_of.values() if name in (*_SPLITS, split)}
    chosen = [file for file in files if split_of[file] == split] if splits else files
    if not chosen or (not splits and split != "train"):
        raise FileNotFoundError(f"{where} has no split {split!r}; it has: {', '.join(sorted(splits)) or 'train'}")
    if left := [file.name for file in files if splits and split_of[file] != split]:
        logger.warning("%s: %d files are not of the split %r and left out: %s", where, len(left), split, left[0])
    return chosen


def _load_files(kind: str, files: list[Path]) -> Dataset:
    # WebDataset's builder guesses the fields from five samples and loses, in silence, what only later samples have.
    builder, features = ("parquet", None) if kind == "Parquet" else ("webdataset", _tar_features(files))
    try:
        # Parquet's builder fails at a file without rows.
        filled = [file for file in files if kind == "tar" or pq.read_metadata(file).num_rows]
        if not filled:
            raise ValueError(_NO_ROWS)
        data_files = {"train": [glob.escape(os.path.abspath(file)) for file in filled]}
        return load_dataset(builder, data_files=data_files, features=features, split="train")
    except Exception as error:
        if kind == "tar":
            _find_damaged_json(files)
        where = files[0] if len(files) == 1 else f"{len(files)} files, the first is {files[0]},"
        raise ValueError(f"cannot read {where} as {builder}: {error.__cause__ or error}") from error


def _tar_samples(file: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Yield the members of a tar that belong to a sample, and their field: all that follows the first dot."""
    try:
        with tarfile.open(file) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep all of them
                stem, _, field = os.path.basename(member.name).partition(".")
                if member.isfile() and stem and field and not stem.startswith("__"):
                    yield tar, member, field
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{file} is damaged or no tar file: {error}; make it again") from error


def _tar_features(files: list[Path]) -> Features:
    fields = dict.fromkeys(field for file in files for _, _, field in _tar_samples(file))
    # `10.jpg` follows `9.jpg`; what has no number stays in the order of the archive.
    ordered = sorted(fields, key=lambda field: int(field.split(".")[0]) if field.split(".")[0].isdecimal() else -1)
    images = [field for field in ordered if _SUFFIXES.get("." + field.split(".")[-1].lower()) == "image"]
    texts = [field for field in ordered if field == "json"]
    if not images and not texts:
        raise ValueError(f"{files[0]} holds no samples with an image or a json; its fields: {', '.join(fields)}")
    if ignored := [field for field in fields if field not in images + texts]:
        logger.warning("%s: the fields %s are not used", files[0].parent, ", ".join(ignored))
    kinds = {field: Image() for field in images} | {field: Json() for field in texts}
    return Features({"__key__": Value("string"), **kinds})


def _find_damaged_json(files: list[Path]) -> None:
    for file in files:
        for tar, member, field in _tar_samples(file):
            try:
                if field.split(".")[-1].lower() == "json":
                    json.loads(tar.extractfile(member).read())
            except ValueError as error:
                raise ValueError(f"{file}: {member.name} is no JSON: {error}") from error


def _load_folder(folder: Path, found: dict[str, list[str]], split: str) -> Dataset:
    tops = {image.split("/")[0] if "/" in image else "" for image in found["image"]}
    if split != "train":
        raise FileNotFoundError(f"{folder} is a folder of images and has no split {split!r}; name a sub-folder")
    if len(tops) > 1 and tops & _SPLITS and not set(ImageFolder.METADATA_FILENAMES) & set(found["metadata"]):
        raise ValueError(
            f"{folder} has sub-folders for splits ({', '.join(sorted(tops & _SPLITS))}); name the one to use"
        )
    # Patterns, not a list: each name of a list would be looked up on its own. And no data_dir: the builder would then
    # take a file such as `test_1.jpg` for a split and leave the others out.
    root = folder.resolve()
    endings = sorted({os.path.splitext(image)[1] for image in found["image"]})
    names = sorted({os.path.basename(file) for file in found["metadata"]})
    patterns = [f"{glob.escape(str(root))}/**/{name}" for name in [*(f"*{ending}" for ending in endings), *names]]
    try:
        dataset = load_dataset("imagefolder", data_files={"train": patterns}, split="train", drop_labels=True)
    except Exception as error:
        first = found["metadata"][0] if found["metadata"] else found["image"][0]
        raise ValueError(
            f"cannot read {folder}, see {first}: {error.__cause__ or error}. Every row of the metadata names an image "
            "in `file_name`, or a list of at least one in `file_names`; a row without an image has `file_name` null"
        ) from error
    if found["metadata"]:
        _say_unnamed_images(dataset, root, found["image"])
    elif len(dataset) != len(found["image"]):
        raise ValueError(
            f"{folder} has {len(found['image'])} images, and {len(dataset)} of them can be listed; is a link broken?"
        )
    if "id" in dataset.column_names or "image" not in dataset.column_names:
        return dataset
    features = Features({**dataset.features, "id": Value("string")})
    # One file of paths and ids, read from disk: a million of them need not fit into memory.
    options = {"fn_kwargs": {"start": len(f"{root}/")}, "features": features, "desc": "ids"}
    return dataset.with_format("arrow").map(_add_path_ids, batched=True, **options).with_format(None)


def _add_path_ids(table: pa.Table, start: int) -> pa.Table:
    ids = pc.utf8_slice_codeunits(pc.struct_field(table["image"], "path"), start=start)
    return table.append_column("id", ids)


def _say_unnamed_images(dataset: Dataset, root: Path, images: list[str]) -> None:
    """Images that no row of the metadata names are no rows; say how many."""
    named: set[str] = set()
    columns = dataset.select_columns(_image_columns(dataset.features)).with_format("arrow")
    for table in columns.iter(10_000):
        for column in table.columns:
            flat = column.combine_chunks().flatten() if not pa.types.is_struct(column.type) else column
            named.update(pc.struct_field(flat, "path").to_pylist())
    if unnamed := [image for image in images if str(root / image) not in named]:
        logger.warning(
            "%s: %d images are not named by the metadata and ignored; the first is %s", root, len(unnamed), unnamed[0]
        )


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
        self._images = ["images"] if "images" in names else _image_columns(features)
        if not self._images and "question" not in names and "question" not in _json_keys(features):
            raise ValueError(
                f"the input has no column 'images'; it has {names}. Rename the column of the images to 'images' or "
                "'image', or give a 'question' if there are no images"
            )
        if not len(dataset):
            raise ValueError(_NO_ROWS)
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


def _image_columns(features: Features) -> list[str]:
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
