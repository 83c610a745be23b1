"""A running OpenAI-compatible server as lmms-eval asks it: vLLM or SGLang in an environment of its own."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoints import model_fingerprint
from ..generation.openai_client import OpenAIServer, ServerGoneError, UnansweredError
from ..generation.openai_sampler import PLACEHOLDERS, OpenAISampler
from ..generation.sampling import Failure, Response
from .answering import Answering
from .protocols import Completion, Conversation


_SEED = 0  # of no consequence: greedy
# How vLLM, SGLang and llama.cpp say that prompt and answer, or the prompt alone, do not fit.
_TOO_LONG = re.compile(r"context|maximum model length|max_model_len|longer than the maximum", re.IGNORECASE)


class ServedModel(Answering):
    """
    A model on a server, asked greedily and without the generation defaults of its checkpoint.

    Requests are sent as they are to be answered, with images as lossless data URLs; the server's chat template does
    the rest, so serve the checkpoint with the processor and the template that were saved with it. A request that
    fails is tried again; one that never gets an answer ends the run.

    Args:
        model (`str`):
            Name under which the server has the model.
        base_url (`str`):
            Address of the server, usually ending with `/v1`.
        batch_size (`int`, *optional*, defaults to `64`):
            Requests under way at the same time; changes the speed, and the answers only as far as the server's own
            batches do.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds without a sign of the server after which a request is tried again.
        max_retries (`int`, *optional*, defaults to `8`):
            How often a request is tried again.
        api_key (`str`, *optional*):
            Defaults to the environment variable `OPENAI_API_KEY`.
    """

    placeholders = PLACEHOLDERS

    def __init__(
        self,
        model: str,
        base_url: str,
        batch_size: int = 64,
        timeout: float = 600.0,
        max_retries: int = 8,
        api_key: str | None = None,
    ) -> None:
        super().__init__(description=model)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RuntimeError(
                f"{base_url} is asked by one process, and here are {os.environ['WORLD_SIZE']}: start the recipe with "
                "python, or with accelerate launch --num_processes 1; batch_size says how many requests are under way"
            )
        self.chat = _Chat(
            model,
            base_url,
            temperature=0.0,
            top_p=1.0,
            concurrency=int(batch_size),
            timeout=timeout,
            max_retries=max_retries,
            api_key=api_key,
        )

    def complete(
        self, conversations: list[Conversation], limits: list[int]
    ) -> Iterator[tuple[int, Completion | Failure]]:
        """
        See [`Answering.complete`]. What does not fit into the server's context any more counts as truncated, and a
        prompt that does not fit itself as an empty answer that was cut off.
        """
        try:
            for number, answer in self.chat.sample(zip(conversations, limits, strict=True)):
                yield number, answer if isinstance(answer, Failure) else _completion(answer[0])
        except ServerGoneError as error:
            raise ServerGoneError(str(error).replace("Finished shards are", "Finished tasks are")) from None


class _Chat(OpenAISampler):
    """The sampler with conversations and their limits in place of its requests."""

    async def _answer(self, server: OpenAIServer, request: tuple[Conversation, int]) -> list[Response] | Failure:
        conversation, limit = request
        turns = await asyncio.to_thread(self._turns, conversation)
        # A limit for which the prompt leaves too little room is refused rather than lowered; without one, a server
        # goes on as long as there is room.
        for limited in ({"max_tokens": limit}, {}):
            try:
                answers = await server.ask(turns, [_SEED], self.supports, temperature=0.0, top_p=1.0, **limited)
            except UnansweredError as error:
                failure = error.failure
                if failure.reason != "refused" or not _TOO_LONG.search(failure.message):
                    return failure
            else:
                return list(answers.values()) or Failure("empty", "an answer without a choice")
        return [Response("", "length", 0)]

    def _turns(self, conversation: Conversation) -> list[dict[str, Any]]:
        return [{**turn, "content": [self._part(part) for part in turn["content"]]} for turn in conversation]

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "image":
            return {"type": "image_url", "image_url": {"url": self._url(part["image"], None)}}
        return part


def _completion(response: Response) -> Completion | Failure:
    # A filter of the server is part of what is measured; one row of many must not cost the task.
    if response.finish_reason not in ("stop", "length", "content_filter") and not response.text:
        return Failure("empty", f"an empty answer that ended with {response.finish_reason!r}")
    return Completion(response.text, response.num_tokens, truncated=response.finish_reason == "length")


def served_identity(base_url: str, model: str, api_key: str | None = None) -> str:
    """
    Say which weights answer under a name on a server: what `weights` is for a checkpoint.

    A server tells where it has loaded the model from. If that is a folder of this machine, its files are hashed;
    otherwise the name of the place has to do, so give every checkpoint a name or a folder of its own.

    Args:
        base_url (`str`):
            Address of the server.
        model (`str`):
            Name under which the server has the model.
        api_key (`str`, *optional*):
            Defaults to the environment variable `OPENAI_API_KEY`.

    Raises:
        `ConnectionError`, `ValueError`, `PermissionError`: if the server or the model is not there.
    """
    chat = OpenAISampler(model, base_url, max_retries=2, api_key=api_key)
    card = asyncio.run(_card(chat))
    root = getattr(card, "root", None) or model
    found = model_fingerprint(root) if Path(root).is_dir() else root
    return f"served:{card.id}={found}"


async def _card(chat: OpenAISampler) -> Any:
    async with chat._connect() as server:
        return await server.card()
