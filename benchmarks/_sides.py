"""
The sides that `generation.py` compares: each answers the same requests with the same model and returns how long its
candidates are.
"""

import copy
import itertools
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from _models import SHAPES
from PIL import Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from sicog_trl.checkpoints import load_for_generation
from sicog_trl.generation import CandidateConfig, Request, Response, TransformersSampler
from sicog_trl.generation.cache import growing_cache
from sicog_trl.generation.sampling import candidate_seed
from sicog_trl.prompts import prompt_for


TEMPERATURE, TOP_P = 0.7, 0.9  # SICOG


def pictures(count: int, edge: int, seed: int = 0) -> list[Image.Image]:
    """Return smooth pictures of random colours, such as no two rows share."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(cells).resize((edge, edge), Image.Resampling.BICUBIC) for cells in colours]


def ask(images: Sequence[Image.Image]) -> list[Request]:
    """Return what `generate` asks about these rows by default: two chains of description and one direct answer."""
    modes = CandidateConfig().description_modes
    requests = []
    for (number, image), (mode, count) in itertools.product(enumerate(images), modes.items()):
        prompt = prompt_for(mode)
        first = candidate_seed(0, f"row-{number}", prompt, 0)
        requests.append(Request([image], prompt, list(range(first, first + count))))
    return requests


def encode(processor: ProcessorMixin, model: PreTrainedModel, requests: list[Request]) -> BatchFeature:
    """Return the inputs of the model for requests with one picture each and prompts of one length."""
    turns = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request.prompt}]}]
        for request in requests
    ]
    prompts = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    images = [request.images for request in requests]
    inputs = processor(images=images, text=prompts, add_special_tokens=False, return_tensors="pt")
    return inputs.to(model.device, dtype=model.dtype)


def released(model_path: str, size: dict[str, Any], device: str) -> Callable[[], list[int]]:
    """Return a call that answers one candidate after the other and returns their lengths."""
    model, processor = load_for_generation(model_path, device=device)
    requests = ask(pictures(size["released_rows"], SHAPES[size["shape"]].image_size))
    # top_k, because generate() would add its own.
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}

    def answer(request: Request, seed: int) -> int:
        inputs = encode(processor, model, [request])
        torch.manual_seed(seed)
        output = model.generate(**inputs, **sampling, max_new_tokens=size["completion_length"])
        tokens = output[0, inputs["input_ids"].shape[1] :]
        processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return len(tokens)

    return lambda: [answer(request, seed) for request in requests for seed in request.seeds]


def embedded(model_path: str, size: dict[str, Any], device: str) -> Callable[[], list[int]]:
    """Return a call that samples with a model in this process and returns the lengths of the candidates."""
    sampling = {"max_completion_length": size["completion_length"], "temperature": TEMPERATURE, "top_p": TOP_P}
    sampler = TransformersSampler(model_path, device=device, batch_size=size["batch_size"], **sampling)
    requests = ask(pictures(size["rows"], SHAPES[size["shape"]].image_size))
    return lambda: lengths(sampler.sample(requests))


def server(model_path: str, size: dict[str, Any], device: str) -> Callable[[], list[int]]:
    """Return a call that samples through a server and returns the lengths of the candidates."""
    from sicog_trl.generation.openai_sampler import OpenAISampler

    sampling = {"max_completion_length": size["completion_length"], "temperature": TEMPERATURE, "top_p": TOP_P}
    sampler = OpenAISampler(size["served"], size["base_url"], **sampling)
    edge = SHAPES[size["shape"]].image_size
    # Other pictures each time: a server remembers what it has encoded and read.
    turns = (ask(pictures(size["rows"], edge, seed)) for seed in itertools.count(1))
    return lambda: lengths(sampler.sample(next(turns)))


def limit(model_path: str, size: dict[str, Any], device: str) -> Callable[[], list[int]]:
    """Return a call that makes nothing but the forward passes and returns the lengths of what could be candidates."""
    model, processor = load_for_generation(model_path, device=device)
    requests = ask(pictures(size["rows"], SHAPES[size["shape"]].image_size))
    counts = sorted({len(request.seeds) for request in requests})
    most = max(1, size["batch_size"] // max(counts))
    alike = [[request for request in requests if len(request.seeds) == count] for count in counts]
    # Some rows at a time, one mode after the other: the same pictures, which `embedded` encodes once.
    batches = [
        [
            (encode(processor, model, one[start : start + most]), count)
            for one, count in zip(alike, counts, strict=True)
        ]
        for start in range(0, len(alike[0]), most)
    ]

    @torch.inference_mode()
    def forward(inputs: BatchFeature, count: int, features: Any) -> list[int]:
        seen = {name: inputs[name] for name in inputs if name not in ("pixel_values", "pixel_attention_mask")}
        cache = growing_cache(model)
        look = {"mm_encoder_outputs": {"image": copy.copy(features)}}
        model(**seen, **look, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(count)
        candidates = len(inputs["input_ids"]) * count
        token = torch.zeros((candidates, 1), dtype=torch.long, device=model.device)
        for _ in range(size["completion_length"] - 1):  # the first token comes from the prompt
            model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return [size["completion_length"]] * candidates

    @torch.inference_mode()
    def answer(modes: list[tuple[BatchFeature, int]]) -> list[int]:
        pixels = {name: modes[0][0][name] for name in ("pixel_values", "pixel_attention_mask") if name in modes[0][0]}
        features = model.base_model.get_image_features(**pixels, return_dict=True)
        return [length for inputs, count in modes for length in forward(inputs, count, features)]

    return lambda: [length for modes in batches for length in answer(modes)]


SIDES = {"released": released, "embedded": embedded, "server": server, "limit": limit}
_calls: dict[str, Callable[[], list[int]]] = {}  # of the process that a side has for itself


def lengths(answers: Iterator[tuple[int, list[Response]]]) -> list[int]:
    """Return the lengths of all candidates; a server that does not tell them is no failure here."""
    return [response.num_tokens or 0 for _, responses in answers for response in responses]


def peak_memory(device: str) -> float:
    """Return the most memory that this process, or its model on a GPU, has had; in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(side: str, model_path: str, size: dict[str, Any], device: str) -> dict[str, Any]:
    """Load what a side needs, tell the memory, and make the call that is slow because it is the first one."""
    disable_progress_bar()
    _calls[side] = SIDES[side](model_path, size, device)
    before = peak_memory(device)
    _calls[side]()
    return {"memory_before_mb": before, "threads": torch.get_num_threads()}


def turn(side: str, device: str) -> dict[str, Any]:
    """Let a side make its candidates once."""
    started, cpu = time.perf_counter(), time.process_time()
    tokens = _calls[side]()
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    return {**seconds, "candidates": len(tokens), "tokens": sum(tokens), "peak_memory_mb": peak_memory(device)}
