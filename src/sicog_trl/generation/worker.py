"""Workers: each makes its shards one after the other and shows how far it is."""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm

from ..data import CANDIDATES_FEATURES
from .asking import Asked, Row, ask
from .candidates import CandidateConfig, Counts
from .inputs import ImageRows
from .plan import Plan, make_plan
from .sampling import Failure, Request, Response, Sampler


_MOST_REFUSED = 20


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
        self.refused: list[str] | None = []  # requests, until one succeeds

    def add(self, rows: int, failed: int, tokens: int = 0) -> None:
        """Count rows that are done, how many of them have an error, and the tokens of their responses."""
        self.kept += rows - failed
        self.failed += failed
        self.tokens += tokens
        rate = self.tokens / max(time.perf_counter() - self.started, 1e-9)
        self.bar.set_postfix_str(f"{rate:,.0f} tokens/s, {self.kept} kept, {self.failed} failed", refresh=False)
        self.bar.update(rows)

    def judge(self, error: str | None) -> None:
        """Raise if every request has failed from the start: a wrong setting must not make a million rows errors."""
        if error is None or self.refused is None:
            self.refused = None
            return
        self.refused.append(error)
        if len(self.refused) >= _MOST_REFUSED:
            raise RuntimeError(
                f"the first {_MOST_REFUSED} requests have all failed, so something must be set wrong; the first of "
                f"them: {self.refused[0]}"
            )

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self.bar.write(text, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()


def fill(
    table: pa.Table,
    sampler: Sampler,
    config: CandidateConfig,
    progress: Progress,
    known: pa.Table | None = None,
    inherited: pa.Table | None = None,
    taken: Counts | None = None,
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
        progress ([`Progress`]):
            Hears of every row and response.
        known (`pa.Table`, *optional*):
            What this run has sampled for these rows before; only what is missing is sampled.
        inherited (`pa.Table`, *optional*):
            What an earlier round has sampled for these rows.
        taken (`dict[str, list]`, *optional*):
            How many candidates per mode that round was asked for; they count among those asked for here.

    Returns:
        `pa.Table`: with the schema of the candidates contract.
    """
    contents = table.select(["id", "question"]).to_pylist()
    before = [
        earlier["candidates"].to_pylist() if earlier is not None else [[]] * len(contents)
        for earlier in (known, inherited)
    ]
    rows = [Row(*parts, config, taken or {}) for parts in zip(contents, table["images"], *before, strict=True)]
    _answer(rows, sampler, config, progress)
    columns = {
        "task": [row.task for row in rows],
        "candidates": [row.collected() for row in rows],
        "error": [row.error for row in rows],
    }
    schema = CANDIDATES_FEATURES.arrow_schema
    for name, values in columns.items():
        table = table.append_column(schema.field(name), pa.array(values, type=schema.field(name).type))
    return table.cast(schema)


def _answer(rows: list[Row], sampler: Sampler, config: CandidateConfig, progress: Progress) -> None:
    """Sample what the rows lack and hand the answers to them; the sampler takes requests at its own pace."""
    waiting: dict[int, Asked] = {}  # requests without an answer; their images are needed no longer than that

    def requests() -> Iterator[Request]:
        numbers = itertools.count()
        for row, asked in ask(rows, sampler.placeholders, config):
            row.unanswered = len(asked)
            if not asked:
                progress.add(rows=1, failed=int(row.error is not None))
            for one in asked:
                waiting[next(numbers)] = one
                yield one.request

    coming = requests()
    if any(row.candidates for row in rows):
        progress.judge(None)
    for number, answer in sampler.sample(coming):
        if number not in waiting:
            raise RuntimeError(f"{type(sampler).__name__} answered request {number}, which was not waiting")
        one = waiting.pop(number)
        _receive(one, number, answer)
        progress.judge(one.row.errors.get(number))
        one.row.unanswered -= 1
        done = not one.row.unanswered
        responses = answer.responses if isinstance(answer, Failure) else answer
        tokens = sum(response.num_tokens or 0 for response in responses)
        progress.add(rows=int(done), failed=int(done and one.row.error is not None), tokens=tokens)
    if left := len(waiting) + sum(1 for _ in coming):
        raise RuntimeError(f"{type(sampler).__name__} left {left} requests without an answer")


def _receive(asked: Asked, number: int, answer: list[Response] | Failure) -> None:
    """Hand an answer to its row."""
    if isinstance(answer, Failure):
        asked.row.errors[number] = f"{answer.reason}: row {asked.row.id!r}: {answer.message}"
        pairs = zip(asked.request.seeds, answer.responses, strict=False)
    else:
        pairs = zip(asked.request.seeds, answer, strict=True)
    for seed, response in pairs:
        asked.row.candidates[asked.mode, seed] = _candidate(asked, seed, response)


def _candidate(asked: Asked, seed: int, response: Response) -> dict[str, Any]:
    return {
        "text": response.text,
        "mode": asked.mode,
        "prompt": asked.request.prompt,
        "seed": seed,
        "finish_reason": response.finish_reason,
        "num_tokens": response.num_tokens,
        "corruption": asked.corruption,
        # Another batch moves it by a ten-millionth, and the shards shall be the same.
        "mean_logprob": None if response.mean_logprob is None else round(response.mean_logprob, 4),
    }


def make_shard(
    plan: Plan, shard: int, config: CandidateConfig, rows: ImageRows, sampler: Sampler, progress: Progress
) -> str | None:
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

    Returns:
        `str` or `None`: what a person should know of rows that lack candidates.
    """
    known = plan.read(shard)
    table = rows.table(plan.rows(shard))
    if rows.digest_of(table) != plan.digests[shard]:
        raise ValueError(
            f"rows {plan.rows(shard).start} to {plan.rows(shard).stop - 1} of the input are not those that "
            f"{plan.output_dir / 'plan.json'} was made of; bring them back, or choose another output_dir"
        )
    taken = plan.previous.counts if plan.previous else None
    filled = fill(table, sampler, config, progress, known, plan.inherited(shard), taken)
    plan.publish(shard, filled)
    errors = [error for error in filled["error"].to_pylist() if error]
    return f"{plan.path(shard)}: {len(errors)} rows lack candidates; the first: {errors[0]}" if errors else None


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
            if said := make_shard(plan, shard, config, rows, sampler, progress):
                progress.say(said)


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
            The input; see [`ImageRows`] for what it may look like. Of a dataset the rows of `config.task` are taken.
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
    rows = dataset if isinstance(dataset, ImageRows) else ImageRows(dataset, config.task)
    plan = make_plan(rows, config, output_dir, model_fingerprint, dtype)
    shards = plan.missing(shard_index, num_shards, retry_failed)
    make_shards(plan, shards, config, rows, sampler, show_progress)
    return plan
