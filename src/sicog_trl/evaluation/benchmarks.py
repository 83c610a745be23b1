"""What a checkpoint is scored on: benchmarks and suites as data, tasks as benchmarks under a protocol."""

from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .protocols import PROTOCOLS


_FOLDER = Path(__file__).parent
SUITES = tuple(sorted(path.stem for path in (_FOLDER / "suites").glob("*.yaml")))
# Tasks that ask for steps and read them by themselves; other YAMLs of ours are like those of lmms-eval.
_OURS = "sicog_trl/digits/"


@dataclass(frozen=True)
class Benchmark:
    """A row of `benchmarks.yaml`, whose head says what each field means."""

    name: str
    title: str
    yaml: str
    split: str
    headline: tuple[str, ...]
    full_marks: float
    score: str
    judge: str
    rows: int | None = None
    judge_free: str | None = None
    step_by_step: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """
    A benchmark under a protocol: what one run of lmms-eval asks.

    Args:
        name (`str`):
            Name of the result; that of the benchmark, with the protocol behind it unless it is asked directly.
        benchmark ([`Benchmark`]):
            What is asked, with what differs under this protocol.
        protocol (`str`):
            How it is asked: `"direct"` or `"step_by_step"`.
    """

    name: str
    benchmark: Benchmark
    protocol: str

    @property
    def ours(self) -> bool:
        """Whether the task is one of this package, which asks for steps and reads them by itself."""
        return self.benchmark.yaml.startswith(_OURS)


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Return the table of benchmarks by name."""
    rows = yaml.safe_load((_FOLDER / "benchmarks.yaml").read_text(encoding="utf-8"))
    return {name: _row(name, row) for name, row in rows.items()}


def _row(name: str, row: dict[str, Any]) -> Benchmark:
    if unknown := set(row) - {each.name for each in fields(Benchmark)}:
        raise ValueError(f"benchmarks.yaml, {name}: unknown key {sorted(unknown)[0]!r}")
    return Benchmark(name=name, **{**row, "headline": tuple(row["headline"])})


@cache
def _suite(name: str) -> dict[str, Any]:
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; choose one of {', '.join(SUITES)}")
    return yaml.safe_load((_FOLDER / "suites" / f"{name}.yaml").read_text(encoding="utf-8"))


def select_tasks(
    suite: str, names: list[str] | None = None, protocols: list[str] | None = None, judge: bool = True
) -> dict[str, Task]:
    """
    Return the tasks of a suite by name, in its order.

    Args:
        suite (`str`):
            Name of a file below `suites/`.
        names (`list[str]`, *optional*):
            Only these benchmarks or tasks; they need not belong to the suite.
        protocols (`list[str]`, *optional*):
            How to ask, instead of what the suite says.
        judge (`bool`, *optional*, defaults to `True`):
            Whether there is a judge. Without one the judge-free counterpart of a benchmark is taken.

    Raises:
        `ValueError`: if a name is unknown, or a benchmark needs a judge and there is neither one nor a counterpart.
    """
    content = _suite(suite)
    asked = protocols or content["protocols"]
    if unknown := [name for name in asked if name not in PROTOCOLS]:
        raise ValueError(f"unknown protocol {unknown[0]!r}; choose from {', '.join(PROTOCOLS)}")
    # A name may also be that of one task, so all of them are built and the wanted ones kept.
    members = content["benchmarks"] if not names else list(benchmarks())
    tasks = [task for member in members for protocol in asked if (task := _task(benchmarks()[member], protocol))]
    if names:
        known = {task.name for task in tasks} | set(benchmarks())
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"unknown task {unknown[0]!r} under {' and '.join(asked)}; choose from {', '.join(sorted(known))}"
            )
        tasks = [task for name in names for task in tasks if name in (task.name, task.benchmark.name)]
    if not judge:
        tasks = [_without_judge(task) for task in tasks]
    return {task.name: task for task in tasks}


def _task(benchmark: Benchmark, protocol: str) -> Task | None:
    """Return a benchmark under a protocol; one of ours that has no YAML for it is asked directly alone."""
    ours = benchmark.yaml.startswith(_OURS)
    if protocol == "direct":
        return Task(Path(benchmark.yaml).stem if ours else benchmark.name, benchmark, protocol)
    changed = replace(benchmark, **benchmark.step_by_step)
    if ours:
        return Task(Path(changed.yaml).stem, changed, protocol) if benchmark.step_by_step else None
    return Task(f"{benchmark.name}_{protocol}", changed, protocol)


def _without_judge(task: Task) -> Task:
    if task.benchmark.judge == "none":
        return task
    if not task.benchmark.judge_free:
        raise ValueError(
            f"{task.name} needs a judge: give judge_base_url and judge_model, leave it out with `tasks`, or "
            "choose the suite judge_free"
        )
    return _task(benchmarks()[task.benchmark.judge_free], task.protocol)
