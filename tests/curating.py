"""Candidates for the tests of curation."""

from pathlib import Path

from datasets import Dataset

from sicog_trl.data import CANDIDATES_FEATURES, load
from sicog_trl.prompts import prompt_for
from sicog_trl.responses import build_steps


GARBAGE = {"bytes": b"this is no image", "path": None}
ACCURACY = "sicog_trl.digits.object_accuracy"
RED = "One digit on a dark background: a red three at the top left."
BLUE = "One digit on a dark background: a blue three at the top left."
FIVE = "One digit on a dark background: a red five at the top left."


def said(text: str, mode: str, finish_reason: str = "stop", prompt: str | None = None) -> dict:
    prompt = prompt or prompt_for(mode, "How many?" if mode in ("chain_of_thought", "direct_answer") else None)
    tokens = len(text.split())
    return {
        "text": text,
        "mode": mode,
        "prompt": prompt,
        "seed": 0,
        "finish_reason": finish_reason,
        "num_tokens": tokens,
    }


def described(*texts: str) -> list[dict]:
    return [said(text, "detailed_description") for text in texts]


def looked(description: str) -> dict:
    return said(build_steps("chain_of_description", ["a", "b", "c", "d", description]), "chain_of_description")


def reasoned(answer: str, why: str = "Counting.") -> dict:
    return said(build_steps("chain_of_thought", ["Count.", "Things.", why, answer]), "chain_of_thought")


def answered(*answers: str) -> list[dict]:
    return [said(answer, "direct_answer") for answer in answers]


def row(row_id: str, candidates: list[dict], answer: str | None = None, **changes) -> dict:
    modes = {candidate["mode"] for candidate in candidates}
    task = "reasoning" if modes & {"chain_of_thought", "direct_answer"} else "description"
    question = "How many?" if task == "reasoning" else None
    base = {"id": row_id, "images": [GARBAGE], "question": question, "answer": answer, "task": task, "error": None}
    return {**base, "candidates": candidates, **changes}


def table(*rows: dict) -> Dataset:
    return Dataset.from_list(list(rows), features=CANDIDATES_FEATURES)


def ids(folder: Path, split: str) -> list[str]:
    return load(str(folder), split=split)["id"][:]


def completions(folder: Path) -> dict[str, str]:
    rows = load(str(folder), split="curated").select_columns(["id", "completion"])
    return {row["id"]: row["completion"][0]["content"] for row in rows}
