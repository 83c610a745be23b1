"""Rows that training fixed or broke, with their images: what a difference of so many points looks like.

Answers stand in the samples; images do not. They are found again by `doc_id` in the rows that were asked: in Parquet
files of our own columns directly, else by lmms-eval in a process of its own, from what is on this machine. An image
that cannot be had takes nothing else with it: the row says why.
"""

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml
from PIL import Image

from ..files import write_text
from ..images import open_image
from .comparison import Sample, pair, read_samples


NUM_EXAMPLES = 2  # per task and side
MAX_SIDE = 192  # pixels
MAX_IMAGES = 3  # per row
TIMEOUT = 600  # seconds for all images that lmms-eval is asked for
# A report is one process, also when it is written by the first of several.
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# What was found of the images of a row: `images` (data URIs), `note` (what is missing and why).
Found = dict[str, Any]


def find_examples(
    output_dir: str | Path, comparisons: Sequence[Mapping[str, Any]], num_examples: int = NUM_EXAMPLES
) -> list[dict[str, Any]]:
    """
    Return rows that got better and worse between two checkpoints, for the leading metric of every task.

    They lie at equal distances among all rows that changed, so nobody chose them.

    Args:
        output_dir (`str` or `Path`):
            Folder that [`~sicog_trl.evaluation.run.evaluate`] wrote.
        comparisons (`Sequence[Mapping]`):
            Those of its `scores.json`.
        num_examples (`int`, *optional*, defaults to `2`):
            At most so many per task and side.

    Returns:
        `list[dict[str, Any]]`: `before`, `after`, `task`, `metric`, `side` (`"fixed"` or `"broken"`), `doc_id`,
        `question`, `target`, `scores`, `answers` and `responses` (both sides), `images` (data URIs of small copies)
        and `note` (what is missing and why, or `None`).
    """
    output_dir, entries = Path(output_dir), []
    seen: set[tuple[str, str, str]] = set()
    for comparison in comparisons:
        key = (comparison["before"], comparison["after"], comparison["task"])
        if key not in seen and comparison.get("difference") is not None:
            entries += _changed(output_dir, *key, comparison["metric"], num_examples)
        seen.add(key)
    wanted: dict[str, dict[int, str | None]] = {}
    for entry in entries:
        wanted.setdefault(entry["task"], {})[entry["doc_id"]] = entry["id"]
    found = find_images(output_dir, wanted)
    return [{**entry, **found[entry["task"], entry["doc_id"]]} for entry in entries]


