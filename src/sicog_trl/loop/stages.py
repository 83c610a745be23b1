"""The whole line as a list of stages: what each one is given, and in which order.

SICOG's rounds: stage 1 teaches the model to look and think in steps from a little annotated data; then, each round, it
writes candidates for the unlabelled images, self-consistency curates them, a model is pre-trained on what was kept and
tuned on instructions. A control is the same list with one thing exchanged, so that all arms take the same number of
training steps.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from .generation import CandidateConfig


ARM = "sicog"
# Control -> how it chooses from the candidates of the main arm; `None` trains on no self-generated data.
CONTROLS = {"annotated_only": None, "random_candidate": "random", "oracle": "oracle"}
CURATED = "$curated"
_CURATED = re.compile(r"(?<!\$)\$(curated\b|\{curated\})")
# Model of stage 1, where there are two -> the task that it writes candidates for.
APART = {"perception": "description", "reasoning": "reasoning"}
STAGE1 = ("sft", "preference")
_SECTIONS = (
    *("cognition", "perception", "reasoning", "damage", "pair", "preference"),
    *("generate", "curate", "pretrain", "instruct", "evaluate"),
)


@dataclass
class LoopConfig:
    """
    A run of the whole line.

    The sections below hold the arguments of a recipe as its own YAML would; with the key `config` they start from such
    a YAML and replace what they name. In their strings `$run` is the folder of the run, `$seed` its seed (another one
    each round), `$candidates` and `$curated` the datasets that the round has made, `$part` the model of stage 1 that
    the section is for (`cognition`, `perception` or `reasoning`). `output_dir` and, unless they are named, the model
    that an arm has reached and the dataset that the stage before has written are filled in.

    Args:
        output_dir (`str`):
            Folder of the run: one sub-folder per stage, the report on top.
        prepare (`dict[str, dict]`, *optional*):
            Stages to run first, by name; each names its `recipe` (path below `recipes/`).
        base_model (`str`):
            The model to start from.
        cognition (`dict`, *optional*):
            Arguments of sft.py for stage 1, one model for both tasks. Or:
        perception, reasoning (`dict`, *optional*):
            Arguments of sft.py for two models apart, as in the paper: one writes descriptions, one answers.
        stage1 (`str`, *optional*, defaults to `"sft"`):
            `"preference"` goes on from there with preferences: the model writes answers about damaged images
            (`damage`), they become the rejected sides of pairs (`pair`), and `preference` trains on these.
        damage, pair, preference (`dict`, *optional*):
            Arguments of generate.py, pair.py and dpo.py for that.
        generate, curate, pretrain (`dict`):
            Arguments of the stages of a round.
        instruct (`dict`, *optional*):
            Arguments of sft.py for instruction tuning; without it a round ends with pre-training.
        evaluate (`dict`, *optional*):
            Arguments of evaluate.py; without it the run ends without scores and report.
        rounds (`int`, *optional*, defaults to `1`):
            Rounds of self-improvement.
        accumulate (`bool`, *optional*, defaults to `True`):
            Round n adds its candidates to those of the rounds before: 3, 6, 9, as in the paper. Otherwise each round
            starts with none.
        fresh_model (`str`, *optional*):
            The model that pre-training starts from in every round: in the paper vision tower, language model and
            aligned projector, untouched by stage 1. Without it pre-training goes on from the model reached so far (in
            round 1 from `base_model`, if stage 1 made two).
        keep, min_consistency (`list`, *optional*):
            What curation keeps, one value per round; see [`~sicog_trl.curation.CurationConfig`].
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
    generate: dict = field(metadata={"help": "Arguments of generate.py."})
    curate: dict = field(metadata={"help": "Arguments of curate.py."})
    pretrain: dict = field(metadata={"help": "Arguments of sft.py for pre-training."})
    cognition: dict = field(default_factory=dict, metadata={"help": "Arguments of sft.py for stage 1, one model."})
    perception: dict = field(default_factory=dict, metadata={"help": "Or: for the model that describes, and"})
    reasoning: dict = field(default_factory=dict, metadata={"help": "for the model that reasons."})
    stage1: str = field(default="sft", metadata={"help": "How stage 1 ends.", "choices": STAGE1})
    damage: dict = field(default_factory=dict, metadata={"help": "Arguments of generate.py for rejected answers."})
    pair: dict = field(default_factory=dict, metadata={"help": "Arguments of pair.py."})
    preference: dict = field(default_factory=dict, metadata={"help": "Arguments of dpo.py."})
    evaluate: dict = field(default_factory=dict, metadata={"help": "Arguments of evaluate.py."})
    instruct: dict = field(default_factory=dict, metadata={"help": "Arguments of sft.py for instruction tuning."})
    prepare: dict = field(default_factory=dict, metadata={"help": "Stages to run first, by name."})
    rounds: int = field(default=1, metadata={"help": "Rounds of self-improvement."})
    accumulate: bool = field(default=True, metadata={"help": "Add to the candidates of the rounds before."})
    fresh_model: str | None = field(default=None, metadata={"help": "Model that every pre-training starts from."})
    keep: list[float] | None = field(default=None, metadata={"help": "Share of rows kept, one value per round."})
    min_consistency: list[str] | None = field(default=None, metadata={"help": "Threshold, one value per round."})
    controls: list[str] = field(default_factory=list, metadata={"help": "Further arms of equal training steps."})
    seed: int = field(default=0, metadata={"help": "Seed of everything."})
    accelerate_config: str = field(
        default="accelerate_configs/cpu.yaml", metadata={"help": "How stages are launched."}
    )

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is at least 1, got {self.rounds}")
        sections = {name: getattr(self, name) for name in ("prepare", *_SECTIONS)}
        for name, section in [*sections.items(), *(self.prepare.items() if isinstance(self.prepare, dict) else ())]:
            if not isinstance(section, dict):
                raise ValueError(f"{name} is a mapping of arguments, or {{config: its YAML}}; got {section!r:.80}")
        if unnamed := [name for name, section in self.prepare.items() if "recipe" not in section]:
            raise ValueError(f"prepare: {unnamed[0]!r} does not name its `recipe`")
        if unknown := [control for control in self.controls if control not in CONTROLS]:
            raise ValueError(f"controls: unknown {unknown[0]!r}; choose from {', '.join(CONTROLS)}")
        for name in ("keep", "min_consistency"):
            values = getattr(self, name)
            if values is not None and not isinstance(values, list):
                raise ValueError(f"{name} is a list with one value per round, got {values!r}")
            if values is not None and len(values) != self.rounds:
                raise ValueError(f"{name} has {len(values)} values for {self.rounds} rounds; give one per round")
        if bool(self.cognition) == bool(self.perception or self.reasoning):
            raise ValueError("stage 1 is either `cognition`, or `perception` and `reasoning`: give one of the two")
        if bool(self.perception) != bool(self.reasoning):
            raise ValueError("two models of stage 1 need both `perception` and `reasoning`")
        if self.stage1 not in STAGE1:
            raise ValueError(f"stage1 is one of {', '.join(STAGE1)}, got {self.stage1!r}")
        for name in ("damage", "pair", "preference"):
            if self.stage1 == "preference" and not getattr(self, name):
                raise ValueError(f"stage1: preference needs the section `{name}`")


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
    known: dict[str, Any] = {"run": str(Path(config.output_dir)), "seed": config.seed}
    plan = []
    for name, section in config.prepare.items():
        arguments = _section(section)
        plan.append(_stage(name, arguments.pop("recipe"), arguments, known))
    base = _resolve(config.base_model, known)
    models, writers = {"base": base}, {}
    for part in APART if config.perception else ("cognition",):
        first = list(_first_stage(config, part, base, known))
        plan += first
        models |= {stage.name: str(stage.folder) for stage in first if stage.recipe in ("sft.py", "dpo.py")}
        writers[APART.get(part)] = str(first[-1].folder)
    for arm in [ARM, *config.controls]:
        rounds = list(_rounds(config, arm, base, writers, known))
        plan += rounds
        models[arm] = str(rounds[-1].folder)
    if config.evaluate:
        arguments = _section(config.evaluate, models=models, reference=["base", *config.controls])
        plan.append(_stage("evaluate", "evaluate.py", arguments, known))
    folders = [stage.folder.resolve() for stage in plan]
    for number, stage in enumerate(plan):
        if folders[number] in folders[:number]:  # the second one would pass for done
            raise ValueError(f"two stages are called {stage.name!r}; rename that of `prepare`, or name a control once")
    return plan


