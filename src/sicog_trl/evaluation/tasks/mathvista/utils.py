"""MathVista by the prompts and the scorer of lmms-eval 0.7.3, with three things mended, and read by rules.

What is mended: the precision of a number is stored as 1.0, with which lmms-eval's rounding fails, so that it counts
every answer with decimals as wrong; an answer from which nothing could be extracted becomes the option most similar
to nothing, which may be right; and a model without a right answer has no score instead of 0.

By rules, because lmms-eval's own variant without a judge (`mathvista_testmini_cot_reasoning`) wants `<answer>` tags
and compares a letter with the text of the option: a plain final answer scores nothing there.
"""

import re
from typing import Any

from lmms_eval.tasks.mathvista.utils import (
    mathvista_aggregate_results,
    mathvista_doc_to_text,  # noqa: F401  # the YAMLs take these two from here
    mathvista_doc_to_visual,  # noqa: F401
    mathvista_evaluator,
    mathvista_process_results,
)


_NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_LIST = re.compile(r"\[[^][]*\]")


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score an answer that a judge reads; the record says what was extracted from it."""
    logged = mathvista_process_results({**doc, "precision": int(doc["precision"] or 0)}, results)["llm_as_judge_eval"]
    logged["true_false"] &= bool(logged["extraction"])
    return {"llm_as_judge_eval": logged}


def aggregate_results(results: list[dict[str, Any]], args: Any) -> float:
    """Return the share of right answers in percent."""
    return mathvista_aggregate_results(results, args) or 0.0


def process_results_by_rules(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score an answer that rules read."""
    extraction = extract_by_rules(doc, results[0])
    types = doc["question_type"], doc["answer_type"]
    prediction = mathvista_evaluator.normalize_extracted_answer(
        extraction, doc["choices"], *types, int(doc["precision"] or 0)
    )
    is_right = bool(extraction) and mathvista_evaluator.safe_equal(prediction, doc["answer"])
    return {"accuracy": float(is_right)}


def extract_by_rules(doc: dict[str, Any], text: str) -> str:
    """Return the option, the last number or the last list that `text` names; nothing if it names no option."""
    text = text.strip().replace("\u2212", "-")
    if doc["question_type"] == "multi_choice":
        return _option(doc["choices"], text)
    found = _LIST.findall(text) if doc["answer_type"] == "list" else _NUMBER.findall(text)
    return found[-1].replace(",", "") if found and doc["answer_type"] != "list" else (found or [text])[-1]


def _option(choices: list[str], text: str) -> str:
    # The text of an option goes first: "A" may be an article, and options may be letters themselves.
    named = [choice for choice in choices if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text, re.IGNORECASE)]
    longest = [choice for choice in named if not any(choice != other and choice in other for other in named)]
    if len(longest) == 1 and len(longest[0]) > 1:
        return longest[0]
    last = chr(ord("A") + len(choices) - 1)
    letters = re.findall(rf"(?<!\w)([A-{last}])(?!\w)", text) or re.findall(rf"\A\W*([A-{last}])\W*\Z", text.upper())
    # A text that names none, such as "I cannot say", would become the option most similar to it, which may be right.
    return letters[-1] if letters else text if named else ""
