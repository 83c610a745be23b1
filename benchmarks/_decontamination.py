"""What the benchmark of decontamination looks through: a pool and a benchmark of distinct pictures and texts."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _curation import sentences
from PIL import Image

from sicog_trl.data import IMAGES_FEATURES, writing


EVERY = 100  # one row of so many is a copy from the benchmark, one repeats an earlier row
WIDTH, HEIGHT = 96, 72


def picture(number: int, quality: int = 85) -> bytes:
    """Return a JPEG of soft shapes; each number has a picture of its own."""
    rng = np.random.default_rng([1, number])
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_rows(folder: Path, rows: int, first: int, split: str = "train", leaked: range | None = None) -> None:
    """
    Write `rows` rows with a picture and a question of about twenty words each.

    Args:
        folder (`Path`):
            Artefact folder.
        rows (`int`), first (`int`):
            How many, and the number of the first; other numbers are other pictures and questions.
        split (`str`):
            Name of the split.
        leaked (`range`, *optional*):
            Numbers of the rows of the benchmark, which are copied, saved again, into every hundredth row; the row
            behind each repeats the one before that.
    """
    schema, pool = IMAGES_FEATURES.arrow_schema, sentences()
    with writing(folder, split, schema) as writer:
        for start in range(0, rows, 1000):
            some = list(_rows(pool, range(start, min(rows, start + 1000)), first, leaked))
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def _rows(pool: list[str], places: range, first: int, leaked: range | None) -> Iterator[dict[str, Any]]:
    for place in places:
        number, quality = first + place, 85
        if leaked and place % EVERY == 50:
            number, quality = leaked[place // EVERY % len(leaked)], 50
        if leaked and place % EVERY == 51:
            number, quality = first + place - 2, 50
        rng = np.random.default_rng([2, number])
        question = " ".join(pool[rng.integers(len(pool))] for _ in range(2))
        image = {"bytes": picture(number, quality), "path": None}
        yield {"id": f"row-{place:07}", "images": [image], "question": question, "answer": None}
