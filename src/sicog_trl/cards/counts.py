"""What the rows that are pushed are like, counted while they are written."""

import json
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from ..data import HASHES, REFERENCES, texts_of
from ..prompts import STEPS, prompt_for, task_of


BINS = 10
_OTHER_PROMPTS = 5  # shown per mode
_MOST_CHARACTERS = 600  # of a text in a sample row, or of a setting
MOST_OF_A_PROMPT = 6_000  # characters; a card says in full what was asked, unless that is a document
_MOST_OF_A_NAME = 80  # characters of a reason or a mode
_SIDES = ("completion", "chosen", "rejected", "messages")


class Counts:
    """
    Counts of one split.

    Args:
        features (`datasets.Features`):
            Its columns.
        num_rows (`int`):
            Number of its rows; of them the first, the middle and the last are kept as samples.
    """

    def __init__(self, features: Features, num_rows: int):
        self.features = features
        self.num_rows = num_rows
        self.num_bytes = 0
        self.columns: dict[str, Counter[str]] = {name: Counter() for name in ("reason", "error")}
        self.bins: Counter[int] = Counter()
        self.tokens = array("q")
        self.words: dict[str, array] = {}
        self.null_images = 0
        self.without_token_count = 0
        self.prompts: dict[str, Counter[str]] = {}
        self.samples: list[dict[str, Any]] = []
        self._seen = 0

    def add(self, table: pa.Table) -> None:
        """Count some rows."""
        self.num_bytes += table.nbytes
        wanted = {0, self.num_rows // 2, self.num_rows - 1}
        pictures = next((table[name] for name in ("images", REFERENCES) if name in table.column_names), None)
        self.null_images += sum(chunk.flatten().null_count for chunk in pictures.chunks) if pictures else 0
        shown = [name for name in table.column_names if name not in ("images", HASHES)]
        for row in table.select(shown).to_pylist():
            for name, counter in self.columns.items():
                if isinstance(value := row.get(name), str):
                    counter[value.partition(":")[0][:_MOST_OF_A_NAME]] += 1
            if isinstance(score := row.get("consistency"), float) and np.isfinite(score):
                self.bins[int(np.clip(np.floor(np.clip(score, -1, 1) * BINS), -1, BINS - 1))] += 1
            self._texts(row)
            if self._seen in wanted:
                self.samples.append(row)
            self._seen += 1

    def _texts(self, row: dict[str, Any]) -> None:
        candidates = row.get("candidates")
        for candidate in filter(None, candidates) if isinstance(candidates, list) else []:
            if candidate.get("num_tokens") is None:
                self.without_token_count += 1
            else:
                self.tokens.append(candidate["num_tokens"])
            self._count("candidate", [candidate.get("text") or ""])
            self._prompt(candidate.get("mode"), candidate.get("prompt"))
        for side in _SIDES:
            if isinstance(row.get(side), list):
                self._count(side, texts_of(row[side]))
        if isinstance(row.get("prompt"), list) and row["prompt"]:
            self._prompt(row.get("mode"), "\n".join(texts_of(row["prompt"][-1:])))

    def _count(self, what: str, texts: Iterable[str]) -> None:
        self.words.setdefault(what, array("q")).append(sum(len(text.split()) for text in texts))

    def _prompt(self, mode: str | None, prompt: str | None) -> None:
        """Remember prompts that are not the wording of this package; of that, how often it was used."""
        if mode is None or prompt is None:
            return
        known = wording(mode)
        counter = self.prompts.setdefault(mode, Counter())
        if known is not None:
            start, _, end = known.partition("{question}")
            if prompt.startswith(start) and prompt.endswith(end) and ("{question}" in known or prompt == known):
                counter[known] += 1
                return
        prompt = cut(prompt, MOST_OF_A_PROMPT)
        if prompt in counter or len(counter) <= _OTHER_PROMPTS:
            counter[prompt] += 1
        else:
            counter[""] += 1  # too many to show

    def histogram(self) -> list[tuple[str, int]]:
        """Return ranges of consistency, and the number of rows in each; nothing if no row has one."""
        if not self.bins:
            return []
        rows = [("below 0.0", self.bins[-1])] if self.bins[-1] else []
        return rows + [(f"{low / BINS:.1f} to {(low + 1) / BINS:.1f}", self.bins[low]) for low in range(BINS)]

    def lengths(self) -> list[tuple[str, list[str]]]:
        """Return number, mean, median, 95th percentile and maximum of what was counted of the texts."""
        named = [("tokens of a candidate", self.tokens), *((f"words of {it}", n) for it, n in self.words.items())]
        return [(name, _statistics(np.frombuffer(values, dtype=np.int64))) for name, values in named if len(values)]

    def sample_texts(self) -> list[str]:
        """Return sample rows as JSON, long texts cut and marked as such."""
        return [json.dumps(cut(row), ensure_ascii=False, indent=2) for row in self.samples]


def wording(mode: str) -> str | None:
    """Return the words that ask for a mode, with `{question}` where the question stands; `None` if it is not ours."""
    if mode not in STEPS:
        return None
    return prompt_for(mode, "{question}" if task_of(mode) == "reasoning" else None)


def _statistics(values: np.ndarray) -> list[str]:
    middle, high = np.quantile(values, [0.5, 0.95])
    return [f"{len(values):,}", f"{values.mean():.1f}", f"{middle:.0f}", f"{high:.0f}", f"{values.max():,}"]


def cut(value: Any, most: int = _MOST_CHARACTERS) -> Any:
    """Return a value whose texts of more than `most` characters are cut, which is said at their ends."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]} … [{len(value) - most:,} more characters]"
    if isinstance(value, dict):
        return {key: cut(inner, most) for key, inner in value.items()}
    return [cut(inner, most) for inner in value] if isinstance(value, list) else value
