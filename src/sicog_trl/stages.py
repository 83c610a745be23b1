"""The whole line as a list of stages: what each one is given, and in which order.

SICOG's rounds: stage 1 teaches the model to look and think in steps from a little annotated data; then, each round, it
writes candidates for the unlabelled images, self-consistency curates them, a model is pre-trained on what was kept and
tuned on instructions. A control is the same list with one thing exchanged, so that all arms take the same number of
training steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml


ARM = "sicog"
# Control -> how it chooses from the candidates of the main arm; `None` trains on no self-generated data.
CONTROLS = {"annotated_only": None, "random_candidate": "random", "oracle": "oracle"}
CURATED = "$curated"


@dataclass
class LoopConfig:
    """
    A run of the whole line.

    The sections below hold the arguments of a recipe as its own YAML would; with the key `config` they start from such
    a YAML and replace what they name. In their strings `$run` is the folder of the run, `$seed` its seed (another one
    each round), `$candidates` and `$curated` the datasets that the round has made. `output_dir` and, unless it is
    named, the model that an arm has reached are filled in.

    Args:
        output_dir (`str`):
            Folder of the run: one sub-folder per stage, the report on top.
        prepare (`dict[str, dict]`, *optional*):
            Stages to run first, by name; each names its `recipe` (path below `recipes/`).
        base_model (`str`):
            The model to start from.
        cognition, generate, curate, pretrain, instruct, evaluate (`dict`):
            Arguments of the stages. `instruct` may be empty; then the round ends with pre-training.
        rounds (`int`, *optional*, defaults to `1`):
            Rounds of self-improvement.
        keep (`list[float]`, *optional*):
            Share of the rows that curation keeps, one value per round.
        controls (`list[str]`, *optional*):
            Further arms of equal training steps: `annotated_only` (no self-generated data), `random_candidate` (as
            many rows and candidates, drawn by chance from the same ones), `oracle` (the true labels of as many rows).
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything.
        accelerate_config (`str`, *optional*, defaults to `"accelerate_configs/cpu.yaml"`):
            How the stages are launched.
    """

    output_dir: str = field(metadata={"help": "Folder of the run."})
    base_model: str = field(metadata={"help": "The model to start from."})
    cognition: dict = field(metadata={"help": "Arguments of sft.py for stage 1."})
    generate: dict = field(metadata={"help": "Arguments of generate.py."})
    curate: dict = field(metadata={"help": "Arguments of curate.py."})
    pretrain: dict = field(metadata={"help": "Arguments of sft.py for pre-training."})
    evaluate: dict = field(metadata={"help": "Arguments of evaluate.py."})
    instruct: dict = field(default_factory=dict, metadata={"help": "Arguments of sft.py for instruction tuning."})
    prepare: dict = field(default_factory=dict, metadata={"help": "Stages to run first, by name."})
    rounds: int = field(default=1, metadata={"help": "Rounds of self-improvement."})
    keep: list[float] | None = field(default=None, metadata={"help": "Share of rows kept, one value per round."})
    controls: list[str] = field(default_factory=list, metadata={"help": "Further arms of equal training steps."})
    seed: int = field(default=0, metadata={"help": "Seed of everything."})
    accelerate_config: str = field(
        default="accelerate_configs/cpu.yaml", metadata={"help": "How stages are launched."}
    )

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is at least 1, got {self.rounds}")
        if unnamed := [name for name, section in self.prepare.items() if "recipe" not in section]:
            raise ValueError(f"prepare: {unnamed[0]!r} does not name its `recipe`")
        if unknown := [control for control in self.controls if control not in CONTROLS]:
            raise ValueError(f"controls: unknown {unknown[0]!r}; choose from {', '.join(CONTROLS)}")
        if self.keep is not None and len(self.keep) != self.rounds:
            raise ValueError(f"keep has {len(self.keep)} values for {self.rounds} rounds; give one per round")


@dataclass(frozen=True)
class Stage:
    """
    One run of one recipe.

    Args:
        name (`str`):
            Path below the folder of the run, such as `sicog/round-1/generate`.
        recipe (`str`):
            Path below `recipes/`.
        config (`dict[str, Any]`):
            The resolved arguments, `output_dir` included.
        arm (`str` or `None`):
            `None` for what all arms share.
        round (`int` or `None`):
            Counted from 1.
    """

    name: str
    recipe: str
    config: dict[str, Any]
    arm: str | None = None
    round: int | None = None

    @property
    def folder(self) -> Path:
        """Folder of the stage."""
        return Path(self.config["output_dir"])


def stages(config: LoopConfig) -> list[Stage]:
    """Return all stages of a run, in order, with every argument resolved."""
    run = Path(config.output_dir)
    known: dict[str, Any] = {"run": str(run), "seed": config.seed}
    plan = []
    for name, section in config.prepare.items():
        arguments = _section(section)
        plan.append(_stage(name, arguments.pop("recipe"), arguments, known))
    base = _resolve(config.base_model, known)
    plan.append(_stage("stage1", "sft.py", _section(config.cognition, model_name_or_path=base), known))
    models = {"base": base, "stage1": str(run / "stage1")}
    for arm in [ARM, *config.controls]:
        rounds = list(_rounds(config, arm, known))
        plan += rounds
        models[arm] = str(rounds[-1].folder)
    arguments = _section(config.evaluate, models=models, reference=["base", *config.controls])
    plan.append(_stage("evaluate", "evaluate.py", arguments, known))
    return plan


def _rounds(config: LoopConfig, arm: str, known: dict[str, Any]) -> Iterator[Stage]:
    run, model = Path(config.output_dir), str(Path(config.output_dir, "stage1"))
    for number in range(1, config.rounds + 1):
        folder = f"{arm}/round-{number}"
        own = {
            **known,
            "seed": config.seed + 1000 * number,
            # The controls choose from the main arm's candidates, so that what differs is the choice.
            "candidates": str(run / ARM / f"round-{number}" / "generate"),
            "curated": str(run / folder / "curate"),
        }
        place = {"arm": arm, "round": number}
        if arm == ARM:
            arguments = _section(config.generate, model_name_or_path=model)
            yield _stage(f"{folder}/generate", "generate.py", arguments, own, **place)
        if arm != "annotated_only":
            arguments = _section(config.curate, dataset_name="$candidates")
            if config.keep:
                arguments["keep"] = config.keep[number - 1]
            if arm != ARM:
                arguments["strategy"] = CONTROLS[arm]
            yield _stage(f"{folder}/curate", "curate.py", arguments, own, **place)
        for name, section in (("pretrain", config.pretrain), ("instruct", config.instruct)):
            if not section:
                continue
            arguments = _section(section, model_name_or_path=model)
            if config.controls and int(arguments.get("max_steps", -1)) < 1:
                raise ValueError(f"{name}: give `max_steps`; arms with other data are equal in steps, not in epochs")
            if arm == "annotated_only":
                sources = [source for source in arguments.get("datasets") or [] if source["path"] != CURATED]
                if not sources:
                    raise ValueError(
                        f"{name}: the control `annotated_only` needs a source in `datasets` beside {CURATED}"
                    )
                arguments["datasets"] = sources
            stage = _stage(f"{folder}/{name}", "sft.py", arguments, own, **place)
            model = str(stage.folder)
            yield stage


def _stage(name: str, recipe: str, arguments: dict, known: dict[str, Any], **place: Any) -> Stage:
    config = {**_resolve(arguments, known), "output_dir": str(Path(known["run"], name))}
    return Stage(name, recipe, config, **place)


def _section(section: dict, **filled: Any) -> dict:
    """Return the arguments of a section: its own, then what the loop fills in, then the YAML it starts from."""
    section = dict(section)
    path = Path(section.pop("config", ""))
    if path.name and not path.exists():
        raise FileNotFoundError(f"config: {path} does not exist; paths are relative to the working directory")
    start = yaml.safe_load(path.read_text()) if path.name else {}
    return {**start, **filled, **section}


def _resolve(value: Any, known: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(part, known) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolve(part, known) for part in value]
    if isinstance(value, str) and "$" in value:
        if value[1:] in known:
            return known[value[1:]]  # keeps the type of a seed
        try:
            return Template(value).substitute(known)
        except KeyError as error:
            raise ValueError(f"{value!r}: there is no ${error.args[0]} here; known are {sorted(known)}") from error
    return value
