"""The cache with room gives what the cache of Transformers gives, to the bit."""

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.cache_utils import DynamicLayer

from sicog_trl.generation import Request, TransformersSampler, transformers_sampler
from sicog_trl.generation.cache import GrowingLayer, growing_cache


def states(length: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 2, length, 4), torch.randn(batch, 2, length, 4)


def test_it_holds_what_the_plain_layer_holds():
    plain, growing = DynamicLayer(), GrowingLayer()
    batch = 3
    changes = {
        40: lambda layer: layer.crop(-5),
        80: lambda layer: layer.batch_select_indices(torch.tensor([2, 0])),
        120: lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        160: lambda layer: layer.batch_repeat_interleave(2),
        200: lambda layer: layer.reset(),
    }
    for step in range(260):
        batch = {80: 2, 160: 4}.get(step, batch)
        if step in changes:
            changes[step](plain)
            changes[step](growing)
        new = states(17 if step % 50 == 0 else 1, batch)
        for mine, theirs in zip(growing.update(*new), plain.update(*new), strict=True):
            assert torch.equal(mine, theirs)
        assert growing.get_seq_length() == plain.get_seq_length()


def test_what_is_there_is_not_copied_for_each_token():
    layer = GrowingLayer()
    layer.update(*states(200))
    places = {layer.update(*states(1))[0].data_ptr() for _ in range(300)}
    assert len(places) <= 4


def test_texts_are_the_same_with_and_without(digits_model, monkeypatch):
    images = [Image.effect_noise((32, 32), 90).convert("RGB") for _ in range(6)]
    requests = [Request([image], "Describe the image in detail.", [i, i + 1]) for i, image in enumerate(images)]
    sampler = TransformersSampler(str(digits_model), batch_size=4, max_completion_length=100)
    ours = dict(sampler.sample(requests))
    monkeypatch.setattr(transformers_sampler, "growing_cache", lambda model: None)
    assert ours == dict(sampler.sample(requests))


def test_only_plain_layers_are_replaced(digits_model):
    plain = AutoModelForImageTextToText.from_pretrained(digits_model)
    assert {type(layer) for layer in growing_cache(plain).layers} == {GrowingLayer}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    mixed = Gemma3ForCausalLM(
        Gemma3TextConfig(
            **sizes,
            vocab_size=50,
            head_dim=8,
            num_hidden_layers=2,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        )
    )
    kinds = [type(layer) for layer in growing_cache(mixed).layers]
    assert kinds[1] is GrowingLayer and kinds[0] is not GrowingLayer
    prompt = torch.randint(5, 50, (2, 7))
    options = {"do_sample": False, "max_new_tokens": 70, "eos_token_id": None}
    expected = mixed.generate(prompt, **options)
    assert torch.equal(mixed.generate(prompt, past_key_values=growing_cache(mixed), **options), expected)


def test_models_with_an_encoder_keep_their_own():
    tiny = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20)
    assert growing_cache(T5ForConditionalGeneration(tiny)) is None
