"""Which candidates a run samples, and what of that decides their text."""

from dataclasses import dataclass, field
from typing import Any

from ..corruption import CORRUPTIONS
from ..prompts import STEPS, TASKS, prompt_for, task_of


Counts = dict[str, list]  # "description_modes" and "reasoning_modes" -> [mode, number of candidates] pairs


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
            Larger images are scaled down to this many pixels before the model sees them. It belongs to sampling
            alone: what a model is trained on keeps its size, which there the image processor's own limit bounds (such
            as its `max_pixels` or `longest_edge`).
        logprobs (`bool`, *optional*, defaults to `False`):
            Keep for each candidate `mean_logprob`: the mean log-probability, in nats, of its tokens (the end token
            among them) under the model's own distribution, before temperature and nucleus. Rounded to four decimals.
        task (`str`, *optional*):
            `"description"` takes only the rows without a question, `"reasoning"` only those with one: for models that
            do one of the two. The others are counted and left out; ids and texts are those that the rows have in a
            run over all of them.
        rows_per_shard (`int`, *optional*, defaults to `512`):
            Input rows per file: what a crash can lose.
        previous (`str`, *optional*):
            Folder of the candidates of an earlier round, made of the same rows. As many of them as that round was
            asked for count among those asked for here: rounds accumulate 3, 6, 9 candidates (SICOG). Within a row they
            stand by mode, and within a mode the older ones first.
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
    logprobs: bool = field(default=False, metadata={"help": "Keep the mean log-probability of each candidate."})
    task: str | None = field(default=None, metadata={"help": "Only the rows of this task.", "choices": tuple(TASKS)})
    rows_per_shard: int = field(default=512, metadata={"help": "Input rows per file."})
    previous: str | None = field(default=None, metadata={"help": "Candidates of an earlier round to add to."})
    seed: int = field(default=0, metadata={"help": "Seed of the run."})

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "max_completion_length", "max_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature is at least 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}")
        if self.task not in (None, *TASKS):
            raise ValueError(f"task: unknown {self.task!r}; choose from {', '.join(TASKS)}, or leave it out for both")
        if self.task and not getattr(self, f"{self.task}_modes"):
            raise ValueError(f"task is {self.task!r}, but {self.task}_modes is empty: there is nothing to sample")
        for task in TASKS:
            name = f"{task}_modes"
            for mode, count in getattr(self, name).items():
                if task_of(mode) != task:
                    raise ValueError(f"{name}: {mode!r} is a mode of the task {task_of(mode)!r}")
                if not isinstance(count, int) or count < 1:
                    raise ValueError(
                        f"{name}: {mode!r} asks for {count!r} candidates; give a whole number, or leave the mode out"
                    )
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
