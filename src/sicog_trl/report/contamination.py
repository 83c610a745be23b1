"""What was taken out of a pool because an evaluation asks it, shown so that a person can judge: rows side by side."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable

from ..data import num_rows, split_file
from ..evaluation.examples import missing, pictures
from ..files import write_json
from .gallery import stage_folder
from .line import counts_of
from .pages import read_json, write_pages
from .sections import MISSING, number, verb


if TYPE_CHECKING:
    from ..decontamination import Benchmark, Pool


NUM_CONTAMINATED, NUM_DUPLICATES = 8, 4  # pairs on the page
MAX_TEXT = 400  # characters of one text on the page; how many more there are is said
BY = ("image", "question", "caption")
# Setting -> what it says on the page.
SETTINGS = {
    "max_distance": "bits of 64 in which pictures that are near differ at most",
    "max_fine_distance": "bits of 256 of the finer hashes, which confirm it",
    "min_overlap": "share of a benchmark's text that a row holds at least",
    "min_words": "words from which on a text is compared; a shorter one only repeats one that is equal",
    "max_duplicate_distance": "bits of 64 in which two pictures of the pool differ at most",
    "min_similarity": "similarity of two texts of the pool at least",
}
_DATA_URI = re.compile(r"data:image/(png|jpeg);base64,[\w+/=]+", re.ASCII)
_OF_TEXTS, _OF_DUPLICATES = {"min_overlap"}, {"max_duplicate_distance", "min_similarity"}


def write_contamination_report(output_dir: str | Path, benchmarks: "Sequence[Benchmark]" = ()) -> Path:
    """
    Write `decontamination.html` and its twin `decontamination.md` into the folder of a check, and the pairs that they
    show as `pairs.json`, from which the report of a whole line takes them.

    Args:
        output_dir (`str` or `Path`):
            Folder that `recipes/decontaminate.py` wrote, with its `summary.json`.
        benchmarks (`Sequence[Benchmark]`, *optional*):
            What was compared with; without them their rows are named, not shown.

    Returns:
        `Path`: path of `decontamination.html`.
    """
    folder = Path(output_dir)
    if not (folder / "summary.json").is_file():
        raise FileNotFoundError(f"{folder / 'summary.json'} is missing; run recipes/decontaminate.py first")
    write_json(folder / "pairs.json", find_pairs(folder, benchmarks))
    check = read_check(folder, read_json(folder / "summary.json", dict))
    return write_pages(folder, "decontamination", {"contamination": [check]})


def contamination(run_dir: Path, stages: list[dict]) -> list[dict[str, Any]]:
    """Return what the page shows of every check of a run; nothing if there was none."""
    checks = [stage for stage in stages if verb(stage) == "decontaminate"]
    return [
        read_check(stage_folder(run_dir, stage), counts_of(stage))
        if stage.get("status") == "done"
        else {"done": False, "pairs": []}
        for stage in checks
    ]


def read_check(folder: Path | None, counts: dict[str, Any]) -> dict[str, Any]:
    """Return what the templates show of one check: counts, benchmarks, settings and, if its folder is there, pairs."""
    settings = counts.get("settings") or {}
    dropped = counts.get("dropped") or {}
    texts, duplicates = settings.get("texts", True), settings.get("duplicates", True)
    unused = (set() if texts else _OF_TEXTS) | (set() if duplicates else _OF_DUPLICATES)
    unused |= set() if texts or duplicates else {"min_words"}
    total, kept = counts.get("rows_in"), counts.get("kept")
    known = isinstance(total, int) and isinstance(kept, int)
    return {
        "done": True,
        "rows_in": number(total),
        "kept": number(kept),
        "reasons": [(reason.replace("_", " "), number(count)) for reason, count in dropped.items()],
        "adds_up": kept + sum(dropped.values()) == total if known else None,
        "benchmarks": _benchmarks(counts),
        "texts": texts,
        "duplicates": duplicates,
        "settings": [
            (name, what, str(settings[name])) for name, what in SETTINGS.items() if name in settings.keys() - unused
        ],
        "pairs": _shown_pairs(folder) if folder else [],
    }


def _shown_pairs(folder: Path) -> list[dict[str, Any]]:
    """Return the pairs of a check, which may be somebody else's: an image that a page would have to fetch is left."""
    pairs = read_json(folder / "pairs.json", list) or find_pairs(folder)
    for side in (side for pair in pairs for side in pair["sides"]):
        side["images"] = [image for image in side["images"] if _DATA_URI.fullmatch(image)]
    return pairs


