"""What is shown and counted before training is what the collator gives, in models that count in ways of their own."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features
from PIL.ExifTags import Base
from tiny_models import BUILDERS, build
from trl import DPOConfig, SFTConfig

from sicog_trl.data import MESSAGES, PREFERENCE_FEATURES
from sicog_trl.training import preview
from sicog_trl.training.collators import ImageInEveryBatch
from sicog_trl.training.preview import row_lengths
from sicog_trl.training.trainers import ResumableDPOTrainer, ResumableSFTTrainer


ARCHITECTURES = pytest.mark.parametrize("name", BUILDERS)
IMAGES = PREFERENCE_FEATURES["images"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("models")
    return {name: build(name, folder / name) for name in BUILDERS}


def picture(width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


def rows(*sides: str) -> Dataset:
    """Rows with one image, none, or two, each of another size, and answers of all lengths."""
    sizes = [[(20 + 9 * n, 70 - 5 * n)][: n % 4 != 1] * (1 + (n % 4 == 2)) for n in range(10)]
    columns = {"images": [[picture(*size) for size in row] for row in sizes]}
    for name in sides:
        role = "user" if name == "prompt" else "assistant"
        texts = [
            "\n".join(["What is to be seen?", *["a red three"] * (n * (1 + (name == "rejected")))]) for n in range(10)
        ]
        columns[name] = [[{"role": role, "content": text}] for text in texts]
    return Dataset.from_dict(columns, features=Features({"images": IMAGES, **dict.fromkeys(sides, MESSAGES)}))


def trainer(model, folder, data: Dataset):
    common = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none"}
    if "chosen" in data.column_names:
        return ResumableDPOTrainer(str(model), args=DPOConfig(str(folder), **common), train_dataset=data)
    return ResumableSFTTrainer(str(model), args=SFTConfig(str(folder), **common), train_dataset=data)


def collated(made, data: Dataset) -> list[tuple[int, int]]:
    found = []
    for row in data:
        batch = made.plain_collator([row])
        learned = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
        found.append((int(learned[0].int().argmax()), int(batch["attention_mask"].sum(dim=1).max())))
    return found


@ARCHITECTURES
@pytest.mark.parametrize("sides", [("prompt", "completion"), ("prompt", "chosen", "rejected"), ("messages",)])
def test_rows_are_counted_without_looking_at_images(name, sides, models, tmp_path, monkeypatch):
    data = rows(*sides) if sides != ("messages",) else _turns(rows("prompt", "completion"))
    made = trainer(models[name], tmp_path, data)
    made.plain_collator.max_length = None
    expected = collated(made, data)
    assert len(set(expected)) > 7
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kw: decoded.append(1) or decode(*args, **kw))
    monkeypatch.setattr(preview, "_CHECKED", 2)  # rows that are collated to compare
    monkeypatch.setattr(preview, "_CALIBRATED", 3)  # sizes that are measured to compare
    assert row_lengths(made) == expected
    assert len(decoded) < len(data)  # and so not all were collated


def _turns(data: Dataset) -> Dataset:
    turns = [prompt + completion for prompt, completion in zip(data["prompt"], data["completion"], strict=True)]
    return data.remove_columns(["prompt", "completion"]).add_column("messages", turns, feature=MESSAGES)


def test_what_cannot_be_counted_is_collated(models, tmp_path, monkeypatch):
    data = rows("prompt", "completion")
    made = trainer(models["llava"], tmp_path, data)
    expected = collated(made, data)
    monkeypatch.setattr(preview, "image_tokens", lambda processor, sizes: dict.fromkeys(sizes, 1))
    assert row_lengths(made) == expected


def test_a_turned_image_has_the_size_that_the_model_sees(models, tmp_path):
    exif = PIL.Image.Exif()
    exif[Base.Orientation] = 6
    picture(64, 32).save(tmp_path / "turned.jpg", exif=exif)
    columns = rows("prompt", "completion")[:]
    columns["images"] = [[str(tmp_path / "turned.jpg")]] * len(columns["prompt"])
    features = Features({"images": IMAGES, "prompt": MESSAGES, "completion": MESSAGES})
    data = Dataset.from_dict(columns, features=features)
    assert data[0]["images"][0].size == (32, 64)
    assert preview._sizes(data, 0, [{"bytes": None, "path": str(tmp_path / "turned.jpg")}]) == [(64, 32)]
    made = trainer(models["qwen2_5_vl"], tmp_path, data)
    assert row_lengths(made) == collated(made, data)


@ARCHITECTURES
@pytest.mark.parametrize("sides", [("prompt", "completion"), ("prompt", "chosen", "rejected")])
def test_a_blank_image_behind_a_text_changes_no_loss_and_no_gradient(name, sides, models, tmp_path):
    data = rows(*sides)
    made = trainer(models[name], tmp_path, data)
    texts = [row for row in data if not row["images"]]
    plain = made.plain_collator
    pad = made.processing_class.tokenizer.pad_token_id

    def learned(collator) -> tuple[float, dict[str, torch.Tensor]]:
        made.model.zero_grad()
        loss = made.compute_loss(made.model, collator([dict(row) for row in texts]))
        loss.backward()
        found = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
        return loss.item(), found

    expected, without = learned(plain)
    found, gradients = learned(ImageInEveryBatch(plain, made.processing_class, pad))
    assert found == pytest.approx(expected, abs=1e-5)
    reached = gradients.keys() - without.keys()
    assert any("visi" in name or "visual" in name for name in reached)
    assert not any(gradients[name].any() for name in reached)
    assert all(torch.allclose(gradient, gradients[name], atol=1e-6) for name, gradient in without.items())
