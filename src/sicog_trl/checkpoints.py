"""What a checkpoint consists of, and how it is loaded to be asked: generation and evaluation share this one way."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils.peft_utils import find_adapter_config_file

from .files import is_local, missing_folder
from .provenance import hash_files, weights_fingerprint


# What decides, beside the weights, what the model sees and when it stops.
_MODEL_FILES = ("*config.json", "tokenizer*", "*.jinja", "vocab*", "merges.txt", "*.model")


def check_model(model_name_or_path: str | None) -> None:
    """Refuse a local model that cannot be used because it, its weights or its processor is not there."""
    if not model_name_or_path:
        raise ValueError("model_name_or_path is missing: name the model to start from")
    folder = Path(model_name_or_path)
    if folder.is_dir():
        if not (folder / "processor_config.json").exists() and not (folder / "preprocessor_config.json").exists():
            raise FileNotFoundError(
                f"{folder} has no processor (processor_config.json or preprocessor_config.json); save the one of its "
                "base model there with AutoProcessor.from_pretrained(...).save_pretrained(...)"
            )
    elif is_local(model_name_or_path):
        raise missing_folder("model", model_name_or_path)


def resolve_adapter(pretrained: str, peft: str | None = None) -> tuple[str, str | None]:
    """
    Return the base model and the adapter behind a checkpoint.

    Args:
        pretrained (`str`):
            A model, or a PEFT adapter: a folder or a Hub id.
        peft (`str`, *optional*):
            An adapter to put on `pretrained`.
    """
    found = None
    if not peft and (Path(pretrained).is_dir() or not is_local(pretrained)):
        found = find_adapter_config_file(pretrained)
    if not found:
        return pretrained, peft
    config = Path(found)
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    for folder in (Path(base), config.parent / base):  # a relative path may be meant from either place
        if folder.is_dir():
            return str(folder), pretrained
    if is_local(base):
        raise FileNotFoundError(
            f"{config} names the base model {base!r}, which is not a folder here; move it back or correct that entry"
        )
    return base, pretrained


def model_fingerprint(path: str, revision: str | None = None) -> str:
    """
    Identify what answers: the weights, and the files that decide what the model sees and when it stops.

    Args:
        path (`str`):
            Folder of a model or adapter, or Hub id.
        revision (`str`, *optional*):
            Revision of a Hub model.
    """
    if is_local(path) and not Path(path).is_dir():
        raise missing_folder("model", path)
    parts = [part for part in resolve_adapter(path) if part]
    weights = "+".join(weights_fingerprint(part, revision) for part in parts)
    files = sorted(file for part in parts for pattern in _MODEL_FILES for file in Path(part).glob(pattern))
    return f"{weights}/{hash_files(files)}" if files else weights


def load_processor(pretrained: str, peft: str | None = None, revision: str | None = None) -> ProcessorMixin:
    """Load the processor saved with the adapter, or else the one of the model."""
    sources = [source for source in (peft, pretrained) if source]
    for source in sources:
        if not Path(source).is_dir() or any(Path(source).glob("*processor_config.json")):
            try:
                processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
            except (OSError, ValueError):
                if source == sources[-1]:
                    raise
                continue  # an adapter on the Hub without one; that of its base model will do
            if getattr(processor, "image_processor", None) is not None:
                return processor
    raise ValueError(
        f"{' and '.join(sources)} hold no image processor (processor_config.json or preprocessor_config.json); "
        "save the processor of the base model beside the weights"
    )


def load_for_generation(
    pretrained: str,
    peft: str | None = None,
    revision: str | None = None,
    dtype: str | None = "auto",
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Load a model, with its adapter merged into the weights if it has one, and its processor.

    Args:
        pretrained (`str`):
            Anything that `AutoModelForImageTextToText` loads, or the folder of a PEFT adapter.
        peft (`str`, *optional*):
            Adapter to put on `pretrained`.
        revision (`str`, *optional*):
            Revision of a Hub model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Device.
        attn_implementation (`str`, *optional*):
            How attention is computed; Transformers chooses, unless given.
    """
    pretrained, peft = resolve_adapter(pretrained, peft)
    processor = load_processor(pretrained, peft, revision)
    options = {"revision": revision, "dtype": dtype, "attn_implementation": attn_implementation}
    options["trust_remote_code"] = False  # left out, Transformers would ask on the terminal whether to run the code
    model = AutoModelForImageTextToText.from_pretrained(pretrained, **options)
    if peft:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, peft).merge_and_unload()
    return model.to(device).eval(), processor


def prepare_for_generation(model: PreTrainedModel, processor: ProcessorMixin, **settings: Any) -> set[int]:
    """
    Replace the generation settings of a checkpoint, of which only the stop tokens survive.

    What a checkpoint asks for by itself would be merged into what we ask for; two checkpoints must differ by their
    weights alone, two candidates by their seed alone.

    Args:
        model (`PreTrainedModel`):
            Gets the new settings.
        processor (`ProcessorMixin`):
            Its tokenizer gets a padding token if it has none.
        settings:
            Everything else that `GenerationConfig` takes.

    Returns:
        `set[int]`: the tokens that end an answer: those that the checkpoint names and the tokenizer's.
    """
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stop = model.generation_config.eos_token_id
    stop_tokens = {tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])} - {None}
    # A placeholder without an image behind it breaks whatever reads the text.
    names = ("image_token_id", "image_token_index", "video_token_id")
    placeholders = {getattr(owner, name, None) for owner in (model.config, processor) for name in names}
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(stop_tokens),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=sorted(placeholders - {None}) or None,
        **settings,
    )
    return stop_tokens


def placeholders(processor: ProcessorMixin) -> tuple[str, ...]:
    """Return the texts that `processor` takes for an image or a video; none may stand in a text of the data."""
    names = ("image_token", "video_token")
    # What Gemma 3 puts in for the mark of an image is a token of the tokenizer alone.
    found = (getattr(owner, name, None) for owner in (processor, processor.tokenizer) for name in names)
    return tuple(dict.fromkeys(token for token in found if token))
