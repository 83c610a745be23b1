"""The model that lmms-eval asks: any image-text-to-text checkpoint behind its own chat template.

lmms-eval finds it as `--model sicog_trl` through the entry point of this package; nothing else imports this module,
because importing lmms-eval takes seconds and it is an optional dependency. Decoding is greedy and does not depend on
what the checkpoint's `generation_config` asks for, so that two checkpoints differ by their weights alone.
"""

from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm.auto import tqdm

from ..checkpoints import load_for_generation, prepare_for_generation


DEFAULT_MAX_NEW_TOKENS = 1024  # for a task that sets none


class VisionLanguageModel(lmms):
    """
    A checkpoint as lmms-eval sees it.

    Args:
        pretrained (`str`):
            Anything that `AutoModelForImageTextToText` loads, or the folder of a PEFT adapter.
        peft (`str`, *optional*):
            Adapter to put on `pretrained`; it is merged into the weights.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        device (`str`, *optional*):
            Device; by default the one that Accelerate gives this process.
        batch_size (`int`, *optional*, defaults to `1`):
            Requests per forward pass. It does not change the answers.
        max_batch_size (`int`, *optional*):
            Accepted because lmms-eval passes it; not used.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device) if device else self.accelerator.device
        self.batch_size = int(batch_size)
        self.description = pretrained  # what the progress bar says

        self.model, self.processor = load_for_generation(pretrained, peft, dtype=dtype, device=self.device)
        self.stop_tokens = prepare_for_generation(self.model, self.processor, do_sample=False, num_beams=1)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """
        Answer the requests, in their order.

        `until` is ignored, as chat models end their turn by themselves, and so are sampling settings of a task. Of
        `generation_kwargs` only `max_new_tokens` counts.
        """
        limits = [request.args[2].get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS) for request in requests]
        # Longest first: too little memory shows at once, and prompts of like length need little padding.
        order = sorted(range(len(requests)), key=lambda i: (limits[i], len(requests[i].args[0])), reverse=True)
        answers: dict[int, GenerationResult] = {}
        with tqdm(total=len(requests), desc=self.description, unit="answer", disable=self.rank != 0) as progress:
            for batch in self._batches(order, limits):
                messages = {i: self._messages(requests[i]) for i in batch}
                # Processors do not take rows with and without images together.
                with_images = [i for i in batch if messages[i].extract_media()[0]]
                without = [i for i in batch if not messages[i].extract_media()[0]]
                for part in filter(None, (with_images, without)):
                    texts = self._generate([messages[i] for i in part], limits[part[0]])
                    answers.update(zip(part, texts, strict=True))
                progress.update(len(batch))
        return [answers[i] for i in range(len(requests))]

    def _batches(self, order: list[int], limits: list[int]) -> list[list[int]]:
        """Cut `order` into batches whose requests have the same limit of new tokens."""
        batches: list[list[int]] = []
        for i in order:
            if batches and len(batches[-1]) < self.batch_size and limits[batches[-1][0]] == limits[i]:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _messages(self, request: Instance) -> ChatMessages:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))

    @torch.inference_mode()
    def _generate(self, messages: list[ChatMessages], max_new_tokens: int) -> list[GenerationResult]:
        inputs = self.processor.apply_chat_template(
            [message.to_hf_messages() for message in messages],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            # As in training and generation: the chat template alone says what stands in front of the text.
            processor_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": False},
        ).to(self.device, dtype=self.model.dtype)
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens)
        return [self._read(tokens) for tokens in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _read(self, tokens: list[int]) -> GenerationResult:
        # The stop token is not counted: an answer with as many tokens as were allowed is one that was cut off.
        tokens = tokens[: next((i for i, token in enumerate(tokens) if token in self.stop_tokens), None)]
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return GenerationResult(text, TokenCounts(output_tokens=len(tokens)))

    def clean(self) -> None:
        """Keep the model: lmms-eval would delete it after the first task."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported; every benchmark of this package asks for text."""
        raise NotImplementedError("sicog_trl answers with text; choose the generate_until variant of the task")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Not supported; no benchmark of this package has several rounds."""
        raise NotImplementedError("sicog_trl answers in one round; choose a single-round variant of the task")
