"""
Assemble a vision-language model from a vision tower and a language model, with a fresh or an aligned projector.

accelerate launch recipes/assemble.py --config recipes/sicog/llava_qwen2_7b/assemble.yaml
"""

import json
from datetime import timedelta

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.assembly import AssemblyConfig, assemble


ARGUMENTS = (AssemblyConfig,)


def main(config: AssemblyConfig) -> None:
    """Let one process assemble, however many were launched."""
    # Without `cpu`, processes on the CPU do not find each other. The first one may download for hours.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
    if state.is_main_process:
        print(f"{config.output_dir}: {json.dumps(assemble(config))}")
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
