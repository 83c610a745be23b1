"""
Candidates per second: the released way, ours in this process and ours through a server, side by side.

All sides answer the same prompts about the same pictures with the same random weights and the same sampling, and every
candidate gets the same number of tokens, because these models cannot end an answer. The sides:

- `released`: one picture at a time, and for every candidate a whole pass: the picture is encoded and the prompt read
  again, plain `generate`.
- `embedded`: `TransformersSampler`.
- `server`: `OpenAISampler`; without `--base_url` it is not measured. Its memory is that of the client alone.
- `limit`: nothing but the forward passes, in the batches of `embedded`: a picture encoded once, the prompt read once
  per request, the cache (that of `embedded`) repeated for its candidates, then one step per further token. No image
  processing, no tokenizer, no sampling.

Each side has a process of its own, so that its peak of memory is its own; after a first turn that is not counted, in
which a process gathers its memory, they take turns, so that a ratio says something on a machine that does other things
too. `commit_overhead` is the share of a shard's time that publishing it
takes (writing, fsync, renaming), with pictures of 100 KB, in the folder for temporary files: TMPDIR chooses the disk.

make bench, or: python benchmarks/generation.py
With a server: --save_models DIR writes the models, then serve DIR/256m and name its --base_url.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from _models import SHAPES, build_model
from _sides import SIDES, prepare, turn
from datasets import Dataset
from PIL import Image

from sicog_trl.data import IMAGES_FEATURES
from sicog_trl.files import replacing, write_json
from sicog_trl.generation import CandidateConfig, Request, Response, generate_candidates
from sicog_trl.provenance import made_by
from sicog_trl.report import aligned_table


OURS = ("embedded", "server")
NEED_GPU = ("7b",)
FULL = {
    "5m": {"rows": 128, "released_rows": 8, "batch_size": 256, "completion_length": 64, "repeats": 5},
    "256m": {"rows": 8, "released_rows": 1, "batch_size": 32, "completion_length": 64, "repeats": 3},
    "7b": {"rows": 128, "released_rows": 2, "batch_size": 256, "completion_length": 64, "repeats": 3},
    "commit": {"rows": 512, "repeats": 10},
}
QUICK = {
    "5m": {"rows": 16, "released_rows": 1, "batch_size": 32, "completion_length": 16, "repeats": 1},
    "256m": {"rows": 1, "released_rows": 1, "batch_size": 32, "completion_length": 8, "repeats": 1},
    "7b": {"rows": 4, "released_rows": 1, "batch_size": 32, "completion_length": 16, "repeats": 1},
    "commit": {"rows": 64, "repeats": 3},
}


def own_process() -> Executor:
    """Return a process for one side; it starts afresh, so that it inherits no memory."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def compare(
    model_path: str, size: dict[str, Any], device: str = "cpu", executor: Callable[[], Executor] = own_process
) -> dict[str, Any]:
    """
    Let the sides take turns.

    Args:
        model_path (`str`):
            The model.
        size (`dict[str, Any]`):
            How much of everything; `served` and `base_url` if there is a server.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where the model runs.
        executor (`Callable`, *optional*):
            Makes the place where a side runs.

    Returns:
        `dict[str, Any]`: `sides` with all that was measured, `ratio_to_released` of the sides of ours, and
        `fraction_of_limit`.
    """
    names = [name for name in SIDES if name != "server" or "base_url" in size]
    measured: dict[str, Any] = {}
    with ExitStack() as stack:
        places = {name: stack.enter_context(executor()) for name in names}
        for name, place in places.items():
            measured[name] = {**place.submit(prepare, name, model_path, size, device).result(), "turns": []}
        for _ in range(size["repeats"]):
            for name, place in places.items():
                measured[name]["turns"].append(place.submit(turn, name, device).result())
    for side in measured.values():
        seconds = median(one["seconds"] for one in side["turns"])
        side |= {f"{unit}_per_second": side["turns"][0][unit] / seconds for unit in ("candidates", "tokens")}
        side["peak_memory_mb"] = max(one["peak_memory_mb"] for one in side["turns"])
    rate = {name: side["candidates_per_second"] for name, side in measured.items()}
    ratios = {name: rate[name] / rate["released"] if name in rate else None for name in OURS}
    return {"sides": measured, "ratio_to_released": ratios, "fraction_of_limit": rate["embedded"] / rate["limit"]}


