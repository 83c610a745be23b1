"""What the tasks of the digits world ask and how they score; lmms-eval loads this file by its path.

A scorer must not raise: lmms-eval would try it five times, two seconds apart.
"""

from typing import Any

from PIL.Image import Image

from sicog_trl.digits import object_accuracy, read_objects
from sicog_trl.prompts import prompt_for
from sicog_trl.responses import final_part, normalize_answer


def images(doc: dict[str, Any]) -> list[Image]:
    """Return the images of a row."""
    return [image.convert("RGB") for image in doc["images"]]


def ask_description(doc: dict[str, Any]) -> str:
    """Ask for a detailed description."""
    return prompt_for("detailed_description")


def ask_chain_of_description(doc: dict[str, Any]) -> str:
    """Ask for the five steps of a description."""
    return prompt_for("chain_of_description")


def ask_directly(doc: dict[str, Any]) -> str:
    """Ask for a word or phrase."""
    return prompt_for("direct_answer", doc["question"])


def ask_step_by_step(doc: dict[str, Any]) -> str:
    """Ask for the four steps of an answer."""
    return prompt_for("chain_of_thought", doc["question"])


def score_description(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score the objects that a description names, by cell, colour and digit together."""
    return _score_objects(results[0], doc["answer"])


def score_chain_of_description(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score the cohesive description at the end of a chain; an incomplete chain has none."""
    description = final_part(results[0], "chain_of_description")
    return {**_score_objects(description or "", doc["answer"]), "complete": float(description is not None)}


def _score_objects(said: str, truth: str) -> dict[str, float]:
    described, true = read_objects(said), read_objects(truth)
    right = sum(true.get(cell) == thing for cell, thing in described.items())
    # Who describes nothing hallucinates nothing, but silence earns no precision either.
    return {"object_accuracy": object_accuracy(said, truth), "object_precision": right / max(1, len(described))}


def score_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score a direct answer: equal to the truth once both are normalised."""
    return {"accuracy": float(normalize_answer(results[0]) == normalize_answer(doc["answer"]))}


def score_existence(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score a yes or no, and record whether it was a yes: half of the questions are to be answered so."""
    return {**score_answer(doc, results), "yes_ratio": float(normalize_answer(results[0]) == "yes")}


def score_chain_of_thought(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score the answer at the end of a chain; an incomplete chain has none."""
    answer = final_part(results[0], "chain_of_thought")
    return {**score_answer(doc, [answer or ""]), "complete": float(answer is not None)}
