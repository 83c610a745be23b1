"""Evaluation: scores of models by lmms-eval behind one wrapper of our own, and paired comparisons of them.

What is asked stands in `benchmarks.yaml`, `suites/` and `tasks/`; `benchmarks.py` reads it, `task_files.py` hands it
to lmms-eval. Who answers: `wrapper.py`, a checkpoint, or `server.py`, a running server; `answering.py` asks both
under a protocol (`protocols.py`, `bare_answer.py`). Who judges: `judge.py`. A run goes from `run.py` through
`processes.py` to a `worker.py` in a process of its own, where `harness.py` runs lmms-eval; `conditions.py` says what a
score depends on. What comes out is read by `extractors.py`, compared by `comparison.py` and `significance.py`, and
shown by `examples.py`, `model_card.py` and `sicog_trl.report`.
"""

from .benchmarks import Benchmark, Task, benchmarks, select_tasks
from .comparison import compare
from .run import EvaluationConfig, evaluate, manifests, tasks_of


__all__ = [
    "Benchmark",
    "EvaluationConfig",
    "Task",
    "benchmarks",
    "compare",
    "evaluate",
    "manifests",
    "select_tasks",
    "tasks_of",
]
