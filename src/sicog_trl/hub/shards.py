"""What is pushed: Parquet files of bounded size, with the images or with references where copies are forbidden."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from ..curation.columns import combined
from ..data import split_files
from .counts import Counts


REFERENCES = "image_references"
_ROWS = 250  # held at once, with the bytes of their images


def write_shards(
    folder: str, split: str, name: str, output_dir: Path, max_bytes: int, image_reference: str | None
) -> tuple[list[Path], Counts]:
    """
    Write a split of an artefact folder as the Parquet files that are pushed, image bytes untouched.

    The same rows give the same bytes. A file is closed when it holds `max_bytes`, so one row more may be in it.

    Args:
        folder (`str`):
            Artefact folder.
        split (`str`):
            Split of it.
        name (`str`):
            Name of the configuration, and of its one split.
        output_dir (`Path`):
            Gets `data/<name>-00000-of-00001.parquet` and so on.
        max_bytes (`int`):
            Size of a file before compression.
        image_reference (`str` or `None`):
            Template of what stands for an image, see [`PushConfig`]; `None` embeds the images.

    Returns:
        `tuple`: the files, and what was counted on the way. No rows, no files: `load_dataset` reads no empty split.
    """
    files = split_files(folder, None, split)
    data = output_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    _sweep(data, name)
    features = _checked(Features.from_arrow_schema(pq.read_schema(files[0])), files[0])
    if image_reference and "images" in features:
        features = Features({REFERENCES if k == "images" else k: v for k, v in features.items()})
        features[REFERENCES] = List(Value("string"))
    counts = Counts(features, sum(pq.read_metadata(file).num_rows for file in files))
    unfinished: list[Path] = []
    writer, held = None, 0
    try:
        for table in _tables(files, image_reference, features.arrow_schema):
            if writer is None:
                unfinished.append(data / f".{name}.{len(unfinished):05d}")
                writer, held = pq.ParquetWriter(unfinished[-1], features.arrow_schema), 0
            writer.write_table(table)
            counts.add(table)
            held += table.nbytes
            if held >= max_bytes:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    done = [data / f"{name}-{i:05d}-of-{len(unfinished):05d}.parquet" for i in range(len(unfinished))]
    for before, after in zip(unfinished, done, strict=True):
        os.replace(before, after)
    return done, counts


def _checked(features: Features, file: Path) -> Features:
    """Refuse columns whose images would be left behind, or whose paths would be told."""
    images = features.get("images")
    if "id" not in features:
        raise ValueError(f"{file} has no column `id`; rows are followed by it")
    if images is not None and not isinstance(getattr(images, "feature", None), Image):
        raise ValueError(f"{file}: the column `images` is no list of images but {images}")
    others = Features({name: feature for name, feature in features.items() if name != "images"})
    if "Image(" in repr(others):
        raise ValueError(f"{file} has an image outside the column `images`; write the dataset with that column")
    return features


def _sweep(data: Path, name: str) -> None:
    """Delete what an earlier preparation wrote under the same name, which may have had another number of files."""
    for file in data.iterdir():
        if re.fullmatch(rf"{re.escape(name)}-\d{{5}}-of-\d{{5}}\.parquet|\.{re.escape(name)}\.\d{{5}}", file.name):
            file.unlink()


def _tables(files: list[Path], image_reference: str | None, schema: pa.Schema) -> Iterator[pa.Table]:
    for file in files:
        with pq.ParquetFile(file) as source:
            for batch in source.iter_batches(_ROWS):
                table = pa.Table.from_batches([batch])
                if "images" in table.column_names:
                    new = references(table, image_reference) if image_reference else embedded(table)
                    position = table.column_names.index("images")
                    table = table.set_column(position, REFERENCES if image_reference else "images", new)
                try:
                    yield table.select(schema.names).cast(schema)
                except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise ValueError(f"{file} has other columns than the first file of its split: {error}") from error


def embedded(table: pa.Table) -> pa.Array:
    """
    Return the images of `table` with all bytes in the rows; of paths only the last part is kept.

    What is read from a path must be an image: a row may name any file of this machine.
    """
    lists, flat, owners = _images(table)
    contents, paths = pc.struct_field(flat, "bytes"), pc.struct_field(flat, "path").to_pylist()
    missing = [i for i, there in enumerate(contents.is_valid().to_pylist()) if not there and paths[i] is not None]
    if missing:
        given = contents.to_pylist()
        for number in missing:
            given[number] = _read(paths[number], owners[number])
        contents = pa.array(given, contents.type)
    names = pa.array([path and os.path.basename(path) for path in paths], pa.string())
    fields = [pa.field("bytes", contents.type), pa.field("path", pa.string())]
    values = pa.StructArray.from_arrays([contents, names], fields=fields, mask=flat.is_null())
    return _as_lists(lists, values)


def _read(path: str, owner: str) -> bytes:
    if "://" in path:
        raise ValueError(
            f"row {owner!r}: its image is the address {path}, which nothing fetches here; download the images first, "
            "or push with `images: reference`"
        )
    try:
        content = Path(path).read_bytes()
        Picture.open(io.BytesIO(content)).close()  # reads the header alone
    except FileNotFoundError:
        raise FileNotFoundError(f"row {owner!r}: its image {path} is not there") from None
    except UnidentifiedImageError:
        raise ValueError(f"row {owner!r}: {path} is no image, so it is not pushed") from None
    return content


def references(table: pa.Table, template: str) -> pa.Array:
    """Return what stands for the images of `table`, which are left out: texts made from `template`."""
    lists, flat, owners = _images(table)
    paths = pc.struct_field(flat, "path").to_pylist()
    sources = table["source_id"].to_pylist() if "source_id" in table.column_names else table["id"].to_pylist()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_pylist()
    texts, position = [], 0
    for source, length in zip(sources, lengths, strict=True):
        for number in range(length):
            path = paths[position]
            name = path if path is None or "://" in path else os.path.basename(path)
            if name is None and "{path}" in template:
                raise ValueError(f"row {owners[position]!r}: an image has no path; make `image_reference` from {{id}}")
            texts.append(template.format(id=owners[position], source_id=source, path=name, number=number))
            position += 1
    return _as_lists(lists, pa.array(texts, pa.string()))


def _images(table: pa.Table) -> tuple[pa.Array, pa.Array, list[str]]:
    """Return the lists of images, all images one after the other, and the row that each is of."""
    lists = combined(table["images"])
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_pylist()
    ids = table["id"].to_pylist()
    return lists, lists.flatten(), [i for i, length in zip(ids, lengths, strict=True) for _ in range(length)]


def _as_lists(lists: pa.Array, values: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    bounds = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(bounds, values, mask=lists.is_null())
