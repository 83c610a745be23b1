"""The embedded sampler: `generate` of Transformers, batched, every candidate with its own random stream."""

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from transformers import (
    BatchFeature,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from trl.data_utils import prepare_multimodal_messages

from ..checkpoints import load_for_generation, placeholders, prepare_for_generation
from .cache import growing_cache
from .sampling import Failure, OwnDistribution, Request, Response, SeededSampling, open_pixels


_WINDOW_PIXELS = 2**27  # ours: about 400 MB of open images, among which requests are sorted by length


def _decode(num_candidates: int) -> Callable[..., torch.LongTensor]:
    """
    Return how `generate` shall decode: as when it samples, but each prompt is read once for all its candidates.

    Transformers would repeat the prompts before it reads them, and then draw a second time among tokens of which
    [`SeededSampling`] has left one.
    """

    def decode(
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.LongTensor:
        generation_config.do_sample = False
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        model_kwargs.pop("mm_encoder_outputs", None)  # in the cache by now
        if num_candidates > 1:
            outputs.past_key_values.batch_repeat_interleave(num_candidates)
            outputs["logits"] = outputs.logits[:, -1:].repeat_interleave(num_candidates, dim=0)
            input_ids, model_kwargs = model._expand_inputs_for_generation(
                num_candidates, input_ids=input_ids, **model_kwargs
            )
        model._prefill = lambda *inputs, **options: outputs  # it has been done
        try:
            return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        finally:
            del model._prefill

    return decode


def _watched(own: OwnDistribution, decode: Callable[..., torch.LongTensor]) -> Callable[..., torch.LongTensor]:
    """Return how `generate` shall decode with `own` before what changes the scores; it puts ours behind that."""

    def watched(
        model: PreTrainedModel, input_ids: torch.LongTensor, logits_processor: LogitsProcessorList, **others: Any
    ) -> torch.LongTensor:
        logits_processor.insert(0, own)
        return decode(model, input_ids, logits_processor=logits_processor, **others)

    return watched


class TransformersSampler:
    """
    Sample with a model in this process.

    Args:
        model_name_or_path (`str`):
            Anything that `AutoModelForImageTextToText` loads, or the folder of a PEFT adapter.
        revision (`str`, *optional*):
            Revision of a Hub model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        device (`str`, *optional*):
            Device; a GPU if there is one.
        batch_size (`int`, *optional*, defaults to `256`):
            Candidates per forward pass; changes the speed, not the text (on one CPU build in float32).
        max_completion_length (`int`, *optional*, defaults to `512`):
            Most tokens of a candidate; what is cut there has the finish reason `"length"`.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 means greedy.
        top_p (`float`, *optional*, defaults to `0.9`):
            Nucleus.
        logprobs (`bool`, *optional*, defaults to `False`):
            Give each candidate its mean log-probability; no token changes by it.
        attn_implementation (`str`, *optional*):
            How attention is computed, such as `"sdpa"`; Transformers chooses, unless given.
    """

    def __init__(
        self,
        model_name_or_path: str,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int = 256,
        max_completion_length: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        logprobs: bool = False,
        attn_implementation: str | None = None,
    ):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.processor = load_for_generation(
            model_name_or_path,
            revision=revision,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
        )
        self.batch_size = batch_size
        self.temperature = temperature
        self.top_p = top_p
        self.logprobs = logprobs

        self._features: tuple[list[Image], Any] | None = None  # of the images of the last batch
        self.placeholders = placeholders(self.processor)
        self.max_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.stop_tokens = prepare_for_generation(
            self.model,
            self.processor,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_completion_length,
        )

    def render(self, request: Request) -> str:
        """Return the prompt as training sees it: TRL places the images, the chat template does the rest."""
        messages = prepare_multimodal_messages([{"role": "user", "content": request.prompt}], images=request.images)
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Response] | Failure]]:
        """See [`Sampler`]. Requests of like length share a batch, so that little is padded."""
        window: list[Request] = []
        start = pixels = 0
        for request in requests:
            window.append(request)
            pixels += open_pixels([request])
            if pixels >= _WINDOW_PIXELS:
                yield from self._sample(start, window)
                start, window, pixels = start + len(window), [], 0
        yield from self._sample(start, window)

    def _sample(self, first: int, requests: list[Request]) -> Iterator[tuple[int, list[Response] | Failure]]:
        prompts = [self.render(request) for request in requests]
        for batch in self._batches(requests, prompts):
            answers = self._answer([requests[i] for i in batch], [prompts[i] for i in batch])
            yield from zip((first + i for i in batch), answers, strict=True)
        self._features = None

    def _batches(self, requests: list[Request], prompts: list[str]) -> Iterator[list[int]]:
        """Yield requests that are alike, rows of several modes one mode after the other: over the same images."""
        rows = [
            list(row)
            for _, row in itertools.groupby(
                range(len(requests)), key=lambda i: tuple(map(id, requests[i].images)) or ("text", i)
            )
        ]
        # Processors do not take rows with and without images together.
        kinds = [(*(len(requests[i].seeds) for i in row), bool(requests[row[0]].images)) for row in rows]
        order = sorted(range(len(rows)), key=lambda r: (kinds[r], max(len(prompts[i]) for i in rows[r])))
        for kind, alike in itertools.groupby(order, key=kinds.__getitem__):
            size = max(1, self.batch_size // max(kind[:-1]))
            members = [rows[r] for r in alike]
            for start in range(0, len(members), size):
                yield from map(list, zip(*members[start : start + size], strict=True))

    def _answer(self, requests: list[Request], prompts: list[str]) -> list[list[Response] | Failure]:
        try:
            inputs = self._encode(requests, prompts)
        # Every processor has its own way to say that it cannot take an image: too thin, too small, too many.
        except (ImportError, MemoryError):  # of the machine, not of the request
            raise
        except Exception as error:
            if len(requests) == 1:
                return [Failure("refused", f"the processor cannot take it: {type(error).__name__}: {error}")]
            return [self._answer([one], [prompt])[0] for one, prompt in zip(requests, prompts, strict=True)]
        inputs = self._look(inputs.to(self.model.device, dtype=self.model.dtype), requests)
        return self._generate(inputs, [request.seeds for request in requests])

    @torch.inference_mode()
    def _look(self, inputs: BatchFeature, requests: list[Request]) -> BatchFeature:
        """Put the features of the images in the place of their pixels: each is encoded once for all modes of a row."""
        encoder = getattr(self.model.base_model, "get_image_features", None)
        if encoder is None or not self.model._supports_mm_encoder_outputs() or "pixel_values" not in inputs:
            return inputs
        images = [image for request in requests for image in request.images]
        if self._features is None or list(map(id, self._features[0])) != list(map(id, images)):
            known = inspect.signature(encoder).parameters
            features = encoder(**{name: inputs[name] for name in known if name in inputs}, return_dict=True)
            self._features = images, features  # with the images, so that no others get their ids
        del inputs["pixel_values"]  # nothing else of what the encoder takes: some models find positions by it
        inputs["mm_encoder_outputs"] = {"image": copy.copy(self._features[1])}  # `generate` changes what it is given
        return inputs

    def _encode(self, requests: list[Request], prompts: list[str]) -> BatchFeature:
        images = [request.images for request in requests]
        inputs = self.processor(
            images=images if any(images) else None,
            text=prompts,
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the chat template wrote them
            return_tensors="pt",
        )
        longest = int(inputs["attention_mask"].sum(dim=-1).max())
        if self.max_length and longest > self.max_length:
            raise ValueError(f"the prompt has {longest} tokens, the model takes {self.max_length}")
        return inputs

    @torch.inference_mode()
    def _generate(self, inputs: BatchFeature, seeds: list[list[int]]) -> list[list[Response]]:
        length, num_candidates = inputs["input_ids"].shape[1], len(seeds[0])
        own = OwnDistribution() if self.logprobs else None
        flat = [seed for row in seeds for seed in row]
        sampling = SeededSampling(flat, length, self.temperature, self.top_p, own)
        cache = growing_cache(self.model)
        if cache is None:  # a model of another make: as Transformers does it
            options, decode = {"num_return_sequences": num_candidates}, type(self.model)._sample
        else:
            decode = _decode(num_candidates)
            options = {"past_key_values": cache, "custom_generate": decode}
        if own:
            options["custom_generate"] = _watched(own, decode)
        output = self.model.generate(**inputs, **options, logits_processor=LogitsProcessorList([sampling]))
        answers = [self._read(tokens) for tokens in output[:, length:].tolist()]
        if own:
            logprobs = torch.stack(sampling.logprobs, dim=1).cpu().double()
            # What comes after the end of a sequence is padding, which was drawn for nothing.
            means = (row[: each.num_tokens].mean().item() for each, row in zip(answers, logprobs, strict=True))
            answers = [replace(each, mean_logprob=mean) for each, mean in zip(answers, means, strict=True)]
        return [answers[i : i + num_candidates] for i in range(0, len(answers), num_candidates)]

    def _read(self, tokens: list[int]) -> Response:
        stop = next((i for i, token in enumerate(tokens) if token in self.stop_tokens), None)
        text = self.processor.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
        return Response(text, "length" if stop is None else "stop", len(tokens) if stop is None else stop + 1)
