"""What is known of all rows of a pool at once, as columns of numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..curation.columns import combined
from .images import FINE_BITS, fine_words
from .parts import TEXTS, read_parts
from .texts import SIGNATURE


@dataclass
class Facts:
    """
    What is known of all rows, without their ids.

    Args:
        offsets (`np.ndarray`):
            The images of row `i` are those from `offsets[i]` to `offsets[i + 1]`.
        contents, near (`np.ndarray` of `uint64`), fine (`np.ndarray` of `uint64`, four a row), flat (`np.ndarray`):
            A hash of the bytes of each image, its perceptual hashes, and whether it has none.
        words (`np.ndarray` of `uint64`, two a row):
            Hashes of what is asked and of what is said.
        signatures (`np.ndarray` of `uint32`, two times 64 a row), signed (`np.ndarray`, two a row):
            MinHashes of them, and whether they are long enough for one.
        sound (`np.ndarray` of `bool`):
            Rows that may be kept.
        fields (`tuple[int, ...]`):
            Which of the two texts tell rows apart.
    """

    offsets: np.ndarray
    contents: np.ndarray
    near: np.ndarray
    fine: np.ndarray
    flat: np.ndarray
    words: np.ndarray
    signatures: np.ndarray
    signed: np.ndarray
    sound: np.ndarray
    fields: tuple[int, ...]

    @property
    def num_images(self) -> np.ndarray:
        """Images of each row."""
        return np.diff(self.offsets)


@contextmanager
def facts_of(folder: Path, rows: int, sound: np.ndarray, fields: tuple[int, ...]) -> Iterator[Facts]:
    """Yield what the parts in `folder` say; signatures are in a file, because there are many and few are looked at."""
    with TemporaryFile(dir=folder) as scratch:
        signatures = np.memmap(scratch, np.uint32, "w+", shape=(rows, 2, SIGNATURE))
        columns: dict[str, list[np.ndarray]] = {}
        start = 0
        for table in read_parts(folder, "pool", rows):
            some = signatures[start : start + len(table)]
            found = _numbers(table) | {"signed": _put_signatures(table, some, fields)}
            for name, values in found.items():
                columns.setdefault(name, []).append(values)
            start += len(table)
        whole = {name: np.concatenate(values) for name, values in columns.items()}
        offsets = np.concatenate([[0], np.cumsum(whole.pop("counts"))]).astype(np.int64)
        yield Facts(offsets=offsets, **whole, signatures=signatures, sound=sound, fields=fields)


def _numbers(table: pa.Table) -> dict[str, np.ndarray]:
    """Return the columns of a part that are numbers, or bytes that can be read as such."""
    images = combined(table["images"])
    counts = pc.list_value_length(images).to_numpy(zero_copy_only=False)
    images = images.flatten()
    contents = [one[:8] for one in pc.struct_field(images, "content").to_pylist()]
    hashes = pc.struct_field(images, "near")
    return {
        "counts": counts,
        "contents": np.frombuffer(b"".join(contents), dtype="<u8"),
        "near": pc.fill_null(hashes, 0).to_numpy(zero_copy_only=False).astype(np.uint64),
        "fine": fine_words([one or bytes(FINE_BITS // 8) for one in pc.struct_field(images, "fine").to_pylist()]),
        "flat": hashes.is_null().to_numpy(zero_copy_only=False),
        "words": np.stack([table[name].to_numpy() for name in TEXTS], axis=1),
    }


def _put_signatures(table: pa.Table, into: np.ndarray, fields: tuple[int, ...]) -> np.ndarray:
    """Write the signatures of a part, and return which of its texts have one."""
    signed = np.zeros((len(table), 2), dtype=bool)
    for number in fields:
        for row, text in enumerate(table[f"{TEXTS[number]}_signature"].to_pylist()):
            if text:
                into[row, number] = np.frombuffer(text, dtype=np.uint32)
                signed[row, number] = True
    return signed
