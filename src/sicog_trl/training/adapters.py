"""Going on from a LoRA adapter, and what 4-bit training needs."""

from importlib.util import find_spec
from typing import Any

from peft import PeftModel
from transformers import BitsAndBytesConfig
from trl import ModelConfig, get_quantization_config
from trl.trainer.utils import create_model_from_path

from ..checkpoints import load_processor, resolve_adapter


# Options of TRL's ModelConfig -> names in the configuration of an adapter.
_LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def quantization(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """Return how the weights are quantized, or say what is missing for it."""
    names = [name for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    if not names:
        return None
    if not model_args.use_peft:
        raise ValueError(f"{names[0]}: quantized weights do not train; set use_peft: true, or leave {names[0]} out")
    if find_spec("bitsandbytes") is None:
        raise ImportError(f'{names[0]} needs bitsandbytes; install it with `pip install "sicog-trl[qlora]"`')
    return get_quantization_config(model_args)


def load_adapter(model_args: ModelConfig, init_kwargs: dict[str, Any], device_map: bool) -> dict[str, Any]:
    """
    Load an adapter that goes on training, on the model that it was made for.

    Args:
        model_args (`ModelConfig`):
            Its `model_name_or_path` is the folder of a PEFT adapter.
        init_kwargs (`dict[str, Any]`):
            For `from_pretrained` of the base model.
        device_map (`bool`):
            Whether the base model may be spread over devices.

    Returns:
        `dict[str, Any]`: `model` and `processing_class` for TRL's trainers. DPOTrainer copies the adapter to be its
        reference.
    """
    base, folder = resolve_adapter(model_args.model_name_or_path)
    if not model_args.use_peft:
        raise ValueError(
            f"{folder} is an adapter on {base}. Set use_peft: true to go on training it, or merge it into a model "
            f"first: sicog_trl.checkpoints.load_for_generation({folder!r}) returns model and processor to save"
        )
    if not device_map:
        init_kwargs = {**init_kwargs, "device_map": None}
    model = PeftModel.from_pretrained(create_model_from_path(base, **init_kwargs), folder, is_trainable=True)
    _refuse_other_lora(model_args, model.peft_config["default"], folder)
    return {"model": model, "processing_class": load_processor(base, folder)}


def _refuse_other_lora(model_args: ModelConfig, config: Any, folder: str) -> None:
    """Refuse LoRA options that the adapter does not have: it is what it is, they would be ignored."""
    for option, name in _LORA.items():
        wanted, found = getattr(model_args, option), getattr(config, name)
        if option == "lora_target_modules" and wanted in (None, "all-linear"):
            continue  # PEFT wrote down what that meant for this model
        if _plain(wanted) != _plain(found):
            raise ValueError(
                f"{option} is {found!r} in the adapter {folder} and {wanted!r} here. An adapter that goes on training "
                f"keeps its form: set {option}: {found!r}, or merge the adapter first and start a new one"
            )


def _plain(value: Any) -> Any:
    """Return several names in order, and none of them as `None`."""
    return sorted(value) or None if isinstance(value, (list, set)) else value
