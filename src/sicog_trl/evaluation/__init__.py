"""Evaluation: scores of checkpoints by lmms-eval behind one wrapper of our own, and paired comparisons of them."""

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
