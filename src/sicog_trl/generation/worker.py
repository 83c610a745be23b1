"""Workers: each makes its shards one after the other and shows how far it is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm

from ..data import CANDIDATES_FEATURES
from .asking import Asked, Row, Window, ahead, windows
from .candidates import CandidateConfig
from .inputs import ImageRows
from .plan import Plan, make_plan
from .sampling import Failure, Response, Sampler


class Progress:
    """
    A bar of rows with the time left, tokens per second, and how many rows were kept or failed.

    Args:
        num_rows (`int`):
            Rows to do.
        disable (`bool`, *optional*, defaults to `False`):
            Count only, show nothing.
    """

    def __init__(self, num_rows: int, disable: bool = False):
        self.bar = tqdm(total=num_rows, desc="generate", unit="row", disable=disable)
        self.started = time.perf_counter()
        self.kept = self.failed = self.tokens = 0

    def row(self, failed: bool) -> None:
        """Count a row that is done."""
        self.add(rows=1, failed=int(failed))

    def response(self, response: Response) -> None:
        """Count the tokens of a response."""
        self.tokens += response.num_tokens or 0

    def add(self, rows: int, failed: int, tokens: int = 0) -> None:
        """Count rows that are done."""
        self.kept += rows - failed
        self.failed += failed
        self.tokens += tokens
        rate = self.tokens / max(time.perf_counter() - self.started, 1e-9)
        self.bar.set_postfix_str(f"{rate:,.0f} tokens/s, {self.kept} kept, {self.failed} failed", refresh=False)
        self.bar.update(rows)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()


def fill(
    table: pa.Table,
    sampler: Sampler,
    config: CandidateConfig,
    known: pa.Table | None = None,
    inherited: pa.Table | None = None,
    on_row: Callable[[bool], None] = lambda failed: None,
    on_response: Callable[[Response], None] = lambda response: None,
) -> pa.Table:
    """
    Append the task, the candidates and the error of each row to the untouched input columns.

    Args:
        table (`pa.Table`):
            Rows of the images contract, images undecoded.
        sampler (`Sampler`):
            Answers the requests.
        config ([`CandidateConfig`]):
            Which candidates to sample.
        known (`pa.Table`, *optional*):
            What this run has sampled for these rows before; only what is missing is sampled.
        inherited (`pa.Table`, *optional*):
            Candidates of these rows from an earlier round, which count among those asked for.
        on_row, on_response (`Callable`, *optional*):
            Called when a row is done, with whether it failed, and with each response.

    Returns:
        `pa.Table`: with the schema of the candidates contract.
    """
    contents = table.select(["id", "question"]).to_pylist()
    before = [
        earlier["candidates"].to_pylist() if earlier is not None else [[]] * len(contents)
        for earlier in (known, inherited)
    ]
    rows = [Row(*parts) for parts in zip(contents, table["images"], *before, strict=True)]
    for window in ahead(windows(rows, sampler.placeholders, config)):
        _answer(window, sampler, on_row, on_response)
    columns = {
        "task": [row.task for row in rows],
        "candidates": [row.collected(config) for row in rows],
        "error": [row.error for row in rows],
    }
    schema = CANDIDATES_FEATURES.arrow_schema
    for name, values in columns.items():
        table = table.append_column(schema.field(name), pa.array(values, type=schema.field(name).type))
    return table.cast(schema)


def _answer(
    window: Window, sampler: Sampler, on_row: Callable[[bool], None], on_response: Callable[[Response], None]
) -> None:
    """Sample all requests of a window and hand the answers to their rows."""
    rows, asked = window
    for one in asked:
        one.row.unanswered += 1
    for row in rows:
        if not row.unanswered:
            on_row(row.error is not None)
    for number, answer in sampler.sample([one.request for one in asked]):
        one = asked[number]
        if isinstance(answer, Failure):
            one.row.errors[number] = f"{answer.reason}: row {one.row.id!r}: {answer.message}"
        else:
            for seed, response in zip(one.request.seeds, answer, strict=True):
                one.row.candidates[one.mode, seed] = _candidate(one, seed, response)
                on_response(response)
        one.row.unanswered -= 1
        if not one.row.unanswered:
            on_row(one.row.error is not None)
    if left := sum(row.unanswered for row in rows):
        raise RuntimeError(f"{type(sampler).__name__} left {left} of {len(asked)} requests without an answer")


def _candidate(asked: Asked, seed: int, response: Response) -> dict[str, Any]:
    return {
        "text": response.text,
        "mode": asked.mode,
        "prompt": asked.request.prompt,
        "seed": seed,
        "finish_reason": response.finish_reason,
        "num_tokens": response.num_tokens,
        "corruption": asked.corruption,
    }


def make_shard(
    plan: Plan, shard: int, config: CandidateConfig, rows: ImageRows, sampler: Sampler, progress: Progress
) -> None:
    """
    Sample what a shard lacks and publish it.

    Args:
        plan ([`Plan`]):
            The run.
        shard (`int`):
            Which one.
        config ([`CandidateConfig`]):
            Which candidates to sample.
        rows ([`ImageRows`]):
            The input.
        sampler ([`Sampler`]):
            Answers the requests.
        progress ([`Progress`]):
            Hears of every row and response.
    """
    table = rows.table(plan.rows(shard))
    if rows.digest_of(table) != plan.digests[shard]:
        raise ValueError(
            f"rows {plan.rows(shard).start} to {plan.rows(shard).stop - 1} of the input are not those that "
            f"{plan.output_dir / 'plan.json'} was made of; bring them back, or choose another output_dir"
        )
    inherited = plan.previous.read(shard) if plan.previous else None
    filled = fill(table, sampler, config, plan.read(shard), inherited, progress.row, progress.response)
    plan.publish(shard, filled)
    if errors := [error for error in filled["error"].to_pylist() if error]:
        progress.bar.write(f"{plan.path(shard)}: {len(errors)} rows lack candidates; the first: {errors[0]}")


def make_shards(
    plan: Plan,
    shards: list[int],
    config: CandidateConfig,
    rows: ImageRows,
    sampler: Sampler,
    show_progress: bool = True,
) -> None:
    """Make shards one after the other, in this process; see [`make_shard`]."""
    with Progress(sum(len(plan.rows(shard)) for shard in shards), disable=not show_progress) as progress:
        for shard in shards:
            make_shard(plan, shard, config, rows, sampler, progress)


def generate_candidates(
    dataset: Dataset | ImageRows,
    sampler: Sampler,
    config: CandidateConfig,
    output_dir: str | Path,
    model_fingerprint: str,
    shard_index: int = 0,
    num_shards: int = 1,
    dtype: str | None = None,
    retry_failed: bool = False,
    show_progress: bool = True,
) -> Plan:
    """
    Sample candidates for every row and write them as shards; what is already there is not made again.

    Args:
        dataset (`datasets.Dataset` or [`ImageRows`]):
            The input; see [`ImageRows`] for what it may look like.
        sampler ([`Sampler`]):
            Answers the requests.
        config ([`CandidateConfig`]):
            Which candidates to sample.
        output_dir (`str` or `Path`):
            Artefact folder; split `candidates`.
        model_fingerprint (`str`):
            Identifies the weights; a resume with others is refused.
        shard_index, num_shards (`int`, *optional*):
            This worker takes every `num_shards`-th shard, starting at `shard_index`.
        dtype (`str`, *optional*):
            Precision of the weights; a resume with another is refused.
        retry_failed (`bool`, *optional*, defaults to `False`):
            Ask again for what rows with an error lack.
        show_progress (`bool`, *optional*, defaults to `True`):
            Show a bar.

    Returns:
        [`Plan`]: the shards of the run.
    """
    rows = dataset if isinstance(dataset, ImageRows) else ImageRows(dataset)
    plan = make_plan(rows, config, output_dir, model_fingerprint, dtype)
    shards = plan.missing(shard_index, num_shards, retry_failed)
    make_shards(plan, shards, config, rows, sampler, show_progress)
    return plan
