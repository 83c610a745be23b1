"""The card of a trained model, and the scores in it: what is written, what stays, what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from PIL import Image
from training import train

from sicog_trl.cards import model_card, validate_model_card
from sicog_trl.cards.lineage import hub_base, lineage
from sicog_trl.checkpoints import load_for_generation
from sicog_trl.evaluation.model_card import results_to_card
from sicog_trl.files import write_json


pytest.importorskip("lmms_eval")  # its YAMLs say on which dataset a task was asked; nothing of it is imported

CARD = """---
# written by somebody
license: apache-2.0
base_model: some/base
custom: [1, two]
model-index:
- name: my-model
  results:
  - task:
      type: image-text-to-text
    dataset:
      name: MMStar
      type: Lin-Chen/MMStar
    metrics:
    - type: average
      value: 0.9
      name: another harness
---

# My model

Text with --- and more.
"""


@pytest.fixture
def scores(tmp_path):
    def write(average=0.5):
        models = {
            "trained": {
                "mmstar": {"average": average, "n": 1500},
                "mmstar_step_by_step": {"average": average + 0.1, "n": 1500},
                "mme": {"mme_perception_score": 1500.5, "mme_cognition_score": 300.0, "n": 2374},
                "ai2d": {"exact_match,flexible-extract": 0.75, "n": 3088},
                "digits_vqa": {"accuracy": 0.25, "yes_ratio": 0.5, "n": 100},
            }
        }
        manifest = {"versions": {"lmms-eval": "0.7.3"}}
        path = tmp_path / "scores.json"
        path.write_text(json.dumps({"models": models, "manifest": manifest}))
        return path

    return write


def by_task(readme):
    results = metadata_load(readme)["model-index"][0]["results"]
    return {(m.get("args") or {}).get("task"): (r, m) for r in results for m in r["metrics"]}


def test_a_card_is_begun_and_read_back_by_the_hubs_library(scores, tmp_path):
    readme = tmp_path / "model" / "README.md"
    results_to_card(scores(), "trained", readme)
    found = {(r.metric_type, r.metric_args["protocol"]): r for r in ModelCard.load(readme).data.eval_results}
    assert found["average", "direct"].metric_value == 0.5
    assert found["average", "step_by_step"].metric_value == 0.6
    direct = found["average", "direct"]
    assert (direct.dataset_type, direct.dataset_split, direct.task_type) == (
        *("Lin-Chen/MMStar", "val", "image-text-to-text"),
    )
    assert direct.metric_args == {
        **{"harness": "lmms-eval", "version": "0.7.3", "task": "mmstar", "protocol": "direct"},
        **{"rows": 1500, "full_marks": 1},
    }
    assert "full_marks" not in found["mme_cognition_score", "direct"].metric_args
    assert found["exact_match", "direct"].dataset_type == "lmms-lab-encoder/ai2d"
    assert found["accuracy", "direct"].dataset_type == "digits_vqa"
    assert len(found) == 6


def test_everything_else_in_the_card_stays(scores, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(CARD)
    results_to_card(scores(), "trained", readme)
    metadata = metadata_load(readme)
    assert {key: metadata[key] for key in ("license", "base_model", "custom")} == {
        **{"license": "apache-2.0", "base_model": "some/base", "custom": [1, "two"]},
    }
    assert readme.read_text().endswith("# My model\n\nText with --- and more.\n")
    assert metadata["model-index"][0]["name"] == "my-model"
    result, metric = by_task(readme)[None]
    assert (result["dataset"]["type"], metric) == (
        "Lin-Chen/MMStar",
        {"type": "average", "value": 0.9, "name": "another harness"},
    )
    assert by_task(readme)["mmstar"][1]["value"] == 0.5


def test_written_again_own_results_are_replaced(scores, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(CARD)
    results_to_card(scores(0.5), "trained", readme)
    once = readme.read_text()
    results_to_card(scores(0.5), "trained", readme)
    assert readme.read_text() == once
    results_to_card(scores(0.7), "trained", readme)
    assert by_task(readme)["mmstar"][1]["value"] == 0.7
    assert len(by_task(readme)) == 6
    assert len(ModelCard.load(readme).data.eval_results) == 7


def test_a_model_without_scores_is_refused(scores, tmp_path):
    with pytest.raises(ValueError, match="no scores of 'other'; there are those of trained"):
        results_to_card(scores(), "other", tmp_path / "README.md")
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\n- a list\n---\n", "metadata cannot be read"),
        ("---\na: [\n---\n", "metadata cannot be read"),
        ("---\nmodel-index:\n- name: m\n  results:\n  - metrics: [{type: a}]\n---\n", "incomplete"),
        ("---\nmodel-index:\n  name: m\n  results: []\n---\n", "incomplete"),
        ("---\nmodel-index: [m]\n---\n", "incomplete"),
        ("---\nmodel-index: [{name: m, results: [text]}]\n---\n", "incomplete"),
    ],
)
def test_a_broken_card_is_left_alone(scores, tmp_path, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=message):
        results_to_card(scores(), "trained", readme)
    assert readme.read_text() == text


QUESTION = "Describe the image in detail."
TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"


@pytest.fixture(scope="module")
def models(tmp_path_factory, digits_model, digits_world) -> Path:
    """A folder with a base model that names its own base, a model trained from it, and an adapter for it."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(digits_model, folder / "base_model")
    (folder / "base_model" / "README.md").write_text("---\nbase_model: some/base\n---\n")
    source = {"path": str(digits_world / "annotated"), "split": "base", "weight": 2}
    common = {"model_name_or_path": str(folder / "base_model"), "max_steps": 2, "save_steps": 1, "datasets": [source]}
    train("sft", **common, output_dir=str(folder / "learner"), freeze_vision_tower=True, save_strategy="no")
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
    train("sft", **common, **lora, output_dir=str(folder / "adapter"))
    pairs = {"model_name_or_path": str(folder / "learner"), "dataset_name": str(digits_world / "preference")}
    train("dpo", **pairs, output_dir=str(folder / "preferring"), max_steps=1, save_strategy="no")
    return folder


