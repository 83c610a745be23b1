"""What a step learns from: the same rows on any number of processes, texts without images among them, named rows."""

import importlib.util
import json
import re

import pytest
import yaml
from datasets import Dataset, concatenate_datasets
from test_accelerate_configs import launch
from training import COMMON, ROOT, cut_off, losses, moved, train, weights
from trl import SFTConfig

from sicog_trl.data import MESSAGES, load, save
from sicog_trl.training.trainers import BatchConfig, set_accumulation


def texts(number: int, **sides: str) -> Dataset:
    """Text-only rows, without the column of images."""
    names = {"prompt": "user", **dict.fromkeys(sides, "assistant")}
    rows = {
        name: [[{"role": role, "content": f"{sides.get(name, 'How many is')} {n}"}] for n in range(number)]
        for name, role in names.items()
    }
    data = Dataset.from_dict({"id": [f"text-{n}" for n in range(number)], **rows})
    for name in names:
        data = data.cast_column(name, MESSAGES)
    return data


@pytest.fixture
def mixture(digits_model, digits_world, tmp_path) -> dict:
    """Half of the rows have an image, half have none; the first one is among the latter."""
    save(texts(40, completion="three"), tmp_path / "texts", "train")
    sources = [
        {"path": str(tmp_path / "texts"), "weight": 0.5},
        {"path": str(digits_world / "annotated"), "split": "base", "weight": 0.5},
    ]
    return {"model_name_or_path": str(digits_model), "datasets": sources, "save_strategy": "no"}


def test_two_processes_learn_from_the_same_global_batch_as_one(tmp_path, mixture, capsys):
    settings = {**COMMON, **mixture, "global_batch_size": 4, "per_device_train_batch_size": 2, "max_steps": 5}
    settings |= {"image_views": "light", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 5}
    train("sft", **settings, output_dir=str(tmp_path / "one"))
    assert "global batch 4 = 2 per device x 1 processes x 2 accumulation" in capsys.readouterr().out
    two = tmp_path / "two.yaml"
    two.write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "two")}))
    shown = launch("multi_cpu", ROOT / "recipes" / "sft.py", "--config", two)
    assert shown.count("global batch 4 = 2 per device x 2 processes x 1 accumulation") == 1
    assert shown.count("language_model") == 1
    assert losses(tmp_path / "two", 5) == pytest.approx(losses(tmp_path / "one", 5), abs=2e-4)
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two")]
    assert records[0]["samples"] == records[1]["samples"] == 20
    assert records[0]["tokens"] == records[1]["tokens"]


