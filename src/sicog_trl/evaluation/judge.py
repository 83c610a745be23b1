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
import threading
from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .judge_client import KEY_VARIABLE, PATH, connect, post, text_of, words_of
from .judge_proxy import empty_answer, start_proxy


if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

# MM-Vet asks for ever if the number that it gets is none of a score; answers are kept, so it costs a second. Several
# rows may make the same request too: dozens of MathVista ask for an age gap, and get the same answer.
_MOST_REPEATS = 500
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
    cannot be imported without a key. What the environment held is put back afterwards. A judge inside another one
    takes its place for so long; one for each task counts what that task asks.

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
            an error. After one that was tried in vain, the next ones are tried once each until one succeeds.
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
        self._is_down = False
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """How many requests the tasks have made, each one counted once."""
        return len(self._answers)

    @property
    def failed(self) -> int:
        """
        How many of them were never answered with something that a task can use.

        lmms-eval counts a row behind such a request as wrong, or worse: LLaVA-Bench without a judgement scores 100.
        """
        return len(self._failed)

    def __enter__(self) -> "Judge":
        if self.base_url:
            self._client = connect(self.base_url, self._api_key, self.max_retries)
        proxy = start_proxy()
        self._before = {name: os.environ.get(name) for name in _CHANGED}, proxy.answer
        proxy.answer = self.answer
        # Other names than these are none of lmms-eval's judges; all are set, so that a `.env` cannot fill one in.
        os.environ.update(
            API_TYPE="openai",
            OPENAI_API_KEY="none",
            OPENAI_API_URL=proxy.base_url,
            OPENAI_BASE_URL=proxy.base_url,
            LLM_JUDGE_URL=proxy.base_url + PATH,
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
        variables, start_proxy().answer = self._before
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
        return empty_answer() if key in self._failed else future.result()

    def _ask(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        if self._client is None:
            return self._fail(key, "there is no judge")
        if (request.get("temperature") or 0) >= _GIVEN_UP:
            return self._fail(key, "no answer before was a score")
        import openai

        lasting = openai.APIConnectionError | openai.RateLimitError | openai.InternalServerError
        client = self._client.with_options(max_retries=0) if self._is_down else self._client
        try:
            answer = post(client, request)
        except Exception as error:  # whatever goes wrong costs one row, and is counted
            self._is_down = isinstance(error, lasting)
            return self._fail(key, words_of(error, self._client.api_key))
        self._is_down = False
        if not text_of(answer):
            return self._fail(key, "an answer without text")
        return {**answer, "model": answer.get("model") or self.model}  # for MM-Vet, one without a name is none

    def _fail(self, key: str, reason: str) -> dict[str, Any]:
        with self._lock:
            self._failed.add(key)
        logger.warning("a request to the judge %s failed: %s", self.model or "", reason)
        return empty_answer()


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
    with connect(base_url, api_key, max_retries) as client:
        try:
            text = text_of(post(client, request))
        except (openai.APIError, ValueError) as error:
            raise _explain(error, base_url, model, words_of(error, client.api_key)) from None
    if not text or "<think>" in text:
        what = "its thoughts" if text else "nothing"
        raise RuntimeError(
            f"the judge {model!r} answers with {what} to a question for a number, in {_PROBE_TOKENS} tokens: start it "
            "without thinking, or take another model"
        )


def _explain(error: Exception, base_url: str, model: str, words: str) -> Exception:
    """Return an error that says what to do."""
    import openai

    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return PermissionError(
            f"the judge at {base_url} does not let us in: {words}. Set the environment variable {KEY_VARIABLE} to its "
            "key"
        )
    if isinstance(error, openai.NotFoundError):
        return ValueError(
            f"{base_url} does not have the judge {model!r}: {words}. judge_model must be a name that the server "
            "lists, and judge_base_url the address that it prints (it usually ends with /v1)"
        )
    if isinstance(error, openai.APIStatusError):
        return RuntimeError(f"the judge {model!r} answers with {words}")
    return ConnectionError(
        f"no judge answers at {base_url}: {words}. Is the server running, and is judge_base_url the address that it "
        "prints (it usually ends with /v1)?"
    )
