"""
Make annotations: convert somebody's data, or have a teacher describe images; killed and started again, it goes on.

accelerate launch recipes/annotate.py --config recipes/sicog/annotate_reasoning.yaml
"""

import json
import logging
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.annotation import AnnotationConfig, TeacherConfig, annotate, annotate_with_teacher
from sicog_trl.data import pin
from sicog_trl.files import absolute


@dataclass
class AnnotateArguments:
    """
    Where the source is and where the annotations go.

    Args:
        dataset_name (`str`):
            A `.json` or `.jsonl` file of records, an artefact folder, a folder of images, or a Hub id, at a revision
            or not.
        output_dir (`str`):
            Artefact folder; splits `annotated`, `images` and `dropped`.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset; the one named like the split, if there is one, unless given.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset.
        retry_failed (`bool`, *optional*, defaults to `False`):
            Ask the teacher again where the answer was no use or did not come.
    """

    dataset_name: str = field(metadata={"help": "Records: a JSON file, a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Artefact folder; splits `annotated`, `images` and `dropped`."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset."})
    retry_failed: bool = field(default=False, metadata={"help": "Ask the teacher again for what failed."})


ARGUMENTS = (AnnotateArguments, AnnotationConfig, TeacherConfig)


def main(args: AnnotateArguments, annotation_args: AnnotationConfig, teacher_args: TeacherConfig) -> None:
    """Open the source, annotate, summarise; one process does it all."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sicog_trl").setLevel(logging.INFO)
    # Without `cpu`, processes on the CPU do not find each other. A teacher may take days.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    if state.is_main_process:
        name = pin(absolute(args.dataset_name))
        records = annotation_args.records(name, args.dataset_config, args.dataset_split)
        if annotation_args.source_format == "teacher":
            options = (teacher_args, args.output_dir, args.retry_failed)
            summary = annotate_with_teacher(records, annotation_args, *options)
        else:
            summary = annotate(records, annotation_args, args.output_dir)
        print(json.dumps(summary))
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
