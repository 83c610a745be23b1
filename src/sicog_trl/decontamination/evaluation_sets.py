"""The rows that a suite asks, from where the evaluation takes them; lmms-eval's files are read, nothing of it runs."""

from dataclasses import dataclass

from datasets import Dataset, concatenate_datasets, load_dataset

from ..evaluation.benchmarks import select_tasks
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
    found = []
    for name, task in chosen.items():
        files = data_files(dataset_name, task)
        if files is None:
            place = hub_rows(task)
            rows = load_dataset(place["path"], place["config"], split=place["split"], revision=place["revision"])
            origin = f"{place['path']} {place['config'] or ''} {place['split']} {place['revision'] or ''}"
            found.append(Benchmark(name, rows, " ".join(origin.split())))
            continue
        parts = [load_dataset("parquet", data_files={"rows": str(file)}, split="rows") for file in files]
        found.append(Benchmark(name, concatenate_datasets(parts), f"{files[0].parent}: {task.benchmark.split}"))
    return found
