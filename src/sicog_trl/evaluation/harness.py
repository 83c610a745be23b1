"""One checkpoint, one task, one run of lmms-eval; what comes out is checked and written.

This module imports lmms-eval, which takes seconds; [`sicog_trl.evaluation.run`] imports it when there is something to
run.
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from loguru import logger

from ..files import write_json, write_text
from .comparison import Sample
from .run import manifest
from .wrapper import DEFAULT_MAX_NEW_TOKENS, VisionLanguageModel


def load_model(path: str, dtype: str = "auto", batch_size: int = 1) -> VisionLanguageModel:
    """Load a checkpoint behind our wrapper."""
    logger.disable("lmms_eval")  # its log repeats what our progress bar says
    return VisionLanguageModel(pretrained=path, dtype=dtype, batch_size=batch_size)


def run_task(model: lmms, task: str, output_dir: Path, header: dict[str, Any], limit: int | None = None) -> None:
    """
    Ask one checkpoint one task and write its samples and its result.

    Args:
        model (`lmms_eval.api.model.lmms`):
            Our wrapper, or any other model of lmms-eval that chats.
        task (`str`):
            Name of a task in `<output_dir>/tasks`.
        output_dir (`Path`):
            Folder of the run.
        header (`dict[str, Any]`):
            `model` (`name`, `path`, `weights`) and `conditions`.
        limit (`int`, *optional*):
            Only the first rows.
    """
    folder, started = output_dir / header["model"]["name"], time.time()
    manager = TaskManager("ERROR", include_path=str(output_dir / "tasks"), include_defaults=False)
    # Some tasks write files of their own, below this path; scores are taken from text as the model gave it.
    arguments = argparse.Namespace(output_path=str(folder), process_with_media=False, reasoning_tags=None)
    results = simple_evaluate(
        model=model, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, cli_args=arguments
    )
    if results is None:  # only the first of several processes has them
        return
    samples = sorted((make_sample(sample) for sample in results["samples"][task]), key=lambda s: s["doc_id"])
    entry = results["results"][task]
    scores = {
        key.split(",")[0]: value for key, value in entry.items() if key.endswith(",none") and "_stderr" not in key
    }
    expected = header["conditions"]["num_rows"]
    if len(samples) != expected or not scores or not all(math.isfinite(value) for value in scores.values()):
        raise RuntimeError(f"{folder.name}, {task}: {len(samples)} of {expected} rows were scored, with {scores}")
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    write_text(folder / f"samples_{task}.jsonl", lines)
    health = {
        "empty": sum(not sample["response"].strip() for sample in samples),
        "truncated": sum(sample["truncated"] for sample in samples),
        "mean_tokens": sum(sample["num_tokens"] or 0 for sample in samples) / len(samples),
    }
    result = {"task": task, **header, "scores": {**scores, "n": len(samples)}, "health": health}
    result |= {"manifest": {**manifest(), "seconds": round(time.time() - started, 2)}, "lmms_eval": entry}
    write_json(
        folder / f"results_{task}.json", result, allow_nan=False, default=str
    )  # last: it says that the task is finished


def make_sample(logged: dict[str, Any]) -> Sample:
    """Bring a record of lmms-eval to the form that comparison and report read."""
    prompt, settings = logged["arguments"][0], logged["arguments"][1]
    target = str(logged["target"])
    num_tokens = (logged["token_counts"][0] or {}).get("output_tokens")
    known = {
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "token_counts",
        "doc_hash",
        "input_media",
    }
    return {
        "doc_id": logged["doc_id"],
        "id": logged["doc"].get("id"),
        # lmms-eval's own `doc_hash` is the same for every row.
        "hash": hashlib.sha256(json.dumps([logged["doc"].get("id"), prompt, target]).encode()).hexdigest()[:16],
        "input": prompt,
        "target": target,
        "response": logged["filtered_resps"][0],
        "scores": {name: value for name, value in logged.items() if name not in known},
        "num_tokens": num_tokens,
        "truncated": num_tokens is not None and num_tokens >= settings.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS),
    }
