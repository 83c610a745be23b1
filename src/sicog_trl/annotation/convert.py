"""Annotations written as an artefact: one pass over the records, no image decoded, every record accounted for."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from ..data import ANNOTATED_FEATURES, IMAGES_FEATURES, write_card, writing
from ..files import claim, write_json
from .reading import READERS, Reading
from .records import Record, Records
from .turns import Unusable


SOURCE_FORMATS = (*READERS, "teacher")
DROPPED_RECORDS_FEATURES = Features(
    {
        "id": Value("string"),
        "reason": Value("string"),
        "detail": Value("string"),  # what exactly was found
        "text": Value("string"),  # what was there: the record without its images, or the teacher's answer
    }
)
_BATCH_BYTES, _BATCH_ROWS = 64 << 20, 1000


@dataclass
class AnnotationConfig:
    """
    How the source is to be read.

    Args:
        source_format (`str`):
            `"chain_of_thought_tags"`: answers in the four tags of LLaVA-CoT become the four steps, and the conclusion
            alone. `"chain_of_description"`: captions in five steps, and the last one alone. `"conversations"`: one row
            per assistant turn, as it is. `"teacher"`: a teacher writes the five steps.
        image_root (`str`, *optional*):
            Folder that relative image paths start from; the folder of the file unless given.
        step_keys (`list[str]`, *optional*):
            For `"chain_of_description"`: the keys of the five steps, or the key of a list of them, or of one text with
            headings. The answer in `conversations` unless given.
        reference_key (`str`, *optional*):
            For `"teacher"`: the key of the caption at hand; `answer`, or the answer in `conversations`, unless given.
        number_rows (`bool`, *optional*, defaults to `False`):
            Name the records by their number, if their ids repeat.
        max_rows (`int`, *optional*):
            Draw this many records.
        seed (`int`, *optional*, defaults to `0`):
            Of the draw, and of the teacher.
        embed_images (`bool`, *optional*, defaults to `True`):
            Copy the image files into the artefact, once per row; otherwise their absolute paths stand in it.
    """

    source_format: str = field(metadata={"help": "How the source is to be read.", "choices": SOURCE_FORMATS})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    step_keys: list[str] | None = field(default=None, metadata={"help": "Keys of the five steps."})
    reference_key: str | None = field(default=None, metadata={"help": "Key of the caption that a teacher is given."})
    number_rows: bool = field(default=False, metadata={"help": "Name the records by their number."})
    max_rows: int | None = field(default=None, metadata={"help": "Draw this many records."})
    seed: int = field(default=0, metadata={"help": "Seed of the draw, and of the teacher."})
    embed_images: bool = field(default=True, metadata={"help": "Copy the image files into the artefact."})

    def __post_init__(self) -> None:
        if self.source_format not in SOURCE_FORMATS:
            raise ValueError(f"unknown source_format {self.source_format!r}; choose one of {SOURCE_FORMATS}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows is at least 1, got {self.max_rows}")
        for name, of in (("step_keys", "chain_of_description"), ("reference_key", "teacher")):
            if getattr(self, name) and self.source_format != of:
                raise ValueError(f"{name} belongs to the source_format {of!r}, not {self.source_format!r}")
        if self.step_keys and len(self.step_keys) not in (1, 5):
            raise ValueError(f"step_keys names five keys, or one that holds all steps; got {self.step_keys}")

    def records(self, dataset_name: str, config: str | None, split: str) -> Records:
        """Open the source, as [`Records`] does."""
        options = {name: getattr(self, name) for name in ("image_root", "number_rows", "max_rows", "seed")}
        return Records(dataset_name, config, split, **options)


def annotate(records: Records, config: AnnotationConfig, output_dir: str | Path) -> dict[str, Any]:
    """
    Convert records that hold their annotations already.

    Args:
        records ([`Records`]):
            The source.
        config ([`AnnotationConfig`]):
            How it is to be read.
        output_dir (`str` or `Path`):
            Artefact folder, see [`write_annotations`].

    Returns:
        `dict[str, Any]`: the counts of [`write_annotations`].
    """
    claim(Path(output_dir, "settings.json"), {"source": records.name, **vars(config)})
    reader = READERS[config.source_format]

    def read(record: Record, images: list[dict[str, Any]]) -> Reading:
        return reader(record.fields, len(images), config.step_keys)

    return write_annotations(records, read, output_dir, config.embed_images)


def write_annotations(
    records: Records,
    read: Callable[[Record, list[dict[str, Any]]], Reading],
    output_dir: str | Path,
    embed_images: bool = True,
    text_of: Callable[[Record], str | None] | None = None,
    cost: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Write the splits `annotated`, `images` (what can be generated from, for the same sources) and `dropped`.

    Args:
        records ([`Records`]):
            The source.
        read (`Callable`):
            Returns what a record with its stored images gives, or raises [`Unusable`].
        output_dir (`str` or `Path`):
            Artefact folder; `summary.json` holds the counts, and `README.md` makes
            `load_dataset(output_dir, "images", split="images")` and the like work.
        embed_images (`bool`, *optional*, defaults to `True`):
            Copy the image files into the artefact.
        text_of (`Callable`, *optional*):
            Returns what is kept of a dropped record: all of its fields but the images, unless given.
        cost (`dict[str, Any]`, *optional*):
            What the summary says besides.

    Returns:
        `dict[str, Any]`: `records` of the source, `rows_in` of them drawn, `kept` and `dropped` (by reason) of these,
        and `rows` by mode.
    """
    modes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    kept = 0
    with (
        _SplitWriter(output_dir, "annotated", ANNOTATED_FEATURES) as annotated,
        _SplitWriter(output_dir, "images", IMAGES_FEATURES) as images,
        _SplitWriter(output_dir, "dropped", DROPPED_RECORDS_FEATURES) as dropped,
    ):
        for record in records.progress("annotate"):
            try:
                stored = records.stored(record, embed_images)
                reading = read(record, stored)
            except Unusable as unusable:
                reasons[unusable.reason] += 1
                text = (text_of and text_of(record)) or _fields(record)
                dropped.add({"id": record.id, "reason": unusable.reason, "detail": unusable.detail, "text": text})
                continue
            kept += 1
            for row in reading.rows:
                modes[row["mode"] or "conversation"] += 1
                row_id = f"{record.id}-{row['name']}"
                annotated.add({**row, "id": row_id, "source_id": record.id, "images": stored})
            texts = {"question": reading.question, "answer": reading.answer}
            if stored:  # without an image and a question there is nothing to generate from
                images.add({"id": record.id, "images": stored, **texts})
    write_card(output_dir, ["annotated", "images", "dropped"])
    summary = {
        "records": records.total,
        "rows_in": len(records),
        "kept": kept,
        "dropped": dict(sorted(reasons.items())),
        "rows": dict(sorted(modes.items())),
        **(cost or {}),
    }
    write_json(Path(output_dir, "summary.json"), summary)
    return summary


class _SplitWriter:
    """Rows of a split, written batch by batch so that memory is bounded by the batch."""

    def __init__(self, output_dir: str | Path, split: str, features: Features):
        self._writing = writing(output_dir, split, features.arrow_schema)
        self._schema = features.arrow_schema
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> "_SplitWriter":
        self._writer: pq.ParquetWriter = self._writing.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._flush()
        self._writing.__exit__(kind, error, trace)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append({name: _storable(row[name]) for name in self._schema.names})
        self._bytes += sum(len(image["bytes"] or b"") for image in row.get("images", []))
        if self._bytes >= _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


def _storable(value: Any) -> Any:
    """Half a surrogate pair, which JSON allows, is no text that can be stored; such a record is dropped."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _fields(record: Record) -> str:
    kept = {name: value for name, value in record.fields.items() if not _holds_bytes(value)}
    return json.dumps(kept, ensure_ascii=False, default=str)


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_bytes(item) for item in value)
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))
