"""Models of six architectures with random weights, their real processors and chat templates, built without a download.

Sizes are the least that keep what is special about each: tiles of one image, windows, several classes of tokens around
an image, sliding attention. Texts are spelled by a byte-level tokenizer trained on the sentences of the digits world.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import transformers as T
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from sicog_trl.digits import annotated_pool


IMAGE_SIZE, PATCH = 32, 8  # scenes of the digits world have 32 pixels

# Turns as published checkpoints write them; like LLaVA's, it reads content that comes in parts and no plain string.
_TURNS = """\
{{{{- {begin!r} -}}}}
{{%- for message in messages -%}}
{{{{- {roles!r}[message['role']] -}}}}
{{%- for part in message['content'] -%}}
{{%- if part['type'] == 'image' -%}}{{{{- {image!r} -}}}}{{%- else -%}}{{{{- part['text'] -}}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- if message['role'] == 'assistant' -%}}{{{{- {end!r} -}}}}{{%- else -%}}{{{{- {between!r} -}}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {roles!r}['assistant'] -}}}}{{%- endif -%}}
"""


def chat_template(begin: str, user: str, assistant: str, image: str, between: str, end: str) -> str:
    """Return a template with these marks: in front of all, of a turn, of an image, behind a question, an answer."""
    roles = {"system": user, "user": user, "assistant": assistant}
    return _TURNS.format(begin=begin, roles=roles, image=image, between=between, end=end)


@cache
def _texts() -> tuple[str, ...]:
    rows = annotated_pool(10, seed=0)["cognition"].select_columns(["prompt", "completion"])
    return tuple(message["content"] for row in rows for turns in row.values() for message in turns)


def tokenizer(special: list[str], end: str, begin: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer; with `begin` it puts that in front of every text, as Llama's does."""
    spelled = Tokenizer(models.BPE())
    spelled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelled.decoder = decoders.ByteLevel()
    tokens = list(dict.fromkeys(["<pad>", end, *filter(None, [begin]), *special, *named.values()]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spelled.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=tokens, show_progress=False),
    )
    if begin:
        spelled.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, spelled.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=spelled,
        pad_token="<pad>",
        eos_token=end,
        bos_token=begin,
        extra_special_tokens=named or special,
    )


def text_settings(words: PreTrainedTokenizerFast, **others) -> dict:
    """Return the settings of a language model of two layers."""
    return {
        "vocab_size": len(words),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        **others,
    }


def vision_settings(**others) -> dict:
    """Return the settings of a vision tower of two layers."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        **others,
    }


Built = tuple[T.PreTrainedModel, ProcessorMixin]
CLIP_FEATURES = {"vision_feature_select_strategy": "default", "vision_feature_layer": -2}  # as in the published models
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


def llava() -> Built:
    """CLIP and Llama; 16 image tokens. Its template says nothing in front of the first turn or behind an answer."""
    words = tokenizer(["<image>"], "</s>", "<s>")
    config = T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(**vision_settings()),
        text_config=T.LlamaConfig(**text_settings(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        **CLIP_FEATURES,
    )
    processor = T.LlavaProcessor(
        T.CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=SQUARE),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("", "USER: ", "ASSISTANT: ", "<image>\n", " ", " "),
    )
    return T.LlavaForConditionalGeneration(config), processor


def llava_next() -> Built:
    """CLIP and Llama; the image as a whole and in tiles, with a learned token behind each line."""
    words = tokenizer(["<image>"], "</s>", "<s>")
    grid = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE], [2 * IMAGE_SIZE] * 2]
    config = T.LlavaNextConfig(
        vision_config=T.CLIPVisionConfig(**vision_settings()),
        text_config=T.LlamaConfig(**text_settings(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        **CLIP_FEATURES,
    )
    processor = T.LlavaNextProcessor(
        T.LlavaNextImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=SQUARE, image_grid_pinpoints=grid),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<s>", "[INST] ", "", "<image>\n", " [/INST] ", "</s>"),
    )
    return T.LlavaNextForConditionalGeneration(config), processor


def idefics3() -> Built:
    """SigLIP and Llama; four tiles and the whole image, four tokens each, between marks of row and column."""
    marks = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *marks]
    words = tokenizer(special, "<|im_end|>", "<|im_start|>")
    config = T.Idefics3Config(
        vision_config=vision_settings(),
        text_config=T.LlamaConfig(**text_settings(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    processor = T.Idefics3Processor(
        T.Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}
        ),
        words,
        image_seq_len=4,
        chat_template=chat_template(
            "<|im_start|>", "User:", "Assistant: ", "<image>", "<end_of_utterance>\n", "<end_of_utterance>\n"
        ),
    )
    model = T.Idefics3ForConditionalGeneration(config)
    # An answer ends with another token than the tokenizer's end of text.
    model.generation_config.eos_token_id = words.convert_tokens_to_ids(["<end_of_utterance>"])
    return model, processor


class ImageOnlyQwenProcessor(T.Qwen2VLProcessor):
    """The processor of Qwen's models without its part for videos, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