def quick_start(card: str) -> str:
    return re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]


def answer(model, processor, image: Image.Image) -> str:
    """What the model says, by another way than the one of the card."""
    text = f"<|im_start|>user\n<image>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=512, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(output, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["learner", "adapter"])
def test_the_quick_start_of_a_trained_model_runs_and_prints_the_answer_alone(models, name, monkeypatch, capsys):
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    image.save(models / "image.png")
    monkeypatch.chdir(models)
    exec(compile(quick_start((models / name / "README.md").read_text()), "quick start", "exec"), {})
    printed = capsys.readouterr().out.removesuffix("\n")
    assert printed == answer(*load_for_generation(str(models / name)), image)
    assert printed and QUESTION not in printed


def test_the_card_of_a_trained_model_says_what_it_is_and_validates_offline(models):
    text = (models / "learner" / "README.md").read_text()
    data = validate_model_card(text)
    assert (data.base_model, data["base_model_relation"]) == ("some/base", "finetune")
    assert (data.pipeline_tag, data.library_name, data.license) == ("image-text-to-text", "transformers", None)
    assert {"trl", "sft", "sicog-trl"} <= set(data.tags) and data.datasets is None  # folders are no datasets there
    for said in (
        "supervised fine-tuning",
        "from the model `base_model`",
        "descends from [some/base](https://huggingface.co/some/base)",
        "What was frozen: vision tower.",
        "| learning_rate | 0.01 |",
        "| max_length | none, no row is cut |",
        "| steps | 2 |",
        "| trl | ",
        "This model was not evaluated yet.",
        "## Risks",
        "2503.12303",
    ):
        assert said in text
    assert re.search(r"^\| annotated +\| base +\| - +\| +2 \|$", text, re.MULTILINE)
    assert "text-generation" not in text and "42 rows" in text


