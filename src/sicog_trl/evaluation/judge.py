"""A judge for the tasks of lmms-eval: one address that all their ways of finding one lead to.

Some tasks let a language model grade. Where it runs, its key and its name they read from the environment, by four
conventions that contradict one another, some of them while they are imported; one asks for a model of its own; and a
row that the judge did not answer is scored like a wrong one, after minutes of waiting. So the tasks get the address
of a small proxy in their own process. It takes a request on whatever path, puts in the name of the real judge, passes
it on with the key, tries again where that helps, and counts what was asked and what was never answered. A request
that failed is answered with an empty text, at once: every task then goes on without trying again, and leaves a trace
by which [`~sicog_trl.evaluation.extractors.extract`] knows that the row has no score.
"""

import hashlib
import json
import logging
import os
import secrets
import textwrap
import threading
from collections import Counter
from concurrent.futures import Future
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

KEY_VARIABLE = "SICOG_JUDGE_API_KEY"
_PATH = "/chat/completions"
# MM-Vet asks for a number for ever if it gets one that is none of a score; answers are kept, so that it costs nothing.
_MOST_REPEATS = 20
# MM-Vet warms up a judge whose answer is no number; at this temperature it gives up, and would score 0.
_GIVEN_UP = 2.0
_PROBE = "Give the correctness score of an answer that is totally right. Write only the number 1.0."
_PROBE_TOKENS = 128  # as many as MM-Vet allows
_CHANGED = (
    *("API_TYPE", "OPENAI_API_KEY", "OPENAI_API_URL", "OPENAI_BASE_URL", "LLM_JUDGE_URL", "MODEL_VERSION"),
    *("USE_LLM_JUDGE", "JUDGE_BASE_URL", "JUDGE_API_KEY", "JUDGE_MODEL_NAME", "NO_PROXY", "no_proxy"),
)


