"""Damage changes what the model sees, by as much as the papers say, and nothing else."""

import colorsys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from sicog_trl.corruption import (
    CORRUPTIONS,
    color_jitter,
    damage,
    gaussian_blur,
    half_plane_mask,
    low_resolution,
    mirror_rotate,
)


SEEDS = range(200)
CHANCE = sorted(set(CORRUPTIONS) - {"low_resolution"})


def textured(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    waves = 128 + 60 * np.sin(across / 5) + 40 * np.cos(down / 7)
    pixels = waves[..., None] * (1.0, 0.8, 0.5) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def plain(*colour: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.mode == other.mode and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_damage_changes_the_pixels_and_leaves_the_input_alone(name):
    image = textured()
    before = image.copy()
    for seed in range(20):
        damaged = CORRUPTIONS[name](image, seed)
        assert damaged.mode == "RGB"
        assert not same(damaged, before)
    assert same(image, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_alone_decides(name):
    image = textured()
    damaged = [CORRUPTIONS[name](image, seed) for seed in range(20)]
    assert all(same(picture, CORRUPTIONS[name](textured(), seed)) for seed, picture in enumerate(damaged))
    kinds = len({(picture.size, picture.tobytes()) for picture in damaged})
    assert kinds == {"low_resolution": 1, "mirror_rotate": 2}.get(name, len(damaged))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5000), (5000, 1), (7, 3), (96, 64), (2000, 1500)])
def test_every_size_is_taken(name, size):
    image = textured(*size)
    damaged = CORRUPTIONS[name](image, 3)
    expected = {"mirror_rotate": size[::-1], "low_resolution": low_resolution(image).size}
    assert damaged.size == expected.get(name, size)
    assert damaged.mode == "RGB"


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_taken_as_its_rgb_picture(name, mode):
    image = textured(mode=mode) if mode != "I;16" else Image.new("I;16", (96, 64), 300)
    assert same(CORRUPTIONS[name](image, 1), CORRUPTIONS[name](image.convert("RGB"), 1))
    assert image.mode == mode


def test_blur_has_the_sigma_of_the_paper():
    dot = plain(0, 0, 0, size=(101, 1))
    dot.putpixel((50, 0), (255, 255, 255))
    # A tall picture of equal rows, so that the blur acts along the width alone.
    line = dot.resize((101, 101), Image.Resampling.NEAREST)
    places = np.arange(101) - 50
    sigmas = []
    for seed in SEEDS:
        weight = np.asarray(gaussian_blur(line, seed), dtype=float)[50, :, 0]
        sigmas.append(np.sqrt((weight * places**2).sum() / weight.sum()))
    assert 2.6 < min(sigmas) < 3.3  # eight bits cut the tails
    assert 4.4 < max(sigmas) < 5.2


def test_blur_takes_fine_structure_and_keeps_the_coarse():
    image = textured(256, 256)

    def power(picture: Image.Image) -> tuple[float, float]:
        spectrum = np.abs(np.fft.fft2(np.asarray(picture.convert("L"), dtype=float))) ** 2
        frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
        return spectrum[frequency > 0.2].sum(), spectrum[frequency < 0.01].sum()

    fine, coarse = power(image)
    for seed in range(10):
        fine_left, coarse_left = power(gaussian_blur(image, seed))
        assert fine_left < 0.01 * fine
        assert coarse_left > 0.9 * coarse


@pytest.mark.parametrize("width", [0.8, 0.5])
def test_brightness_factors_fill_their_range(width):
    only = {"brightness": width, "contrast": 0, "saturation": 0, "hue": 0}
    factors = [color_jitter(plain(100, 100, 100), seed, **only).getpixel((0, 0))[0] / 100 for seed in SEEDS]
    assert 1 - width - 0.01 <= min(factors) < 1 - 0.9 * width
    assert 1 + 0.9 * width < max(factors) <= 1 + width + 0.01


def test_contrast_factors_fill_their_range():
    image = plain(100, 100, 100)
    image.paste((140, 140, 140), (4, 0, 8, 8))
    only = {"brightness": 0, "contrast": 0.8, "saturation": 0, "hue": 0}
    factors = []
    for seed in SEEDS:
        dark, bright = (color_jitter(image, seed, **only).getpixel((x, 0))[0] for x in (0, 7))
        assert abs((dark + bright) / 2 - 120) <= 1.5
        factors.append((bright - dark) / 40)
    assert 0.2 - 0.06 <= min(factors) < 0.3
    assert 1.7 < max(factors) <= 1.8 + 0.06


def test_saturation_factors_fill_their_range():
    only = {"brightness": 0, "contrast": 0, "saturation": 0.8, "hue": 0}
    colours = [color_jitter(plain(140, 110, 100), seed, **only).getpixel((0, 0)) for seed in SEEDS]
    factors = [(max(colour) - min(colour)) / 40 for colour in colours]
    assert 0.2 - 0.06 <= min(factors) < 0.3
    assert 1.7 < max(factors) <= 1.8 + 0.06


