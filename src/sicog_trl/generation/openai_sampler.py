"""A sampler over any OpenAI-compatible server; vLLM and SGLang first."""

import asyncio
import base64
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .openai_client import OpenAIServer, ServerGoneError, ServerSupport, UnansweredError
from .openai_logprobs import check_logprobs
from .sampling import Failure, Request, Response


# A server knows its own model's placeholder and does not tell; these are the ones that widely used models have.
PLACEHOLDERS = (
    "<image>",
    "<video>",
    "<audio>",
    "<|image|>",
    "<|video|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_1|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    "<fake_token_around_image>",
    "<global-img>",
    "<IMG_CONTEXT>",
    "<img>",
    "<image_placeholder>",
    "<im_patch>",
    "<|endofchunk|>",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
)
SENT_AS_STORED = ("image/jpeg", "image/png", "image/webp", "image/gif")  # what the protocol promises to take
MOST_ERRORS = 20


class OpenAISampler:
    """
    Sample through a server.

    Requests run in an event loop on a thread of their own, not in a pool of threads: only so can the ones under way be
    broken off, with the client's retries, when the consumer stops. The server sees it and stops decoding for them.

    Args:
        model (`str`):
            Name under which the server has the model.
        base_url (`str`):
            Address of the server, usually ending with `/v1`.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Most tokens of a candidate; what is cut there has the finish reason `"length"`.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 means greedy: one candidate is asked for and stands for all.
        top_p (`float`, *optional*, defaults to `0.9`):
            Nucleus.
        logprobs (`bool`, *optional*, defaults to `False`):
            Give each candidate its mean log-probability. What a server gives may be meant before the temperature
            (vLLM) or after it (SGLang, unless told otherwise); one that counts the temperature in is refused.
        concurrency (`int`, *optional*, defaults to `64`):
            Requests under way at the same time; twice the sequences that the server decodes at once keeps it busy.
        image_transport (`str`, *optional*, defaults to `"data"`):
            `"data"` sends images within the request. `"file"` sends the path of those that are files, for a server
            that shares the disk and was started with `--allowed-local-media-path` (vLLM).
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
        max_completion_length: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        logprobs: bool = False,
        concurrency: int = 64,
        image_transport: Literal["data", "file"] = "data",
        timeout: float = 600.0,
        max_retries: int = 8,
        api_key: str | None = None,
    ):
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "sampling through a server needs the package openai; pip install 'sicog-trl[openai]'"
            ) from error
        if image_transport not in ("data", "file"):
            raise ValueError(f"image_transport is 'data' or 'file', not {image_transport!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1, got {concurrency}")
        self.model = model
        self.base_url = base_url
        self.sampling = {"max_tokens": max_completion_length, "temperature": temperature, "top_p": top_p}
        self.sampling |= {"logprobs": True} if logprobs else {}
        self.concurrency = concurrency
        self.image_transport = image_transport
        self.timeout = timeout
        self.max_retries = max_retries
        self.supports: ServerSupport | None = None  # until the first request
        # Without spaces: a stray newline is no valid header, and the error about it would show the key.
        self._api_key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip() or "EMPTY"
        self._errors: list[str] = []  # since the last answer of any other kind

    def sample(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Response] | Failure]]:
        """See [`Sampler`]."""
        from anyio.from_thread import start_blocking_portal  # what the openai package itself runs on

        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._connect()) as server:
            waiting = iter(enumerate(requests))
            running: dict[Future, int] = {}
            try:
                while True:
                    room = 0 if any(map(_failed, running)) else self.concurrency - len(running)
                    for number, request in itertools.islice(waiting, room):
                        if self.supports is None:
                            self.supports = portal.call(self._probe, server)
                        running[portal.start_task_soon(self._answer, server, request)] = number
                    if not running:
                        return
                    # An error ends the run. What was answered before may be paid for, so it goes first.
                    done = min(wait(running, return_when=FIRST_COMPLETED).done, key=_failed)
                    number, answer = running.pop(done), done.result()
                    self._count(answer)
                    yield number, answer
            finally:
                for future in running:  # before the connections are closed under them
                    future.cancel()

    def _connect(self) -> OpenAIServer:
        return OpenAIServer(self.model, self.base_url, self._api_key, self.timeout, self.max_retries)

    async def _probe(self, server: OpenAIServer) -> ServerSupport:
        supports = await server.probe()
        if self.sampling.get("logprobs"):
            await check_logprobs(server)
        return supports

    def _count(self, answer: list[Response] | Failure) -> None:
        """Raise after many errors in a row: a hung engine, behind a front that still lists its models."""
        failed = isinstance(answer, Failure) and answer.reason == "server_error"
        self._errors = [*self._errors, answer.message] if failed else []
        if len(self._errors) >= MOST_ERRORS:
            raise ServerGoneError(
                f"{self.base_url}: {MOST_ERRORS} requests in a row have failed; the first of them: {self._errors[0]}. "
                "Finished shards are kept: see what ails the server, and start the run again to resume."
            )

    async def _answer(self, server: OpenAIServer, request: Request) -> list[Response] | Failure:
        content = await asyncio.to_thread(self._content, request)
        # Servers refuse several greedy candidates, or decode the same text several times.
        seeds = request.seeds[:1] if self.sampling["temperature"] == 0 else request.seeds
        together = self.supports.several and seeds[-1] - seeds[0] == len(seeds) - 1
        answers: dict[int, Response] = {}
        try:
            for group in [seeds] if together else [[seed] for seed in seeds]:
                answers |= await server.ask(content, group, self.supports, **self.sampling)
            for seed in [seed for seed in seeds if seed not in answers]:
                answers |= await server.ask(content, [seed], self.supports, **self.sampling)
        except UnansweredError as error:
            return replace(error.failure, responses=_first(seeds, answers))
        if len(answers) < len(seeds):
            got = f"asked for {len(seeds)}, got {len(answers)} though the missing ones were asked for again"
            return Failure("too_few_candidates", got, _first(seeds, answers))
        return [answers[seed] for seed in seeds] * (len(request.seeds) // len(seeds))

    def _content(self, request: Request) -> list[dict[str, Any]]:
        """Return the user turn: images first, as TRL's `prepare_multimodal_messages` places them for training."""
        stored = request.stored or [None] * len(request.images)
        urls = [self._url(*image) for image in zip(request.images, stored, strict=True)]
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [*images, {"type": "text", "text": request.prompt}]

    def _url(self, image: Image.Image, stored: dict[str, Any] | None) -> str:
        """Send an image as it is stored if that is what the model shall see, or else its pixels without loss."""
        data, path = (stored.get("bytes"), stored.get("path")) if stored else (None, None)
        if data is None and (path is None or not Path(path).is_file()):  # a path can also lead into an archive
            return _data_url("image/png", _png(image))
        with Image.open(path if data is None else io.BytesIO(data)) as opened:  # reads no more than the header
            kind = opened.get_format_mimetype()
        if kind not in SENT_AS_STORED:
            return _data_url("image/png", _png(image))
        if data is None and self.image_transport == "file":
            return Path(path).absolute().as_uri()
        return _data_url(kind, Path(path).read_bytes() if data is None else data)


def _failed(future: Future) -> bool:
    return future.done() and future.exception() is not None


def _first(seeds: list[int], answers: dict[int, Response]) -> list[Response]:
    """Return what came for the first seeds, up to the first one that has nothing."""
    return [answers[seed] for seed in itertools.takewhile(answers.__contains__, seeds)]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
