"""The loop: which stages with which arguments, what is skipped, what is refused."""

import fcntl
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from sicog_trl.files import AnotherRunError
from sicog_trl.loop import LoopConfig, StageError, run, stages


ROOT = Path(__file__).parent.parent
SELF_IMPROVE = sorted(
    path for path in ROOT.glob("recipes/**/*.yaml") if "# python recipes/self_improve.py" in path.read_text()
)


def config(tmp_path, **changes) -> LoopConfig:
    section = {"datasets": [{"path": "$curated", "split": "curated"}, {"path": "$run/own", "split": "train"}]}
    arguments = {
        "output_dir": str(tmp_path / "run"),
        "base_model": "$run/base",
        "cognition": {"datasets": [{"path": "$run/own"}], "seed": "$seed", "max_steps": 7},
        "generate": {"dataset_name": "images", "seed": "$seed"},
        "curate": {"similarity": "word_ngram"},
        "pretrain": {**section, "max_steps": 5, "seed": "$seed"},
        "instruct": {"datasets": [{"path": "$run/own"}], "max_steps": 3},
        "evaluate": {"dataset_name": "$run/test"},
        "rounds": 2,
        "keep": [0.3, 0.6],
        "controls": ["annotated_only", "random_candidate", "oracle"],
    }
    return LoopConfig(**{**arguments, **changes})


def by_name(loop: LoopConfig) -> dict:
    return {stage.name: stage for stage in stages(loop)}


def test_every_round_goes_on_from_the_model_of_the_round_before(tmp_path):
    plan = by_name(config(tmp_path))
    folder = tmp_path / "run"
    assert plan["stage1"].config["model_name_or_path"] == str(folder / "base")
    assert plan["sicog/round-1/generate"].config["model_name_or_path"] == str(folder / "stage1")
    assert plan["sicog/round-1/pretrain"].config["model_name_or_path"] == str(folder / "stage1")
    assert plan["sicog/round-1/instruct"].config["model_name_or_path"] == str(folder / "sicog/round-1/pretrain")
    assert plan["sicog/round-2/generate"].config["model_name_or_path"] == str(folder / "sicog/round-1/instruct")
    assert plan["evaluate"].config["models"]["sicog"] == str(folder / "sicog/round-2/instruct")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"pretrain": {"hub_token": "hf_x"}}, "pretrain: hub_token"),
        ({"push": {"env": {"HF_TOKEN": "hf_x"}}}, "push: env.HF_TOKEN"),
        ({"generate": {"sampler_options": [{"api_key": "x"}]}}, "generate: sampler_options.0.api_key"),
        ({"damage": {"note": f"hf_{'a' * 34}"}}, "damage: note"),
        ({"prepare": {"one": {"recipe": "sft.py", "model_init_kwargs": {"token": "x"}}}}, "model_init_kwargs.token"),
    ],
)
def test_a_token_in_a_section_is_refused_because_it_would_be_written_down(tmp_path, changes, key):
    with pytest.raises(ValueError, match=rf"{re.escape(key)} would be written .*hf auth login"):
        config(tmp_path, **changes)
    start = tmp_path / "push.yaml"
    start.write_text(yaml.safe_dump({"hub_token": "hf_x", "image_license": "mit", "text_license": "mit"}))
    with pytest.raises(ValueError, match=r"push\.yaml: hub_token would be written"):
        run(config(tmp_path, push={"config": str(start), "hub_dataset_id": "me/digits"}), ROOT / "recipes")
    assert not (tmp_path / "run").exists()


def test_names_of_tokens_that_open_nothing_are_settings_like_others(tmp_path):
    words = {"eos_token": "<|im_end|>", "max_new_tokens": 5, "use_auth_token": None}
    assert words.items() <= by_name(config(tmp_path, cognition={**words, "max_steps": 1}))["stage1"].config.items()