def _first_stage(config: LoopConfig, part: str, base: str, known: dict[str, Any]) -> Iterator[Stage]:
    """Yield what makes one model of stage 1; the last stage is that model."""
    known = {**known, "part": part}
    name = part if part in APART else "stage1"
    taught = _stage(name, "sft.py", _section(getattr(config, part), model_name_or_path=base), known)
    yield taught
    if config.stage1 == "sft":
        return
    model = {"model_name_or_path": str(taught.folder)}
    task = {"task": APART[part]} if part in APART else {}
    damage = _stage(f"{name}-damage", "generate.py", _section(config.damage, **model, **task), known)
    arguments = _section(config.pair, rejected_from="damaged", rejected_dataset_name=str(damage.folder))
    pair = _stage(f"{name}-pair", "pair.py", arguments, known)
    pairs = {"dataset_name": str(pair.folder), "dataset_train_split": "preference"}
    yield damage
    yield pair
    yield _stage(f"{name}-preference", "dpo.py", _section(config.preference, **model, **pairs), known)


def _rounds(
    config: LoopConfig, arm: str, base: str, writers: dict[str | None, str], known: dict[str, Any]
) -> Iterator[Stage]:
    """Yield the rounds of an arm; `writers` are the models of stage 1 by the task that they write candidates for."""
    run, model = Path(config.output_dir), writers.get(None, base)
    for number in range(1, config.rounds + 1):
        folder = f"{arm}/round-{number}"
        own = {**known, "seed": config.seed + 1000 * number, "curated": str(run / folder / "curate")}
        # The controls choose from the main arm's candidates, so that what differs is the choice.
        written = [str(run / name) for name in _generations(number, writers)]
        own["candidates"] = written if len(written) > 1 else written[0]
        place = {"arm": arm, "round": number}
        if arm == ARM:
            yield from _generate(config, number, writers if number == 1 else dict.fromkeys(writers, model), own)
        if arm != "annotated_only":
            arguments = _section(config.curate, dataset_name="$candidates")
            for name in ("keep", "min_consistency"):
                if values := getattr(config, name):
                    arguments[name] = values[number - 1]
            if arm != ARM:
                arguments["strategy"] = CONTROLS[arm]
            yield _stage(f"{folder}/curate", "curate.py", arguments, own, **place)
        if config.fresh_model:
            model = _resolve(config.fresh_model, known)
        for name, section in (("pretrain", config.pretrain), ("instruct", config.instruct)):
            if not section:
                continue
            arguments = _trained(name, _section(section, model_name_or_path=model), arm, bool(config.controls))
            stage = _stage(f"{folder}/{name}", "sft.py", arguments, own, **place)
            model = str(stage.folder)
            yield stage


