"""A vision-language model from its parts: vision tower, language model, and a projector that is fresh or aligned.

The result is a LLaVA as Transformers knows it (`LlavaForConditionalGeneration`). Of its weights the projector alone is
new; those of the parts are the bytes of their sources, in the precision that was asked for.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..files import claim, is_local, refuse_another_run, write_json
from ..provenance import versions, weights_fingerprint
from ..training.freezing import parts
from .parts import check_decoder, load_decoder, load_tower, projector_weights, tower_config
from .templates import end_of_turn, with_images


IMAGE_TOKEN = "<image>"
# Llama 3.1 keeps a token for padding, which its tokenizer does not name. Where there is none at all, one is added.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>")
_EMBEDDING_ROWS = 64  # a multiple of them, as in Transformers' own conversion of LLaVA: other shapes are slow on a GPU
_SHARD = "5GB"
_SETTINGS = "assembly.json"
_OF_THE_LOOP = {"config.yaml", "stage.json"}  # written before a stage starts, see `sicog_trl.loop`


@dataclass
class AssemblyConfig:
    """
    What to assemble.

    Args:
        output_dir (`str`):
            Folder of the model.
        language_model (`str`):
            A decoder with a chat template: Hub id or folder.
        vision_tower (`str`, *optional*, defaults to `"openai/clip-vit-large-patch14-336"`):
            A CLIP or SigLIP, with or without its text half: Hub id or folder.
        projector (`str`, *optional*):
            Take the projector of this LLaVA, such as the checkpoint of an alignment; a fresh one if it is left out.
        vision_tower_revision, language_model_revision, projector_revision (`str`, *optional*):
            Revisions of Hub models.
        vision_feature_layer (`int`, *optional*, defaults to `-2`):
            Layer of the tower whose features are projected (LLaVA-1.5: the last but one).
        chat_template_path (`str`, *optional*):
            A Jinja file to take instead of the chat template of the language model.
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Precision in which the parts are held and written.
        seed (`int`, *optional*, defaults to `0`):
            Seed of a fresh projector.
    """

    output_dir: str = field(metadata={"help": "Folder of the model."})
    language_model: str = field(metadata={"help": "A decoder with a chat template."})
    vision_tower: str = field(default="openai/clip-vit-large-patch14-336", metadata={"help": "A CLIP or SigLIP."})
    projector: str | None = field(default=None, metadata={"help": "Take the projector of this LLaVA."})
    vision_tower_revision: str | None = field(default=None, metadata={"help": "Revision of the vision tower."})
    language_model_revision: str | None = field(default=None, metadata={"help": "Revision of the language model."})
    projector_revision: str | None = field(default=None, metadata={"help": "Revision of the projector's model."})
    vision_feature_layer: int = field(default=-2, metadata={"help": "Layer of the tower that is projected."})
    chat_template_path: str | None = field(default=None, metadata={"help": "Jinja file of another chat template."})
    dtype: str = field(default="bfloat16", metadata={"help": "Precision of the weights."})
    seed: int = field(default=0, metadata={"help": "Seed of a fresh projector."})

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype: torch has no {self.dtype!r}; take bfloat16, float16 or float32")


def assemble(config: AssemblyConfig) -> dict[str, Any]:
    """
    Assemble a model and save it with its processor.

    One copy of the weights is held in memory, in `dtype`. A folder in which something else stands is refused; a run
    that was killed is done again; one that is done is left alone.

    Args:
        config ([`AssemblyConfig`]):
            What to assemble.

    Returns:
        `dict[str, Any]`: what `summary.json` holds: tokens per image, tokens that end an answer, parameters per part.
    """
    folder = Path(config.output_dir)
    if config.projector and is_local(config.projector) and not Path(config.projector).is_dir():
        raise FileNotFoundError(f"projector: folder {config.projector} does not exist; run the alignment first")
    tower_config(config.vision_tower, config.vision_tower_revision)
    check_decoder(config.language_model, config.language_model_revision)
    settings = _settings(config)
    _refuse_another_run(folder, settings)
    if (folder / "summary.json").exists():
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    tokenizer, marked = _tokenizer(config)
    tower = load_tower(config.vision_tower, config.vision_tower_revision, config.dtype)
    decoder = load_decoder(config.language_model, config.language_model_revision, config.dtype)
    model = _join(config, tower, decoder, tokenizer)
    processor = _processor(config, model, tokenizer)
    claim(folder / _SETTINGS, settings)  # not before: what fails above leaves no trace that would refuse the next try
    model.save_pretrained(folder, max_shard_size=_SHARD)
    processor.save_pretrained(folder)  # last: without it a half-written model is refused by what reads it
    summary = {
        "image_tokens": model.config.image_seq_length,
        "image_token_id": model.config.image_token_id,
        "stop_tokens": tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id),
        "pad_token": tokenizer.pad_token,
        "assistant_only_loss": marked,
        "parameters": {part: sum(each.numel() for each in found) for part, found in parts(model).items()},
        "weights": weights_fingerprint(str(folder)),
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
    return summary


def _settings(config: AssemblyConfig) -> dict[str, Any]:
    """Return what decides the bytes of the model."""
    settings = {key: value for key, value in vars(config).items() if key != "output_dir"}
    for part in ("vision_tower", "language_model", "projector"):
        if name := settings[part]:
            settings[f"{part}_weights"] = weights_fingerprint(name, settings[f"{part}_revision"])
    return settings


def _refuse_another_run(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but this very run."""
    known = folder / _SETTINGS
    if known.exists():
        refuse_another_run(folder, json.loads(known.read_text(encoding="utf-8")), settings)
    elif others := {path.name for path in folder.glob("[!.]*")} - _OF_THE_LOOP:
        raise FileExistsError(f"{folder} is not empty ({min(others)} is there); choose another output_dir")


