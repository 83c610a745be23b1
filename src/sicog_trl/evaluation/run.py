"""Scores of checkpoints: lmms-eval over our own wrapper, one folder per checkpoint, paired comparisons.

Every checkpoint of a run answers the same rows under the same conditions, in one process that imports lmms-eval once.
A result is written when its task is finished, so that a run that was cut off does only what is missing; it names the
weights and the conditions that it was made under, and a folder that holds other work is refused.
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from ..checkpoints import model_fingerprint
from ..data import num_rows
from ..files import write_json
from ..provenance import hardware, hash_files, made_by, versions
from .benchmarks import Task, select_tasks
from .comparison import compare, read_samples
from .task_files import data_files, task_code, write_task_files


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

_PACKAGE = Path(__file__).parents[1]
# What a score depends on besides the weights and the rows.
_PACKAGES = ("torch", "transformers", "lmms-eval")
_CODE = (
    *("evaluation/harness.py", "evaluation/wrapper.py", "checkpoints.py"),
    *("prompts.py", "responses.py", "digits/texts.py"),
)


@dataclass
class EvaluationConfig:
    """
    What to evaluate on what.

    Args:
        models (`dict[str, str]`):
            Name -> model or adapter folder, or Hub id; given in YAML. The first is the one to start from.
        dataset_name (`str`):
            Artefact folder with the splits that the tasks ask, such as `<digits>/test`.
        output_dir (`str`):
            Gets `scores.json` and one folder per checkpoint.
        suite (`str`, *optional*, defaults to `"digits"`):
            Which tasks.
        tasks (`list[str]`, *optional*):
            Only these tasks of the package.
        reference (`list[str]`, *optional*):
            Names of models that every other one is compared with; by default the first.
        batch_size (`int`, *optional*, defaults to `128`):
            Requests per forward pass; changes the speed, not the answers.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        limit (`int`, *optional*):
            Only the first rows of each task, to try things out.
        num_resamples (`int`, *optional*, defaults to `10000`):
            Resamples behind each interval.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.
    """

    models: dict[str, str] = field(default_factory=dict, metadata={"help": "Name -> model folder or Hub id."})
    dataset_name: str | None = field(default=None, metadata={"help": "Artefact folder that the tasks ask."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the scores."})
    suite: str = field(default="digits", metadata={"help": "Which tasks."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Only these tasks."})
    reference: list[str] | None = field(default=None, metadata={"help": "Models that the others are compared with."})
    batch_size: int = field(default=128, metadata={"help": "Requests per forward pass."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the weights."})
    limit: int | None = field(default=None, metadata={"help": "Only the first rows of each task."})
    num_resamples: int = field(default=10_000, metadata={"help": "Resamples behind each interval."})
    seed: int = field(default=0, metadata={"help": "Seed of the resampling."})

    def __post_init__(self) -> None:
        for name in ("models", "dataset_name", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing: give it in the YAML")
        if unusable := [name for name in self.models if name in ("", "tasks") or Path(name).name != name]:
            raise ValueError(f"models: {unusable[0]!r} cannot name the folder of its results; choose a plain name")
        self.reference = self.reference or list(self.models)[:1]
        if unknown := set(self.reference) - set(self.models):
            raise ValueError(f"reference: {sorted(unknown)[0]!r} is not among the models {list(self.models)}")
        select_tasks(self.suite, self.tasks)


def manifests() -> "list[ModelManifest]":
    """Tell lmms-eval about our model wrapper; the entry point of the group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="sicog_trl", chat_class_path="sicog_trl.evaluation.wrapper.VisionLanguageModel")]


def evaluate(config: EvaluationConfig) -> dict[str, Any]:
    """
    Score every checkpoint on every task, skip what is there, and compare.

    Args:
        config ([`EvaluationConfig`]):
            What to evaluate on what.

    Returns:
        `dict[str, Any]`: `models` (name -> task -> metric -> value, with `n`), `comparisons` (see
        [`~sicog_trl.evaluation.comparison.compare`], plus the names `before` and `after`), `health` (name -> task ->
        how many answers were empty or cut off, and their mean length) and `manifest`; also written to `scores.json`.
    """
    started = time.time()
    tasks = select_tasks(config.suite, config.tasks)
    output_dir = Path(config.output_dir)
    conditions = {name: conditions_of(config, task) for name, task in tasks.items()}
    weights = {name: model_fingerprint(path) for name, path in config.models.items()}
    # Unless it is told, Accelerate does not join several processes without a GPU.
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process:
        write_task_files(output_dir / "tasks", config.dataset_name, tasks)
    state.wait_for_everyone()
    for name, path in config.models.items():
        missing = [t for t in tasks if not is_finished(output_dir / name, t, weights[name], conditions[t])]
        header = {"name": name, "path": path, "weights": weights[name]}
        _run_tasks(header, {task: conditions[task] for task in missing}, config)
    state.wait_for_everyone()
    scores = collect(output_dir, config, tasks)
    scores["manifest"] = {**manifest(), "seconds": round(time.time() - started, 1), "weights": weights}
    if state.is_main_process:
        write_json(output_dir / "scores.json", scores, allow_nan=False, default=str)
    return scores


