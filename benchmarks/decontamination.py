"""
Rows per second and memory of decontamination at three sizes, against a benchmark of 2,000 rows.

Every row has a picture of 96 by 72 pixels and a question of about twenty words; one in a hundred is a copy from the
benchmark, one repeats another row. Each size runs in a process of its own, from the rows on disk to the splits. To
decode photographs of ordinary size takes longer than all of this and is measured apart, per picture of 640 by 480.
Peaks are those of a process of its own with torch in it, and count what is mapped into memory of the rows on disk.

make bench, or: python benchmarks/decontamination.py
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from _decontamination import picture, write_rows
from curation import own_process, peak_gib
from PIL import Image

from sicog_trl.data import load
from sicog_trl.decontamination import (
    Benchmark,
    DecontaminationConfig,
    Pool,
    compare,
    conclude,
    hash_benchmarks,
    start,
)
from sicog_trl.decontamination.images import Hasher
from sicog_trl.files import replacing, write_json
from sicog_trl.provenance import made_by
from sicog_trl.report import aligned_table


FULL = {"rows": [2_000, 6_000, 20_000], "benchmark": 2_000, "photos": 100}
QUICK = {"rows": [500, 1_000, 2_000], "benchmark": 200, "photos": 5}
MILLION = 10**6


def measure(pool_dir: str, benchmark_dir: str, output_dir: str) -> dict[str, Any]:
    """Decontaminate, and return the seconds of each step and the largest resident size of this process."""
    config, times = DecontaminationConfig(), [time.perf_counter()]
    benchmarks = [Benchmark("benchmark", load(benchmark_dir), "here")]
    pool = Pool(load(pool_dir))
    start(pool, benchmarks, config, "train", output_dir)
    times.append(time.perf_counter())
    hash_benchmarks(benchmarks, config, output_dir)
    times.append(time.perf_counter())
    compare(pool, benchmarks, config, output_dir)
    times.append(time.perf_counter())
    summary = conclude(pool, benchmarks, config, "train", output_dir)
    times.append(time.perf_counter())
    names = ("seconds_to_load", "seconds_to_hash_benchmark", "seconds_to_compare", "seconds_to_conclude")
    seconds = {name: after - before for name, before, after in zip(names, times, times[1:], strict=False)}
    done = seconds["seconds_to_compare"] + seconds["seconds_to_conclude"]
    counts = {name: summary[name] for name in ("rows_in", "kept", "dropped")}
    return {"rows_per_second": len(pool) / done, "peak_gib": peak_gib(), **seconds, **counts}


def photographs(count: int) -> float:
    """Return the seconds to decode and hash a photograph of 640 by 480 pixels."""
    stored = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(picture(number))).resize((640, 480)).save(buffer, "JPEG", quality=90)
        stored.append({"bytes": buffer.getvalue(), "path": None})
    hasher, started = Hasher(), time.perf_counter()
    for image in stored:
        hasher(image)
    return (time.perf_counter() - started) / count


def show(result: dict[str, Any]) -> str:
    """Return what was measured as a table."""
    rows = [
        [
            f"{int(rows):,}",
            f"{one['seconds_to_compare']:.1f}",
            f"{one['seconds_to_conclude']:.1f}",
            f"{one['rows_per_second']:,.0f}",
            f"{one['peak_gib']:.2f}",
        ]
        for rows, one in result["sizes_measured"].items()
    ]
    table = aligned_table(["rows", "compare, s", "conclude, s", "rows per second", "peak GiB"], rows, left=0)
    photo = f"A photograph of 640 × 480 takes {1000 * result['seconds_per_photo']:.1f} ms to decode and hash."
    if (more := result["bytes_per_further_row"]) is None:
        return f"{table}\n\n{photo}"
    return (
        f"{table}\n\n{photo} A further row takes {more:,.0f} bytes of memory, so a million {result['gib_1m']:.1f} GiB."
    )


def page(result: dict[str, Any]) -> str:
    """Return the page that stands beside the JSON."""
    machine, size = result["hardware"], result["sizes"]
    dirty = ", with changed files" if result["dirty"] else ""
    return "\n".join(
        [
            "# Decontamination",
            "",
            f"Pictures of 96 × 72 and questions of about twenty words, against a benchmark of {size['benchmark']:,} "
            "rows, on one core.",
            f"{machine['processor']}, {machine['cores']} cores, load before {result['load_before']:.2f}; "
            f"commit {result['commit']}{dirty}.",
            "",
            show(result),
            "",
        ]
    )


def main(
    size: dict[str, Any], output_dir: Path | None, executor: Callable[[], Executor] = own_process
) -> dict[str, Any]:
    """Measure `size`, print the table, write `decontamination.json` and `.md` if there is an `output_dir`."""
    load_before, measured = os.getloadavg()[0], {}
    with tempfile.TemporaryDirectory() as name:
        os.environ["HF_DATASETS_CACHE"] = name  # of the processes to come
        folder = Path(name)
        write_rows(folder / "benchmark", size["benchmark"], 0)
        for rows in size["rows"]:
            pool = folder / f"pool-{rows}"
            write_rows(pool, rows, MILLION, leaked=range(size["benchmark"]))
            with executor() as place:
                job = place.submit(measure, str(pool), str(folder / "benchmark"), str(folder / f"clean-{rows}"))
                measured[str(rows)] = job.result()
        per_photo = photographs(size["photos"])
    (few, low), (many, high) = (
        (rows, measured[str(rows)]["peak_gib"]) for rows in (size["rows"][0], size["rows"][-1])
    )
    growth = (high - low) / (many - few)
    result = {
        "benchmark": "decontamination",
        "rows_per_second": {rows: one["rows_per_second"] for rows, one in measured.items()},
        "seconds_per_photo": per_photo,
        "bytes_per_further_row": growth * 2**30 if growth > 0 else None,
        "gib_1m": high + growth * (MILLION - many) if growth > 0 else None,
        "sizes_measured": measured,
        **made_by(),
        "load_before": load_before,
        "sizes": size,
    }
    print(show(result))
    if output_dir:
        write_json(output_dir / "decontamination.json", result)
        with replacing(output_dir / "decontamination.md") as unfinished:
            unfinished.write_text(page(result), encoding="utf-8")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="gets decontamination.json and .md; benchmarks/results, or with --quick nothing",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything")
    args = parser.parse_args()
    output_dir = args.output_dir or (None if args.quick else Path("benchmarks/results"))
    print(json.dumps(main(QUICK if args.quick else FULL, output_dir)))
