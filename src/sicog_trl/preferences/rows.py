"""What pairs are made of: each chosen response, read with the candidates that may be rejected, a batch at a time.

Rows find each other by `id`. Images stay the bytes they are, and of the other side only the ids are held.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..data import CANDIDATES_FEATURES, repeated_id


BATCH = 256  # rows, with their images
CHOSEN = ("id", "images", "prompt", "completion", "task", "mode")  # what annotated and curated rows have in common


@dataclass
class PairRow:
    """
    A chosen response and the candidates of its mode.

    Args:
        number (`int`):
            Its row in the batch.
        id, task, mode (`str`):
            Of the chosen response.
        prompt (`list[dict]`):
            Messages that it answers.
        chosen (`str`):
            Its text.
        chosen_from (`str`):
            `"annotated"` or `"candidate"`.
        options (`list[dict]`, *optional*):
            Candidates of the same mode.
        margins (`list[float | None]`, *optional*):
            By how much the chosen side differs from each of them, where that is known.
        faults (`list[str | None]`, *optional*):
            Why each of them makes no pair; `None` if it does.
        reason (`str`, *optional*):
            Why the row gets no pair.
    """

    number: int
    id: str
    task: str
    mode: str
    prompt: list[dict]
    chosen: str
    chosen_from: str
    options: list[dict] = field(default_factory=list)
    margins: list[float | None] = field(default_factory=list)
    faults: list[str | None] = field(default_factory=list)
    reason: str | None = None


Batches = Iterator[tuple[pa.ChunkedArray, list[PairRow]]]  # images of the rows, rows


def check(datasets: Sequence[Dataset], columns: Sequence[str], what: str) -> None:
    """Refuse inputs without rows, that lack a column, or that name a row twice."""
    for dataset in datasets:
        if missing := [name for name in columns if name not in dataset.column_names]:
            raise ValueError(f"the {what} rows have no column {missing[0]!r}; they have {dataset.column_names}")
    if repeated := repeated_id(datasets):
        raise ValueError(
            f"the id {repeated[0]!r} stands in more than one of the {what} rows; ids must be unique over all inputs"
        )
    if not any(map(len, datasets)):
        raise ValueError(f"there are no {what} rows; run the stage that makes them, or name another split")


def digest(texts: Iterable[str]) -> str:
    """Return a hash of `texts`."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode())
    return f"sha256:{found.hexdigest()[:16]}"


def fingerprint(datasets: Sequence[Dataset]) -> str:
    """Return a hash of all columns but the images."""
    texts = [each.select_columns([name for name in each.column_names if name != "images"]) for each in datasets]
    return digest(repr(batch.to_pydict()) for each in texts for batch in each.with_format("arrow").iter(1000))


def with_damaged(chosen: Sequence[Dataset], damaged: Sequence[Dataset]) -> Batches:
    """
    Read annotated or curated rows with the candidates about their damaged images.

    Args:
        chosen (`Sequence[datasets.Dataset]`):
            Rows with a response; `source_id`, if they have one, names the row that they are about, else `id` does.
        damaged (`Sequence[datasets.Dataset]`):
            Candidates made with `corruptions`.
    """
    texts = [dataset.select_columns(["id", "candidates", "error"]).with_format("arrow") for dataset in damaged]
    places = {
        row_id: (part, number)
        for part, dataset in enumerate(texts)
        for number, row_id in enumerate(dataset.select_columns("id").with_format(None)["id"])
    }
    for dataset in chosen:
        source = "source_id" if "source_id" in dataset.column_names else "id"
        origin = "candidate" if "consistency" in dataset.column_names else "annotated"
        columns = [*CHOSEN, "source_id"] if source == "source_id" else list(CHOSEN)
        for table in dataset.select_columns(columns).with_format("arrow").iter(BATCH):
            contents = table.drop_columns(["images"]).to_pylist()
            names = [content[source] or content["id"] for content in contents]
            found = _look_up(texts, places, names)
            yield (
                table["images"],
                [
                    _annotated_row(number, content, found.get(name), origin)
                    for number, (content, name) in enumerate(zip(contents, names, strict=True))
                ],
            )


