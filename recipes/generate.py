"""
Sample candidate descriptions and reasoning for unlabelled images; killed and started again, it does what is missing.

accelerate launch recipes/generate.py --config recipes/digits/generate.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from trl import ModelConfig, ScriptArguments, TrlParser

from sicog_trl.checkpoints import check_model, model_fingerprint
from sicog_trl.data import load
from sicog_trl.files import write_json
from sicog_trl.generation import CandidateConfig, TransformersSampler, generate_candidates
from sicog_trl.generation.candidates import summarize


@dataclass
class GenerateArguments:
    """
    Where the candidates go, and how many are sampled at once.

    Args:
        output_dir (`str`):
            Artefact folder; split `candidates`.
        batch_size (`int`, *optional*, defaults to `256`):
            Candidates per forward pass; changes the speed, not the text.
    """

    output_dir: str = field(metadata={"help": "Artefact folder; split `candidates`."})
    batch_size: int = field(default=256, metadata={"help": "Candidates per forward pass."})


ARGUMENTS = (ScriptArguments, ModelConfig, CandidateConfig, GenerateArguments)


def main(
    script_args: ScriptArguments, model_args: ModelConfig, candidate_args: CandidateConfig, args: GenerateArguments
) -> None:
    """Load the images and the model, generate, summarise."""
    check_model(model_args.model_name_or_path)
    if not script_args.dataset_name:
        raise ValueError("dataset_name is missing: name the folder or the Hub id of the images")
    # Without `cpu`, processes on the CPU do not find each other.
    state = PartialState(cpu=not torch.accelerator.is_available())
    dataset = load(script_args.dataset_name, script_args.dataset_config, script_args.dataset_train_split)
    sampler = TransformersSampler(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        device=str(state.device),
        batch_size=args.batch_size,
        max_completion_length=candidate_args.max_completion_length,
        temperature=candidate_args.temperature,
        top_p=candidate_args.top_p,
    )
    plan = generate_candidates(
        dataset,
        sampler,
        candidate_args,
        args.output_dir,
        model_fingerprint(model_args.model_name_or_path, model_args.model_revision),
        state.process_index,
        state.num_processes,
        dtype=str(sampler.model.dtype),
    )
    state.wait_for_everyone()
    if state.is_main_process:
        summary = summarize(plan)
        write_json(Path(args.output_dir, "summary.json"), summary)
        print(json.dumps(summary))


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