@pytest.mark.parametrize("width", [0.2, 0.3])
def test_hue_turns_as_colorsys_turns_it(width):
    only = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": width}
    colours = [(220, 40, 40), (40, 200, 90), (60, 60, 230), (210, 180, 30)]
    image = Image.new("RGB", (4, 1))
    image.putdata(colours)
    turns = []
    for seed in SEEDS:
        turned = np.asarray(color_jitter(image, seed, **only))[0].astype(float) / 255
        before, after = ([colorsys.rgb_to_hsv(*c) for c in cs] for cs in (np.array(colours) / 255, turned))
        shifts = [(b[0] - a[0] + 0.5) % 1 - 0.5 for a, b in zip(before, after, strict=True)]
        assert np.ptp(shifts) < 0.02  # every colour by the same angle, within eight bits
        expected = [colorsys.hsv_to_rgb((h + np.mean(shifts)) % 1, s, v) for h, s, v in before]
        assert np.abs(turned - expected).max() < 0.04
        turns.append(np.mean(shifts))
    assert -width - 0.01 <= min(turns) < -0.9 * width
    assert 0.9 * width < max(turns) <= width + 0.01


def test_hue_leaves_grey_alone():
    only = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.3}
    assert all(same(color_jitter(plain(90, 90, 90), seed, **only), plain(90, 90, 90)) for seed in range(20))


