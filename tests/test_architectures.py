"""Reading prompt and image once changes no text, in models that find positions and features in ways of their own."""

from collections.abc import Callable

import pytest
import torch
import transformers as T
from PIL import Image
from transformers import BatchFeature, GenerationConfig, PreTrainedModel

from sicog_trl.generation import Request, TransformersSampler, transformers_sampler


IMAGE, IMAGE_TOKENS, LENGTH = 1, 4, 12
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 300}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
MROPE = {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def prompts(image_tokens: int = IMAGE_TOKENS) -> dict[str, torch.Tensor]:
    """Two prompts with an image each, the second one padded on the left."""
    ids = torch.randint(10, 290, (2, image_tokens + 8), generator=torch.Generator().manual_seed(2))
    ids[:, 3 : 3 + image_tokens] = IMAGE
    ids[1, :2] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def llava() -> tuple[PreTrainedModel, dict]:
    parts = {"text_config": T.LlamaConfig(**SMALL), "vision_config": T.CLIPVisionConfig(**VISION)}
    model = T.LlavaForConditionalGeneration(
        T.LlavaConfig(**parts, image_token_index=IMAGE, vision_feature_select_strategy="default")
    )
    return model, {**prompts(), "pixel_values": pixels(2, 3, 28, 28)}


def llava_next() -> tuple[PreTrainedModel, dict]:
    parts = {"text_config": T.LlamaConfig(**SMALL), "vision_config": T.CLIPVisionConfig(**VISION)}
    grid = {"image_grid_pinpoints": [[28, 56], [56, 28]], "vision_feature_select_strategy": "default"}
    model = T.LlavaNextForConditionalGeneration(T.LlavaNextConfig(**parts, **grid, image_token_index=IMAGE))
    seen = {"pixel_values": pixels(2, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56], [28, 56]])}
    features = model.model.get_image_features(**seen).pooler_output
    return model, {**prompts(len(features[0])), **seen}


def gemma3() -> tuple[PreTrainedModel, dict]:
    text = {
        **SMALL,
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": [*["sliding_attention"] * 2, "full_attention"],
    }
    config = T.Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=IMAGE_TOKENS, image_token_id=IMAGE
    )
    asked = prompts()
    asked["token_type_ids"] = (asked["input_ids"] == IMAGE).long()
    return T.Gemma3ForConditionalGeneration(config), {**asked, "pixel_values": pixels(2, 3, 28, 28)}


def qwen(model: type, config: type, **vision) -> tuple[PreTrainedModel, dict]:
    made = config(text_config={**SMALL, **MROPE}, vision_config={**QWEN, **vision}, **TOKENS)
    asked, patch = prompts(), made.vision_config.patch_size
    asked["mm_token_type_ids"] = (asked["input_ids"] == IMAGE).long()
    seen = {"pixel_values": pixels(32, 3 * 2 * patch**2), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    return model(made), {**asked, **seen}


MODELS: dict[str, Callable[[], tuple[PreTrainedModel, dict]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "gemma3": gemma3,
    "qwen2_5_vl": lambda: qwen(T.Qwen2_5_VLForConditionalGeneration, T.Qwen2_5_VLConfig, fullatt_block_indexes=[0]),
    "qwen3_vl": lambda: qwen(
        T.Qwen3VLForConditionalGeneration, T.Qwen3VLConfig, deepstack_visual_indexes=[0], num_position_embeddings=16
    ),
}


class Spelled(TransformersSampler):
    """A sampler around a model without a processor: its texts are numbers of tokens."""

    def __init__(self, model: PreTrainedModel):
        self.model, self._features, self.stop_tokens = model.eval(), None, {5}
        self.temperature, self.top_p = 0.7, 0.9
        model.generation_config = GenerationConfig(
            eos_token_id=[5], pad_token_id=0, do_sample=True, max_new_tokens=LENGTH, top_k=0, suppress_tokens=[1, 2]
        )

    def _read(self, tokens: list[int]) -> list[int]:
        return tokens[: tokens.index(5)] if 5 in tokens else tokens


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_once_is_what_transformers_reads_again(name, monkeypatch):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    sampler = Spelled(model)
    requests = [Request([Image.new("RGB", (4, 4))], "", [seed, seed + 1, seed + 2]) for seed in (7, 70)]
    seeds = [request.seeds for request in requests]
    encoded = []
    names = ("vision_tower", "visual")
    tower = next(module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in names)
    tower.register_forward_pre_hook(lambda module, given: encoded.append(1))
    with monkeypatch.context() as plain:
        plain.setattr(transformers_sampler, "growing_cache", lambda model: None)
        expected = sampler._generate(BatchFeature(dict(inputs)), seeds)
    assert len({tuple(tokens) for row in expected for tokens in row}) > 3
    encoded.clear()
    for _ in range(2):
        assert sampler._generate(sampler._look(BatchFeature(dict(inputs)), requests), seeds) == expected
    assert len(encoded) == 1
