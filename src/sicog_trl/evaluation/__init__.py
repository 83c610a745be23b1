"""Evaluation: scores of checkpoints by lmms-eval behind one wrapper of our own, and paired comparisons of them."""

from .comparison import compare
from .run import EvaluationConfig, evaluate, manifests


__all__ = ["EvaluationConfig", "compare", "evaluate", "manifests"]
