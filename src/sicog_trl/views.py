"""Views of an image: changes that do not alter what it shows.

Candidates sampled from several *light* views of one image agree only on what the model really sees; repeated sampling
of one view mostly measures the noise of decoding. *Strong* views are the augmentation of a student that learns from
labels made on lighter ones ("noisy student").
"""

import numpy as np
from PIL import Image


# All numbers here are ours, chosen on the development pool of the digits world.
MAX_SHIFT = 1 / 32  # of the shorter side; one pixel on the digits world, ten on a 336-pixel image
MAX_BRIGHTNESS = 0.2
NOISE = 0.03  # standard deviation, of the full range

STRONG_SHIFT = 1.5 / 32
STRONG_ROTATION = 6  # degrees
STRONG_SCALE = 0.08
STRONG_BRIGHTNESS = 0.25  # of each colour channel on its own
STRONG_NOISE = 0.05


def light_view(image: Image.Image, seed: int) -> Image.Image:
    """
    Return a view of `image`: shifted, brighter or darker, with Gaussian noise.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed.
        seed (`int`):
            Non-negative; the same image and seed give the same pixels.

    Returns:
        `PIL.Image.Image`: RGB, of the same size.
    """
    rng = np.random.default_rng(seed)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    reach = max(1, round(min(pixels.shape[:2]) * MAX_SHIFT))
    down, right = rng.integers(-reach, reach + 1, size=2)
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    view = padded[reach + down : reach + down + height, reach + right : reach + right + width]
    return _finish(view * rng.uniform(1 - MAX_BRIGHTNESS, 1 + MAX_BRIGHTNESS), NOISE, rng)


def strong_view(image: Image.Image, seed: int) -> Image.Image:
    """
    Return a view of `image`: turned, scaled and shifted a little, recoloured, with Gaussian noise.

    What comes in at the border has the median colour of the border.

    Args:
        image (`PIL.Image.Image`):
            Any image; it is read, never changed.
        seed (`int`):
            Non-negative; the same image and seed give the same pixels.

    Returns:
        `PIL.Image.Image`: RGB, of the same size.
    """
    rng = np.random.default_rng(seed)
    picture = image.convert("RGB")
    pixels = np.asarray(picture)
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    angle = np.deg2rad(rng.uniform(-STRONG_ROTATION, STRONG_ROTATION))
    scale = rng.uniform(1 - STRONG_SCALE, 1 + STRONG_SCALE)
    right, down = rng.uniform(-STRONG_SHIFT, STRONG_SHIFT, size=2) * min(picture.size)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = picture.width / 2, picture.height / 2
    affine = (cosine, sine, x - cosine * x - sine * y + right, -sine, cosine, y + sine * x - cosine * y + down)
    turned = picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        affine,
        resample=Image.Resampling.BILINEAR,
        fillcolor=tuple(int(value) for value in border),
    )
    colours = rng.uniform(1 - STRONG_BRIGHTNESS, 1 + STRONG_BRIGHTNESS, size=3)
    return _finish(np.asarray(turned, dtype=np.float32) / 255 * colours, STRONG_NOISE, rng)


def _finish(pixels: np.ndarray, noise: float, rng: np.random.Generator) -> Image.Image:
    noisy = pixels + rng.normal(0, noise, size=pixels.shape)
    return Image.fromarray((noisy.clip(0, 1) * 255).round().astype(np.uint8))


VIEWS = {"light": light_view, "strong": strong_view}
