"""What a checkpoint consists of: a model, or an adapter and its base, and the files that decide how it is asked."""

import json
from pathlib import Path

from .provenance import weights_fingerprint
from .tasks import hash_files


# What decides, beside the weights, what the model sees and when it stops.
_MODEL_FILES = ("*config.json", "tokenizer*", "*.jinja", "vocab*", "merges.txt", "*.model")


def resolve_adapter(pretrained: str, peft: str | None = None) -> tuple[str, str | None]:
    """
    Return the base model and the adapter behind a checkpoint.

    Args:
        pretrained (`str`):
            A model, or a folder that holds a PEFT adapter.
        peft (`str`, *optional*):
            An adapter to put on `pretrained`.
    """
    config = Path(pretrained, "adapter_config.json")
    if peft or not config.is_file():
        return pretrained, peft
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    for folder in (Path(base), config.parent / base):  # a relative path may be meant from either place
        if folder.is_dir():
            return str(folder), pretrained
    if base.startswith((".", "/")) or base.count("/") > 1:
        raise FileNotFoundError(
            f"{config} names the base model {base!r}, which is not a folder here; move it back or correct that entry"
        )
    return base, pretrained


def model_fingerprint(path: str) -> str:
    """Identify what answers: the weights, and the files that decide what the model sees and when it stops."""
    if not Path(path).is_dir() and (path.startswith((".", "/")) or path.count("/") > 1):
        raise FileNotFoundError(f"models: {path} is not a folder; run the stage that writes this model first")
    parts = [part for part in resolve_adapter(path) if part]
    weights = "+".join(weights_fingerprint(part) for part in parts)
    files = sorted(file for part in parts for pattern in _MODEL_FILES for file in Path(part).glob(pattern))
    return f"{weights}/{hash_files(files)}" if files else weights
