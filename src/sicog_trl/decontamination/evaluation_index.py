"""All that the benchmarks ask, found by what is near to it."""

from pathlib import Path
from typing import Any

import numpy as np

from .images import HammingIndex, Picture, fine_distance, fine_words
from .parts import KINDS, read_parts
from .texts import SequenceIndex


class EvaluationIndex:
    """
    Everything that the benchmarks ask, found by what is near to it.

    Args:
        benchmarks (`dict[str, int]`):
            Their names and numbers of rows.
        folder (`Path`):
            Where their parts are.
        max_distance, max_fine_distance (`int`), min_overlap (`float`):
            What is near, see [`DecontaminationConfig`].

    Attributes:
        counts (`dict[str, dict[str, int]]`):
            Per benchmark: `rows`, `images`, `unreadable_images`, `flat_images` (found only if equal), `texts` that
            are compared, `texts_too_common` (hardly a sequence of words is theirs alone).
    """

    def __init__(
        self,
        benchmarks: dict[str, int],
        folder: Path,
        max_distance: int,
        max_fine_distance: int,
        min_overlap: float,
    ):
        self.names = list(benchmarks)
        self.max_fine_distance = max_fine_distance
        self.counts: dict[str, dict[str, int]] = {}
        self._flat: dict[bytes, list[tuple[int, int]]] = {}
        hashes, fine, self._images = [], [], []
        texts, self._texts, unreadable = [], [], dict.fromkeys(benchmarks, 0)
        for group, (name, rows) in enumerate(benchmarks.items()):
            start = 0
            for table in read_parts(folder, name, rows):
                unreadable[name] += sum(table["unreadable"].to_pylist())
                columns = (table["images"].to_pylist(), *(table[kind] for kind in KINDS))
                numbers = range(start, start + len(table))
                start += len(table)
                for number, images, *sequences_of in zip(numbers, *columns, strict=True):
                    for picture in (Picture(**image) for image in images):
                        if picture.near is None:
                            self._flat.setdefault(picture.content, []).append((group, number))
                            continue
                        hashes.append(picture.near)
                        fine.append(picture.fine)
                        self._images.append((group, number))
                    for kind, found in enumerate(sequences_of):
                        texts += [np.asarray(one.values.to_numpy(), dtype=np.uint64) for one in found.values]
                        self._texts += [(group, number, kind)] * len(found)
        self._pictures = HammingIndex(np.array(hashes, dtype=np.uint64), max_distance)
        self._fine = fine_words(fine)
        self._sequences = SequenceIndex(texts, np.array([place[0] for place in self._texts], np.int64), min_overlap)
        self._count(benchmarks, unreadable)

    def _count(self, benchmarks: dict[str, int], unreadable: dict[str, int]) -> None:
        flat = [group for places in self._flat.values() for group, _ in places]
        for group, name in enumerate(self.names):
            mine = [i for i, place in enumerate(self._texts) if place[0] == group]
            compared = sum(bool(self._sequences.sizes[i]) for i in mine)
            self.counts[name] = {
                "rows": benchmarks[name],
                "images": sum(place[0] == group for place in self._images) + flat.count(group),
                "unreadable_images": unreadable[name],
                "flat_images": flat.count(group),
                "texts": compared,
                "texts_too_common": len(mine) - compared,
            }

    def near(self, pictures: list[list[Picture]], texts: list[list[np.ndarray]]) -> list[list[dict[str, Any]]]:
        """Return, for each row, the nearest row of every benchmark in which something is near, images first."""
        found: list[dict[tuple[int, str], dict[str, Any]]] = [{} for _ in texts]

        def add(row: int, group: int, number: int, matched: str, distance: int | None, overlap: float | None) -> None:
            nearness = (distance or 0, -(overlap or 0), number)
            before = found[row].get((group, matched))
            if before is None or nearness < before["nearness"]:
                what = {"row": number, "matched": matched, "distance": distance, "overlap": overlap}
                found[row][group, matched] = {"benchmark": self.names[group], **what, "nearness": nearness}

        owners = [row for row, some in enumerate(pictures) for one in some if one.near is not None]
        known = [one for some in pictures for one in some if one.near is not None]
        query, entry, distance = self._pictures.near(np.array([one.near for one in known], dtype=np.uint64))
        confirmed = fine_distance(fine_words([one.fine for one in known])[query], self._fine[entry])
        for place in np.flatnonzero(confirmed <= self.max_fine_distance):
            group, number = self._images[entry[place]]
            add(owners[query[place]], group, number, "image", int(distance[place]), None)
        for row, some in enumerate(pictures):
            for one in some:
                for group, number in self._flat.get(one.content, ()) if one.near is None else ():
                    add(row, group, number, "image", 0, None)
        speakers = [row for row, some in enumerate(texts) for _ in some]
        for query, text, share in zip(*self._sequences.near([one for some in texts for one in some]), strict=True):
            group, number, kind = self._texts[text]
            add(speakers[query], group, number, KINDS[kind], None, float(share))
        order = ("image", *KINDS)
        keys = [sorted(row, key=lambda key: (order.index(key[1]), key[0])) for row in found]
        return [
            [{k: v for k, v in row[key].items() if k != "nearness"} for key in some]
            for row, some in zip(found, keys, strict=True)
        ]
