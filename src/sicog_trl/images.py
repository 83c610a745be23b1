"""An image as a dataset stores it, `{"bytes", "path"}`: what tells it from others, and what the model sees of it."""

import hashlib
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import EpsImagePlugin, ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError


MAX_IMAGE_PIXELS = 178_956_970  # where Pillow itself, left alone, takes an image for a decompression bomb
_TOO_LARGE = f"more than {MAX_IMAGE_PIXELS:,} pixels are not decoded; scale the image down"
# An EPS is a program for Ghostscript. Pillow would run it wherever an image is decoded, in training by `datasets` too.
EpsImagePlugin.gs_binary = False
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class UnreadableImageError(ValueError):
    """An image that cannot be shown to a model; the message says why."""


def identity(image: dict[str, Any] | None) -> str | None:
    """
    Return a hash of the content of an image; nothing is decoded.

    A file that is stored by path is read as well: its path differs between machines, its size and time of change do
    not prove that nobody replaced it, and the hash is the same if the very file is embedded later.
    """
    if image is None or (image["bytes"] is None and image["path"] is None):
        return None
    if image["bytes"] is not None:
        return hashlib.sha256(image["bytes"]).hexdigest()
    if not os.path.isfile(image["path"]):
        return f"missing:{image['path'] if URL.match(image['path']) else os.path.basename(image['path'])}"
    try:
        with open(image["path"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable:{os.path.basename(image['path'])}:{error.strerror}"


def open_image(image: dict[str, Any] | None, max_pixels: int | None = None) -> tuple[Image.Image, bool]:
    """
    Decode an image, upright and in RGB: the pixels that training will see of it.

    Transparency is dropped, not blended, and of an animation the first frame is taken, because `datasets` and the
    processors do so when training reads the image.

    Args:
        image (`dict`):
            `bytes`, or else `path`, which is never fetched from the network.
        max_pixels (`int`, *optional*):
            A larger image is scaled down to this many pixels.

    Returns:
        `tuple[PIL.Image.Image, bool]`: the picture, and whether any reader gets exactly these pixels from the stored
        file.

    Raises:
        [`UnreadableImageError`]: whatever is wrong with the image.
    """
    with _opened(image) as opened:
        picture, unchanged = _decode(opened)
        if max_pixels and picture.width * picture.height > max_pixels:
            # The whole image is decoded first: JPEG's own reduced decoding (`draft`) would give other pixels.
            scale = (max_pixels / (picture.width * picture.height)) ** 0.5
            picture = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
            unchanged = False
        return picture, unchanged


def image_size(image: dict[str, Any] | None) -> tuple[int, int]:
    """
    Return width and height of an image as they are stored; only the beginning of its file is read.

    Raises:
        [`UnreadableImageError`]: if it is no image that can be decoded; whether all of it is there is not looked at.
    """
    with _opened(image) as opened:
        return opened.size


@contextmanager
def _opened(image: dict[str, Any] | None) -> Iterator[Image.Image]:
    """Open an image, not decoded yet; whatever is wrong with it, also when it is decoded, is one kind of error."""
    try:
        with _source(image) as source, _strict_pillow(), _identified(source) as opened:
            yield opened
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"{_TOO_LARGE}: {error}") from error
    # Decoders meet hostile bytes with whatever they stumble over: struct.error, zlib.error, SyntaxError, IndexError,
    # OverflowError, MemoryError and more. None of them may end a run over one image.
    except Exception as error:
        raise UnreadableImageError(f"damaged or not supported: {type(error).__name__}: {error}") from error


@contextmanager
def _source(image: dict[str, Any] | None) -> Iterator[io.BufferedIOBase]:
    if image is None or (image["bytes"] is None and image["path"] is None):
        raise UnreadableImageError("neither bytes nor path")
    if image["bytes"] is not None:
        if not len(image["bytes"]):
            raise UnreadableImageError("the file is empty")
        yield io.BytesIO(image["bytes"])
        return
    path = image["path"]
    if URL.match(path):
        raise UnreadableImageError(f"{path} is a web address, and nothing is fetched; store the bytes of the image")
    if not os.path.isfile(path):
        raise UnreadableImageError(f"no such file: {path}")
    if not os.path.getsize(path):
        raise UnreadableImageError("the file is empty")
    with open(path, "rb") as file:
        yield file


@contextmanager
def _identified(source: io.BufferedIOBase) -> Iterator[Image.Image]:
    head = source.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    source.seek(0)
    try:
        opened = Image.open(source)
    except UnidentifiedImageError:
        # Pillow's own message names an object in memory, which differs from run to run.
        looks = "; it looks like SVG, HTML or other XML" if head.startswith(b"<") else ""
        raise UnreadableImageError(f"not an image that Pillow can read{looks}") from None
    with opened:
        if opened.format == "EPS":
            raise UnreadableImageError("EPS is a program for Ghostscript, and none is run; convert it to PNG")
        width, height = opened.size
        if not width * height:
            raise UnreadableImageError(f"the image has no pixels: {width} × {height}")
        if width * height > MAX_IMAGE_PIXELS:
            raise UnreadableImageError(f"{_TOO_LARGE}: {width} × {height}")
        yield opened


def _decode(opened: Image.Image) -> tuple[Image.Image, bool]:
    plain = _is_plain(opened)  # before it is loaded: Pillow forgets then how the pixels were stored
    opened.load()
    if opened.getexif().get(ExifTags.Base.Orientation) not in (None, 1):
        plain = False
    return ImageOps.exif_transpose(opened).convert("RGB"), plain


def _is_plain(opened: Image.Image) -> bool:
    """Whether the file holds one picture of three channels with eight bits, so that readers cannot differ."""
    if opened.format not in ("JPEG", "PNG", "WEBP") or opened.mode != "RGB" or "transparency" in opened.info:
        return False
    stored = opened.tile[0].args if opened.tile else "RGB"
    stored = stored[0] if isinstance(stored, tuple) else stored
    return getattr(opened, "n_frames", 1) == 1 and stored == "RGB"


_users, _theirs, _lock = 0, (False, 0), threading.Lock()


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """
    Set Pillow's two switches for the whole process to what we need, and back when the last thread is done.

    Some libraries let truncated images pass, but a picture of which half is missing must not; and some lift or lower
    the limit of pixels, which also guards images that lie inside another file, such as in an icon.
    """
    global _users, _theirs
    with _lock:
        if not _users:
            _theirs = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
            # Pillow warns from the limit on and refuses from twice the limit on.
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, MAX_IMAGE_PIXELS // 2
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = _theirs
