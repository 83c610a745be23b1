"""
The process that asks one model one task, or a few.

```bash
python -m sicog_trl.evaluation.worker job.json
```

[`sicog_trl.evaluation.processes`] starts it, so that a task that crashes, or is killed for want of memory, costs
itself alone, and what a task leaves behind in memory and environment does not reach the next one.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..files import write_json
from .judge import Judge
from .run import EvaluationConfig, tasks_of


def run_job(job: dict[str, Any], starting: Callable[[str], None] = lambda task: None) -> None:
    """
    Ask one model the tasks of a job, one after the other; each writes its result when it is done.

    Args:
        job (`dict[str, Any]`):
            `config` (see [`~sicog_trl.evaluation.run.EvaluationConfig`]), `model` (`name`, `path`, `weights`) and
            `tasks` (name -> conditions).
        starting (`Callable`, *optional*):
            Called with the name of each task before it is asked.
    """
    config = EvaluationConfig(**job["config"])
    tasks = tasks_of(config)
    key = os.environ.get("OPENAI_API_KEY")  # of the server that runs the models; the judge's tasks get another one
    with Judge(config.judge_base_url, config.judge_model) as judge:  # before lmms-eval reads any task
        from . import harness

        model = harness.load_model(job["model"]["path"], config.dtype, config.batch_size, config.base_url, key)
        for number, (name, conditions) in enumerate(job["tasks"].items(), 1):
            starting(name)
            model.description = f"{job['model']['name']}: {name} ({number} of {len(job['tasks'])})"
            header = {"model": job["model"], "conditions": conditions}
            folder, allowed = Path(config.output_dir), config.max_judge_failures
            harness.run_task(model, tasks[name], folder, header, config.limit, judge, allowed)


def main(path: Path) -> int:
    """Run the job in a file; what runs, and what went wrong, stands in `status.json` beside it."""
    job = json.loads(path.read_text(encoding="utf-8"))
    sys.argv = job["argv"]  # results name the command that somebody gave
    status: dict[str, str] = {}

    def starting(task: str) -> None:
        status["task"] = task
        write_json(path.with_name("status.json"), status)

    try:
        run_job(job, starting)
    except Exception as error:
        traceback.print_exc()
        write_json(path.with_name("status.json"), {**status, "error": f"{type(error).__name__}: {error}"})
        return 1
    # Processes wait for each other, or the threads of Gloo in the one would miss the other.
    PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()
    return 0


def _end_with_parent() -> None:
    """End this process when the one that holds the other end of its input does, however that ends."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing is ever written there; `sys.stdin` itself would hold up a regular end
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    sys.exit(main(Path(sys.argv[1])))
