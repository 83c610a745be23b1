"""From images to candidates: what each row is asked, and what becomes of the answers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from PIL.Image import Image

from ..corruption import CORRUPTIONS, damage
from ..data import CANDIDATES_FEATURES
from ..prompts import STEPS, prompt_for, task_of
from ..views import light_view
from .images import UnreadableImageError, open_image
from .sampling import Failure, Request, Response, Sampler, candidate_seed


Counts = dict[str, list]  # "description_modes" and "reasoning_modes" -> [mode, number of candidates] pairs

# ours: decoded images of a window of rows, about 400 MB in RGB; the next window is decoded while this one is answered.
_WINDOW_PIXELS = 2**27


@dataclass
class CandidateConfig:
    """
    Which candidates to sample.

    Args:
        description_modes (`dict[str, int]`, *optional*):
            Candidates per mode for rows without a question, given in YAML. Defaults to SICOG's two chains and one
            direct answer.
        reasoning_modes (`dict[str, int]`, *optional*):
            Candidates per mode for rows with a question, likewise.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature (SICOG); 0 means greedy.
        top_p (`float`, *optional*, defaults to `0.9`):
            Nucleus (SICOG).
        max_completion_length (`int`, *optional*, defaults to `1200`):
            Most tokens of a candidate (SICOG).
        views (`bool`, *optional*, defaults to `False`):
            Show each candidate another light view of the image (shift, brightness, noise).
        corruptions (`list[str]`, *optional*):
            Damage what the model sees, in these ways of [`~sicog_trl.corruption.CORRUPTIONS`]: a candidate in one of
            them, consecutive candidates of a row in one after the other. For the rejected side of preferences.
        max_pixels (`int`, *optional*):
            Larger images are scaled down to this many pixels before the model sees them.
        rows_per_shard (`int`, *optional*, defaults to `512`):
            Input rows per file: what a crash can lose.
        previous (`str`, *optional*):
            Folder of the candidates of an earlier round, made of the same rows. They count among those asked for, and
            only what is missing is sampled: rounds accumulate 3, 6, 9 candidates (SICOG).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the run.
    """

    description_modes: dict[str, int] = field(
        default_factory=lambda: {"chain_of_description": 2, "detailed_description": 1},
        metadata={"help": "Candidates per mode for rows without a question."},
    )
    reasoning_modes: dict[str, int] = field(
        default_factory=lambda: {"chain_of_thought": 2, "direct_answer": 1},
        metadata={"help": "Candidates per mode for rows with a question."},
    )
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature; 0 means greedy."})
    top_p: float = field(default=0.9, metadata={"help": "Nucleus."})
    max_completion_length: int = field(default=1200, metadata={"help": "Most tokens of a candidate."})
    views: bool = field(default=False, metadata={"help": "Show each candidate another light view of the image."})
    corruptions: list[str] | None = field(
        default=None, metadata={"help": "Damage what the model sees, in these ways."}
    )
    max_pixels: int | None = field(default=None, metadata={"help": "Scale larger images down to this many pixels."})
    rows_per_shard: int = field(default=512, metadata={"help": "Input rows per file."})
    previous: str | None = field(default=None, metadata={"help": "Candidates of an earlier round to add to."})
    seed: int = field(default=0, metadata={"help": "Seed of the run."})

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is at least 1, got {self.rows_per_shard}")
        for name, task in (("description_modes", "description"), ("reasoning_modes", "reasoning")):
            for mode, count in getattr(self, name).items():
                if task_of(mode) != task:
                    raise ValueError(f"{name}: {mode!r} is a mode of the task {task_of(mode)!r}")
                if count < 1:
                    raise ValueError(f"{name}: {mode!r} asks for {count} candidates; leave the mode out instead")
        if unknown := [name for name in self.corruptions or [] if name not in CORRUPTIONS]:
            raise ValueError(f"corruptions: unknown {unknown[0]!r}; choose from {', '.join(CORRUPTIONS)}")

    @property
    def counts(self) -> Counts:
        """Candidates per mode, as pairs, because they stand in that order."""
        return {
            "description_modes": [list(pair) for pair in self.description_modes.items()],
            "reasoning_modes": [list(pair) for pair in self.reasoning_modes.items()],
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the text of a candidate, whatever number of them is asked for."""
        others = ("rows_per_shard", "description_modes", "reasoning_modes", "previous")
        return {
            "prompts": {
                mode: prompt_for(mode, "{question}" if task_of(mode) == "reasoning" else None) for mode in STEPS
            },
            **{name: value for name, value in vars(self).items() if name not in others},
        }


