"""From images to candidates: requests per row and mode, one shard after the other."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Image, List
from PIL import Image as PILImage
from tqdm.auto import tqdm

from ..data import CANDIDATES_FEATURES, IMAGES_FEATURES
from ..prompts import prompt_for, task_of
from ..views import light_view
from .images import identity, open_image
from .sampling import Request, Sampler, candidate_seed
from .shards import Plan, make_plan, publish, remove_unfinished


@dataclass
class CandidateConfig:
    """
    Which candidates to sample.

    Args:
        description_modes (`dict[str, int]`, *optional*):
            Candidates per mode for rows without a question, given in YAML. Defaults to SICOG's two chains and one
            direct answer.
        reasoning_modes (`dict[str, int]`, *optional*):
            Candidates per mode for rows with a question, likewise.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature (SICOG); 0 means greedy.
        top_p (`float`, *optional*, defaults to `0.9`):
            Nucleus (SICOG).
        max_completion_length (`int`, *optional*, defaults to `1200`):
            Most tokens of a candidate (SICOG).
        views (`bool`, *optional*, defaults to `False`):
            Show each candidate another light view of the image (shift, brightness, noise).
        max_pixels (`int`, *optional*):
            Larger images are scaled down to this many pixels before the model sees them.
        rows_per_shard (`int`, *optional*, defaults to `512`):
            Input rows per file: what a crash can lose.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the run.
    """

    description_modes: dict[str, int] = field(
        default_factory=lambda: {"chain_of_description": 2, "detailed_description": 1},
        metadata={"help": "Candidates per mode for rows without a question."},
    )
    reasoning_modes: dict[str, int] = field(
        default_factory=lambda: {"chain_of_thought": 2, "direct_answer": 1},
        metadata={"help": "Candidates per mode for rows with a question."},
    )
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature; 0 means greedy."})
    top_p: float = field(default=0.9, metadata={"help": "Nucleus."})
    max_completion_length: int = field(default=1200, metadata={"help": "Most tokens of a candidate."})
    views: bool = field(default=False, metadata={"help": "Show each candidate another light view of the image."})
    max_pixels: int | None = field(default=None, metadata={"help": "Scale larger images down to this many pixels."})
    rows_per_shard: int = field(default=512, metadata={"help": "Input rows per file."})
    seed: int = field(default=0, metadata={"help": "Seed of the run."})

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is at least 1, got {self.rows_per_shard}")
        for name, task in (("description_modes", "description"), ("reasoning_modes", "reasoning")):
            for mode, count in getattr(self, name).items():
                if task_of(mode) != task:
                    raise ValueError(f"{name}: {mode!r} is a mode of the task {task_of(mode)!r}")
                if count < 1:
                    raise ValueError(f"{name}: {mode!r} asks for {count} candidates; leave the mode out instead")


def generate_candidates(
    dataset: Dataset,
    sampler: Sampler,
    config: CandidateConfig,
    output_dir: str | Path,
    model_fingerprint: str,
    shard_index: int = 0,
    num_shards: int = 1,
    dtype: str | None = None,
) -> Plan:
    """
    Sample candidates for every row and write them as shards; what is already there is not made again.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the images contract (`id`, `images`, optional `question` and `answer`).
        sampler (`Sampler`):
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

    Returns:
        [`Plan`]: the shards of the run.
    """
    dataset = _as_images(dataset)
    fingerprint = {"model": model_fingerprint, "dtype": dtype, **_fingerprint(dataset, config)}
    plan = make_plan(output_dir, len(dataset), config.rows_per_shard, fingerprint)
    remove_unfinished(output_dir)
    shards = [shard for shard in plan.missing() if shard % num_shards == shard_index]
    with tqdm(total=sum(len(plan.rows(shard)) for shard in shards), desc="generate", unit="row") as progress:
        for shard in shards:
            rows = plan.rows(shard)
            table = dataset.with_format("arrow")[rows.start : rows.stop]
            filled = _fill(table, dataset.select(rows), sampler, config)
            publish(filled, plan.path(shard))
            if errors := [error for error in filled["error"].to_pylist() if error]:
                progress.write(f"{plan.path(shard)}: {len(errors)} rows have no candidates; the first: {errors[0]}")
            progress.update(len(rows))
    return plan


def _as_images(dataset: Dataset) -> Dataset:
    """Bring the columns to the contract without decoding an image, and check that ids are unique."""
    names = dataset.column_names
    for name in ("id", "images"):
        if name not in names:
            raise ValueError(f"the input has no column {name!r}; it has {names}")
    if not len(dataset):
        raise ValueError("the input has no rows; there is nothing to generate for")
    ids = dataset.select_columns("id")["id"]
    seen: set[str] = set()
    for number, row_id in enumerate(ids):
        if row_id in seen:
            raise ValueError(f"row {number}: the id {row_id!r} was used before; ids must be unique")
        seen.add(row_id)
    for name in ("question", "answer"):
        if name not in names:
            dataset = dataset.add_column(name, pa.nulls(len(dataset), pa.string()))
    dataset = dataset.select_columns(list(IMAGES_FEATURES)).cast(IMAGES_FEATURES)
    return dataset.cast_column("images", List(Image(decode=False)))


def _fingerprint(dataset: Dataset, config: CandidateConfig) -> dict[str, Any]:
    """Identify the rows, their images as they are stored, the prompts and the settings."""
    digest = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(1000):
        columns = [batch[name].to_pylist() for name in ("id", "question", "answer", "images")]
        for *texts, images in zip(*columns, strict=True):
            digest.update(repr((texts, [identity(image) for image in images or []])).encode())
    modes = ("description_modes", "reasoning_modes")
    settings = {name: value for name, value in vars(config).items() if name not in ("rows_per_shard", *modes)}
    return {
        "input": digest.hexdigest(),
        "prompts": {
            mode: prompt_for(mode, "{question}" if task_of(mode) == "reasoning" else None)
            for mode in [*config.description_modes, *config.reasoning_modes]
        },
        **{name: list(getattr(config, name).items()) for name in modes},  # pairs: candidates stand in that order
        **settings,
    }


def _fill(table: pa.Table, rows: Dataset, sampler: Sampler, config: CandidateConfig) -> pa.Table:
    """Append the task, the candidates and the error of each row to the untouched input columns."""
    requests: list[Request] = []
    owners: list[tuple[int, str]] = []
    filled: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        filled.append({"task": "reasoning" if row["question"] else "description", "candidates": [], "error": None})
        if token := next((token for token in sampler.placeholders if token in (row["question"] or "")), None):
            filled[-1]["error"] = (
                f"placeholder: the question of row {row['id']!r} holds {token!r}; take it out, one is placed for each "
                "image of the row"
            )
            continue
        try:
            images = [open_image(image, config.max_pixels) for image in row["images"] or []]
        # Pillow reports a damaged PNG as a SyntaxError.
        except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError) as error:
            filled[-1]["error"] = f"unreadable_image: row {row['id']!r}: {error}"
            continue
        for mode, request in _requests(row, images, config):
            requests.append(request)
            owners.append((number, mode))
    for (number, mode), request, responses in zip(owners, requests, sampler.sample(requests), strict=True):
        filled[number]["candidates"] += [
            {
                "text": response.text,
                "mode": mode,
                "prompt": request.prompt,
                "seed": seed,
                "finish_reason": response.finish_reason,
                "num_tokens": response.num_tokens,
            }
            for seed, response in zip(request.seeds, responses, strict=True)
        ]
    schema = CANDIDATES_FEATURES.arrow_schema
    for name in ("task", "candidates", "error"):
        table = table.append_column(
            schema.field(name), pa.array([row[name] for row in filled], type=schema.field(name).type)
        )
    return table.cast(schema)


def _requests(row: dict, images: list[PILImage.Image], config: CandidateConfig) -> Iterator[tuple[str, Request]]:
    modes = config.reasoning_modes if row["question"] else config.description_modes
    for mode, count in modes.items():
        prompt = prompt_for(mode, row["question"] or None)
        seeds = [candidate_seed(config.seed, row["id"], prompt, index) for index in range(count)]
        if config.views:
            for seed in seeds:
                yield mode, Request([light_view(image, seed) for image in images], prompt, [seed])
        else:
            yield mode, Request(images, prompt, seeds)


def summarize(plan: Plan) -> dict[str, Any]:
    """
    Count what the finished shards of `plan` hold, from their text columns alone.

    Returns:
        `dict[str, Any]`: `rows`, `failed`, `candidates`, `tokens`, `distinct_per_row`, `truncated_share` and
        `empty_share`.
    """
    rows = failed = distinct = candidates = tokens = truncated = empty = 0
    for shard in range(plan.num_shards):
        for row in pq.read_table(plan.path(shard), columns=["candidates", "error"]).to_pylist():
            rows += 1
            failed += row["error"] is not None
            distinct += len({(candidate["mode"], candidate["text"]) for candidate in row["candidates"]})
            candidates += len(row["candidates"])
            tokens += sum(candidate["num_tokens"] for candidate in row["candidates"])
            truncated += sum(candidate["finish_reason"] == "length" for candidate in row["candidates"])
            empty += sum(not candidate["text"].strip() for candidate in row["candidates"])
    return {
        "rows": rows,
        "failed": failed,
        "candidates": candidates,
        "tokens": tokens,
        "distinct_per_row": distinct / max(1, rows - failed),
        "truncated_share": truncated / max(1, candidates),
        "empty_share": empty / max(1, candidates),
    }