def test_the_card_of_an_adapter_is_of_the_library_that_loads_it(models):
    text = (models / "adapter" / "README.md").read_text()
    data = validate_model_card(text)
    # the model that it fits is a folder, so no relation to the ancestor is claimed
    assert (data.library_name, data.base_model, data.get("base_model_relation")) == ("peft", "some/base", None)
    assert "| lora_r | 4 |" in text and "`base_model` that of the model below it" in text


def test_the_card_of_a_second_stage_names_the_first_and_the_base_of_both(models):
    text = (models / "preferring" / "README.md").read_text()
    data = validate_model_card(text)
    assert "dpo" in data.tags and (data.base_model, data["base_model_relation"]) == ("some/base", "finetune")
    assert "from the model `learner` by direct preference optimization" in text and "| beta | 0.1 |" in text
    assert re.search(r"^\| preference +\| train ", text, re.MULTILINE)


def test_no_card_names_a_place_of_this_machine(models, digits_world):
    for name in ("learner", "adapter", "preferring"):
        text = (models / name / "README.md").read_text()
        assert str(models) not in text and str(digits_world) not in text and "/tmp" not in text


def settings(**changes) -> dict:
    return {"model_name_or_path": "some/base", "model_revision": "main", "use_peft": False, **changes}


def test_datasets_are_linked_if_others_can_find_them(tmp_path):
    (tmp_path / "kept_here").mkdir()
    write_json(tmp_path / "published" / "pushed.json", {"repository": "me/rows", "commit": "abc", "tag": "round-2"})
    write_json(tmp_path / "tried" / "pushed.json", {"repository": "me/tried", "commit": None, "tag": None})
    names = ["me/digits@round-1", *(str(tmp_path / name) for name in ("kept_here", "published", "tried"))]
    found = lineage(settings(datasets=[{"path": name, "split": "curated"} for name in names]))["datasets"]
    assert [(one["name"], one["hub_id"], one["revision"]) for one in found] == [
        ("me/digits", "me/digits", "round-1"),
        ("kept_here", None, None),
        ("published", "me/rows", "round-2"),
        ("tried", None, None),
    ]
    record = {"made_from": {**lineage(settings(datasets=[{"path": n} for n in names])), "method": "dpo", "rows": 8}}
    text = model_card(tmp_path / "kept_here", record)
    assert validate_model_card(text).datasets == ["me/digits", "me/rows"] and str(tmp_path) not in text
    assert "[me/rows](https://huggingface.co/datasets/me/rows)" in text
    one = lineage(settings(dataset_name="me/digits@main", dataset_train_split="curated"))["datasets"]
    assert [(each["hub_id"], each["split"], each["revision"]) for each in one] == [("me/digits", "curated", "main")]


def test_the_base_is_followed_to_the_first_model_on_the_hub(tmp_path):
    def folder(name: str, base: str | None) -> str:
        (tmp_path / name).mkdir()
        if base:
            (tmp_path / name / "README.md").write_text(f"---\nbase_model: {base}\n---\n")
        return str(tmp_path / name)

    assert hub_base("some/base") == ("some/base", True)
    first = folder("first", "some/base")
    assert hub_base(folder("second", first)) == hub_base(folder("third", "../first")) == ("some/base", False)
    assert hub_base(folder("alone", None)) == (None, False)
    assert hub_base(folder("gone", str(tmp_path / "nowhere"))) == (None, False)
    folder("a", str(tmp_path / "b")), folder("b", str(tmp_path / "a"))
    assert hub_base(tmp_path / "a") == (None, False)
    adapter = Path(folder("adapter", None))
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": first})
    assert hub_base(adapter) == ("some/base", False)
    write_json(Path(first) / "pushed.json", {"repository": "me/first", "commit": "abc"})
    assert hub_base(first) == ("me/first", True) and hub_base(tmp_path / "second") == ("me/first", False)