class _Row:
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


def fill(
    table: pa.Table,
    sampler: Sampler,
    config: CandidateConfig,
    known: pa.Table | None = None,
    inherited: pa.Table | None = None,
    on_row: Callable[[bool], None] = lambda failed: None,
    on_response: Callable[[Response], None] = lambda response: None,
) -> pa.Table:
    """
    Append the task, the candidates and the error of each row to the untouched input columns.

    Args:
        table (`pa.Table`):
            Rows of the images contract, images undecoded.
        sampler (`Sampler`):
            Answers the requests.
        config ([`CandidateConfig`]):
            Which candidates to sample.
        known (`pa.Table`, *optional*):
            What this run has sampled for these rows before; only what is missing is sampled.
        inherited (`pa.Table`, *optional*):
            Candidates of these rows from an earlier round, which count among those asked for.
        on_row, on_response (`Callable`, *optional*):
            Called when a row is done, with whether it failed, and with each response.

    Returns:
        `pa.Table`: with the schema of the candidates contract.
    """
    contents = table.select(["id", "question"]).to_pylist()
    before = [
        earlier["candidates"].to_pylist() if earlier is not None else [[]] * len(contents)
        for earlier in (known, inherited)
    ]
    rows = [_Row(*parts) for parts in zip(contents, table["images"], *before, strict=True)]
    for window in _ahead(_windows(rows, sampler.placeholders, config)):
        _answer(window, sampler, on_row, on_response)
    columns = {
        "task": [row.task for row in rows],
        "candidates": [row.collected(config) for row in rows],
        "error": [row.error for row in rows],
    }
    schema = CANDIDATES_FEATURES.arrow_schema
    for name, values in columns.items():
        table = table.append_column(schema.field(name), pa.array(values, type=schema.field(name).type))
    return table.cast(schema)


@dataclass(frozen=True)
class _Asked:
    row: _Row
    mode: str
    request: Request
    corruption: str | None = None


_Window = tuple[list[_Row], list[_Asked]]


def _ahead(windows: Iterator[_Window]) -> Iterator[_Window]:
    """Prepare the next window in a thread: decoding images leaves the interpreter free."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, windows, None)
        while (window := coming.result()) is not None:
            coming = thread.submit(next, windows, None)
            yield window


def _windows(rows: list[_Row], placeholders: tuple[str, ...], config: CandidateConfig) -> Iterator[_Window]:
    """Open images for so many rows that memory stays bounded, whatever the size of the images and of the shard."""
    window: _Window = ([], [])
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


def _ask(row: _Row, placeholders: tuple[str, ...], config: CandidateConfig) -> Iterator[_Asked]:
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
                yield _Asked(row, mode, Request(shown, prompt, [seed]), corruption)
        else:
            for run in _runs(seeds):
                yield _Asked(row, mode, Request(pictures, prompt, run, files))


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


def _answer(
    window: _Window, sampler: Sampler, on_row: Callable[[bool], None], on_response: Callable[[Response], None]
) -> None:
    """Sample all requests of a window and hand the answers to their rows."""
    rows, asked = window
    for one in asked:
        one.row.unanswered += 1
    for row in rows:
        if not row.unanswered:
            on_row(row.error is not None)
    for number, answer in sampler.sample([one.request for one in asked]):
        one = asked[number]
        if isinstance(answer, Failure):
            one.row.errors[number] = f"{answer.reason}: row {one.row.id!r}: {answer.message}"
        else:
            for seed, response in zip(one.request.seeds, answer, strict=True):
                one.row.candidates[one.mode, seed] = _candidate(one, seed, response)
                on_response(response)
        one.row.unanswered -= 1
        if not one.row.unanswered:
            on_row(one.row.error is not None)
    if left := sum(row.unanswered for row in rows):
        raise RuntimeError(f"{type(sampler).__name__} left {left} of {len(asked)} requests without an answer")


def _candidate(asked: _Asked, seed: int, response: Response) -> dict[str, Any]:
    return {
        "text": response.text,
        "mode": asked.mode,
        "prompt": asked.request.prompt,
        "seed": seed,
        "finish_reason": response.finish_reason,
        "num_tokens": response.num_tokens,
        "corruption": asked.corruption,
    }
