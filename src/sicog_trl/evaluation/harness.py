"""One model, one task, one run of lmms-eval; what comes out is checked and written.

This module imports lmms-eval, which takes seconds; [`sicog_trl.evaluation.worker`] imports it when there is something
to run.
"""

import argparse
import hashlib
import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from lmms_eval.api.model import lmms
from lmms_eval.api.task import Task as LoadedTask
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager
from loguru import logger

from ..files import write_json, write_text
from .answering import Answering
from .benchmarks import Task
from .comparison import Sample
from .conditions import manifest
from .extractors import extract_all
from .protocols import PROTOCOLS, Completion, Conversation, Reply


if TYPE_CHECKING:
    from .judge import Judge

# ours: a judge answers several rows at a time; rules run in the main thread, as math-verify raises in any other.
_JUDGED_AT_ONCE = 16


def load_model(
    path: str, dtype: str = "auto", batch_size: int = 1, base_url: str | None = None, api_key: str | None = None
) -> Answering:
    """
    Return a model behind our wrapper.

    Args:
        path (`str`):
            A checkpoint, or with `base_url` the name of a model on that server.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        batch_size (`int`, *optional*, defaults to `1`):
            Requests per forward pass, or at once on the server.
        base_url (`str`, *optional*):
            An OpenAI-compatible server.
        api_key (`str`, *optional*):
            Key of that server.
    """
    logger.disable("lmms_eval")  # its log repeats what our progress bar says
    if base_url:
        from .server import ServedModel

        return ServedModel(model=path, base_url=base_url, batch_size=batch_size, api_key=api_key)
    from .wrapper import VisionLanguageModel

    return VisionLanguageModel(pretrained=path, dtype=dtype, batch_size=batch_size)


def run_task(
    model: lmms,
    task: Task,
    output_dir: Path,
    header: dict[str, Any],
    limit: int | None = None,
    judge: "Judge | None" = None,
    max_judge_failures: float = 0.02,
) -> None:
    """
    Ask one model one task and write its samples and its result.

    Args:
        model (`lmms_eval.api.model.lmms`):
            Our wrapper, or any other model of lmms-eval that chats.
        task ([`~sicog_trl.evaluation.benchmarks.Task`]):
            What is asked; its YAML is in `<output_dir>/tasks`.
        output_dir (`Path`):
            Folder of the run.
        header (`dict[str, Any]`):
            `model` (`name`, `path`, `weights`) and `conditions`.
        limit (`int`, *optional*):
            Only the first rows.
        judge ([`~sicog_trl.evaluation.judge.Judge`], *optional*):
            Who counts what the task asks a judge.
        max_judge_failures (`float`, *optional*, defaults to `0.02`):
            Share of questions to the judge that may stay without an answer.
    """
    folder, started = output_dir / header["model"]["name"], time.time()
    manager = _Manager("ERROR", include_path=str(output_dir / "tasks"), include_defaults=False)
    # Tasks of ours ask for their steps, and read them, by themselves.
    model.protocol = "direct" if task.ours else task.protocol
    before = (judge.calls, judge.failed) if judge else (0, 0)
    results = simple_evaluate(
        model=model,
        tasks=[task.name],
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        cli_args=_arguments(folder / "files" / task.name, model.rank),
        process_docs_parallel=1 if task.benchmark.judge == "none" else _JUDGED_AT_ONCE,
    )
    counts = (judge.calls - before[0], judge.failed - before[1]) if judge else (0, 0)
    calls, failed = map(sum, zip(*gather_object([counts]), strict=True))
    if results is None:  # only the first of several processes has them
        return
    loaded = manager.loaded[task.name]
    records = sorted(results["samples"][task.name], key=lambda record: record["doc_id"])
    _check_rows(records, loaded, limit)
    _check_judge(calls, failed, max_judge_failures)
    entry = results["results"][task.name]
    scores = {**reported_scores(entry, task), "n": len(records)}
    samples = make_samples(records, task, getattr(model, "replies", {}))
    health = {**health_of(samples), "judge_calls": calls, "judge_failed": failed}
    made = {**_made_by(model, loaded, started), "judge": header["conditions"].get("judge")}
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    # Half a character, with which a server may cut an answer off, is no UTF-8.
    lines = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", lines)
    write_text(folder / f"samples_{task.name}.jsonl", lines)
    result = {"task": task.name, "benchmark": task.benchmark.name, "protocol": task.protocol, **header}
    result |= {"scores": scores, "health": health, "manifest": made, "lmms_eval": entry}
    # last: it says that the task is finished
    write_json(folder / f"results_{task.name}.json", result, allow_nan=False, default=str)


class _Manager(TaskManager):
    """Finds a task in our folder alone, where lmms-eval would read its two thousand, and keeps it."""

    def load_task_or_group(self, *args: Any, **kwargs: Any) -> dict[str, LoadedTask]:
        self.loaded = super().load_task_or_group(*args, **kwargs)
        return self.loaded


