"""What is said to an OpenAI-compatible server: requests, what it can do, and what its errors mean."""

import asyncio
import itertools
import logging
import random
import textwrap
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .sampling import Failure, Response


if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

logger = logging.getLogger(__name__)

# Servers fill what a request leaves open from the checkpoint's generation defaults, and those of chat models are often
# nearly greedy: candidates would all be the same.
NEUTRAL = {"top_k": -1, "repetition_penalty": 1.0, "min_p": 0.0}
PROBE = "Write sixteen random words, each one different from the others."
FIRST_DELAY, MOST_DELAY = 0.5, 8.0  # seconds; the client's own


class ServerGoneError(ConnectionError):
    """The server does not answer any more, or answers nothing of use."""


class UnansweredError(Exception):
    """One request has no answer; the others may have."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.failure = Failure(reason, message)


@dataclass(frozen=True)
class ServerSupport:
    """
    What a server can do, as a probe has seen it.

    Args:
        several (`bool`):
            Several candidates per request (`n`), each with a text of its own. Otherwise each seed is a request.
        seeds (`bool`):
            The same seed gave the same text twice.
        neutral (`bool`):
            It takes the settings that turn the checkpoint's generation defaults off.
        token_ids (`bool`):
            It tells the tokens of each of several candidates; of a single one, usage tells their number.
    """

    several: bool
    seeds: bool
    neutral: bool
    token_ids: bool


class OpenAIServer:
    """
    A connection to a server; an asynchronous context manager.

    Args:
        model (`str`):
            Name under which the server has the model.
        base_url (`str`):
            Address of the server.
        api_key (`str`):
            Key; never shown.
        timeout (`float`):
            Seconds without a sign of the server after which a request is tried again.
        max_retries (`int`):
            How often a request is tried again.
    """

    def __init__(self, model: str, base_url: str, api_key: str, timeout: float, max_retries: int):
        from openai import AsyncOpenAI, Timeout

        self.model = model
        self.base_url = base_url
        self.max_retries = max_retries
        self._api_key = api_key
        self.client = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=max_retries,
            timeout=Timeout(timeout, connect=min(timeout, 30.0)),
        )

    async def __aenter__(self) -> "OpenAIServer":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.client.close()

    async def ask(
        self, content: list[dict[str, Any]], seeds: list[int], supports: ServerSupport, **sampling: float
    ) -> dict[int, Response]:
        """
        Return the candidate of each seed, as far as the server gives them.

        Args:
            content (`list[dict[str, Any]]`):
                The user turn; or all turns, if there are several.
            seeds (`list[int]`):
                Each one more than the one before: candidate `i` of a request has its seed + i.
            supports ([`ServerSupport`]):
                What may be asked for.
            **sampling (`float`):
                `max_tokens`, `temperature` and `top_p`; and `logprobs`, if they are wanted.

        Raises:
            [`UnansweredError`]: if the server has no answer to this request.
            [`ServerGoneError`], `PermissionError`: if it has none to any.
        """
        several = {"n": len(seeds)} if len(seeds) > 1 else {}
        extra = (NEUTRAL if supports.neutral else {}) | ({"return_token_ids": True} if supports.token_ids else {})
        completion = await self.complete(content, seeds[0], extra_body=extra or None, **several, **sampling)
        choices = completion.choices
        if len(choices) > len(seeds):
            raise UnansweredError("too_many_candidates", f"asked for {len(seeds)}, got {len(choices)}")
        numbers = [choice.index for choice in choices]
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(len(seeds))):
            numbers = list(range(len(choices)))
        wanted = bool(sampling.get("logprobs"))
        responses = [_response(choice, completion if len(choices) == 1 else None, wanted) for choice in choices]
        return {seeds[number]: response for number, response in zip(numbers, responses, strict=True)}

    async def complete(self, content: list[dict[str, Any]], seed: int, **settings: Any) -> "ChatCompletion":
        """Ask the server; the client itself tries again after status codes, lost connections and time-outs."""
        import openai

        turns = content if "role" in content[0] else [{"role": "user", "content": content}]
        payload = {"model": self.model, "messages": turns, "seed": seed, **settings}
        for attempt in range(self.max_retries + 1):
            try:
                completion = await self.client.chat.completions.create(**payload)
            except openai.APIStatusError as error:
                self._judge_status(error)
                problem = self._words(error)
                break
            except openai.APIConnectionError as error:
                problem = self._words(error)
                break
            except ValueError as error:  # a whole answer that is no JSON: the client does not try that again
                problem = f"an answer that cannot be read: {error}"
            else:
                choices = getattr(completion, "choices", None)
                if isinstance(choices, list) and all(map(_is_readable, choices)):
                    return completion
                problem = f"an answer without choices, or without a text in one: {self._words(completion)}"
            if attempt < self.max_retries:
                await asyncio.sleep(min(FIRST_DELAY * 2**attempt, MOST_DELAY) * random.uniform(0.75, 1))
        problem = f"up to {self.max_retries + 1} attempts have failed, the last one with: {problem}"
        if await self._is_healthy():
            raise UnansweredError("server_error", problem)
        raise ServerGoneError(
            f"{self.base_url} is gone: {problem}, and now it does not list its models either. Finished shards are "
            "kept: start the server again, then the run, and it resumes."
        )

    def _judge_status(self, error: Any) -> None:
        """Raise what a status means, unless it is one that the client has tried again in vain."""
        message, status = self._words(error), error.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{self.base_url} does not let us in: {message}. Set OPENAI_API_KEY to the key of the server."
            ) from None
        if status == 429:  # says nothing of this one request, so it must not cost the row
            raise ServerGoneError(
                f"{self.base_url} has refused for too long to take more requests: {message}. Finished shards are "
                "kept: lower concurrency or wait, and start the run again to resume."
            ) from None
        if status not in (408, 409) and status < 500:
            raise UnansweredError("refused", f"the server refuses it with {message}") from None

    async def _is_healthy(self) -> bool:
        import openai

        try:
            await self.client.with_options(max_retries=1, timeout=30.0).models.list()
        except (openai.OpenAIError, ValueError):
            return False
        return True

    async def probe(self) -> ServerSupport:
        """See what the server can do, with a few tiny requests; raise if it is not there or has another model."""
        await self.card()
        content, settings = [{"type": "text", "text": PROBE}], {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0}
        refusal = None
        # All that we want, then less and less of it.
        for several, (neutral, ids) in itertools.product((True, False), ((True, True), (True, False), (False, False))):
            supports = ServerSupport(several, True, neutral, ids)
            try:
                answers = await self.ask(content, [1, 2] if several else [1], supports, **settings)
                again = [(await self.ask(content, [2], supports, **settings)).get(2) for _ in range(2)]
            except UnansweredError as error:
                refusal = error
                if error.failure.reason != "refused":
                    break
            else:
                supports = self._judge_probe(supports, answers, again)
                logger.info("%s, %s: %s", self.base_url, self.model, asdict(supports))
                return supports
        raise RuntimeError(f"{self.base_url} does not answer a plain text request for {self.model!r}: {refusal}")

    def _judge_probe(
        self, asked: ServerSupport, answers: dict[int, Response], again: list[Response | None]
    ) -> ServerSupport:
        """Read the probe: `answers` to seeds 1 and 2, in one request if it can, and twice `again` to seed 2 alone."""
        first, second = answers.get(1), answers.get(2)
        texts = [response and response.text for response in (first, second, *again)]
        same = len(set(texts) - {None}) == 1
        if not asked.neutral:
            logger.warning(
                "%s takes no top_k, min_p and repetition_penalty: if the checkpoint's generation defaults are narrow, "
                "start the server without them (vLLM: --generation-config vllm)",
                self.base_url,
            )
        if same:
            logger.warning(
                "%s gave the same text for different seeds; if candidates come out alike, look at how the server was "
                "started (SGLang: without --enable-deterministic-inference)",
                self.base_url,
            )
        # Some servers give all candidates of one request the same seed (SGLang with deterministic inference).
        clones = first is not None and texts[0] == texts[1] and not same
        return ServerSupport(
            several=asked.several and len(answers) == 2 and not clones,
            seeds=texts[2] is not None and texts[2] == texts[3],
            neutral=asked.neutral,
            token_ids=asked.token_ids and len(answers) == 2 and first.num_tokens is not None,
        )

    async def card(self) -> Any:
        """Return what the server says of the model; raise if it is not there or has another one."""
        import openai

        try:
            listed = await self.client.with_options(max_retries=min(2, self.max_retries)).models.list()
            cards = {model.id: model for model in listed.data}
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:  # or another page altogether
            if getattr(error, "status_code", None) in (401, 403):
                self._judge_status(error)
            raise ConnectionError(
                f"{self.base_url} does not list its models: {self._words(error)} Is the server running, and is "
                "base_url the address that it prints (it usually ends with /v1)? One is started with, for example, "
                f"`vllm serve {self.model}`."
            ) from None
        if self.model not in cards:
            raise ValueError(
                f"{self.base_url} does not have the model {self.model!r}; it has {list(cards)}: give one of them as "
                "served_model_name"
            )
        return cards[self.model]

    def _words(self, answer: Any) -> str:
        """Return what the server says, short and without the key, should it repeat it."""
        body = getattr(answer, "body", None)
        words = str(body.get("message") or body if isinstance(body, dict) else answer)
        status = getattr(answer, "status_code", None)
        words = words if status is None or str(status) in words else f"{status}: {words}"
        return textwrap.shorten(words.replace(self._api_key, "***"), 300)


def _is_readable(choice: Any) -> bool:
    """Return whether a choice has a message with a text or without; the client takes whatever JSON it gets."""
    message = getattr(choice, "message", None)
    return message is not None and isinstance(getattr(message, "content", None), str | None)


def _response(choice: Any, alone: "ChatCompletion | None", logprobs: bool) -> Response:
    """Read one candidate; the usage of a request is that of a candidate only if it stands `alone`."""
    extra = choice.model_extra or {}
    tokens = extra.get("token_ids", extra.get("response_token_ids"))  # vLLM, SGLang
    usage = alone.usage.completion_tokens if alone is not None and alone.usage else None
    return Response(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason or "unknown",
        num_tokens=len(tokens) if tokens is not None else usage,
        mean_logprob=_mean_logprob(choice) if logprobs else None,
    )


def _mean_logprob(choice: Any) -> float | None:
    """Return the mean over the tokens that the server lists, or `None` for a candidate of nothing."""
    tokens = getattr(choice.logprobs, "content", None)
    if tokens:
        return sum(token.logprob for token in tokens) / len(tokens)
    if choice.message.content:
        raise ServerGoneError(
            "a candidate came without log-probabilities, though the server has given them before. Finished shards are "
            "kept: see what ails the server, and start the run again to resume."
        )
    return None
