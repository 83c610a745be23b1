"""Scores in a model's card: what is written, what stays, what is refused."""

import json

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from sicog_trl.evaluation.model_card import results_to_card


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
