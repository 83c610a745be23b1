"""The check from beginning to end: hash the benchmarks, compare the pool with them and with itself, write."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm.auto import tqdm

from ..curation.columns import combined
from ..files import claim, replacing
from .duplicates import Facts, find_duplicates
from .evaluation_sets import Benchmark
from .images import FINE_BITS, MAX_DISTANCE, Hasher
from .parts import NEAR, EvaluationIndex, compare_part, fine_words, hash_benchmark, num_parts, part_file, read_parts
from .reading import Pool
from .texts import SIGNATURE
from .writing import DETAILS, DROPPED, write


_SHOWN = 3  # examples per benchmark in the summary


@dataclass
class DecontaminationConfig:
    """
    What is near enough to be dropped. The defaults are ours, with these reasons.

    Args:
        max_distance (`int`, *optional*, defaults to 8):
            Bits of 64 in which the perceptual hashes of two pictures may differ, at most 11. A copy that was scaled or
            saved again differs in 0 to 2, one that lost 2 % at each edge in up to 8, other photographs in 20 and more.
        max_fine_distance (`int`, *optional*, defaults to 64):
            The same of the finer hashes of 256 bits, which confirm: about 30 for the cropped copy, 128 for others.
            Pictures of one layout, such as charts, forms or scenes of the digits world, need less.
        max_duplicate_distance (`int`, *optional*, defaults to 3):
            As `max_distance`, of two pictures of the pool: scaled or saved again, but not cropped. Of a million
            pictures, 60 are looked at for each up to 3, 1,000 up to 7, 8,000 up to 11.
        min_overlap (`float`, *optional*, defaults to 0.6):
            Share of the three-word sequences of a question or caption of a benchmark that a row holds: of a question
            of twenty words in which two are exchanged 0.67, reworded freely less than 0.3.
        min_similarity (`float`, *optional*, defaults to 0.8):
            Similarity of the texts of two rows of the pool from which on they count as the same, estimated by MinHash;
            shorter texts have to be equal.
        min_words (`int`, *optional*, defaults to 13):
            Texts of fewer words are not compared with benchmarks: "Is there a dog in the image? Please answer yes or
            no." is asked everywhere. As many words in a row tell a copy in GPT-3's filter (arXiv 2005.14165, app. C).
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
    against = {each.name: f"{len(each.rows)} rows of {each.origin}" for each in benchmarks}
    settings = {"rows": len(pool), "pool": pool.fingerprint(), "split": split, "benchmarks": against, **vars(config)}
    claim(Path(output_dir, "settings.json"), settings)


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
    index = _index(benchmarks, config, folder) if missing else None
    for part in tqdm(missing, desc="decontaminate", unit="part", delay=5):
        compare_part(pool, part, index, config.min_words, hasher, folder)


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
    folder = _hashes(output_dir)
    ids = pool.ids()
    near, errors = [], []
    for table in read_parts(folder, "pool", len(pool), ["near", "error"]):
        near += [some or None for some in table["near"].to_pylist()]
        errors += table["error"].to_pylist()
    sound = np.array([not (some or error) for some, error in zip(near, errors, strict=True)], dtype=bool)
    if config.duplicates:
        for row, kept in enumerate(_repeats(pool, config, folder, sound).tolist()):
            if kept >= 0:
                near[row] = [{**dict.fromkeys(NEAR.names), "id": ids[kept], "matched": "row"}]
    reasons = [_reason(error, some) for error, some in zip(errors, near, strict=True)]
    write(pool, split, output_dir, reasons, errors, near)
    counts = Counter(reason for reason in reasons if reason)
    return {
        "rows_in": len(pool),
        "kept": reasons.count(None),
        "dropped": dict(sorted(counts.items())),
        "contaminated": _by_benchmark(ids, near, reasons),
        "benchmarks": {
            each.name: {"origin": each.origin, **counts}
            for each, counts in zip(benchmarks, _index(benchmarks, config, folder).counts.values(), strict=True)
        },
        "settings": vars(config),
    }


def _reason(error: str | None, near: list[dict[str, Any]] | None) -> str | None:
    if error:
        return "unreadable_image"
    if not near:
        return None
    return "contaminated" if near[0]["benchmark"] else "duplicate"


def _repeats(pool: Pool, config: DecontaminationConfig, folder: Path, sound: np.ndarray) -> np.ndarray:
    """Return which rows repeat which; signatures stay in a file, because there are many and few are looked at."""
    columns: dict[str, list[np.ndarray]] = {}
    fine: list[bytes] = []
    counts, signed = [], []
    rows = len(pool)
    with replacing(folder / "signatures.npy") as scratch:
        shape = (rows, 2, SIGNATURE)
        signatures = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint32, shape=shape)
        start = 0
        for table in read_parts(folder, "pool", rows):
            images = combined(table["images"])
            counts.append(pc.list_value_length(images).to_numpy(zero_copy_only=False))
            images = images.flatten()
            contents = [one[:8] for one in pc.struct_field(images, "content").to_pylist()]
            fine += [one or bytes(FINE_BITS // 8) for one in pc.struct_field(images, "fine").to_pylist()]
            hashes = pc.struct_field(images, "near")
            found = {
                "contents": np.frombuffer(b"".join(contents), dtype="<u8"),
                "near": pc.fill_null(hashes, 0).to_numpy(zero_copy_only=False).astype(np.uint64),
                "flat": hashes.is_null().to_numpy(zero_copy_only=False),
                "words": np.stack([table[name].to_numpy() for name in ("asked", "said")], axis=1),
            }
            for name, values in found.items():
                columns.setdefault(name, []).append(values)
            signed.append(np.zeros((len(table), 2), dtype=bool))
            for number, name in enumerate(("asked", "said")):
                for row, text in enumerate(table[f"{name}_signature"].to_pylist()):
                    if text:
                        signatures[start + row, number] = np.frombuffer(text, dtype=np.uint32)
                        signed[-1][row, number] = True
            start += len(table)
        facts = Facts(
            offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
            **{name: np.concatenate(values) for name, values in columns.items()},
            fine=fine_words(fine),
            signatures=signatures,
            signed=np.concatenate(signed),
            sound=sound,
            fields=(0, 1) if pool.is_training_data else (0,),
        )
        found = find_duplicates(facts, config.max_duplicate_distance, config.max_fine_distance, config.min_similarity)
    (folder / "signatures.npy").unlink()
    return found


def _by_benchmark(ids: list[str], near: list, reasons: list[str | None]) -> dict[str, dict[str, Any]]:
    """Return, for each benchmark, how many rows are near to it, by what, and the nearest ones."""
    found: dict[str, dict[str, Any]] = {}
    for row, reason in enumerate(reasons):
        if reason != "contaminated":
            continue
        for name in dict.fromkeys(one["benchmark"] for one in near[row]):
            mine = [one for one in near[row] if one["benchmark"] == name]
            counts = found.setdefault(name, {"rows": 0, "image": 0, "question": 0, "caption": 0, "nearest": []})
            counts["rows"] += 1
            for one in mine:
                counts[one["matched"]] += 1
            nearest = [*counts["nearest"], {"id": ids[row], **{k: v for k, v in mine[0].items() if k in _EXAMPLE}}]
            counts["nearest"] = sorted(nearest, key=_farness)[:_SHOWN]
    return dict(sorted(found.items()))


_EXAMPLE = ("row", "matched", "distance", "overlap")


def _farness(example: dict[str, Any]) -> tuple:
    return (example["distance"] is None, example["distance"] or 0, -(example["overlap"] or 0))
