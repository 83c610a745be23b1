"""The embedded sampler: `generate` of Transformers, batched, every candidate with its own random stream."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import BatchFeature, GenerationConfig, LogitsProcessorList, PreTrainedModel
from trl.data_utils import prepare_multimodal_messages

from ..checkpoints import load_for_generation, placeholders, prepare_for_generation
from .cache import growing_cache
from .sampling import Failure, Request, Response, SeededSampling


def _take_what_is_drawn(
    model: PreTrainedModel, input_ids: torch.LongTensor, generation_config: GenerationConfig, **options: Any
) -> torch.LongTensor:
    """Decode as `generate` does when it samples, but do not draw a second time among tokens of which one is left."""
    generation_config.do_sample = False
    return model._sample(input_ids, generation_config=generation_config, **options)


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
            Candidates per forward pass; changes the speed, not the text (on one CPU build).
        max_completion_length (`int`, *optional*, defaults to `512`):
            Most tokens of a candidate; what is cut there has the finish reason `"length"`.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 means greedy.
        top_p (`float`, *optional*, defaults to `0.9`):
            Nucleus.
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
    ):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.processor = load_for_generation(
            model_name_or_path, revision=revision, dtype=dtype, device=device
        )
        self.batch_size = batch_size
        self.temperature = temperature
        self.top_p = top_p

        self.placeholders = placeholders(self.processor)
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

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Response] | Failure]]:
        """See [`Sampler`]. Requests of like length share a batch, so that little is padded."""
        prompts = [self.render(request) for request in requests]
        # Processors do not take rows with and without images together.
        kinds = [(len(request.seeds), bool(request.images)) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (kinds[i], len(prompts[i])))
        start = 0
        while start < len(order):
            kind = num_candidates, _ = kinds[order[start]]
            batch = order[start : start + max(1, self.batch_size // num_candidates)]
            batch = [i for i in batch if kinds[i] == kind]
            yield from self._answer(batch, [requests[i] for i in batch], [prompts[i] for i in batch])
            start += len(batch)

    def _answer(
        self, numbers: list[int], requests: list[Request], prompts: list[str]
    ) -> Iterator[tuple[int, list[Response] | Failure]]:
        try:
            inputs = self._encode(requests, prompts)
        # Every processor has its own way to say that it cannot take an image: too thin, too small, too many.
        except Exception as error:
            if len(numbers) == 1:
                yield numbers[0], Failure("refused", f"the processor cannot take it: {type(error).__name__}: {error}")
                return
            for number, request, prompt in zip(numbers, requests, prompts, strict=True):
                yield from self._answer([number], [request], [prompt])
            return
        yield from zip(numbers, self._generate(inputs, [request.seeds for request in requests]), strict=True)

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
        return inputs.to(self.model.device, dtype=self.model.dtype)

    @torch.inference_mode()
    def _generate(self, inputs: BatchFeature, seeds: list[list[int]]) -> list[list[Response]]:
        length, num_candidates = inputs["input_ids"].shape[1], len(seeds[0])
        sampling = SeededSampling([seed for row in seeds for seed in row], length, self.temperature, self.top_p)
        output = self.model.generate(
            **inputs,
            past_key_values=growing_cache(self.model),
            num_return_sequences=num_candidates,
            logits_processor=LogitsProcessorList([sampling]),
            custom_generate=_take_what_is_drawn,
        )
        answers = [self._read(tokens) for tokens in output[:, length:].tolist()]
        return [answers[i : i + num_candidates] for i in range(0, len(answers), num_candidates)]

    def _read(self, tokens: list[int]) -> Response:
        stop = next((i for i, token in enumerate(tokens) if token in self.stop_tokens), None)
        text = self.processor.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
        return Response(text, "length" if stop is None else "stop", len(tokens) if stop is None else stop + 1)
