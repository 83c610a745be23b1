"""The pools of the world as datasets: annotated, preference, unlabelled, development and test."""

from dataclasses import replace

import numpy as np
from datasets import Dataset

from ..data import ANNOTATED_FEATURES, IMAGES_FEATURES, PREFERENCE_FEATURES
from ..prompts import prompt_for, task_of
from .scenes import DIGITS, SCANS, Scene, make_scenes
from .texts import (
    Question,
    ask_colour,
    ask_digit,
    ask_existence,
    ask_largest,
    ask_sum,
    chain_of_description,
    detailed_description,
    short_caption,
)


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
        makes the base model, `cognition` (both chains and their short counterparts) stage 1, or `perception` and
        `reasoning`, its halves, two of them; `instruction` (direct answers and detailed descriptions) the instruction
        tuning. `images` are the rows to generate from that `perception` and `reasoning` answer (their `source_id`).
    """
    rng = np.random.default_rng([seed, 100])
    rows: dict[str, list[dict]] = {name: [] for name in "base cognition perception reasoning instruction".split()}
    images: list[dict] = []

    def add(splits: str, source: str, scene: Scene, mode: str, completion: str, question: str | None = None) -> None:
        prompt = [{"role": "user", "content": prompt_for(mode, question)}]
        answer = [{"role": "assistant", "content": completion}]
        for split in splits.split():
            name = f"{source[:15]}-{split}-{len(rows[split])}"
            row = {"id": name, "source_id": source, "images": [scene.image], "prompt": prompt, "completion": answer}
            rows[split].append({**row, "task": task_of(mode), "mode": mode})

    for number, scene in enumerate(make_scenes("annotated", count, seed)):
        source = f"annotated-{number:05d}"
        questions = _questions(scene, rng, exists=number % 2 == 0)
        described = detailed_description(scene)
        images.append({"id": source, "images": [scene.image], "question": None, "answer": described})
        add("base", source, scene, "short_caption", short_caption(scene))
        add("base cognition perception instruction", source, scene, "detailed_description", described)
        add("cognition perception", source, scene, "chain_of_description", chain_of_description(scene))
        for place, asked in enumerate(questions):
            question = (f"{source}-q{place}", scene)
            add("base instruction", *question, "direct_answer", asked.answer, asked.question)
            if asked.kind == "reasoning":
                images.append(
                    {"id": question[0], "images": [scene.image], "question": asked.question, "answer": asked.answer}
                )
                chain = asked.chain_of_thought(scene)
                add("cognition reasoning", *question, "direct_answer", asked.answer, asked.question)
                add("cognition reasoning", *question, "chain_of_thought", chain, asked.question)
    pools = {split: Dataset.from_list(part, features=ANNOTATED_FEATURES) for split, part in rows.items()}
    return {**pools, "images": Dataset.from_list(images, features=IMAGES_FEATURES)}


def preference_pool(count: int, seed: int) -> Dataset:
    """
    Return pairs on the annotated scenes: the true description against one that misnames one object.

    Returns:
        `datasets.Dataset`: TRL preference rows (`images`, `prompt`, `chosen`, `rejected`) with their `id`.
    """
    rng = np.random.default_rng([seed, 300])
    rows = []
    for number, scene in enumerate(make_scenes("annotated", count, seed)):
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
                "task": "description",
                "mode": "detailed_description",
                "chosen_from": "annotated",
                "rejected_from": "misnamed",
                "corruption": None,
                "margin": None,
            }
        )
    return Dataset.from_list(rows, features=PREFERENCE_FEATURES)


def unlabelled_pool(count: int, seed: int) -> Dataset:
    """
    Return the unlabelled pool: `count` scenes to describe, every second one also with a question.

    The column `answer` holds the truth. No stage that trains reads it, but for the `oracle` control.
    """
    rows = []
    for number, scene in enumerate(make_scenes("unlabelled", count, seed)):
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
    for number, scene in enumerate(make_scenes(pool, count, seed)):
        row = {"id": f"{pool}-{number:05d}", "images": [scene.image]}
        rows["description"].append({**row, "question": None, "answer": detailed_description(scene)})
        sum_, largest, digit, colour, existence = _questions(scene, rng, exists=number % 2 == 0)
        for asked in (sum_ if number % 2 else largest, digit if number % 2 else colour, existence):
            rows[asked.kind].append({**row, "question": asked.question, "answer": asked.answer})
    return {split: Dataset.from_list(part, features=IMAGES_FEATURES) for split, part in rows.items()}
