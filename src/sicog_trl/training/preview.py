"""What a model will train on, shown before it trains: an example with its loss mask, and what `max_length` cuts."""

import dataclasses
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby
from typing import Any

import PIL.Image
from accelerate.utils import tqdm
from datasets import Dataset
from PIL.ExifTags import Base
from transformers import ProcessorMixin
from trl import apply_chat_template
from trl.data_utils import is_conversational, prepare_multimodal_messages
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..data.rows import TEXTS
from .data import read_row, row_label


_BATCH = 64  # rows
_CHECKED = 8  # rows whose counted length is compared with the collated one
_CALIBRATED = 16  # sizes of images whose tokens are compared with the processor's own count


def preview(trainer: Any) -> str:
    """
    Show the first row as the model will see it, and count the rows that `max_length` cuts.

    Args:
        trainer (`SFTTrainer` or `DPOTrainer`):
            One of [`~sicog_trl.training.trainers`]; its dataset, collator and processor are asked.

    Returns:
        `str`: the text of each side, with `⟦ ⟧` around what carries loss, its tokens, and how many rows are cut.

    Raises:
        `ValueError`: if `max_length` cuts off all that a row has to teach.
    """
    batch = trainer.plain_collator([read_row(trainer.train_dataset, 0)])
    # the model first: the processor of Gemma 3 names the mark in the text, for which many other tokens are put in
    processor = trainer.processing_class
    image_token = getattr(trainer.model.config, "image_token_id", None) or getattr(processor, "image_token_id", None)
    lines = []
    for ids, loss, shown in _sides(batch, processor, image_token):
        lines += [*shown, *_never_ends(trainer, {token for token, counts in zip(ids, loss, strict=True) if counts})]
    return "\n".join([*lines, _cuts(trainer)])


def show_row(row: dict[str, Any], processor: ProcessorMixin) -> str:
    """
    Show a row of training data as TRL makes it for a model.

    Args:
        row (`dict[str, Any]`):
            `images`, decoded, and `messages`, or `prompt` with `completion` or with `chosen` and `rejected`.
        processor (`ProcessorMixin`):
            Of the model.
    """
    if "chosen" in row:
        collator = DataCollatorForVisionPreference(processor)
    else:
        collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss="completion" in row)
    image_token = getattr(processor, "image_token_id", None)
    return "\n".join(line for *_, shown in _sides(collator([row]), processor, image_token) for line in shown)


def _sides(
    batch: dict[str, Any], processor: ProcessorMixin, image_token: int | None
) -> Iterator[tuple[list[int], list[bool], list[str]]]:
    """Yield the tokens of each side of a row, which of them carry loss, and both for a person."""
    learned = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
    names = ("chosen", "rejected") if len(learned) == 2 else ("example",)
    for name, ids, seen, loss in zip(names, batch["input_ids"], batch["attention_mask"], learned, strict=True):
        ids, loss = ids[seen == 1].tolist(), loss[seen == 1].tolist()
        counts = f"[{len(ids)} tokens, {ids.count(image_token)} of images, {sum(loss)} with loss, in ⟦ ⟧]"
        yield ids, loss, [f"{name}:", _marked(processor.tokenizer, ids, loss, image_token), counts]


def _never_ends(trainer: Any, learned: set[int]) -> list[str]:
    """Warn of a chat template that puts no token behind an answer at which generation stops."""
    tokenizer, stop = trainer.processing_class.tokenizer, trainer.model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None}
    if stops & learned:
        return []
    names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(stops)))
    return [f"no token with loss ends the answer ({names}): the model will not learn to stop; see its chat template"]


def _marked(tokenizer: Any, ids: list[int], loss: list[bool], image_token: int | None) -> str:
    """Decode `ids`, with marks around what carries loss and runs of image tokens as their number."""
    shown = []
    for learned, run in groupby(zip(ids, loss, strict=True), key=lambda token: token[1]):
        parts = []
        for image, tokens in groupby((token for token, _ in run), key=lambda token: token == image_token):
            tokens = list(tokens)
            parts.append(f"[{len(tokens)} image tokens]" if image else tokenizer.decode(tokens))
        shown.append(f"⟦{''.join(parts)}⟧" if learned else "".join(parts))
    return "".join(shown)


def _cuts(trainer: Any) -> str:
    """Say how many rows `max_length` cuts, or refuse it if nothing of a row is left to learn from."""
    limit, dataset = trainer.args.max_length, trainer.train_dataset
    if limit is None:
        return "max_length: null, no row is cut"
    lengths = list(row_lengths(trainer))
    if lost := [row for row, (prompt, _) in enumerate(lengths) if prompt >= limit]:
        raise ValueError(
            f"max_length: {limit} cuts the whole completion of {len(lost)} of {len(lengths)} rows, the first is "
            f"{row_label(dataset, lost[0])}; they would train at zero loss. Set it to null, or leave those rows out"
        )
    return f"max_length: {limit} cuts {sum(whole > limit for _, whole in lengths)} of {len(lengths)} rows"