@pytest.mark.parametrize(("name", "brightness", "hue"), [("color_jitter", 0.8, 0.2), ("color_jitter_stic", 0.5, 0.3)])
def test_the_jitters_have_the_ranges_of_their_papers(name, brightness, hue):
    factors = [CORRUPTIONS[name](plain(100, 100, 100), seed).getpixel((0, 0))[0] / 100 for seed in SEEDS]
    assert 1 - brightness - 0.02 <= min(factors) < 1 - 0.9 * brightness
    assert 1 + 0.9 * brightness < max(factors) <= 1 + brightness + 0.02
    turns = []
    for seed in SEEDS:
        colour = CORRUPTIONS[name](plain(110, 70, 70), seed).getpixel((0, 0))
        if max(colour) - min(colour) > 25:  # of paler ones, eight bits do not tell the hue
            turns.append((colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5)
    assert -hue - 0.02 <= min(turns) < -0.85 * hue
    assert 0.85 * hue < max(turns) <= hue + 0.02


def test_jitter_draws_its_order():
    # Where the range ends, brightness before contrast is not contrast before brightness.
    image = plain(0, 0, 0)
    image.paste((255, 255, 255), (4, 0, 8, 8))
    pairs = []
    for seed in SEEDS:
        damaged = color_jitter(image, seed, saturation=0, hue=0)
        pairs.append([damaged.getpixel((x, 0))[0] for x in (0, 7)])
    sums = [dark + bright for dark, bright in pairs if dark > 20]
    assert sum(abs(total - 255) <= 2 for total in sums) > 0.05 * len(SEEDS)  # brightness first
    assert sum(total > 260 for total in sums) > 0.05 * len(SEEDS)  # contrast first


def test_the_jitters_of_both_papers_act_on_what_they_name():
    def spread(name: str, image: Image.Image, what: str) -> float:
        pictures = [np.asarray(CORRUPTIONS[name](image, seed).convert("HSV"), dtype=float) for seed in SEEDS]
        if what == "contrast":
            return np.ptp([np.ptp(picture[..., 2]) / picture[..., 2].max() for picture in pictures])
        return np.ptp([picture[..., 1].mean() for picture in pictures])

    halves = plain(100, 100, 100)
    halves.paste((140, 140, 140), (4, 0, 8, 8))
    pale = plain(140, 110, 100)
    assert spread("color_jitter", halves, "contrast") > 0.2
    assert spread("color_jitter", pale, "saturation") > 50
    assert spread("color_jitter_stic", halves, "contrast") < 0.05
    assert spread("color_jitter_stic", pale, "saturation") < 10


def test_mirror_rotate_reads_as_neither_the_picture_nor_a_turn_of_it():
    image = textured()
    turns = [image.rotate(angle, expand=True) for angle in (0, 90, 180, 270)]
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seen = [0, 0]
    for seed in SEEDS:
        damaged = mirror_rotate(image, seed)
        assert not any(same(damaged, turn) for turn in turns)
        which = [same(damaged, mirrored.rotate(angle, expand=True)) for angle in (90, 270)]
        assert sum(which) == 1
        seen[which.index(True)] += 1
    assert min(seen) > 0.35 * len(SEEDS)


SIZES = [(96, 64), (64, 96), (1, 300), (300, 1), (2, 2), (3, 1), (2, 3), (7, 1), (13, 5), (640, 480)]


@pytest.mark.parametrize("size", SIZES)
def test_the_mask_covers_thirty_percent_give_or_take_five(size):
    # Blue is none or full, from pixel to pixel in turn: a mean of several pixels has the colour of none.
    down, across = np.mgrid[: size[1], : size[0]]
    numbers = np.random.default_rng(0).permutation(down.size).reshape(down.shape)
    pixels = np.stack([numbers % 256, numbers // 256 % 256, 255 * ((down + across) % 2)], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    shares = []
    for seed in range(300 if down.size < 10_000 else 30):
        damaged = np.asarray(half_plane_mask(image, seed))
        codes = damaged.astype(int) @ (1, 256, 65536)
        colours, counts = np.unique(codes, return_counts=True)
        covered = codes == colours[counts.argmax()]
        if counts.max() > 1:
            assert np.abs(pixels[covered].mean(axis=0) - damaged[covered][0]).max() <= 0.51
        assert (damaged[~covered] == pixels[~covered]).all()
        shares.append(counts.max() / down.size)
    assert min(shares) >= 0.25
    assert max(shares) <= 0.35
    if down.size > 1000:
        assert min(shares) < 0.28
        assert max(shares) > 0.32


@pytest.mark.parametrize(("size", "nearest"), [((1, 1), {0}), ((2, 1), {1}), ((5, 1), {1, 2})])
def test_a_picture_too_small_for_the_share_gets_the_nearest(size, nearest):
    image = Image.new("RGB", size)
    image.putdata([(40 * n * n, 0, 0) for n in range(size[0])])
    for seed in range(50):
        damaged = np.asarray(half_plane_mask(image, seed))[0, :, 0]
        changed = int((damaged != np.asarray(image)[0, :, 0]).sum())
        assert changed <= max(nearest)


def test_the_mask_has_a_straight_edge_and_comes_from_every_side():
    image = textured(80, 80)
    angles = []
    for seed in SEEDS:
        covered = (np.asarray(half_plane_mask(image, seed)) != np.asarray(image)).any(axis=-1)
        down, across = np.nonzero(covered)
        other_down, other_across = np.nonzero(~covered)
        towards = np.array([across.mean() - other_across.mean(), down.mean() - other_down.mean()])
        angles.append(np.arctan2(towards[1], towards[0]))
        # Along any row and any column the mask begins or ends once at most.
        for lines in (covered, covered.T):
            jumps = np.abs(np.diff(lines.astype(int), axis=1)).sum(axis=1)
            assert np.median(jumps) <= 1
    gaps = [b - a for a, b in pairwise([*sorted(angles), min(angles) + 2 * np.pi])]
    assert max(gaps) < 0.5


def test_low_resolution_has_the_short_side_of_the_paper():
    assert low_resolution(textured(640, 480)).size == (26, 20)
    assert low_resolution(textured(480, 640)).size == (20, 26)
    assert low_resolution(textured(400, 300), short_side=30).size == (40, 30)


def test_low_resolution_never_enlarges():
    for size in [(12, 10), (20, 400), (1, 5000)]:
        assert same(low_resolution(textured(*size)), textured(*size))


def test_low_resolution_can_keep_the_size_and_loses_detail_all_the_same():
    image = textured(320, 240)
    damaged = low_resolution(image, restore_size=True)
    assert damaged.size == image.size
    steps, left = (np.abs(np.diff(np.asarray(p, dtype=float), axis=1)).mean() for p in (image, damaged))
    assert left < 0.2 * steps


def test_consecutive_seeds_go_through_all_ways():
    names = ["half_plane_mask", "gaussian_blur", "low_resolution"]
    image = textured()
    done = [damage(image, names, seed) for seed in range(7, 13)]
    assert [name for _, name in done] == [names[seed % 3] for seed in range(7, 13)]
    for seed, (picture, name) in enumerate(done, 7):
        assert same(picture, CORRUPTIONS[name](image, seed))


def test_an_unknown_name_is_refused_whichever_would_be_taken():
    for seed in range(2):
        with pytest.raises(ValueError, match=r"'blurr'.*gaussian_blur.*color_jitter_stic"):
            damage(textured(), ["mirror_rotate", "blurr"], seed)
    with pytest.raises(ValueError, match="half_plane_mask"):
        damage(textured(), [], 0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_pixels_that_reach_the_model_differ(name, digits_model, digits_world):
    from sicog_trl.data import load

    image = load(str(digits_world / "unlabelled"), None, "train")[0]["images"][0]
    processor = AutoProcessor.from_pretrained(digits_model)

    def seen(picture: Image.Image) -> np.ndarray:
        return processor(images=[picture], text="<image> what", return_tensors="np")["pixel_values"]

    clean = seen(image)
    assert np.array_equal(clean, seen(image))
    for seed in range(5):
        damaged = seen(damage(image, [name], seed)[0])
        assert damaged.shape == clean.shape
        assert np.abs(damaged - clean).max() > 0.1