def _benchmarks(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each benchmark what of it was compared, and how many rows of the pool are near to it, by what."""
    flagged = counts.get("contaminated") or {}
    rows = []
    for name, compared in (counts.get("benchmarks") or {}).items():
        near = flagged.get(name) or {}
        rows.append(
            {
                "name": name,
                "origin": str(compared.get("origin") or MISSING),
                "rows": number(compared.get("rows")),
                "images": number(compared.get("images")),
                "unreadable": number(compared.get("unreadable_images")),
                "texts": number(compared.get("texts")),
                "near": number(near.get("rows", 0)),
                "by": [number(near.get(kind, 0)) for kind in BY],
                "nothing": not (compared.get("images") or compared.get("texts")),
            }
        )
    return rows


def find_pairs(folder: Path, benchmarks: "Sequence[Benchmark]" = ()) -> list[dict[str, Any]]:
    """
    Return dropped rows with what they are near to.

    Contaminated ones come from each benchmark in turn, at equal distances from the nearest to the farthest, so that
    those at the threshold are among them; duplicates at equal distances through the file. Nobody chose them.

    Args:
        folder (`Path`):
            Folder of a check.
        benchmarks (`Sequence[Benchmark]`, *optional*):
            What was compared with.

    Returns:
        `list[dict[str, Any]]`: `id`, `reason`, `detail` (what it is near to and how near, in words) and two `sides`,
        the dropped row and the one that it is near to, each with `name`, `images` (data URIs of small copies), `note`
        (what is missing and why), `asked` and `said`.
    """
    if not num_rows(folder, "dropped"):
        return []
    reasons = _column(folder, "dropped", "reason")
    near = _column(folder, "dropped", "near")
    against = {benchmark.name: benchmark for benchmark in benchmarks}
    asked = _contaminated(near, np.flatnonzero(pc.equal(reasons, "contaminated")))
    pairs = [_pair(folder, row, _asked_row(one, against)) for row, one in asked]
    if repeats := _spread(np.flatnonzero(pc.equal(reasons, "duplicate")).tolist(), NUM_DUPLICATES):
        split = read_json(folder / "settings.json", dict)["split"]
        kept = _column(folder, split, "id")
        pairs += [_pair(folder, row, _kept_row(folder, split, kept, near[row].as_py()[0]["id"])) for row in repeats]
    return pairs


def _column(folder: Path, split: str, name: str) -> pa.ChunkedArray:
    return pq.read_table(split_file(folder, split), columns=[name])[name]


def _row(folder: Path, split: str, number: int) -> "Pool":
    """Return one row; of a pool of a million images nothing else is read."""
    from ..decontamination import Pool  # its libraries take a second, which pages without pairs need not wait for

    with pq.ParquetFile(split_file(folder, split)) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if number < size:
                return Pool(Dataset(InMemoryTable(file.read_row_group(group).slice(number, 1))))
            number -= size
    raise IndexError(f"{folder} has no such row in {split!r}")


def _spread(members: Sequence[Any], count: int) -> list[Any]:
    wanted = min(len(members), count)
    return [members[(2 * i + 1) * len(members) // (2 * wanted)] for i in range(wanted)]


def _contaminated(near: pa.ChunkedArray, rows: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of each benchmark in turn, from near to far, with what of it they are near to."""
    groups: dict[str, list[tuple[tuple, int, dict[str, Any]]]] = {}
    for row, found in zip(rows.tolist(), near.take(rows).to_pylist(), strict=True):
        one = found[0]  # the nearest of its kind, pictures first
        farness = (one["distance"] is None, one["distance"] or 0, -(one["overlap"] or 0))
        groups.setdefault(one["benchmark"], []).append((farness, row, one))
    for rank, name in enumerate(sorted(groups)):
        share = NUM_CONTAMINATED // len(groups) + (rank < NUM_CONTAMINATED % len(groups))
        for _, row, one in _spread(sorted(groups[name], key=lambda each: each[:2]), share):
            yield row, one


def _pair(folder: Path, row: int, other: dict[str, Any]) -> dict[str, Any]:
    dropped = _row(folder, "dropped", row)
    told = dropped.table(0, 1).select(["id", "reason", "detail"]).to_pylist()[0]
    return {
        **{name: cut(str(text)) for name, text in told.items()},
        "sides": [_side("dropped", dropped.read(0, 1)), other],
    }


def _side(name: str, rows: Any) -> dict[str, Any]:
    """Return one row as the page shows it."""
    asked, said = (cut(" / ".join(filter(None, texts[0]))) for texts in (rows.asked, rows.said))
    return {"name": name, **pictures(rows.images[0]), "asked": asked, "said": said}


def _nothing(name: str, reason: str) -> dict[str, Any]:
    return {"name": name, **missing(reason), "asked": "", "said": ""}


def _asked_row(near: dict[str, Any], against: "dict[str, Benchmark]") -> dict[str, Any]:
    from ..decontamination.reading import read_benchmark

    name, row = near["benchmark"], near["row"]
    if name not in against:
        return _nothing(f"{name}, row {row}", "the rows of the benchmark are not at hand")
    return _side(f"{name}, row {row}", next(read_benchmark(against[name].rows.select([row]))))


def _kept_row(folder: Path, split: str, kept: pa.ChunkedArray, name: str) -> dict[str, Any]:
    row = pc.index(kept, name).as_py()
    if row < 0:
        return _nothing(f"{cut(name)}, kept", "the row is not in the file of kept rows")
    return _side(f"{cut(name)}, kept", _row(folder, split, row).read(0, 1))


def cut(text: str) -> str:
    """Return a text for the page; a long one ends with how much of it is missing."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … [{len(text) - MAX_TEXT:,} more characters]"
