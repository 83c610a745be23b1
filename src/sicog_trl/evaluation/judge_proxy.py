"""A server on loopback that takes what tasks of lmms-eval send to a judge, wherever they think that it is."""

import json
import secrets
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def empty_answer(request: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return an answer without a text."""
    message = {"role": "assistant", "content": ""}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "none", "object": "chat.completion", "created": 0, "model": "", "choices": choices, "usage": usage}


class Proxy(ThreadingHTTPServer):
    """
    The server, which takes a request on any path below its own.

    Attributes:
        base_url (`str`):
            Its address. Who does not know it whole, such as another user of the machine, is not served.
        answer (`Callable`):
            Returns the answer to a request.
    """

    daemon_threads = True
    request_queue_size = 128  # rows are graded at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path = f"/{secrets.token_hex(16)}/v1"
        self.base_url = f"http://127.0.0.1:{self.server_port}{self.path}"
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = empty_answer

    def handle_error(self, request: object, client_address: object) -> None:
        """A task that has lost patience and gone away is no news."""


@cache
def start_proxy() -> Proxy:
    """Return the proxy of this process. It stays: tasks keep the address that they found when they were imported."""
    proxy = Proxy()
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    return proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def log_message(self, *words: object) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        known = self.path == self.server.path or self.path.startswith(self.server.path + "/")
        answer = self.server.answer(json.loads(body)) if known else {"error": {"message": "not found"}}
        data = json.dumps(answer).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
