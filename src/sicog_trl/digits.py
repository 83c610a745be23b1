"""The embedded world: scenes of real handwritten digits, small enough to learn on a laptop.

A scene is a 32×32 RGB image of 2×2 cells; one to four cells hold one of the 1,797 real 8×8 scans of handwritten
digits that scikit-learn ships, in one of five colours on a dark or a light background. The *scans* are split, not the
scenes, so the handwriting of the development and test pools is never seen in training. `recipes/digits/world.py`
writes the pools and the model that starts in them.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from .data import ANNOTATED_FEATURES, IMAGES_FEATURES, PREFERENCE_FEATURES
from .prompts import prompt_for, task_of
from .responses import build_steps


CELL = 16  # pixels
CELLS = ("top left", "top right", "bottom left", "bottom right")
DIGITS = "zero one two three four five six seven eight nine".split()
NUMBERS = ("None", "One", "Two", "Three", "Four")
COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 180, 60),
    "blue": (60, 90, 245),
    "yellow": (230, 200, 30),
    "purple": (170, 60, 200),
}
BACKGROUNDS = {"dark": (25, 25, 30), "light": (235, 235, 230)}
# Scans per pool; they add up to the 1,797 that scikit-learn ships.
SCANS = {"annotated": 150, "unlabelled": 1150, "development": 147, "test": 350}
# The same for every seed: what was chosen on the development scans must not have seen the test scans of another seed.
SPLIT_SEED = 0
_OBJECT = re.compile(rf"an? (\w+) (\w+) at the ({'|'.join(CELLS)})")


@dataclass(frozen=True)
class Scene:
    """
    What a scene shows.

    Args:
        objects (`dict[str, tuple[str, str]]`):
            Cell -> (colour, digit), in reading order.
        background (`str`):
            `"dark"` or `"light"`.
        image (`PIL.Image.Image`):
            The picture, 32×32 RGB.
    """

    objects: dict[str, tuple[str, str]]
    background: str
    image: Image.Image


def make_scene(scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Scene:
    """
    Compose one scene.

    Args:
        scans (`np.ndarray` of shape `(num_scans, 8, 8)`):
            Handwritten digits, ink from 0 to 16.
        labels (`np.ndarray` of shape `(num_scans,)`):
            The digit of each scan.
        rng (`np.random.Generator`):
            Source of every choice.
    """
    background = str(rng.choice(list(BACKGROUNDS)))
    canvas = np.full((2 * CELL, 2 * CELL, 3), BACKGROUNDS[background], dtype=np.float32)
    objects = {}
    for index in sorted(rng.choice(len(CELLS), size=rng.integers(1, len(CELLS) + 1), replace=False)):
        scan = rng.integers(len(scans))
        colour = str(rng.choice(list(COLOURS)))
        ink = _ink(scans[scan], rng)[..., None]
        top, left = CELL * (index // 2), CELL * (index % 2)
        cell = canvas[top : top + CELL, left : left + CELL]
        cell[:] = cell * (1 - ink) + np.asarray(COLOURS[colour], dtype=np.float32) * ink
        objects[CELLS[index]] = (colour, DIGITS[labels[scan]])
    canvas += rng.normal(0, 0.05 * 255, size=canvas.shape)
    return Scene(objects, background, Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))


def _ink(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale, turn and shift one scan into a cell; returns the coverage of each pixel, from 0 to 1."""
    size = round(8 * rng.uniform(1.45, 1.8))
    glyph = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    cell = Image.new("L", (CELL, CELL))
    down, right = (CELL - size) // 2 + rng.integers(-1, 2, size=2)
    cell.paste(glyph, (int(right), int(down)))
    cell = cell.rotate(rng.uniform(-10, 10), resample=Image.Resampling.BILINEAR)
    return np.asarray(cell, dtype=np.float32) / 255


# Text about a scene -------------------------------------------------------------------------------------------------


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


# Pools --------------------------------------------------------------------------------------------------------------


