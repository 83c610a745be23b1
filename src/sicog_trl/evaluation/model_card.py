"""Scores in a model's card: entries of its `model-index` and a table of them, beside whatever else stands there."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard import metadata_load, metadata_save
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..cards.scores import HARNESS, check_index, key_of, show_scores, without
from ..files import replacing
from .benchmarks import Task, benchmarks, select_tasks
from .protocols import PROTOCOLS
from .task_files import task_yaml


_URL = "https://github.com/EvolvingLMMs-Lab/lmms-eval"


def results_to_card(scores: str | Path, model: str, readme: str | Path) -> list[EvalResult]:
    """
    Write the scores of a model into the metadata of its card, and into the table of a card that was written here.

    Results of the same task, protocol and metric that an earlier call wrote are replaced; everything else in the
    card, results of others included, stays as it is. A card that does not exist is begun.

    Args:
        scores (`str` or `Path`):
            The `scores.json` that [`~sicog_trl.evaluation.run.evaluate`] wrote.
        model (`str`):
            Name of the model there.
        readme (`str` or `Path`):
            The card, such as `<model folder>/README.md`.

    Returns:
        `list[huggingface_hub.EvalResult]`: what was written, one entry per task and headline metric, each with the
        raw value of the harness.

    Raises:
        `ValueError`: if the model has no scores, or the card's metadata cannot be read.
    """
    scores, readme = Path(scores), Path(readme)
    content = json.loads(scores.read_text(encoding="utf-8"))
    if not content.get("models", {}).get(model):
        names = ", ".join(content.get("models", {})) or "none"
        raise ValueError(f"{scores} has no scores of {model!r}; there are those of {names}")
    version = content.get("manifest", {}).get("versions", {}).get(HARNESS)
    tasks = select_tasks("digits", list(benchmarks()), list(PROTOCOLS))
    entries = []
    for name, values in content["models"][model].items():
        if name not in tasks:
            raise ValueError(f"{scores}: the task {name!r} is none of this package; evaluate again with this version")
        entries += _entries(tasks[name], values, version)
    metadata = _read(readme)
    index = metadata.get("model-index") or [{"name": model, "results": []}]
    check_index(str(readme), index)
    results = without(index[0].get("results") or [], {key_of(entry) for entry in _flat(entries)})
    index[0]["results"] = results + _results(model, entries)
    metadata["model-index"] = index
    with replacing(readme) as unfinished:
        if readme.is_file():
            shutil.copyfile(readme, unfinished)
        metadata_save(unfinished, metadata)
        text = unfinished.read_bytes().decode("utf-8")
        if (shown := show_scores(text, metadata)) != text:
            unfinished.write_bytes(shown.encode("utf-8"))
    return entries


def _entries(task: Task, values: dict[str, Any], version: str | None) -> list[EvalResult]:
    """Return the headline metrics of a task."""
    data, protocol = dataset_of(task), task.protocol.replace("_", " ")
    entries = []
    for position, name in enumerate(task.benchmark.headline):
        metric = name.partition(",")[0]  # a card needs no filter
        value = values.get(name, values.get(metric))
        if value is None:
            continue
        about = {"harness": HARNESS, "version": version, "task": task.name, "protocol": task.protocol}
        # Only the leading metric is known to have this scale.
        about |= {"rows": values["n"], "full_marks": task.benchmark.full_marks if position == 0 else None}
        entries.append(
            EvalResult(
                task_type="image-text-to-text",
                task_name=task.benchmark.title,
                dataset_type=data["path"] or task.benchmark.name,
                dataset_name=task.benchmark.title,
                dataset_config=data["name"],
                dataset_split=data["split"],
                metric_type=metric,
                metric_name=f"{metric.replace('_', ' ')}, asked {protocol}",
                metric_value=value,
                metric_args={key: value for key, value in about.items() if value is not None},
                source_name=HARNESS,
                source_url=_URL,
            )
        )
    return entries


class _Loader(yaml.SafeLoader):
    """Reads YAMLs of lmms-eval without importing what they name."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


@cache
def _settings(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    included = content.get("include") or []
    settings: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        settings |= _settings((path.parent / name).resolve())
    return settings | content


def dataset_of(task: Task) -> dict[str, str | None]:
    """Return `path`, `name` and `split` of the dataset that a task asks, as on the Hub; our own has no path there."""
    found = {"path": None, "name": None, "split": task.benchmark.split}
    settings = _settings(task_yaml(task))
    if settings.get("dataset_path") not in (None, "parquet"):
        found |= {"path": settings["dataset_path"], "name": settings.get("dataset_name")}
    return found


def _results(model: str, entries: list[EvalResult]) -> list[dict[str, Any]]:
    """Return entries as `model-index` has them; tasks on one dataset stay apart, since they were asked differently."""
    apart: dict[str, list[EvalResult]] = {}
    for entry in entries:
        apart.setdefault(entry.metric_args["task"], []).append(entry)
    return [result for group in apart.values() for result in eval_results_to_model_index(model, group)[0]["results"]]


def _flat(entries: list[EvalResult]) -> list[dict[str, Any]]:
    return [{"type": entry.metric_type, "args": entry.metric_args} for entry in entries]


def _read(readme: Path) -> dict[str, Any]:
    if not readme.is_file():
        return {}
    try:
        return metadata_load(readme) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{readme}: its metadata cannot be read ({error}); put it right first") from error
