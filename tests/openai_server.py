"""
A stand-in for an OpenAI-compatible server, on loopback, with the faults of real ones on demand.

```python
with StubServer() as server:
    sampler = OpenAISampler("stub", server.base_url)
    ...
    server.fault = in_order("500", "cut", "429")  # what happens to the next chat requests
    print(server.requests, server.most_at_once)
```
"""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from PIL import Image


WORDS = "one two three four five six seven eight nine ten red green blue left right above below many few none".split()


def in_order(*faults: str | None) -> Callable[[str], str | None]:
    """Return a `fault` that gives one after the other to the requests as they come, then none."""
    left = iter(faults)
    return lambda prompt: next(left, None)


def words(prompt: str, images: list[str], seed: int) -> str:
    """Return six words that prompt, pixels and seed decide."""
    digest = hashlib.sha256(f"{prompt}|{images}|{seed}".encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[:6])


class StubServer(ThreadingHTTPServer):
    """
    A server in a thread of this process.

    Args:
        model (`str`, *optional*, defaults to `"stub"`):
            The one model that it has.
        token_ids (`bool`, *optional*, defaults to `True`):
            Whether it knows `return_token_ids`, as vLLM does.
        refuses (`tuple[str, ...]`, *optional*):
            Settings that it answers with status 400; `"n"` means more than one.
        several (`str`, *optional*, defaults to `"seeds"`):
            Candidates of one request: each with the next seed (`"seeds"`), all with the same (`"clones"`), or only
            one whatever is asked (`"one"`).
        text (`Callable`, *optional*, defaults to `words`):
            Returns the text for a prompt, the hashes of the images' pixels and a seed.
        logprobs (`str`, *optional*, defaults to `"own"`):
            Log-probabilities, if a request wants them: of the model itself (`"own"`), after the temperature
            (`"tempered"`), or left out of the answer (`"none"`).

    Attributes:
        fault (`Callable[[str], str | None]`):
            Says for the prompt of each chat request what goes wrong: `"slow"`, `"cut"` (half a body), `"invalid"`
            (no JSON), `"page"` (a web page), `"error"` (an error with status 200), `"short"` and `"long"` (a candidate
            less or more), `"reversed"` and `"unnumbered"` (candidates), `"null"` (content and finish reason),
            `"dead"` (from now on), or a status such as `"429"`.
        requests (`list[dict]`):
            Payloads of the chat requests, as they came.
        most_at_once (`int`):
            Most chat requests that were in the server at the same time.
        api_key (`str`, *optional*):
            What it wants to hear; others get 401.
        cards (`list[dict]`):
            What it says of its models.
        gate (`threading.Event`):
            Answers wait until it is set; it is set unless a test clears it.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        model: str = "stub",
        token_ids: bool = True,
        refuses: tuple[str, ...] = (),
        several: str = "seeds",
        text: Callable[[str, list[str], int], str] = words,
        logprobs: str = "own",
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.token_ids, self.refuses, self.several, self.text = model, token_ids, refuses, several, text
        self.logprobs = logprobs
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        self.fault: Callable[[str], str | None] = in_order()
        self.requests: list[dict] = []
        self.at_once = self.most_at_once = 0
        self.api_key: str | None = None
        self.dead = False
        self.cards = [{"id": model, "object": "model"}]
        self.gate = threading.Event()
        self.gate.set()
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> "StubServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self.gate.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is no news."""

    def answer(self, payload: dict) -> tuple[int, dict]:
        """Return status and body for a chat request that nothing befalls."""
        if bad := [name for name in self.refuses if payload.get(name) is not None]:
            return 400, {"error": {"message": f"unknown settings {bad}", "type": "invalid_request_error"}}
        parts = payload["messages"][0]["content"]
        prompt = "".join(part["text"] for part in parts if part["type"] == "text")
        images = [pixels(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        n = 1 if self.several == "one" else payload.get("n", 1)
        choices = [self.choice(payload, prompt, images, i) for i in range(n)]
        usage = {"completion_tokens": sum(len(choice["message"]["content"].split()) for choice in choices)}
        return 200, {"id": "1", "object": "chat.completion", "model": self.model, "choices": choices, "usage": usage}

    def choice(self, payload: dict, prompt: str, images: list[str], index: int) -> dict:
        """Return candidate `index`; a word is a token."""
        seed = payload.get("seed", 0) + (index if self.several == "seeds" else 0)
        tokens = self.text(prompt, images, seed if payload["temperature"] else 0).split()
        kept = tokens[: payload.get("max_tokens")]
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": " ".join(kept)},
            "finish_reason": "stop" if len(kept) == len(tokens) else "length",
        }
        if self.token_ids and payload.get("return_token_ids"):
            choice["token_ids"] = list(range(len(kept)))
        if payload.get("logprobs") and self.logprobs != "none":
            scale = payload["temperature"] if self.logprobs == "tempered" else 1.0
            choice["logprobs"] = {"content": [logprob(word, scale, payload.get("top_logprobs", 0)) for word in kept]}
        return choice


def logprob(word: str, scale: float, top: int) -> dict:
    """Return what is said of a token: minus its letters, so that a test can count them."""
    said = {"token": word, "logprob": -len(word) / scale, "bytes": None}
    return {**said, "top_logprobs": [{**said, "logprob": -1.5 / scale}] * top}


def pixels(url: str) -> str:
    """Return a hash of what is seen at a data or file address."""
    if url.startswith("data:"):
        source = io.BytesIO(base64.b64decode(url.partition(";base64,")[2]))
    else:
        source = unquote(urlsplit(url).path)
    with Image.open(source) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StubServer

    def log_message(self, *words: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        if self.server.dead:
            self.close_connection = True
        elif not self.is_let_in():
            self.send(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        elif self.path == "/v1/models":
            self.send(200, {"object": "list", "data": self.server.cards})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        server = self.server
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(payload)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.fault(payload["messages"][0]["content"][-1].get("text", ""))
        server.gate.wait()
        status, body = server.answer(payload) if self.is_let_in() else (401, {"error": {"message": "wrong key"}})
        with server.lock:  # before the answer, or the next request might already be there
            server.at_once -= 1
        self.befall(fault, status, body)

    def is_let_in(self) -> bool:
        return self.server.api_key in (None, self.headers["Authorization"].removeprefix("Bearer "))

    def befall(self, fault: str | None, status: int, body: dict) -> None:
        """Answer, with what goes wrong."""
        self.server.dead |= fault == "dead"
        if self.server.dead:
            self.close_connection = True
            return
        if fault == "slow":
            self.server.closing.wait()
            return
        if fault == "short":
            body["choices"].pop()
        elif fault == "long":
            body["choices"].append({**body["choices"][-1], "index": len(body["choices"])})
        elif fault == "reversed":
            body["choices"].reverse()
        elif fault == "unnumbered":
            for choice in body["choices"]:
                choice["index"] = 0
        elif fault == "null":
            for choice in body["choices"]:
                choice["message"]["content"] = choice["finish_reason"] = None
        elif fault == "error":
            body = {"error": {"message": "something inside"}}
        elif fault is not None and fault.isdigit():
            status, body = int(fault), {"error": {"message": f"the stub was told to say {fault}"}}
        data = {"invalid": b'{"choices": [', "page": b"<html>proxy</html>"}.get(fault, json.dumps(body).encode())
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if fault == "page" else "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        self.close_connection |= fault == "cut"

    def send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
