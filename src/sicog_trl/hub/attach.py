"""Put images back into rows that were published without them."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from ..cards.places import file_name
from ..data import HASHES, IMAGES, REFERENCES, batches, write_card, writing
from ..files import claim
from ..generation.inputs import ImageRows
from ..images import identity
from .images import HELD_BYTES, images_of, is_image, with_bytes


DROPPED = "dropped"
MISSING, OTHER, AMBIGUOUS = "missing_image", "other_image", "ambiguous_image"
_ROWS = 250  # of images looked through at once
_REMEMBERED = 16  # ours: images that were read last; rows about one image stand together


@dataclass
class AttachConfig:
    """
    When an image counts as the one that a row is about.

    Args:
        check_hashes (`bool`, *optional*, defaults to `True`):
            Find images by the SHA-256 of their bytes, where rows have it. `False` takes what has the right name,
            for copies that were encoded anew, and reads only the images that are used.
    """

    check_hashes: bool = field(default=True, metadata={"help": "Only images with the very bytes."})


def attach(
    rows: Dataset, images: ImageRows, config: AttachConfig, split: str, output_dir: str | Path
) -> dict[str, Any]:
    """
    Write rows with the images that their references stand for, undecoded and as they are; nothing is fetched.

    An image is found by its hash, whatever its name. Where a row has none, the reference has to be the id of a row of
    images (several references of one row with the same text are its images in order), or end in the same file name as
    one of them alone. A run that was killed starts again; what it writes appears whole or not at all.

    Args:
        rows (`datasets.Dataset`):
            With the columns `image_references` and, from newer pushes, `image_hashes`.
        images ([`~sicog_trl.generation.inputs.ImageRows`]):
            The images that there are. Of each, about 650 bytes are held.
        config ([`AttachConfig`]):
            What counts as the same image.
        split (`str`):
            Name of the split to write.
        output_dir (`str` or `Path`):
            Artefact folder; gets the split, and `dropped` with `reason` (`missing_image`, `other_image`,
            `ambiguous_image`) and `detail`, which names the reference.

    Returns:
        `dict[str, Any]`: `rows_in`, `kept`, `dropped` by reason, `images`, and `unchecked`, the images that were
        found by their names alone.
    """
    kept_features, dropped_features = _features(rows.features, split)
    settings = {"rows": rows._fingerprint, "images": images.source, "split": split, **vars(config)}
    claim(Path(output_dir, "settings.json"), settings)
    index = _Index(images, config.check_hashes and HASHES in rows.column_names)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        kept_file = stack.enter_context(writing(output_dir, split, kept_features.arrow_schema))
        dropped_file = stack.enter_context(writing(output_dir, DROPPED, dropped_features.arrow_schema))
        for _, table in batches(rows.with_format("arrow")):
            table, found = pa.table(table), [index.find(*row) for row in _asked(table)]
            faults = [one if isinstance(one, tuple) else None for one in found]
            missing = np.array([fault is not None for fault in faults], bool)
            counts["kept"] += int((~missing).sum())
            reasons.update(fault[0] for fault in faults if fault)
            places = [one for one in found if isinstance(one, list)]
            counts["images"] += sum(place is not None for row in places for place in row)
            for piece in index.filled(table.filter(pa.array(~missing)), places):
                kept_file.write_table(piece.select(kept_features.arrow_schema.names).cast(kept_features.arrow_schema))
            if missing.any():
                dropped_file.write_table(_dropped(table, missing, faults, dropped_features.arrow_schema))
    write_card(output_dir, [split, DROPPED])
    dropped = dict(sorted(reasons.items()))
    totals = {"images": counts["images"], "unchecked": index.unchecked}
    return {"rows_in": len(rows), "kept": counts["kept"], "dropped": dropped, **totals}


def overview(summary: dict[str, Any]) -> str:
    """Return the summary as a line for a terminal."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items()) or "none"
    checked = f", {summary['unchecked']:,} of them by name alone" if summary["unchecked"] else ""
    return (
        f"{summary['rows_in']:,} rows: {summary['kept']:,} kept with {summary['images']:,} images{checked}; "
        f"dropped: {dropped}"
    )


def _features(features: Features, split: str) -> tuple[Features, Features]:
    """Return the columns of the rows that are kept and of those that are dropped."""
    if split == DROPPED:
        raise ValueError(f"the split {DROPPED!r} is where rows without an image go; attach another one")
    if REFERENCES not in features:
        raise ValueError(f"there is no column {REFERENCES!r} to put images in, only {list(features)}")
    for name in (REFERENCES, HASHES):
        if name in features and getattr(features[name], "feature", None) != Value("string"):
            raise ValueError(f"the column {name!r} holds {features[name]}; a list of texts is needed")
    kept = {("images" if name == REFERENCES else name): feature for name, feature in features.items()}
    kept = {name: IMAGES if name == "images" else feature for name, feature in kept.items() if name != HASHES}
    return Features(kept), Features({**features, "reason": Value("string"), "detail": Value("string")})


def _asked(table: pa.Table) -> Iterator[tuple[list[str | None] | None, list[str | None]]]:
    references = table[REFERENCES].to_pylist()
    hashes = table[HASHES].to_pylist() if HASHES in table.column_names else [None] * len(table)
    for row, (named, hashed) in enumerate(zip(references, hashes, strict=True)):
        if hashed is not None and len(hashed) != len(named or []):
            where = repr(table["id"][row].as_py()) if "id" in table.column_names else "without an id"
            raise ValueError(f"row {where}: {len(named or [])} image_references, but {len(hashed)} image_hashes")
        yield named, hashed or [None] * len(named or [])


