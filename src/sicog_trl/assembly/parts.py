"""Vision towers, language models and projectors as others have saved them: whole, of the right kind, one copy each."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..files import is_local


_PROJECTOR = "multi_modal_projector."


def tower_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """
    Return the config of a vision tower, which may be half of a CLIP.

    Raises:
        `ValueError`: if there is none that sees squares of one size.
    """
    found = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    vision = getattr(found, "vision_config", found)
    if not all(isinstance(getattr(vision, key, None), int) for key in ("image_size", "patch_size", "hidden_size")):
        raise ValueError(
            f"vision_tower: {name} ({found.model_type}) has no vision config with image_size, patch_size and "
            "hidden_size; name a CLIP or SigLIP, such as openai/clip-vit-large-patch14-336"
        )
    return vision


def check_decoder(name: str, revision: str | None = None) -> None:
    """Refuse what is not a decoder of text: an encoder, a vision-language model."""
    found = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    named = (found.architectures or ["nothing"])[0]
    decoder = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(found), None)
    if decoder is None or named != decoder.__name__ or hasattr(found, "vision_config"):
        raise ValueError(
            f"language_model: {name} ({found.model_type}) was saved as {named}, which is not a decoder of text alone; "
            "name one such as Qwen/Qwen2-7B-Instruct"
        )


def load_tower(name: str, revision: str | None, dtype: str) -> PreTrainedModel:
    """Load a vision tower, without the text half that its checkpoint may hold."""
    config = tower_config(name, revision)
    tower, found = MODEL_MAPPING[type(config)].from_pretrained(
        name, revision=revision, dtype=dtype, config=config, output_loading_info=True
    )
    return _whole(tower, found, f"vision_tower: {name}")


def load_decoder(name: str, revision: str | None, dtype: str) -> PreTrainedModel:
    """Load a language model with its head."""
    decoder, found = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, output_loading_info=True, trust_remote_code=False
    )
    if getattr(decoder.get_output_embeddings(), "bias", None) is not None:
        raise ValueError(
            f"language_model: the head of {name} has a bias, for which a LLaVA has no place; take another"
        )
    return _whole(decoder, found, f"language_model: {name}")


def _whole(model: PreTrainedModel, found: dict[str, Any], name: str) -> PreTrainedModel:
    """Refuse a checkpoint without some of the weights: Transformers would draw them by chance and only warn."""
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}")
    return model


def projector_weights(
    name: str, revision: str | None, config: LlavaConfig, wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """
    Read the projector of a LLaVA, and nothing else of it.

    Args:
        name (`str`):
            Folder or Hub id.
        revision (`str`, *optional*):
            Revision of a Hub model.
        config (`LlavaConfig`):
            Of the model that it is for.
        wanted (`dict[str, torch.Tensor]`):
            The projector of that model, for the names and shapes.

    Raises:
        `ValueError`: if it was trained for other features or other sizes.
    """
    aligned = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    for key in ("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"):
        there, here = getattr(aligned, key, None), getattr(config, key)
        if there != here:
            raise ValueError(f"projector: {name} was aligned with {key} {there!r}, here it is {here!r}")
    folder = name if is_local(name) else snapshot_download(name, revision=revision, allow_patterns="*.safetensors")
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in (key for key in file.keys() if _PROJECTOR in key):  # noqa: SIM118 (not a dict)
                found[key.rpartition(_PROJECTOR)[2]] = file.get_tensor(key)
    sizes = [{key: tuple(each.shape) for key, each in sorted(weights.items())} for weights in (wanted, found)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"projector: {name} holds {sizes[1]}, these parts need {sizes[0]}")
    return found
