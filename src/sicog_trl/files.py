"""Files that are there whole or not at all, and which names mean a place on this machine."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def is_local(name: str | Path) -> bool:
    """Return whether `name` means a folder here, existing or not, rather than a Hub id (`name` or `owner/name`)."""
    text = str(name)
    return Path(text).is_dir() or text.startswith((".", "/", "~")) or text.count("/") > 1


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield where to write; what was written takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machine and process stand in the name, so that somebody else can tell whether it is still being written.
    unfinished = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


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
