"""The loop publishes its rounds: what is pushed as what, tried first and pushed later, pulled by the real clients."""

import importlib.util
import json
import re
import sys
import traceback
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import yaml
from datasets import load_dataset
from hub_server import TOKEN
from test_loop import APART, PREFERENCE, SELF_IMPROVE, by_name, config
from test_sicog_recipes import Writer
from trl import TrlParser

from sicog_trl.data import load, save
from sicog_trl.files import write_json
from sicog_trl.loop import LoopConfig, StageError, run, stages
from sicog_trl.report import write_report


ROOT = Path(__file__).parent.parent
REPO = "me/digits"
PUSH = {"hub_dataset_id": REPO, "image_license": "cc-by-4.0", "text_license": "apache-2.0"}


def test_a_round_of_the_main_arm_is_published_after_its_curation_and_no_control_ever(tmp_path):
    loop = config(tmp_path, push=PUSH, decontaminate={"duplicates": True})
    names = [stage.name for stage in stages(loop) if stage.recipe in ("curate.py", "push.py", "sft.py")]
    assert names.index("sicog/round-1/push") == names.index("sicog/round-1/curate") + 1
    assert [name for name in names if "push" in name] == ["sicog/round-1/push", "sicog/round-2/push"]
    run = tmp_path / "run"
    assert by_name(loop)["sicog/round-2/push"].config == {
        **PUSH,
        "artefacts": [
            {"path": f"{run}/sicog/round-2/curate"},
            {"path": f"{run}/sicog/round-2/generate", "split": "candidates"},
        ],
        "made_by": [f"{run}/decontaminate"],
        "tag": "round-2",
        "output_dir": f"{run}/sicog/round-2/push",
    }
    assert not [name for name in by_name(config(tmp_path)) if "push" in name]


def test_what_two_models_and_stage_1_have_made_is_named_apart(tmp_path):
    def published(**changes) -> dict[str, str]:
        made = by_name(config(tmp_path, push=PUSH, **changes))["sicog/round-1/push"].config["artefacts"]
        return {one.get("config") or one.get("split"): one["path"].removeprefix(f"{tmp_path}/run/") for one in made}

    assert published(**PREFERENCE)["preference"] == "stage1-pair"
    assert published(**APART, **PREFERENCE) == {
        None: "sicog/round-1/curate",
        "candidates_description": "sicog/round-1/generate-description",
        "candidates_reasoning": "sicog/round-1/generate-reasoning",
        "preference_description": "perception-pair",
        "preference_reasoning": "reasoning-pair",
    }


def test_what_is_published_may_be_named_and_rounds_do_not_share_a_tag(tmp_path):
    named = {**PUSH, "artefacts": [{"path": "$curated", "split": "curated"}], "tag": "seed-$seed-round-$round"}
    pushed = by_name(config(tmp_path, push=named, seed=3))["sicog/round-2/push"].config
    assert pushed["artefacts"] == [{"path": f"{tmp_path}/run/sicog/round-2/curate", "split": "curated"}]
    assert pushed["made_by"] == [f"{tmp_path}/run/sicog/round-2/generate"] and pushed["tag"] == "seed-2003-round-2"
    with pytest.raises(ValueError, match=r"two rounds have the tag 'mine'.*\$round"):
        stages(config(tmp_path, push={**PUSH, "tag": "mine"}))
    apart = {**PUSH, "tag": "mine", "hub_dataset_id": "me/digits-$round"}
    assert by_name(config(tmp_path, push=apart))["sicog/round-2/push"].config["hub_dataset_id"] == "me/digits-2"


def test_licences_are_asked_for_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import self_improve

    plan = [stage for stage in stages(config(tmp_path, push={"hub_dataset_id": REPO})) if stage.recipe == "push.py"]
    with pytest.raises(SystemExit, match=r"stage sicog/round-1/push \(push.py\): image_license is None"):
        self_improve.check(plan)