for _config in (T.Qwen2_5_VLConfig, T.Qwen3VLConfig):
    T.AutoProcessor.register(_config, ImageOnlyQwenProcessor, exist_ok=True)


def _qwen(model: type, config: type, **vision) -> Built:
    around = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
    words = tokenizer(["<|im_start|>", *around], "<|im_end|>")
    names = ("vision_start_token_id", "image_token_id", "video_token_id", "vision_end_token_id")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
    made = config(
        text_config=text_settings(words, head_dim=12, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 48,
            "patch_size": PATCH,
            **vision,
        },
        **dict(zip(names, words.convert_tokens_to_ids(around), strict=True)),
    )
    processor = ImageOnlyQwenProcessor(
        T.Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=2, size={"shortest_edge": IMAGE_SIZE**2, "longest_edge": 4 * IMAGE_SIZE**2}
        ),
        words,
        chat_template=chat_template(
            "",
            "<|im_start|>user\n",
            "<|im_start|>assistant\n",
            "<|vision_start|><|image_pad|><|vision_end|>",
            "<|im_end|>\n",
            "<|im_end|>\n",
        ),
    )
    return model(made), processor


def qwen2_5_vl() -> Built:
    """A tower with windows, its projector inside; as many tokens as the size of the image asks for."""
    vision = {"fullatt_block_indexes": [1], "window_size": 2 * PATCH, "spatial_patch_size": PATCH}
    return _qwen(T.Qwen2_5_VLForConditionalGeneration, T.Qwen2_5_VLConfig, **vision)


def qwen3_vl() -> Built:
    """Features of several depths, each with a projector; as many tokens as the size of the image asks for."""
    vision = {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return _qwen(T.Qwen3VLForConditionalGeneration, T.Qwen3VLConfig, **vision)


def gemma3() -> Built:
    """SigLIP and Gemma with sliding attention; the mark in the text is another token than those of the image."""
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer(["<start_of_turn>", "<end_of_turn>"], "<eos>", "<bos>", **named)
    ids = {f"{name}_id": words.convert_tokens_to_ids(token) for name, token in named.items()}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "head_dim": 12}
    config = T.Gemma3Config(
        text_config=text_settings(words, **layers), vision_config=vision_settings(), mm_tokens_per_image=4, **ids
    )
    processor = T.Gemma3Processor(
        T.Gemma3ImageProcessorPil(size=SQUARE),
        words,
        image_seq_length=4,
        chat_template=chat_template(
            "<bos>",
            "<start_of_turn>user\n",
            "<start_of_turn>model\n",
            "<start_of_image>",
            "<end_of_turn>\n",
            "<end_of_turn>\n",
        ),
    )
    model = T.Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    return model, processor


BUILDERS: dict[str, Callable[[], Built]] = {
    "llava": llava,
    "llava_next": llava_next,
    "idefics3": idefics3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "gemma3": gemma3,
}


def build(name: str, folder: Path) -> Path:
    """Save a model and its processor in `folder`, as `AutoModelForImageTextToText` and `AutoProcessor` load them."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