def test_all_arms_train_for_equal_steps_from_the_same_model(tmp_path):
    plan = stages(config(tmp_path))
    arms = ("sicog", "annotated_only", "random_candidate", "oracle")
    steps = {arm: [s.config["max_steps"] for s in plan if s.arm == arm and s.recipe == "sft.py"] for arm in arms}
    assert steps == {arm: [5, 3, 5, 3] for arm in arms}
    first = {arm: next(s for s in plan if s.arm == arm and s.recipe == "sft.py") for arm in arms}
    assert {stage.config["model_name_or_path"] for stage in first.values()} == {str(tmp_path / "run/stage1")}
    assert {stage.config["seed"] for stage in first.values()} == {1000}


def test_controls_differ_from_the_main_arm_in_the_choice_of_data_alone(tmp_path):
    plan = by_name(config(tmp_path))
    curated = {arm: plan[f"{arm}/round-2/curate"].config for arm in ("sicog", "random_candidate", "oracle")}
    assert {c["dataset_name"] for c in curated.values()} == {str(tmp_path / "run/sicog/round-2/generate")}
    assert {c["keep"] for c in curated.values()} == {0.6}
    assert [c.get("strategy") for c in curated.values()] == [None, "random", "oracle"]
    assert [s["path"] for s in plan["annotated_only/round-1/pretrain"].config["datasets"]] == [f"{tmp_path}/run/own"]
    assert "annotated_only/round-1/generate" not in plan and "oracle/round-1/generate" not in plan


def test_placeholders_keep_the_type_of_the_seed_and_unknown_ones_are_named(tmp_path):
    plan = by_name(config(tmp_path, seed=4))
    assert plan["stage1"].config["seed"] == 4
    assert plan["sicog/round-2/generate"].config["seed"] == 2004
    with pytest.raises(ValueError, match=r"there is no \$runs"):
        stages(config(tmp_path, evaluate={"dataset_name": "$runs/test"}))


def test_a_section_starts_from_its_yaml_and_replaces_what_it_names(tmp_path):
    (tmp_path / "sft.yaml").write_text("max_steps: 9\nlearning_rate: 0.1\nmodel_name_or_path: elsewhere\n")
    loop = config(tmp_path, cognition={"config": str(tmp_path / "sft.yaml"), "max_steps": 2})
    stage = by_name(loop)["stage1"]
    assert stage.config["max_steps"] == 2 and stage.config["learning_rate"] == 0.1
    assert stage.config["model_name_or_path"] == f"{tmp_path}/run/base"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        stages(config(tmp_path, cognition={"config": "nowhere.yaml"}))


def test_candidates_accumulate_from_round_to_round(tmp_path):
    """Paper: 3, 6, 9 candidates per row."""
    plan = by_name(config(tmp_path, rounds=3, keep=None, generate={"reasoning_modes": {"direct_answer": 5}}))
    first, second, third = (plan[f"sicog/round-{n}/generate"].config for n in (1, 2, 3))
    assert "previous" not in first and "description_modes" not in first
    assert second["previous"] == first["output_dir"] and third["previous"] == second["output_dir"]
    assert second["description_modes"] == {"chain_of_description": 4, "detailed_description": 2}
    assert third["description_modes"] == {"chain_of_description": 6, "detailed_description": 3}
    assert (second["reasoning_modes"], third["reasoning_modes"]) == ({"direct_answer": 10}, {"direct_answer": 15})
    fresh = by_name(config(tmp_path, accumulate=False))["sicog/round-2/generate"].config
    assert "previous" not in fresh and "description_modes" not in fresh