def test_what_somebody_wrote_in_the_card_survives_training_and_checkpoints(models, digits_world, tmp_path):
    ours = {"model_name_or_path": str(models / "base_model"), "dataset_name": str(digits_world / "annotated")}
    ours |= {"dataset_train_split": "base", "max_steps": 1, "save_steps": 1, "output_dir": str(tmp_path / "out")}
    (tmp_path / "out").mkdir()
    readme = tmp_path / "out" / "README.md"
    readme.write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: its metadata cannot be read"):
        train("sft", **ours)
    assert not (tmp_path / "out" / "settings.json").exists()  # it is known before anything is trained
    readme.write_text(CARD + "\nBy hand.\n")
    train("sft", **ours, use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    text, data = readme.read_text(), metadata_load(readme)
    assert (data["license"], data["base_model"], data["custom"]) == ("apache-2.0", "some/base", [1, "two"])
    assert data["model-index"][0]["name"] == "my-model" and data["library_name"] == "peft"
    assert text.index("Text with --- and more.\n\nBy hand.\n") < text.index("# out") and "PEFT" not in text
    assert "another harness" in text and "| 0.9 |" in text.replace("   ", " ").replace("  ", " ")
    (tmp_path / "again").mkdir()
    shutil.copy(readme, tmp_path / "again")
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    shutil.copy(tmp_path / "out" / "settings.json", tmp_path / "again")
    again = model_card(tmp_path / "again", record)
    assert again == text.replace("# out", "# again").replace('"out"', '"again"').replace("`out`", "`again`")


def test_scores_stand_in_the_text_too_and_stay_when_the_card_is_written_again(models, scores, tmp_path):
    shutil.copytree(models / "learner", tmp_path / "learner")
    readme = tmp_path / "learner" / "README.md"
    results_to_card(scores(0.5), "trained", readme)
    row = r"^\| MMStar +\| average, asked direct +\| lmms-eval 0.7.3 +\| +1500 \| +{} \|$"
    assert re.search(row.format("0.5"), readme.read_text(), re.MULTILINE)
    assert (
        "not evaluated yet" not in readme.read_text()
        and len(validate_model_card(readme.read_text()).eval_results) == 6
    )
    results_to_card(scores(0.7), "trained", readme)
    text = readme.read_text()
    assert re.search(row.format("0.7"), text, re.MULTILINE) and not re.search(row.format("0.5"), text, re.MULTILINE)
    assert model_card(tmp_path / "learner") == text
    assert text.count("<!-- sicog-trl: scores") == 1


def test_names_and_scores_of_others_are_shown_as_text(tmp_path):
    evil = {"name": "<img src=x> | [x](javascript:1)", "type": "a/b"}
    result = {"task": {"type": "t"}, "dataset": evil, "metrics": [{"type": "m", "value": "<script>"}]}
    card = f"---\n{json.dumps({'model-index': [{'name': 'm', 'results': [result]}]})}\n---\n"
    (tmp_path / "README.md").write_text(card)
    record = {"made_from": {**lineage(settings(model_name_or_path="./](x)`<b>")), "method": "sft", "rows": 1}}
    text = model_card(tmp_path, record).split("\n---\n", 1)[1]
    assert "<img" not in text and "<script>" not in text and "[x](java" not in text and "<b>" not in text


def test_a_broken_index_is_named_before_anything_is_trained(tmp_path):
    (tmp_path / "README.md").write_text("---\nmodel-index: [m]\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: an entry of its model-index is incomplete"):
        model_card(tmp_path)


def test_a_token_gets_into_no_card(tmp_path):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\nUse {TOKEN}.\n")
    with pytest.raises(ValueError, match="looks like an access token") as error:
        model_card(tmp_path)
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: mine", "license 'mine' is none that the Hub knows"),
        ("license: other", "`other` needs license_name and license_link"),
        ("base_model: /home/me/model", "base_model '/home/me/model' can be no repository"),
        ("datasets: [me/rows, /data/x]", "datasets '/data/x' can be no repository"),
        ("base_model_relation: child", "base_model_relation 'child'"),
        ("model-index: [{name: m, results: [{metrics: []}]}]", "cannot be read"),
    ],
)
def test_a_wrong_card_is_named_offline(metadata, message):
    with pytest.raises(ValueError, match=message):
        validate_model_card(f"---\n{metadata}\n---\n")
