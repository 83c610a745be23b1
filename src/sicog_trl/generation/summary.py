"""What a run has written, counted from the text columns of its shards, one shard in memory at a time."""

import json
from typing import Any

import pyarrow.parquet as pq

from ..files import write_json
from .plan import Plan


def summarize(plan: Plan) -> dict[str, Any]:
    """
    Count what the shards of a finished run hold.

    Args:
        plan ([`Plan`]):
            The run.

    Returns:
        `dict[str, Any]`: `rows`; `left_out`, the rows of the other task, which are not among them; `failed`, the rows
        with an error, and `failed_by_reason`; `candidates`; `tokens`, and `without_token_count`, the candidates whose
        length a server did not tell; `distinct_per_row`, the mean number of different candidates of the rows that have
        any; `truncated_share` and `empty_share` of the candidates.
    """
    rows = failed = answered = distinct = candidates = tokens = unknown = truncated = empty = 0
    reasons: dict[str, int] = {}
    for shard in range(plan.num_shards):
        for row in pq.read_table(plan.path(shard), columns=["candidates", "error"]).to_pylist():
            found = row["candidates"]
            rows += 1
            if row["error"] is not None:
                failed += 1
                reason = row["error"].partition(":")[0]
                reasons[reason] = reasons.get(reason, 0) + 1
            answered += bool(found)
            distinct += len({(candidate["mode"], candidate["text"]) for candidate in found})
            candidates += len(found)
            tokens += sum(candidate["num_tokens"] or 0 for candidate in found)
            unknown += sum(candidate["num_tokens"] is None for candidate in found)
            truncated += sum(candidate["finish_reason"] == "length" for candidate in found)
            empty += sum(not candidate["text"].strip() for candidate in found)
    return {
        "rows": rows,
        "left_out": plan.left_out,
        "failed": failed,
        "failed_by_reason": dict(sorted(reasons.items())),
        "candidates": candidates,
        "tokens": tokens,
        "without_token_count": unknown,
        "distinct_per_row": distinct / max(1, answered),
        "truncated_share": truncated / max(1, candidates),
        "empty_share": empty / max(1, candidates),
    }


def conclude(plan: Plan, sampler: dict[str, Any]) -> str:
    """
    Write `summary.json` if no shard is missing any more.

    Args:
        plan ([`Plan`]):
            The run.
        sampler (`dict[str, Any]`):
            How it was sampled, for the record.

    Returns:
        `str`: the summary, or how far the run is.
    """
    if plan.missing():
        return plan.standing()
    summary = {**summarize(plan), "sampler": sampler}
    write_json(plan.output_dir / "summary.json", summary)
    return json.dumps(summary)
