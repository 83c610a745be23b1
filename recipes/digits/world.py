"""
Write the digits world: its pools and the model that starts in them.

accelerate launch recipes/digits/world.py --output_dir runs/digits
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.data import save
from sicog_trl.digits import annotated_pool, evaluation_pool, preference_pool, unlabelled_pool
from sicog_trl.digits.model import build_model, build_processor, warm_up_tower


@dataclass
class WorldArguments:
    """
    What to write.

    Args:
        output_dir (`str`):
            Folder for `annotated`, `preference`, `unlabelled`, `development`, `test` (artefact folders) and `model`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the scenes and of the weights.
        annotated, unlabelled, development, test (`int`, *optional*):
            Scenes per pool.
        tower_steps (`int`, *optional*, defaults to `600`):
            Training steps of the vision tower on the annotated scenes; 0 leaves it random.
    """

    output_dir: str = field(metadata={"help": "Folder for the pools and the model."})
    seed: int = field(default=0, metadata={"help": "Seed of the scenes and the weights."})
    annotated: int = field(default=300, metadata={"help": "Annotated scenes."})
    unlabelled: int = field(default=3000, metadata={"help": "Unlabelled scenes."})
    development: int = field(default=400, metadata={"help": "Development scenes: every choice is made on them."})
    test: int = field(default=1000, metadata={"help": "Test scenes: only the report reads them."})
    tower_steps: int = field(default=600, metadata={"help": "Training steps of the vision tower."})


ARGUMENTS = (WorldArguments,)


def main(args: WorldArguments) -> None:
    """Let one process write, however many were launched."""
    # Without `cpu`, processes on the CPU do not find each other.
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process:
        write(args)
    state.wait_for_everyone()


def write(args: WorldArguments) -> None:
    """Write the pools, then the model."""
    output_dir = Path(args.output_dir)
    annotated = annotated_pool(args.annotated, args.seed)
    pools = {
        "annotated": annotated,
        "preference": {"train": preference_pool(args.annotated, args.seed)},
        "unlabelled": {"train": unlabelled_pool(args.unlabelled, args.seed)},
        "development": evaluation_pool("development", args.development, args.seed),
        "test": evaluation_pool("test", args.test, args.seed),
    }
    for pool, splits in pools.items():
        for split, dataset in splits.items():
            print(f"{save(dataset, output_dir / pool, split)}: {len(dataset)} rows")

    model = build_model(output_dir / "model", args.seed)
    if args.tower_steps:
        modes = annotated["base"].select_columns("mode")["mode"]
        scenes = annotated["base"].select([i for i, mode in enumerate(modes) if mode == "detailed_description"])
        named = warm_up_tower(model, build_processor(), scenes, steps=args.tower_steps, seed=args.seed)
        print(f"vision tower: {named:.1%} of the cells of the last training batch named right")
        model.save_pretrained(output_dir / "model")


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