class Canned:
    """
    A sampler that has every answer at hand.

    Args:
        length (`int`):
            Words of an answer.
    """

    placeholders = ()

    def __init__(self, length: int):
        self.length = length

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Response]]]:
        """See [`~sicog_trl.generation.Sampler`]."""
        for number, request in enumerate(requests):
            words = [np.random.default_rng(seed).integers(0, 4096, self.length) for seed in request.seeds]
            texts = [" ".join(f"word{word}" for word in some) for some in words]
            yield number, [Response(text, "length", self.length) for text in texts]


def jpeg(edge: int, seed: int) -> bytes:
    """Return a picture of noise as JPEG; at an edge of 290 pixels these are 100 KB."""
    noise = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    return file.getvalue()


def publishing(folder: Path, edge: int, size: dict[str, Any], length: int) -> dict[str, Any]:
    """Publish a whole shard, with its pictures in it, several times; return the seconds and the bytes of each row."""
    rows = [
        {"id": f"row-{number}", "images": [{"bytes": jpeg(edge, number), "path": None}]}
        for number in range(size["rows"])
    ]
    rows = Dataset.from_list([{**row, "question": None, "answer": None} for row in rows], features=IMAGES_FEATURES)
    config = CandidateConfig(rows_per_shard=size["rows"])
    plan = generate_candidates(rows, Canned(length), config, folder, "no model", show_progress=False)
    table = pq.read_table(plan.path(0))
    seconds = []
    for _ in range(size["repeats"]):
        plan.path(0).unlink(missing_ok=True)
        started = time.perf_counter()
        plan.publish(0, table)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "bytes_per_row": plan.path(0).stat().st_size / size["rows"]}


def commit_overhead(folder: Path, size: dict[str, Any], row: dict[str, Any], measured: dict[str, Any]) -> dict:
    """Return the share of a shard's time that publishing it takes, with small pictures and with those of 100 KB."""
    side = measured["sides"]["embedded"]
    per_row = median(one["seconds"] for one in side["turns"]) / row["rows"]
    found: dict[str, Any] = {"seconds_per_row": per_row, **size}
    for name, edge in (("small pictures", 64), ("pictures of 100 KB", 290)):
        one = publishing(folder / name, edge, size, row["completion_length"])
        seconds = median(one["seconds"])
        found[name] = {**one, "overhead": seconds / (seconds + per_row * size["rows"])}
    return found


def model_names(base_url: str) -> list[str]:
    """Return the names of the models that a server has."""
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "EMPTY"))
    return [model.id for model in client.models.list()]


