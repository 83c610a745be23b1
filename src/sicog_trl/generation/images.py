"""An image as a dataset stores it, `{"bytes", "path"}`: what tells it from others, and what the model sees of it."""

import hashlib
import io

from PIL import Image, ImageFile, ImageOps


def identity(image: dict | None) -> str | None:
    """Return a hash of the stored bytes of an image, or its path if it is stored elsewhere; nothing is decoded."""
    if image is None or image["bytes"] is None:
        return image and image["path"]
    return hashlib.sha256(image["bytes"]).hexdigest()


def open_image(image: dict | None, max_pixels: int | None = None) -> Image.Image:
    """
    Decode an image, upright and in RGB.

    Args:
        image (`dict`):
            `bytes`, or else `path`.
        max_pixels (`int`, *optional*):
            A larger image is scaled down to this many pixels.
    """
    if image is None or (image["bytes"] is None and image["path"] is None):
        raise ValueError("neither bytes nor path")
    source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
    # Some libraries turn this on for the whole process; a picture of which half is missing must not pass as one.
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        picture = _decode(source)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
    if max_pixels and picture.width * picture.height > max_pixels:
        scale = (max_pixels / (picture.width * picture.height)) ** 0.5
        picture = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
    return picture


def _decode(source: io.BytesIO | str) -> Image.Image:
    with Image.open(source) as opened:
        opened.load()
        return ImageOps.exif_transpose(opened).convert("RGB")  # upright, as `datasets` shows it to training
