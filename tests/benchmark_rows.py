"""A few made-up rows per benchmark, with the columns that its scorer reads, and what a model may answer to them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from sicog_trl.evaluation.benchmarks import benchmarks


@dataclass(frozen=True)
class Question:
    """
    A row of a benchmark.

    Args:
        row (`dict[str, Any]`):
            Its columns.
        right (`tuple[str, ...]`):
            Right answers as models give them; the first one is the plainest.
        wrong (`str`):
            A wrong answer of the same form.
        dressed (`tuple[str, ...]`, *optional*, defaults to `()`):
            Right answers that the scorer does not take; asked step by step, they are undressed before it gets them.
    """

    row: dict[str, Any]
    right: tuple[str, ...]
    wrong: str
    dressed: tuple[str, ...] = ()


def _picture() -> Image.Image:
    return Image.new("RGB", (16, 16), "white")


def _choice(letter: str, text: str) -> tuple[str, ...]:
    """What models write when they choose an option; a scorer may be stricter than this."""
    return (letter, f"{letter}.", f"({letter})", f"{letter}. {text}", f"The answer is {letter}.", f"**{letter}**")


def mmbench() -> list[Question]:
    # Two questions; the second one is asked again with its options rotated.
    first = {"question": "What colour is the ball?", "A": "red", "B": "blue", "C": None, "D": "nan", "answer": "B"}
    second = {"question": "Which shape is it?", "A": "cube", "B": "cone", "C": "ring", "D": "tube", "answer": "A"}
    rotated = {**second, "A": "tube", "B": "cube", "C": "cone", "D": "ring", "answer": "B"}
    questions = []
    for index, row in ((241, first), (252, second), (1_000_252, rotated)):
        row = {"index": index, "hint": "Look at the ball." if index == 241 else "nan", "image": _picture(), **row}
        row |= {
            "category": "shape",
            "L2-category": "perception",
            "source": "made up",
            "split": "dev",
            "comment": "nan",
        }
        letter, wrong = row["answer"], "A" if row["answer"] == "B" else "B"
        right = (letter, f"{letter}.", f"({letter})", f"{letter}. {row[letter]}", f"The answer is {letter}.")
        questions.append(Question(row, right, wrong))
    return questions


def mmstar() -> list[Question]:
    names = (("math", "geometry"), ("coarse perception", "image emotion"))
    question = "How many sides has it?\nOptions: A: two, B: three, C: four, D: five"
    return [
        Question(
            {"index": index, "question": question, "image": _picture(), "answer": "C", "category": category}
            | {"l2_category": l2_category, "meta_info": {"source": "made up", "split": "val", "image_path": ""}},
            _choice("C", "four"),
            "B",
        )
        for index, (category, l2_category) in enumerate(names)
    ]


def mme() -> list[Question]:
    # Full marks need every category: ten of perception, four of cognition, two questions for each image.
    perception = "existence count position color posters celebrity scene landmark artwork OCR".split()
    cognition = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()
    questions = []
    for category in (*perception, *cognition):
        for answer, wrong in (("Yes", "No"), ("No", "Yes")):
            question = f"Does the image show {category} {answer}? Please answer yes or no."
            row = {"question_id": f"{category}/1.png", "image": _picture(), "question": question}
            row |= {"answer": answer, "category": category}
            right = (answer, answer.lower(), f"{answer}.", f"{answer}, it does.")
            questions.append(Question(row, right, wrong, (f"**{answer}**", f"The answer is {answer}.")))
    return questions


def pope() -> list[Question]:
    questions = []
    for number, (answer, wrong) in enumerate((("yes", "no"), ("no", "yes"))):
        row = {"id": str(number), "question_id": str(number), "question": "Is there a dog in the image?"}
        row |= {"answer": answer, "image_source": "made up", "image": _picture(), "category": "random"}
        dressed = (f"{answer.title()}.", f"{answer.title()}, there is.", f"**{answer}**")
        questions.append(Question(row, (answer, answer.title(), answer.upper()), wrong, dressed))
    return questions


def realworldqa() -> list[Question]:
    letter = "Please answer directly with only the letter of the correct option and nothing else."
    word = "Please answer directly with a single word or number."
    choose = {"question": f"Where is the car?\n\nA. Left\nB. Right\n{letter}", "answer": "A"}
    count = {"question": f"How many cars are there?\n{word}", "answer": "3"}
    return [
        Question({"image": _picture(), **choose}, _choice("A", "Left"), "B"),
        Question({"image": _picture(), **count}, ("3", "3."), "4", ("**3**", "The answer is 3.")),
    ]


def scienceqa() -> list[Question]:
    questions = []
    for hint, answer in (("The map shows Europe.", 1), ("", 0)):
        row = {"image": _picture(), "question": "Which is farther south?", "choices": ["Oslo", "Rome"], "hint": hint}
        row |= {"answer": answer, "task": "closed choice", "grade": "grade3", "subject": "social science"}
        row |= {"topic": "geography", "category": "Maps", "skill": "Read a map", "lecture": "", "solution": ""}
        letter, text = "AB"[answer], row["choices"][answer]
        dressed = (f"({letter})", f"The answer is {letter}.", f"**{letter}**")
        right = (letter, letter.lower(), f"{letter}.", f"{letter}. {text}")
        questions.append(Question(row, right, "BA"[answer], dressed))
    return questions


def ai2d() -> list[Question]:
    row = {"question": "Which part is labelled A?", "options": ["root", "leaf", "stem", "seed"], "image": _picture()}
    questions = []
    for answer in ("2", "0"):
        letter, text = "ABCD"[int(answer)], row["options"][int(answer)]
        right = (letter, letter.lower(), f"{letter}.", f"({letter})", f"{letter}. {text}", f"**{letter}**")
        questions.append(Question({**row, "answer": answer}, right, "B", (f"The answer is {letter}.",)))
    return questions


def ocrbench() -> list[Question]:
    text = {"dataset": "made up", "question": "what is written in the image?", "answer": ["CENTRE", "Centre"]}
    text["question_type"] = "Regular Text Recognition"
    formula = {"dataset": "HME100k", "question": "Write the formula.", "answer": ["x ^ { 2 } + 1"]}
    formula["question_type"] = "Handwritten Mathematical Expression Recognition"
    return [
        Question({**text, "image": _picture()}, ("CENTRE", "centre.", 'It says "Centre".', "**Centre**"), "CENTER"),
        Question({**formula, "image": _picture()}, ("x^{2}+1", "$x ^ {2} + 1$", "It is x^{2}+1."), "x^{3}+1"),
    ]


def docvqa() -> list[Question]:
    questions = []
    for number, answers in enumerate((["14 March 1998", "March 14, 1998"], ["Smith & Sons"])):
        row = {"questionId": str(number), "question": "Who signed when?", "question_types": ["layout"]}
        row |= {"image": _picture(), "docId": number, "ucsf_document_id": "x", "ucsf_document_page_no": "1"}
        row |= {"answers": answers, "data_split": "val"}
        right = (answers[0], answers[0].lower(), answers[-1].upper())
        questions.append(
            Question(row, right, "nobody", (f"{answers[0]}.", f"**{answers[0]}**", f"The answer is {answers[0]}."))
        )
    return questions


def chartqa() -> list[Question]:
    rows = (
        ({"type": "human_test", "question": "What is the value of the tallest bar?", "answer": "40"}, "41", "43"),
        ({"type": "augmented_test", "question": "Which country leads?", "answer": "Norway"}, "norway", "Sweden"),
    )
    return [
        Question(
            {**row, "image": _picture()},
            (row["answer"], other),
            wrong,
            (f"**{row['answer']}**", f"The answer is {other}."),
        )
        for row, other, wrong in rows
    ]


def textvqa() -> list[Question]:
    questions = []
    for number, answers in enumerate((["the bakery"] * 10, ["five"] * 8 + ["5"] * 2)):
        row = {"image_id": "x", "question_id": number, "question": "what does the sign say?", "image": _picture()}
        row |= {"answers": answers, "question_tokens": [], "image_classes": [], "set_name": "val", "ocr_tokens": ["a"]}
        right = (answers[0], answers[0].title(), f"{answers[0]}.", answers[-1])
        questions.append(Question(row, right, "a school", (f"The answer is {answers[0]}.",)))
    return questions


def mmmu() -> list[Question]:
    images = {f"image_{number}": _picture() if number < 3 else None for number in range(1, 8)}
    row = {**images, "explanation": "", "img_type": "['Diagrams']", "topic_difficulty": "Easy", "subfield": "Logic"}
    choose = {"id": "validation_Math_1", "question": "Compare <image 1> with <image 2>. Which is larger?"}
    choose |= {"options": "['first', 'second', 'neither']", "answer": "B", "question_type": "multiple-choice"}
    count = {"id": "validation_Physics_2", "question": "<image 1> What is its weight in N?", "options": "[]"}
    count |= {"answer": "12.5", "question_type": "open"}
    return [
        Question({**row, **choose}, ("B", "B.", "(B)", "B. second", "The answer is B."), "C"),
        Question({**row, **count}, ("12.5", "12.50", "12.5 N", "The weight is 12.5."), "11"),
    ]


def mmmu_pro_standard() -> list[Question]:
    images = {f"image_{number}": _picture() if number == 1 else None for number in range(1, 8)}
    row = {**images, "id": "test_History_1", "question": "When was <image 1> drawn?", "answer": "J", "explanation": ""}
    row |= {"options": str([str(1900 + year) for year in range(10)]), "img_type": "['Maps']", "subject": "History"}
    row |= {"topic_difficulty": "Hard"}
    right = ("J", "J.", "(J)", "J. 1909", "The answer is J.")
    return [Question(row, right, "A"), Question({**row, "id": "test_History_2"}, right, "C")]


def mmmu_pro_vision() -> list[Question]:
    row = {"id": "test_Art_1", "image": _picture(), "options": "['red', 'blue']", "answer": "B", "subject": "Art"}
    # "B. blue" is left as it is: the options are in the picture, so that "B." might be part of a name.
    dressed = ("B.", "(B)", "The answer is B.", "**B**")
    return [Question(row, ("B",), "A", dressed), Question({**row, "id": "test_Art_2"}, ("B",), "A", dressed)]


ROWS: dict[str, Callable[[], list[Question]]] = {
    "mmbench": mmbench,
    "mmbench_static": mmbench,
    "mmstar": mmstar,
    "mme": mme,
    "pope": pope,
    "realworldqa": realworldqa,
    "scienceqa": scienceqa,
    "ai2d": ai2d,
    "ocrbench": ocrbench,
    "docvqa": docvqa,
    "chartqa": chartqa,
    "textvqa": textvqa,
    "mmmu": mmmu,
    "mmmu_pro_standard": mmmu_pro_standard,
    "mmmu_pro_vision": mmmu_pro_vision,
}


def write_rows(
    folder: Path, names: Iterable[str], makers: Mapping[str, Callable[[], list[Question]]] = ROWS
) -> dict[str, list[Question]]:
    """Write the rows of benchmarks where `folder` as `dataset_name` has to have them, and return them."""
    written = {name: makers[name]() for name in names}
    for name, questions in written.items():
        data = folder / name / "data"
        data.mkdir(parents=True)
        rows = Dataset.from_list([question.row for question in questions])
        rows.to_parquet(data / f"{benchmarks()[name].split}-00000-of-00001.parquet")
    return written
