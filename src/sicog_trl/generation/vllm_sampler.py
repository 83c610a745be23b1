"""A sampler with vLLM in this process."""

import itertools
import math
import multiprocessing
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from ..checkpoints import load_processor, placeholders, resolve_adapter
from .sampling import Failure, Request, Response


if TYPE_CHECKING:
    from vllm import RequestOutput

WATCH_SECONDS = 5.0  # between two looks at the processes of the engine


class VLLMSampler:
    """
    Sample with vLLM in this process, which needs the extra `vllm` and so an environment of its own.

    The same seed gives the same text on a CPU; on a GPU, batches of another composition can turn a token.

    Args:
        model_name_or_path (`str`):
            A model with whole weights, in the names that vLLM knows.
        revision (`str`, *optional*):
            Revision of a Hub model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Most tokens of a candidate; what is cut there, or at the context of the model, has the finish reason
            `"length"`.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 means greedy: one candidate is sampled and stands for all.
        top_p (`float`, *optional*, defaults to `0.9`):
            Nucleus.
        logprobs (`bool`, *optional*, defaults to `False`):
            Give each candidate its mean log-probability; vLLM's mode `raw_logprobs`, its default, takes them before
            temperature, nucleus and bias.
        chunk_size (`int`, *optional*, defaults to `256`):
            Requests that the engine holds at once. Their images wait in memory, already processed.
        engine_options:
            What else `vllm.LLM` takes, under its own name: `max_model_len`, `tensor_parallel_size`,
            `gpu_memory_utilization` and so on.
    """

    def __init__(
        self,
        model_name_or_path: str,
        revision: str | None = None,
        dtype: str | None = "auto",
        max_completion_length: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        logprobs: bool = False,
        chunk_size: int = 256,
        **engine_options: Any,
    ):
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "sampling with vLLM in process needs the package vllm; pip install 'sicog-trl[vllm]' in an "
                "environment of its own, or start a vLLM server there and sample through it"
            ) from error
        if chunk_size < 1:
            raise ValueError(f"chunk_size is at least 1, got {chunk_size}")
        base, adapter = resolve_adapter(model_name_or_path)
        if adapter:
            raise ValueError(
                f"{adapter} is an adapter of {base}, and vLLM wants whole weights; merge them with PEFT "
                "(merge_and_unload, then save_pretrained), or sample with the sampler of Transformers, which merges"
            )
        processor = load_processor(model_name_or_path, revision=revision)
        self.placeholders = placeholders(processor)
        self.chunk_size = chunk_size
        others = multiprocessing.active_children()
        self.llm = vllm.LLM(
            model_name_or_path,
            revision=revision,
            dtype=dtype or "auto",
            # The checkpoint's own sampling defaults, often nearly greedy, stay out; its stop tokens are kept.
            generation_config="vllm",
            # Else memory is set aside for the longest video that the model could be shown.
            **{"limit_mm_per_prompt": {"video": 0}, **engine_options},
            **({"logprobs_mode": "raw_logprobs"} if logprobs else {}),
        )
        self._processes = [process for process in multiprocessing.active_children() if process not in others]
        self.sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": 0,  # all of them
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": max_completion_length,
            "logit_bias": self._suppressed(processor.tokenizer) or None,
            **({"logprobs": 0} if logprobs else {}),  # of the drawn token, and of no other
        }

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Response] | Failure]]:
        """See [`Sampler`]."""
        waiting, start = iter(requests), 0
        while chunk := list(itertools.islice(waiting, self.chunk_size)):
            yield from self._answer(start, chunk).items()
            start += len(chunk)

    def _answer(self, start: int, chunk: Sequence[Request]) -> dict[int, list[Response] | Failure]:
        answers: dict[int, list[Response] | Failure] = {}
        accepted: list[int] = []  # whose prompts the engine has, in its order
        for number, request in enumerate(chunk, start):
            answers[number] = []
            for seeds in self._groups(request.seeds):
                if refusal := self._enqueue(request, seeds):
                    answers[number] = refusal
                    break
                accepted.append(number)
        for number, output in zip(accepted, self._complete(), strict=True):
            if not isinstance(answers[number], Failure):
                answers[number] += self._read(output)
        for number, request in enumerate(chunk, start):
            if not isinstance(answers[number], Failure):
                answers[number] *= len(request.seeds) // len(answers[number])  # one greedy candidate stands for all
        return answers

    def _groups(self, seeds: list[int]) -> list[list[int]]:
        """Split seeds into what one prompt can ask for: vLLM gives candidate `i` of it the first seed plus `i`."""
        if self.sampling["temperature"] == 0:
            return [seeds[:1]]  # vLLM refuses several greedy candidates
        return [seeds] if seeds[-1] - seeds[0] == len(seeds) - 1 else [[seed] for seed in seeds]

    def _enqueue(self, request: Request, seeds: list[int]) -> Failure | None:
        """Hand a prompt over; the engine starts on it while the next ones are prepared."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMServerError

        # Images first, as TRL's `prepare_multimodal_messages` places them for training; they are not encoded again.
        content = [{"type": "image_pil", "image_pil": image} for image in request.images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": request.prompt}]}]
        parameters = SamplingParams(n=len(seeds), seed=seeds[0], **self.sampling)
        try:
            self.llm.enqueue_chat([messages], [parameters], use_tqdm=False)
        except (VLLMServerError, MemoryError):  # the engine is dead, or there is no room for any request
            raise
        except Exception as error:  # too long, or an image that the processor cannot take: it says so in its own way
            cause = error.__cause__ or error  # vLLM's words about a processor hold an address in memory
            return Failure("refused", f"vLLM refuses it: {type(cause).__name__}: {textwrap.shorten(str(cause), 300)}")
        return None

    def _complete(self) -> list["RequestOutput"]:
        """Wait for what was handed over; vLLM by itself waits forever for an engine that was killed."""
        outputs: Future[list[RequestOutput]] = Future()

        def run() -> None:
            try:
                outputs.set_result(self.llm.wait_for_completion(use_tqdm=False))
            except BaseException as error:
                outputs.set_exception(error)

        Thread(target=run, name="vllm", daemon=True).start()
        died = False
        while not wait([outputs], timeout=WATCH_SECONDS).done:
            if died:  # since the last look, so vLLM has had time to say more about it
                raise RuntimeError(
                    "a process of vLLM's engine has died without a word; the memory of the machine may have run out. "
                    "Finished shards are kept: start the run again to resume."
                )
            died = any(not process.is_alive() for process in self._processes)
        return outputs.result()

    def _read(self, output: "RequestOutput") -> list[Response]:
        candidates = sorted(output.outputs, key=lambda candidate: candidate.index)
        if ended := {candidate.finish_reason for candidate in candidates} & {"abort", "error", None}:
            raise RuntimeError(
                f"vLLM has broken off a candidate ({ended.pop()}). Finished shards are kept: see its log for the "
                "cause, and start the run again to resume."
            )
        return [
            Response(
                each.text,
                each.finish_reason,
                len(each.token_ids),
                each.cumulative_logprob / len(each.token_ids) if "logprobs" in self.sampling else None,
            )
            for each in candidates
        ]

    def _suppressed(self, tokenizer: PreTrainedTokenizerBase) -> dict[int, float]:
        """Forbid placeholders: one without an image behind it breaks whatever reads the text."""
        tokens = set(tokenizer.convert_tokens_to_ids(list(self.placeholders))) - {None, tokenizer.unk_token_id}
        # Some models have their image token behind the last one that they can say, where vLLM takes no bias.
        return {token: -math.inf for token in tokens if token < self.llm.model_config.get_vocab_size()}
