"""Running the stages, one process each: what is done is skipped, what was cut off goes on, what differs is refused."""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ..files import refuse_another_run, write_json, write_text
from ..provenance import commit, made_by, versions
from .config import LoopConfig
from .stages import Stage, stages


# Nothing reads what such a stage leaves in its folder, so with other arguments it is run again instead of refused.
_REPEATABLE = ("push.py",)
_LOCK = ".running"  # not `.lock`: a recipe may lock its folder too


class StageError(RuntimeError):
    """A stage failed, or another process still runs it."""


def run(config: LoopConfig, recipes: str | Path) -> Path:
    """
    Run every stage that is not done yet, one process each.

    Args:
        config ([`LoopConfig`]):
            The run.
        recipes (`str` or `Path`):
            Folder of the recipes.

    Returns:
        `Path`: folder of the run, with `manifest.json`, `stages.json` and one folder per stage.
    """
    folder = Path(config.output_dir)
    plan = stages(config)
    for stage in plan:
        _check(stage)
    if any(stage.recipe == "push.py" and not stage.config.get("dry_run") and not _is_done(stage) for stage in plan):
        _check_login()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(vars(config), sort_keys=False))
    _write_manifest(folder, config)
    for number, stage in enumerate(plan, 1):
        title = f"[{number}/{len(plan)}] {stage.name}"
        if _is_done(stage):
            _say(f"{title}: done before, {_state(stage)['seconds']:.0f} s")
        else:
            _say(title)
            _launch(stage, config.accelerate_config, Path(recipes))
        write_json(folder / "stages.json", [_record(each) for each in plan])
    _write_manifest(folder, config, finished=True)
    return folder


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _state(stage: Stage) -> dict[str, Any]:
    path = stage.folder / "stage.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _check_login() -> None:
    """Ask the Hub whether it takes the token now, and not hours later, when the first push is due."""
    from huggingface_hub import HfApi

    from ..hub.remote import check_login, explained  # most lines publish nothing

    try:
        with explained("the section `push`"):
            check_login(HfApi())
    except PermissionError as error:
        raise StageError(f"nothing was started: {error}, or set `dry_run: true` in the section `push`") from error
    except ConnectionError as error:
        _say(f"warning: {error}; the line will stop at its first push unless that changes")


def _is_done(stage: Stage) -> bool:
    return _state(stage).get("status") == "done" and not _is_new(stage)


def _is_new(stage: Stage) -> bool:
    """Return whether a stage that may be repeated was run with other arguments before."""
    before = _state(stage).get("config")
    return stage.recipe in _REPEATABLE and before is not None and before != json.loads(json.dumps(stage.config))


def _check(stage: Stage) -> None:
    """Refuse to go on with a stage that was started with other arguments, unless it failed before it made anything."""
    if stage.recipe in _REPEATABLE:
        return
    state = _state(stage)
    made = {path.name for path in stage.folder.glob("*")} - {"config.yaml", "stage.json", _LOCK}
    if not state or (state["status"] == "failed" and not made):
        return
    refuse_another_run(stage.folder, state["config"], stage.config)


def _launch(stage: Stage, accelerate_config: str, recipes: Path) -> None:
    """Start a recipe, resuming what an earlier attempt left; note the time of all attempts that came to an end."""
    path = stage.folder / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(stage.folder / _LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"{stage.folder}: the stage is still running in another process; wait or stop it"
            ) from None
        spent = _state(stage).get("seconds", 0.0)
        if _is_new(stage):
            _clear(stage)
        write_text(path, yaml.safe_dump(stage.config, sort_keys=False))
        script = str(recipes / stage.recipe)
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", accelerate_config, script]
        command += ["--config", str(path)]
        state = {"config": stage.config, "command": shlex.join(command), **commit(), "versions": versions()}
        write_json(stage.folder / "stage.json", {"status": "started", "seconds": spent, **state})
        started = time.monotonic()
        # The process of the stage inherits the lock: killing this one alone does not let a second one in.
        code = subprocess.run(command, pass_fds=[lock.fileno()]).returncode
        spent += time.monotonic() - started
        write_json(stage.folder / "stage.json", {"status": "failed" if code else "done", "seconds": spent, **state})
    if code:
        later = ", or without the section `push`, which may come back later" if stage.recipe in _REPEATABLE else ""
        raise StageError(
            f"stage {stage.name} ended with exit code {code}; its arguments are in {path}. Run the same command again "
            f"to go on from here{later}."
        )


def _clear(stage: Stage) -> None:
    """Delete what a stage prepared with other arguments; until all is gone it has these, and is not done."""
    write_json(stage.folder / "stage.json", {**_state(stage), "status": "started"})
    for path in stage.folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (_LOCK, "stage.json"):
            path.unlink()


def _record(stage: Stage) -> dict[str, Any]:
    """Describe a stage for the report."""
    state = _state(stage)
    counts: dict[str, Any] = {}
    for name in ("summary.json", "training.json"):
        if (stage.folder / name).exists():
            counts |= json.loads((stage.folder / name).read_text())
    return {
        "name": stage.name,
        "arm": stage.arm,
        "round": stage.round,
        "recipe": stage.recipe,
        "status": state.get("status", "missing"),
        "seconds": state.get("seconds"),
        "output_dir": str(stage.folder),
        "commit": state.get("commit"),
        "dirty": state.get("dirty"),
        "counts": counts,
    }


def _write_manifest(folder: Path, config: LoopConfig, finished: bool = False) -> None:
    path = folder / "manifest.json"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = json.loads(path.read_text()) if path.exists() else {}
    manifest = {
        "command": shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        **made_by(),
        "seed": config.seed,
        "started": before.get("started", now),
        "finished": now if finished else None,
    }
    write_json(path, manifest)
