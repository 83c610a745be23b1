"""Rows of every kind, as lmms-eval hands them to a model."""

from lmms_eval.api.instance import Instance
from PIL import Image

from sicog_trl.evaluation.answering import Answering


def picture(colour: str = "red", size: int = 32) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def row(*parts: str | Image.Image) -> list[dict]:
    """A row as `doc_to_messages` gives it: one turn of texts and images."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part} for part in parts
    ]
    return [{"role": "user", "content": content}]


# A row of each kind: one image, none, several in front of the text, several within it, an image at the end.
ROWS = [
    row(picture(), "Is there a red one?"),
    row("What is one and one?"),
    row(picture("red"), picture("blue"), "Which of them is red?"),
    row("Compare", picture("green"), "with", picture("blue"), "and say which is green."),
    row("What is this?", picture("white")),
    row(picture("blue"), "Describe all of it, cell by cell."),
]


def requests_for(model: Answering, rows: list, task: str = "task", **settings) -> list[Instance]:
    """What lmms-eval hands over for these rows."""
    model.task_dict[task] = {"test": rows}
    return [
        Instance(
            "generate_until",
            (text_of(messages), lambda doc: doc, {"max_new_tokens": 8, **settings}, number, task, "test"),
            0,
            metadata={"task": task, "doc_id": number, "repeats": 1},
        )
        for number, messages in enumerate(rows)
    ]


def text_of(messages: list[dict]) -> str:
    return " ".join(part["text"] for part in messages[0]["content"] if part["type"] == "text")


def answers(model: Answering, rows: list, **settings) -> list[str]:
    return [result.text for result in model.generate_until(requests_for(model, rows, **settings))]