class Judge:
    """
    The judge of the tasks that lmms-eval runs in this process; a context manager.

    It must be entered before lmms-eval reads a task for the first time, with or without a real judge: some tasks
    cannot be imported without a key. What the environment held is put back afterwards.

    Args:
        base_url (`str`, *optional*):
            Address of an OpenAI-compatible server, such as `http://localhost:8000/v1`. Without one every request is
            answered with an empty text and counted as failed.
        model (`str`, *optional*):
            Name under which the server has the judge; it takes the place of whatever name a task asks for.
        api_key (`str`, *optional*):
            Key of the server; by default the environment variable `SICOG_JUDGE_API_KEY`. It never reaches the tasks,
            a log or an error.
        max_retries (`int`, *optional*, defaults to `6`):
            How often a request is tried again, with growing pauses, if the server cannot be reached, is busy or has
            an error. While it cannot be reached at all, later requests are tried once.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        max_retries: int = 6,
    ):
        if base_url and not model:
            raise ValueError("judge_model is missing: give the name under which the server has the judge")
        self.base_url, self.model, self.max_retries = base_url, model, max_retries
        self._api_key = api_key
        self._client: OpenAI | None = None
        self._answers: dict[str, Future[dict[str, Any]]] = {}
        self._asked: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._unreachable = False
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """How many requests the tasks have made, each one counted once."""
        return len(self._answers)

    @property
    def failed(self) -> int:
        """How many of them were never answered with something that a task can use."""
        return len(self._failed)

    def __enter__(self) -> "Judge":
        if self.base_url:
            self._client = _client(self.base_url, self._api_key, self.max_retries)
        proxy = _proxy()
        self._before = {name: os.environ.get(name) for name in _CHANGED}, proxy.judge
        proxy.judge = self
        # Other names than these are none of lmms-eval's judges; all are set, so that a `.env` cannot fill one in.
        os.environ.update(
            API_TYPE="openai",
            OPENAI_API_KEY="none",
            OPENAI_API_URL=proxy.base_url,
            OPENAI_BASE_URL=proxy.base_url,
            LLM_JUDGE_URL=proxy.base_url + _PATH,
            MODEL_VERSION=self.model or "none",
            USE_LLM_JUDGE=str(bool(self.base_url)),
            JUDGE_BASE_URL=proxy.base_url,
            JUDGE_API_KEY="none",
            JUDGE_MODEL_NAME=self.model or "none",
        )
        for name in ("NO_PROXY", "no_proxy"):  # what goes to this machine need not go by way of another
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
        return self

    def __exit__(self, *exception: object) -> None:
        variables, _proxy().judge = self._before
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._client is not None:
            self._client.close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """
        Return the judge's answer to a request; one with an empty text if there is none.

        The same request is answered only once, also while its answer is on the way: tasks that find it of no use ask
        again, and some lose patience before a busy judge does.
        """
        request = {**request, "model": self.model}
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        with self._lock:
            self._asked[key] += 1
            first = key not in self._answers
            future = self._answers.setdefault(key, Future())
        if first:
            future.set_result(self._ask(request, key))
        if self._asked[key] > _MOST_REPEATS and key not in self._failed:
            self._fail(key, f"an answer that a task has asked for {_MOST_REPEATS} times and cannot read")
        return _said("") if key in self._failed else future.result()

    def _ask(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        if self._client is None:
            return self._fail(key, "there is no judge")
        if (request.get("temperature") or 0) >= _GIVEN_UP:
            return self._fail(key, "no answer before was a score")
        client = self._client.with_options(max_retries=0) if self._unreachable else self._client
        try:
            answer = _post(client, request)
        except Exception as error:  # whatever goes wrong costs one row, and is counted
            self._unreachable = _is_unreachable(error)
            return self._fail(key, _words(error, self._client.api_key))
        self._unreachable = False
        return answer if _text(answer) else self._fail(key, "an empty answer")

    def _fail(self, key: str, reason: str) -> dict[str, Any]:
        with self._lock:
            self._failed.add(key)
        logger.warning("a request to the judge %s failed: %s", self.model or "", reason)
        return _said("")


def check_judge(base_url: str, model: str, api_key: str | None = None, max_retries: int = 2) -> None:
    """
    Ask a judge one question as the tasks would, before anything else is asked.

    Args:
        base_url (`str`):
            Address of the server.
        model (`str`):
            Name of the judge.
        api_key (`str`, *optional*):
            Key; by default the environment variable `SICOG_JUDGE_API_KEY`.
        max_retries (`int`, *optional*, defaults to `2`):
            How often it is asked again if it cannot be reached.

    Raises:
        `ConnectionError`: if nothing answers, or something else than such a server.
        `PermissionError`: if the key is wrong.
        `ValueError`: if the server does not have the model.
        `RuntimeError`: if it answers with an error, with nothing, or with its thoughts.
    """
    import openai

    request = {"model": model, "messages": [{"role": "user", "content": _PROBE}]}
    # The names that lmms-eval knows as models that think get no temperature from it.
    thinks = model.startswith(("gpt-5", "o1", "o3", "o4"))
    request |= {"max_completion_tokens": _PROBE_TOKENS} if thinks else {"max_tokens": _PROBE_TOKENS, "temperature": 0}
    with _client(base_url, api_key, max_retries) as client:
        try:
            text = _text(_post(client, request))
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            words = _words(error, client.api_key)
            raise PermissionError(
                f"the judge at {base_url} does not let us in: {words}. Set {KEY_VARIABLE} to its key"
            ) from None
        except openai.NotFoundError as error:
            raise ValueError(
                f"{base_url} does not have the judge {model!r}: {_words(error, client.api_key)}. judge_model must be "
                "a name that the server lists, and judge_base_url the address that it prints (it usually ends with "
                "/v1)"
            ) from None
        except openai.APIStatusError as error:
            raise RuntimeError(f"the judge {model!r} answers with {_words(error, client.api_key)}") from None
        except (openai.APIConnectionError, ValueError) as error:
            raise ConnectionError(
                f"no judge answers at {base_url}: {_words(error, client.api_key)}. Is the server running, and is "
                "judge_base_url the address that it prints?"
            ) from None
    if not text or "<think>" in text:
        what = "its thoughts" if text else "nothing"
        raise RuntimeError(
            f"the judge {model!r} answers with {what} to a question for a number, in {_PROBE_TOKENS} tokens: start it "
            "without thinking, or take another model"
        )


def _client(base_url: str, api_key: str | None, max_retries: int) -> "OpenAI":
    try:
        from openai import OpenAI, Timeout
    except ImportError as error:
        raise ImportError("a judge needs the package openai; pip install 'sicog-trl[eval]'") from error
    key = api_key or os.environ.get(KEY_VARIABLE) or "EMPTY"  # servers of one's own often want none
    url = base_url.rstrip("/").removesuffix(_PATH)
    # ours: the longest answer that a task asks for has 1024 tokens.
    return OpenAI(base_url=url, api_key=key, max_retries=max_retries, timeout=Timeout(180.0, connect=10.0))


def _post(client: "OpenAI", request: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(_PATH, body=request, cast_to=object)
    if not isinstance(answer, dict):
        raise ValueError("something that is no answer of an OpenAI-compatible server")
    return answer


def _text(answer: dict[str, Any]) -> str:
    """Return the text of an answer; without one it is empty."""
    try:
        return (answer["choices"][0]["message"]["content"] or "").strip()
    except (AttributeError, IndexError, KeyError, TypeError):
        return ""


def _is_unreachable(error: Exception) -> bool:
    import openai

    return isinstance(error, openai.APIConnectionError)


def _words(error: Exception, key: str) -> str:
    """Return what went wrong, short and without the key, should the server repeat it."""
    return textwrap.shorten(f"{error} {error.__cause__ or ''}".replace(key, "***"), 300)


def _said(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "none", "object": "chat.completion", "created": 0, "model": "", "choices": choices, "usage": usage}


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judge: Judge | None = None
        # Who does not know the path, such as another user of the machine, does not get to spend our key.
        self.secret = secrets.token_hex(16)
        self.base_url = f"http://127.0.0.1:{self.server_port}/{self.secret}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """A task that has lost patience and gone away is no news."""


@cache
def _proxy() -> _Proxy:
    """Return the proxy of this process: tasks keep the address that they found when they were imported."""
    proxy = _Proxy()
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    return proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy

    def log_message(self, *words: object) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if not self.path.startswith(f"/{self.server.secret}/"):
            self._send(404, {"error": {"message": "not found"}})
            return
        judge = self.server.judge or Judge()
        self._send(200, judge.answer(json.loads(body)))

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
