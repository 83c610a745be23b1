"""The check from beginning to end: hash the benchmarks, compare the pool with them and with itself, write."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..files import claim, replacing
from .comparison import Comparison, common_wording, compare_part
from .duplicates import find_duplicates
from .evaluation_index import EvaluationIndex
from .evaluation_sets import Benchmark
from .facts import facts_of
from .images import FINE_BITS, MAX_DISTANCE, Hasher
from .parts import NEAR, hash_benchmark, num_parts, part_file, read_parts
from .reading import Pool, benchmark_fingerprint
from .writing import DETAILS, DROPPED, by_benchmark, write


@dataclass
class DecontaminationConfig:
    """
    What is near enough to be dropped. The defaults are ours, with these reasons.

    Args:
        max_distance (`int`, *optional*, defaults to 8):
            Bits of 64 in which the perceptual hashes of two pictures may differ, at most 11. Right for photographs: a
            copy that was scaled or saved again differs in 0 to 2 as a rule, one that lost 2 % at each edge in about 4,
            other photographs in 16 and more. `images.py` says what is found and what is not.
        max_fine_distance (`int`, *optional*, defaults to 64):
            The same of the finer hashes of 256 bits, which confirm: about 36 for the cropped copy, 92 and more for
            others. Pictures of one layout (charts, pages, scenes of the digits world) need less of both, such as 4 and
            24: check a pool that has them a second time, or against such benchmarks (`tasks`) by itself.
        max_duplicate_distance (`int`, *optional*, defaults to 3):
            As `max_distance`, of two pictures of the pool: scaled or saved again, but not cropped. Of a million
            pictures, 60 are looked at for each up to 3, 1,000 up to 7, 8,000 up to 11.
        min_overlap (`float`, *optional*, defaults to 0.6):
            Share of the three-word sequences of a question or caption of a benchmark that a row holds: of a question
            of twenty words in which two are exchanged 0.67, reworded freely less than 0.3.
        min_similarity (`float`, *optional*, defaults to 0.8):
            Similarity of the texts of two rows of the pool from which on they count as the same, estimated by MinHash;
            what much of the pool has in common is left out, and shorter texts have to be equal.
        min_words (`int`, *optional*, defaults to 13):
            Texts of fewer words are not compared with benchmarks, and repeat another row only if they are equal: "Is
            there a dog in the image? Please answer yes or no." is asked everywhere. As many words in a row tell a copy
            in GPT-3's filter (arXiv 2005.14165, app. C).
        texts (`bool`, *optional*, defaults to `True`):
            Compare questions and captions with the benchmarks; `False` where both are made from the same templates.
        duplicates (`bool`, *optional*, defaults to `True`):
            Drop rows that are in the pool twice, too.
    """

    max_distance: int = field(default=8, metadata={"help": "Bits of 64 in which near pictures differ."})
    max_fine_distance: int = field(default=64, metadata={"help": "Bits of 256 in which near pictures differ."})
    max_duplicate_distance: int = field(default=3, metadata={"help": "Bits of 64, of two pictures of the pool."})
    min_overlap: float = field(default=0.6, metadata={"help": "Share of a benchmark's text that a row holds."})
    min_similarity: float = field(default=0.8, metadata={"help": "Similarity of texts of two rows of the pool."})
    min_words: int = field(default=13, metadata={"help": "Shorter texts are not compared with benchmarks."})
    texts: bool = field(default=True, metadata={"help": "Compare questions and captions, not only pictures."})
    duplicates: bool = field(default=True, metadata={"help": "Drop rows that are in the pool twice."})

    def __post_init__(self) -> None:
        bits = {"max_distance": MAX_DISTANCE, "max_fine_distance": FINE_BITS, "max_duplicate_distance": MAX_DISTANCE}
        for name, most in bits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is a number of bits from 0 to {most}, got {getattr(self, name)}")
        for name in ("min_overlap", "min_similarity"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share in (0, 1], got {getattr(self, name)}")
        if self.min_words < 1:
            raise ValueError(f"min_words is at least 1, got {self.min_words}")


def start(
    pool: Pool, benchmarks: list[Benchmark], config: DecontaminationConfig, split: str, output_dir: str | Path
) -> None:
    """Claim `output_dir` for this check, or refuse to go on there with another one."""
    if split == DROPPED:
        raise ValueError(f"the split {split!r} cannot be looked through, because what is dropped goes there")
    if taken := sorted(set(DETAILS.names) & set(pool.features)):
        raise ValueError(f"the rows have a column {taken[0]!r} already; rename it")
    against = {
        each.name: f"{len(each.rows)} rows of {each.origin}, {benchmark_fingerprint(each.rows)}" for each in benchmarks
    }
    settings = {"rows": len(pool), "pool": pool.fingerprint(), "split": split, "benchmarks": against, **vars(config)}
    claim(Path(output_dir, "settings.json"), settings)
    if not _wording(output_dir).exists():
        with replacing(_wording(output_dir)) as unfinished, unfinished.open("wb") as file:
            np.save(file, common_wording(pool))


def hash_benchmarks(
    benchmarks: list[Benchmark],
    config: DecontaminationConfig,
    output_dir: str | Path,
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """Hash what this process has to of the benchmarks and what is not done yet; [`compare`] needs all of it."""
    hasher = Hasher()
    parts = [(each, part) for each in benchmarks for part in range(num_parts(len(each.rows)))]
    for benchmark, part in tqdm(parts[process_index::num_processes], desc="benchmarks", unit="part", delay=5):
        if not part_file(_hashes(output_dir), benchmark.name, part).exists():
            min_words = config.min_words if config.texts else 1 << 62
            hash_benchmark(benchmark, part, min_words, hasher, _hashes(output_dir))


def compare(
    pool: Pool,
    benchmarks: list[Benchmark],
    config: DecontaminationConfig,
    output_dir: str | Path,
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """Compare what this process has to of the pool, and what is not done yet, with the benchmarks."""
    folder, hasher = _hashes(output_dir), Hasher()
    parts = range(num_parts(len(pool)))[process_index::num_processes]
    missing = [part for part in parts if not part_file(folder, "pool", part).exists()]
    if not missing:
        return
    index = _index(benchmarks, config, folder) if benchmarks else None
    comparison = Comparison(index, config.min_words, np.load(_wording(output_dir)))
    for part in tqdm(missing, desc="decontaminate", unit="part", delay=5):
        compare_part(pool, part, comparison, hasher, folder)


def _wording(output_dir: str | Path) -> Path:
    return _hashes(output_dir) / "wording.npy"


def _hashes(output_dir: str | Path) -> Path:
    return Path(output_dir, "hashes")


def _index(benchmarks: list[Benchmark], config: DecontaminationConfig, folder: Path) -> EvaluationIndex:
    sizes = {each.name: len(each.rows) for each in benchmarks}
    return EvaluationIndex(sizes, folder, config.max_distance, config.max_fine_distance, config.min_overlap)


def conclude(
    pool: Pool, benchmarks: list[Benchmark], config: DecontaminationConfig, split: str, output_dir: str | Path
) -> dict[str, Any]:
    """
    Find the duplicates, write the rows that stay as the split `split` and the others as `dropped`.

    The kept rows have the columns that they had, image bytes untouched. The dropped ones also have `reason`
    (`unreadable_image`, `contaminated`, `duplicate`; the first that applies), `detail` in words, and `near`: for every
    benchmark the nearest row, what of it matched and how near it is, or the `id` of the row that was kept.

    Args:
        pool ([`Pool`]), benchmarks (`list[Benchmark]`), config ([`DecontaminationConfig`]), split (`str`),
        output_dir (`str` or `Path`):
            As before; every process has compared its part.

    Returns:
        `dict[str, Any]`: counts (`rows_in`, `kept`, `dropped` by reason), per benchmark in `contaminated` the rows
        that are near to it (`rows`; how many of them by `image`, `question`, `caption`) with the nearest as examples,
        where each benchmark is from and how many of its images and texts were compared in `benchmarks`, and how near
        is near in `settings`.
    """
    folder, ids = _hashes(output_dir), pool.ids()
    near, errors = [], []
    for table in read_parts(folder, "pool", len(pool), ["near", "error"]):
        near += [some or None for some in table["near"].to_pylist()]
        errors += table["error"].to_pylist()
    for row, kept in _repeats(pool, config, folder, near, errors) if config.duplicates else ():
        near[row] = [{**dict.fromkeys(NEAR.names), "id": ids[kept].as_py(), "matched": "row"}]
    reasons = [_reason(error, some) for error, some in zip(errors, near, strict=True)]
    write(pool, split, output_dir, reasons, errors, near)
    compared = _index(benchmarks, config, folder).counts
    counts = Counter(filter(None, reasons))
    return {
        "rows_in": len(pool),
        "kept": reasons.count(None),
        "dropped": dict(sorted(counts.items())),
        "contaminated": by_benchmark(ids, near, reasons),
        "benchmarks": {each.name: {"origin": each.origin, **compared[each.name]} for each in benchmarks},
        "settings": vars(config),
    }


def _reason(error: str | None, near: list[dict[str, Any]] | None) -> str | None:
    if error:
        return "unreadable_image"
    if not near:
        return None
    return "contaminated" if near[0]["benchmark"] else "duplicate"


def _repeats(
    pool: Pool, config: DecontaminationConfig, folder: Path, near: list[Any], errors: list[str | None]
) -> list[tuple[int, int]]:
    """Return the rows that repeat an earlier one, each with that one, among those that may be kept."""
    sound = np.array([not (some or error) for some, error in zip(near, errors, strict=True)], dtype=bool)
    with facts_of(folder, len(pool), sound, (0, 1) if pool.is_training_data else (0,)) as facts:
        kept = find_duplicates(facts, config.max_duplicate_distance, config.max_fine_distance, config.min_similarity)
    rows = np.flatnonzero(kept >= 0)
    return list(zip(rows.tolist(), kept[rows].tolist(), strict=True))
