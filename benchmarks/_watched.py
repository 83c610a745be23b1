"""A command and all processes that it starts: their memory while they run, and an end in the middle."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Watched:
    """
    What was seen of a command.

    Args:
        seconds (`float`):
            From its start to its end.
        peak_gib (`float`):
            Most memory that its processes held together, pages of mapped files included, shared ones counted once.
        peak_gib_own (`float`):
            The same without mapped files, which the system may take back.
        killed (`bool`):
            Whether it was ended in the middle.
    """

    seconds: float
    peak_gib: float
    peak_gib_own: float
    killed: bool


def watch(
    command: list[str], environment: dict[str, str], log: Path, look: Callable[[], bool], every: float
) -> Watched:
    """
    Run a command, and kill it with all that it started as soon as `look`, asked again and again, says so.

    Raises:
        `RuntimeError`: if it fails by itself; the message ends with its last words.
    """
    started, most, own = time.perf_counter(), 0.0, 0.0
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            family = [process.pid, *_descendants(process.pid)]
            most, own = max(most, sum(map(_held, family))), max(own, sum(map(_anonymous, family)))
            if look():
                _kill(process)
                return Watched(time.perf_counter() - started, most, own, True)
            time.sleep(every)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {log.read_text(errors='replace')[-2000:]}")
    return Watched(time.perf_counter() - started, most, own, False)


def _kill(process: subprocess.Popen) -> None:
    family = [process.pid, *_descendants(process.pid)]
    for pid in family:
        with suppress(ProcessLookupError):  # ended by itself meanwhile
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(parent: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = list(children.get(parent, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def _held(pid: int) -> float:
    return _gib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _anonymous(pid: int) -> float:
    return _gib(Path(f"/proc/{pid}/status"), "RssAnon:")


def _gib(file: Path, name: str) -> float:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith(name)), 0.0)