def test_the_images_are_decontaminated_once_against_what_the_evaluation_asks(tmp_path):
    evaluate = {"dataset_name": "$run/test", "suite": "sicog", "tasks": ["pope"]}
    generate = {"dataset_name": "images", "dataset_train_split": "part", "seed": "$seed"}
    loop = config(tmp_path, decontaminate={"max_distance": 4}, generate=generate, evaluate=evaluate)
    names = [stage.name for stage in stages(loop)]
    assert names.index("stage1") < names.index("decontaminate") == names.index("sicog/round-1/generate") - 1
    plan = by_name(loop)
    clean = str(tmp_path / "run/decontaminate")
    assert plan["decontaminate"].recipe == "decontaminate.py" and plan["decontaminate"].config == {
        **{"dataset_name": "images", "dataset_split": "part", "max_distance": 4, "output_dir": clean},
        **{"suite": "sicog", "tasks": ["pope"], "evaluation_dataset_name": f"{tmp_path}/run/test"},
    }
    for number in (1, 2):
        generated = plan[f"sicog/round-{number}/generate"].config
        assert (generated["dataset_name"], generated["dataset_train_split"]) == (clean, "part")
    alone = by_name(config(tmp_path, decontaminate={"duplicates": True, "suite": "stic"}))["decontaminate"].config
    assert alone["suite"] == "stic"
    unscored = by_name(config(tmp_path, decontaminate={"duplicates": True}, evaluate={}))["decontaminate"].config
    assert "suite" not in unscored and "decontaminate" not in by_name(config(tmp_path))


APART = {"cognition": {}, "perception": {"max_steps": 7}, "reasoning": {"max_steps": 8}}


def test_two_models_of_stage_1_write_each_for_its_task(tmp_path):
    plan = by_name(config(tmp_path, **APART))
    run = tmp_path / "run"
    assert "stage1" not in plan
    assert plan["perception"].config["model_name_or_path"] == plan["reasoning"].config["model_name_or_path"]
    asked = {name: stage.config for name, stage in plan.items() if stage.recipe == "generate.py"}
    written = {name: (c["model_name_or_path"], c["task"]) for name, c in asked.items()}
    assert written == {
        "sicog/round-1/generate-description": (f"{run}/perception", "description"),
        "sicog/round-1/generate-reasoning": (f"{run}/reasoning", "reasoning"),
        "sicog/round-2/generate-description": (f"{run}/sicog/round-1/instruct", "description"),
        "sicog/round-2/generate-reasoning": (f"{run}/sicog/round-1/instruct", "reasoning"),
    }
    later = asked["sicog/round-2/generate-reasoning"]
    assert later["previous"] == asked["sicog/round-1/generate-reasoning"]["output_dir"]
    for arm in ("sicog", "random_candidate"):
        folders = [f"{run}/sicog/round-2/generate-{task}" for task in ("description", "reasoning")]
        assert plan[f"{arm}/round-2/curate"].config["dataset_name"] == folders
    assert plan["sicog/round-1/pretrain"].config["model_name_or_path"] == f"{run}/base"
    assert list(plan["evaluate"].config["models"])[:3] == ["base", "perception", "reasoning"]


PREFERENCE = {
    "stage1": "preference",
    "damage": {"corruptions": ["gaussian_blur"]},
    "pair": {"dataset_name": "annotated", "dataset_split": "$part"},
    "preference": {"beta": 0.1},
}


def test_one_model_writes_for_both_tasks_whatever_the_yaml_of_generation_is_for(tmp_path):
    (tmp_path / "descriptions.yaml").write_text("task: description\n")
    plan = by_name(config(tmp_path, generate={"config": str(tmp_path / "descriptions.yaml")}))
    assert plan["sicog/round-1/generate"].config["task"] is None
    plan = by_name(config(tmp_path, generate={"task": "reasoning"}))
    assert plan["sicog/round-1/generate"].config["task"] == "reasoning"


def test_stage_1_ends_with_preferences_by_one_line(tmp_path):
    plan = by_name(config(tmp_path, **PREFERENCE))
    run = tmp_path / "run"
    damage, pair, preference = (plan[f"stage1-{name}"] for name in ("damage", "pair", "preference"))
    assert damage.config["model_name_or_path"] == preference.config["model_name_or_path"] == f"{run}/stage1"
    assert pair.config["rejected_dataset_name"] == f"{run}/stage1-damage"
    assert (pair.config["dataset_split"], pair.config["rejected_from"]) == ("cognition", "damaged")
    assert preference.config["dataset_name"] == f"{run}/stage1-pair" and preference.recipe == "dpo.py"
    assert plan["sicog/round-1/generate"].config["model_name_or_path"] == f"{run}/stage1-preference"
    assert list(plan["evaluate"].config["models"])[:3] == ["base", "stage1", "stage1-preference"]
    apart = by_name(config(tmp_path, **PREFERENCE, **APART))
    assert apart["reasoning-pair"].config["dataset_split"] == "reasoning"
    assert apart["perception-damage"].config["task"] == "description"
    assert "stage1-pair" not in by_name(config(tmp_path, **{**PREFERENCE, "stage1": "sft"}))


