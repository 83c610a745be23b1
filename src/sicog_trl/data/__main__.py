"""
Check a dataset, and show one of its rows as a model will read it.

```bash
python -m sicog_trl.data runs/digits/curated --model_name_or_path runs/digits/base
python -m sicog_trl.data me/digits@round-1 --dataset_split curated
```

Every image is decoded, or with `--no_decode_images` opened. The exit code is 1 if a row or a column is not as the
column contract has it.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import ProcessorMixin

from ..checkpoints import load_processor, placeholders
from ..files import is_local
from ..images import UnreadableImageError, open_image
from .artefacts import load, splits
from .features import REFERENCES
from .pulling import pin, pulled_splits
from .rows import image_column, label_of, plain
from .validation import PLACEHOLDERS, Validation, validate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, see the module; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sicog_trl.data", description="Check a dataset.")
    parser.add_argument(
        "dataset_name", help="folder of an artefact, or Hub id, at a revision such as me/digits@round-1"
    )
    parser.add_argument("--dataset_config", help="configuration of a Hub dataset, or sub-folder")
    parser.add_argument("--dataset_split", help="split; all that there are unless given")
    parser.add_argument("--model_name_or_path", help="model whose processor shall read a row and count its tokens")
    parser.add_argument("--model_revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--no_decode_images", action="store_true", help="open the images, but do not decode them")
    args = parser.parse_args(arguments)
    config = args.dataset_config
    try:
        name = pin(args.dataset_name)
        model = args.model_name_or_path
        processor = load_processor(model, revision=args.model_revision) if model else None
        wanted = [args.dataset_split] if args.dataset_split else _splits(name, config)
        good = True
        for split in wanted:
            dataset = load(name, config, split, without_images=True)
            tokens = placeholders(processor) if processor else PLACEHOLDERS
            found = validate(dataset, tokens, decode_images=not args.no_decode_images)
            lines = [*_summary(name, split, dataset, found), *found.lines(), *_example(dataset, found, processor)]
            print(plain("\n".join(lines)), end="\n\n")
            good = good and bool(found)
    except (OSError, ValueError) as error:
        sys.exit(plain(f"error: {error}"))
    return 0 if good else 1


def _splits(name: str, config: str | None) -> list[str]:
    if not is_local(name):
        return pulled_splits(name, config)
    if found := splits(name, config):
        return found
    raise FileNotFoundError(
        f"{name} is no artefact folder: there is no data/<split>-00000-of-00001.parquet in it. A folder of images is "
        "checked by generate.py, as it reads it"
    )


def _summary(name: str, split: str, dataset: Dataset, found: Validation) -> list[str]:
    lines = [f"{name}, split {split}: {found.num_rows:,} rows, {found.num_images:,} images"]
    lines.append(f"columns: {', '.join(dataset.column_names)}")
    if REFERENCES in dataset.column_names and "images" not in dataset.column_names:
        lines.append(f"there is no column of images, but {REFERENCES}: recipes/attach.py puts those that you have in")
    for column, (rows, total, longest) in found.characters.items():
        lines.append(f"{column}: {total / rows:,.0f} characters on average, {longest:,} at most")
    if found.sizes:
        small, large = (pick(found.sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
        lines.append("pixels: {} × {} to {} × {}".format(*small, *large))
    return [*lines, "every row and column is as the contract has it"] if found else lines


def _example(dataset: Dataset, found: Validation, processor: ProcessorMixin | None) -> list[str]:
    number = next((number for number in range(len(dataset)) if number not in found.named), None)
    if number is None:
        return []
    unread = {"images", "image", *found.unfit} - {"id"}
    row = dataset.select_columns([name for name in dataset.column_names if name not in unread])[number]
    try:
        pictures = [open_image(image)[0] for image in _stored(dataset, number)]
    except UnreadableImageError as error:
        return ["", f"{label_of(number, row)}: an image cannot be read: {error}"]
    conversation = _conversation(row)
    lines = ["", f"{label_of(number, row)}:"]
    if processor and conversation:
        from ..training.preview import show_row  # what training needs takes seconds to import

        return [*lines, show_row({**conversation, "images": pictures}, processor)]
    lines += [f"[image of {picture.width} × {picture.height} pixels]" for picture in pictures]
    for column, messages in conversation.items():
        lines += [f"{column}, {message['role']}: {message['content']}" for message in messages]
    return lines


def _stored(dataset: Dataset, number: int) -> list[dict[str, Any]]:
    """Return the images of a row as they are stored."""
    if (column := image_column(dataset)) is None:
        return []
    (value,) = dataset.select([number]).select_columns(column).with_format("arrow")[:][column].to_pylist()
    return value or [] if isinstance(value, list) else [value] * (value is not None)


def _conversation(row: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the messages of a row by column: what it learns, or what it was asked and answered first."""
    for names in (("prompt", "completion"), ("prompt", "chosen", "rejected"), ("messages",)):
        if all(isinstance(row.get(name), list) for name in names):
            return {name: row[name] for name in names}
    if row.get("candidates"):
        first = row["candidates"][0]
        texts = {"prompt": ("user", first.get("prompt") or ""), "completion": ("assistant", first["text"])}
        return {name: [{"role": role, "content": text}] for name, (role, text) in texts.items()}
    return {"messages": [{"role": "user", "content": row["question"]}]} if row.get("question") else {}


if __name__ == "__main__":
    sys.exit(main())