def _look_up(texts: list[Dataset], places: dict[str, tuple[int, int]], names: list[str]) -> dict[str, dict]:
    """Return the rows of candidates that have one of these ids."""
    found = {}
    wanted = sorted({places[name] for name in names if name in places})
    for part in sorted({part for part, _ in wanted}):
        for row in texts[part][[number for other, number in wanted if other == part]].to_pylist():
            found[row["id"]] = row
    return found


def _annotated_row(number: int, content: dict[str, Any], found: dict | None, origin: str) -> PairRow:
    mode = content["mode"]
    row = PairRow(
        *(number, content["id"], content["task"], mode, content["prompt"]),
        chosen=((content["completion"] or [None])[-1] or {}).get("content") or "",
        chosen_from=origin,
        options=[each for each in (found or {}).get("candidates") or [] if each and each["mode"] == mode],
    )
    if not row.options:
        error = (found or {}).get("error")
        row.reason = error.partition(":")[0] if error else "no_candidates"
    return row


def load_scores(folder: str | Path) -> pa.Table:
    """Load the scores that curation wrote beside its splits."""
    file = Path(folder, "scores.parquet")
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a folder that curate wrote")
    return pq.read_table(file)


def verdicts_of(scores: Sequence[pa.Table]) -> dict[str, dict]:
    """Return what curation said about each row of candidates, by id."""
    verdicts: dict[str, dict] = {}
    for table in scores:
        for verdict in table.select(["id", "scores", "winner", "reason"]).to_pylist():
            if verdict["id"] in verdicts:
                raise ValueError(f"the id {verdict['id']!r} stands in the scores twice; ids must be unique")
            verdicts[verdict["id"]] = verdict
    return verdicts


def with_ranked(candidates: Sequence[Dataset], verdicts: dict[str, dict]) -> Batches:
    """
    Read candidates with what curation said about them: the winner is chosen, the others may be rejected.

    Args:
        candidates (`Sequence[datasets.Dataset]`):
            The rows that were curated.
        verdicts (`dict[str, dict]`):
            See [`verdicts_of`].
    """
    for dataset in candidates:
        for table in dataset.select_columns(list(CANDIDATES_FEATURES)).with_format("arrow").iter(BATCH):
            contents = table.drop_columns(["images"]).to_pylist()
            yield table["images"], [_ranked_row(number, row, verdicts) for number, row in enumerate(contents)]


def _ranked_row(number: int, content: dict[str, Any], verdicts: dict[str, dict]) -> PairRow:
    verdict, candidates = verdicts.get(content["id"]), content["candidates"] or []
    if verdict is None or len(verdict["scores"]) != len(candidates):
        said = "none" if verdict is None else len(verdict["scores"])
        raise ValueError(
            f"row {content['id']!r} has {len(candidates)} candidates and {said} in the scores; name the folder that "
            "curate wrote from these candidates"
        )
    best = verdict["winner"]
    if verdict["reason"] or best < 0:
        mode = candidates[best]["mode"] if best >= 0 else None
        return PairRow(
            number, content["id"], content["task"], mode, [], "", "candidate", reason=verdict["reason"] or "no_winner"
        )
    winner = candidates[best]
    others = [i for i, one in enumerate(candidates) if i != best and one["mode"] == winner["mode"]]
    return PairRow(
        *(number, content["id"], content["task"], winner["mode"]),
        prompt=[{"role": "user", "content": winner["prompt"]}],
        chosen=winner["text"],
        chosen_from="candidate",
        options=[candidates[i] for i in others],
        margins=[verdict["scores"][best] - verdict["scores"][i] for i in others],
        reason=None if others else "no_candidates",
    )
