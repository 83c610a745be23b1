"""The whole line as a list of stages: what each one is given, and in which order.

SICOG's rounds: stage 1 teaches the model to look and think in steps from a little annotated data; then, each round, it
writes candidates for the unlabelled images, self-consistency curates them, a model is pre-trained on what was kept and
tuned on instructions. A control is the same list with one thing exchanged, so that all arms take the same number of
training steps.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation import EvaluationConfig
from ..generation import CandidateConfig
from .arguments import arguments_of, resolve
from .config import APART, ARM, CONTROLS, CURATED, LoopConfig


_CURATED = re.compile(r"(?<!\$)\$(curated\b|\{curated\})")


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
        arguments = arguments_of(section)
        plan.append(_stage(name, arguments.pop("recipe"), arguments, known))
    base = resolve(config.base_model, known)
    models, writers = {"base": base}, {}
    for part in APART if config.perception else ("cognition",):
        first = list(_first_stage(config, part, base, known))
        plan += first
        models |= {stage.name: str(stage.folder) for stage in first if stage.recipe in ("sft.py", "dpo.py")}
        writers[APART.get(part)] = str(first[-1].folder)
    if config.decontaminate:
        plan.append(_decontamination(config, known))
        known["clean"] = str(plan[-1].folder)
    for arm in [ARM, *config.controls]:
        rounds = list(_rounds(config, arm, base, writers, known))
        plan += rounds
        models[arm] = str(rounds[-1].folder)
    if config.evaluate:
        arguments = arguments_of(config.evaluate, models=models, reference=["base", *config.controls])
        plan.append(_stage("evaluate", "evaluate.py", arguments, known))
    _check_tags(plan)
    folders = [stage.folder.resolve() for stage in plan]
    for number, stage in enumerate(plan):
        if folders[number] in folders[:number]:  # the second one would pass for done
            raise ValueError(f"two stages are called {stage.name!r}; rename that of `prepare`, or name a control once")
    return plan


def _decontamination(config: LoopConfig, known: dict[str, Any]) -> Stage:
    """Return the stage that takes what the evaluation asks about out of the images to generate for."""
    pool, asked = arguments_of(config.generate), arguments_of(config.evaluate)
    filled = {
        "dataset_name": pool.get("dataset_name"),
        "dataset_config": pool.get("dataset_config"),
        "dataset_split": pool.get("dataset_train_split", "train"),
        "suite": asked.get("suite", EvaluationConfig.suite) if config.evaluate else None,
        "tasks": asked.get("tasks"),
        "evaluation_dataset_name": asked.get("dataset_name"),
    }
    given = {name: value for name, value in filled.items() if value is not None}
    arguments = arguments_of(config.decontaminate, **given)
    return _stage("decontaminate", "decontaminate.py", arguments, known)


def _first_stage(config: LoopConfig, part: str, base: str, known: dict[str, Any]) -> Iterator[Stage]:
    """Yield what makes one model of stage 1; the last stage is that model."""
    known = {**known, "part": part}
    name = part if part in APART else "stage1"
    taught = _stage(name, "sft.py", arguments_of(getattr(config, part), model_name_or_path=base), known)
    yield taught
    if config.stage1 == "sft":
        return
    model = {"model_name_or_path": str(taught.folder)}
    task = {"task": APART[part]} if part in APART else {}
    damage = _stage(f"{name}-damage", "generate.py", arguments_of(config.damage, **model, **task), known)
    arguments = arguments_of(config.pair, rejected_from="damaged", rejected_dataset_name=str(damage.folder))
    pair = _stage(f"{name}-pair", "pair.py", arguments, known)
    pairs = {"dataset_name": str(pair.folder), "dataset_train_split": "preference"}
    yield damage
    yield pair
    yield _stage(f"{name}-preference", "dpo.py", arguments_of(config.preference, **model, **pairs), known)


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
            arguments = arguments_of(config.curate, dataset_name="$candidates")
            for name in ("keep", "min_consistency"):
                if values := getattr(config, name):
                    arguments[name] = values[number - 1]
            if arm != ARM:
                arguments["strategy"] = CONTROLS[arm]
            yield _stage(f"{folder}/curate", "curate.py", arguments, own, **place)
        if arm == ARM and config.push:
            yield _push(config, number, written, own)
        if config.fresh_model:
            model = resolve(config.fresh_model, known)
        for name, section in (("pretrain", config.pretrain), ("instruct", config.instruct)):
            if not section:
                continue
            arguments = _trained(name, arguments_of(section, model_name_or_path=model), arm, bool(config.controls))
            stage = _stage(f"{folder}/{name}", "sft.py", arguments, own, **place)
            model = str(stage.folder)
            yield stage


def _push(config: LoopConfig, number: int, written: list[str], known: dict[str, Any]) -> Stage:
    """Return the stage that publishes what the main arm has made in a round, and the pairs of stage 1 if there are."""
    made = [{"path": known["curated"]}]  # all splits: what was kept, dropped, and told in turns
    pairs = [str(Path(config.output_dir, name)) for name in _pairs(config)]
    for split, folders in (("candidates", written), ("preference", pairs)):
        for task, folder in zip(APART.values() if len(folders) > 1 else [None], folders, strict=False):
            made.append({"path": folder, "split": split} | ({"config": f"{split}_{task}"} if task else {}))
    # Where the user names what is published, the card tells how the candidates came about all the same.
    steps = [*(written if "artefacts" in config.push else []), *([known["clean"]] if "clean" in known else [])]
    arguments = arguments_of(config.push, artefacts=made, made_by=steps or None, tag="round-$round")
    own = {**known, "round": str(number)}
    return _stage(f"{ARM}/round-{number}/push", "push.py", arguments, own, arm=ARM, round=number)


def _pairs(config: LoopConfig) -> list[str]:
    """Return the names of the stages that make preferences."""
    parts = APART if config.perception else ("stage1",)
    return [f"{part}-pair" for part in parts] if config.stage1 == "preference" else []


def _check_tags(plan: list[Stage]) -> None:
    """Refuse to publish two rounds under one tag: the second one would fail, after hours."""
    seen: set[tuple] = set()
    for stage in [stage for stage in plan if stage.recipe == "push.py" and stage.config.get("tag")]:
        name = (stage.config.get("hub_dataset_id"), stage.config["tag"])
        if name in seen:
            raise ValueError(f"push: two rounds have the tag {name[1]!r}; leave it out, or write $round into it")
        seen.add(name)


def _generations(number: int, writers: dict[str | None, str]) -> list[str]:
    """Return the names of the stages that write the candidates of a round."""
    return [f"{ARM}/round-{number}/generate" + (f"-{task}" if task else "") for task in writers]


def _generate(
    config: LoopConfig, number: int, writers: dict[str | None, str], known: dict[str, Any]
) -> Iterator[Stage]:
    earlier = _generations(number - 1, writers)
    for place, (name, (task, model)) in enumerate(zip(_generations(number, writers), writers.items(), strict=True)):
        # One model for both tasks takes both, even where the YAML is that of one of two models.
        arguments = arguments_of(config.generate, model_name_or_path=model, task=task)
        if "clean" in known:
            arguments |= {"dataset_name": "$clean", "dataset_config": None}
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
    config = {**resolve(arguments, known), "output_dir": str(Path(known["run"], name))}
    return Stage(name, recipe, config, **place)
