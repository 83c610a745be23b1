"""The embedded world: real scans in composed scenes, texts that can be read back, a model that can say them all."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.data_utils import apply_chat_template, prepare_multimodal_messages
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sicog_trl import digits
from sicog_trl.data import ANNOTATED_FEATURES, IMAGES_FEATURES, PREFERENCE_FEATURES, load
from sicog_trl.digits import (
    CELLS,
    DIGITS,
    SCANS,
    annotated_pool,
    evaluation_pool,
    make_scene,
    object_accuracy,
    preference_pool,
    read_objects,
    split_scans,
    unlabelled_pool,
)
from sicog_trl.digits.model import IMAGE_TOKEN, build_model
from sicog_trl.generation import Request, TransformersSampler
from sicog_trl.prompts import STEPS, prompt_for, task_of
from sicog_trl.responses import final_part, normalize_answer, split_steps


WRITE_WORLD = """
import sys
from sicog_trl.data import save
from sicog_trl.digits import annotated_pool, evaluation_pool, unlabelled_pool

annotated_pool(3, seed=1)
annotated = {f"annotated_{split}": rows for split, rows in annotated_pool(4, 0).items()}
pools = {**annotated, **evaluation_pool("test", 4, 0), "unlabelled": unlabelled_pool(4, 0)}
for name, dataset in pools.items():
    save(dataset, sys.argv[1], name)
