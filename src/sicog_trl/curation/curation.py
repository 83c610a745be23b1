"""Self-consistency: of the candidates of a row keep the one the others agree with, of the rows the most agreed on.

SICOG (arXiv 2503.12303) compares candidates by their last part: captions by the cohesive description, reasoning by the
final answer, and keeps the whole winning candidate. Two passes, neither of which decodes an image: the first scores
the rows in batches, the second writes the kept and the dropped ones.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from ..data import CANDIDATES_FEATURES
from ..files import claim
from ..prompts import STEPS, TASKS
from .columns import Batch, Fingerprint, read_batch
from .embedding import Embed, embedder
from .labels import grade, mean_accuracy, resolve
from .loading import check
from .selection import STRATEGIES, Verdict, chains_needed, choose, parse_threshold, select_rows
from .similarity import coarse_fault, read_candidate, score_rows
from .writing import CurationWriter


_BATCH = 1000  # rows
_TEXT_COLUMNS = [name for name in CANDIDATES_FEATURES if name != "images"]


@dataclass
class CurationConfig:
    """
    What to keep.

    Args:
        strategy (`str`, *optional*, defaults to `"self_consistency"`):
            How the candidate of a row is chosen, and which rows are best: `"self_consistency"`, or for ablations
            `"random"`, `"first"`, `"longest"`, `"likelihood"` (of the model that wrote it; candidates made with
            `--logprobs true`), and `"oracle"`, which trains on the column `answer`.
        similarity (`str`, *optional*, defaults to `"word_ngram"`):
            How texts are compared: `"word_ngram"`, `"char_ngram"`, or the id or folder of a sentence-transformers
            model.
        similarity_batch_size (`int`, *optional*, defaults to 32):
            Texts that a sentence-transformers model reads at once.
        veto (`bool`, *optional*, defaults to `True`):
            Sentences that differ in numbers, colours, negations or spatial words disagree, whatever their similarity;
            paragraphs disagree by their share of such words that contradict each other.
        min_consistency (`float` or `str`, *optional*):
            Rows whose winner scores less are dropped as `inconsistent`: a score in [0, 1], or a quantile of the
            winners' scores of each task; with `"q0.25"` the best three quarters stay. A quantile never keeps a row
            whose winner nobody agrees with, `0` keeps all that have a sound candidate. Defaults to `"q0.25"`, and
            with `keep` to `"q0"`, so that the share alone decides. The other strategies keep as many rows.
        keep (`float`, *optional*):
            Share of the rows of each task to keep, the most consistent first. A row must pass both this and
            `min_consistency`.
        multi_turn_min_consistency (`float` or `str`, *optional*):
            Kept chains that score at least this much, or belong to the best by this quantile of the kept chains of
            their task, are also written as conversations, a turn per step, into the split `multi_turn`.
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
    similarity_batch_size: int = field(default=32, metadata={"help": "Texts a sentence-transformers model reads."})
    veto: bool = field(default=True, metadata={"help": "Differing numbers, colours, negations, places disagree."})
    min_consistency: str | None = field(
        default=None,
        metadata={"help": "Drop rows whose winner scores less: 0.75, or a quantile; q0.25, or q0 with `keep`."},
    )
    keep: float | None = field(default=None, metadata={"help": "Share of the rows of each task to keep."})
    multi_turn_min_consistency: str | None = field(
        default=None, metadata={"help": "Tell chains that score as much in turns as well: 0.9, or q0.5."}
    )
    description_accuracy: str | None = field(default=None, metadata={"help": "Function that measures label quality."})
    curation_seed: int = field(default=0, metadata={"help": "Seed of the strategy `random`."})

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share in (0, 1], got {self.keep}")
        if self.similarity_batch_size < 1:
            raise ValueError(f"similarity_batch_size is at least 1, got {self.similarity_batch_size}")
        for name in ("min_consistency", "multi_turn_min_consistency"):
            setattr(self, name, parse_threshold(name, getattr(self, name)))
        if self.min_consistency is None:
            # The paper keeps 213K rows of about 283K (117,983 images and 164,785 questions): three quarters.
            self.min_consistency = "q0.25" if self.keep is None else "q0"