def test_the_next_model_starts_fresh_or_goes_on(tmp_path):
    """Paper: vision tower, language model and aligned projector; the model of stage 1 only writes."""
    plan = by_name(config(tmp_path, fresh_model="$run/align", **APART))
    for arm in ("sicog", "oracle"):
        for number in (1, 2):
            assert plan[f"{arm}/round-{number}/pretrain"].config["model_name_or_path"] == f"{tmp_path}/run/align"
    assert plan["sicog/round-2/instruct"].config["model_name_or_path"].endswith("sicog/round-2/pretrain")


def test_without_evaluation_the_line_ends_with_the_model(tmp_path):
    assert stages(config(tmp_path, evaluate={}))[-1].recipe == "sft.py"


def test_wrong_settings_are_named(tmp_path):
    for change, message in (
        ({"cognition": {}}, "either `cognition`, or `perception` and `reasoning`"),
        ({"perception": {"max_steps": 1}}, "give one of the two"),
        ({"cognition": {}, "perception": {"max_steps": 1}}, "need both"),
        ({"stage1": "dpo"}, "one of sft, preference"),
        ({"stage1": "preference"}, "needs the section `damage`"),
        ({"min_consistency": [0.5]}, "min_consistency has 1 values for 2 rounds"),
    ):
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **change)
    with pytest.raises(ValueError, match="unknown 'base_only'"):
        config(tmp_path, controls=["base_only"])
    with pytest.raises(ValueError, match="keep has 1 values for 2 rounds"):
        config(tmp_path, keep=[0.5])
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    for change, message in (
        ({"generate": "generate.yaml"}, r"generate is a mapping of arguments.*generate\.yaml"),
        ({"prepare": {"world": None}}, "world is a mapping"),
        ({"keep": 0.5}, "keep is a list with one value per round"),
        ({"generate": {"description_modes": None}}, "description_modes is a mapping from modes to numbers"),
        ({"generate": {"description_modes": {"detailed_description": "3"}}}, "mapping from modes to numbers"),
        ({"generate": {"config": str(tmp_path / "empty.yaml")}}, r"empty\.yaml holds no arguments"),
        ({"generate": {"dataset_name": "costs $5"}}, r"'costs \$5'.*is written \$\$"),
    ):
        with pytest.raises(ValueError, match=message):
            stages(config(tmp_path, **change))


@pytest.mark.parametrize(
    "change",
    [{"prepare": {"stage1": {"recipe": "sft.py"}}}, {"controls": ["oracle", "oracle"]}],
    ids=["prepare", "control"],
)
def test_a_stage_of_the_same_name_does_not_pass_for_done(tmp_path, change):
    with pytest.raises(ValueError, match="two stages are called"):
        stages(config(tmp_path, **change))


@pytest.mark.parametrize("path", ["$curated", "${curated}", "$curated/more"])
def test_the_control_without_self_generated_data_has_none_however_it_is_written(tmp_path, path):
    datasets = [{"path": path, "split": "curated"}, {"path": "own"}]
    plan = by_name(config(tmp_path, pretrain={"datasets": datasets, "max_steps": 2}, controls=["annotated_only"]))
    assert plan["annotated_only/round-1/pretrain"].config["datasets"] == [{"path": "own"}]


