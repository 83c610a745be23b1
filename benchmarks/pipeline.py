"""
Measure the stages on a tiny world: whether curation is linear, what rebalanced batches save.

The two sides of a row take turns in one process, so that their ratio says something on any machine; the rates by
themselves hold for this machine and what else it was doing.

make bench, or: python benchmarks/pipeline.py
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig

from sicog_trl.curation import CurationConfig, curate
from sicog_trl.data import CANDIDATES_FEATURES, load, save
from sicog_trl.digits import annotated_pool
from sicog_trl.digits.model import build_model
from sicog_trl.files import write_json
from sicog_trl.prompts import prompt_for
from sicog_trl.provenance import made_by
from sicog_trl.report import aligned_table
from sicog_trl.training.collators import ViewsConfig, show_views
from sicog_trl.training.trainers import ResumableSFTTrainer


RECIPES = Path(__file__).parents[1] / "recipes" / "digits"
FULL = {
    "repeats": 3,
    "curated_rows": (1000, 10_000),
    "steps": 20,
}
QUICK = {
    "repeats": 1,
    "curated_rows": (100, 1000),
    "steps": 5,
}
CANDIDATES_PER_ROW = 5


def rates(sides: dict[str, tuple[int, Callable[[], Any]]], repeats: int) -> dict[str, dict[str, Any]]:
    """
    Time both sides in turns.

    Args:
        sides (`dict[str, tuple[int, Callable]]`):
            Name -> how many things one call makes, and the call.
        repeats (`int`):
            Turns of each.

    Returns:
        `dict[str, dict]`: name -> `count`, all `seconds`, and `per_second`, from the median of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (_, call) in sides.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {
        name: {"count": count, "seconds": seconds[name], "per_second": count / median(seconds[name])}
        for name, (count, _) in sides.items()
    }


def candidate_rows(count: int, seed: int = 0) -> Dataset:
    """Return `count` rows of descriptions whose candidates disagree now and then: some describe another scene."""
    modes = ("chain_of_description", "detailed_description")
    texts: dict[str, list[str]] = {mode: [] for mode in modes}
    scenes = annotated_pool(100, seed)["cognition"].to_list()
    for row in scenes:
        if row["mode"] in modes:
            texts[row["mode"]].append(row["completion"][0]["content"])
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        scene = number % 100
        candidates = []
        for index in range(CANDIDATES_PER_ROW):
            mode = modes[index > 1]
            text = texts[mode][scene if rng.random() < 0.7 else rng.randrange(100)]
            known = {"prompt": prompt_for(mode), "seed": index, "finish_reason": "stop", "num_tokens": 30}
            candidates.append({"text": text, "mode": mode, **known})
        row = {"id": f"row-{number}", "images": scenes[scene]["images"], "question": None, "error": None}
        answer = texts["detailed_description"][scene]
        rows.append({**row, "answer": answer, "task": "description", "candidates": candidates})
    return Dataset.from_list(rows, features=CANDIDATES_FEATURES)


def curation(folder: Path, size: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows per second at two sizes; a rate that stays is a cost that grows with the rows alone."""
    arguments = yaml.safe_load((RECIPES / "curate.yaml").read_text())
    config = CurationConfig(**{k: v for k, v in arguments.items() if k not in ("dataset_name", "output_dir")})

    def side(count: int) -> tuple[int, Callable[[], Any]]:
        save(candidate_rows(count), folder / f"candidates-{count}", "candidates")
        candidates = load(str(folder / f"candidates-{count}"), split="candidates")
        return count, lambda: curate(candidates, config, folder / f"curated-{count}")

    curate(candidate_rows(10), config, folder / "first")
    return rates({f"{count:,} rows": side(count) for count in size["curated_rows"]}, size["repeats"])


def training(model: Path, folder: Path, size: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Samples per second of the recipe for stage 1, its batches in parts of any and of like length."""
    arguments = yaml.safe_load((RECIPES / "sft.yaml").read_text())
    views = ViewsConfig(arguments.pop("image_views"))
    arguments = {k: v for k, v in arguments.items() if k not in ("model_name_or_path", "datasets")}
    samples = arguments.pop("global_batch_size")
    arguments["gradient_accumulation_steps"] = samples // arguments["per_device_train_batch_size"]
    # Enough scenes that no batch is a short last one of its epoch.
    dataset = annotated_pool(samples * size["steps"] // 4, seed=0)["cognition"]
    quiet = {"logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "output_dir": str(folder / "sft")}

    def side(strategy: str, steps: int, turns: int) -> tuple[int, Callable[[], Any]]:
        config = SFTConfig(**{**arguments, **quiet, "train_sampling_strategy": strategy, "max_steps": steps})
        trainers = [ResumableSFTTrainer(model=str(model), args=config, train_dataset=dataset) for _ in range(turns)]
        for trainer in trainers:
            trainer.remove_callback(PrinterCallback)
            show_views(trainer, views)
        return steps * samples, lambda: trainers.pop().train()

    side("random", 1, turns=1)[1]()
    strategies = ("random", "batch_rebalance")
    return rates({name: side(name, size["steps"], size["repeats"]) for name in strategies}, size["repeats"])


def main(size: dict[str, Any], output_dir: Path | None) -> dict[str, Any]:
    """Measure, print the table, write `pipeline.json` if there is an `output_dir`, and return it."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder / "model")
        measured = {
            "curation": ("rows/s", curation(folder, size)),
            "training": ("samples/s", training(folder / "model", folder, size)),
        }
    rows, found = [], {}
    for stage, (unit, sides) in measured.items():
        (first, before), (second, after) = sides.items()
        ratio = after["per_second"] / before["per_second"]
        found[stage] = {"unit": unit, "ratio": ratio, "sides": sides}
        shown = [f"{side['per_second']:,.1f} {unit}" for side in (before, after)]
        rows.append([stage, first, shown[0], second, shown[1], f"{ratio:.2f}"])
    print(aligned_table(["stage", "this", "makes", "that", "makes", "that : this"], rows, left=2))
    machine = {"threads": torch.get_num_threads(), "load_before": load_before}
    result = {"benchmark": "pipeline", **found, **made_by(), **machine, "size": size}
    if output_dir:
        write_json(output_dir / "pipeline.json", result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, help="gets pipeline.json; benchmarks/results, or with --quick nothing"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, once: under half a minute")
    args = parser.parse_args()
    output_dir = args.output_dir or (None if args.quick else Path("benchmarks/results"))
    print(json.dumps(main(QUICK if args.quick else FULL, output_dir)))
