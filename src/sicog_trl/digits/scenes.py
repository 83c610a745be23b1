"""Scenes: real scans of handwritten digits in coloured cells, and which scans belong to which pool."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


CELL = 16  # pixels
CELLS = ("top left", "top right", "bottom left", "bottom right")
DIGITS = "zero one two three four five six seven eight nine".split()
NUMBERS = ("None", "One", "Two", "Three", "Four")
COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 180, 60),
    "blue": (60, 90, 245),
    "yellow": (230, 200, 30),
    "purple": (170, 60, 200),
}
BACKGROUNDS = {"dark": (25, 25, 30), "light": (235, 235, 230)}
# Scans per pool; they add up to the 1,797 that scikit-learn ships.
SCANS = {"annotated": 150, "unlabelled": 1150, "development": 147, "test": 350}
# The same for every seed: what was chosen on the development scans must not have seen the test scans of another seed.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Scene:
    """
    What a scene shows.

    Args:
        objects (`dict[str, tuple[str, str]]`):
            Cell -> (colour, digit), in reading order.
        background (`str`):
            `"dark"` or `"light"`.
        image (`PIL.Image.Image`):
            The picture, 32×32 RGB.
    """

    objects: dict[str, tuple[str, str]]
    background: str
    image: Image.Image


def make_scene(scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Scene:
    """
    Compose one scene.

    Args:
        scans (`np.ndarray` of shape `(num_scans, 8, 8)`):
            Handwritten digits, ink from 0 to 16.
        labels (`np.ndarray` of shape `(num_scans,)`):
            The digit of each scan.
        rng (`np.random.Generator`):
            Source of every choice.
    """
    background = str(rng.choice(list(BACKGROUNDS)))
    canvas = np.full((2 * CELL, 2 * CELL, 3), BACKGROUNDS[background], dtype=np.float32)
    objects = {}
    for index in sorted(rng.choice(len(CELLS), size=rng.integers(1, len(CELLS) + 1), replace=False)):
        scan = rng.integers(len(scans))
        colour = str(rng.choice(list(COLOURS)))
        ink = _ink(scans[scan], rng)[..., None]
        top, left = CELL * (index // 2), CELL * (index % 2)
        cell = canvas[top : top + CELL, left : left + CELL]
        cell[:] = cell * (1 - ink) + np.asarray(COLOURS[colour], dtype=np.float32) * ink
        objects[CELLS[index]] = (colour, DIGITS[labels[scan]])
    canvas += rng.normal(0, 0.05 * 255, size=canvas.shape)
    return Scene(objects, background, Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))


def _ink(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale, turn and shift one scan into a cell; returns the coverage of each pixel, from 0 to 1."""
    size = round(8 * rng.uniform(1.45, 1.8))
    glyph = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    cell = Image.new("L", (CELL, CELL))
    down, right = (CELL - size) // 2 + rng.integers(-1, 2, size=2)
    cell.paste(glyph, (int(right), int(down)))
    cell = cell.rotate(rng.uniform(-10, 10), resample=Image.Resampling.BILINEAR)
    return np.asarray(cell, dtype=np.float32) / 255


def split_scans() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split the scans, stratified by digit, into the pools of [`SCANS`]; returns pool -> (scans, labels)."""
    scans, labels = load_digits(return_X_y=True)
    rest_scans, rest_labels = scans.reshape(-1, 8, 8), labels
    pools = {}
    for pool, size in list(SCANS.items())[:-1]:
        taken, rest_scans, taken_labels, rest_labels = train_test_split(
            rest_scans, rest_labels, train_size=size, stratify=rest_labels, random_state=SPLIT_SEED
        )
        pools[pool] = (taken, taken_labels)
    pools["test"] = (rest_scans, rest_labels)
    return pools


def make_scenes(pool: str, count: int, seed: int) -> list[Scene]:
    """Compose the first `count` scenes of a pool; the same seed gives the same scenes."""
    scans, labels = split_scans()[pool]
    rng = np.random.default_rng([seed, list(SCANS).index(pool)])
    return [make_scene(scans, labels, rng) for _ in range(count)]
