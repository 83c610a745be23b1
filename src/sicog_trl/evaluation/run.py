"""Scores of models: lmms-eval over our own wrapper, one folder per model, paired comparisons.

Every model of a run answers the same rows under the same conditions. A result is written when its task is finished, so
that a run that was cut off does only what is missing; it names the weights and the conditions that it was made under,
and a folder that holds other work is refused.
"""

import json
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ..files import write_json
from .benchmarks import Task, select_tasks
from .comparison import compare, read_samples
from .conditions import conditions_of, identify, is_finished, manifest
from .processes import alone_in, from_first, run_tasks
from .task_files import write_task_files


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


# What every table, picture and terminal shows as it is; our own files, such as scores.json, have names besides.
_NAME = re.compile(r"(?!.*\.(json|html|md|svg)$)[^\W_][\w .+=@,:()-]{0,99}(?<! )")


@dataclass
class EvaluationConfig:
    """
    What to evaluate on what.

    Args:
        models (`dict[str, str]`):
            Name -> model or adapter folder, or Hub id; given in YAML. The first is the one to start from. With
            `base_url`, names on that server.
        dataset_name (`str`, *optional*):
            Folder with the rows: `<benchmark>/data/<split>-*.parquet` below it, or for the digits an artefact folder
            such as `<digits>/test`. Without it lmms-eval gets them from the Hub.
        output_dir (`str`):
            Gets `scores.json` and one folder per model.
        suite (`str`, *optional*, defaults to `"digits"`):
            Which tasks.
        tasks (`list[str]`, *optional*):
            Only these benchmarks, or tasks; they need not belong to the suite.
        protocols (`list[str]`, *optional*):
            How to ask, `direct` and `step_by_step`, instead of what the suite says.
        reference (`list[str]`, *optional*):
            Names of models that every other one is compared with; by default the first.
        batch_size (`int`, *optional*, defaults to `128`):
            Requests per forward pass, or at once on the server; changes the speed, and the answers only as far as
            rounding does.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        limit (`int`, *optional*):
            Only the first rows of each task, to try things out.
        tasks_per_process (`int`, *optional*, defaults to `1`):
            How many tasks a process asks before it ends. More save loading a small model again; a crash still costs
            one task.
        base_url (`str`, *optional*):
            Address of an OpenAI-compatible server that runs the models. Its key is read from `OPENAI_API_KEY`.
        judge_base_url (`str`, *optional*):
            Address of the OpenAI-compatible server of the judge. Its key is read from `SICOG_JUDGE_API_KEY`. Without
            a judge, benchmarks that need one are replaced by what rules can score.
        judge_model (`str`, *optional*):
            Name of the judge on its server.
        max_judge_failures (`float`, *optional*, defaults to `0.02`):
            A result is refused if the judge left a larger share of its questions without an answer.
        update_model_cards (`bool`, *optional*, defaults to `False`):
            Write the scores into the `README.md` of each model that is a folder here.
        num_resamples (`int`, *optional*, defaults to `10000`):
            Resamples behind each interval.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.
    """

    models: dict[str, str] = field(default_factory=dict, metadata={"help": "Name -> model folder or Hub id."})
    dataset_name: str | None = field(default=None, metadata={"help": "Folder with the rows that the tasks ask."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the scores."})
    suite: str = field(default="digits", metadata={"help": "Which tasks."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Only these benchmarks or tasks."})
    protocols: list[str] | None = field(default=None, metadata={"help": "How to ask: direct, step_by_step."})
    reference: list[str] | None = field(default=None, metadata={"help": "Models that the others are compared with."})
    batch_size: int = field(default=128, metadata={"help": "Requests per forward pass, or at once on the server."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the weights."})
    limit: int | None = field(default=None, metadata={"help": "Only the first rows of each task."})
    tasks_per_process: int = field(default=1, metadata={"help": "How many tasks a process asks before it ends."})
    base_url: str | None = field(default=None, metadata={"help": "Server that runs the models."})
    judge_base_url: str | None = field(default=None, metadata={"help": "Server of the judge."})
    judge_model: str | None = field(default=None, metadata={"help": "Name of the judge on its server."})
    max_judge_failures: float = field(default=0.02, metadata={"help": "Share of questions the judge may not answer."})
    update_model_cards: bool = field(default=False, metadata={"help": "Write the scores into the models' cards."})
    num_resamples: int = field(default=10_000, metadata={"help": "Resamples behind each interval."})
    seed: int = field(default=0, metadata={"help": "Seed of the resampling."})

    def __post_init__(self) -> None:
        for name in ("models", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing: give it in the YAML")
        if unusable := [name for name in self.models if name == "tasks" or not _plain(name)]:
            raise ValueError(
                f"models: {unusable[0]!r} cannot name the folder of its results; choose a plain name, of letters, "
                "digits, spaces and . _ - + = @ , : ( )"
            )
        self.reference = self.reference or list(self.models)[:1]
        if unknown := set(self.reference) - set(self.models):
            raise ValueError(f"reference: {sorted(unknown)[0]!r} is not among the models {list(self.models)}")
        if bool(self.judge_base_url) != bool(self.judge_model):
            raise ValueError("a judge needs both judge_base_url and judge_model")
        for name in ("batch_size", "limit", "tasks_per_process", "num_resamples"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} is {number}; it has to be at least 1")
        if self.update_model_cards and self.limit is not None:
            raise ValueError("update_model_cards: a score of the first rows alone (`limit`) does not belong in a card")
        if not 0 <= self.max_judge_failures <= 1:
            raise ValueError(f"max_judge_failures is {self.max_judge_failures}; it is a share, from 0 to 1")
        tasks_of(self)


def _plain(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def manifests() -> "list[ModelManifest]":
    """Tell lmms-eval about our model wrapper; the entry point of the group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="sicog_trl", chat_class_path="sicog_trl.evaluation.wrapper.VisionLanguageModel")]


def tasks_of(config: EvaluationConfig) -> dict[str, Task]:
    """Return the tasks of a run by name."""
    return select_tasks(config.suite, config.tasks, config.protocols, judge=bool(config.judge_base_url))


def evaluate(config: EvaluationConfig) -> dict[str, Any]:
    """
    Score every model on every task, skip what is there, and compare.

    Args:
        config ([`EvaluationConfig`]):
            What to evaluate on what.

    Returns:
        `dict[str, Any]`: `models` (name -> task -> metric -> value, with `n`), `comparisons` (see
        [`~sicog_trl.evaluation.comparison.compare`], plus the names `before` and `after`), `health` (name -> task ->
        how many answers were empty, cut off, without a final answer or without a score, what the judge was asked, and
        the mean length), `failures` (`model`, `task` and `reason` of each result that is missing) and `manifest`;
        also written to `scores.json`.
    """
    started = time.time()
    # The processes that ask get the accelerators; these here only wait for them.
    state = PartialState(cpu=True)
    if config.base_url and state.num_processes > 1:
        raise ValueError(
            f"base_url: one process asks a server, and {state.num_processes} were launched; start the recipe with "
            "python, or with accelerate launch --num_processes 1. batch_size says how many requests are under way"
        )
    tasks, output_dir = tasks_of(config), Path(config.output_dir)
    with alone_in(output_dir / "tasks") if state.is_main_process else nullcontext():
        plan = from_first(_plan(config, tasks) if state.is_main_process else None)
        failures = []
        for model, missing in plan:
            failures += run_tasks(config, model, tasks, missing)
        scores = None
        if state.is_main_process:
            scores = collect(output_dir, config, tasks, failures)
            weights = {model["name"]: model["weights"] for model, _ in plan}
            spent = round(time.time() - started, 1)
            scores["manifest"] = {**manifest(), "seconds": spent, "weights": weights, "settings": vars(config)}
            write_json(output_dir / "scores.json", scores, allow_nan=False, default=str)
    return from_first(scores)


def _plan(config: EvaluationConfig, tasks: dict[str, Task]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Return each model with the conditions of its missing tasks; whatever can be refused is refused here."""
    output_dir = Path(config.output_dir)
    conditions = {name: conditions_of(config, task) for name, task in tasks.items()}
    plan = []
    for name, path in config.models.items():
        model = {"name": name, "path": path, "weights": _weights(config, name, list(tasks))}
        done = [task for task in tasks if is_finished(output_dir / name, task, model["weights"], conditions[task])]
        plan.append((model, {task: conditions[task] for task in tasks if task not in done}))
    if config.judge_base_url and any(conditions[task]["judge"] for _, missing in plan for task in missing):
        from .judge import check_judge

        check_judge(config.judge_base_url, config.judge_model)
    write_task_files(output_dir / "tasks", config.dataset_name, tasks)
    return plan


def _weights(config: EvaluationConfig, name: str, tasks: list[str]) -> str:
    """Return what tells a model from others; one that its server has no more is known by its results."""
    try:
        return identify(config, config.models[name])
    except ValueError:
        files = [Path(config.output_dir, name, f"results_{task}.json") for task in tasks]
        if config.base_url is None or not all(file.is_file() for file in files):
            raise
        found = [json.loads(file.read_text(encoding="utf-8"))["model"] for file in files]
        if any(model != found[0] for model in found) or found[0]["path"] != config.models[name]:
            raise
        return found[0]["weights"]


def collect(
    output_dir: Path, config: EvaluationConfig, tasks: dict[str, Task], failures: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    """
    Read every result of a run and compare the models with each reference.

    Args:
        output_dir (`Path`):
            Folder of the run.
        config ([`EvaluationConfig`]):
            Of the run.
        tasks (`dict[str, Task]`):
            Its tasks by name.
        failures (`list[dict[str, str]]`, *optional*):
            `model`, `task` and `reason` of each result that is known to be missing.

    Returns:
        `dict[str, Any]`: `models`, `comparisons`, `health` and `failures`. A result that is missing without a reason,
        or lacks samples, is an error, never a gap in the table.
    """
    known = {(failure["model"], failure["task"]) for failure in failures or []}
    models: dict[str, Any] = {name: {} for name in config.models}
    health: dict[str, Any] = {name: {} for name in config.models}
    for name, task in ((name, task) for name in models for task in tasks if (name, task) not in known):
        path = output_dir / name / f"results_{task}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {name} has no result on {task}")
        result = json.loads(path.read_text(encoding="utf-8"))
        samples = len(read_samples(output_dir / name, task))
        if samples != result["scores"]["n"]:
            raise ValueError(f"{path} counts {result['scores']['n']} rows, but {samples} samples lie beside it")
        models[name][task], health[name][task] = result["scores"], result["health"]
    comparisons = []
    pairs = [(before, after) for before in config.reference for after in config.models if after != before]
    for number, (before, after) in enumerate(pairs):
        if (after, before) in pairs[:number]:
            continue
        both = {name: task.benchmark.headline for name, task in tasks.items()}
        both = {name: metrics for name, metrics in both.items() if name in models[before] and name in models[after]}
        entries = compare(output_dir / before, output_dir / after, both, config.num_resamples, config.seed)
        comparisons += [{"before": before, "after": after, **entry} for entry in entries]
    return {"models": models, "comparisons": comparisons, "health": health, "failures": failures or []}
