"""What the benchmark of decontamination looks through: distinct pictures and questions, and planted copies."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from sicog_trl.data import IMAGES_FEATURES, load, writing


BENCHMARK = "pope"  # whose split and columns the rows asked have; they are made up
EVERY = 100  # of so many rows, one is of each kind
# What becomes of a row at this place of every hundred; `repeated` repeats the row before it.
PLANTED = {"saved again": 10, "scaled": 20, "cropped": 30, "quoted": 40, "two words changed": 50, "repeated": 61}
OTHER_QUESTION = 71  # the picture of the row before it, asked otherwise: no copy of anything
WIDTH, HEIGHT = 64, 48
_POOL = 10**8  # numbers from here on are rows of the pool, below those of the benchmark
_SYLLABLES = "ba ce di fo gu la me ni po ru sa te vi zo hu".split()
_WORDS = [f"{a}{b}{c}" for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES]
_FREQUENCIES = np.hypot(np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT, np.fft.rfftfreq(WIDTH)[None] * WIDTH)
_AMPLITUDES = np.divide(1, _FREQUENCIES, where=_FREQUENCIES > 0, out=np.zeros_like(_FREQUENCIES))
_ODDS = np.cumsum(1 / np.arange(10, len(_WORDS) + 10))  # frequent and rare words, as in a language


def picture(number: int) -> Image.Image:
    """Return noise with the spectrum of photographs between two colours; each number has a picture of its own."""
    rng = np.random.default_rng([1, number])
    grey = np.fft.irfft2(_AMPLITUDES * np.exp(2j * np.pi * rng.random(_AMPLITUDES.shape)), (HEIGHT, WIDTH))
    dark, light = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
    share = (0.5 + grey / (5 * grey.std())).clip(0, 1)[..., None]
    return Image.fromarray((dark + (light - dark) * share).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 85) -> dict[str, Any]:
    """Return a picture as a dataset stores it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return {"bytes": buffer.getvalue(), "path": None}


def question(number: int) -> list[str]:
    """Return twenty words; each number has a question of its own."""
    places = np.searchsorted(_ODDS, np.random.default_rng([2, number]).uniform(0, _ODDS[-1], 20))
    return [_WORDS[place] for place in places]


def write_benchmark(folder: Path, rows: int) -> None:
    """Write the rows that are asked where `folder` as `evaluation_dataset_name` has to have them."""
    features = {name: Value("string") for name in ("id", "question", "answer")} | {"image": ImageColumn()}
    schema = Features(features).arrow_schema
    with writing(folder / BENCHMARK, "test", schema) as writer:
        for start in range(0, rows, 1000):
            some = [
                {"id": str(n), "question": " ".join(question(n)), "answer": "yes", "image": jpeg(picture(n))}
                for n in range(start, min(rows, start + 1000))
            ]
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def write_pool(folder: Path, rows: int, asked: int) -> None:
    """Write a split `train` of so many rows, with copies of a benchmark of `asked` rows planted."""
    schema = IMAGES_FEATURES.arrow_schema
    with writing(folder, "train", schema) as writer:
        for start in range(0, rows, 1000):
            some = [_row(place, asked) for place in range(start, min(rows, start + 1000))]
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def _row(place: int, asked: int) -> dict[str, Any]:
    kind = next((kind for kind, at in PLANTED.items() if place % EVERY == at), None)
    source, shown, quality = place // EVERY % asked, _POOL + place, 85
    words = question(_POOL + place)
    if kind in ("saved again", "scaled", "cropped"):
        shown, quality = source, 50
    if kind == "repeated" or place % EVERY == OTHER_QUESTION:
        shown, quality = _POOL + place - 1, 50
    image = picture(shown)
    if kind == "scaled":
        image = image.resize((WIDTH * 3 // 5, HEIGHT * 3 // 5))
    if kind == "cropped":
        image = image.crop((1, 1, WIDTH - 1, HEIGHT - 1))
    if kind == "quoted":
        words = ["look", "closely", *question(source), "one", "word", "please"]
    if kind == "two words changed":
        words = [w if n not in (6, 13) else "other" for n, w in enumerate(question(source))]
    if kind == "repeated":
        words = question(_POOL + place - 1)
    return {"id": f"row-{place:07}", "images": [jpeg(image, quality)], "question": " ".join(words), "answer": None}


def judged(output_dir: Path, rows: int) -> dict[str, Any]:
    """Return how many rows of each kind were planted, how many of them were found, and what else was dropped."""
    dropped = load(str(output_dir), split="dropped").select_columns(["id", "reason"]).with_format("arrow")
    kinds = {at: kind for kind, at in PLANTED.items()}
    found, others = Counter(), Counter()
    for table in _tables(dropped):
        for name, reason in zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True):
            kind = kinds.get(int(name.removeprefix("row-")) % EVERY)
            right = reason == ("duplicate" if kind == "repeated" else "contaminated")
            (found if kind and right else others)[kind or reason] += 1
    planted = {kind: len(range(at, rows, EVERY)) for kind, at in PLANTED.items()}
    return {
        "planted": planted,
        "found": {kind: found[kind] for kind in planted},
        "false_alarms": dict(sorted(others.items())),
    }


def _tables(dataset: Any) -> Iterator[pa.Table]:
    for start in range(0, len(dataset), 10_000):
        yield dataset[start : start + 10_000]