def _run_tasks(model: dict[str, str], conditions: dict[str, dict[str, Any]], config: EvaluationConfig) -> None:
    """Ask one checkpoint its missing tasks; it leaves the memory before the next one is loaded."""
    if not conditions:
        return
    try:
        from . import harness
    except ImportError as error:
        raise ImportError(
            f"lmms-eval cannot be imported ({error}); `make install` installs it, or the extra `eval` on a machine "
            "with a GPU"
        ) from error
    wrapper = harness.load_model(model["path"], config.dtype, config.batch_size)
    for number, task in enumerate(conditions, 1):
        wrapper.description = f"{model['name']}: {task} ({number} of {len(conditions)})"
        header = {"model": model, "conditions": conditions[task]}
        harness.run_task(wrapper, task, Path(config.output_dir), header, config.limit)


def conditions_of(config: EvaluationConfig, task: Task) -> dict[str, Any]:
    """Return what a score on `task` depends on besides the checkpoint; two scores compare only if it is equal."""
    installed, rows = versions(), num_rows(config.dataset_name, task.benchmark.split)
    return {
        "rows": hash_files(data_files(config.dataset_name, task)),
        "num_rows": rows if config.limit is None else min(rows, config.limit),
        "code": hash_files([*task_code(task), *(_PACKAGE / name for name in _CODE)]),
        "dtype": config.dtype,
        "device": "cuda" if hardware()["gpus"] else "cpu",
        "versions": {package: installed.get(package) for package in _PACKAGES},
    }


def is_finished(folder: Path, task: str, weights: str, conditions: dict[str, Any]) -> bool:
    """Return whether `folder` holds the result of `task` by this checkpoint; refuse a folder with another's."""
    path = folder / f"results_{task}.json"
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    pairs = {"weights": (found["model"]["weights"], weights)}
    pairs |= {name: (found["conditions"].get(name), value) for name, value in conditions.items()}
    for name, (there, here) in pairs.items():
        if there != here:
            raise FileExistsError(
                f"{path} is the result of another run: its {name} is {there!r}, here it is {here!r}. Delete {folder} "
                "to evaluate again, or choose another output_dir"
            )
    return True


def collect(output_dir: Path, config: EvaluationConfig, tasks: dict[str, Task]) -> dict[str, Any]:
    """
    Read every result of a run and compare the models with each reference.

    Returns:
        `dict[str, Any]`: `models`, `comparisons` and `health`. A result that is missing or lacks samples is an error,
        never a gap in the table.
    """
    models: dict[str, Any] = {}
    health: dict[str, Any] = {}
    for name in config.models:
        for task in tasks:
            path = output_dir / name / f"results_{task}.json"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {name} has no result on {task}")
            result = json.loads(path.read_text(encoding="utf-8"))
            samples = len(read_samples(output_dir / name, task))
            if samples != result["scores"]["n"]:
                raise ValueError(f"{path} counts {result['scores']['n']} rows, but {samples} samples lie beside it")
            models.setdefault(name, {})[task] = result["scores"]
            health.setdefault(name, {})[task] = result["health"]
    comparisons = []
    pairs = [(before, after) for before in config.reference for after in config.models if after != before]
    for number, (before, after) in enumerate(pairs):
        if (after, before) in pairs[:number]:
            continue
        metrics = {name: task.benchmark.headline for name, task in tasks.items()}
        entries = compare(output_dir / before, output_dir / after, metrics, config.num_resamples, config.seed)
        comparisons += [{"before": before, "after": after, **entry} for entry in entries]
    return {"models": models, "comparisons": comparisons, "health": health}


def manifest() -> dict[str, Any]:
    """Return what a result should name: command, versions, commit, hardware, time."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"command": shlex.join(sys.argv), "date": when, **made_by()}