"""


@pytest.fixture(scope="module")
def annotated():
    return {split: list(rows) for split, rows in annotated_pool(60, seed=0).items() if split != "images"}


@pytest.fixture(scope="module")
def processor(digits_model):
    return AutoProcessor.from_pretrained(digits_model)


def text_of(messages: list[dict]) -> str:
    (message,) = messages
    return message["content"]


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*.parquet"))}


def test_law_3_same_seed_same_bytes_in_every_process(tmp_path):
    """Law 3: the pools are the same bytes whoever writes them; another seed writes others."""
    for name, hash_seed in (("one", "1"), ("two", "2")):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", WRITE_WORLD, str(tmp_path / name)], check=True, env=env)
    assert len(hashes(tmp_path / "one")) == 11
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    one, other = (np.stack([image for (image,) in unlabelled_pool(4, seed)["images"]]) for seed in (0, 1))
    assert (one != other).any()


def test_a_larger_pool_begins_with_the_smaller_one():
    small, large = unlabelled_pool(4, 0), unlabelled_pool(8, 0)
    assert [row["answer"] for row in small] == [row["answer"] for row in large.select(range(len(small)))]


def test_every_scan_belongs_to_one_pool():
    pools = split_scans()
    assert {pool: len(scans) for pool, (scans, _) in pools.items()} == SCANS
    handwriting = {pool: {scan.tobytes() for scan in scans} for pool, (scans, _) in pools.items()}
    for held_out in ("development", "test"):
        for other in set(SCANS) - {held_out}:
            assert not handwriting[held_out] & handwriting[other], f"{held_out} shows scans of {other}"
    truth = {scan.tobytes(): label for scan, label in zip(*load_digits(return_X_y=True), strict=True)}
    for scans, labels in pools.values():
        assert [truth[scan.tobytes()] for scan in scans] == list(labels)
        counts = np.bincount(labels, minlength=10) / len(labels)
        assert counts.min() > 0.08 and counts.max() < 0.12  # stratified by digit


def test_pool_columns_are_the_contract(digits_world):
    for split in ("base", "cognition", "instruction"):
        assert load(str(digits_world / "annotated"), split=split).features == ANNOTATED_FEATURES
    assert load(str(digits_world / "preference")).features == PREFERENCE_FEATURES
    assert load(str(digits_world / "unlabelled")).features == IMAGES_FEATURES
    for pool in ("development", "test"):
        for split in ("description", "existence", "vqa", "reasoning"):
            assert load(str(digits_world / pool), split=split).features == IMAGES_FEATURES


def test_law_1_ids_are_unique(digits_world, annotated):
    """Law 1: rows are followed by id, so no dataset may use one twice."""
    for rows in annotated.values():
        assert len({row["id"] for row in rows}) == len(rows)
    for folder, split in [("unlabelled", "train"), ("preference", "train"), ("test", "vqa"), ("test", "description")]:
        ids = load(str(digits_world / folder), split=split)["id"][:]
        assert len(set(ids)) == len(ids)


def test_images_are_small_rgb_and_show_ink():
    scene = make_scene(*split_scans()["test"], np.random.default_rng(0))
    assert (scene.image.size, scene.image.mode) == ((32, 32), "RGB")
    pixels = np.asarray(scene.image, dtype=float)
    spread = {
        cell: pixels[16 * (i // 2) :, 16 * (i % 2) :][:16, :16].std(axis=(0, 1)).max() for i, cell in enumerate(CELLS)
    }
    assert all((spread[cell] > 25) == (cell in scene.objects) for cell in CELLS)


def test_texts_are_read_back_to_the_truth(annotated):
    rng = np.random.default_rng(0)
    scans = split_scans()["annotated"]
    for _ in range(200):
        scene = make_scene(*scans, rng)
        description = digits.detailed_description(scene)
        assert read_objects(description) == scene.objects
        assert object_accuracy(description, description) == 1
        chain = digits.chain_of_description(scene)
        assert len(split_steps(chain, "chain_of_description")) == 5
        assert final_part(chain, "chain_of_description") == description
        values = [DIGITS.index(digit) for _, digit in scene.objects.values()]
        for asked, value in ((digits.ask_sum(scene), sum(values)), (digits.ask_largest(scene), max(values))):
            steps = split_steps(asked.chain_of_thought(scene), "chain_of_thought")
            assert read_objects(steps[1]) == scene.objects
            assert asked.answer == str(value) == steps[-1]
        cell = digits.ask_digit(scene, rng)
        assert scene.objects[cell.question.removeprefix("Which digit is at the ").rstrip("?")][1] == cell.answer
        colour = digits.ask_colour(scene, rng)
        place = colour.question.removeprefix("Which colour is the digit at the ").rstrip("?")
        assert scene.objects[place][0] == colour.answer
        for exists in (True, False):
            asked = digits.ask_existence(scene, rng, exists)
            thing = tuple(asked.question.removeprefix("Is there a ").rstrip("?").split())
            assert (thing in scene.objects.values()) == exists == (asked.answer == "yes")


def test_object_accuracy_by_hand():
    truth = "Two digits on a dark background: a red three at the top left, a blue seven at the bottom right."
    assert read_objects(truth) == {"top left": ("red", "three"), "bottom right": ("blue", "seven")}
    assert object_accuracy("a red three at the top left, a blue one at the bottom right", truth) == 0.5
    assert object_accuracy("a red three at the top right", truth) == 0
    assert object_accuracy("", truth) == 0


def test_every_scene_asks_in_every_mode_of_its_stage(annotated):
    modes = {split: {row["mode"] for row in rows} for split, rows in annotated.items()}
    assert modes["base"] == {"short_caption", "detailed_description", "direct_answer"}
    assert modes["cognition"] == {"chain_of_description", "detailed_description", "chain_of_thought", "direct_answer"}
    assert modes["instruction"] == {"detailed_description", "direct_answer"}
    for row in (row for rows in annotated.values() for row in rows):
        assert row["task"] == task_of(row["mode"])
        assert final_part(text_of(row["completion"]), row["mode"])
        question = text_of(row["prompt"]).rpartition("\n")[0] or None
        assert text_of(row["prompt"]) == prompt_for(row["mode"], question)


@pytest.mark.parametrize("pool", ["development", "test"])
def test_existence_questions_are_balanced(pool):
    answers = evaluation_pool(pool, 40, seed=0)["existence"]["answer"][:]
    assert sorted(answers) == ["no"] * 20 + ["yes"] * 20


def test_unlabelled_rows_have_true_answers():
    rows = list(unlabelled_pool(40, seed=0).select_columns(["id", "question", "answer"]))
    scenes = {row["id"]: read_objects(row["answer"]) for row in rows if row["question"] is None}
    asked = [row for row in rows if row["question"]]
    assert (len(scenes), len(asked)) == (40, 20)
    for row in asked:
        values = [DIGITS.index(digit) for _, digit in scenes[row["id"].removesuffix("-q")].values()]
        assert row["answer"] == str(sum(values) if "sum" in row["question"] else max(values))
        assert normalize_answer(row["answer"]) == row["answer"]


def test_rejected_descriptions_differ_in_one_object():
    for row in preference_pool(30, seed=0).select_columns(["chosen", "rejected"]):
        chosen, rejected = (read_objects(text_of(row[side])) for side in ("chosen", "rejected"))
        assert chosen.keys() == rejected.keys()
        assert sum(chosen[cell] != rejected[cell] for cell in chosen) == 1


# The model ----------------------------------------------------------------------------------------------------------


def test_model_is_small_and_comes_back_through_the_auto_classes(digits_model, tmp_path):
    built = build_model(tmp_path, seed=0).eval()
    assert sum(parameter.numel() for parameter in built.parameters()) < 1_000_000
    loaded = AutoModelForImageTextToText.from_pretrained(digits_model).eval()
    for name, value in built.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name

    answers = [
        list(
            TransformersSampler(str(folder), batch_size=2, max_completion_length=8).sample(
                [Request([Image.new("RGB", (32, 32), "red")], "Describe the image in detail.", [1, 2])]
            )
        )
        for folder in (digits_model, tmp_path)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("seed", [0, 3])
def test_tokenizer_knows_every_word_of_the_world(processor, seed):
    tokenizer = processor.tokenizer
    texts = set()
    annotated = annotated_pool(200, seed)
    for rows in (annotated["base"], annotated["cognition"], annotated["instruction"]):
        texts |= {text_of(row[side]) for row in rows.remove_columns("images") for side in ("prompt", "completion")}
    for rows in (unlabelled_pool(200, seed), *evaluation_pool("test", 200, seed).values()):
        for row in rows.remove_columns("images"):
            texts.add(row["answer"])
            if row["question"]:
                texts |= {prompt_for(mode, row["question"]) for mode in ("direct_answer", "chain_of_thought")}
    for text in texts:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in tokens, text
        assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("split", ["base", "cognition", "instruction"])
def test_law_7_training_sees_prompt_images_and_completion(split, digits_world, processor):
    """Law 7: one rendered example per mode, decoded, its image tokens counted."""
    rows = load(str(digits_world / "annotated"), split=split)
    tokenizer = processor.tokenizer
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    for mode in STEPS:
        row = next((row for row in rows if row["mode"] == mode), None)
        if row is None:
            continue
        batch = collate([{name: row[name] for name in ("images", "prompt", "completion")}])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        assert (ids == processor.image_token_id).sum() == 4 * len(row["images"])
        assert batch["pixel_values"].shape == (1, 3, 32, 32)
        assert tokenizer.decode(ids) == (
            f"<|im_start|>user\n{IMAGE_TOKEN * 4}{text_of(row['prompt'])}<|im_end|>\n"
            f"<|im_start|>assistant\n{text_of(row['completion'])}<|im_end|>\n"
        )
        assert tokenizer.decode(labels[labels != -100]) == f"{text_of(row['completion'])}<|im_end|>\n"


def test_law_7_preferences_see_prompt_images_and_both_sides(digits_world, processor):
    """Law 7: both sides of a pair have the same prompt and the same number of image tokens."""
    row = load(str(digits_world / "preference"))[0]
    batch = DataCollatorForVisionPreference(processor)([{k: v for k, v in row.items() if k != "id"}])
    for side, ids, mask in zip(("chosen", "rejected"), batch["input_ids"], batch["completion_mask"], strict=True):
        assert (ids == processor.image_token_id).sum() == 4
        assert processor.tokenizer.decode(ids[mask == 1]) == f"{text_of(row[side])}<|im_end|>\n"


def test_generation_marks_cover_the_completion_and_its_end(digits_world, processor):
    row = load(str(digits_world / "annotated"), split="cognition")[1]
    messages = prepare_multimodal_messages(row["prompt"] + row["completion"], images=row["images"])
    rendered = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    chosen = rendered["input_ids"][0][torch.as_tensor(rendered["assistant_masks"])[0] == 1]
    assert processor.tokenizer.decode(chosen) == f"{text_of(row['completion'])}<|im_end|>"


@pytest.mark.parametrize("split", ["base", "cognition", "instruction"])
def test_law_7_generation_asks_as_training_did(split, digits_world, digits_model, processor):
    """Law 7: the prompt of generation is the prompt of training, byte for byte."""
    sampler = TransformersSampler(str(digits_model))
    for row in load(str(digits_world / "annotated"), split=split):
        rendered = sampler.render(Request(row["images"], text_of(row["prompt"]), [0]))
        example = {
            "prompt": prepare_multimodal_messages(row["prompt"], images=row["images"]),
            "completion": prepare_multimodal_messages(row["completion"]),
        }
        trained = apply_chat_template(example, processor)
        assert rendered == trained["prompt"]
        assert trained["completion"] == f"{text_of(row['completion'])}<|im_end|>\n"
