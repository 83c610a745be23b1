"""Candidates as columns: many rows at once, without images, and without an object per field that nobody reads."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass
class Batch:
    """
    The text columns of some rows.

    Args:
        ids, tasks, questions, answers, errors (`list`):
            One value per row.
        bounds (`list[int]`):
            The candidates of row `i` are those from `bounds[i]` to `bounds[i + 1]`.
        texts, modes, prompts, finish_reasons, corruptions, logprobs (`list`):
            One value per candidate.
    """

    ids: list[str]
    tasks: list[str]
    questions: list[str | None]
    answers: list[str | None]
    errors: list[str | None]
    bounds: list[int]
    texts: list[str]
    modes: list[str]
    prompts: list[str]
    finish_reasons: list[str]
    corruptions: list[str | None]
    logprobs: list[float | None]

    def spans(self) -> list[tuple[int, int]]:
        """Return where the candidates of each row begin and end."""
        return list(pairwise(self.bounds))


def read_batch(table: pa.Table) -> Batch:
    """Read the rows of `table`; nulls stand for fields of candidates that older files lack."""
    lists = combined(table["candidates"])
    flat = lists.flatten()
    named = {field.name for field in flat.type}
    fields = {
        name: pc.struct_field(flat, name).to_pylist() if name in named else [None] * len(flat)
        for name in ("text", "mode", "prompt", "finish_reason", "corruption", "mean_logprob")
    }
    columns = {name: table[name].to_pylist() for name in ("id", "task", "question", "answer", "error")}
    return Batch(
        *columns.values(),
        np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())]).tolist(),
        *fields.values(),
    )


def combined(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    chunks = column.combine_chunks()
    return chunks if isinstance(chunks, pa.Array) else pa.concat_arrays(chunks.chunks)


class Fingerprint:
    """A hash of what rows say, whatever the batches in which they are read."""

    def __init__(self) -> None:
        self.digests: dict[str, hashlib._Hash] = {}

    def update(self, table: pa.Table) -> None:
        """Add the rows of `table`."""
        lists = combined(table["candidates"])
        self._add("num_candidates", pc.list_value_length(lists))
        flat = lists.flatten()
        for field in flat.type:
            self._add(f"candidates.{field.name}", pc.struct_field(flat, field.name))
        for name in table.column_names:
            if name != "candidates":
                self._add(name, combined(table[name]))

    def _add(self, name: str, values: pa.Array) -> None:
        texts = values.cast(pa.string())
        lengths = pc.fill_null(pc.binary_length(texts), -1).to_numpy().astype("<i4")
        content = "".join(filter(None, texts.to_pylist())).encode()
        for part, some in (("lengths", lengths.tobytes()), ("texts", content)):
            self.digests.setdefault(f"{name}.{part}", hashlib.sha256()).update(some)

    def hexdigest(self) -> str:
        """Return the hash of all rows so far."""
        whole = hashlib.sha256()
        for name in sorted(self.digests):
            whole.update(name.encode() + self.digests[name].digest())
        return f"sha256:{whole.hexdigest()[:16]}"
