"""From rows to requests: what a row lacks, and so few open images at a time that memory stays bounded."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL.Image import Image

from ..corruption import damage
from ..images import UnreadableImageError, open_image
from ..prompts import prompt_for
from ..views import light_view
from .candidates import CandidateConfig, Counts
from .columns import is_question
from .sampling import Request, candidate_seed, open_pixels


_WINDOW_PIXELS = 2**25  # ours: about 100 MB of decoded images are ready in advance, or one row if it has more
_MOST_ALTERED = 2**25  # ours: pixels of an image of which views or damage are made, in floating point


class Row:
    """
    A row on its way: what it is to get, what it has, and what went wrong.

    Args:
        content (`dict[str, Any]`):
            `id` and `question`.
        stored (`pyarrow.ListScalar`):
            Images, left in Arrow until they are opened.
        known (`list[dict]`):
            Candidates that this run has sampled before.
        inherited (`list[dict]`):
            Candidates of an earlier round.
        config ([`CandidateConfig`]):
            Which candidates are wanted.
        taken (`dict[str, list]`):
            How many of these the earlier round was asked for.
    """

    def __init__(
        self,
        content: dict[str, Any],
        stored: pa.ListScalar,
        known: list[dict],
        inherited: list[dict],
        config: CandidateConfig,
        taken: Counts,
    ):
        self.id, self.stored = content["id"], stored
        self.question = content["question"] if is_question(content["question"]) else None
        self.task = "reasoning" if self.question else "description"
        self.candidates = {(candidate["mode"], candidate["seed"]): candidate for candidate in known}
        self.errors: dict[int, str] = {}  # by request, so that the first one does not depend on who answered first
        self.unanswered = 0
        self.inherited: dict[str, list[dict]] = {}
        self.seeds: dict[str, list[int]] = {}
        first = dict(taken.get(f"{self.task}_modes", ()))
        for mode, count in getattr(config, f"{self.task}_modes").items():
            start, prompt = first.get(mode, 0), prompt_for(mode, self.question)
            self.inherited[mode] = [candidate for candidate in inherited if candidate["mode"] == mode][:start]
            self.seeds[mode] = [candidate_seed(config.seed, self.id, prompt, index) for index in range(start, count)]

    @property
    def error(self) -> str | None:
        """The first thing that went wrong."""
        return self.errors[min(self.errors)] if self.errors else None

    def missing(self) -> dict[str, list[int]]:
        """Return the seeds of the candidates that are still to be sampled, by mode."""
        return {
            mode: [seed for seed in seeds if (mode, seed) not in self.candidates] for mode, seeds in self.seeds.items()
        }

    def collected(self) -> list[dict[str, Any]]:
        """Return the candidates in their order: by mode, those of an earlier round first, then by index."""
        found = []
        for mode, seeds in self.seeds.items():
            own = (self.candidates.get((mode, seed)) for seed in seeds)
            found += [*self.inherited[mode], *filter(None, own)]
        return found


@dataclass(frozen=True)
class Asked:
    """A request with the row and the mode that it is for, and how its image was damaged, if it was."""

    row: Row
    mode: str
    request: Request
    corruption: str | None = None


def ask(rows: list[Row], placeholders: tuple[str, ...], config: CandidateConfig) -> Iterator[tuple[Row, list[Asked]]]:
    """
    Open the images of one row after the other and yield each row with what it is asked.

    A few rows are prepared in advance, in a thread, since decoding images leaves the interpreter free; so few that
    memory stays bounded, whatever the size of the images and of the shard.

    Args:
        rows (`list[Row]`):
            Rows of a shard.
        placeholders (`tuple[str, ...]`):
            Texts that no question may hold.
        config ([`CandidateConfig`]):
            How images are shown.
    """
    prepared = _windows(rows, placeholders, config)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, prepared, None)
        while (window := coming.result()) is not None:
            coming = thread.submit(next, prepared, None)
            yield from window


def _windows(
    rows: list[Row], placeholders: tuple[str, ...], config: CandidateConfig
) -> Iterator[list[tuple[Row, list[Asked]]]]:
    window: list[tuple[Row, list[Asked]]] = []
    pixels = 0
    for row in rows:
        asked = _ask(row, placeholders, config)
        window.append((row, asked))
        pixels += open_pixels(one.request for one in asked)
        if pixels >= _WINDOW_PIXELS:
            yield window
            window, pixels = [], 0
    yield window


def _ask(row: Row, placeholders: tuple[str, ...], config: CandidateConfig) -> list[Asked]:
    """Return the requests for what a row lacks; a row that cannot be asked gets an error."""
    missing = row.missing()
    if missing and not any(missing.values()):
        return []
    if fault := _fault(row, placeholders):
        row.errors[-1] = fault
        return []
    altered = bool(config.views or config.corruptions)
    stored = row.stored.as_py() or []
    try:
        opened = [open_image(image, config.max_pixels) for image in stored]
        if altered and (most := max((p.width * p.height for p, _ in opened), default=0)) > _MOST_ALTERED:
            raise UnreadableImageError(f"views and damage of {most:,} pixels take too much memory; set max_pixels")
    except UnreadableImageError as error:
        row.errors[-1] = f"unreadable_image: row {row.id!r}: {error}"
        return []
    pictures = [picture for picture, _ in opened]
    files = [file if unchanged else None for file, (_, unchanged) in zip(stored, opened, strict=True)]
    asked = []
    for mode, seeds in missing.items():
        prompt = prompt_for(mode, row.question)
        for run in [[seed] for seed in seeds] if altered else _runs(seeds):
            shown, corruption = _altered(pictures, run[0], config)
            asked.append(Asked(row, mode, Request(shown, prompt, run, [] if altered else files), corruption))
    return asked


def _fault(row: Row, placeholders: tuple[str, ...]) -> str | None:
    """Return why a row cannot be asked, before any image is opened."""
    if not row.seeds:
        return f"not_asked: row {row.id!r}: {row.task}_modes is empty"
    if not row.question and not (row.stored.is_valid and len(row.stored)):
        return f"no_image: row {row.id!r} has neither an image nor a question"
    if token := next((token for token in placeholders if token in (row.question or "")), None):
        return (
            f"placeholder: the question of row {row.id!r} holds {token!r}; take it out, one is placed for each image "
            "of the row"
        )
    return None


def _altered(pictures: list[Image], seed: int, config: CandidateConfig) -> tuple[list[Image], str | None]:
    """Return what a candidate is shown, and how it was damaged."""
    if config.views:
        pictures = [light_view(picture, seed) for picture in pictures]
    if not config.corruptions:
        return pictures, None
    damaged = [damage(picture, config.corruptions, seed) for picture in pictures]
    return [picture for picture, _ in damaged], damaged[0][1] if damaged else None


def _runs(seeds: list[int]) -> Iterator[list[int]]:
    """Split seeds where one does not follow the other: a request is for consecutive ones."""
    run: list[int] = []
    for seed in seeds:
        if run and seed != run[-1] + 1:
            yield run
            run = []
        run.append(seed)
    if run:
        yield run