def _made_by(model: lmms, loaded: LoadedTask, started: float) -> dict[str, Any]:
    return {
        **manifest(),
        "prompt_hash": hash_text(first_prompt(loaded, model.protocol)),
        "task_version": version_of(loaded.config.metadata),
        "wrapper": f"{type(model).__module__}.{type(model).__qualname__}",
        "batch_size": getattr(model, "batch_size", None),
        "dtype": str(getattr(getattr(model, "model", None), "dtype", "unknown")),  # what `auto` came to
        "processes": model.world_size,
        "seconds": round(time.time() - started, 2),
    }


def _arguments(folder: Path, rank: int) -> argparse.Namespace:
    """Return what lmms-eval takes for its command line: where tasks write, and that scorers get text as it is."""
    if rank == 0:  # some tasks read there what another model has been told by a judge, and ask no more
        shutil.rmtree(folder, ignore_errors=True)
    return argparse.Namespace(output_path=str(folder), process_with_media=False, reasoning_tags=None)


def _check_rows(records: list[dict[str, Any]], loaded: LoadedTask, limit: int | None) -> None:
    """Refuse a result in which rows are missing or occur twice."""
    rows = len(loaded.eval_docs_no_media)
    expected = list(range(rows if limit is None else min(rows, limit)))
    if (found := [record["doc_id"] for record in records]) != expected:
        raise RuntimeError(f"{len(set(found))} of {len(expected)} rows were scored, in {len(found)} records")


def _check_judge(calls: int, failed: int, allowed: float) -> None:
    if failed > allowed * calls:
        raise RuntimeError(
            f"the judge left {failed} of {calls} questions without an answer, more than max_judge_failures: {allowed} "
            "allows; the score would be wrong. See what the judge's server says, and run again"
        )


def reported_scores(entry: dict[str, Any], task: Task) -> dict[str, float]:
    """
    Return the headline of a task from what lmms-eval computed, and for tasks of ours everything else it has.

    Raises:
        `RuntimeError`: if a metric is missing or no number.
    """
    scores = {}
    for metric in task.benchmark.headline:
        value = entry.get(metric if "," in metric else f"{metric},none")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RuntimeError(f"lmms-eval gave no {metric}, but {value!r}; it has {', '.join(entry)}")
        scores[metric] = value
    if task.ours:
        names = [key for key in entry if key.endswith(",none") and "_stderr" not in key]
        scores |= {key.removesuffix(",none"): entry[key] for key in names}
    return scores


def make_samples(records: list[dict[str, Any]], task: Task, replies: dict[tuple[str, int], Reply]) -> list[Sample]:
    """Bring what lmms-eval logged, and what the model wrote, to the form that comparison and report read."""
    scores = extract_all(task.benchmark.score, records, task.benchmark.headline)
    samples = []
    for logged, score in zip(records, scores, strict=True):
        prompt, target, doc_id = logged["arguments"][0], str(logged["target"]), logged["doc_id"]
        row = logged["doc"].get("id", str(doc_id))
        said = str(logged["filtered_resps"][0])  # all there is of a model that is not one of our wrappers
        tokens = (logged["token_counts"][0] or {}).get("output_tokens")
        reply = replies.get((task.name, doc_id)) or Reply(said, said, tokens)
        sample = {"doc_id": doc_id, "id": row, "hash": hash_text(json.dumps([row, prompt, target]))}
        sample |= {"input": prompt, "target": target, "response": reply.text, "answer": reply.answer, "scores": score}
        sample |= {"num_tokens": reply.num_tokens, "truncated": reply.truncated, "fault": reply.fault}
        samples.append(sample)
    return samples


def health_of(samples: list[Sample]) -> dict[str, Any]:
    """Return how many rows went wrong, by kind, and the mean length of the answers."""
    tokens = [sample["num_tokens"] for sample in samples if sample["num_tokens"] is not None]
    return {
        "empty": sum(not sample["answer"].strip() for sample in samples),
        "truncated": sum(sample["truncated"] for sample in samples),
        "unparsed": sum(sample["fault"] is not None for sample in samples),
        "unscored": sum(None in sample["scores"].values() for sample in samples),
        "mean_tokens": sum(tokens) / len(tokens) if tokens else None,
    }


def first_prompt(loaded: LoadedTask, protocol: str) -> str:
    """Return what a model is asked about the first row, as text: a prompt that changed is seen by its hash."""
    messages = loaded.doc_to_messages(loaded.eval_docs[0])
    asked: list[Conversation] = []

    def note(conversations: list[Conversation], limits: list[int]) -> list[Completion]:
        asked.extend(conversations)
        return [Completion("") for _ in conversations]

    PROTOCOLS[protocol](note, [ChatMessages(messages=messages).to_hf_messages()], [1])
    return json.dumps(asked, default=lambda image: f"image {getattr(image, 'size', image)}")


def version_of(metadata: Any) -> Any:
    """Return the version that a task gives itself in its YAML, where a list and a mapping are both in use."""
    entries = metadata if isinstance(metadata, list) else [metadata or {}]
    return next((entry["version"] for entry in entries if "version" in entry), None)


def hash_text(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
