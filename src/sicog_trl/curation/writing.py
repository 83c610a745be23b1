"""What curation writes: the kept rows, the dropped ones, chains told in turns, scores, and a card that finds them."""

import hashlib
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from ..data import CURATED_FEATURES, DROPPED_FEATURES, write_card, writing
from ..files import replacing
from ..prompts import prompt_for
from ..responses import canonical
from .columns import combined, read_batch
from .multi_turn import turns
from .selection import Verdict


TRUTH_MODES = {"description": "detailed_description", "reasoning": "direct_answer"}
_ROWS = 250  # held at once, with the bytes of their images
_CURATED = CURATED_FEATURES.arrow_schema
_DROPPED = DROPPED_FEATURES.arrow_schema
_SCORES = pa.schema(
    {
        "id": pa.string(),
        "task": pa.string(),
        "scores": pa.list_(pa.float64()),
        "winner": pa.int64(),
        "consistency": pa.float64(),
        "reason": pa.string(),
        "accuracy_before": pa.float64(),
        "accuracy_after": pa.float64(),
    }
)


class CurationWriter:
    """
    Writes the splits of a curation, image bytes untouched.

    Args:
        verdicts (`list[Verdict]`):
            One per row of the candidates, in their order.
        truth (`bool`):
            Whether the completion is the truth rather than the winner.
        chains_needed (`dict[str, float]` or `None`):
            Score from which the chains of a task are told in turns as well; `None` writes no such split.
    """

    def __init__(self, verdicts: list[Verdict], truth: bool, chains_needed: dict[str, float] | None):
        self.verdicts = verdicts
        self.truth = truth
        self.chains_needed = chains_needed
        self.counts: Counter = Counter()
        self.num_words = 0
        self.distinct: set[bytes] = set()

    def write(self, candidates: Dataset, output_dir: str | Path) -> dict[str, Any]:
        """Write everything into the artefact folder `output_dir`, and return what the kept texts are like."""
        schemas = {"curated": _CURATED, "dropped": _DROPPED}
        if self.chains_needed is not None:
            schemas["multi_turn"] = _CURATED
        with ExitStack() as stack:
            files = {name: stack.enter_context(writing(output_dir, name, schema)) for name, schema in schemas.items()}
            start = 0
            for table in candidates.with_format("arrow").iter(_ROWS):
                self._write_some(table, self.verdicts[start : start + len(table)], files)
                start += len(table)
        write_card(output_dir, list(schemas))
        with replacing(Path(output_dir, "scores.parquet")) as unfinished:
            pq.write_table(_scores(self.verdicts), unfinished)
        kept, told = self.counts["curated"], {"chains": self.counts["chains"], "rows": self.counts["multi_turn"]}
        return {
            "mean_length": self.num_words / kept if kept else None,
            "distinct_texts": len(self.distinct),
            "headings_normalized": self.counts["headings"],
            "whitespace_stripped": self.counts["whitespace"],
            "multi_turn": None if self.chains_needed is None else {**told, "score_needed": self.chains_needed},
        }

    def _write_some(self, table: pa.Table, verdicts: list[Verdict], files: dict[str, pq.ParquetWriter]) -> None:
        is_kept = np.array([verdict.reason is None for verdict in verdicts])
        kept, dropped = ([v for v in verdicts if (v.reason is None) == side] for side in (True, False))
        if dropped:
            files["dropped"].write_table(_dropped_table(table.filter(pa.array(~is_kept)), dropped))
        self.counts["dropped"] += len(dropped)
        if not kept:
            return
        if dropped:
            table = table.filter(pa.array(is_kept))
        columns = self._kept_columns(table, kept)
        files["curated"].write_table(_curated_table(table["images"], columns))
        self.counts["curated"] += len(kept)
        if self.chains_needed and (spoken := self._turn_columns(columns, table["question"].to_pylist(), kept)):
            sources = pa.array(spoken.pop("source"))
            files["multi_turn"].write_table(_curated_table(table["images"].take(sources), spoken))
            self.counts["multi_turn"] += len(sources)

    def _kept_columns(self, table: pa.Table, verdicts: list[Verdict]) -> dict[str, list]:
        """Return the columns of the split `curated` except the images; texts are those of the winners."""
        rows = read_batch(table.drop_columns(["images"]))
        columns: dict[str, list] = {name: [] for name in CURATED_FEATURES if name != "images"}
        for row, (verdict, (start, end)) in enumerate(zip(verdicts, rows.spans(), strict=True)):
            winner = start + verdict.winner
            if self.truth:
                mode, text = TRUTH_MODES[verdict.task], rows.answers[row]
                prompt = prompt_for(mode, rows.questions[row])
            else:
                mode, prompt = rows.modes[winner], rows.prompts[winner]
                text = self._canonical(rows.texts[winner], mode)
            self._count(text)
            values = (verdict.id, prompt, text, verdict.task, mode, verdict.consistency, end - start)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        columns["prompt"] = _messages("user", columns["prompt"])
        columns["text"], columns["completion"] = columns["completion"], _messages("assistant", columns["completion"])
        return columns

    def _canonical(self, text: str, mode: str) -> str:
        stripped = text.strip()
        new = canonical(text, mode)
        self.counts["headings"] += new != stripped
        self.counts["whitespace"] += new == stripped != text
        return new

    def _count(self, text: str) -> None:
        self.num_words += len(text.split())
        self.distinct.add(hashlib.blake2b(text.encode(), digest_size=8).digest())

    def _turn_columns(self, kept: dict[str, list], questions: list, verdicts: list[Verdict]) -> dict[str, list]:
        """Return the columns of the split `multi_turn`, and as `source` which of the kept rows each comes from."""
        columns: dict[str, list] = {}
        for row, verdict in enumerate(verdicts):
            if not verdict.is_chain or verdict.consistency < self.chains_needed[verdict.task]:
                continue
            if verdict.task == "reasoning" and not questions[row]:
                raise ValueError(
                    f"row {verdict.id!r}: told in turns its chain begins with the question, and it has none"
                )
            self.counts["chains"] += 1
            shared = {name: kept[name][row] for name in ("task", "mode", "consistency", "num_candidates")}
            for number, (prompt, completion) in enumerate(turns(kept["text"][row], shared["mode"], questions[row]), 1):
                one = {"id": f"{verdict.id}-turn-{number}", "prompt": prompt, "completion": completion, **shared}
                for name, value in {**one, "source": row}.items():
                    columns.setdefault(name, []).append(value)
        return columns


