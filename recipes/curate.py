"""
Keep what the model says consistently: candidates become the splits `curated` and `dropped`.

accelerate launch recipes/curate.py --config recipes/digits/curate.yaml
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.curation import CurationConfig, curate, load_candidates
from sicog_trl.curation.selection import advice, overview
from sicog_trl.data import pin
from sicog_trl.files import write_json


@dataclass
class CurateArguments:
    """
    Where the candidates are and where the dataset goes.

    Args:
        dataset_name (`str` or `list[str]`):
            Candidates: artefact folders or Hub ids, at a revision or not; several if a perception and a reasoning
            model wrote them apart.
        output_dir (`str`):
            Artefact folder; splits `curated`, `dropped` and, if asked for, `multi_turn`.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset; the one named like the split, if there is one, unless given.
        dataset_split (`str`, *optional*, defaults to `"candidates"`):
            Split of the candidates.
    """

    dataset_name: list[str] = field(metadata={"help": "Candidates: Hub ids or artefact folders."})
    output_dir: str = field(metadata={"help": "Artefact folder; splits `curated` and `dropped`."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="candidates", metadata={"help": "Split of the candidates."})

    def __post_init__(self) -> None:
        if isinstance(self.dataset_name, str):  # YAML may give one name without a list
            self.dataset_name = [self.dataset_name]


ARGUMENTS = (CurateArguments, CurationConfig)


def main(args: CurateArguments, curation_args: CurationConfig) -> None:
    """Load the candidates, curate, summarise; one process does it all."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process:
        names = [pin(name) for name in args.dataset_name]
        candidates = load_candidates(names, args.dataset_config, args.dataset_split)
        summary = {"dataset_name": names, **curate(candidates, curation_args, args.output_dir)}
        write_json(Path(args.output_dir, "summary.json"), summary)
        print(overview(summary))
        print(json.dumps(summary))
        if warning := advice(summary):
            print(warning, file=sys.stderr)
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
