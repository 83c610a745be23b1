"""The processes that ask: a task that crashes costs itself alone, and the other tasks and models go on.

Under `accelerate launch` with N processes, each of them starts one process of its own at a time, and these N answer
the rows of one task together. The N that were launched only wait, on the CPU, and keep clear of the accelerators.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..files import write_json
from .benchmarks import Task


if TYPE_CHECKING:
    from .run import EvaluationConfig

MAX_REASON = 2000  # characters of one reason; an error may quote a whole answer
WORKER = [sys.executable, "-m", "sicog_trl.evaluation.worker"]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder until the block ends, or the process does; a second run would write over what this one asks."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another evaluation is writing to {folder.parent}; wait for it, or choose another output_dir"
            ) from None
        yield


def run_tasks(
    config: "EvaluationConfig", model: dict[str, str], tasks: dict[str, Task], conditions: dict[str, dict[str, Any]]
) -> list[dict[str, str]]:
    """
    Ask one model its missing tasks, `config.tasks_per_process` in a process.

    Args:
        config ([`~sicog_trl.evaluation.run.EvaluationConfig`]):
            Of the run.
        model (`dict[str, str]`):
            `name`, `path` and `weights`.
        tasks (`dict[str, Task]`):
            All tasks by name.
        conditions (`dict[str, dict]`):
            Task that is missing -> its conditions.

    Returns:
        `list[dict[str, str]]`: `model`, `task` and `reason` of each task that has no result.
    """
    folder, waiting, failures = Path(config.output_dir, model["name"]), list(conditions), []
    while waiting:
        batch = next_tasks(waiting, tasks, config.tasks_per_process)
        job = {"config": vars(config), "model": model, "tasks": {task: conditions[task] for task in batch}}
        begun, reason = run_process({**job, "argv": sys.argv})
        done = from_first([task for task in batch if (folder / f"results_{task}.json").is_file()])
        left = [task for task in batch if task not in done]
        # A model that cannot be loaded is not loaded again for every other task; a crash costs the task that ran.
        lost = [] if not left else left[:1] if begun else [task for task in waiting if task not in done]
        failures += [{"model": model["name"], "task": task, "reason": reason} for task in lost]
        waiting = [task for task in waiting if task not in (*done, *lost)]
    return failures


def next_tasks(waiting: list[str], tasks: dict[str, Task], most: int) -> list[str]:
    """
    Return what the next process asks: the first of the waiting tasks, and more if one process may ask several.

    Tasks of lmms-eval keep things in their modules (OCRBench adds up its score there), so that no two that share one
    are asked by the same process.
    """
    chosen: list[str] = []
    for name in waiting:
        folders = {Path(tasks[other].benchmark.yaml).parent for other in chosen if not tasks[other].ours}
        if len(chosen) < most and Path(tasks[name].benchmark.yaml).parent not in folders:
            chosen.append(name)
    return chosen


def run_process(job: dict[str, Any]) -> tuple[bool, str]:
    """
    Run [`sicog_trl.evaluation.worker`] on a job, in one process for each that was launched.

    Returns:
        `tuple[bool, str]`: whether a task had begun, and how it ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "job.json"), job)
        command = [*WORKER, str(Path(folder, "job.json"))]
        # The other end of its input is how the process learns that this one is gone.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=_environment())
        try:
            code = _wait(process)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
        status = Path(folder, "status.json")
        found = json.loads(status.read_text(encoding="utf-8")) if status.is_file() else {}
    ended = gather_object([{"code": code, **found}])
    # A process that was ended because another one failed has nothing to say.
    reasons = dict.fromkeys(_reason(each) for each in ended if each["code"])
    return any("task" in each for each in ended), "; ".join(reasons) or "it ended early, without an error"


def _reason(ended: dict[str, Any]) -> str:
    if "error" in ended:
        error = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in ended["error"])
        return error if len(error) <= MAX_REASON else f"{error[:MAX_REASON]} … ({len(error) - MAX_REASON:,} more)"
    if ended["code"] < 0:
        return f"it was killed by {signal.Signals(-ended['code']).name}; too little memory ends like that"
    return f"it ended with exit code {ended['code']}"


def _wait(process: subprocess.Popen) -> int | None:
    """Wait until the process, and those of the others, have ended; the first that fails ends the waiting for all."""
    pause = 0.05
    while True:
        codes = gather_object([process.poll()])
        if any(codes) or None not in codes:
            return codes[PartialState().process_index]
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)


def _environment() -> dict[str, str]:
    """Return the environment of a process: its rank is ours, and the address where it meets the others is new."""
    environment = dict(os.environ)
    if PartialState().num_processes > 1:
        # Torchrun would have them meet at its own address, where we have met already.
        environment |= {"MASTER_PORT": str(from_first(_free_port())), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return environment


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def from_first(value: Any) -> Any:
    """Return the value that the first process has, in all of them."""
    return broadcast_object_list([value])[0]