def _messages(role: str, texts: list[str]) -> pa.Array:
    """Return conversations of one message each."""
    message = {"role": pa.array([role] * len(texts), pa.string()), "content": pa.array(texts, pa.string())}
    fields = list(_CURATED.field("prompt").type.value_type)
    values = pa.StructArray.from_arrays([message[field.name] for field in fields], fields=fields)
    return pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), values)


def _curated_table(images: pa.ChunkedArray, columns: dict[str, Any]) -> pa.Table:
    given = {"images": images.cast(_CURATED.field("images").type), **columns}
    arrays = [
        given[field.name]
        if isinstance(given[field.name], pa.ChunkedArray)
        else pa.array(given[field.name], field.type)
        if isinstance(given[field.name], list)
        else given[field.name].cast(field.type)
        for field in _CURATED
    ]
    return pa.Table.from_arrays(arrays, schema=_CURATED)


def _dropped_table(table: pa.Table, verdicts: list[Verdict]) -> pa.Table:
    lists = combined(table["candidates"])
    flat, wanted = lists.flatten(), _DROPPED.field("candidates").type
    named = {field.name for field in flat.type}
    fields = list(wanted.value_type)
    values = [  # older files lack some fields
        pc.struct_field(flat, field.name).cast(field.type) if field.name in named else pa.nulls(len(flat), field.type)
        for field in fields
    ]
    bounds = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())])
    given = {
        "id": table["id"],
        "images": table["images"],
        "task": table["task"],
        "candidates": pa.ListArray.from_arrays(
            bounds.astype(np.int32), pa.StructArray.from_arrays(values, fields=fields)
        ),
        "consistency": pa.array([verdict.consistency for verdict in verdicts]),
        "reason": pa.array([verdict.reason for verdict in verdicts], pa.string()),
    }
    return pa.Table.from_arrays([given[field.name].cast(field.type) for field in _DROPPED], schema=_DROPPED)


def _scores(verdicts: list[Verdict]) -> pa.Table:
    columns = {
        name: pa.array([getattr(verdict, name) for verdict in verdicts], field)
        for name, field in zip(_SCORES.names, _SCORES.types, strict=True)
    }
    return pa.table(columns, schema=_SCORES)
