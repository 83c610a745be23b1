"""Where images come from: artefacts, the Hub, Parquet, WebDataset tars, folders of images; nothing is decoded."""

import glob
import logging
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value, load_dataset
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..data import load
from ..data.artefacts import artefact_folder
from ..data.rows import image_columns
from ..files import is_local, missing_folder
from .inputs import NO_ROWS
from .tars import load_tars


logger = logging.getLogger(__name__)

_SUFFIXES = dict.fromkeys(ImageFolder.EXTENSIONS, "image") | {".parquet": "Parquet", ".tar": "tar"}
_SPLITS = frozenset("train training validation valid val dev test testing eval evaluation".split())


def load_images(name: str, config: str | None = None, split: str = "train") -> Dataset:
    """
    Load images from wherever they are; nothing is decoded, and files of an image folder are not copied.

    Args:
        name (`str`):
            An artefact folder or a Hub id, as [`~sicog_trl.data.load`] takes them; a Parquet file or a folder of them;
            a WebDataset `.tar` or a folder of them; or a folder of image files, at any depth, which may hold
            `metadata.csv`, `metadata.jsonl` or `metadata.parquet` with `file_name` (or `file_names`, several images
            per row) and `id`, `question`, `answer`. Hidden files and links to folders are not followed.
        config (`str`, *optional*):
            Configuration of a Hub dataset, or sub-folder of a local one, as in [`~sicog_trl.data.load`].
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split. Parquet and tar files belong to the split that their name begins with.

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
        return load(name, config, split)
    folder = artefact_folder(path, config, split)
    if not folder.is_dir():
        hint = "what images are read from: a folder, a Parquet file, a .tar or a Hub id"
        raise FileNotFoundError(f"{missing_folder('dataset', folder)}; {hint}")
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
    if kind == "tar":
        return load_tars(files)
    try:
        # Parquet's builder fails at a file without rows.
        filled = [file for file in files if pq.read_metadata(file).num_rows]
        if not filled:
            raise ValueError(NO_ROWS)
        data_files = {"train": [glob.escape(os.path.abspath(file)) for file in filled]}
        return load_dataset("parquet", data_files=data_files, split="train")
    except Exception as error:
        where = files[0] if len(files) == 1 else f"{len(files)} files, the first is {files[0]},"
        raise ValueError(f"cannot read {where} as parquet: {error.__cause__ or error}") from error


def _load_folder(folder: Path, found: dict[str, list[str]], split: str) -> Dataset:
    tops = {image.split("/")[0] if "/" in image else "" for image in found["image"]}
    if split != "train":
        raise FileNotFoundError(
            f"{folder} is a folder of images and has no split {split!r}; name a sub-folder as dataset_name"
        )
    if len(tops) > 1 and tops & _SPLITS and not set(ImageFolder.METADATA_FILENAMES) & set(found["metadata"]):
        raise ValueError(
            f"{folder} has sub-folders for splits ({', '.join(sorted(tops & _SPLITS))}); name the one to use as "
            "dataset_name"
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
    columns = dataset.select_columns(image_columns(dataset.features)).with_format("arrow")
    for table in columns.iter(10_000):
        for column in table.columns:
            flat = column.combine_chunks().flatten() if not pa.types.is_struct(column.type) else column
            named.update(pc.struct_field(flat, "path").to_pylist())
    if unnamed := [image for image in images if str(root / image) not in named]:
        logger.warning(
            "%s: %d images are not named by the metadata and ignored; the first is %s", root, len(unnamed), unnamed[0]
        )
