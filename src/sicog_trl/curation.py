"""Self-consistency: of the candidates of a row keep the one the others agree with, of the rows the most agreed on.

SICOG (arXiv 2503.12303) compares candidates by their last part: captions by the cohesive description, reasoning by the
final answer, and keeps the whole winning candidate. Two passes, neither of which decodes an image: the first scores
the rows in batches, the second writes the kept and the dropped ones.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features

from .data import CANDIDATES_FEATURES, CURATED_FEATURES, DROPPED_FEATURES, writing
from .files import claim, replacing, write_text
from .prompts import prompt_for
from .responses import final_part, normalize_answer
from .similarity import embedder, fault_of, self_consistency


STRATEGIES = ("self_consistency", "random", "first", "longest", "oracle")
TRUTH_MODES = {"description": "detailed_description", "reasoning": "direct_answer"}
_BATCH = 1000  # rows
# `datasets.load_dataset` wants the same columns in all splits of a configuration.
_CARD = """\
---
configs:
- config_name: curated
  default: true
  data_files: [{split: curated, path: data/curated-*}]
- config_name: dropped
  data_files: [{split: dropped, path: data/dropped-*}]
---
"""


@dataclass
class CurationConfig:
    """
    What to keep.

    Args:
        strategy (`str`, *optional*, defaults to `"self_consistency"`):
            How the candidate of a row is chosen, and which rows are best: `"self_consistency"`, or for ablations
            `"random"`, `"first"`, `"longest"`, and `"oracle"`, which trains on the column `answer`.
        similarity (`str`, *optional*, defaults to `"word_ngram"`):
            How texts are compared: `"word_ngram"` or `"char_ngram"`.
        veto (`bool`, *optional*, defaults to `True`):
            Texts that differ in numbers, colours, negations or spatial words disagree, whatever their similarity.
        min_consistency (`float`, *optional*):
            Rows whose winner scores less are dropped as `inconsistent`. The other strategies keep as many rows.
        keep (`float`, *optional*):
            Share of the rows of each task to keep, the most consistent first.
        description_accuracy (`str`, *optional*):
            Function `module.name` of a description and the true one that measures the quality of description labels
            where `answer` holds the truth. It only measures.
        curation_seed (`int`, *optional*, defaults to `0`):
            Seed of the strategy `"random"`.
    """

    strategy: str = field(
        default="self_consistency", metadata={"help": "How a candidate is chosen.", "choices": STRATEGIES}
    )
    similarity: str = field(default="word_ngram", metadata={"help": "How texts are compared."})
    veto: bool = field(default=True, metadata={"help": "Differing numbers, colours, negations, places disagree."})
    min_consistency: float | None = field(default=None, metadata={"help": "Drop rows whose winner scores less."})
    keep: float | None = field(default=None, metadata={"help": "Share of the rows of each task to keep."})
    description_accuracy: str | None = field(default=None, metadata={"help": "Function that measures label quality."})
    curation_seed: int = field(default=0, metadata={"help": "Seed of the strategy `random`."})

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share in (0, 1], got {self.keep}")


@dataclass
class Verdict:
    """
    What curation thinks of a row.

    Args:
        id, task (`str`):
            The row.
        scores (`list[float]`):
            Consistency of each candidate.
        winner (`int`):
            Index of the chosen candidate; -1 if there is none.
        reason (`str` or `None`):
            Why the row is dropped; `None` if it is kept.
        accuracy_before, accuracy_after (`float` or `None`):
            Mean accuracy of the candidates, and of the winner, where the truth is known.
    """

    id: str
    task: str
    scores: list[float]
    winner: int
    reason: str | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    @property
    def consistency(self) -> float:
        """Consistency of the winner."""
        return self.scores[self.winner] if self.winner >= 0 else 0.0


def curate(candidates: Dataset, config: CurationConfig, output_dir: str | Path) -> dict[str, Any]:
    """
    Choose a candidate per row, choose rows, and write the splits `curated` and `dropped`.

    Args:
        candidates (`datasets.Dataset`):
            Rows with the columns that `generate` writes.
        config ([`CurationConfig`]):
            What to keep.
        output_dir (`str` or `Path`):
            Artefact folder. `scores.parquet` beside the splits holds the score of every candidate; `README.md` makes
            `load_dataset(output_dir, split="curated")` and `load_dataset(output_dir, "dropped", split="dropped")`
            work.

    Returns:
        `dict[str, Any]`: counts (`rows_in`, `kept`, `dropped` by reason), label accuracy before and after, and the
        health of the kept texts (`mean_consistency`, `mean_length` in words, `distinct_texts`).
    """
    _check(candidates)
    text_only = candidates.select_columns([name for name in candidates.column_names if name != "images"])
    verdicts = [verdict for batch in text_only.iter(_BATCH) for verdict in _judge(_rows(batch), config)]
    _select_rows(verdicts, config)
    # Not before: what fails above leaves no trace that would refuse the next try.
    claim(Path(output_dir, "settings.json"), {"candidates": _fingerprint(text_only), **vars(config)})
    kept = [i for i, verdict in enumerate(verdicts) if verdict.reason is None]
    dropped = [i for i, verdict in enumerate(verdicts) if verdict.reason is not None]
    health = _write(candidates, kept, verdicts, _curated, CURATED_FEATURES, output_dir, "curated", config)
    _write(candidates, dropped, verdicts, _dropped, DROPPED_FEATURES, output_dir, "dropped", config)
    write_text(Path(output_dir, "README.md"), _CARD)
    with replacing(Path(output_dir, "scores.parquet")) as unfinished:
        pq.write_table(pa.Table.from_pylist([vars(verdict) for verdict in verdicts]), unfinished)
    return {
        "rows_in": len(verdicts),
        "kept": len(kept),
        "dropped": dict(sorted(Counter(verdicts[i].reason for i in dropped).items())),
        "label_accuracy_before": _accuracy(verdicts, "accuracy_before"),
        "label_accuracy_after": _accuracy([verdicts[i] for i in kept], "accuracy_after"),
        "mean_consistency": float(np.mean([verdicts[i].consistency for i in kept])) if kept else None,
        **health,
    }


def _fingerprint(text_only: Dataset) -> str:
    digest = hashlib.sha256()
    for batch in text_only.with_format("arrow").iter(_BATCH):
        digest.update(repr(batch.to_pydict()).encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def _check(candidates: Dataset) -> None:
    """Refuse candidates that lack a column, or that name a row twice."""
    if missing := [name for name in CANDIDATES_FEATURES if name not in candidates.column_names]:
        raise ValueError(f"the candidates have no column {missing[0]!r}; they have {candidates.column_names}")
    if not len(candidates):
        raise ValueError("the candidates have no rows; there is nothing to curate")
    ids = Counter(candidates.select_columns("id")["id"])
    if twice := [row_id for row_id, count in ids.items() if count > 1]:
        raise ValueError(f"the id {twice[0]!r} stands in {ids[twice[0]]} rows of the candidates; ids must be unique")


def _rows(batch: dict[str, list]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _judge(rows: Iterator[dict[str, Any]], config: CurationConfig) -> Iterator[Verdict]:
    embed = embedder(config.similarity)
    measure = _resolve(config.description_accuracy)
    for row in rows:
        options, task = row["candidates"], row["task"]
        scores = self_consistency(options, task, embed, config.veto)
        verdict = Verdict(row["id"], task, scores, _choose(row, scores, config))
        if verdict.winner < 0:
            verdict.reason = row["error"].partition(":")[0] if row["error"] else _common_fault(options)
        truth, grade = row["answer"], measure if task == "description" else _equal_answers
        if truth and grade and options:
            grades = [grade(final_part(c["text"], c["mode"]) or "", truth) for c in options]
            verdict.accuracy_before = float(np.mean(grades))
            if verdict.winner >= 0:
                verdict.accuracy_after = 1.0 if config.strategy == "oracle" else grades[verdict.winner]
        yield verdict


def _choose(row: dict[str, Any], scores: list[float], config: CurationConfig) -> int:
    sound = [i for i, candidate in enumerate(row["candidates"]) if not fault_of(candidate)]
    if row["error"] or not sound:
        return -1
    if config.strategy == "oracle" and not row["answer"]:
        raise ValueError(f"row {row['id']!r}: the strategy 'oracle' needs the column `answer`, which is empty")
    if config.strategy == "longest":
        return max(sound, key=lambda i: (len(row["candidates"][i]["text"]), -i))
    if config.strategy == "random":
        return sound[_draw(config, row["id"], "candidate") % len(sound)]
    if config.strategy == "self_consistency":
        return max(sound, key=lambda i: (scores[i], -i))
    return sound[0]


def _draw(config: CurationConfig, row_id: str, purpose: str) -> int:
    text = f"{config.curation_seed}|{row_id}|{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _select_rows(verdicts: list[Verdict], config: CurationConfig) -> None:
    """
    Mark the rows to drop as `inconsistent`, or as `not_drawn` for the other strategies, which keep as many rows of
    each task as self-consistency would, drawn by chance.
    """
    for task in sorted({verdict.task for verdict in verdicts}):
        rows = [verdict for verdict in verdicts if verdict.task == task]
        candidates = [verdict for verdict in rows if verdict.reason is None]
        limit = len(candidates) if config.keep is None else round(config.keep * len(rows))
        best = [max(verdict.scores) for verdict in candidates]
        limit = min(limit, sum(score >= (config.min_consistency or 0) for score in best))
        if config.strategy == "self_consistency":
            reason = "inconsistent"
            candidates.sort(key=lambda verdict: (-verdict.consistency, verdict.id))
        else:
            reason = "not_drawn"
            candidates.sort(key=lambda verdict: (_draw(config, verdict.id, "row"), verdict.id))
        for verdict in candidates[limit:]:
            verdict.reason = reason


def _common_fault(candidates: list[dict]) -> str:
    faults = Counter(fault_of(candidate) for candidate in candidates)
    return min(faults, key=lambda fault: (-faults[fault], fault)) if faults else "empty"


def _write(
    candidates: Dataset,
    indices: list[int],
    verdicts: list[Verdict],
    convert: Callable[[dict, Verdict, CurationConfig], dict],
    features: Features,
    output_dir: str | Path,
    split: str,
    config: CurationConfig,
) -> dict[str, Any]:
    """Write the rows at `indices`, image bytes untouched, and return the health of their completions."""
    lengths: list[int] = []
    texts: set[bytes] = set()
    schema = features.arrow_schema
    with writing(output_dir, split, schema) as writer:
        for start in range(0, len(indices), _BATCH):
            batch = indices[start : start + _BATCH]
            table = candidates.with_format("arrow").select(batch)[:]
            rows = table.drop_columns(["images"]).to_pylist()
            new = [convert(row, verdicts[i], config) for row, i in zip(rows, batch, strict=True)]
            columns = {
                name: table["images"].cast(schema.field(name).type)
                if name == "images"
                else pa.array([row[name] for row in new], type=schema.field(name).type)
                for name in features
            }
            writer.write_table(pa.table(columns, schema=schema))
            for row in new:
                if "completion" in row:
                    lengths.append(len(row["completion"][0]["content"].split()))
                    texts.add(hashlib.blake2b(row["completion"][0]["content"].encode(), digest_size=8).digest())
    return {"mean_length": float(np.mean(lengths)) if lengths else None, "distinct_texts": len(texts)}


def _curated(row: dict, verdict: Verdict, config: CurationConfig) -> dict:
    winner = row["candidates"][verdict.winner]
    mode, prompt, text = winner["mode"], winner["prompt"], winner["text"]
    if config.strategy == "oracle":
        mode, text = TRUTH_MODES[verdict.task], row["answer"]
        prompt = prompt_for(mode, row["question"])
    return {
        "id": verdict.id,
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": text}],
        "task": verdict.task,
        "mode": mode,
        "consistency": verdict.consistency,
        "num_candidates": len(row["candidates"]),
    }


def _dropped(row: dict, verdict: Verdict, config: CurationConfig) -> dict:
    return {**row, "consistency": verdict.consistency, "reason": verdict.reason}


def _equal_answers(answer: str, truth: str) -> float:
    return float(normalize_answer(answer) == normalize_answer(truth))


def _resolve(name: str | None) -> Callable[[str, str], float] | None:
    if name is None:
        return None
    module, _, function = name.rpartition(".")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"description_accuracy: cannot import {name!r} as `module.function`: {error}") from error


def _accuracy(verdicts: list[Verdict], which: str) -> dict[str, float | None]:
    groups = {"overall": verdicts} | {
        task: [verdict for verdict in verdicts if verdict.task == task]
        for task in sorted({verdict.task for verdict in verdicts})
    }
    known = {
        name: [getattr(verdict, which) for verdict in group if getattr(verdict, which) is not None]
        for name, group in groups.items()
    }
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}
