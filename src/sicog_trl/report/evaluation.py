"""The page of an evaluation: every score on its own scale, every difference with what it may be worth."""

import base64
from pathlib import Path
from typing import Any

from ..evaluation.examples import NUM_EXAMPLES, find_examples
from ..files import write_text
from .evaluation_tables import HEALTH, comparisons, describe, health, label, protocols, results
from .pages import flat, read_json, write_pages
from .plots import bars, radar
from .sections import MISSING


MAX_TEXT = 2000  # characters of one text on the page; how many more there are is said


def write_evaluation_report(output_dir: str | Path, num_examples: int = NUM_EXAMPLES) -> Path:
    """
    Write `evaluation.html`, its twin `evaluation.md` and their pictures into the folder of an evaluation.

    Everything is read from the files of that folder; only the images of examples are looked up in the rows that were
    asked. What is not there is said, and is no error. The same files give the same bytes.

    Args:
        output_dir (`str` or `Path`):
            Folder that [`~sicog_trl.evaluation.run.evaluate`] wrote, with its `scores.json`.
        num_examples (`int`, *optional*, defaults to `2`):
            Rows that got better and worse to show, each per task and pair of models; `0` for none.

    Returns:
        `Path`: path of `evaluation.html`.
    """
    folder = Path(output_dir)
    if not (folder / "scores.json").is_file():
        raise FileNotFoundError(f"{folder / 'scores.json'} is missing; run recipes/evaluate.py on this folder first")
    scores = read_json(folder / "scores.json", dict)
    return write_pages(folder, "evaluation", read_evaluation(folder, scores, num_examples))


def read_evaluation(folder: Path, scores: dict[str, Any], num_examples: int = NUM_EXAMPLES) -> dict[str, Any]:
    """Return everything that the two templates show, and write the pictures."""
    table, compared = results(scores), comparisons(scores)
    examples = find_examples(folder, scores.get("comparisons") or [], num_examples) if num_examples else []
    pictures, note = _pictures(folder, scores, table, compared)
    return {
        "missing": MISSING,
        "models": list(scores.get("models") or {}),
        "results": table,
        "comparisons": compared,
        "protocols": protocols(scores, folder),
        "health_names": [name.replace("_", " ") for name in HEALTH],
        "health": health(scores),
        "failures": scores.get("failures") or [],
        "examples": [_example(row) for row in examples],
        "pictures": pictures,
        "pictures_note": note,
        "manifest": flat(scores.get("manifest") or {}),
    }


def _pictures(
    folder: Path, scores: dict[str, Any], table: list[dict[str, Any]], compared: list[dict[str, Any]]
) -> tuple[list[dict[str, str]], str | None]:
    """Draw and write the pictures; a machine without matplotlib gets the page without them."""
    drawn: dict[str, tuple[str, str | None]] = {}
    try:
        for protocol in dict.fromkeys(row["protocol"] for row in table):
            name = f"radar_{protocol.replace(' ', '_')}"
            caption = f"Leading metric of each benchmark out of 100, asked {protocol}; all axes have one scale"
            drawn[name] = (caption, radar(_out_of_hundred(scores, table, protocol)))
        shown = {block["title"]: _leading(block["rows"]) for block in compared}
        drawn["differences"] = ("Paired differences per task", bars(shown))
    except ImportError as error:
        return [], f"Pictures need matplotlib and evaluate, which come with the extra eval ({error})."
    pictures = []
    for name, (caption, svg) in drawn.items():
        if svg:
            write_text(folder / f"{name}.svg", svg)
            uri = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")
            pictures.append({"name": name, "caption": caption, "file": f"{name}.svg", "uri": uri})
    return pictures, None


def _out_of_hundred(scores: dict[str, Any], table: list[dict[str, Any]], protocol: str) -> dict[str, dict[str, float]]:
    rows = [row for row in table if row["protocol"] == protocol and row["leading"] and row["per_cent"]]
    return {
        model: {
            row["title"]: row["per_cent"] * row["values"][index] for row in rows if row["values"][index] is not None
        }
        for index, model in enumerate(scores.get("models") or {})
    }


def _leading(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the differences of the leading metric of each task that have an interval."""
    first = {row["task"]: row for row in reversed(rows)}
    known = [row for row in rows if row is first[row["task"]] and row["difference"]]
    return [{"name": row["title"], **row["difference"]} for row in known if row["difference"]["low"] is not None]


def _example(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as the page shows it: a long text is cut, and says by how much."""
    sides = []
    for model, score, answer, response in zip(
        (row["before"], row["after"]), row["scores"], row["answers"], row["responses"], strict=True
    ):
        written = None if response == answer else _cut(response)
        sides.append({"model": model, "score": f"{score:g}", "answer": _cut(answer), "response": written})
    return {
        "title": label(row["task"]),
        "benchmark": describe(row["task"])["benchmark"],
        "side": row["side"],
        "doc_id": row["doc_id"],
        "question": _cut(row["question"]),
        "target": _cut(row["target"]),
        "sides": sides,
        "images": row["images"],
        "note": row["note"],
    }


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