def _dropped(table: pa.Table, missing: np.ndarray, faults: list, schema: pa.Schema) -> pa.Table:
    some = table.filter(pa.array(missing)).drop_columns([n for n in ("reason", "detail") if n in table.column_names])
    for place, name in enumerate(("reason", "detail")):
        some = some.append_column(name, pa.array([fault[place] for fault in faults if fault], pa.string()))
    return some.select(schema.names).cast(schema)


class _Index:
    """
    Where each image is: by the hash of its bytes, by the id of its row, and by the last part of its name.

    Attributes:
        unchecked (`int`):
            Images that were found by their names alone.
    """

    def __init__(self, images: ImageRows, by_content: bool):
        self._images, self._by_content = images, by_content
        self._by_hash: dict[str, tuple[int, int]] = {}
        self._by_id: dict[str, tuple[int, int]] = {}  # the row, and how many images it has
        self._by_name: dict[str, tuple[str, tuple[int, int] | None]] = {}  # what it is; where, if alone
        self._unfit: set[tuple[int, int]] = set()  # nothing that could be put into a row
        self._read: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()
        self.unchecked = 0
        with tqdm(total=len(images), desc="images", unit="row", delay=5) as progress:
            for start in range(0, len(images), _ROWS):
                table = images.table(range(start, min(start + _ROWS, len(images))))
                for number, row in enumerate(zip(table["id"], _lists(table), strict=True), start):
                    self._add(number, row[0].as_py(), list(images_of(row[1])))
                progress.update(len(table))

    def _add(self, number: int, row_id: str, images: list[dict[str, Any] | None]) -> None:
        if row_id in self._by_id:
            raise ValueError(f"the id {row_id!r} stands in several rows of the images; ids must be unique")
        self._by_id[row_id] = number, len(images)
        for place, image in enumerate(images):
            if image is None or (image["bytes"] is None and not is_image(image["path"])):
                self._unfit.add((number, place))
                continue
            what = row_id if image["bytes"] is not None else image["path"]
            if self._by_content:
                what = identity(image)
                self._by_hash.setdefault(what, (number, place))
            for name in {file_name(image["path"]), file_name(row_id) if len(images) == 1 else None} - {None}:
                known, where = self._by_name.get(name, (what, (number, place)))
                self._by_name[name] = known, where if known == what else None

    def find(
        self, references: list[str | None] | None, hashes: list[str | None]
    ) -> list[tuple[int, int] | None] | tuple[str, str]:
        """Return where the images of a row are, `None` for one that is null; or a reason, and the reference."""
        places: list[tuple[int, int] | None] = []
        seen: Counter[str | None] = Counter()
        unchecked = 0
        for reference, content in zip(references or [], hashes, strict=True):
            seen[reference] += 1
            if reference is None:
                places.append(None)
                continue
            named = self._named(reference, seen[reference] + seen[None] - 1)
            if self._by_content and content:
                place = self._by_hash.get(content)
                if place is None:
                    return (MISSING if named == MISSING else OTHER), reference
            elif isinstance(named, tuple):
                place, unchecked = named, unchecked + 1
            else:
                return named, reference
            places.append(place)
        self.unchecked += unchecked
        return places

    def _named(self, reference: str, occurrence: int) -> tuple[int, int] | str:
        row, count = self._by_id.get(reference, (0, 0))
        if occurrence < count and (row, occurrence) not in self._unfit:
            return row, occurrence
        _, place = self._by_name.get(file_name(reference), ("", MISSING))
        return AMBIGUOUS if place is None else place

    def filled(self, table: pa.Table, places: list[list[tuple[int, int] | None]]) -> Iterator[pa.Table]:
        """Yield ranges of `table` with a column of images, of bounded size."""
        start, held, rows = 0, 0, []
        for number, row in enumerate(places):
            rows.append([None if place is None else self._image(*place) for place in row])
            held += sum(len(image["bytes"] or b"") for image in rows[-1] if image)
            if held >= HELD_BYTES or number == len(places) - 1:
                yield _with_images(table.slice(start, len(rows)), rows)
                start, held, rows = number + 1, 0, []

    def _image(self, row: int, place: int) -> dict[str, Any]:
        if (row, place) not in self._read:
            table = self._images.table(range(row, row + 1))
            image = next(_lists(table))[place].as_py()
            self._read[row, place] = with_bytes(image, table["id"][0].as_py())
            if len(self._read) > _REMEMBERED:
                self._read.popitem(last=False)
        return self._read[row, place]


def _lists(table: pa.Table) -> Iterator[pa.Array]:
    for value in table["images"]:
        yield value.values if value.is_valid else pa.nulls(0, table.schema.field("images").type.value_type)


def _with_images(table: pa.Table, rows: list[list[dict[str, Any] | None]]) -> pa.Table:
    kind = Features({"images": IMAGES}).arrow_schema.field("images").type
    there = table[REFERENCES].is_valid().to_pylist()
    images = pa.array([row if valid else None for row, valid in zip(rows, there, strict=True)], kind)
    return table.append_column("images", images)
