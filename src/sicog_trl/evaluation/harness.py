"""One model, one task, one run of lmms-eval; what comes out is checked and written.

This module imports lmms-eval, which takes seconds; [`sicog_trl.evaluation.worker`] imports it when there is something
to run.
"""

import argparse
import hashlib
import json
import math
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
from .extractors import Scores, extract_all
from .protocols import PROTOCOLS, Completion, Conversation, Reply


if TYPE_CHECKING:
    from .judge import Judge

# ours: a judge answers several rows at a time; rules run in the main thread, as math-verify raises in any other.
_JUDGED_AT_ONCE = 16


def load_model(path: str, dtype: str = "auto", batch_size: int = 1, base_url: str | None = None) -> Answering:
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
    """
    logger.disable("lmms_eval")  # its log repeats what our progress bar says
    if base_url:
        from .server import ServedModel

        return ServedModel(model=path, base_url=base_url, batch_size=batch_size)
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
    loaded = load_task(output_dir / "tasks", task)
    # Tasks of ours ask for their steps, and read them, by themselves.
    model.protocol = "direct" if task.ours else task.protocol
    before = (judge.calls, judge.failed) if judge else (0, 0)
    results = simple_evaluate(
        model=model,
        tasks=[loaded],
        limit=limit,
        bootstrap_iters=0,
        cli_args=_arguments(folder / "files" / task.name, model.rank),
        process_docs_parallel=1 if task.benchmark.judge == "none" else _JUDGED_AT_ONCE,
    )
    counts = (judge.calls - before[0], judge.failed - before[1]) if judge else (0, 0)
    calls, failed = (sum(each) for each in zip(*gather_object([counts]), strict=True))
    if results is None:  # only the first of several processes has them
        return
    records = sorted(results["samples"][task.name], key=lambda record: record["doc_id"])
    _check_rows(records, loaded, limit)
    if failed > max_judge_failures * calls:
        raise RuntimeError(
            f"the judge left {failed} of {calls} questions without an answer, more than max_judge_failures: "
            f"{max_judge_failures} allows; the score would be wrong. See what the judge's server says, and run again"
        )
    scores = extract_all(task.benchmark.score, records, task.benchmark.headline)
    replies = [getattr(model, "replies", {}).get((task.name, record["doc_id"])) for record in records]
    samples = [make_sample(*each) for each in zip(records, scores, replies, strict=True)]
    entry = results["results"][task.name]
    result = {"task": task.name, "benchmark": task.benchmark.name, "protocol": task.protocol, **header}
    result["scores"] = {**reported_scores(entry, task), "n": len(samples)}
    result["health"] = {**health_of(samples), "judge_calls": calls, "judge_failed": failed}
    result["manifest"] = {
        **manifest(),
        "prompt_hash": hash_text(first_prompt(loaded, model.protocol)),
        "task_version": version_of(loaded.config.metadata),
        "judge": header["conditions"].get("judge"),
        "wrapper": f"{type(model).__module__}.{type(model).__qualname__}",
        "seconds": round(time.time() - started, 2),
    }
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    write_text(folder / f"samples_{task.name}.jsonl", lines)
    # last: it says that the task is finished
    path = folder / f"results_{task.name}.json"
    write_json(path, {**result, "lmms_eval": entry}, allow_nan=False, default=str)


def load_task(folder: Path, task: Task) -> LoadedTask:
    """Return a task as lmms-eval has it, with its rows."""
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    return manager.load_task_or_group([task.name], "chat")[task.name]


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


def make_sample(logged: dict[str, Any], scores: Scores, reply: Reply | None) -> Sample:
    """Bring a record of lmms-eval, and what the model wrote, to the form that comparison and report read."""
    prompt, target = logged["arguments"][0], str(logged["target"])
    row = logged["doc"].get("id", str(logged["doc_id"]))
    tokens = (logged["token_counts"][0] or {}).get("output_tokens")
    said = str(logged["filtered_resps"][0])
    reply = reply or Reply(said, said, tokens)
    return {
        "doc_id": logged["doc_id"],
        "id": row,
        # lmms-eval's own `doc_hash` is the same for every row.
        "hash": hash_text(json.dumps([row, prompt, target])),
        "input": prompt,
        "target": target,
        "response": reply.text,
        "answer": reply.answer,
        "scores": scores,
        "num_tokens": reply.num_tokens,
        "truncated": reply.truncated,
        "fault": reply.fault,
    }


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
