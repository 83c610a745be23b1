"""
Drop what the evaluation will ask, and what is there twice: a pool becomes the same split without them, and `dropped`.

accelerate launch recipes/decontaminate.py --config recipes/digits/decontaminate.yaml
"""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.data import pin
from sicog_trl.decontamination import (
    DecontaminationConfig,
    Pool,
    benchmark_rows,
    compare,
    conclude,
    hash_benchmarks,
    overview,
    start,
)
from sicog_trl.files import write_json
from sicog_trl.generation.sources import load_images
from sicog_trl.report import write_contamination_report


@dataclass
class DecontaminateArguments:
    """
    What is compared with what.

    Args:
        dataset_name (`str`):
            The pool: images, as `generate.py` reads them, or an artefact of candidates or training data; a folder or a
            Hub id, at a revision or not.
        output_dir (`str`):
            Artefact folder; the split that was read, without the dropped rows, and `dropped`. Gets
            `decontamination.html` too, which shows dropped rows beside what they are near to.
        dataset_config, dataset_split (`str`, *optional*):
            Which part of the pool; the split `train` unless given.
        suite (`str`, *optional*):
            Benchmarks to compare with: a suite of `evaluate.py`. Without one only duplicates are dropped.
        tasks (`list[str]`, *optional*):
            Only these benchmarks.
        evaluation_dataset_name (`str`, *optional*):
            Folder with the rows of the benchmarks, as `dataset_name` of `evaluate.py`; from the Hub without.
    """

    dataset_name: str = field(metadata={"help": "The pool: images, candidates or training data."})
    output_dir: str = field(metadata={"help": "Artefact folder; the split that was read, and `dropped`."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the pool."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the pool."})
    suite: str | None = field(default=None, metadata={"help": "Benchmarks to compare with; without: duplicates only."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Only these benchmarks."})
    evaluation_dataset_name: str | None = field(default=None, metadata={"help": "Folder of the benchmarks' rows."})

    def __post_init__(self) -> None:
        if not self.suite and (self.tasks or self.evaluation_dataset_name):
            raise ValueError("`tasks` and `evaluation_dataset_name` need a `suite`")


ARGUMENTS = (DecontaminateArguments, DecontaminationConfig)


def main(args: DecontaminateArguments, config: DecontaminationConfig) -> None:
    """Load, hash and compare with all processes; one of them writes."""
    # Without `cpu`, processes on the CPU do not find each other. One may wait for the others for hours.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    place = (state.process_index, state.num_processes)
    name = pin(args.dataset_name)  # the same rows in all processes
    with state.main_process_first():
        pool = Pool(load_images(name, args.dataset_config, args.dataset_split))
        against = benchmark_rows(args.suite, args.tasks, args.evaluation_dataset_name) if args.suite else []
        if state.is_main_process:
            start(pool, against, config, args.dataset_split, args.output_dir)
    hash_benchmarks(against, config, args.output_dir, *place)
    state.wait_for_everyone()
    compare(pool, against, config, args.output_dir, *place)
    state.wait_for_everyone()
    if state.is_main_process:
        summary = conclude(pool, against, config, args.dataset_split, args.output_dir)
        write_json(Path(args.output_dir, "summary.json"), summary)
        print(overview(summary))
        print(f"page: {write_contamination_report(args.output_dir, against)}")
        print(json.dumps(summary))
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
