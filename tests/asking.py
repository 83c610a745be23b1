"""Benchmarks asked by lmms-eval with a stub in place of a model; what it is shown is compared with golden files."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sicog_trl.evaluation.benchmarks import Task
from sicog_trl.evaluation.extractors import extract_all
from sicog_trl.evaluation.protocols import Completion
from sicog_trl.responses import build_steps


GOLDEN = Path(__file__).parent / "golden" / "prompts"
# Steps that a scorer must not take for the answer, whatever the question.
STEPS_BEFORE = ["A or B, yes or no?", "It shows C, red, 7.", "The answer is D, no, 8."]


class Run(NamedTuple):
    """
    What lmms-eval made of the answers of a stub, by name of the task; rows are in the order of the data.

    Args:
        results (`dict[str, dict[str, Any]]`):
            Metrics of lmms-eval.
        records (`dict[str, list[dict[str, Any]]]`):
            What it logged for each row.
        prompts (`dict[str, list[str]]`):
            What the stub was shown, see [`render`].
    """

    results: dict[str, dict[str, Any]]
    records: dict[str, list[dict[str, Any]]]
    prompts: dict[str, list[str]]

    def headline(self, task: Task) -> list[float]:
        """Return the metrics that are reported."""
        keys = [metric if "," in metric else f"{metric},none" for metric in task.benchmark.headline]
        return [self.results[task.name][key] for key in keys]

    def scores(self, task: Task) -> list[float | None]:
        """Return the score of every row that has one."""
        found = extract_all(task.benchmark.score, self.records[task.name], task.benchmark.headline)
        return [value for scores in found for value in scores.values()]


def ask_benchmarks(folder: Path, tasks: list[Task], answer: Callable[[Task, int], str]) -> Run:
    """
    Let lmms-eval ask tasks of one protocol, whose YAMLs are in `folder/tasks`.

    Args:
        folder (`Path`):
            Gets what the tasks write.
        tasks (`list[Task]`):
            What is asked.
        answer (`Callable`):
            Task and number of the row -> the answer. Asked step by step, the stub writes a chain that ends in it.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from sicog_trl.evaluation.wrapper import Answering

    class Stub(Answering):
        def complete(self, conversations, limits):
            for number, (row, conversation, limit) in enumerate(zip(self._rows, conversations, limits, strict=True)):
                asked[row] = render(conversation, limit)
                text = answer(by_name[row[0]], row[1])
                if self.protocol == "step_by_step":
                    text = build_steps("chain_of_thought", [*STEPS_BEFORE, text])
                yield number, Completion(text, len(text.split()))

    asked: dict[tuple[str, int], str] = {}
    by_name = {task.name: task for task in tasks}
    stub = Stub("stub")
    (stub.protocol,) = {task.protocol for task in tasks}
    found = simple_evaluate(
        model=stub,
        tasks=list(by_name),
        task_manager=TaskManager("ERROR", include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        cli_args=argparse.Namespace(
            output_path=str(folder / "written"), process_with_media=False, reasoning_tags=None
        ),
    )
    records = {name: sorted(found["samples"][name], key=lambda record: record["doc_id"]) for name in by_name}
    prompts = {name: [asked[name, record["doc_id"]] for record in rows] for name, rows in records.items()}
    return Run(found["results"], records, prompts)


def render(conversation: list[dict[str, Any]], limit: int) -> str:
    """Return what a model is shown as text, and how much it may write."""
    lines = [f"(at most {limit} new tokens)"]
    for turn in conversation:
        shown = [part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in turn["content"]]
        lines += [f"[{turn['role']}]", *shown]
    return "\n".join(lines)


def check_prompts(task: str, prompts: list[str]) -> None:
    """
    Compare what was asked with the golden file of the task.

    A prompt that changes changes scores: results from before and after must not be compared. If it is meant to be so,
    run the tests with `SICOG_RENEW_GOLDEN=1`, look at the difference, and commit it.
    """
    path, text = GOLDEN / f"{task}.txt", "\n\n".join(prompts) + "\n"
    if os.environ.get("SICOG_RENEW_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path.name} is missing; SICOG_RENEW_GOLDEN=1 writes it"
    assert text == path.read_text(encoding="utf-8"), "the prompt has changed; SICOG_RENEW_GOLDEN=1 renews the file"
