"""
Publish artefact folders as the configurations of one dataset repository, with a card; private unless told otherwise.

accelerate launch recipes/push.py --config recipes/digits/push.yaml
"""

from dataclasses import dataclass, field
from datetime import timedelta

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.hub import PushConfig, overview, push


@dataclass
class PushArguments:
    """
    Where the push is prepared.

    Args:
        output_dir (`str`):
            Gets the files that are pushed: a folder that `load_dataset` reads, to look at before.
    """

    output_dir: str = field(metadata={"help": "Gets the files that are pushed."})


ARGUMENTS = (PushArguments, PushConfig)


def main(args: PushArguments, push_args: PushConfig) -> None:
    """Prepare, compare with the Hub, push; one process does it all."""
    # Others, if there are any, may wait for hours.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    if state.is_main_process:
        try:
            print(overview(push(push_args, args.output_dir)), f"card and files: {args.output_dir}", sep="\n")
        except (ConnectionError, PermissionError) as error:  # says what to do
            raise SystemExit(f"error: {error}") from error
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