class Processes:
    """
    Runs stages in this process, where the Hub is the stand-in: training and evaluation leave a note, everything else
    is the real recipe; texts come from [`Writer`], who says something else each round.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch, self.ran, self.errors = monkeypatch, [], []
        monkeypatch.setattr(sys.modules["sicog_trl.loop.run"], "subprocess", SimpleNamespace(run=self))

    def __call__(self, command: list[str], pass_fds: list[int]) -> CompletedProcess:
        recipe, given = Path(command[-3]), yaml.safe_load(Path(command[-1]).read_text())
        self.ran.append(given["output_dir"].split("/run/")[1])
        if recipe.name in ("sft.py", "evaluate.py"):
            write_json(Path(given["output_dir"], "training.json"), {"steps": 1})
            return CompletedProcess(command, 0)
        try:
            self._run(recipe, given)
        except (Exception, SystemExit) as error:  # as of a process: it is printed, and the exit code says it
            traceback.print_exc()
            self.errors.append(error)
            return CompletedProcess(command, 1)
        return CompletedProcess(command, 0)

    def _run(self, recipe: Path, given: dict) -> None:
        spec = importlib.util.spec_from_file_location(f"pushed_{recipe.stem}", recipe)
        module = importlib.util.module_from_spec(spec)
        self.monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        if recipe.name == "generate.py":
            writer = Writer(damaged="round-2" in given["output_dir"])
            self.monkeypatch.setattr(module, "load_sampler", lambda *args, **options: writer)
        module.main(*TrlParser(module.ARGUMENTS).parse_dict(given))


@pytest.mark.usefixtures("bf16_everywhere")
@pytest.mark.parametrize("path", SELF_IMPROVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_section_that_a_yaml_offers_as_a_comment_is_right(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import self_improve

    offered = re.search(r"^# push:(.*\n)(#   .*\n)+", path.read_text(), re.MULTILINE)[0]
    section = yaml.safe_load(re.sub(r"^# ", "", offered, flags=re.MULTILINE))
    plan = stages(LoopConfig(**yaml.safe_load(path.read_text()), **section))
    pushed = [stage for stage in plan if stage.recipe == "push.py"]
    assert pushed and all(stage.config["dry_run"] for stage in pushed)
    self_improve.check(pushed)


@pytest.fixture
def processes(monkeypatch) -> Processes:
    return Processes(monkeypatch)


@pytest.fixture
def loop(tmp_path, digits_world, digits_model) -> dict:
    """Two rounds on a few scenes, one of which the test asks about."""
    asked = load(str(digits_world / "test"), split="description")
    pool = load(str(digits_world / "unlabelled"))
    rows = [pool[number] for number in range(6)] + [{**pool[0], "id": "copied", "images": asked[0]["images"]}]
    save(pool.from_list(rows, features=pool.features), tmp_path / "pool", "train")
    near = {"texts": False, "max_distance": 4, "max_fine_distance": 40, "tasks": ["digits_caption"]}
    return {
        "output_dir": str(tmp_path / "run"),
        "base_model": "base",
        "cognition": {"datasets": [{"path": "own"}]},
        "decontaminate": near,
        "generate": {
            "dataset_name": str(tmp_path / "pool"),
            "model_name_or_path": str(digits_model),
            "dtype": "float32",
            "seed": "$seed",
        },
        "curate": {"similarity": "word_ngram"},
        "push": {**PUSH, "language": ["en"]},
        "pretrain": {"datasets": [{"path": "$curated", "split": "curated"}]},
        "evaluate": {"dataset_name": str(digits_world / "test"), "suite": "digits"},
        "accumulate": False,
        "rounds": 2,
    }


def pulled(revision: str | None) -> dict[str, str]:
    """Return ids and texts as `datasets` gets them from the Hub."""
    rows = load_dataset(REPO, "curated", split="curated", revision=revision)
    return {row["id"]: row["completion"][0]["content"] for row in rows}


def test_two_rounds_become_two_tags_of_one_repository(hub, loop, processes, tmp_path):
    folder = run(LoopConfig(**loop), ROOT / "recipes")
    assert not processes.errors and processes.ran.index("sicog/round-1/push") < processes.ran.index(
        "sicog/round-1/pretrain"
    )
    repo = hub.dataset(REPO)
    assert list(repo.tags) == ["round-1", "round-2"] and list(repo.messages.values())[1:] == [
        "Push round-1",
        "Push round-2",
    ]
    assert [path for path in sorted(hub.files(REPO)) if path.endswith("parquet")] == [
        "data/candidates-00000-of-00001.parquet",
        "data/curated-00000-of-00001.parquet",
    ]
    first, second = pulled("round-1"), pulled("round-2")
    assert len(first) == len(second) == 6 and "copied" not in first and pulled(None) == second
    assert all("A red three" in text for text in first.values())
    assert all("A blue nine" in text for text in second.values())
    assert set(load(f"{REPO}@round-1", split="candidates")["id"]) == set(first)  # as recipes name it
    card = hub.files(REPO, "round-2")["README.md"].decode()
    assert "contaminated | 1" in card and 'revision="round-2"' in card and str(tmp_path) not in card

    report = write_report(folder).with_suffix(".md").read_text()
    for tag, commit in repo.tags.items():
        assert f"| {REPO} | {tag} | {commit} | its owners |" in report
    assert report.count("[pair-1-1-1-1]") == report.count("[pair-1-1-2-1]") == 2  # both pictures
    assert (folder / "decontaminate/decontamination.html").exists()
    assert "7 rows came in and 6 were kept; dropped: 1 contaminated." in report
    assert "- copied, contaminated: image of digits\\_caption, row 0" in report.replace("digits_", "digits\\_")


def test_a_dry_run_is_pushed_later_without_the_rest_of_the_line(hub, loop, processes, tmp_path):
    tried = {**loop, "push": {**loop["push"], "hub_dataset_id": "me/typo", "dry_run": True}}
    folder = run(LoopConfig(**tried), ROOT / "recipes")
    assert not hub.repos and not processes.errors and len(processes.ran) == 11
    assert load(str(folder / "sicog/round-1/push"), split="candidates").num_rows == 6
    assert "| me/typo | – | not pushed: a dry run |" in write_report(folder).with_suffix(".md").read_text()

    del processes.ran[:]
    run(LoopConfig(**loop), ROOT / "recipes")
    assert processes.ran == ["sicog/round-1/push", "sicog/round-2/push"]
    assert list(hub.dataset(REPO).tags) == ["round-1", "round-2"] and list(hub.repos) == [("datasets", REPO)]
    run(LoopConfig(**loop), ROOT / "recipes")
    assert len(processes.ran) == 2  # what is pushed is done


@pytest.mark.parametrize("token", [None, "hf_" + "x" * 34])
def test_a_token_that_is_of_no_use_is_told_before_the_line_starts(hub, loop, processes, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(StageError, match=r"nothing was started: .*hf auth login.* or set `dry_run: true`"):
        run(LoopConfig(**loop), ROOT / "recipes")
    assert not processes.ran and not Path(loop["output_dir"]).exists()


def test_a_hub_that_is_away_at_the_start_is_no_reason_to_wait(hub, loop, processes, capsys):
    hub.fault = lambda method, path: "500"
    with pytest.raises(StageError, match="stage sicog/round-1/push ended with exit code 1"):
        run(LoopConfig(**loop), ROOT / "recipes")
    assert processes.ran[-1] == "sicog/round-1/push"
    assert "warning: the section `push`: the Hub is out of order (500)" in capsys.readouterr().out


def test_without_a_network_the_line_stops_and_goes_on_where_it_was(hub, loop, processes, tmp_path):
    hub.fault = lambda method, path: "500" if method == "PUT" else None
    with pytest.raises(
        StageError, match=r"stage sicog/round-1/push ended with exit code 1.*same command again.*without .*`push`"
    ):
        run(LoopConfig(**loop), ROOT / "recipes")
    assert processes.ran[-1] == "sicog/round-1/push" and "Error while uploading" in str(processes.errors[0])
    before = len(processes.ran)
    run(LoopConfig(**{name: section for name, section in loop.items() if name != "push"}), ROOT / "recipes")
    assert processes.ran[before] == "sicog/round-1/pretrain" and processes.ran[-1] == "evaluate"
    before, hub.fault = len(processes.ran), lambda method, path: None
    run(LoopConfig(**loop), ROOT / "recipes")
    assert processes.ran[before:] == ["sicog/round-1/push", "sicog/round-2/push"] and list(hub.dataset(REPO).tags) == [
        "round-1",
        "round-2",
    ]
    assert TOKEN not in json.dumps([path.read_text() for path in (tmp_path / "run").rglob("*.json")])
