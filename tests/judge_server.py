"""
A stand-in for a judge on loopback: it reads the requests of lmms-eval's tasks and grades by looking for the truth.

```python
with JudgeServer() as server, Judge(server.base_url, "judge") as judge:
    ...
    server.fault = "500"  # what happens to every request from now on
    server.faults = ["429", "429"]  # or to the next ones
    print(server.requests)
```
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def grade(prompt: str) -> str:
    """Return what a judge says to a request of MM-Vet, MathVista, LLaVA-Bench or MMBench."""
    if "[End of Assistant 2]" in prompt:
        reference, answer = re.findall(r"\[Assistant \d\]\n(.*?)\n\n\[End of", prompt, re.DOTALL)
        return "8 8\nBoth are good." if reference.strip(".") in answer else "8 2\nThe second one is wrong."
    if prompt.endswith("Extracted answer: "):
        answer = prompt.removesuffix("\n\nExtracted answer: ").rpartition("\n\n")[2]
        found = re.findall(r"\[[^]]*\]|-?\d+(?:\.\d+)?|\b[A-F]\b", answer)
        return found[-1] if found else "nothing"
    if prompt.endswith("Your output: "):
        options, _, answer = prompt.rpartition("Options: ")[2].partition("\nAnswer: ")
        named = re.findall(r"([A-D])\. (\w+)", options)
        letter = max(named, key=lambda option: answer.rfind(option[1]))[0]
        return letter if any(text in answer for _, text in named) else "E"
    if prompt.endswith("|"):
        truth, answer = (part.strip() for part in prompt.splitlines()[-1].split("|")[1:3])
        return str(float(all(part.strip() in answer for part in truth.split("<AND>"))))
    return "1.0"


class JudgeServer(ThreadingHTTPServer):
    """
    A judge in a thread of this process.

    Args:
        model (`str`, *optional*, defaults to `"judge"`):
            The one model that it has.

    Attributes:
        gate (`threading.Event`):
            Answers wait until it is set; it is set unless a test clears it.
        fault (`str`, *optional*):
            What goes wrong with every request: a status such as `"500"`, `"cut"` (no answer at all), `"page"` (no
            JSON), or `"say ..."`, which is said instead of a grade.
        faults (`list[str]`):
            What goes wrong with the next requests, before `fault` counts.
        requests (`list[dict]`):
            Payloads as they came.
        api_key (`str`, *optional*):
            What it wants to hear; others get 401, with their key in it.
    """

    daemon_threads = True

    def __init__(self, model: str = "judge"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.api_key = model, None
        self.gate = threading.Event()
        self.gate.set()
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        self.fault: str | None = None
        self.faults: list[str] = []
        self.requests: list[dict] = []

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: JudgeServer

    def log_message(self, *words: object) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        server = self.server
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append(payload)
        server.gate.wait()
        fault = server.faults.pop(0) if server.faults else server.fault
        key = self.headers["Authorization"].removeprefix("Bearer ")
        if fault == "cut":
            self.close_connection = True
        elif fault == "page":
            self.send(200, b"<html>a proxy</html>", "text/html")
        elif fault and fault.isdigit():
            self.send(int(fault), json.dumps({"error": {"message": f"told to say {fault} to {key}"}}).encode())
        elif server.api_key not in (None, key):
            self.send(401, json.dumps({"error": {"message": f"wrong key {key}"}}).encode())
        elif self.path != "/v1/chat/completions" or payload["model"] != server.model:
            self.send(404, json.dumps({"error": {"message": "no such model"}}).encode())
        else:
            prompt = payload["messages"][-1]["content"]
            said = fault.removeprefix("say ") if fault else grade(prompt)
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": server.model, "choices": [choice]}
            self.send(200, json.dumps(body).encode())

    def send(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(data)
