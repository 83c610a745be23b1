"""Training through the real recipes: what moves, what a resumed run repeats, what is refused."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from training import COMMON, ROOT, cut_off, losses, moved, recipe, train, weights
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import TrlParser

from sicog_trl.data import load, save
from sicog_trl.training.collators import ViewCollator
from sicog_trl.training.freezing import FreezeConfig, freeze, parts, parts_table
from sicog_trl.training.resume import ResumeFix, last_checkpoint, refuse_other_settings
from sicog_trl.training.trainers import ResumableSFTTrainer
from sicog_trl.views import light_view


@pytest.fixture(scope="module")
def sft(digits_model, digits_world) -> dict:
    sources = [{"path": str(digits_world / "annotated"), "split": "base"}]
    return {"model_name_or_path": str(digits_model), "datasets": sources}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sft) -> Path:
    """A model that differs from the random one, for what builds on a trained model."""
    folder = tmp_path_factory.mktemp("trained")
    train("sft", **sft, output_dir=str(folder), max_steps=2, freeze_vision_tower=True, save_strategy="no")
    return folder


def test_sft_moves_what_trains_and_writes_the_record(trained, sft, digits_model):
    changed = moved(digits_model, trained)
    assert changed == {name for name in weights(digits_model) if "vision_tower" not in name}
    record = json.loads((trained / "training.json").read_text())
    assert (record["steps"], record["samples"], record["resumed_from"]) == (2, 8, None)
    assert record["tokens"] > 8 * 16 and record["first_loss"] > 0 and record["versions"]["trl"]
    AutoModelForImageTextToText.from_pretrained(trained)
    assert (trained / "processor_config.json").exists() and (trained / "README.md").exists()


def test_every_part_trains_unless_frozen(tmp_path, sft, digits_model):
    train("sft", **sft, output_dir=str(tmp_path), max_steps=2, image_views="light", save_strategy="no")
    still = weights(digits_model).keys() - moved(digits_model, tmp_path)
    assert all("post_layernorm" in name for name in still)  # LLaVA reads the features in front of it


def lengths(model: Path, data: Dataset, *completions: str) -> list[tuple[int, int]]:
    """Tokens in front of the completion, and all of the longest, as the processor gives them row by row."""
    processor, found = AutoProcessor.from_pretrained(model), []
    for row in data:
        images = [{"type": "image"} for _ in row["images"]]
        asked = [{"role": "user", "content": [*images, {"type": "text", "text": row["prompt"][0]["content"]}]}]
        text = processor.apply_chat_template(asked, add_generation_prompt=True)
        prompt = len(processor(images=row["images"] or None, text=[text])["input_ids"][0])
        answers = [row[name][0]["content"] + "<|im_end|>\n" for name in completions]
        found.append((prompt, prompt + max(len(processor.tokenizer(answer)["input_ids"]) for answer in answers)))
    return found


def test_before_training_the_parts_an_example_and_what_is_cut_are_shown(tmp_path, sft, digits_model, capsys):
    source = sft["datasets"][0]
    expected = lengths(digits_model, load(source["path"], split=source["split"]), "completion")
    limit = max(prompt for prompt, _ in expected) + 1
    attempt = {**sft, "output_dir": str(tmp_path), "max_steps": 1, "save_strategy": "no"}
    train("sft", **attempt)
    shown = capsys.readouterr().out
    assert "max_length: null, no row is cut" in shown
    assert re.search(r"multi_modal_projector +[\d,]+ ", shown)
    first = load(source["path"], split=source["split"])[0]
    text = f"<|im_start|>user\n[4 image tokens]{first['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert f"{text}⟦{first['completion'][0]['content']}<|im_end|>\n⟧" in shown
    assert f"[{expected[0][1]} tokens, 4 of images, {expected[0][1] - expected[0][0]} with loss" in shown
    train("sft", **{**attempt, "max_length": limit, "output_dir": str(tmp_path / "cut")})
    shown = capsys.readouterr().out
    cut = sum(whole > limit for _, whole in expected)
    assert f"max_length: {limit} cuts {cut} of {len(expected)} rows" in shown and 0 < cut < len(expected)
    lost = [row for row, (prompt, _) in enumerate(expected) if prompt >= limit - 1]
    with pytest.raises(ValueError, match=rf"whole completion of {len(lost)} of 42 rows, the first is row {lost[0]} "):
        train("sft", **{**attempt, "max_length": limit - 1, "output_dir": str(tmp_path / "other")})


def test_before_preference_training_both_sides_are_shown(tmp_path, digits_model, digits_world, capsys):
    data = load(str(digits_world / "preference"))
    expected = lengths(digits_model, data, "chosen", "rejected")
    limit = sorted(whole for _, whole in expected)[len(expected) // 2]
    settings = {"model_name_or_path": str(digits_model), "dataset_name": str(digits_world / "preference")}
    settings |= {"output_dir": str(tmp_path), "max_steps": 1, "save_strategy": "no", "loss_type": ["sigmoid", "sft"]}
    train("dpo", **settings)
    shown = capsys.readouterr().out
    for side in ("chosen", "rejected"):
        assert f"⟦{data[0][side][0]['content']}<|im_end|>\n⟧" in shown.partition(f"{side}:\n")[2]
    train("dpo", **{**settings, "max_length": limit, "output_dir": str(tmp_path / "cut")})
    shown = capsys.readouterr().out
    assert f"max_length: {limit} cuts {sum(whole > limit for _, whole in expected)} of {len(data)} rows" in shown


def test_freeze_finds_the_parts_below_adapters(digits_model):
    model = AutoModelForImageTextToText.from_pretrained(digits_model)
    plain = {part: sum(p.numel() for p in owned) for part, owned in parts(model).items()}
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2))
    assert sum(p.requires_grad for p in parts(adapted)["vision_tower"]) > 0
    freeze(adapted, FreezeConfig(freeze_vision_tower=True, freeze_multi_modal_projector=True))
    trains = {part: sum(p.requires_grad for p in owned) for part, owned in parts(adapted).items()}
    assert trains["vision_tower"] == trains["multi_modal_projector"] == trains["other"] == 0 < trains["language_model"]
    assert plain["other"] == 0 and all(plain[part] for part in plain if part != "other")
    assert "language_model" in parts_table(adapted)
    with pytest.raises(ValueError, match="freeze_vision_tower: Linear has none of vision_tower, visual"):
        freeze(torch.nn.Linear(1, 1), FreezeConfig(freeze_vision_tower=True))


def test_the_projector_of_qwen_does_not_count_with_the_tower_around_it():
    visual = torch.nn.ModuleDict({"blocks": torch.nn.Linear(2, 2), "merger": torch.nn.Linear(3, 3)})
    inner = torch.nn.ModuleDict({"visual": visual, "language_model": torch.nn.Linear(1, 1)})
    model = torch.nn.ModuleDict({"model": inner})
    assert {part: len(owned) for part, owned in parts(model).items()} == {
        "multi_modal_projector": 2,
        "vision_tower": 2,
        "language_model": 2,
        "other": 0,
    }


# 42 rows make 11 micro-batches: the last step of an epoch is short, and step 7 lies in the second epoch.
RESUMED = {"gradient_accumulation_steps": 2, "max_steps": 9, "save_steps": 1, "image_views": "strong"}


@pytest.fixture(scope="module", params=["random", "batch_rebalance"])
def uninterrupted(request, tmp_path_factory, sft) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    settings = {**sft, **RESUMED, "train_sampling_strategy": request.param}
    train("sft", **settings, output_dir=str(folder))
    return folder, settings


@pytest.mark.parametrize("step", [4, 7])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, uninterrupted, step, capsys):
    folder, settings = uninterrupted
    cut_off(folder, tmp_path, step)
    train("sft", **settings, output_dir=str(tmp_path))
    assert f"resuming from {tmp_path}/checkpoint-{step}" in capsys.readouterr().out
    assert losses(tmp_path, 9) == losses(folder, 9)
    assert not moved(folder, tmp_path)
    before, after = (json.loads((path / "training.json").read_text()) for path in (folder, tmp_path))
    assert all(before[key] == after[key] for key in ("steps", "samples", "tokens", "first_loss", "last_loss"))


def test_without_the_fix_a_resumed_run_trains_other_weights(tmp_path, uninterrupted, monkeypatch):
    folder, settings = uninterrupted
    cut_off(folder, tmp_path, 4)
    monkeypatch.setattr(ResumeFix, "_restore", lambda self, model, checkpoint: False)
    train("sft", **settings, output_dir=str(tmp_path))
    assert losses(tmp_path, 9)[4:] != losses(folder, 9)[4:]  # if this fails, Transformers has repaired #43701


def test_the_best_model_is_restored_and_evaluation_has_no_views(tmp_path, digits_model, digits_world, monkeypatch):
    views = []
    call = ViewCollator.__call__
    monkeypatch.setattr(ViewCollator, "__call__", lambda self, rows: views.append(len(rows)) or call(self, rows))
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 3, "image_views": "light"}
    train(
        "sft",
        **COMMON | steps | {"learning_rate": 1.0},  # so high that the first step is the best
        model_name_or_path=str(digits_model),
        dataset_name=str(digits_world / "annotated"),
        dataset_train_split="base",
        dataset_test_split="instruction",
        load_best_model_at_end=True,
        output_dir=str(tmp_path),
    )
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["best_global_step"] < 3
    assert not moved(Path(state["best_model_checkpoint"]), tmp_path)
    assert moved(tmp_path / "checkpoint-3", tmp_path)
    assert sum(views) <= 4 * 4  # three steps and the batch read ahead, none for evaluation


def test_half_written_checkpoints_are_passed_over(tmp_path, uninterrupted, capsys):
    for step in (2, 3, 4, 5):
        cut_off(uninterrupted[0], tmp_path, step)
    (tmp_path / "checkpoint-5" / "trainer_state.json").unlink()
    whole = (tmp_path / "checkpoint-4" / "model.safetensors").read_bytes()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    optimizer = (tmp_path / "checkpoint-3" / "optimizer.pt").read_bytes()
    (tmp_path / "checkpoint-3" / "optimizer.pt").write_bytes(optimizer[:100])
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    shown = capsys.readouterr().out
    assert "checkpoint-5 is not whole (FileNotFoundError" in shown
    assert "checkpoint-4 is not whole (SafetensorError" in shown
    assert "checkpoint-3 is not whole (optimizer.pt is cut off)" in shown
    assert last_checkpoint(tmp_path / "nothing") is None


def test_dpo_starts_from_its_own_reference(tmp_path, trained, digits_world):
    train(
        "dpo",
        model_name_or_path=str(trained),
        dataset_name=str(digits_world / "preference"),
        output_dir=str(tmp_path),
        max_steps=2,
        freeze_vision_tower=True,
        save_strategy="no",
    )
    assert json.loads((tmp_path / "training.json").read_text())["first_loss"] == pytest.approx(math.log(2), abs=5e-5)
    assert moved(trained, tmp_path) == {name for name in weights(trained) if "vision_tower" not in name}


def rows(number: int) -> list[dict]:
    return [{"images": [Image.new("RGB", (8, 8), (30 * n, 99, 9))], "prompt": f"{n}"} for n in range(number)]


def test_views_depend_on_seed_rank_epoch_batch_and_position_and_leave_the_rows_alone():
    def seen(seed=0, rank=0, epoch=0, batch=0) -> list[bytes]:
        place = (seed, rank, 2, 2)
        collator = ViewCollator(lambda shown: [row["images"][0].tobytes() for row in shown], light_view, *place)
        collator.start(epoch, batch)
        return collator(given)

    given = [rows(1)[0], rows(1)[0]]
    pixels = given[0]["images"][0].tobytes()
    kinds = [seen(), seen(seed=1), seen(rank=1), seen(epoch=1), seen(batch=1)]
    assert seen() == kinds[0] and len({view for views in kinds for view in views}) == 10
    assert given[0]["images"][0].tobytes() == pixels and given[0].keys() == {"images", "prompt"}


def test_views_do_not_depend_on_the_number_of_workers():
    def seen(workers: int) -> list:
        collator = ViewCollator(lambda examples: [row["images"][0].tobytes() for row in examples], light_view, 0)
        loader = torch.utils.data.DataLoader(rows(6), batch_size=2, collate_fn=collator, num_workers=workers)
        collator.start(0, 5)
        return list(loader)

    assert seen(0) == seen(2)


def test_batches_of_like_length_are_shuffled_by_the_seed_of_the_run(tmp_path, sft):
    module = recipe("sft")

    def order(seed: int) -> list[list[int]]:
        settings = {**COMMON, **sft, "train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2}
        settings |= {"output_dir": str(tmp_path), "seed": seed}
        script, args, model, mixture, *_ = TrlParser(module.ARGUMENTS).parse_dict(settings)
        data = module.training_data("sft", script, mixture)[0]
        return list(ResumableSFTTrainer(model.model_name_or_path, args, train_dataset=data)._get_train_sampler())

    assert order(0) == order(0) != order(1)
    assert sorted(index for batch in order(0) for index in batch) == list(range(42))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1}, "learning_rat"),
        ({"image_views": "heavy"}, "image_views is one of light, strong, got 'heavy'"),
        ({"datasets": None}, "give dataset_name, or datasets"),
        ({"dataset_name": "x"}, "both dataset_name and datasets"),
        ({"eval_strategy": "epoch"}, "eval_strategy needs dataset_name"),
        ({"model_name_or_path": "/no/such/model"}, "model folder /no/such/model does not exist"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
    ],
)
def test_a_bad_setting_is_named(tmp_path, sft, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train("sft", **{**sft, "output_dir": str(tmp_path), **change})


def test_bad_data_and_models_are_named(tmp_path, sft, digits_model, digits_world):
    def attempt(message: str, **change) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train("sft", **{**sft, "output_dir": str(tmp_path / str(len(message))), **change})

    data = tmp_path / "bad" / "data"
    data.mkdir(parents=True)
    Dataset.from_dict({"prompt": [], "completion": []}).to_parquet(data / "empty-00000-of-00001.parquet")
    attempt("the split .empty. of .* is empty", datasets=[{"path": str(data.parent), "split": "empty"}])
    preference = [{"path": str(digits_world / "preference")}]
    attempt(r"needs the columns completion \+ prompt or messages; it has chosen", datasets=preference)
    shutil.copytree(digits_model, tmp_path / "model", ignore=shutil.ignore_patterns("processor_config.json"))
    attempt("model has no processor", model_name_or_path=str(tmp_path / "model"))


def test_a_finished_folder_is_left_alone_and_one_of_another_run_refused(trained, sft, capsys):
    settings = {**sft, "output_dir": str(trained), "freeze_vision_tower": True, "save_strategy": "no"}
    before = (trained / "model.safetensors").stat().st_mtime_ns
    train("sft", **settings, max_steps=2, logging_first_step=True)
    assert "holds a finished model; nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"another run: max_steps is 2 there and 3 here"):
        train("sft", **settings, max_steps=3)
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


def test_what_fails_before_training_leaves_the_folder_free(tmp_path, sft, digits_world):
    data = load(str(digits_world / "annotated"), split="base")
    prompts = data["prompt"][:]
    prompts[3] = [{"role": "user", "content": "<image>\nDescribe."}]
    marked = data.remove_columns("prompt").add_column("prompt", prompts)
    save(marked, tmp_path / "marked", "train")
    settings = {**sft, "output_dir": str(tmp_path / "out"), "max_steps": 1, "save_strategy": "no"}
    with pytest.raises(ValueError, match=r"row 3 .*: the column prompt holds '<image>': '<image>.nDescribe"):
        train("sft", **{**settings, "datasets": [{"path": str(tmp_path / "marked")}]})
    alone = {"datasets": None, "dataset_name": str(tmp_path / "marked")}
    with pytest.raises(ValueError, match=rf"row 3 \(id '{data[3]['id']}'\): the column prompt"):
        train("sft", **{**settings, **alone})
    frozen = [f"freeze_{part}" for part in ("vision_tower", "multi_modal_projector", "language_model")]
    with pytest.raises(ValueError, match="nothing is left to train"):
        train("sft", **settings, **dict.fromkeys(frozen, True))
    assert not (tmp_path / "out" / "settings.json").exists()


def test_a_run_is_its_data_and_its_batch_not_its_loader(tmp_path, sft, digits_world):
    save(load(str(digits_world / "annotated"), split="base"), tmp_path / "data", "train")
    settings = {"model_name_or_path": sft["model_name_or_path"], "dataset_name": str(tmp_path / "data")}
    settings |= {"output_dir": str(tmp_path / "out"), "max_steps": 1, "save_strategy": "no"}
    train("sft", **settings)
    train("sft", **settings, dataloader_num_workers=2, dataloader_pin_memory=False)
    with pytest.raises(ValueError, match="dataloader_drop_last is False there and True here"):
        train("sft", **settings, dataloader_drop_last=True)
    written = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert written["global_batch_size"] == 4
    refuse_other_settings(tmp_path / "out", written)
    with pytest.raises(ValueError, match="global_batch_size is 4 there and 8 here"):
        refuse_other_settings(tmp_path / "out", {**written, "global_batch_size": 8})
    save(load(str(tmp_path / "data")).select(range(41)), tmp_path / "data", "train")
    with pytest.raises(ValueError, match=r": data is .* there and .* here"):
        train("sft", **settings)


def test_a_failed_push_is_repeated(tmp_path, sft, monkeypatch):
    pushed = []

    def push(self, *args, **kwargs):
        pushed.append(self.state.global_step)
        if len(pushed) == 1:
            raise ConnectionError("no network")

    monkeypatch.setattr(ResumableSFTTrainer, "init_hf_repo", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(ResumableSFTTrainer, "_push_from_checkpoint", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(ResumableSFTTrainer, "push_to_hub", push)
    settings = {**sft, "output_dir": str(tmp_path), "max_steps": 1, "save_steps": 1, "push_to_hub": True}
    with pytest.raises(ConnectionError):
        train("sft", **settings)
    assert not (tmp_path / "training.json").exists()
    train("sft", **settings)
    assert set(pushed) == {1} and len(pushed) > 1  # and no step beyond the last one
    assert not moved(tmp_path / "checkpoint-1", tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 1


def test_accelerate_launch_trains_from_yaml(tmp_path, sft):
    settings = {**COMMON, **sft, "output_dir": str(tmp_path / "out"), "max_steps": 1, "save_strategy": "no"}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings))
    config = ["--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, str(ROOT / "recipes" / "sft.py")]
    subprocess.run([*command, "--config", str(tmp_path / "sft.yaml")], check=True, cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 1