def served_models(base_urls: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return which shape each server has; its model must be named like it, or like the folder of `--save_models`."""
    found = {}
    for url in base_urls:
        names = model_names(url)
        shapes = {name.rstrip("/").rsplit("/", 1)[-1]: name for name in names}
        if not (known := shapes.keys() & SHAPES.keys()):
            raise SystemExit(f"{url} serves {names}; serve a folder of --save_models, {' or '.join(SHAPES)}")
        found |= {shape: {"base_url": url, "served": shapes[shape]} for shape in known}
    return found


def show(result: dict[str, Any]) -> str:
    """Return what was measured as a table."""
    header = ["model", "side", "candidates/s", "tokens/s", "peak MB", ": released", "of the limit"]
    lines = []
    for shape, found in result["rows"].items():
        if found is None:
            lines.append([shape, "not measured", *[""] * 5])
            continue
        base = found["sides"]["released"]["candidates_per_second"]
        top = found["sides"]["limit"]["candidates_per_second"]
        for name in SIDES:
            if (side := found["sides"].get(name)) is None:
                lines.append([shape, name, "not measured", *[""] * 4])
                continue
            rate = side["candidates_per_second"]
            rates = [f"{rate:.2f}", f"{side['tokens_per_second']:.1f}", f"{side['peak_memory_mb']:,.0f}"]
            lines.append([shape, name, *rates, f"{rate / base:.2f}", f"{rate / top:.2f}"])
    return aligned_table(header, lines, left=2)


def page(result: dict[str, Any]) -> str:
    """Return the page that stands beside the JSON."""
    commit = result["commit_overhead_measured"]
    shares = {name: one for name, one in commit.items() if isinstance(one, dict)}
    published = [
        f"- {name} ({one['bytes_per_row'] / 1000:.0f} KB a row): {median(one['seconds']) * 1000:.1f} ms, "
        f"{one['overhead']:.3%} of the time of a shard of {commit['rows']} rows"
        for name, one in shares.items()
    ]
    machine = result["hardware"]
    dirty = ", with changed files" if result["dirty"] else ""
    return "\n".join(
        [
            "# Generation",
            "",
            "Same random weights, same prompts, same number of tokens on every side; three candidates a row.",
            f"{machine['processor']}, {machine['cores']} cores, {result['threads']} threads per process, "
            f"load before {result['load_before']:.2f}; commit {result['commit']}{dirty}.",
            "",
            show(result),
            "",
            "Peaks are those of each side's own process, with Python and torch in them; that of `server` is the "
            "client's.",
            "`limit` is nothing but the forward passes in the batches of `embedded`.",
            "",
            "Publishing a shard (write, fsync, rename):",
            "",
            *published,
            "",
        ]
    )


def main(
    sizes: dict[str, Any],
    output_dir: Path | None,
    gpu: bool = False,
    base_urls: Sequence[str] = (),
    executor: Callable[[], Executor] = own_process,
) -> dict[str, Any]:
    """Measure the rows of `sizes`, print the table, write `generation.json` and `.md` if there is an `output_dir`."""
    load_before = os.getloadavg()[0]
    servers = served_models(base_urls) if base_urls else {}
    rows: dict[str, Any] = dict.fromkeys(SHAPES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in [shape for shape in SHAPES if shape in sizes and (gpu or shape not in NEED_GPU)]:
            device = "cuda" if shape in NEED_GPU else "cpu"
            size = {**sizes[shape], "shape": shape, **servers.get(shape, {})}
            with executor() as place:
                parameters = place.submit(build_model, SHAPES[shape], folder / shape, device).result()
            rows[shape] = {"parameters": parameters, **compare(str(folder / shape), size, device, executor)}
        commit = commit_overhead(folder, sizes["commit"], sizes["5m"], rows["5m"])
    result = {
        "benchmark": "generation",
        "ratio_to_released_5m": rows["5m"]["ratio_to_released"]["embedded"],
        "ratio_to_released_256m": rows["256m"] and rows["256m"]["ratio_to_released"]["embedded"],
        "fraction_of_limit_5m": rows["5m"]["fraction_of_limit"],
        "commit_overhead": commit["pictures of 100 KB"]["overhead"],
        "rows": rows,
        "commit_overhead_measured": commit,
        **made_by(),
        "threads": rows["5m"]["sides"]["embedded"]["threads"],
        "load_before": load_before,
        "sizes": sizes,
    }
    print(show(result))
    if output_dir:
        write_json(output_dir / "generation.json", result)
        with replacing(output_dir / "generation.md") as unfinished:
            unfinished.write_text(page(result), encoding="utf-8")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, help="gets generation.json and .md; benchmarks/results, or with --quick nothing"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, once")
    parser.add_argument("--gpu", action="store_true", help="measure the model of seven billion parameters too")
    parser.add_argument("--base_url", nargs="+", default=[], help="addresses of servers, each with one of the models")
    parser.add_argument("--save_models", type=Path, help="write the models for a server into this folder, and stop")
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        raise SystemExit("--gpu: torch sees no GPU here")
    if args.save_models:
        for shape in [shape for shape in SHAPES if args.gpu or shape not in NEED_GPU]:
            build_model(SHAPES[shape], args.save_models / shape, "cuda" if shape in NEED_GPU else "cpu")
    else:
        output_dir = args.output_dir or (None if args.quick else Path("benchmarks/results"))
        print(json.dumps(main(QUICK if args.quick else FULL, output_dir, args.gpu, args.base_url)))
