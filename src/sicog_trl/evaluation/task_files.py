"""The files that tell lmms-eval what to ask: its own YAML or ours, included, with the data of this run."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ..files import write_text
from .benchmarks import Task
from .protocols import MAX_CHAIN_TOKENS


OURS = Path(__file__).parent / "tasks"


class _Loader(yaml.SafeLoader):
    """Reads a task as data: a function that it names stays a name."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


def task_yaml(task: Task) -> Path:
    """Return the YAML that `task` includes; lmms-eval is found, not imported."""
    package, _, path = task.benchmark.yaml.partition("/")
    if package == "sicog_trl":
        return OURS / path
    spec = find_spec(package)
    if spec is None:
        raise ImportError("lmms-eval is not installed; `make install` does it, or the extra `eval`")
    return Path(spec.submodule_search_locations[0], "tasks", path)


def task_code(task: Task) -> list[Path]:
    """Return the files beside the YAML of `task` that say what is asked and how it is scored."""
    folder = task_yaml(task).parent
    return [task_yaml(task), *sorted(folder.glob("*.py")), *sorted(folder.glob("_*yaml"))]


def task_settings(path: Path) -> dict[str, Any]:
    """Return what the YAML of a task says, with what it includes below."""
    content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    included = content.pop("include", [])
    below: dict[str, Any] = {}
    for each in [included] if isinstance(included, str) else included:
        below |= task_settings(path.parent / each)
    return below | content


def generation_settings(task: Task) -> dict[str, Any]:
    """Return how `task` lets a model write: the most new tokens (`None` is our default), and never by chance."""
    asked = (task_settings(task_yaml(task)).get("generation_kwargs") or {}).get("max_new_tokens")
    # Tasks of ours ask for their steps themselves, and say how much room they need.
    chain = task.protocol != "direct" and not task.ours
    return {"max_new_tokens": max(asked or 0, MAX_CHAIN_TOKENS) if chain else asked, "do_sample": False}


def data_files(dataset_name: str | None, task: Task) -> list[Path] | None:
    """
    Return the Parquet files with the rows of `task`, or `None` if lmms-eval gets them from the Hub.

    They are those of its split in `<dataset_name>/<benchmark>/data`, or in `<dataset_name>/data` for the tasks of this
    package, which have no place on the Hub.
    """
    if dataset_name is None and not task.ours:
        return None
    folder = Path(dataset_name or "", *([] if task.ours else [task.benchmark.name]), "data")
    files = sorted(folder.glob(f"{task.benchmark.split}-*.parquet"))
    if not files and dataset_name is None:
        raise ValueError(f"`dataset_name` is missing: {task.name} asks rows of your own")
    if not files:
        raise FileNotFoundError(f"{folder} has no file {task.benchmark.split}-*.parquet")
    return [file.resolve() for file in files]


def hub_rows(task: Task) -> dict[str, Any]:
    """Return where lmms-eval finds the rows of `task` on the Hub."""
    settings = task_settings(task_yaml(task))
    place = {"path": settings["dataset_path"], "config": settings.get("dataset_name"), "split": task.benchmark.split}
    return place | {"revision": (settings.get("dataset_kwargs") or {}).get("revision")}


def write_task_files(folder: Path, dataset_name: str | None, tasks: dict[str, Task]) -> None:
    """
    Write one YAML per task that includes the packaged one and names its Parquet files.

    The folder serves `lmms-eval --include_path` as well, should somebody want to repeat a run by hand.
    """
    for name, task in tasks.items():
        content = {"include": str(task_yaml(task)), "task": name}
        if not task.ours:
            # Some tasks ask for a login though their data is public; a tag of theirs would name this copy too.
            content |= {"dataset_kwargs": {}, "tag": []}
        if files := data_files(dataset_name, task):
            names = {task.benchmark.split if not task.ours else "test": [str(file) for file in files]}
            content |= {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": names}}
        write_text(folder / f"{name}.yaml", yaml.safe_dump(content, sort_keys=False))
