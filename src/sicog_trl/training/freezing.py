"""Which parts of a model train: vision tower, projector, language model."""

from dataclasses import dataclass, field

import torch


# Part -> where architectures keep it, below the base model. The projector of Qwen's models stands inside the tower.
PARTS = {
    "multi_modal_projector": (
        "multi_modal_projector",  # LLaVA, Gemma 3, InternVL, Mistral 3, PaliGemma
        "image_newline",  # LLaVA-NeXT, LLaVA-OneVision
        "connector",  # Idefics 2 and 3, SmolVLM
        "vision_model.connector",  # Granite Docling
        "visual.merger",  # Qwen, GLM
        "visual.deepstack_merger_list",  # Qwen3-VL
        "merger",
        "embed_vision",  # Gemma 3n and 4
        "aligner",  # DeepSeek-VL, Janus
        "projector",  # PaddleOCR-VL, VideoLLaMA 3
        "mm_projector",  # Kimi
        "resampler_model",  # Ernie 4.5
        "visual_embeddings_table",  # Ovis 2
        "vision_projection",  # LightOnOCR
    ),
    "vision_tower": ("vision_tower", "visual", "vision_model", "vision_encoder"),
    "language_model": ("language_model", "text_model", "lm_head"),
}


@dataclass
class FreezeConfig:
    """
    Parts that do not train.

    Args:
        freeze_vision_tower, freeze_multi_modal_projector, freeze_language_model (`bool`, *optional*):
            The part keeps its weights, adapters on it included. The output head counts with the language model.
    """

    freeze_vision_tower: bool = field(default=False, metadata={"help": "Keep the vision tower as it is."})
    freeze_multi_modal_projector: bool = field(default=False, metadata={"help": "Keep the projector as it is."})
    freeze_language_model: bool = field(default=False, metadata={"help": "Keep the language model as it is."})


def parts(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Sort the parameters of `model`, wrapped by PEFT or not, into the parts of [`PARTS`] and `other`."""
    found: dict[str, list[torch.nn.Parameter]] = {part: [] for part in [*PARTS, "other"]}
    for name, parameter in model.named_parameters():
        path = f"{name.removeprefix('base_model.model.').removeprefix('model.')}."
        owners = (part for part, places in PARTS.items() if path.startswith(tuple(f"{place}." for place in places)))
        found[next(owners, "other")].append(parameter)
    return found


def freeze(model: torch.nn.Module, config: FreezeConfig) -> None:
    """
    Stop the named parts of `model` from training.

    Raises:
        `ValueError`: if the architecture keeps a part in none of the known places.
    """
    found = parts(model)
    for part, places in PARTS.items():
        if getattr(config, f"freeze_{part}"):
            if not found[part]:
                raise ValueError(
                    f"freeze_{part}: {type(model).__name__} has none of {', '.join(places)}; leave the key out, or "
                    "add the place to sicog_trl.training.freezing.PARTS"
                )
            for parameter in found[part]:
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing is left to train: every part is frozen")


def parts_table(model: torch.nn.Module) -> str:
    """Return a table of the parts of `model`, their parameters and how many of them train."""
    rows = [f"{'part':22}  {'parameters':>14}  {'trainable':>14}"]
    for part, parameters in parts(model).items():
        sizes = [_size(parameter) for parameter in parameters]
        trained = sum(size for size, parameter in zip(sizes, parameters, strict=True) if parameter.requires_grad)
        if sizes:
            rows.append(f"{part:22}  {sum(sizes):>14,}  {trained:>14,}")
    return "\n".join(rows)


def _size(parameter: torch.nn.Parameter) -> int:
    """Return the number of weights of a parameter, also of a shard of it (ZeRO-3) or of several in a byte (4 bits)."""
    size = getattr(parameter, "ds_numel", parameter.numel())
    return size * 2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else size
