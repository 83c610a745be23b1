"""
Rows per second, memory and finds of `recipes/decontaminate.py`, run as a user runs it, at several sizes.

Every row has a picture of 64 by 48 pixels and a question of about twenty words. Of every hundred, five are copies of
benchmark rows (saved again, scaled, cropped by 1.5 to 2 % at each edge, quoted in a longer prompt, two words changed),
one repeats another row, and one shows the picture of another with a question of its own. A size from `kill_from` on is
killed once a third of it is compared, and started again. To decode photographs takes longer than all of this and is
measured apart, per picture of 640 by 480.

Lines of sizes that were not run stay in `decontamination.json`, each with the commit and the load that it ran under.

make bench, or: python benchmarks/decontamination.py --rows 1000000
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _decontamination import BENCHMARK, jpeg, judged, write_benchmark, write_pool
from _watched import watch
from PIL import Image

from sicog_trl.decontamination.images import Hasher
from sicog_trl.decontamination.parts import ROWS as PARTS_OF
from sicog_trl.files import replacing, write_json
from sicog_trl.provenance import made_by
from sicog_trl.report import aligned_table


ROOT = Path(__file__).parents[1]
FULL = {"rows": [2_000, 20_000], "asked": 9_000, "processes": 2, "kill_from": 100_000, "photos": 100}
QUICK = {"rows": [2_000], "asked": 500, "processes": 1, "kill_from": 100_000, "photos": 5}


def measure(folder: Path, rows: int, size: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe on the `rows` rows in `folder`, and return its seconds, its memory and what it found."""
    out, parts = folder / "clean", -(-rows // PARTS_OF)
    launch = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs/multi_cpu.yaml"]
    launch = [*launch, "--num_processes", size["processes"]] if size["processes"] > 1 else []
    arguments = ["--dataset_name", folder / "pool", "--evaluation_dataset_name", folder / "asked", "--output_dir", out]
    recipe = [ROOT / "recipes/decontaminate.py", *arguments, "--suite", "sicog", "--tasks", BENCHMARK]
    command = [sys.executable, *map(str, [*launch, *recipe])]
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}

    def finished() -> list[Path]:
        return list((out / "hashes/pool").glob("[0-9]*.parquet"))

    every, log, runs, before = min(2.0, rows / 100_000), folder / "log.txt", [], {}
    if rows >= size["kill_from"]:
        runs.append(watch(command, environment, log, lambda: len(finished()) >= parts / 3, every))
        before = {file: file.stat().st_mtime_ns for file in finished()}
    runs.append(watch(command, environment, log, lambda: False, every))
    again = sum(file.stat().st_mtime_ns != changed for file, changed in before.items())
    compared = max(file.stat().st_mtime for file in finished())
    counts = {"killed": sum(run.killed for run in runs), "parts_before_kill": len(before), "parts_done_again": again}
    summary = json.loads((out / "summary.json").read_text())
    seconds = sum(run.seconds for run in runs)
    return {
        "rows_per_second": rows / seconds,
        "seconds": seconds,
        "seconds_to_conclude": (out / "summary.json").stat().st_mtime - compared,
        "peak_gib": max(run.peak_gib for run in runs),
        "peak_gib_own": max(run.peak_gib_own for run in runs),
        **counts,
        **{name: summary[name] for name in ("rows_in", "kept", "dropped")},
        **judged(out, rows),
    }


def photographs(count: int) -> float:
    """Return the seconds to decode and hash a photograph of 640 by 480 pixels."""
    rng = np.random.default_rng(0)
    coarse = (Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(count))
    stored = [jpeg(each.resize((640, 480), Image.Resampling.BICUBIC), 90) for each in coarse]
    hasher, started = Hasher(), time.perf_counter()
    for image in stored:
        hasher(image)
    return (time.perf_counter() - started) / count


def show(result: dict[str, Any]) -> str:
    """Return what was measured as tables."""
    sizes = {f"{int(rows):,}": one for rows, one in result["sizes_measured"].items()}
    rows = [
        [
            rows,
            str(one["processes"]),
            f"{one['seconds']:,.0f}",
            f"{one['rows_per_second']:,.0f}",
            f"{one['peak_gib']:.2f}",
            f"{one['peak_gib_own']:.2f}",
            f"{one['load_before']:.1f}",
            one["commit"][:7],
        ]
        for rows, one in sizes.items()
    ]
    head = ["rows", "processes", "seconds", "rows per second", "peak GiB", "without files", "load before", "commit"]
    found = [
        [
            rows,
            *(f"{one['found'][kind]:,} of {many:,}" for kind, many in one["planted"].items()),
            f"{sum(one['false_alarms'].values()):,}",
        ]
        for rows, one in sizes.items()
    ]
    kinds = list(next(iter(sizes.values()))["planted"])
    lines = [
        f"The run of {rows} rows was killed when {one['parts_before_kill']:,} parts of {PARTS_OF:,} rows were done, "
        f"and started again; {one['parts_done_again']} of these parts were done again."
        for rows, one in sizes.items()
        if one["killed"]
    ]
    photo = f"A photograph of 640 × 480 takes {1000 * result['seconds_per_photo']:.1f} ms to decode and hash."
    tables = [aligned_table(head, rows, left=0), aligned_table(["rows", *kinds, "false alarms"], found, left=0)]
    return "\n\n".join([*tables, *lines, photo])


def page(result: dict[str, Any]) -> str:
    """Return the page that stands beside the JSON."""
    machine, size = result["hardware"], result["sizes"]
    lines = [
        "# Decontamination",
        "",
        f"Pictures of 64 × 48 and questions of about twenty words, against a benchmark of {size['asked']:,} rows. "
        "Seconds are of the whole command: start-up, reading, comparing, writing, and what a kill cost.",
        f"{machine['processor']}, {machine['cores']} cores, which other work shared: see the load.",
        "",
        show(result),
        "",
    ]
    return "\n".join(lines)


def main(size: dict[str, Any], output_dir: Path | None, scratch: Path | None = None) -> dict[str, Any]:
    """
    Measure `size` and print the tables.

    Args:
        size (`dict`):
            As `FULL`.
        output_dir (`Path`, *optional*):
            Gets `decontamination.json` and `.md`; sizes that it has already and that were not measured now stay.
        scratch (`Path`, *optional*):
            Folder for the rows, about 10 kB each; by default a temporary one.
    """
    earlier = output_dir / "decontamination.json" if output_dir else None
    measured = json.loads(earlier.read_text())["sizes_measured"] if earlier and earlier.exists() else {}
    for rows in size["rows"]:
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            write_benchmark(Path(name, "asked"), size["asked"])
            write_pool(Path(name, "pool"), rows, size["asked"])
            facts = {"processes": size["processes"], "load_before": os.getloadavg()[0], "commit": made_by()["commit"]}
            measured[str(rows)] = {**facts, **measure(Path(name), rows, size)}
    result = {
        "benchmark": "decontamination",
        "seconds_per_photo": photographs(size["photos"]),
        "sizes_measured": dict(sorted(measured.items(), key=lambda item: int(item[0]))),
        **made_by(),
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
    parser.add_argument("--rows", type=int, nargs="+", help="other sizes, such as 1000000")
    parser.add_argument("--scratch", type=Path, help="folder with room for 10 kB a row")
    args = parser.parse_args()
    output_dir = args.output_dir or (None if args.quick else Path("benchmarks/results"))
    size = (QUICK if args.quick else FULL) | ({"rows": args.rows} if args.rows else {})
    print(json.dumps(main(size, output_dir, args.scratch)))
