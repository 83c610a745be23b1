"""
Models with random weights in the shape of real ones, for measuring speed without a download.

They are Idefics3 (SigLIP, pixel shuffle, Llama), which Transformers and the common servers load; one image is one
square of `image_size` pixels, without splitting.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from sicog_trl.prompts import STEPS, prompt_for, task_of


IMAGE_TOKEN = "<image>"
TURN = ("<|im_start|>", "<|im_end|>")
# The end of an answer lies beyond the words that the model can say: every candidate gets as long as it may, on every
# side and at every server alike.
END = "<|end_of_answer|>"
SPECIAL_TOKENS = ["<pad>", *TURN, IMAGE_TOKEN, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Shape:
    """
    Sizes of a model.

    Args:
        image_size, patch_size, scale_factor (`int`):
            An image becomes `(image_size / patch_size / scale_factor) ** 2` tokens.
        vision, text (`dict[str, int]`):
            Sizes of the tower and of the language model, under the names of their configurations.
        dtype (`torch.dtype`, *optional*):
            Precision of the weights.
    """

    image_size: int
    patch_size: int
    scale_factor: int
    vision: dict[str, int]
    text: dict[str, int]
    dtype: torch.dtype = torch.float32

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return (self.image_size // self.patch_size // self.scale_factor) ** 2


def _sizes(width: int, layers: int, heads: int, intermediate: int, **others: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": intermediate, **others}


SHAPES = {
    # ours: five million parameters, shared out like those of the larger ones; patches as in SigLIP-base, and each of
    # them a token as in LLaVA.
    "5m": Shape(
        image_size=128,
        patch_size=16,
        scale_factor=1,
        vision=_sizes(192, 3, 3, 768),
        text=_sizes(192, 4, 3, 512, num_key_value_heads=3, vocab_size=4096),
    ),
    # SmolVLM-256M: SigLIP-base at 512 pixels and SmolLM2-135M.
    "256m": Shape(
        image_size=512,
        patch_size=16,
        scale_factor=4,
        vision=_sizes(768, 12, 12, 3072),
        text=_sizes(576, 30, 9, 1536, num_key_value_heads=3, vocab_size=49_280),
    ),
    # LLaVA-1.5-7B in this architecture: Llama-2-7B behind a SigLIP of 400 million parameters, 169 image tokens.
    "7b": Shape(
        image_size=364,
        patch_size=14,
        scale_factor=2,
        vision=_sizes(1152, 27, 16, 4304),
        text=_sizes(4096, 32, 32, 11_008, num_key_value_heads=32, vocab_size=32_064),
        dtype=torch.bfloat16,
    ),
}


def build_processor(shape: Shape) -> Idefics3Processor:
    """Return a processor whose tokenizer has learnt the prompts, so that they are as short as in a real model."""
    prompts = [prompt_for(mode, "How many are there?" if task_of(mode) == "reasoning" else None) for mode in STEPS]
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    turns = [f"user\nassistant\n{prompt}" for prompt in prompts] * 2
    learnt.train_from_iterator(
        turns,
        trainers.BpeTrainer(
            vocab_size=2048, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
        ),
    )
    content = json.loads(learnt.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"Ġword{index}": index for index in range(len(vocabulary), shape.text["vocab_size"])}
    vocabulary[END] = shape.text["vocab_size"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token="<pad>",
        eos_token=END,
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )
    edge = {"longest_edge": shape.image_size}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(images, tokenizer, image_seq_len=shape.image_tokens, chat_template=CHAT_TEMPLATE)


def build_model(shape: Shape, output_dir: str | Path, device: str = "cpu", seed: int = 0) -> int:
    """
    Build a model with random weights and save it with its processor.

    Args:
        shape ([`Shape`]):
            Its sizes.
        output_dir (`str` or `Path`):
            Folder that `AutoModelForImageTextToText` and `AutoProcessor` load from.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where it is built.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.

    Returns:
        `int`: number of parameters.
    """
    processor = build_processor(shape)
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        **shape.text,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(
            **shape.vision, image_size=shape.image_size, patch_size=shape.patch_size
        ).to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=shape.scale_factor,
        tie_word_embeddings=False,
        dtype=shape.dtype,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = Idefics3ForConditionalGeneration(config).to(shape.dtype)
    # A head of small random weights finds every word equally likely, and its nucleus would be most of the vocabulary.
    # With scores spread like this it is a dozen of 4,096 words and some fifty of 49,280, at SICOG's 0.7 and 0.9.
    torch.nn.init.normal_(model.lm_head.weight, std=3.5 * shape.text["hidden_size"] ** -0.5)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    return model.num_parameters()