def _changed(output_dir: Path, before: str, after: str, task: str, metric: str, count: int) -> list[dict[str, Any]]:
    if not all((output_dir / name / f"samples_{task}.jsonl").is_file() for name in (before, after)):
        return []
    sides: dict[str, list[tuple[Sample, Sample]]] = {"fixed": [], "broken": []}
    for first, second in pair(read_samples(output_dir / before, task), read_samples(output_dir / after, task), task):
        old, new = first["scores"].get(metric), second["scores"].get(metric)
        if old is not None and new is not None and old != new:
            sides["fixed" if new > old else "broken"].append((first, second))
    entries = []
    for side, rows in sides.items():
        wanted = min(count, len(rows))
        for both in [rows[(2 * i + 1) * len(rows) // (2 * wanted)] for i in range(wanted)]:
            entries.append(
                {
                    **{"before": before, "after": after, "task": task, "metric": metric, "side": side},
                    **{"doc_id": both[0]["doc_id"], "id": both[0].get("id")},
                    **{"question": both[0]["input"], "target": both[0]["target"]},
                    "scores": [row["scores"][metric] for row in both],
                    "answers": [row.get("answer", row["response"]) for row in both],
                    "responses": [row["response"] for row in both],
                }
            )
    return entries


def find_images(
    output_dir: str | Path, wanted: Mapping[str, Mapping[int, str | None]]
) -> dict[tuple[str, int], Found]:
    """
    Find the images of rows again.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run, whose `tasks/<task>.yaml` say where the rows are.
        wanted (`Mapping[str, Mapping[int, str]]`):
            Task -> `doc_id` -> `id` of the row, if it has one.

    Returns:
        `dict[tuple[str, int], dict]`: (task, `doc_id`) -> `images` and `note`; every wanted row is there.
    """
    found: dict[tuple[str, int], Found] = {}
    for task, rows in wanted.items():
        try:
            found |= {(task, doc_id): entry for doc_id, entry in _from_parquet(output_dir, task, rows).items()}
        except Exception:  # whatever is wrong with these files: lmms-eval may still know how to read them
            continue
    rest = {task: rows for task, rows in wanted.items() if any((task, row) not in found for row in rows)}
    if rest:
        found = _from_lmms_eval(Path(output_dir, "tasks"), rest) | found
    return {
        (task, doc_id): found.get((task, doc_id)) or missing("the row was not found")
        for task, rows in wanted.items()
        for doc_id in rows
    }


def missing(reason: str) -> Found:
    """Return what stands for the images of a row where there are none."""
    return {"images": [], "note": f"no image: {reason}"}


def _from_parquet(output_dir: str | Path, task: str, rows: Mapping[int, str | None]) -> dict[int, Found]:
    """Return the images of rows in files with our columns; `doc_id` is the position, `id` has to confirm it."""
    content = yaml.safe_load(Path(output_dir, "tasks", f"{task}.yaml").read_text(encoding="utf-8"))
    (files,) = content["dataset_kwargs"]["data_files"].values()
    if not {"id", "images"} <= set(pq.read_schema(files[0]).names):
        return {}
    table = ds.dataset(files, format="parquet").take(list(rows), columns=["id", "images"]).to_pylist()
    pairs = zip(rows.items(), table, strict=True)
    return {doc_id: pictures(row["images"]) for (doc_id, name), row in pairs if name is not None and row["id"] == name}


def _from_lmms_eval(folder: Path, wanted: Mapping[str, Mapping[int, str | None]]) -> dict[tuple[str, int], Found]:
    """Ask a process that imports lmms-eval; it looks at what is on this machine and downloads nothing."""
    environment = {name: value for name, value in os.environ.items() if name not in _RANKS}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        request.write_text(json.dumps([str(folder.resolve()), {k: list(v.items()) for k, v in wanted.items()}]))
        command = [sys.executable, "-m", "sicog_trl.evaluation.examples", str(request), str(answer)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            reason = f"lmms-eval did not find the rows within {TIMEOUT} seconds"
        # It writes after every task, so that what was found before it ended is kept.
        found = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else []
    entries = {(task, doc_id): missing(reason) for task, rows in wanted.items() for doc_id in rows}
    return entries | {(task, doc_id): entry for task, doc_id, entry in found}


def main(request: Path, answer: Path) -> None:
    """Find images through lmms-eval; runs in a process of its own."""
    from lmms_eval.tasks import TaskManager

    from .judge import Judge

    folder, wanted = json.loads(request.read_text(encoding="utf-8"))
    manager, found = TaskManager("ERROR", include_path=folder, include_defaults=False), []
    with Judge():  # some tasks cannot even be imported without the address of one
        for task, rows in wanted.items():
            loaded = None
            for doc_id, name in rows:
                try:
                    loaded = loaded or manager.load_task_or_group([task])[task]
                    row = loaded.eval_docs[doc_id]
                    # Where rows have no `id`, harness.py gives them their position.
                    if name is not None and row.get("id", str(doc_id)) != name:
                        raise LookupError("the rows are not those that were asked")
                    entry = pictures(loaded.doc_to_visual(row))
                except Exception as error:  # one task's data or code says nothing of the next one's
                    entry = missing(f"{type(error).__name__}: {error}")
                found.append([task, doc_id, entry])
            write_text(answer, json.dumps(found))


def pictures(images: Sequence[Image.Image | dict[str, Any]] | None) -> Found:
    """Return small copies of the images of a row as data URIs, and what is missing among them."""
    shown, notes = [], []
    for image in (images or [])[:MAX_IMAGES]:
        try:
            shown.append(thumbnail(image))
        except Exception as error:  # a broken image has many ways to fail
            notes.append(f"an image cannot be read ({type(error).__name__})")
    if images and len(images) > MAX_IMAGES:
        notes.append(f"{len(images) - MAX_IMAGES} more images")
    return {"images": shown, "note": "; ".join(notes) or (None if shown else "the row has no image")}


def thumbnail(image: Image.Image | dict[str, Any]) -> str:
    """Return a small copy as a data URI: PNG or JPEG, whichever is smaller."""
    if isinstance(image, dict):
        picture, _ = open_image(image)
    else:
        picture = image.convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    encoded = {}
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        picture.save(buffer, format=kind)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
