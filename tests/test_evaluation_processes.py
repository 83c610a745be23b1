"""One process per task: what a crash costs, what is done again, several processes that share the rows of a task."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sicog_trl.data import save
from sicog_trl.digits import evaluation_pool
from sicog_trl.evaluation import EvaluationConfig, processes, tasks_of
from sicog_trl.evaluation.benchmarks import select_tasks
from sicog_trl.evaluation.processes import next_tasks, run_tasks


ROOT = Path(__file__).parent.parent
# Stands in for the worker: writes what was started, and a result unless the name of the model says what happens.
STAND_IN = """
import json, os, signal, sys
from pathlib import Path

path = Path(sys.argv[1])
job = json.loads(path.read_text())
folder = Path(job["config"]["output_dir"])
with open(folder / "started", "a") as started:
    print(job["model"]["name"], *job["tasks"], file=started)
faults = json.loads((folder / "faults.json").read_text())
if "load" in faults:
    path.with_name("status.json").write_text(json.dumps({"error": "OSError: no weights"}))
    sys.exit(1)
for task in job["tasks"]:
    path.with_name("status.json").write_text(json.dumps({"task": task}))
    fault = faults.get(task)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "raise":
        path.with_name("status.json").write_text(json.dumps({"task": task, "error": "ValueError: a bad row"}))
        sys.exit(1)
    elif fault == "shout":
        path.with_name("status.json").write_text(json.dumps({"task": task, "error": "\\x1b[2J" + 10**5 * "a"}))
        sys.exit(1)
    elif fault == "silence":
        sys.exit(0)
    elif fault == "exit":
        sys.exit(3)
    (folder / job["model"]["name"]).mkdir(exist_ok=True)
    (folder / job["model"]["name"] / f"results_{task}.json").write_text("{}")
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Return a function that runs all digits tasks with faults, and returns failures and what each process ran."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(processes, "WORKER", [sys.executable, str(tmp_path / "stand_in.py")])

    def ask(faults, tasks_per_process=1, missing=None):
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        (tmp_path / "faults.json").write_text(json.dumps(faults))
        (tmp_path / "started").write_text("")
        config = EvaluationConfig(
            models={"base": "x"}, output_dir=str(tmp_path), tasks_per_process=tasks_per_process, dataset_name="d"
        )
        tasks = tasks_of(config)
        conditions = {task: {} for task in missing or tasks}
        failures = run_tasks(config, {"name": "base", "path": "x", "weights": "y"}, tasks, conditions)
        return failures, [line.split()[1:] for line in (tmp_path / "started").read_text().splitlines()]

    return ask


TASKS = list(select_tasks("digits"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "ValueError: a bad row"),
        ("kill", "killed by SIGKILL; too little memory ends like that"),
        ("silence", "ended early, without an error"),
        ("exit", "ended with exit code 3"),
    ],
)
@pytest.mark.parametrize("tasks_per_process", [1, 4])
def test_a_crash_costs_the_task_that_ran(ask, tmp_path, fault, reason, tasks_per_process):
    failures, _ = ask({TASKS[1]: fault}, tasks_per_process)
    ((failed),) = failures
    assert (failed["model"], failed["task"]) == ("base", TASKS[1])
    assert reason in failed["reason"]
    assert {path.stem.removeprefix("results_") for path in (tmp_path / "base").iterdir()} == set(TASKS) - {TASKS[1]}


def test_a_reason_is_short_and_no_command_to_the_terminal(ask):
    ((failed),) = ask({TASKS[1]: "shout"})[0]
    assert failed["reason"].startswith("\\x1b[2Jaaa") and failed["reason"].endswith("more)")
    assert len(failed["reason"]) < 2100


def test_tasks_share_processes_as_they_are_told(ask):
    assert ask({})[1] == [[task] for task in TASKS]
    assert ask({}, 4)[1] == [TASKS[:4], TASKS[4:]]
    # what comes behind the task that crashed goes on in a process of its own
    assert ask({TASKS[1]: "kill"}, 4)[1][:2] == [TASKS[:4], TASKS[2:]]
    assert ask({}, 4, missing=TASKS[2:4])[1] == [TASKS[2:4]]


