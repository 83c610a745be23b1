"""
Sample candidate descriptions and reasoning for unlabelled images; killed and started again, it does what is missing.

accelerate launch recipes/generate.py --config recipes/digits/generate.yaml
"""

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from trl import ModelConfig, ScriptArguments, TrlParser

from sicog_trl.checkpoints import model_fingerprint
from sicog_trl.data import pin
from sicog_trl.files import absolute
from sicog_trl.generation import (
    CandidateConfig,
    ImageRows,
    SamplerConfig,
    check_options,
    conclude,
    load_images,
    load_sampler,
    make_plan,
    make_shards,
)


SCHEDULERS = ("process", "ray")


@dataclass
class GenerateArguments:
    """
    Where the candidates go, and which shards this run makes.

    Args:
        output_dir (`str`):
            Artefact folder; split `candidates`.
        shard_index, num_shards (`int`, *optional*):
            Make every `num_shards`-th shard, starting at `shard_index`: one job of an array. The processes of
            `accelerate launch` divide these further.
        plan_only (`bool`, *optional*, defaults to `False`):
            Check and hash the input, write `plan.json`, say what is to do, and stop: once, before an array of jobs.
        retry_failed (`bool`, *optional*, defaults to `False`):
            Ask again for what rows with an error lack.
        scheduler (`str`, *optional*, defaults to `"process"`):
            `"ray"` hands the shards to the workers of a cluster: a running one (`RAY_ADDRESS`) or one of this machine.
        num_workers (`int`, *optional*):
            Workers of Ray; one per GPU of the cluster, or one, unless given.
    """

    output_dir: str = field(metadata={"help": "Artefact folder; split `candidates`."})
    shard_index: int = field(default=0, metadata={"help": "First shard of this job."})
    num_shards: int = field(default=1, metadata={"help": "Number of jobs that divide the shards."})
    plan_only: bool = field(default=False, metadata={"help": "Write plan.json and stop."})
    retry_failed: bool = field(default=False, metadata={"help": "Ask again for what rows with an error lack."})
    scheduler: str = field(default="process", metadata={"help": "Who hands out shards.", "choices": SCHEDULERS})
    num_workers: int | None = field(default=None, metadata={"help": "Workers of Ray."})

    def __post_init__(self) -> None:
        if not 0 <= self.shard_index < self.num_shards or (self.num_workers or 1) < 1:
            raise ValueError("num_shards and num_workers are at least 1, shard_index counts from 0 to num_shards - 1")


ARGUMENTS = (ScriptArguments, ModelConfig, CandidateConfig, SamplerConfig, GenerateArguments)


def main(
    script_args: ScriptArguments,
    model_args: ModelConfig,
    candidate_args: CandidateConfig,
    sampler_args: SamplerConfig,
    args: GenerateArguments,
) -> None:
    """Load the images, plan, generate what is missing, summarise what is there."""
    check_options(sampler_args, model_args, script_args)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sicog_trl").setLevel(logging.INFO)
    # Without `cpu`, processes on the CPU do not find each other. The first one may hash images for hours.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    model, images = absolute(model_args.model_name_or_path), pin(absolute(script_args.dataset_name))
    source = (images, script_args.dataset_config, script_args.dataset_train_split)
    with state.main_process_first():
        rows = ImageRows(load_images(*source), candidate_args.task)
        fingerprint = model_fingerprint(model, model_args.model_revision)
        fingerprint += f" as {sampler_args.served_model_name}" if sampler_args.served_model_name else ""
        output_dir = Path(args.output_dir).expanduser().resolve()
        plan = make_plan(rows, candidate_args, output_dir, fingerprint, model_args.dtype, images)
    shards = plan.missing(
        args.shard_index * state.num_processes + state.process_index,
        args.num_shards * state.num_processes,
        args.retry_failed,
    )
    options = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    sampler = partial(load_sampler, sampler_args, candidate_args, model, model_args.model_revision, **options)
    if args.plan_only:
        shards = []
    elif state.is_main_process and (plan.output_dir / "data").exists():  # it goes on
        print(plan.standing(args.retry_failed))
    if args.scheduler == "ray":
        from sicog_trl.generation.ray_scheduler import generate_with_ray

        use_gpus = sampler_args.sampler != "openai"
        generate_with_ray(plan, shards, candidate_args, source, sampler, args.num_workers, use_gpus)
    elif shards:
        make_shards(plan, shards, candidate_args, rows, sampler(device=str(state.device)), state.is_main_process)
    print(conclude(plan, vars(sampler_args)))


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
