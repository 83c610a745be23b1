"""Sample rows for the report: the image, its candidates, what was chosen, or why the row was dropped."""

import base64
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, Image, List

from ..data import load, splits
from ..images import UnreadableImageError, open_image
from .line import rounds_of
from .sections import number, verb


NUM_KEPT, NUM_DROPPED = 8, 4
MAX_SIDE = 256  # pixels; larger images are scaled down for the page only


def stage_folder(run_dir: Path, stage: dict) -> Path | None:
    """Return where a stage wrote, whether its folder was recorded absolute, relative, or the run was moved since."""
    if not stage.get("output_dir"):
        return None
    recorded = Path(stage["output_dir"])
    parts = recorded.parts
    inside = [run_dir.joinpath(*parts[index:]) for index in range(1 if recorded.is_absolute() else 0, len(parts))]
    return next((folder for folder in [*inside, recorded] if folder.is_dir() and folder != run_dir), None)


def gallery(run_dir: Path, stages: list[dict]) -> dict[str, Any]:
    """
    Return sample rows of the last round whose artefacts are still there.

    Rows are taken at equal distances through the file (kept: for each task in turn; dropped: for each reason and task
    in turn), so nobody chose them. Only their own images are decoded.

    Args:
        run_dir (`Path`):
            Folder of the run.
        stages (`list[dict]`):
            Its stages.

    Returns:
        `dict[str, Any]`: `round`, `kept` and `dropped`, lists of cards; empty lists where nothing is left on disk.
    """
    for name, members in reversed(rounds_of(stages).items()):
        curated = [stage_folder(run_dir, stage) for stage in members if verb(stage) == "curate"]
        generated = [stage_folder(run_dir, stage) for stage in members if verb(stage) == "generate"]
        folders = [folder for folder in curated if folder and any(folder.glob("data/curated-*"))]
        if folders:
            scores = _scores(folders)
            candidates = _candidates([folder for folder in generated if folder])
            kept = _spread(folders, "curated", ["task"], NUM_KEPT)
            dropped = _spread(folders, "dropped", ["reason", "task"], NUM_DROPPED)
            return {
                "round": name,
                "kept": [_kept_card(row, candidates, scores) for row in kept],
                "dropped": [_card(row, row["candidates"], scores) | {"reason": row["reason"]} for row in dropped],
            }
    return {"round": None, "kept": [], "dropped": []}


def _row(rows: Dataset, index: int) -> dict:
    # Undecoded: one broken image must not take the page down.
    return rows.select([index]).cast_column("images", List(Image(decode=False)))[0]


def _spread(folders: list[Path], split: str, columns: list[str], count: int) -> list[dict]:
    """Return `count` rows at equal distances, from each value of `columns` in turn."""
    sources = [load(str(folder), split=split) for folder in folders if split in splits(folder)]
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for source, rows in enumerate(sources):
        values = rows.select_columns(columns)[:]
        for index, value in enumerate(zip(*(values[column] for column in columns), strict=True)):
            groups.setdefault(value, []).append((source, index))
    chosen: list[tuple[int, int]] = []
    for rank, name in enumerate(sorted(groups)):
        members = groups[name]
        wanted = min(len(members), count // len(groups) + (rank < count % len(groups)))
        chosen += [members[(2 * i + 1) * len(members) // (2 * wanted)] for i in range(wanted)]
    return [_row(sources[source], index) for source, index in chosen]


def _scores(folders: list[Path]) -> dict[tuple[str, str], dict]:
    """Return what curation thought of each row: the score of every candidate, and the index of the winner."""
    files = [folder / "scores.parquet" for folder in folders if (folder / "scores.parquet").is_file()]
    return {(row["id"], row["task"]): row for file in files for row in pq.read_table(file).to_pylist()}


def _candidates(folders: list[Path]) -> dict[tuple[str, str], tuple[Dataset, int]]:
    places = {}
    for folder in folders:
        for split in splits(folder):
            rows = load(str(folder), split=split)
            keys = rows.select_columns(["id", "task"])[:]
            places.update({key: (rows, i) for i, key in enumerate(zip(keys["id"], keys["task"], strict=True))})
    return places


def _kept_card(row: dict, candidates: dict[tuple[str, str], tuple[Dataset, int]], scores: dict) -> dict:
    rows, index = candidates.get((row["id"], row["task"]), (None, 0))
    source = _row(rows, index) if rows is not None else {}
    completion = row["completion"][-1]["content"]
    card = _card({**row, "answer": source.get("answer")}, source.get("candidates") or [], scores, completion)
    return card | {"reason": None}


def _card(row: dict, candidates: list[dict], scores: dict, completion: str | None = None) -> dict:
    judged = scores.get((row["id"], row["task"]), {})
    each = judged.get("scores") or [None] * len(candidates)
    texts = [candidate["text"] for candidate in candidates]
    winner = judged.get("winner", -1)
    if not (0 <= winner < len(texts) and texts[winner] == completion):
        winner = texts.index(completion) if completion in texts else -1
    options = _grouped(candidates, each, winner)
    if completion is not None and winner < 0:  # an oracle trains on a text that no candidate has
        options.insert(0, _option(completion, row.get("mode"), None, None, True))
    return {
        "id": row["id"],
        "task": row["task"],
        "image": data_uri((row.get("images") or [None])[0]),
        "prompt": candidates[max(winner, 0)].get("prompt")
        if candidates
        else row.get("prompt", [{}])[0].get("content"),
        "answer": row.get("answer"),
        "consistency": number(row.get("consistency"), 3),
        "num_candidates": len(candidates),
        "chosen": [option for option in options if option["chosen"]],
        "others": [option for option in options if not option["chosen"]],
    }


def _option(text: str, mode: Any, finish: Any, score: Any, chosen: bool) -> dict:
    return {
        "text": text,
        "mode": str(mode or "–"),
        "finish": str(finish or "–"),
        "score": number(score, 3),
        "chosen": chosen,
        "count": 1,
    }


def _grouped(candidates: list[dict], scores: list[float | None], winner: int) -> list[dict]:
    """Return the different texts, the chosen one first, the rest as generated; equal texts are counted."""
    options: dict[tuple, dict] = {}
    for candidate, score in zip(candidates, scores, strict=False):
        key = (candidate["text"], candidate.get("mode"), candidate.get("finish_reason"))
        chosen = winner >= 0 and candidate["text"] == candidates[winner]["text"]
        if key in options:
            options[key]["count"] += 1
        else:
            options[key] = _option(*key, score, chosen)
    return sorted(options.values(), key=lambda option: not option["chosen"])


def data_uri(image: dict | None) -> str | None:
    """Return the image as PNG in a data URI, re-encoded so that nothing but pixels arrives; `None` if unreadable."""
    try:
        picture, _ = open_image(image)
    except UnreadableImageError:
        return None
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
