"""The learner of the digits world: a LLaVA of half a million parameters, built from scratch without a download.

SigLIP (patches of one cell, so four image tokens) and a two-layer Llama behind a word-level tokenizer of the closed
vocabulary. A model this small does not learn to read digits through a language model that knows no words yet, so its
vision tower is first taught to name the content of each cell, which stands for the pretrained tower of a real model.
"""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm.auto import tqdm
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from ..views import light_view
from .pools import annotated_pool
from .scenes import BACKGROUNDS, CELL, CELLS, COLOURS, DIGITS, NUMBERS
from .texts import read_objects


IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN]

# Turns in ChatML; the generation marks tell TRL which tokens are the assistant's, its end of turn included.
CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}
{%- for part in content -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- text(message['content']) + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- text(message['content']) + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def _vocabulary() -> list[str]:
    """Every word that the world can say; a handful of scenes shows all sentences, lists complete them."""
    texts = ["user\n", "assistant\n", " ".join(str(number) for number in range(37))]
    texts += [f" {word} {word.capitalize()} {word}," for word in DIGITS]
    texts += [f"{word} {word} {word}" for word in COLOURS]
    texts += [*CELLS, *NUMBERS, *BACKGROUNDS, "yes", "no", *DIGITS, *map(str, range(37))]
    pools = annotated_pool(40, seed=0)
    for split in ("base", "cognition", "instruction"):
        rows = pools[split].select_columns(["prompt", "completion"])
        texts += [message["content"] for line in rows for turn in line.values() for message in turn]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})


def build_processor() -> LlavaProcessor:
    """Return the processor: word-level tokenizer, 32-pixel images, chat template with generation marks."""
    words = SPECIAL_TOKENS + _vocabulary()
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", IMAGE_TOKEN],
    )
    images = SiglipImageProcessorPil(
        size={"height": 2 * CELL, "width": 2 * CELL}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=CELL,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(output_dir: str | Path, seed: int = 0) -> LlavaForConditionalGeneration:
    """
    Build the learner with random weights and save it with its processor.

    Args:
        output_dir (`str` or `Path`):
            Folder that `AutoModelForImageTextToText` and `AutoProcessor` load from.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.

    Returns:
        `LlavaForConditionalGeneration`: the model, in float32.
    """
    processor = build_processor()
    tokenizer = processor.tokenizer
    width = 96
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=2 * CELL,
        patch_size=CELL,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=width**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=len(CELLS),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.model.multi_modal_projector.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    return model


def warm_up_tower(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: Dataset,
    steps: int = 600,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """
    Teach the vision tower to name the digit and the colour of each cell, on light views of annotated scenes.

    Args:
        model (`LlavaForConditionalGeneration`):
            Changed in place; only its vision tower moves.
        scenes (`datasets.Dataset`):
            Rows with `images` and a detailed description as `completion`.
        steps, batch_size, learning_rate, seed:
            Of the training loop (AdamW, cosine).

    Returns:
        `float`: share of cells named right in the last batch, seen in training.
    """
    images = [row["images"][0] for row in scenes]
    said = [read_objects(row["completion"][0]["content"]) for row in scenes.select_columns("completion")]
    numbers = {(colour, digit): (i, j) for i, colour in enumerate(COLOURS, 1) for j, digit in enumerate(DIGITS, 1)}
    tags = torch.tensor([[numbers.get(objects.get(cell), (0, 0)) for cell in CELLS] for objects in said])
    tower = model.model.vision_tower
    torch.manual_seed(seed)
    head = torch.nn.Linear(tower.config.hidden_size, len(COLOURS) + 1 + len(DIGITS) + 1)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    right = 0.0
    for _ in tqdm(range(steps), desc="vision tower"):
        rows = rng.integers(len(images), size=batch_size)
        views = [light_view(images[row], int(rng.integers(2**31))) for row in rows]
        pixels = processor.image_processor(images=views, return_tensors="pt")["pixel_values"]
        features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        colours, digits = head(features).split([len(COLOURS) + 1, len(DIGITS) + 1], dim=-1)
        truth = tags[rows]
        loss = torch.nn.functional.cross_entropy(colours.flatten(0, 1), truth[..., 0].flatten())
        loss = loss + torch.nn.functional.cross_entropy(digits.flatten(0, 1), truth[..., 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        named = (colours.argmax(-1) == truth[..., 0]) & (digits.argmax(-1) == truth[..., 1])
        right = named.float().mean().item()
    return right
