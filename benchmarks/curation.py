"""
Seconds and memory of curation at the size of the paper, embeddings given; and what it costs to embed, apart.

The paper keeps 213K rows. Here as many rows of three candidates (two chains and a short one, half of them captions
with a last part of 60 to 100 words, half answers) are curated at three sizes, each in a process of its own: judge,
select, write `curated`, `dropped` and `scores`. Vectors of 384 numbers are looked up in a file. `peak_gib` is the
largest resident size of that process, loading and everything mapped into memory included.

To embed: seconds per 1,000 last parts of captions with each similarity. `sentence-transformers` is a model with the
shape of MiniLM-L6 and random weights: as slow as the real one, and there without a download.

make bench, or: python benchmarks/curation.py
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _curation import given_vectors, lookup, random_encoder, sentences, write_candidates

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.curation.embedding import embedder
from sicog_trl.data import load
from sicog_trl.files import replacing, write_json
from sicog_trl.provenance import made_by
from sicog_trl.report import aligned_table


FULL = {
    "rows": [21_300, 71_000, 213_000],
    "texts": {"word_ngram": 10_000, "char_ngram": 5_000, "sentence-transformers": 256},
}
QUICK = {
    "rows": [710, 2_130, 7_100],
    "texts": {"word_ngram": 500, "char_ngram": 500, "sentence-transformers": 16},
}
TARGET_SECONDS, TARGET_GIB = 60, 2  # at 213,000 rows, on two cores


def own_process() -> Executor:
    """Return a process for one size; it starts afresh, so that it inherits no memory."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def peak_gib() -> float:
    """Return the largest resident size of this process; that of `resource` begins with what its parent had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("the peak of memory is read from /proc/self/status, which has none here")


def measure(candidates: str, vectors: Path, output_dir: str) -> dict[str, Any]:
    """Curate, and return the seconds and the largest resident size of this process."""
    started = time.perf_counter()
    rows = load(candidates, split="candidates")
    loaded, before = time.perf_counter(), time.process_time()
    summary = curate(rows, CurationConfig(similarity="given vectors"), output_dir, lookup(vectors))
    seconds, cpu_seconds = time.perf_counter() - loaded, time.process_time() - before
    kept = {name: summary[name] for name in ("rows_in", "kept", "dropped")}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seconds_to_load": loaded - started,
        "peak_gib": peak_gib(),
        **kept,
    }


def selection(folder: Path, sizes: Sequence[int], executor: Callable[[], Executor]) -> dict[str, dict[str, Any]]:
    """Curate each number of rows in a place of its own."""
    vectors = folder / "vectors.npy"
    given_vectors(vectors)
    found = {}
    for rows in sizes:
        candidates = folder / f"candidates-{rows}"
        with executor() as place:
            place.submit(write_candidates, candidates, rows).result()
        with executor() as place:
            job = place.submit(measure, str(candidates), vectors, str(folder / f"curated-{rows}"))
            found[str(rows)] = job.result()
    return found


def embedding(folder: Path, counts: dict[str, int]) -> dict[str, float | None]:
    """Return the seconds that each similarity takes for 1,000 texts of about 80 words; `None` if it is not there."""
    pool = sentences()
    texts = [" ".join(pool[(7 * number + 11 * i) % len(pool)] for i in range(8)) for number in range(10_000)]
    found: dict[str, float | None] = {}
    for name, count in counts.items():
        try:
            embed = embedder(random_encoder(folder, pool) if name == "sentence-transformers" else name)
        except ImportError:
            found[name] = None
            continue
        embed(texts[:8])
        started = time.perf_counter()
        embed(texts[:count])
        found[name] = (time.perf_counter() - started) * 1000 / count
    return found


def show(result: dict[str, Any]) -> str:
    """Return what was measured as two tables."""
    rows = [
        [
            f"{int(rows):,}",
            f"{one['seconds']:.1f}",
            f"{one['cpu_seconds']:.1f}",
            f"{1000 * one['seconds'] / int(rows):.2f}",
            f"{one['peak_gib']:.2f}",
        ]
        for rows, one in result["sizes_measured"].items()
    ]
    embed = [
        [name, "not measured" if seconds is None else f"{seconds:.2f}"]
        for name, seconds in result["seconds_to_embed_1000_texts"].items()
    ]
    return "\n\n".join(
        [
            aligned_table(["rows", "seconds", "of a core", "ms per row", "peak GiB"], rows, left=0),
            aligned_table(["similarity", "seconds per 1,000 texts"], embed),
        ]
    )


def page(result: dict[str, Any]) -> str:
    """Return the page that stands beside the JSON."""
    machine = result["hardware"]
    dirty = ", with changed files" if result["dirty"] else ""
    return "\n".join(
        [
            "# Curation",
            "",
            "Three candidates a row, vectors given; judge, select and write. Targets at 213,000 rows on two cores: "
            f"{TARGET_SECONDS} seconds and {TARGET_GIB} GiB.",
            f"{machine['processor']}, {machine['cores']} cores, load before {result['load_before']:.2f}; "
            f"commit {result['commit']}{dirty}.",
            "",
            show(result),
            "",
            "Peaks are those of a process of its own, with Python and torch in it. `sentence-transformers`: the shape "
            "of MiniLM-L6 with random weights; texts of about 80 words.",
            "",
        ]
    )


def main(
    size: dict[str, Any], output_dir: Path | None, executor: Callable[[], Executor] = own_process
) -> dict[str, Any]:
    """Measure `size`, print the tables, write `curation.json` and `.md` if there is an `output_dir`."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        os.environ["HF_DATASETS_CACHE"] = name  # of the processes to come
        measured = selection(Path(name), size["rows"], executor)
        seconds_to_embed = embedding(Path(name), size["texts"])
    largest = measured.get("213000", {})
    result = {
        "benchmark": "curation",
        "seconds_213k": largest.get("seconds"),
        "peak_gib_213k": largest.get("peak_gib"),
        "seconds_per_size": {rows: one["seconds"] for rows, one in measured.items()},
        "seconds_to_embed_1000_texts": seconds_to_embed,
        "sizes_measured": measured,
        **made_by(),
        "load_before": load_before,
        "sizes": size,
    }
    print(show(result))
    if output_dir:
        write_json(output_dir / "curation.json", result)
        with replacing(output_dir / "curation.md") as unfinished:
            unfinished.write_text(page(result), encoding="utf-8")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, help="gets curation.json and .md; benchmarks/results, or with --quick nothing"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything")
    args = parser.parse_args()
    output_dir = args.output_dir or (None if args.quick else Path("benchmarks/results"))
    print(json.dumps(main(QUICK if args.quick else FULL, output_dir)))
