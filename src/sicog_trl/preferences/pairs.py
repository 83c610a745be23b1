"""Preference pairs: of two responses to one prompt the better one, and one that the model itself wrote.

SICOG (arXiv 2503.12303) rejects what the model says about a damaged image, or what self-consistency ranked lower. Here
both sides are always of one mode and one prompt: a chain against a short answer would teach the length of answers. Nor
is a broken response ever rejected: that whole beats cut off teaches form alone.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value

from ..curation.embedding import embedder
from ..data import CANDIDATES_FEATURES, PREFERENCE_FEATURES, write_card, writing
from ..files import claim
from ..responses import canonical
from .margins import judge, nearest, ranking
from .rows import CHOSEN, PairRow, check, digest, fingerprint, verdicts_of, with_damaged, with_ranked


SOURCES = ("damaged", "ranked")
DROPPED_PAIRS_FEATURES = Features(
    {
        "id": Value("string"),  # of the row that got no pair
        "task": Value("string"),
        "mode": Value("string"),
        "reason": Value("string"),
        "chosen": Value("string"),
        "rejected": Value("string"),  # the candidate that came nearest to being used, if there was one
        "corruption": Value("string"),
        "margin": Value("float64"),
    }
)


@dataclass
class PairConfig:
    """
    Which pairs to build.

    Args:
        rejected_from (`str`, *optional*, defaults to `"damaged"`):
            Where the rejected side comes from: `"damaged"`, from candidates about a damaged image; or `"ranked"`, from
            the candidates that self-consistency ranked lowest.
        similarity (`str`, *optional*, defaults to `"word_ngram"`):
            How the final parts of the sides are compared for `"damaged"`, see
            [`~sicog_trl.curation.embedding.embedder`].
        min_margin (`float`, *optional*, defaults to `0.05`):
            Pairs whose sides differ by less are not built. The margin is 1 - cosine similarity of the final parts for
            `"damaged"`, and the consistency of the chosen side less that of the rejected one for `"ranked"`.
        pairs_per_row (`int`, *optional*, defaults to `1`):
            Most pairs of a row: those of the largest margins.
    """

    rejected_from: str = field(default="damaged", metadata={"help": "Where it comes from.", "choices": SOURCES})
    similarity: str = field(default="word_ngram", metadata={"help": "How final parts are compared."})
    min_margin: float = field(default=0.05, metadata={"help": "By how much the sides differ at least, 0 to 1."})
    pairs_per_row: int = field(default=1, metadata={"help": "Most pairs of a row, largest margins first."})

    def __post_init__(self) -> None:
        if self.rejected_from not in SOURCES:
            raise ValueError(f"unknown rejected_from {self.rejected_from!r}; choose one of {', '.join(SOURCES)}")
        if not 0 <= self.min_margin <= 1:
            raise ValueError(f"min_margin is between 0 and 1, got {self.min_margin}")
        if self.pairs_per_row < 1:
            raise ValueError(f"pairs_per_row is at least 1, got {self.pairs_per_row}")


def make_pairs(
    chosen: Sequence[Dataset],
    config: PairConfig,
    output_dir: str | Path,
    damaged: Sequence[Dataset] = (),
    scores: Sequence[pa.Table] = (),
) -> dict[str, Any]:
    """
    Pair chosen with rejected responses, and write the splits `preference` and `dropped`.

    Args:
        chosen (`Sequence[datasets.Dataset]`):
            For `rejected_from="damaged"` annotated or curated rows; for `"ranked"` candidates, of which the winner is
            chosen and another one rejected.
        config ([`PairConfig`]):
            Which pairs to build.
        output_dir (`str` or `Path`):
            Artefact folder. `load_dataset(output_dir, split="preference")` and
            `load_dataset(output_dir, "dropped", split="dropped")` work.
        damaged (`Sequence[datasets.Dataset]`, *optional*):
            Candidates made with `corruptions`; a row of them belongs to the chosen rows whose `source_id`, or `id` if
            there is none, is its `id`.
        scores (`Sequence[pyarrow.Table]`, *optional*):
            What curation wrote about the candidates, with the columns `id`, `scores`, `winner` and `reason`.

    Returns:
        `dict[str, Any]`: counts (`rows_in`, `paired`, `dropped` by reason, `pairs`, `candidates` by what became of
        them), and by mode the number of pairs, the mean length in words of both sides, which a bias shows in, and the
        mean margin.
    """
    by_damage = config.rejected_from == "damaged"
    embed = embedder(config.similarity) if by_damage else None
    check(chosen, CHOSEN if by_damage else list(CANDIDATES_FEATURES), "chosen")
    settings = {"chosen": fingerprint(chosen), **vars(config)}
    if by_damage:
        check(damaged, list(CANDIDATES_FEATURES), "damaged")
        settings["damaged"] = fingerprint(damaged)
        batches = with_damaged(chosen, damaged)
    else:
        verdicts = verdicts_of(scores)
        settings["scores"] = digest(repr(verdict) for verdict in verdicts.values())
        batches = with_ranked(chosen, verdicts)
    settings_file = Path(output_dir, "settings.json")
    if settings_file.exists():
        claim(settings_file, settings)  # another run is refused at once
    tally = _Tally()
    with ExitStack() as stack:
        pairs = stack.enter_context(writing(output_dir, "preference", PREFERENCE_FEATURES.arrow_schema))
        dropped = stack.enter_context(writing(output_dir, "dropped", DROPPED_PAIRS_FEATURES.arrow_schema))
        for images, rows in batches:
            judge(rows, config.min_margin, embed)
            tally.add(rows, _write_pairs(pairs, images, rows, config))
            _write_dropped(dropped, rows)
        if by_damage:
            tally.refuse_strangers()
        claim(settings_file, settings)  # not before: what fails above leaves no trace that would refuse the next try
    write_card(output_dir, ["preference", "dropped"])
    return {**tally.summary(), "texts_longer_than_similarity_reads": getattr(embed, "num_cut", 0)}


def _write_pairs(writer: Any, images: pa.ChunkedArray, rows: list[PairRow], config: PairConfig) -> list[dict]:
    """Write the pairs of a batch and return them without their images, which are slices of those that were read."""
    schema = PREFERENCE_FEATURES.arrow_schema
    pairs, chunks = [], []
    for row in rows:
        for place, number in enumerate(ranking(row)[: config.pairs_per_row]):
            pairs.append(_pair(row, number, place, config))
            chunks += images.slice(row.number, 1).cast(schema.field("images").type).chunks
    if pairs:
        columns = {"images": pa.chunked_array(chunks)}
        columns |= {name: pa.array([pair[name] for pair in pairs], schema.field(name).type) for name in pairs[0]}
        writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
    return pairs


def _pair(row: PairRow, number: int, place: int, config: PairConfig) -> dict[str, Any]:
    candidate = row.options[number]
    chosen, rejected = (canonical(text, row.mode) for text in (row.chosen, candidate["text"]))
    return {
        "id": f"{row.id}-{place}",
        "prompt": row.prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "task": row.task,
        "mode": row.mode,
        "chosen_from": row.chosen_from,
        "rejected_from": config.rejected_from,
        "corruption": candidate["corruption"],
        "margin": row.margins[number],
    }


def _write_dropped(writer: Any, rows: list[PairRow]) -> None:
    """Write the rows of a batch that got no pair, with the candidate that came nearest to being used."""
    dropped = []
    for row in rows:
        if row.reason is not None:
            number = nearest(row)
            candidate = {} if number is None else row.options[number]
            dropped.append(
                {
                    **{name: getattr(row, name) for name in ("id", "task", "mode", "reason")},
                    "chosen": row.chosen or None,
                    "rejected": candidate.get("text"),
                    "corruption": candidate.get("corruption"),
                    "margin": None if number is None else row.margins[number],
                }
            )
    if dropped:
        writer.write_table(pa.Table.from_pylist(dropped, DROPPED_PAIRS_FEATURES.arrow_schema))


class _Tally:
    """Counts of a run."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.candidates: Counter[str] = Counter()
        self.corruptions: Counter[str] = Counter()
        self.modes: dict[str, Counter[str]] = {}

    def add(self, rows: list[PairRow], pairs: list[dict]) -> None:
        """Count a batch."""
        self.rows += len(rows)
        self.dropped.update(row.reason for row in rows if row.reason is not None)
        self.candidates.update(fault or "sound" for row in rows for fault in row.faults)
        self.corruptions.update(pair["corruption"] for pair in pairs if pair["corruption"])
        for pair in pairs:
            sums = self.modes.setdefault(pair["mode"], Counter())
            sums["pairs"] += 1
            sums["margin"] += pair["margin"]
            for side in ("chosen", "rejected"):
                sums[f"{side}_length"] += len(pair[side][0]["content"].split())

    def refuse_strangers(self) -> None:
        """Refuse candidates that belong to other rows, or that are about whole images."""
        if not self.candidates and self.dropped["no_candidates"]:
            raise ValueError(
                "no chosen row has a candidate of its mode: candidates are found by the id of the row that they are "
                "about (`source_id`, or `id`); generate them from these rows, in the modes of the chosen responses"
            )
        if set(self.candidates) == {"not_damaged"}:
            raise ValueError(
                f"all {self.candidates.total()} candidates are about whole images; generate them with `corruptions`"
            )

    def summary(self) -> dict[str, Any]:
        """Return the counts and means as JSON takes them."""
        pairs = sum(sums["pairs"] for sums in self.modes.values())
        sound = self.candidates.pop("sound", 0)
        return {
            "rows_in": self.rows,
            "paired": self.rows - self.dropped.total(),
            "dropped": dict(sorted(self.dropped.items())),
            "candidates": {"used": pairs, "not_needed": sound - pairs, **dict(sorted(self.candidates.items()))},
            "pairs": pairs,
            "corruptions": dict(sorted(self.corruptions.items())),
            **_means(sum(self.modes.values(), Counter())),
            "modes": {mode: {"pairs": sums["pairs"], **_means(sums)} for mode, sums in sorted(self.modes.items())},
        }


def _means(sums: Counter[str]) -> dict[str, float | None]:
    names = ("chosen_length", "rejected_length", "margin")
    return {f"mean_{name}": sums[name] / sums["pairs"] if sums["pairs"] else None for name in names}
