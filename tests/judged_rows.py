"""Made-up rows of the benchmarks that a judge grades, and of MathVista read by rules."""

from pathlib import Path
from typing import Any

from benchmark_rows import ROWS, Question, write_rows
from PIL import Image


def mmvet() -> list[Question]:
    rows = (("What is x?", "-1<AND>-5", "x is -1 or -5", "x is 3", "math"), ("Who?", "a chef", "a chef", "me", "rec"))
    questions = []
    for number, (question, answer, right, wrong, capability) in enumerate(rows):
        row = {"question_id": f"v1_{number}", "image": _picture(), "question": question, "answer": answer}
        row |= {"image_source": "made up", "capability": capability, "imagename": "1.png"}
        questions.append(Question(row, (right,), wrong))
    return questions


def mathvista() -> list[Question]:
    """The columns of the dataset, whose `precision` is a float."""
    fraction = ("B", "(B)", "B.", "B. 8/11", "The answer is B.", "8/11", "b", "(b)")
    words = ("A", "**A**", "Tall", "a tall one", "It is the tall tree.")
    asked: tuple[tuple[dict[str, Any], tuple[str, ...], str], ...] = (
        (_choice(["3/11", "8/11", "6/11"], "8/11"), fraction, "C"),
        (_choice(["Tall", "Short"], "Tall"), words, "B"),
        (_free("integer", "14", None), ("14", "14.", "**14**", "There are 14 of them.", "5 + 9 = 14"), "15"),
        (_free("integer", "1200", None), ("1200", "1,200", "$1,200"), "1,201"),
        (_free("float", "1.5", 1.0), ("1.5", "It is 1.5", "1.5 m", "about 1.52", "2.5-1.5"), "1.6"),
        (_free("integer", "-3", None), ("-3", "\u22123", "x = -3"), "3"),
        (_free("float", "1.45", 2.0), ("1.45", "$1.45", "1.45."), "1.44"),
        (_free("list", "[2007, 2008]", None), ("[2007, 2008]", "It is [2007, 2008]."), "[2007, 2009]"),
    )
    details = {"category": "math", "context": "chart", "grade": "college", "img_height": 16, "img_width": 16}
    details |= {"language": "english", "skills": ["counting"], "source": "made up", "split": "testmini", "task": "qa"}
    questions = []
    for number, (row, right, wrong) in enumerate(asked):
        row = {"pid": str(number), "image": "1.jpg", "decoded_image": _picture(), "unit": None, **row}
        row |= {"question": f"What is number {number}?", "query": f"Hint: ...\nQuestion: number {number}?"}
        questions.append(Question(row | {"metadata": details}, right, wrong))
    return questions


def llava_bench() -> list[Question]:
    questions = []
    for number, category in enumerate(("conv", "detail", "complex")):
        row = {
            "question_id": number,
            "question": "What is it?",
            "image": _picture(),
            "image_id": "1",
            "answer_id": "a",
        }
        row |= {"caption": "A cat on a mat.", "gpt_answer": "A sleeping cat.", "category": category, "model_id": "m"}
        questions.append(Question(row, ("A sleeping cat.",), "A dog."))
    return questions


def _picture() -> Image.Image:
    return Image.new("RGB", (16, 16), "white")


def _choice(choices: list[str], answer: str) -> dict[str, Any]:
    return {
        **{"question_type": "multi_choice", "answer_type": "text", "choices": choices, "answer": answer},
        "precision": None,
    }


def _free(answer_type: str, answer: str, precision: float | None) -> dict[str, Any]:
    return {
        **{"question_type": "free_form", "answer_type": answer_type, "choices": None, "answer": answer},
        "precision": precision,
    }


JUDGED_ROWS = {
    "mmvet": mmvet,
    "mathvista": mathvista,
    "mathvista_rules": mathvista,
    "llava_bench": llava_bench,
    "mmbench": ROWS["mmbench"],
}


def write_judged_rows(folder: Path) -> dict[str, list[Question]]:
    """Write the rows where `dataset_name` expects them, and return them by benchmark."""
    return write_rows(folder, JUDGED_ROWS, JUDGED_ROWS)