def _generations(number: int, writers: dict[str | None, str]) -> list[str]:
    """Return the names of the stages that write the candidates of a round."""
    return [f"{ARM}/round-{number}/generate" + (f"-{task}" if task else "") for task in writers]


def _generate(
    config: LoopConfig, number: int, writers: dict[str | None, str], known: dict[str, Any]
) -> Iterator[Stage]:
    earlier = _generations(number - 1, writers)
    for place, (name, (task, model)) in enumerate(zip(_generations(number, writers), writers.items(), strict=True)):
        # One model for both tasks takes both, even where the YAML is that of one of two models.
        arguments = _section(config.generate, model_name_or_path=model, task=task)
        if config.accumulate and number > 1:
            arguments["previous"] = str(Path(config.output_dir, earlier[place]))
            for modes in ("description_modes", "reasoning_modes"):
                counts = arguments.get(modes, getattr(CandidateConfig(), modes))
                if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
                    raise ValueError(f"generate: {modes} is a mapping from modes to numbers, got {counts!r:.80}")
                arguments[modes] = {mode: number * count for mode, count in counts.items()}
        yield _stage(name, "generate.py", arguments, known, arm=ARM, round=number)


def _trained(name: str, arguments: dict, arm: str, controlled: bool) -> dict:
    """Check that arms are equal in steps, and take self-generated data from the control that has none."""
    if controlled and int(arguments.get("max_steps", -1)) < 1:
        raise ValueError(f"{name}: give `max_steps`; arms with other data are equal in steps, not in epochs")
    if arm == "annotated_only":
        sources = arguments.get("datasets") or []
        arguments["datasets"] = [source for source in sources if not _CURATED.search(str(source))]
        if not arguments["datasets"]:
            raise ValueError(f"{name}: the control `annotated_only` needs a source in `datasets` beside {CURATED}")
    return arguments


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
    if not isinstance(start, dict):
        raise ValueError(f"config: {path} holds no arguments, but {start!r:.80}")
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
        except ValueError as error:
            raise ValueError(f"{value!r}: a $ that names nothing is written $$") from error
    return value
