"""Files that are there whole or not at all, and which names mean a place on this machine."""

import errno
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DAY = 24 * 3600
_UNFINISHED = re.compile(r"\..+\.\d+\.[0-9a-f]{8}")


def is_local(name: str | Path) -> bool:
    """
    Return whether `name` means a folder here, existing or not, rather than a Hub id (`name` or `owner/name`).

    `runs/sft` means a folder wherever there is a folder `runs`: a mistyped name is not looked up on the Hub.
    """
    text = str(name)
    if text.startswith((".", "/", "~")) or Path(text.partition("/")[0]).is_dir():
        return True
    return text.partition("@")[0].count("/") > 1  # a revision of a Hub dataset may hold more: @refs/pr/1


def missing_folder(kind: str, name: str | Path) -> FileNotFoundError:
    """Return the error for a folder that is not there; see [`is_local`] for why it was not asked for on the Hub."""
    message = f"{kind} folder {name} does not exist; run the stage that writes it first"
    owner, _, rest = str(name).partition("/")
    if owner not in ("", ".", "..") and rest and "/" not in rest.partition("@")[0] and Path(owner).is_dir():
        message += f". If {name} is meant on the Hub: there is a folder {owner} here, so start where there is none"
    return FileNotFoundError(message)


def absolute(name: str) -> str:
    """Return `name` as an absolute path if it means one here, and as it is if it is a Hub id."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() or name.startswith("~") else name


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    Yield where to write; what was written takes the place of `path` when the block ends without an error.

    What killed processes left half written in the same folder is swept first.

    Raises:
        `OSError`: if there is no room; it says so, and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.resolve())
    # Machine and process stand in the name, so that somebody else can tell whether it is still being written.
    unfinished = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise OSError(
                error.errno, f"no room to write {path}; make some and start again, what is finished is kept: {error}"
            ) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)
    with suppress(OSError):  # not every file system can do that with a folder
        _sync(path.parent)


@cache
def _sweep(folder: Path) -> None:
    """Delete what nobody writes any more, once per process: listing a folder of many shards takes its time."""
    for leftover in folder.glob(".*"):
        if _UNFINISHED.fullmatch(leftover.name) and _abandoned(leftover):
            leftover.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """Return where process numbers mean what they mean here: containers may share the name of their host."""
    namespace = Path("/proc/self/ns/pid")
    number = re.sub(r"\D", "", os.readlink(namespace)) if namespace.exists() else "0"
    return f"{socket.gethostname()}-{number}"


def _abandoned(leftover: Path) -> bool:
    """Return whether nobody writes this half-written file any more: its process is gone, or it is a day old."""
    start, pid, _ = leftover.name.rsplit(".", 2)
    if start.endswith(f".{_machine()}"):
        return not _lives(int(pid))
    try:
        return time.time() - leftover.stat().st_mtime > _DAY  # of another machine, where nobody here can ask
    except FileNotFoundError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one step or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, **options: Any) -> None:
    """Write a JSON file in one step or not at all; `options` go to `json.dumps`."""
    write_text(path, json.dumps(content, indent=2, **options) + "\n")


class AnotherRunError(ValueError):
    """A folder holds a run that was started with other settings."""


def refuse_another_run(folder: str | Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """
    Refuse to go on in `folder` if the settings `found` there are not the `wanted` ones.

    Raises:
        [`AnotherRunError`]: naming the first key that differs, and what to do.
    """
    wanted = json.loads(json.dumps(wanted))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise AnotherRunError(
                f"{folder} holds another run: {key} is {found.get(key)!r} there and {wanted.get(key)!r} here. Go back "
                "to that value, or choose another output_dir"
            )


def claim(path: str | Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run to `path`, or refuse to go on if a run with other settings did so before."""
    path = Path(path)
    if path.exists():
        refuse_another_run(path.parent, json.loads(path.read_text(encoding="utf-8")), settings)
    else:
        write_json(path, settings)
