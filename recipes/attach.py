"""
Put your images back into rows that were published without them: references become `images`, the rest `dropped`.

accelerate launch recipes/attach.py --config recipes/digits/attach.yaml
"""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from trl import TrlParser

from sicog_trl.data import load, pin
from sicog_trl.files import write_json
from sicog_trl.generation import ImageRows, load_images
from sicog_trl.hub.attach import AttachConfig, attach, overview


@dataclass
class AttachArguments:
    """
    Which rows get images, and from where.

    Args:
        dataset_name (`str`):
            Rows with `image_references`: a Hub id, `owner/name@revision` for a pinned one, or an artefact folder.
        images_dataset_name (`str`):
            Your images, as `generate.py` reads them: a folder, Parquet, WebDataset or a Hub id.
        output_dir (`str`):
            Artefact folder; the split that was read, with images, and `dropped`.
        dataset_config, images_dataset_config (`str`, *optional*):
            Configurations of Hub datasets.
        dataset_split, images_dataset_split (`str`, *optional*):
            The splits `curated` and `train` unless given.
    """

    dataset_name: str = field(metadata={"help": "Rows with `image_references`."})
    images_dataset_name: str = field(metadata={"help": "Your images: a folder, Parquet, WebDataset or a Hub id."})
    output_dir: str = field(metadata={"help": "Artefact folder; the split with images, and `dropped`."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the rows."})
    dataset_split: str = field(default="curated", metadata={"help": "Split of the rows."})
    images_dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the images."})
    images_dataset_split: str = field(default="train", metadata={"help": "Split of the images."})


ARGUMENTS = (AttachArguments, AttachConfig)


def main(args: AttachArguments, config: AttachConfig) -> None:
    """Load rows and images, join them, summarise; one process does it all."""
    # Others, if there are any, may wait for hours.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    if state.is_main_process:
        names = {key: pin(getattr(args, key)) for key in ("dataset_name", "images_dataset_name")}
        rows = load(names["dataset_name"], args.dataset_config, args.dataset_split, without_images=True)
        there = load_images(names["images_dataset_name"], args.images_dataset_config, args.images_dataset_split)
        summary = names | attach(rows, ImageRows(there), config, args.dataset_split, args.output_dir)
        write_json(Path(args.output_dir, "summary.json"), summary)
        print(overview(summary))
        print(json.dumps(summary))
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
