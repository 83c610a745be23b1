"""What a teacher has said: kept for good before it is looked at, and then looked at closely."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..responses import chain_fault, split_steps
from .reading import Reading, description_of
from .turns import Unusable, check_text


_MODE = "chain_of_description"


class Answers:
    """
    What the teacher has said, in a file that only grows: the last line of an id counts.

    Args:
        path (`Path`):
            JSON Lines. A last line that a killed process left unfinished is taken away.

    Attributes:
        tokens (`int`):
            Length of all answers, as far as the server tells.
    """

    def __init__(self, path: Path):
        self.path = path
        self._last: dict[str, dict[str, Any]] = {}
        self._times: Counter[str] = Counter()
        self.tokens = 0

    @contextmanager
    def opened(self) -> Iterator["Answers"]:
        """Hold the file: another process that would pay for the same answers is refused."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as self._file:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(f"another process is asking the teacher for {self.path.parent}") from error
            self._read()
            yield self

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}: no answer of a teacher: {error}; delete it") from error
            end += len(line)
        self._file.truncate(end)

    def add(self, answer: dict[str, Any]) -> None:
        """Keep an answer for good; when this returns, it has outlived this process."""
        self._file.write(json.dumps(answer).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._take(answer)

    def _take(self, answer: dict[str, Any]) -> None:
        self._last[answer["id"]] = answer
        self._times[answer["id"]] += 1
        self.tokens += answer.get("num_tokens") or 0

    def get(self, row_id: str) -> dict[str, Any] | None:
        """Return the last answer for a record."""
        return self._last.get(row_id)

    def times(self, row_id: str) -> int:
        """Return how many answers there are for a record."""
        return self._times[row_id]

    @property
    def calls(self) -> int:
        """Number of answers, each of them paid for."""
        return self._times.total()


def read_answer(answer: dict[str, Any], reference: str, min_words: int) -> Reading:
    """
    Return the rows that an answer gives.

    Raises:
        [`Unusable`]: why a call had no answer (`refused`, `server_error`, …), `truncated`, `unfinished`, what
        [`~sicog_trl.responses.chain_fault`] finds, `repeated_body`, `copied_reference`, `too_short` or `placeholder`.
    """
    if "failure" in answer:
        raise Unusable(answer["failure"], answer["message"])
    text, ended = answer["text"], answer["finish_reason"]
    if ended != "stop":
        raise Unusable("truncated" if ended == "length" else "unfinished", ended)
    check_text(text)
    if fault := chain_fault(text, _MODE):
        raise Unusable(fault, text[:80])
    steps = split_steps(text, _MODE)
    if len(set(steps)) < len(steps):
        raise Unusable("repeated_body", next(step for step in steps if steps.count(step) > 1)[:80])
    if " ".join(steps[-1].split()) == " ".join(reference.split()):
        raise Unusable("copied_reference", reference[:80])
    if len(steps[-1].split()) < min_words:
        raise Unusable("too_short", steps[-1][:80])
    return description_of(steps)