def test_a_model_that_cannot_be_loaded_is_not_loaded_for_every_task(ask):
    failures, started = ask({"load": True})
    assert [failure["task"] for failure in failures] == TASKS
    assert {failure["reason"] for failure in failures} == {"OSError: no weights"}
    assert len(started) == 1


def test_tasks_of_one_module_do_not_share_a_process():
    tasks = select_tasks("judge_free", ["ocrbench", "mmstar", "ai2d"])
    assert next_tasks(list(tasks), tasks, 9) == ["ocrbench", "mmstar", "ai2d"]
    assert next_tasks(["ocrbench", "ocrbench_step_by_step"], tasks, 9) == ["ocrbench"]


# With the real worker ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(digits_model, tmp_path_factory):
    pytest.importorskip("lmms_eval")
    folder = tmp_path_factory.mktemp("rows")
    for split in ("vqa", "existence"):
        save(evaluation_pool("development", 5, seed=0)[split], folder, split)
    tasks = ["digits_hallucination", "digits_vqa"]
    return {"models": {"base": str(digits_model)}, "dataset_name": str(folder), "tasks": tasks, "num_resamples": 100}


@pytest.fixture(scope="module")
def recipe():
    """The recipe as a module, so that only the processes that it starts are new."""
    spec = importlib.util.spec_from_file_location("recipe_evaluate", ROOT / "recipes" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one_process(settings, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    recipe.main(EvaluationConfig(**settings, output_dir=str(folder), tasks_per_process=2))
    return folder


def test_results_name_the_command_that_was_given(one_process):
    assert json.loads((one_process / "scores.json").read_text())["failures"] == []
    for result in results(one_process):
        assert result["manifest"]["command"] == shlex.join(sys.argv)


def results(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "base").glob("results_*.json"))]


def test_two_processes_give_the_same_answers(one_process, settings, tmp_path):
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump({**settings, "tasks": ["digits_vqa"], "output_dir": str(tmp_path / "out")}))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/multi_cpu.yaml"]
    recipe = ["--main_process_port", "0", "recipes/evaluate.py", "--config", str(path)]
    command = [sys.executable, *launcher, *recipe]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=170)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| digits_vqa | accuracy") == 1
    assert "base: digits_vqa (1 of 1)" in done.stderr  # the progress of the process that asks
    (result,) = results(tmp_path / "out")
    assert (result["manifest"]["processes"], result["scores"]["n"]) == (2, 5)
    name = "base/samples_digits_vqa.jsonl"
    assert (tmp_path / "out" / name).read_text() == (one_process / name).read_text()


def test_a_task_that_fails_ends_the_run_with_an_error_after_the_others(settings, recipe, tmp_path, capsys):
    rows = tmp_path / "rows"
    shutil.copytree(settings["dataset_name"], rows)
    (file,) = (rows / "data").glob("existence-*.parquet")  # of the task that is asked first
    table = pq.read_table(file)
    images = table["images"].to_pylist()
    images[2] = [{"bytes": b"no image", "path": None}]
    column = pa.array(images, table.schema.field("images").type)
    pq.write_table(
        table.set_column(table.schema.get_field_index("images"), table.schema.field("images"), column), file
    )
    config = EvaluationConfig(
        **{**settings, "dataset_name": str(rows)}, output_dir=str(tmp_path / "out"), tasks_per_process=2
    )
    with pytest.raises(SystemExit) as ended:
        recipe.main(config)
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "1 results are missing" in printed and "base, digits_hallucination: " in printed
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [failure["task"] for failure in scores["failures"]] == ["digits_hallucination"]
    assert list(scores["models"]["base"]) == ["digits_vqa"]


def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    command = [
        sys.executable,
        "-c",
        "import time; from sicog_trl.evaluation import worker; worker._end_with_parent(); time.sleep(60)",
    ]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE)
    worker.stdin.close()
    assert worker.wait(timeout=50) == 1
