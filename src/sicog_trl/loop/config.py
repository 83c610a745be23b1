"""What a run of the whole line is: its sections, rounds and controls."""

from dataclasses import dataclass, field

from ..credentials import refuse_credentials


ARM = "sicog"
# Control -> how it chooses from the candidates of the main arm; `None` trains on no self-generated data.
CONTROLS = {"annotated_only": None, "random_candidate": "random", "oracle": "oracle"}
CURATED = "$curated"
# Model of stage 1, where there are two -> the task that it writes candidates for.
APART = {"perception": "description", "reasoning": "reasoning"}
STAGE1 = ("sft", "preference")
_SECTIONS = (
    *("cognition", "perception", "reasoning", "damage", "pair", "preference"),
    *("decontaminate", "generate", "curate", "push", "pretrain", "instruct", "evaluate"),
)


@dataclass
class LoopConfig:
    """
    A run of the whole line.

    The sections below hold the arguments of a recipe as its own YAML would; with the key `config` they start from such
    a YAML and replace what they name. In their strings `$run` is the folder of the run, `$seed` its seed (another one
    each round), `$candidates` and `$curated` the datasets that the round has made, `$part` the model of stage 1 that
    the section is for (`cognition`, `perception` or `reasoning`), `$round` in `push` the number of the round.
    `output_dir` and, unless they are named, the model that an arm has reached and the dataset that the stage before
    has written are filled in.

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
        decontaminate (`dict`, *optional*):
            Arguments of decontaminate.py, run once before the rounds: the images of `generate` without those that
            `evaluate` asks about, from which generation then reads. `suite`, `tasks` and `evaluation_dataset_name`
            are those of `evaluate` unless they are named.
        generate, curate, pretrain (`dict`):
            Arguments of the stages of a round.
        push (`dict`, *optional*):
            Arguments of push.py, run after each curation of the main arm, never of a control; the licences have to be
            named. Unless they are named, `artefacts` are what the round has curated and dropped, its candidates and
            the pairs of stage 1, `made_by` the earlier steps, and `tag` is `round-$round`. Other arguments than before
            push again, which does not touch the rest of the line: try it with `dry_run: true`.
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
    decontaminate: dict = field(default_factory=dict, metadata={"help": "Arguments of decontaminate.py."})
    damage: dict = field(default_factory=dict, metadata={"help": "Arguments of generate.py for rejected answers."})
    pair: dict = field(default_factory=dict, metadata={"help": "Arguments of pair.py."})
    preference: dict = field(default_factory=dict, metadata={"help": "Arguments of dpo.py."})
    push: dict = field(default_factory=dict, metadata={"help": "Arguments of push.py."})
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
            refuse_credentials(section, name)
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
