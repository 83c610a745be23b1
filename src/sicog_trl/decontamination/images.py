"""Which pictures are near: perceptual hashes, and an index of them by Hamming distance.

A hash of 64 bits (pHash of imagehash: the signs of the lowest frequencies) finds candidates, one of 256 bits confirms
them. Both are of the whole grey picture, which decides what is found. Measured with the default distances (8 and 64
bits) on 21 sample pictures of scikit-learn, scikit-image and others, mostly photographs, and on 163 pieces of them:

- saved again (JPEG 20 to 90), scaled, squashed to a square, a thumbnail of 64 pixels, grey, darker, brighter, with
  more contrast or colour: 95 to 100 %
- 1 to 2 % off at each edge: 91 to 98 %; 2.5 % off at each edge: 76 to 81 %; 5 % off at one side: 52 to 57 %
- turned by two degrees: 64 to 76 %; a line of text or a watermark across it: 67 to 86 %; a white border of 2 %: 39 to
  62 %; black bars that make it square: 43 %
- not found: 5 % off at each edge (0 to 8 %), a border of 5 % (0 to 5 %), larger crops, and what is mirrored, turned by
  90 degrees or inverted

Of 12,720 pairs of different pieces none was nearer than 16 and 92 bits. Drawings are nearer to each other: of charts
of one style 0.1 % (bars) to 7 % (pies) of the pairs were within the default distances, while 4 and 24 bits left 0 to
0.3 % of them and still found at least 97 % of what was saved again or halved, but little that was cropped.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import imagehash
import numpy as np
from PIL import Image

from ..images import UnreadableImageError, identity, open_image


BITS, FINE_BITS = 64, 256
# Four bands of 16 bits: of two hashes that differ in d bits, one band differs in at most d // 4. More bits than that
# would make the number of neighbours to look up explode (1, 17, 137, 697 per band).
BANDS, BAND_BITS = 4, 16
MAX_DISTANCE = 11
_FLAT = 2.0  # ours: grey levels; below that the signs of the frequencies are noise, and all such pictures alike
_REMEMBERED = 4096  # pictures; rows that share one mostly stand close together


class Picture(NamedTuple):
    """What is known of a picture: a hash of its bytes, and unless it is flat its two perceptual hashes."""

    content: bytes
    near: int | None
    fine: bytes | None


class Hasher:
    """Hashes images; what was decoded once is remembered for a while by its content."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Picture | str] = OrderedDict()

    def __call__(self, image: dict[str, Any] | None) -> Picture:
        """
        Return what is known of an image.

        Raises:
            [`~sicog_trl.images.UnreadableImageError`]: whatever is wrong with it.
        """
        name = identity(image)
        if name in self._known:
            self._known.move_to_end(name)
        else:
            try:
                picture, _ = open_image(image)
                found: Picture | str = hash_picture(picture, bytes.fromhex(name)[:16])
            except UnreadableImageError as error:
                found = str(error)
            self._known[name] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        found = self._known[name]
        if isinstance(found, str):
            raise UnreadableImageError(found)
        return found


def hash_picture(picture: Image.Image, content: bytes) -> Picture:
    """Return the hashes of a decoded picture whose bytes have the hash `content`."""
    # Once, since both hashes begin with it; 64 is the size that the finer one works on.
    small = picture.convert("L").resize((64, 64), Image.Resampling.LANCZOS)
    if np.asarray(small, dtype=np.float32).std() < _FLAT:
        return Picture(content, None, None)
    near = np.packbits(imagehash.phash(small).hash.ravel()).tobytes()
    fine = np.packbits(imagehash.phash(small, hash_size=16).hash.ravel()).tobytes()
    return Picture(content, int.from_bytes(near, "little"), fine)


def fine_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Hamming distances of finer hashes, rows of four `uint64`."""
    return np.bitwise_count(first ^ second).sum(axis=-1, dtype=np.int64)


def fine_words(fine: list[bytes]) -> np.ndarray:
    """Return finer hashes as rows of four numbers."""
    return np.frombuffer(b"".join(fine), dtype="<u8").reshape(-1, 4)


class HammingIndex:
    """
    Hashes of 64 bits, found by those that differ in a few bits; exact, and memory is 18 bytes a hash.

    Args:
        hashes (`np.ndarray` of `uint64`):
            What is found; a result names its place.
        max_distance (`int`):
            Bits in which two may differ, at most `MAX_DISTANCE`.
    """

    def __init__(self, hashes: np.ndarray, max_distance: int):
        if not 0 <= max_distance <= MAX_DISTANCE:
            raise ValueError(f"max_distance is a number of bits from 0 to {MAX_DISTANCE}, got {max_distance}")
        self.hashes, self.max_distance = hashes, max_distance
        self._masks = _masks(max_distance // BANDS)
        self._order, self._starts = [], []
        for band in range(BANDS):
            keys = _band(hashes, band)
            self._order.append(np.argsort(keys, kind="stable").astype(np.uint32))
            counts = np.bincount(keys, minlength=1 << BAND_BITS)
            self._starts.append(np.concatenate([[0], np.cumsum(counts)]))

    def near(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all pairs that are near: the place of the query, that of the hash, and their distance, in order."""
        found = [self._in_band(queries, band) for band in range(BANDS)]
        pairs = np.unique(np.concatenate(found))
        query, entry = np.divmod(pairs, max(1, len(self.hashes)))
        return query, entry, np.bitwise_count(queries[query] ^ self.hashes[entry]).astype(np.int64)

    def _in_band(self, queries: np.ndarray, band: int) -> np.ndarray:
        keys = (_band(queries, band)[:, None] ^ self._masks[None]).ravel()
        starts = self._starts[band]
        first, counts = starts[keys], starts[keys + 1] - starts[keys]
        query = np.repeat(np.arange(len(queries)), len(self._masks))
        query, places = np.repeat(query, counts), _ranges(first, counts)
        entry = self._order[band][places].astype(np.int64)
        is_near = np.bitwise_count(queries[query] ^ self.hashes[entry]) <= self.max_distance
        return query[is_near] * len(self.hashes) + entry[is_near]


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return ((hashes >> np.uint64(BAND_BITS * band)) & np.uint64((1 << BAND_BITS) - 1)).astype(np.int64)


def _masks(wrong: int) -> np.ndarray:
    """Return the numbers of 16 bits of which at most `wrong` are set."""
    numbers = np.arange(1 << BAND_BITS)
    return numbers[np.bitwise_count(numbers) <= wrong]


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the numbers of all ranges, one range after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - counts - starts, counts)
