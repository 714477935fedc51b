"""A server in the place of a closed model: it speaks chat completions and knows nothing.

It answers with labels of the prompt's own lists, the same ones for the same prompt, so that all
that surrounds a closed model can be tried without a key, a network or a bill.
"""

import ast
import contextlib
import hashlib
import itertools
import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def started(port: int) -> Iterator[str]:
    """The base URL of a server in threads of this process, as long as the block goes.

    port: taken where it is free, else another one.
    """
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    except OSError:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = "\n".join(part["content"] for part in asked["messages"])
        content = json.dumps(completion(asked, label(prompt))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def text_of(prompt: str) -> str:
    """The text to label, between the last delimiters of a listing; else the whole prompt."""
    found = re.findall(r"Beginning of <<(\w+)>>\n(.*?)\nEnd of <<\1>>", prompt, re.DOTALL)
    return found[-1][1] if found else prompt


def label(prompt: str) -> str:
    """An answer of the form that the prompt asks for, with labels of its lists."""
    lists = [ast.literal_eval(found) for found in re.findall(r"\['.*?'\]", prompt)]
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])

    def slots() -> list[str]:
        return ["Other" for _ in text_of(prompt).split()]

    last = prompt.splitlines()[-1]
    if not lists or last.endswith("Slots:"):
        return json.dumps(slots())
    chosen: list[Any] = [names[number % len(names)] for names in lists]
    if last.endswith("Output:"):
        if "Label each word" in prompt:
            chosen[-1] = slots()
        return json.dumps({f"task{place}": value for place, value in enumerate(chosen, 1)})
    return chosen[0]


def completion(asked: dict[str, Any], text: str) -> dict[str, Any]:
    """The body of an answer; tokens are counted as words."""
    words = sum(len(part["content"].split()) for part in asked["messages"])
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": f"{asked['model']}-0000",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
            | ({"logprobs": log_probabilities(asked, text)} if asked.get("logprobs") else {})
        ],
        "usage": {
            "prompt_tokens": words,
            "completion_tokens": len(text.split()),
            "total_tokens": words + len(text.split()),
        },
    }


def log_probabilities(asked: dict[str, Any], text: str) -> dict[str, Any]:
    """Three quarters for each part of the answer, the rest for parts of other labels there."""
    prompt = "\n".join(part["content"] for part in asked["messages"])
    lists = [ast.literal_eval(found) for found in re.findall(r"\['.*?'\]", prompt)]
    places, before = [], ""
    for token in re.findall(r"_?[^_]+", text):
        others = {
            re.findall(r"_?[^_]+", name.removeprefix(before))[0]
            for name in itertools.chain.from_iterable(lists)
            if name.startswith(before) and name != before
        } - {token}
        shown = {token: 0.75} | dict.fromkeys(sorted(others), 0.25 / max(1, len(others)))
        top = [{"token": name, "logprob": math.log(p)} for name, p in shown.items()]
        places.append(top[0] | {"top_logprobs": top[: asked["top_logprobs"]]})
        before += token
    return {"content": places}
