"""What can be said and asked about a scene, and how a description is read back."""

import re
from dataclasses import dataclass

import numpy as np

from ..responses import build_steps
from .scenes import CELLS, COLOURS, DIGITS, NUMBERS, Scene


_OBJECT = re.compile(rf"an? (\w+) (\w+) at the ({'|'.join(CELLS)})")


def list_objects(scene: Scene) -> str:
    """Name every object with its colour and cell, in reading order."""
    return ", ".join(f"a {colour} {digit} at the {cell}" for cell, (colour, digit) in scene.objects.items())


def short_caption(scene: Scene) -> str:
    """Name the objects without their places."""
    return "A " + " and a ".join(f"{colour} {digit}" for colour, digit in scene.objects.values()) + "."


def salient_content(scene: Scene) -> str:
    """Say how many digits stand on which background."""
    count = len(scene.objects)
    return f"{NUMBERS[count]} {'digit' if count == 1 else 'digits'} on a {scene.background} background"


def detailed_description(scene: Scene) -> str:
    """Describe the whole scene; [`read_objects`] reads the objects back."""
    return f"{salient_content(scene)}: {list_objects(scene)}."


def chain_of_description(scene: Scene) -> str:
    """Describe the scene in the five steps of a chain of description."""
    digits = [digit for _, digit in scene.objects.values()]
    empty = [cell for cell in CELLS if cell not in scene.objects]
    bodies = [
        salient_content(scene) + ".",
        ", ".join(f"{colour} {digit}" for colour, digit in scene.objects.values()) + ".",
        f"{' then '.join(digits)}." if len(digits) > 1 else f"{digits[0]} alone.",
        f"Empty: {', '.join(empty)}." if empty else "No cell is empty.",
        detailed_description(scene),
    ]
    return build_steps("chain_of_description", bodies)


def read_objects(text: str) -> dict[str, tuple[str, str]]:
    """
    Read the objects that a description names.

    Returns:
        `dict[str, tuple[str, str]]`: cell -> (colour, digit word); of two objects claimed for a cell the first counts.
    """
    objects: dict[str, tuple[str, str]] = {}
    for colour, digit, cell in _OBJECT.findall(text):
        objects.setdefault(cell, (colour, digit))
    return objects


def object_accuracy(text: str, truth: str) -> float:
    """Return the share of the objects of the true description `truth` that `text` names with all they are."""
    said, true = read_objects(text), read_objects(truth)
    return sum(said.get(cell) == thing for cell, thing in true.items()) / len(true)


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer, and the two middle steps of the reasoning that leads there."""

    kind: str  # "existence", "vqa" or "reasoning"
    question: str
    answer: str
    task: str
    reasoning: str

    def chain_of_thought(self, scene: Scene) -> str:
        """Write the answer as a structured chain of thought of four steps."""
        return build_steps("chain_of_thought", [self.task, list_objects(scene) + ".", self.reasoning, self.answer])


def ask_sum(scene: Scene) -> Question:
    """Ask for the sum of the digits (reasoning)."""
    values = [DIGITS.index(digit) for _, digit in scene.objects.values()]
    working = f"{' + '.join(map(str, values))} = {sum(values)}."
    return Question("reasoning", "What is the sum of the digits?", str(sum(values)), "Add the digits.", working)


def ask_largest(scene: Scene) -> Question:
    """Ask for the largest digit (reasoning)."""
    values = sorted(DIGITS.index(digit) for _, digit in scene.objects.values())
    working = " <= ".join(map(str, values)) + "."
    return Question("reasoning", "What is the largest digit?", str(values[-1]), "Order the digits.", working)


def ask_digit(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask which digit stands in an occupied cell (vqa)."""
    cell = str(rng.choice(list(scene.objects)))
    digit = scene.objects[cell][1]
    return Question("vqa", f"Which digit is at the {cell}?", digit, "Read one cell.", f"The {cell} holds {digit}.")


def ask_colour(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the colour of an occupied cell (vqa)."""
    cell = str(rng.choice(list(scene.objects)))
    colour = scene.objects[cell][0]
    question = f"Which colour is the digit at the {cell}?"
    return Question("vqa", question, colour, "Read one colour.", f"The {cell} is {colour}.")


def ask_existence(scene: Scene, rng: np.random.Generator, exists: bool) -> Question:
    """Ask whether an object is there; a "no" object shares its colour or its digit with one that is (existence)."""
    things = list(scene.objects.values())
    colour, digit = things[rng.integers(len(things))]
    while not exists and (colour, digit) in things:
        if rng.random() < 0.5:
            colour = str(rng.choice(list(COLOURS)))
        else:
            digit = str(rng.choice(DIGITS))
    answer = "yes" if exists else "no"
    question = f"Is there a {colour} {digit}?"
    return Question("existence", question, answer, "Find one object.", f"The answer is {answer}.")