def split_scans() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split the scans, stratified by digit, into the pools of [`SCANS`]; returns pool -> (scans, labels)."""
    scans, labels = load_digits(return_X_y=True)
    rest_scans, rest_labels = scans.reshape(-1, 8, 8), labels
    pools = {}
    for pool, size in list(SCANS.items())[:-1]:
        taken, rest_scans, taken_labels, rest_labels = train_test_split(
            rest_scans, rest_labels, train_size=size, stratify=rest_labels, random_state=SPLIT_SEED
        )
        pools[pool] = (taken, taken_labels)
    pools["test"] = (rest_scans, rest_labels)
    return pools


def _scenes(pool: str, count: int, seed: int) -> list[Scene]:
    scans, labels = split_scans()[pool]
    rng = np.random.default_rng([seed, list(SCANS).index(pool)])
    return [make_scene(scans, labels, rng) for _ in range(count)]


def _questions(scene: Scene, rng: np.random.Generator, exists: bool) -> list[Question]:
    return [
        ask_sum(scene),
        ask_largest(scene),
        ask_digit(scene, rng),
        ask_colour(scene, rng),
        ask_existence(scene, rng, exists),
    ]


def annotated_pool(count: int, seed: int) -> dict[str, Dataset]:
    """
    Return the annotated pool: the same `count` scenes with the texts that each stage trains on.

    Returns:
        `dict[str, Dataset]`: split -> TRL prompt-completion rows. `base` (short and detailed captions, direct answers)
        makes the base model, `cognition` (both chains and their short counterparts) stage 1, `instruction` (direct
        answers and detailed descriptions) the instruction tuning.
    """
    rng = np.random.default_rng([seed, 100])
    rows: dict[str, list[dict]] = {"base": [], "cognition": [], "instruction": []}

    def add(splits: str, number: int, scene: Scene, mode: str, completion: str, question: str | None = None) -> None:
        prompt = [{"role": "user", "content": prompt_for(mode, question)}]
        answer = [{"role": "assistant", "content": completion}]
        for split in splits.split():
            name = f"annotated-{number:05d}-{split}-{len(rows[split])}"
            row = {"id": name, "images": [scene.image], "prompt": prompt, "completion": answer}
            rows[split].append({**row, "task": task_of(mode), "mode": mode})

    for number, scene in enumerate(_scenes("annotated", count, seed)):
        questions = _questions(scene, rng, exists=number % 2 == 0)
        add("base", number, scene, "short_caption", short_caption(scene))
        add("base cognition instruction", number, scene, "detailed_description", detailed_description(scene))
        add("cognition", number, scene, "chain_of_description", chain_of_description(scene))
        for question in questions:
            add("base instruction", number, scene, "direct_answer", question.answer, question.question)
            if question.kind == "reasoning":
                chain = question.chain_of_thought(scene)
                add("cognition", number, scene, "direct_answer", question.answer, question.question)
                add("cognition", number, scene, "chain_of_thought", chain, question.question)
    return {split: Dataset.from_list(part, features=ANNOTATED_FEATURES) for split, part in rows.items()}


def preference_pool(count: int, seed: int) -> Dataset:
    """
    Return pairs on the annotated scenes: the true description against one that misnames one object.

    Returns:
        `datasets.Dataset`: TRL preference rows (`images`, `prompt`, `chosen`, `rejected`) with their `id`.
    """
    rng = np.random.default_rng([seed, 300])
    rows = []
    for number, scene in enumerate(_scenes("annotated", count, seed)):
        cell = str(rng.choice(list(scene.objects)))
        colour, digit = scene.objects[cell]
        wrong = str(rng.choice([other for other in DIGITS if other != digit]))
        damaged = replace(scene, objects={**scene.objects, cell: (colour, wrong)})
        rows.append(
            {
                "id": f"preference-{number:05d}",
                "images": [scene.image],
                "prompt": [{"role": "user", "content": prompt_for("detailed_description")}],
                "chosen": [{"role": "assistant", "content": detailed_description(scene)}],
                "rejected": [{"role": "assistant", "content": detailed_description(damaged)}],
            }
        )
    return Dataset.from_list(rows, features=PREFERENCE_FEATURES)


def unlabelled_pool(count: int, seed: int) -> Dataset:
    """
    Return the unlabelled pool: `count` scenes to describe, every second one also with a question.

    The column `answer` holds the truth. No stage that trains reads it, but for the `oracle` control.
    """
    rows = []
    for number, scene in enumerate(_scenes("unlabelled", count, seed)):
        name = f"unlabelled-{number:05d}"
        row = {"id": name, "images": [scene.image], "question": None, "answer": detailed_description(scene)}
        rows.append(row)
        if number % 2 == 0:
            asked = ask_sum(scene) if number % 4 == 0 else ask_largest(scene)
            rows.append({**row, "id": f"{name}-q", "question": asked.question, "answer": asked.answer})
    return Dataset.from_list(rows, features=IMAGES_FEATURES)


def evaluation_pool(pool: str, count: int, seed: int) -> dict[str, Dataset]:
    """Return the `development` or `test` pool: split (`description`, `existence`, `vqa`, `reasoning`) -> rows."""
    rng = np.random.default_rng([seed, 200 + list(SCANS).index(pool)])
    rows: dict[str, list[dict]] = {"description": [], "existence": [], "vqa": [], "reasoning": []}
    for number, scene in enumerate(_scenes(pool, count, seed)):
        row = {"id": f"{pool}-{number:05d}", "images": [scene.image]}
        rows["description"].append({**row, "question": None, "answer": detailed_description(scene)})
        sum_, largest, digit, colour, existence = _questions(scene, rng, exists=number % 2 == 0)
        for asked in (sum_ if number % 2 else largest, digit if number % 2 else colour, existence):
            rows[asked.kind].append({**row, "question": asked.question, "answer": asked.answer})
    return {split: Dataset.from_list(part, features=IMAGES_FEATURES) for split, part in rows.items()}