@pytest.mark.usefixtures("bf16_everywhere")
@pytest.mark.parametrize("path", SELF_IMPROVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_stage_of_every_loop_yaml_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import self_improve

    self_improve.check(stages(LoopConfig(**yaml.safe_load(path.read_text()))))


RECIPE = """
import json, os, sys, yaml
from pathlib import Path
config = yaml.safe_load(Path(sys.argv[2]).read_text())
folder = Path(config["output_dir"])
with open(Path(__file__).parent / "calls.txt", "a") as calls:
    calls.write(str(folder) + "\\n")
if (Path(__file__).parent / "fail").read_text() and (Path(__file__).parent / "fail").read_text() in str(folder):
    sys.exit(3)
(folder / "summary.json").write_text(json.dumps({"rows_in": 1}))
"""


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("sft.py", "generate.py", "curate.py", "evaluate.py"):
        (folder / name).write_text(RECIPE)
    (folder / "fail").write_text("")
    return folder


def launched(recipes) -> list[str]:
    return (recipes / "calls.txt").read_text().splitlines() if (recipes / "calls.txt").exists() else []


def small(tmp_path, **changes) -> LoopConfig:
    accelerate = str(ROOT / "accelerate_configs" / "cpu.yaml")
    return config(tmp_path, rounds=1, keep=[0.3], controls=[], instruct={}, accelerate_config=accelerate, **changes)


def test_a_failed_stage_stops_the_run_and_a_rerun_does_what_is_missing(tmp_path, recipes):
    (recipes / "fail").write_text("curate")
    with pytest.raises(StageError, match="stage sicog/round-1/curate ended with exit code"):
        run(small(tmp_path), recipes)
    done = launched(recipes)
    assert [Path(folder).name for folder in done] == ["stage1", "generate", "curate"]

    (recipes / "fail").write_text("")
    folder = run(small(tmp_path), recipes)
    assert [Path(each).name for each in launched(recipes)[3:]] == ["curate", "pretrain", "evaluate"]
    record = json.loads((folder / "stages.json").read_text())
    assert [stage["status"] for stage in record] == ["done"] * 5
    assert record[1]["counts"] == {"rows_in": 1}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["finished"] and manifest["versions"]["python"] == sys.version.split()[0]

    run(small(tmp_path), recipes)
    assert len(launched(recipes)) == 6  # nothing was left to do


def test_other_arguments_in_the_same_folder_are_refused_by_name(tmp_path, recipes):
    run(small(tmp_path), recipes)
    before = launched(recipes)
    with pytest.raises(AnotherRunError, match=r"stage1 holds another run: max_steps is 7 there and 8 here"):
        run(small(tmp_path, cognition={"datasets": [{"path": "$run/own"}], "seed": "$seed", "max_steps": 8}), recipes)
    assert launched(recipes) == before


def test_a_stage_that_failed_before_it_made_anything_may_be_corrected(tmp_path, recipes):
    (recipes / "fail").write_text("curate")
    with pytest.raises(StageError, match="curate ended with exit code"):
        run(small(tmp_path, curate={"similarity": "word_nrgam"}), recipes)
    (recipes / "fail").write_text("")
    folder = run(small(tmp_path, curate={"similarity": "word_ngram"}), recipes)
    state = json.loads((folder / "sicog/round-1/curate/stage.json").read_text())
    assert state["status"] == "done" and state["config"]["similarity"] == "word_ngram"
    assert {"commit", "versions", "command"} <= state.keys()


def test_a_stage_that_is_still_running_is_not_started_twice(tmp_path, recipes):
    folder = tmp_path / "run" / "stage1"
    folder.mkdir(parents=True)
    with open(folder / ".running", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="still running in another process"):
            run(small(tmp_path), recipes)
    run(small(tmp_path), recipes)


def test_arms_are_equal_in_steps_or_refused(tmp_path):
    with pytest.raises(ValueError, match="pretrain: give `max_steps`"):
        stages(config(tmp_path, pretrain={"datasets": [{"path": "$curated"}, {"path": "own"}], "num_train_epochs": 1}))
    with pytest.raises(ValueError, match="`annotated_only` needs a source"):
        stages(config(tmp_path, pretrain={"datasets": [{"path": "$curated"}], "max_steps": 5}))
    with pytest.raises(ValueError, match="rounds is at least 1"):
        config(tmp_path, rounds=0, keep=None)
    with pytest.raises(ValueError, match="'world' does not name its `recipe`"):
        config(tmp_path, prepare={"world": {"seed": 1}})
