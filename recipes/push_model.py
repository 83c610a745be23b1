"""
Publish a trained model with its card as one commit of a model repository; private unless told otherwise.

accelerate launch recipes/push_model.py --config recipes/digits/push_model.yaml
"""

from dataclasses import dataclass, field
from datetime import timedelta

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.hub.model_config import PushModelConfig
from sicog_trl.hub.models import overview, push_model


@dataclass
class PushArguments:
    """
    Where the push is prepared.

    Args:
        output_dir (`str`):
            Gets `README.md`, the card as it is pushed, to look at before.
    """

    output_dir: str = field(metadata={"help": "Gets the card as it is pushed."})


ARGUMENTS = (PushArguments, PushModelConfig)


def main(args: PushArguments, push_args: PushModelConfig) -> None:
    """Write the card, compare with the Hub, push; one process does it all."""
    # Others, if there are any, may wait for hours.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    if state.is_main_process:
        try:
            print(overview(push_model(push_args, args.output_dir)), f"card: {args.output_dir}/README.md", sep="\n")
        except (ConnectionError, PermissionError) as error:  # says what to do
            raise SystemExit(f"error: {error}") from error
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
