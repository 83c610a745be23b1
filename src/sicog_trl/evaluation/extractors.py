"""From the records of lmms-eval to one number per row, so that two models can be compared row by row.

The headline of a benchmark is computed by lmms-eval from all rows at once. What it logs for a single row has another
shape in almost every benchmark: a number, a number with its category, a parsed answer, or nothing that says whether
the row was right. Column `score` of `benchmarks.yaml` names how it is read. The scorers of lmms-eval are called where
they exist, so that a row is right here if and only if it counts as right there.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any


Record = dict[str, Any]
Scores = dict[str, float | None]

# What lmms-eval logs for a row besides the metrics.
_NO_METRICS = frozenset(
    "doc_id doc target arguments resps filtered_resps token_counts doc_hash input_media filter".split()
)
# Versions of a question whose options are rotated differ by multiples of this.
_ROTATION = 1_000_000


def _metrics(record: Record, headline: tuple[str, ...]) -> Scores:
    return {name: value for name, value in record.items() if name not in _NO_METRICS}


def _right(record: Record, headline: tuple[str, ...]) -> Scores:
    return {"accuracy": float(_logged(record, headline))}


def _fraction(record: Record, headline: tuple[str, ...]) -> Scores:
    return {"score": float(_logged(record, headline))}


def _score_field(record: Record, headline: tuple[str, ...]) -> Scores:
    return {"accuracy": float(_logged(record, headline)["score"])}


def _mmmu(record: Record, headline: tuple[str, ...]) -> Scores:
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    return {"accuracy": float(evaluate_mmmu([_logged(record, headline)])[1]["acc"])}


def _mmmu_pro(record: Record, headline: tuple[str, ...]) -> Scores:
    from lmms_eval.tasks.mmmu_pro.utils import evaluate_mmmu

    return {"accuracy": float(evaluate_mmmu([_logged(record, headline)])[1]["acc"])}


def _mmvet(record: Record, headline: tuple[str, ...]) -> Scores:
    """Read the judge's grade; where there is none, no model is named and the score of 0 means nothing."""
    logged = _logged(record, headline)
    return {"score": float(logged["score"]) if logged["eval_model"] else None}


def _mathvista(record: Record, headline: tuple[str, ...]) -> Scores:
    """Read whether the answer that the judge found is right; an answer in which it found nothing was not judged."""
    logged = _logged(record, headline)
    is_judged = logged["extraction"] or not record["filtered_resps"][0].strip()
    return {"accuracy": float(logged["true_false"]) if is_judged else None}


def _llava_bench(record: Record, headline: tuple[str, ...]) -> Scores:
    """Read the judge's grade of the model; it is -1 where there is none."""
    grades = _logged(record, headline)["scores"]
    return {"score": grades[1] / 10 if min(grades) >= 0 else None}


def _logged(record: Record, headline: tuple[str, ...]) -> Any:
    """Return what was logged for the first metric of the headline that the row has; parts of MME have one each."""
    names = [metric.split(",")[0] for metric in headline]
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"row {record['doc_id']} has none of the metrics {', '.join(names)}; it has {sorted(record)}")


def _mmbench(records: list[Record], headline: tuple[str, ...]) -> list[Scores]:
    return _circular(records, headline, judged=True)


def _mmbench_static(records: list[Record], headline: tuple[str, ...]) -> list[Scores]:
    return _circular(records, headline, judged=False)


def _circular(records: list[Record], headline: tuple[str, ...], judged: bool) -> list[Scores]:
    """
    Score MMBench, which lmms-eval does at aggregation alone: a question is right if all its rotations are.

    The score stands in the row that is the question itself, and the rows that rotate its options have none. So the
    mean is the headline, and rows that are compared are independent: four rotations of a question are not four
    pieces of evidence. Where rules do not find an option, and a judge decided instead, the row is `None`: lmms-eval
    does not log what the judge said.
    """
    groups = defaultdict(list)
    for record in records:
        row = _logged(record, headline)
        groups[int(row["index"]) % _ROTATION].append(row)
    scores = []
    for record in records:
        index = int(_logged(record, headline)["index"])
        scores.append({"accuracy": _all_right(groups[index], judged)} if index < _ROTATION else {})
    return scores


def _all_right(rows: list[dict[str, Any]], judged: bool) -> float | None:
    import pandas
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    evaluator = MMBench_Evaluator()
    rows = [{**row, "prediction": str(row["prediction"])} for row in rows]
    found = [evaluator.prefetch_answer(row) for row in rows]
    if any(option and option != row["answer"] for option, row in zip(found, rows, strict=True)):
        return 0.0
    if judged and not all(found):
        return None
    answers = {row["index"]: row["answer"] for row in rows}
    return float(evaluator.eval_sub_data(pandas.DataFrame(rows), answers, static_only=True))


EXTRACTORS: dict[str, Callable[[Record, tuple[str, ...]], Scores]] = {
    "metrics": _metrics,
    "right": _right,
    "fraction": _fraction,
    "score_field": _score_field,
    "mmmu": _mmmu,
    "mmmu_pro": _mmmu_pro,
    "mmvet": _mmvet,
    "mathvista": _mathvista,
    "llava_bench": _llava_bench,
}
# These need all rows at once.
GROUP_EXTRACTORS: dict[str, Callable[[list[Record], tuple[str, ...]], list[Scores]]] = {
    "mmbench": _mmbench,
    "mmbench_static": _mmbench_static,
}


def extract(name: str, record: Record, headline: tuple[str, ...]) -> Scores:
    """
    Return the scores of one row.

    Args:
        name (`str`):
            Column `score` of `benchmarks.yaml`: `"metrics"` (as they are), `"right"` (a number, right or wrong),
            `"fraction"` (a number in between), `"score_field"` (field `score` of what was logged), or the name of a
            benchmark with a shape of its own.
        record (`dict[str, Any]`):
            What lmms-eval logged for the row: `doc`, `target`, `filtered_resps` and one entry per metric.
        headline (`tuple[str, ...]`):
            Metrics of the benchmark, see `benchmarks.yaml`.

    Returns:
        `dict[str, float | None]`: the metrics by name for `"metrics"`, else one entry, `"accuracy"` (right or wrong)
        or `"score"` (a fraction); `None` where the row could not be scored.
    """
    return extract_all(name, [record], headline)[0]


def extract_all(name: str, records: list[Record], headline: tuple[str, ...]) -> list[Scores]:
    """
    Return the scores of all rows of a task, in their order.

    A row that is part of another one's score, such as a rotation of an MMBench question, has no entry at all.

    Args:
        name (`str`):
            See [`extract`].
        records (`list[dict[str, Any]]`):
            All that lmms-eval logged for the task.
        headline (`tuple[str, ...]`):
            Metrics of the benchmark.
    """
    if name in GROUP_EXTRACTORS:
        return GROUP_EXTRACTORS[name](records, headline)
    if name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {name!r}; choose one of {', '.join([*EXTRACTORS, *GROUP_EXTRACTORS])}")
    return [EXTRACTORS[name](record, headline) for record in records]
