"""What a checkpoint is scored on: the tasks as data, and the files that tell lmms-eval where their rows are."""

from dataclasses import dataclass
from pathlib import Path

import yaml


FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """
    One lmms-eval task of this package.

    Args:
        file (`str`):
            Its YAML, below this folder.
        split (`str`):
            Split of the evaluation dataset that it asks.
        metrics (`tuple[str, ...]`):
            Metrics that two checkpoints are compared on, the headline first; all lie between 0 and 1.
    """

    file: str
    split: str
    metrics: tuple[str, ...]


_OBJECTS = ("object_accuracy", "object_precision")  # found of those there, right of those named

TASKS: dict[str, Task] = {
    "digits_caption": Task("digits/digits_caption.yaml", "description", _OBJECTS),
    "digits_caption_step_by_step": Task("digits/digits_caption_step_by_step.yaml", "description", _OBJECTS),
    "digits_hallucination": Task("digits/digits_hallucination.yaml", "existence", ("accuracy",)),
    "digits_vqa": Task("digits/digits_vqa.yaml", "vqa", ("accuracy",)),
    "digits_reasoning_direct": Task("digits/digits_reasoning_direct.yaml", "reasoning", ("accuracy",)),
    "digits_reasoning_step_by_step": Task("digits/digits_reasoning_step_by_step.yaml", "reasoning", ("accuracy",)),
}

SUITES: dict[str, tuple[str, ...]] = {"digits": tuple(name for name in TASKS if name.startswith("digits_"))}


def select_tasks(suite: str, names: list[str] | None = None) -> dict[str, Task]:
    """Return the tasks of `suite`, or those of `names` alone."""
    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}; choose one of {', '.join(SUITES)}")
    if unknown := set(names or []) - set(TASKS):
        raise ValueError(f"unknown task {sorted(unknown)[0]!r}; choose from {', '.join(TASKS)}")
    return {name: TASKS[name] for name in names or SUITES[suite]}


def data_files(dataset_name: str, task: Task) -> list[Path]:
    """Return the Parquet files that hold the rows of `task` in an artefact folder."""
    files = sorted(Path(dataset_name, "data").glob(f"{task.split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{Path(dataset_name, 'data')} has no file {task.split}-*.parquet")
    return [file.resolve() for file in files]


def write_task_files(folder: Path, dataset_name: str, tasks: dict[str, Task]) -> None:
    """
    Write one YAML per task that includes the packaged one and names its Parquet files.

    The folder serves `lmms-eval --include_path` as well, should somebody want to repeat a run by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in tasks.items():
        content = {
            "include": str(FOLDER / task.file),
            "task": name,
            "dataset_kwargs": {"data_files": {"test": [str(file) for file in data_files(dataset_name, task)]}},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
