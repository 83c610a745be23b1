"""What the tests of generation share: a sampler that answers at once, and the recipe's command line."""

import sys
from pathlib import Path

from sicog_trl.generation import Failure, Request, Response


ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "generate.py"
LENGTH = 12  # tokens; a random model seldom stops by itself


class EchoSampler:
    """
    Answers with what it was asked, and remembers it.

    Args:
        name (`str`):
            Starts every text.
        refused (`str`, *optional*):
            Requests whose prompt holds this fail.
    """

    placeholders = ("<image>",)

    def __init__(self, name: str = "", refused: str | None = None):
        self.name, self.refused = name, refused
        self.requests: list[Request] = []
        self.asked: list[int] = []  # seeds that got a candidate

    def sample(self, requests):
        requests = list(requests)
        self.requests += requests
        for number, request in reversed(list(enumerate(requests))):  # any order will do
            if self.refused and self.refused in request.prompt:
                yield number, Failure("refused", "not that one")
                continue
            self.asked += request.seeds
            yield number, [Response(f"{self.name}{request.prompt[:8]} {seed}", "stop", 3) for seed in request.seeds]


def shards(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the published shards of a run."""
    return {file.name: file.read_bytes() for file in sorted((folder / "data").glob("candidates-*.parquet"))}


def arguments(model: Path | str, images: Path | str, output_dir: Path, **options) -> list[str]:
    """Return the options of a small run of the recipe."""
    options = {
        "model_name_or_path": model,
        "dataset_name": images,
        "output_dir": output_dir,
        "max_completion_length": LENGTH,
        "rows_per_shard": 2,
        **options,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def command(*options, **others) -> list[str]:
    """Return the command that starts the recipe in one process; see [`arguments`]."""
    return [sys.executable, str(RECIPE), *arguments(*options, **others)]
