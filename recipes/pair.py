"""
Build preference pairs: chosen responses against what the model says of a damaged image, or what was ranked lowest.

accelerate launch recipes/pair.py --config recipes/digits/pair.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.data import load, pin
from sicog_trl.files import write_json
from sicog_trl.preferences import PairConfig, load_scores, make_pairs


@dataclass
class PairArguments:
    """
    Where both sides are and where the pairs go.

    Args:
        dataset_name (`list[str]`):
            The chosen side, artefact folders or Hub ids, at a revision or not: annotated or curated rows; candidates
            for `rejected_from: ranked`.
        output_dir (`str`):
            Artefact folder; splits `preference` and `dropped`.
        dataset_config (`str`, *optional*):
            Configuration of the chosen side on the Hub; the one named like the split, if there is one, unless given.
        dataset_split (`str`, *optional*, defaults to `"annotated"`):
            Split of the chosen side, such as `annotated`, `curated`, `candidates`.
        rejected_dataset_name (`list[str]`, *optional*):
            Candidates about damaged images: what `generate` wrote with `corruptions`.
        rejected_split (`str`, *optional*, defaults to `"candidates"`):
            Their split.
        scores (`list[str]`, *optional*):
            For `rejected_from: ranked` the folders that `curate` wrote from the candidates.
    """

    dataset_name: list[str] = field(metadata={"help": "The chosen side: Hub ids or artefact folders."})
    output_dir: str = field(metadata={"help": "Artefact folder; splits `preference` and `dropped`."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of Hub datasets."})
    dataset_split: str = field(default="annotated", metadata={"help": "Split of the chosen side."})
    rejected_dataset_name: list[str] | None = field(default=None, metadata={"help": "Candidates of damaged images."})
    rejected_split: str = field(default="candidates", metadata={"help": "Split of these candidates."})
    scores: list[str] | None = field(default=None, metadata={"help": "Folders that `curate` wrote."})

    def __post_init__(self) -> None:
        for name in ("dataset_name", "rejected_dataset_name", "scores"):
            if isinstance(value := getattr(self, name), str):  # YAML may name a single one
                setattr(self, name, [value])


ARGUMENTS = (PairArguments, PairConfig)


def main(args: PairArguments, pair_args: PairConfig) -> None:
    """Load both sides, pair them, summarise; one process does it all."""
    wanted, other = ("rejected_dataset_name", "scores")[:: 1 if pair_args.rejected_from == "damaged" else -1]
    if not getattr(args, wanted) or getattr(args, other):
        raise ValueError(f"rejected_from: {pair_args.rejected_from} needs {wanted}, and not {other}")
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process:
        names, rejected = (list(map(pin, side or [])) for side in (args.dataset_name, args.rejected_dataset_name))
        chosen = [load(name, args.dataset_config, args.dataset_split) for name in names]
        damaged = [load(name, None, args.rejected_split) for name in rejected]
        scores = [load_scores(folder) for folder in args.scores or []]
        made = make_pairs(chosen, pair_args, args.output_dir, damaged, scores)
        summary = {"dataset_name": names, "rejected_dataset_name": rejected, **made}
        write_json(Path(args.output_dir, "summary.json"), summary)
        print(json.dumps(summary))
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
