"""Damage to an image: what a model writes about a spoilt picture is worse than what it writes about the whole one.

Preference data takes rejected answers from damaged pictures, at generation time alone: both answers are trained on the
clean one. Four ways come from SICOG (arXiv 2503.12303), one for each step of its chain of description, and two from
STIC (arXiv 2405.19716). The code released with STIC never hands the damaged picture to the model and SICOG's does not
call its own, so a caller compares the pixels. A picture of one colour, or of a few pixels, may come out as it went in.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter


BLUR_SIGMA = (3.0, 5.0)  # pixels; SICOG, released code

# Half the width of the range around 1 that a factor is drawn from; for the hue around 0, in turns of the wheel.
JITTER_BRIGHTNESS = 0.8  # SICOG, released code
JITTER_CONTRAST = 0.8  # SICOG, released code
JITTER_SATURATION = 0.8  # SICOG, released code
JITTER_HUE = 0.2  # SICOG, released code
STIC_JITTER_BRIGHTNESS = 0.5  # STIC, released code; it leaves contrast and saturation as they are
STIC_JITTER_HUE = 0.3  # STIC, released code

MASK_SHARE = 0.30  # of all pixels; SICOG, released code
MASK_TOLERANCE = 0.05  # SICOG, released code

SHORT_SIDE = 20  # pixels; STIC, released code

HUE_LEVELS = 255  # Pillow's HSV: level 255 is level 0 again


def gaussian_blur(image: Image.Image, seed: int, *, sigma: tuple[float, float] = BLUR_SIGMA) -> Image.Image:
    """
    Blur `image`, so that what stands out in it no longer does.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed.
        seed (`int`):
            Non-negative; the same image and seed give the same pixels.
        sigma (`tuple[float, float]`, *optional*, defaults to `(3.0, 5.0)`):
            Range of the standard deviation, in pixels.

    Returns:
        `PIL.Image.Image`: RGB, of the same size.
    """
    rng = np.random.default_rng(seed)
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(rng.uniform(*sigma)))


def color_jitter(
    image: Image.Image,
    seed: int,
    *,
    brightness: float = JITTER_BRIGHTNESS,
    contrast: float = JITTER_CONTRAST,
    saturation: float = JITTER_SATURATION,
    hue: float = JITTER_HUE,
) -> Image.Image:
    """
    Change brightness, contrast, saturation and hue of `image`, one after the other in an order drawn by chance.

    The parameters mean what they mean in torchvision's `ColorJitter`, which both papers use.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed.
        seed (`int`):
            Non-negative; the same image and seed give the same pixels.
        brightness, contrast, saturation (`float`, *optional*, default to `0.8`):
            A factor is drawn from `[max(0, 1 - value), 1 + value]`; 0 leaves this side of the picture alone.
        hue (`float`, *optional*, defaults to `0.2`):
            The hue turns by a share of the wheel drawn from `[-hue, hue]`; 0 leaves it alone.

    Returns:
        `PIL.Image.Image`: RGB, of the same size.
    """
    rng = np.random.default_rng(seed)
    picture = image.convert("RGB")
    enhancers = (
        (brightness, ImageEnhance.Brightness),
        (contrast, ImageEnhance.Contrast),
        (saturation, ImageEnhance.Color),
    )
    for number in rng.permutation(4):
        if number == 3:
            picture = _turn_hue(picture, rng.uniform(-hue, hue)) if hue else picture
            continue
        width, enhancer = enhancers[number]
        if width:
            picture = enhancer(picture).enhance(rng.uniform(max(0.0, 1 - width), 1 + width))
    return picture


def _turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    shift = round(turn * HUE_LEVELS)
    turned = hue.point([(level + shift) % HUE_LEVELS for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def mirror_rotate(image: Image.Image, seed: int) -> Image.Image:
    """
    Mirror `image` and turn it by 90 or 270 degrees (SICOG, released code), so that relations in space are others.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed.
        seed (`int`):
            Non-negative; the same image and seed give the same pixels.

    Returns:
        `PIL.Image.Image`: RGB, with width and height exchanged.
    """
    rng = np.random.default_rng(seed)
    turn = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[rng.integers(2)]
    return image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT).transpose(turn)


def half_plane_mask(
    image: Image.Image, seed: int, *, share: float = MASK_SHARE, tolerance: float = MASK_TOLERANCE
) -> Image.Image:
    """
    Cover what lies on one side of a straight line with its own mean colour, so that a part of the scene is missing.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed.
        seed (`int`):
            Non-negative; the same image and seed give the same pixels. It decides on the line and on the share.
        share (`float`, *optional*, defaults to `0.3`):
            Share of the pixels that is covered.
        tolerance (`float`, *optional*, defaults to `0.05`):
            The share is drawn from `[share - tolerance, share + tolerance]`. Pictures of 1, 2 or 5 pixels have no such
            part and get the nearest one.

    Returns:
        `PIL.Image.Image`: RGB, of the same size.
    """
    rng = np.random.default_rng(seed)
    pixels = np.array(image.convert("RGB"))
    height, width = pixels.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    # The most distant pixels in this direction: their number is exact, where a line put down by chance must be tried.
    distance = np.add.outer(np.arange(height) * np.sin(angle), np.arange(width) * np.cos(angle)).ravel()
    least, most = math.ceil((share - tolerance) * distance.size), math.floor((share + tolerance) * distance.size)
    covered = int(rng.integers(least, most + 1)) if least <= most else round(share * distance.size)
    if covered:
        flat = pixels.reshape(-1, 3)
        chosen = np.argpartition(distance, -covered)[-covered:]
        flat[chosen] = flat[chosen].mean(axis=0).round()
    return Image.fromarray(pixels)


def low_resolution(
    image: Image.Image, seed: int = 0, *, short_side: int = SHORT_SIDE, restore_size: bool = False
) -> Image.Image:
    """
    Scale `image` down until its short side has `short_side` pixels.

    The code released with STIC gives the small picture to the processor, which scales it as it scales every picture. A
    model of dynamic resolution then spends few tokens on it; `restore_size` keeps their number.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed. One that is not larger stays as it is: STIC's code would enlarge it,
            a narrow strip beyond all bounds.
        seed (`int`, *optional*, defaults to `0`):
            Not used: nothing here is left to chance.
        short_side (`int`, *optional*, defaults to `20`):
            Pixels of the shorter side.
        restore_size (`bool`, *optional*, defaults to `False`):
            Scale the small picture up again to the size of `image`.

    Returns:
        `PIL.Image.Image`: RGB, small, with the sides in the same proportion.
    """
    picture = image.convert("RGB")
    shorter = min(picture.size)
    if shorter <= short_side:
        return picture
    size = tuple(side * short_side // shorter for side in picture.size)
    small = picture.resize(size, Image.Resampling.BILINEAR)
    return small.resize(picture.size, Image.Resampling.BILINEAR) if restore_size else small


CORRUPTIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "gaussian_blur": gaussian_blur,
    "color_jitter": color_jitter,
    "mirror_rotate": mirror_rotate,
    "half_plane_mask": half_plane_mask,
    "low_resolution": low_resolution,
    "color_jitter_stic": partial(
        color_jitter, brightness=STIC_JITTER_BRIGHTNESS, contrast=0.0, saturation=0.0, hue=STIC_JITTER_HUE
    ),
}


def damage(image: Image.Image, names: Sequence[str], seed: int) -> tuple[Image.Image, str]:
    """
    Damage `image` in one of several ways.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed.
        names (`Sequence[str]`):
            Keys of `CORRUPTIONS`. A row whose candidates have consecutive seeds goes through all of them in turn.
        seed (`int`):
            Non-negative; the same image, names and seed give the same pixels.

    Returns:
        `tuple[PIL.Image.Image, str]`: the damaged picture, RGB, and the name of the way it was damaged in.
    """
    if not names:
        raise ValueError(f"no way to damage an image is named; choose from {', '.join(CORRUPTIONS)}")
    for name in names:
        if name not in CORRUPTIONS:
            raise ValueError(f"unknown damage {name!r}; choose from {', '.join(CORRUPTIONS)}")
    name = names[seed % len(names)]
    return CORRUPTIONS[name](image, seed), name