def row_lengths(trainer: Any) -> list[tuple[int, int]]:
    """
    Count the tokens of each row: those in front of the completion, and all (of the longer side of a pair).

    Texts are tokenized in batches and the tokens of images follow from the sizes in their headers. Where that does not
    give what the collator gives on a few rows, all are collated.
    """
    dataset = trainer.train_dataset
    collator = dataclasses.replace(trainer.plain_collator, max_length=None)
    places = sorted({len(dataset) * n // _CHECKED for n in range(_CHECKED)})
    truth = {place: _collated(collator, dataset, place) for place in places}
    if not getattr(trainer.args, "assistant_only_loss", False):  # which text carries loss, only the collator knows
        counted = list(_counted(trainer.processing_class, dataset))
        if all(counted[place] == truth[place] for place in places):
            return counted
    rows = tqdm(range(len(dataset)), desc="Measuring rows")
    return [truth[row] if row in truth else _collated(collator, dataset, row) for row in rows]


def _collated(collator: Any, dataset: Dataset, row: int) -> tuple[int, int]:
    batch = collator([read_row(dataset, row)])
    learned = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
    # A row without loss teaches nothing however long it may be; it is not `max_length` that cuts it.
    firsts = [int(mask.nonzero()[0]) if mask.any() else 0 for mask in learned]
    return min(firsts), int(batch["attention_mask"].sum(dim=1).max())


def _counted(processor: ProcessorMixin, dataset: Dataset) -> Iterator[tuple[int, int]]:
    """Yield what [`row_lengths`] returns, without decoding an image."""
    names = [name for name in (*TEXTS, "images") if name in dataset.column_names]
    table = dataset.select_columns(names).with_format("arrow")
    cost: dict[tuple[int, int], int] = {}
    if "images" in names:
        sizes = [_sizes(dataset, row, images) for row, images in enumerate(_column(table, "images"))]
        cost = image_tokens(processor, sorted({size for row in sizes for size in row}))
    else:
        sizes = [[] for _ in range(len(dataset))]
    place = 0
    texts = table.select_columns([name for name in names if name != "images"])
    for batch in tqdm(texts.iter(_BATCH), total=-(-len(dataset) // _BATCH), desc="Counting tokens"):
        rows = batch.to_pylist()
        parts = [_parts(processor, row, len(sizes[place + n])) for n, row in enumerate(rows)]
        flat = [text for row in parts for text in row]
        lengths = iter([len(ids) for ids in processor.tokenizer(flat, add_special_tokens=False)["input_ids"]])
        for n, row in enumerate(parts):
            first, *rest = (next(lengths) for _ in row)
            first += sum(cost[size] for size in sizes[place + n])
            yield (first, first + max(rest)) if rest else (0, first)  # messages carry loss from the start
        place += len(rows)


def _column(table: Dataset, name: str) -> Iterator[Any]:
    for batch in table.select_columns([name]).iter(_BATCH):
        yield from batch[name].to_pylist()


def _sizes(dataset: Dataset, row: int, images: list[dict | str] | None) -> list[tuple[int, int]]:
    """Read height and width of the images of a row from their headers, turned as `datasets` turns them."""
    sizes = []
    for image in images or []:
        try:
            place, content = (image, None) if isinstance(image, str) else (image["path"], image["bytes"])
            with PIL.Image.open(place if content is None else BytesIO(content)) as picture:
                width, height = picture.size
                turned = picture.getexif().get(Base.Orientation, 1) >= 5
        except Exception as error:  # decoders meet hostile bytes with whatever they stumble over
            raise ValueError(f"{row_label(dataset, row)}: an image cannot be read: {error}") from error
        sizes.append((width, height) if turned else (height, width))
    return sizes


def _parts(processor: ProcessorMixin, row: dict[str, Any], images: int) -> list[str]:
    """Render what is tokenized apart: the messages, or the prompt and each completion."""
    row = {name: value for name, value in row.items() if value is not None}
    if "messages" in row:
        messages = prepare_multimodal_messages(row["messages"], images=[None] * images)
        return [processor.apply_chat_template(messages, tokenize=False)]
    names = [name for name in ("prompt", "completion", "chosen", "rejected") if name in row]
    if is_conversational(row):
        rendered = {name: prepare_multimodal_messages(row[name]) for name in names[1:]}
        prompt = prepare_multimodal_messages(row["prompt"], images=[None] * images)
        row = apply_chat_template({"prompt": prompt, **rendered}, processor)
    return [row[name] for name in names]


def image_tokens(processor: ProcessorMixin, sizes: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """
    Count by how many tokens an image lengthens the text in which its placeholder stands.

    Args:
        processor (`ProcessorMixin`):
            Of the model.
        sizes (`list[tuple[int, int]]`):
            Height and width of images, each once.

    Returns:
        `dict[tuple[int, int], int]`: tokens by size: the processor's own count where it differs from what is measured
        on blank images of some of the sizes by the same number everywhere, such as the tokens around an image;
        measured for each size otherwise.
    """
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}
    text = processor.apply_chat_template([message], tokenize=False)
    plain = len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def measure(size: tuple[int, int]) -> int:
        image = PIL.Image.new("RGB", size[::-1])
        return len(processor(images=[[image]], text=[text], add_special_tokens=False)["input_ids"][0]) - plain

    some = sizes[:: max(len(sizes) // _CALIBRATED, 1)]
    measured = {size: measure(size) for size in some}
    if len(measured) < len(sizes):
        try:
            own = processor._get_num_multimodal_tokens(image_sizes=[list(size) for size in sizes])["num_image_tokens"]
        except (AttributeError, KeyError, TypeError):  # not every processor counts, not each counts every model
            own = None
        own = dict(zip(sizes, own, strict=True)) if own else {}
        offsets = {measured[size] - own[size] for size in some if size in own}
        if len(offsets) == 1:
            (offset,) = offsets
            return {size: tokens + offset for size, tokens in own.items()}
    rest = [size for size in sizes if size not in measured]
    return measured | {size: measure(size) for size in tqdm(rest, desc="Measuring images", disable=not rest)}