def test_a_resumed_run_may_divide_its_batch_anew(tmp_path, mixture):
    settings = {**mixture, "global_batch_size": 8, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    settings |= {"image_views": "strong", "learning_rate": 1e-3}
    train("sft", **settings, output_dir=str(tmp_path / "whole"))
    (tmp_path / "resumed").mkdir()
    cut_off(tmp_path / "whole", tmp_path / "resumed", 2)
    train("sft", **{**settings, "per_device_train_batch_size": 8}, output_dir=str(tmp_path / "resumed"))
    assert losses(tmp_path / "resumed", 4) == pytest.approx(losses(tmp_path / "whole", 4), abs=1e-4)
    assert losses(tmp_path / "whole", 4)[3] != pytest.approx(losses(tmp_path / "whole", 4)[2], abs=1e-2)
    with pytest.raises(ValueError, match="global_batch_size is 8 there and 16 here"):
        train("sft", **{**settings, "global_batch_size": 16}, output_dir=str(tmp_path / "resumed"))


@pytest.mark.parametrize(
    ("rows", "each", "processes", "message"),
    [
        (10, 4, 1, "not a multiple of 4 = 4 per device x 1 processes.* global_batch_size 8 or 12; or .* 1, 2, 5, 10$"),
        (8, 4, 3, r"not a multiple of 12 = 4 per device x 3 processes.* global_batch_size 12; or .*with at most 8"),
        (6, 4, 3, "global_batch_size 12; or per_device_train_batch_size 1, 2$"),
    ],
)
def test_a_batch_that_does_not_come_out_even_names_what_would(tmp_path, monkeypatch, rows, each, processes, message):
    args = SFTConfig(str(tmp_path), per_device_train_batch_size=each, use_cpu=True, bf16=False)
    monkeypatch.setattr(SFTConfig, "world_size", processes)
    with pytest.raises(ValueError, match=message):
        set_accumulation(args, BatchConfig(rows))


def test_accumulation_is_given_once(tmp_path, mixture):
    settings = {**mixture, "output_dir": str(tmp_path), "max_steps": 1}
    with pytest.raises(ValueError, match="both global_batch_size and gradient_accumulation_steps are given"):
        train("sft", **settings, global_batch_size=8, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="global_batch_size is at least 1, got 0"):
        train("dpo", **settings, global_batch_size=0)


def test_texts_without_images_train_alone_and_among_others(tmp_path, mixture, digits_model, digits_world, capsys):
    train("sft", **mixture, output_dir=str(tmp_path / "mixed"), max_steps=6, image_views="strong")
    assert any("multi_modal_projector" in name for name in moved(digits_model, tmp_path / "mixed"))
    alone = {**mixture, "datasets": mixture["datasets"][:1], "max_length": 30}
    capsys.readouterr()
    train("sft", **alone, output_dir=str(tmp_path / "alone"), max_steps=2, weight_decay=0.1)
    changed = moved(digits_model, tmp_path / "alone")
    assert changed == {name for name in weights(digits_model) if "language_model" in name or "lm_head" in name}
    shown = capsys.readouterr().out
    assert "⟦three 0<|im_end|>\n⟧" in shown and ", 0 of images" in shown and "max_length: 30 cuts 0 of 40" in shown
    pairs = load(str(digits_world / "preference"))
    data = texts(8, chosen="three", rejected="four")
    data = data.add_column("images", [[], None] * 4, feature=pairs.features["images"])
    save(concatenate_datasets([data, pairs.select_columns(data.column_names)]), tmp_path / "pairs", "train")
    settings = {"model_name_or_path": str(digits_model), "dataset_name": str(tmp_path / "pairs")}
    train("dpo", **settings, output_dir=str(tmp_path / "dpo"), max_steps=3, per_device_train_batch_size=2)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_an_image_that_cannot_be_read_is_named_by_its_row(tmp_path, kind, digits_model, digits_world):
    name, split = ("annotated", "base") if kind == "sft" else ("preference", "train")
    data = load(str(digits_world / name), split=split).with_format("arrow")[:]
    rows = data.to_pylist()
    image = rows[2]["images"][0]
    image["bytes"] = image["bytes"][: len(image["bytes"]) // 2]
    features = load(str(digits_world / name), split=split).features
    save(Dataset.from_list(rows, features=features), tmp_path / "broken", "train")
    settings = {"model_name_or_path": str(digits_model), "output_dir": str(tmp_path / "out"), "num_train_epochs": 1}
    source = {"datasets": [{"path": str(tmp_path / "broken")}]}
    label = re.escape(repr(rows[2]["id"]))
    with pytest.raises(ValueError, match=rf"row 2 \(.*{label}.*cannot be read: .*truncated"):
        train(kind, **settings, **source)
    settings["output_dir"] = str(tmp_path / "counted")  # where `max_length` is set, all are decoded before training
    with pytest.raises(ValueError, match=rf"row 2 \(.*{label}.*cannot be read: .*truncated"):
        train(kind, **settings, **source, max_length=500)
    image["bytes"] = b"no image"
    save(Dataset.from_list(rows, features=features), tmp_path / "broken", "train")
    with pytest.raises(ValueError, match=rf"row 2 \(.*{label}.*cannot be read: not an image that Pillow can read"):
        train(kind, **settings, **source)


def test_options_without_effect_are_refused(tmp_path, mixture):
    for option in ("dataset_streaming", "ignore_bias_buffers"):
        with pytest.raises(ValueError, match=f"{option} has no effect here"):
            train("sft", **mixture, output_dir=str(tmp_path), **{option: True})


@pytest.mark.slow
@pytest.mark.timeout(1200)  # DeepSpeed compiles its operators the first time
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_zero_learns_from_the_same_global_batch_and_from_texts_alone(name, tmp_path, mixture):
    settings = {**COMMON, **mixture, "global_batch_size": 8, "per_device_train_batch_size": 2, "max_steps": 4}
    settings |= {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 4}
    train("sft", **settings, output_dir=str(tmp_path / "one"))
    two = tmp_path / "two.yaml"
    two.write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "two")}))
    options = ("--num_processes", "2", "--mixed_precision", "no")
    script = (ROOT / "recipes" / "sft.py", "--config", two)
    shown = launch(name, *script, options=options, timeout=900)
    assert "global batch 8 = 2 per device x 2 processes x 2 accumulation" in shown
    assert losses(tmp_path / "two", 4) == pytest.approx(losses(tmp_path / "one", 4), abs=1e-3)