def curate(
    candidates: Dataset, config: CurationConfig, output_dir: str | Path, embed: Embed | None = None
) -> dict[str, Any]:
    """
    Choose a candidate per row, choose rows, and write the splits `curated`, `dropped` and, if asked, `multi_turn`.

    Args:
        candidates (`datasets.Dataset`):
            Rows with the columns that `generate` writes.
        config ([`CurationConfig`]):
            What to keep.
        output_dir (`str` or `Path`):
            Artefact folder. `scores.parquet` beside the splits holds the score of every candidate; `README.md` makes
            `load_dataset(output_dir, split="curated")` and `load_dataset(output_dir, "dropped", split="dropped")`
            work, of splits that have rows.
        embed (`Callable`, *optional*):
            Turns texts into vectors, instead of `similarity`; `similarity` should say which.

    Returns:
        `dict[str, Any]`: counts (`rows_in`, `kept`, `dropped` by reason, `candidate_faults` by what is wrong in
        detail, `headings_normalized`, `multi_turn`), the `score_needed` per task, label accuracy before and after, and
        the health of the kept texts (`mean_consistency`, `mean_length` in words, `distinct_texts`).
    """
    check(candidates)
    candidates = candidates.select_columns(list(CANDIDATES_FEATURES))
    embed = embed or embedder(config.similarity, config.similarity_batch_size)
    fingerprint, faults = Fingerprint(), Counter()
    verdicts = list(_judge_all(candidates.select_columns(_TEXT_COLUMNS), config, embed, fingerprint, faults))
    needed = select_rows(verdicts, config.strategy, config.min_consistency, config.keep, config.curation_seed)
    # Not before: what fails above leaves no trace that would refuse the next try.
    settings = {name: value for name, value in vars(config).items() if name != "similarity_batch_size"}
    claim(Path(output_dir, "settings.json"), {"candidates": fingerprint.hexdigest(), **settings})
    threshold = config.multi_turn_min_consistency
    in_turns = None if threshold is None else chains_needed(verdicts, threshold)
    health = CurationWriter(verdicts, config.strategy == "oracle", in_turns).write(candidates, output_dir)
    kept = [verdict for verdict in verdicts if verdict.reason is None]
    return {
        "rows_in": len(verdicts),
        "kept": len(kept),
        "dropped": dict(sorted(Counter(verdict.reason for verdict in verdicts if verdict.reason).items())),
        "candidate_faults": dict(sorted(faults.items())),
        "score_needed": needed,
        "texts_longer_than_similarity_reads": getattr(embed, "num_cut", 0),
        "label_accuracy_before": mean_accuracy(verdicts, "accuracy_before"),
        "label_accuracy_after": mean_accuracy(kept, "accuracy_after"),
        "mean_consistency": float(np.mean([verdict.consistency for verdict in kept])) if kept else None,
        **health,
    }


def _judge_all(
    text_only: Dataset, config: CurationConfig, embed: Embed, fingerprint: Fingerprint, faults: Counter
) -> Iterator[Verdict]:
    """Judge all rows, and meanwhile take the hash of what they say and count the faults of their candidates."""
    measure = resolve(config.description_accuracy)
    with tqdm(total=len(text_only), desc="curate", unit="row", delay=5) as bar:
        for table in text_only.with_format("arrow").iter(_BATCH):
            fingerprint.update(table)
            yield from _judge(read_batch(table), config, embed, measure, faults)
            bar.update(len(table))


def _judge(
    rows: Batch, config: CurationConfig, embed: Embed, measure: Callable | None, faults: Counter
) -> Iterator[Verdict]:
    _check_batch(rows)
    spans = rows.spans()
    read = [
        read_candidate(*fields)
        for fields in zip(rows.texts, rows.modes, rows.finish_reasons, rows.corruptions, strict=True)
    ]
    faults.update(fault for _, fault in read if fault)
    scored = score_rows(rows.tasks, [[part for part, _ in read[a:b]] for a, b in spans], embed, config.veto)
    for row, ((start, end), (scores, nearness)) in enumerate(zip(spans, scored, strict=True)):
        row_id, error, truth = rows.ids[row], rows.errors[row], rows.answers[row]
        sound = [] if error else [i for i in range(end - start) if read[start + i][1] is None]
        if config.strategy == "oracle" and sound and not truth:
            raise ValueError(f"row {row_id!r}: the strategy 'oracle' needs the column `answer`, which is empty")
        texts, modes = rows.texts[start:end], rows.modes[start:end]
        logprobs = rows.logprobs[start:end]
        winner = choose(row_id, config.strategy, sound, scores, nearness, texts, logprobs, config.curation_seed)
        verdict = Verdict(row_id, rows.tasks[row], scores, winner)
        if winner < 0:
            verdict.reason = error.partition(":")[0] if error else _common_fault(fault for _, fault in read[start:end])
        else:
            verdict.is_chain = bool(STEPS[modes[winner]]) and config.strategy != "oracle"
        if truth and texts:
            grade(verdict, texts, modes, truth, measure, config.strategy == "oracle")
        yield verdict


def _check_batch(rows: Batch) -> None:
    """Refuse what `generate` never writes: modes and tasks that are none, candidates without a text."""
    for names, known, what in ((rows.modes, STEPS, "mode"), (rows.tasks, TASKS, "task")):
        if unknown := sorted(set(names) - known.keys(), key=str):
            raise ValueError(f"the candidates name the {what} {unknown[0]!r}; known are {', '.join(known)}")
    for row, (start, end) in enumerate(rows.spans()):
        if None in rows.texts[start:end]:
            raise ValueError(
                f"row {rows.ids[row]!r}: a candidate has no `text`; one that says nothing has an empty one"
            )


def _common_fault(faults: Iterator[str]) -> str:
    counts = Counter(map(coarse_fault, faults))
    return min(counts, key=lambda fault: (-counts[fault], fault)) if counts else "empty"
