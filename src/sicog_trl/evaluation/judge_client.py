"""What is said to the judge itself, and what its errors mean."""

import os
import textwrap
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit


if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "SICOG_JUDGE_API_KEY"
PATH = "/chat/completions"


def connect(base_url: str, api_key: str | None, max_retries: int) -> "OpenAI":
    """Return a client of the judge; it tries again by itself what may succeed later."""
    try:
        from openai import DefaultHttpxClient, OpenAI, Timeout
    except ImportError as error:
        raise ImportError("a judge needs the package openai; pip install 'sicog-trl[eval]'") from error
    # Without a line break, which would come back in an error, in words that are not those of the key any more.
    key = (api_key or os.environ.get(KEY_VARIABLE, "")).strip() or "EMPTY"  # servers of one's own often want none
    url = base_url.rstrip("/").removesuffix(PATH)
    # A proxy of the network is not the way to a server on this machine.
    here = DefaultHttpxClient(trust_env=False) if urlsplit(url).hostname in ("127.0.0.1", "localhost") else None
    # ours: the longest answer that a task asks for has 1024 tokens.
    timeout = Timeout(180.0, connect=10.0)
    return OpenAI(base_url=url, api_key=key, max_retries=max_retries, timeout=timeout, http_client=here)


def post(client: "OpenAI", request: dict[str, Any]) -> dict[str, Any]:
    """Return what the judge answers, as it came."""
    answer = client.post(PATH, body=request, cast_to=object)
    if not isinstance(answer, dict):
        raise ValueError("something that is no answer of an OpenAI-compatible server")
    return answer


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of an answer; without one it is empty."""
    try:
        return (answer["choices"][0]["message"]["content"] or "").strip()
    except (AttributeError, IndexError, KeyError, TypeError):
        return ""


def words_of(error: Exception, key: str) -> str:
    """Return what went wrong, short and without the key, should the server repeat it."""
    return textwrap.shorten(f"{error} {error.__cause__ or ''}".replace(key, "***"), 300)