def _tokenizer(config: AssemblyConfig) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return the tokenizer of the language model, with an image token, a padding token and our chat template."""
    tokenizer = AutoTokenizer.from_pretrained(
        config.language_model, revision=config.language_model_revision, trust_remote_code=False
    )
    if config.chat_template_path:
        tokenizer.chat_template = Path(config.chat_template_path).read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ValueError(
            f"language_model: the tokenizer of {config.language_model} has no chat template; take the "
            "instruction-tuned model, or give chat_template_path"
        )
    known = tokenizer.get_vocab()
    if tokenizer.pad_token is None:
        token = next((token for token in _PAD_TOKENS if token in known), _PAD_TOKENS[-1])
        tokenizer.add_special_tokens({"pad_token": token})
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template, marked = with_images(tokenizer, IMAGE_TOKEN)
    return tokenizer, marked


def _join(
    config: AssemblyConfig, tower: PreTrainedModel, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> LlavaForConditionalGeneration:
    """Put the parts together; no weight is copied."""
    _resize(decoder, len(tokenizer))
    decoder.config.pad_token_id = tokenizer.pad_token_id
    patches = (tower.config.image_size // tower.config.patch_size) ** 2
    joined = LlavaConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=patches,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=_strategy(tower, patches, config.vision_feature_layer),
        tie_word_embeddings=decoder.config.tie_word_embeddings,
        dtype=config.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(joined)
    model.model.vision_tower = tower
    model.model.language_model = decoder.base_model
    model.lm_head = decoder.get_output_embeddings()
    model.model.multi_modal_projector = _projector(config, joined).to(tower.dtype)
    _check_text(decoder, model, config.language_model)
    stop = decoder.generation_config.eos_token_id
    stop = {*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(stop), pad_token_id=tokenizer.pad_token_id
    )
    return model


def _check_text(decoder: PreTrainedModel, model: LlavaForConditionalGeneration, name: str) -> None:
    """Refuse a language model that does more with its logits than a LLaVA knows of, such as scale or cap them."""
    ids = torch.arange(8)[None]
    with torch.no_grad():
        alone, within = (each(input_ids=ids).logits.float() for each in (decoder, model))
    if (alone - within).abs().max() > 0.02 * alone.abs().max():  # ours: far above what rounding does
        raise ValueError(
            f"language_model: {name} ({decoder.config.model_type}) does not say the same within a LLaVA, which leaves "
            "out what some models do to their logits; take another, such as Qwen/Qwen2-7B-Instruct"
        )


def _resize(decoder: PreTrainedModel, tokens: int) -> None:
    """
    Make room for the new tokens, if the embeddings have no rows to spare.

    New rows are the mean of the others: to a model that never saw the token it is any token, and no logit of it stands
    out. Nothing is drawn by chance.
    """
    before = decoder.get_input_embeddings().weight.shape[0]
    if tokens <= before:
        return
    decoder.resize_token_embeddings(tokens, pad_to_multiple_of=_EMBEDDING_ROWS, mean_resizing=False)
    for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        with torch.no_grad():
            layer.weight[before:] = layer.weight[:before].mean(dim=0, dtype=torch.float32).to(layer.weight.dtype)


def _strategy(tower: PreTrainedModel, patches: int, layer: int) -> str:
    """Return whether the tower puts a class token in front of the patches, which LLaVA then leaves out."""
    size = tower.config.image_size
    with torch.no_grad():
        seen = tower(torch.zeros(1, 3, size, size, dtype=tower.dtype), output_hidden_states=True).hidden_states
    if not -len(seen) <= layer < len(seen):
        raise ValueError(f"vision_feature_layer is {layer}; the tower has {len(seen)}, from {-len(seen)} to -1")
    extra = seen[layer].shape[1] - patches
    if extra not in (0, 1):
        raise ValueError(f"vision_tower: {type(tower).__name__} gives {extra} features beside the {patches} patches")
    return "default" if extra else "full"


def _projector(config: AssemblyConfig, joined: LlavaConfig) -> torch.nn.Module:
    """Return a fresh projector, initialised as PyTorch does (and LLaVA's own code), or an aligned one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        projector = LlavaMultiModalProjector(joined)
    if config.projector:
        source = (config.projector, config.projector_revision)
        projector.load_state_dict(projector_weights(*source, joined, projector.state_dict()))
    return projector


def _processor(
    config: AssemblyConfig, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> LlavaProcessor:
    """Return the processor; it scales every image to one square, so that all have the same number of tokens."""
    vision = model.config.vision_config
    side = {"height": vision.image_size, "width": vision.image_size}
    images = AutoImageProcessor.from_pretrained(
        config.vision_tower,
        revision=config.vision_tower_revision,
        trust_remote_code=False,
        size=side,
        crop_size=side,
        do_center_crop=False,
    )
    strategy = model.config.vision_feature_select_strategy
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),  # the class token, counted in and left out again
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )
