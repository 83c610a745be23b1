"""From rows to requests: what a row lacks, and so few open images at a time that memory stays bounded."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL.Image import Image

from ..corruption import damage
from ..prompts import prompt_for
from ..views import light_view
from .candidates import CandidateConfig
from .images import UnreadableImageError, open_image
from .sampling import Request, candidate_seed


# ours: decoded images of a window of rows, about 400 MB in RGB; the next window is decoded while this one is answered.
_WINDOW_PIXELS = 2**27


class Row:
    """A row on its way: what the input says, what candidates it has, and what went wrong."""

    def __init__(self, content: dict[str, Any], stored: pa.ListScalar, known: list[dict], inherited: list[dict]):
        self.id, self.question = content["id"], content["question"] or None
        self.task = "reasoning" if self.question else "description"
        self.stored = stored  # images, left in Arrow until they are opened
        self.inherited = inherited
        self.candidates = {(candidate["mode"], candidate["seed"]): candidate for candidate in known}
        self.errors: dict[int, str] = {}  # by request, so that the first one does not depend on who answered first
        self.unanswered = 0

    @property
    def error(self) -> str | None:
        """The first thing that went wrong."""
        return self.errors[min(self.errors)] if self.errors else None

    def slots(self, config: CandidateConfig) -> Iterator[tuple[str, list[dict], list[int]]]:
        """Yield each mode with the candidates of an earlier round and the seeds of those of this one."""
        for mode, count in getattr(config, f"{self.task}_modes").items():
            inherited = [candidate for candidate in self.inherited if candidate["mode"] == mode]
            prompt = prompt_for(mode, self.question)
            seeds = [candidate_seed(config.seed, self.id, prompt, i) for i in range(len(inherited), count)]
            yield mode, inherited, seeds

    def collected(self, config: CandidateConfig) -> list[dict[str, Any]]:
        """Return the candidates in their order: by mode, then by index."""
        found = []
        for mode, inherited, seeds in self.slots(config):
            own = (self.candidates.get((mode, seed)) for seed in seeds)
            found += [*inherited, *filter(None, own)]
        return found


@dataclass(frozen=True)
class Asked:
    row: Row
    mode: str
    request: Request
    corruption: str | None = None


Window = tuple[list[Row], list[Asked]]


def ahead(prepared: Iterator[Window]) -> Iterator[Window]:
    """Prepare the next window in a thread: decoding images leaves the interpreter free."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, prepared, None)
        while (window := coming.result()) is not None:
            coming = thread.submit(next, prepared, None)
            yield window


def windows(rows: list[Row], placeholders: tuple[str, ...], config: CandidateConfig) -> Iterator[Window]:
    """Open images for so many rows that memory stays bounded, whatever the size of the images and of the shard."""
    window: Window = ([], [])
    pixels = 0
    for row in rows:
        asked = list(_ask(row, placeholders, config))
        window[0].append(row)
        window[1].extend(asked)
        seen = {id(image): image.width * image.height for one in asked for image in one.request.images}
        pixels += sum(seen.values())
        if pixels >= _WINDOW_PIXELS:
            yield window
            window, pixels = ([], []), 0
    yield window


def _ask(row: Row, placeholders: tuple[str, ...], config: CandidateConfig) -> Iterator[Asked]:
    """Yield the requests for the candidates that a row lacks; a row that cannot be asked gets an error."""
    missing = {
        mode: [seed for seed in seeds if (mode, seed) not in row.candidates] for mode, _, seeds in row.slots(config)
    }
    if not any(missing.values()):
        return
    if token := next((token for token in placeholders if token in (row.question or "")), None):
        row.errors[-1] = (
            f"placeholder: the question of row {row.id!r} holds {token!r}; take it out, one is placed for each image "
            "of the row"
        )
        return
    stored = row.stored.as_py() or []
    try:
        opened = [open_image(image, config.max_pixels) for image in stored]
    except UnreadableImageError as error:
        row.errors[-1] = f"unreadable_image: row {row.id!r}: {error}"
        return
    pictures = [picture for picture, _ in opened]
    files = [file if unchanged else None for file, (_, unchanged) in zip(stored, opened, strict=True)]
    for mode, seeds in missing.items():
        prompt = prompt_for(mode, row.question)
        if config.views or config.corruptions:
            for seed in seeds:
                shown, corruption = _altered(pictures, seed, config)
                yield Asked(row, mode, Request(shown, prompt, [seed]), corruption)
        else:
            for run in _runs(seeds):
                yield Asked(row, mode, Request(pictures, prompt, run, files))


def _altered(pictures: list[Image], seed: int, config: CandidateConfig) -> tuple[list[Image], str | None]:
    """Return what one candidate is shown, and how it was damaged."""
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
