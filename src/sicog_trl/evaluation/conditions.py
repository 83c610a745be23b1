"""What a score depends on: who answered, and under which conditions. Scores compare only if the latter are equal."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from datasets import Features

from ..checkpoints import model_fingerprint
from ..data.rows import image_columns, paths_of
from ..files import AnotherRunError, refuse_another_run
from ..images import URL
from ..provenance import hardware, hash_files, made_by, versions
from .benchmarks import Task
from .task_files import data_files, generation_settings, hub_rows, task_code


if TYPE_CHECKING:
    from .run import EvaluationConfig

_PACKAGE = Path(__file__).parents[1]
_PACKAGES = ("torch", "transformers", "datasets", "lmms-eval")
_CODE = (
    *("evaluation/harness.py", "evaluation/answering.py", "evaluation/protocols.py", "evaluation/extractors.py"),
    *("evaluation/bare_answer.py", "prompts.py", "responses.py", "digits/texts.py"),
)
_CODE_OF_BACKEND = {
    "transformers": ("evaluation/wrapper.py", "checkpoints.py"),
    "openai": ("evaluation/server.py",),
}


def identify(config: "EvaluationConfig", path: str) -> str:
    """
    Return what tells one model from another: the hash of its weights, or what the server says of it.

    Args:
        config ([`EvaluationConfig`]):
            With `base_url`, the model is a name on that server.
        path (`str`):
            A value of `models`.
    """
    if config.base_url is None:
        return model_fingerprint(path)
    from .server import served_identity  # imports lmms-eval

    return served_identity(config.base_url, path)


def conditions_of(config: "EvaluationConfig", task: Task) -> dict[str, Any]:
    """Return what a score on `task` depends on besides the model; two scores compare only if it is equal."""
    files = data_files(config.dataset_name, task)
    if files:
        for file in files:
            _refuse_addresses(file)
        rows, count = hash_files(files), sum(pq.read_metadata(file).num_rows for file in files)
        count = count if config.limit is None else min(count, config.limit)
    else:  # how many there are is known when they are there
        rows, count = {**hub_rows(task), "limit": config.limit}, None
    installed, backend = versions(), "transformers" if config.base_url is None else "openai"
    here = {"dtype": config.dtype, "device": "cuda" if hardware()["gpus"] else "cpu"}
    code = [_PACKAGE / name for name in (*_CODE, *_CODE_OF_BACKEND[backend])]
    return {
        "rows": rows,
        "num_rows": count,
        "code": hash_files([*task_code(task), *code]),
        "backend": backend,
        "protocol": task.protocol,
        "generation": generation_settings(task),
        **(here if backend == "transformers" else dict.fromkeys(here)),  # of a server nobody tells
        "judge": config.judge_model if task.benchmark.judge != "none" else None,
        "versions": {package: installed.get(package) for package in _PACKAGES},
    }


def _refuse_addresses(file: Path) -> None:
    """Refuse rows whose images are on the web: lmms-eval reads them by `datasets`, which would fetch them."""
    with pq.ParquetFile(file) as rows:
        names = image_columns(Features.from_arrow_schema(rows.schema_arrow))
        for batch in rows.iter_batches(64, columns=names) if names else ():
            for path in (path for column in batch.columns for path in paths_of(column)):
                if URL.match(path):
                    raise ValueError(f"{file} names the image {path}, and nothing is fetched; store its bytes there")


def is_finished(folder: Path, task: str, weights: str, conditions: dict[str, Any]) -> bool:
    """Return whether `folder` holds the result of `task` by this model; refuse a folder with another's."""
    path = folder / f"results_{task}.json"
    if not path.is_file() or not (folder / f"samples_{task}.jsonl").is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    there = {"weights": found["model"]["weights"], **found["conditions"]}
    try:
        refuse_another_run(folder, there, {"weights": weights, **conditions})
    except AnotherRunError as error:
        raise AnotherRunError(f"{error}; or delete {folder} to evaluate again ({path.name})") from None
    return True


def manifest() -> dict[str, Any]:
    """Return what a result should name: command, versions, commit, hardware, time."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"command": shlex.join(sys.argv), "date": when, **made_by()}
