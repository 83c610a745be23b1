"""Light views of an image: changes too small to alter what it shows.

Candidates sampled from several views of one image agree only on what the model really sees; repeated sampling of one
view mostly measures the noise of decoding. The same views are the augmentation of a student that learns from labels
made on clean images ("noisy student").
"""

import numpy as np
from PIL import Image


MAX_SHIFT = 1 / 32  # ours: of the shorter side; one pixel on the digits world, ten on a 336-pixel image
MAX_BRIGHTNESS = 0.2  # ours
NOISE = 0.03  # ours: standard deviation, of the full range


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
    view = view * rng.uniform(1 - MAX_BRIGHTNESS, 1 + MAX_BRIGHTNESS)
    view = view + rng.normal(0, NOISE, size=view.shape).astype(np.float32)
    return Image.fromarray((view.clip(0, 1) * 255).round().astype(np.uint8))
