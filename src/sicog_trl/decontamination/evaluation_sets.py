"""The rows that a suite asks, from where the evaluation takes them; lmms-eval's files are read, nothing of it runs."""

from dataclasses import dataclass

from datasets import Dataset, concatenate_datasets, load_dataset

from ..evaluation.benchmarks import Task, select_tasks
from ..evaluation.task_files import data_files, hub_rows


@dataclass
class Benchmark:
    """
    The rows of a benchmark.

    Args:
        name (`str`):
            As in `benchmarks.yaml`.
        rows (`datasets.Dataset`):
            In the columns of its publisher; a row is known by its number, as lmms-eval counts them (`doc_id`).
        origin (`str`):
            Where they are from, for the record.
    """

    name: str
    rows: Dataset
    origin: str


def benchmark_rows(suite: str, tasks: list[str] | None = None, dataset_name: str | None = None) -> list[Benchmark]:
    """
    Load the rows of the benchmarks of a suite.

    Args:
        suite (`str`):
            Name of a suite of `recipes/evaluate.py`.
        tasks (`list[str]`, *optional*):
            Only these benchmarks or tasks.
        dataset_name (`str`, *optional*):
            Folder with `<benchmark>/data/<split>-*.parquet`, as for `recipes/evaluate.py`; from the Hub without.

    Returns:
        `list[Benchmark]`: each benchmark once, however it is asked.
    """
    chosen = {task.benchmark.name: task for task in select_tasks(suite, tasks).values()}
    return [_load(name, task, dataset_name) for name, task in chosen.items()]


def _load(name: str, task: Task, dataset_name: str | None) -> Benchmark:
    if task.ours and dataset_name is None:
        raise ValueError(f"`evaluation_dataset_name` is missing: {name} asks rows of your own")
    try:
        files = data_files(dataset_name, task)
        if files is None:
            place = hub_rows(task)
            rows = load_dataset(place["path"], place["config"], split=place["split"], revision=place["revision"])
            origin = f"{place['path']} {place['config'] or ''} {place['split']} {place['revision'] or ''}"
            return Benchmark(name, rows, " ".join(origin.split()))
        parts = [load_dataset("parquet", data_files={"rows": str(file)}, split="rows") for file in files]
    except OSError as error:  # no connection, no such dataset, no such file
        raise FileNotFoundError(
            f"the rows of {name} cannot be loaded: {error}. Run this once where there is a connection, or name "
            "the folder where they are with `evaluation_dataset_name`; `tasks` names the benchmarks that are meant"
        ) from error
    return Benchmark(name, concatenate_datasets(parts), f"{files[0].parent}: {task.benchmark.split}")
