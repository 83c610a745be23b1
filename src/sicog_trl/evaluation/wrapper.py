"""A checkpoint as lmms-eval asks it: any image-text-to-text model behind its own chat template.

lmms-eval finds it as `--model sicog_trl` through the entry point of this package. Decoding is greedy and does not
depend on what the checkpoint's `generation_config` asks for, so that two checkpoints differ by their weights alone.
"""

import logging
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from transformers import BatchFeature

from ..checkpoints import load_for_generation, placeholders, prepare_for_generation
from ..generation.cache import growing_cache
from ..generation.sampling import Failure
from .answering import DEFAULT_MAX_NEW_TOKENS, Answering
from .protocols import Completion, Conversation, images_of, texts_of


logger = logging.getLogger(__name__)

__all__ = ["DEFAULT_MAX_NEW_TOKENS", "Answering", "VisionLanguageModel"]


class VisionLanguageModel(Answering):
    """
    A checkpoint as lmms-eval sees it.

    Args:
        pretrained (`str`):
            Anything that `AutoModelForImageTextToText` loads, or the folder of a PEFT adapter.
        peft (`str`, *optional*):
            Adapter to put on `pretrained`, a folder or a Hub id; it is merged into the weights.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        device (`str`, *optional*):
            Device; by default the one that Accelerate gives this process.
        batch_size (`int`, *optional*, defaults to `1`):
            Requests per forward pass; changes the speed, not the answers (on one CPU build in float32; in other
            precisions sums are rounded differently, which now and then tips a token).
        max_batch_size (`int`, *optional*):
            Accepted because lmms-eval passes it; not used.
    """

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__(description=pretrained)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device) if device else self.accelerator.device
        self.batch_size = int(batch_size)

        self.model, self.processor = load_for_generation(pretrained, peft, dtype=dtype, device=self.device)
        self.placeholders = placeholders(self.processor)
        self.max_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self._has_warned = False  # of a prompt that is too long; the result says how many answers were cut off
        self.stop_tokens = prepare_for_generation(self.model, self.processor, do_sample=False, num_beams=1)

    def complete(
        self, conversations: list[Conversation], limits: list[int]
    ) -> Iterator[tuple[int, Completion | Failure]]:
        """
        See [`Answering.complete`]. What does not fit behind the prompt any more counts as truncated; if there is no
        room at all, it is an empty answer that was cut off: a model with a small context fails the row, not the task.
        """
        # Processors do not take rows with and without images together; tokens are generated up to one limit.
        kinds = [(limit, bool(images_of(each))) for limit, each in zip(limits, conversations, strict=True)]
        order = sorted(range(len(conversations)), key=lambda i: (*kinds[i], _size(conversations[i])), reverse=True)
        batches: list[list[int]] = []
        for i in order:
            if batches and len(batches[-1]) < self.batch_size and kinds[batches[-1][0]] == kinds[i]:
                batches[-1].append(i)
            else:
                batches.append([i])
        for batch in batches:
            yield from zip(batch, self._answer([conversations[i] for i in batch], limits[batch[0]]), strict=True)

    def _answer(self, conversations: list[Conversation], limit: int) -> list[Completion | Failure]:
        try:
            inputs = self._encode(conversations)
        # Every processor has its own way to say that it cannot take an image; which row it was shows one by one.
        except (ImportError, MemoryError):  # of the machine, not of the row
            raise
        except Exception as error:
            if len(conversations) == 1:
                return [Failure("refused", f"the processor cannot take it: {type(error).__name__}: {error}")]
            return [self._answer([each], limit)[0] for each in conversations]
        longest = int(inputs["attention_mask"].sum(dim=-1).max())
        if self.max_length and longest >= self.max_length:
            if len(conversations) > 1:
                return [self._answer([each], limit)[0] for each in conversations]
            level = logging.DEBUG if self._has_warned else logging.WARNING
            logger.log(level, "a prompt has %d tokens, the model takes %d: no answer", longest, self.max_length)
            self._has_warned = True
            return [Completion("", 0, truncated=True)]
        return self._generate(inputs.to(self.device, dtype=self.model.dtype), limit)

    def _encode(self, conversations: list[Conversation]) -> BatchFeature:
        return self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            # As in training and generation: the chat template alone says what stands in front of the text.
            processor_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": False},
        )

    @torch.inference_mode()
    def _generate(self, inputs: BatchFeature, limit: int) -> list[Completion | Failure]:
        lengths = inputs["attention_mask"].sum(dim=-1).tolist()
        # Each row has its own room, lest its answer depend on what else is in the batch.
        rooms = [min(limit, self.max_length - length) if self.max_length else limit for length in lengths]
        cache = growing_cache(self.model)
        options = {} if cache is None else {"past_key_values": cache}
        output = self.model.generate(**inputs, **options, max_new_tokens=max(rooms))
        written = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._read(tokens[:room]) for tokens, room in zip(written, rooms, strict=True)]

    def _read(self, tokens: list[int]) -> Completion:
        stop = next((i for i, token in enumerate(tokens) if token in self.stop_tokens), None)
        text = self.processor.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
        return Completion(text, len(tokens[:stop]), truncated=stop is None)  # the stop token is not counted


def _size(conversation: Conversation) -> tuple[int, int]:
    """Return what a prompt is as long as, roughly: pixels first, as most tokens are of images."""
    return sum(each.width * each.height for each in images_of(conversation)), sum(map(len, texts_of(conversation)))
