"""A server that speaks OpenAI's chat completions, in a process of its own, and can be made to fail.

    python -m tests.chat_server --port 8000

It answers with labels of the prompt, the same ones for the same prompt. A text that holds
`fault:NAME` meets that fault (see `FAULTS`) the first time it is asked about, `fault:NAME*` each
time. GET /counts tells how often each text was asked about, GET /peak the most requests that were
under way at once.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jaxclf.remote.stand_in import completion, label, text_of

SLOW = 1.0  # seconds that a slow answer takes
FAULTS = {
    "429": "a rate limit with Retry-After",
    "quota": "no credit left",
    "500": "a failure",
    "slow": "an answer late",
    "drop": "the connection closed without an answer",
    "half": "the connection closed in the middle of one",
    "malformed": "a body that is no JSON",
    "html": "a page of a proxy",
    "empty": "JSON without choices",
    "garbage": "an answer that is no label",
    "400": "refused",
    "401": "refused",
    "404": "refused",
    "long": "a rate limit with a wait of hours",
    "drip": "an answer that comes byte by byte, and never ends",
    "dripbody": "the same after a head that came at once",
    "redirect": "sent on to another address of this server",
    "huge": "a body that does not end",
    "costly": "a million tokens used",
    "nousage": "no word on tokens",
}


class _State:
    def __init__(self, key: str, delay: float):
        self.key, self.delay = key, delay
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.under_way = self.peak = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: _State

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        found = {"/counts": dict(self.state.asked), "/peak": self.state.peak}
        self._send(200, found[self.path])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.state.lock:
            self.state.under_way += 1
            self.state.peak = max(self.state.peak, self.state.under_way)
        try:
            self._answer(json.loads(body))
        except (BrokenPipeError, ConnectionResetError):
            pass  # who asked is gone
        finally:
            with self.state.lock:
                self.state.under_way -= 1

    def _answer(self, asked: dict[str, Any]) -> None:
        prompt = "\n".join(part["content"] for part in asked["messages"])
        text = text_of(prompt)
        with self.state.lock:
            self.state.asked[text] += 1
            count = self.state.asked[text]
        time.sleep(self.state.delay)
        given = self.headers.get("Authorization", "")
        fault = re.search(r"fault:(\w+)(\*?)", text)
        name = fault[1] if fault and (fault[2] or count == 1) else ""
        if self.state.key and given != f"Bearer {self.state.key}":
            name = "401"
        if name in ("400", "401", "404"):  # which repeats the key, as some do
            self._send(
                int(name), {"error": {"message": f"not for {given}, {given[:20]}", "code": name}}
            )
        elif name == "quota":
            self._send(429, {"error": {"message": "no credit", "code": "insufficient_quota"}})
        elif name in ("429", "long"):
            wait = "0.05" if name == "429" else "7200"
            self._send(429, {"error": {"message": "too many requests"}}, {"Retry-After": wait})
        elif name == "500":
            self._send(500, {"error": {"message": "it broke"}})
        elif name == "redirect":
            target = f"http://localhost:{self.server.server_address[1]}/v1/chat/completions"
            self._send(307, {}, {"Location": target})
        elif name in ("drip", "dripbody", "huge"):
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            head += b"Transfer-Encoding: chunked\r\n\r\n" if name != "drip" else b""
            self.wfile.write(head)
            self.close_connection = True
            byte, pause = (b"x: " if name == "drip" else b"1\r\n \r\n"), 0.02
            if name == "huge":
                byte, pause = b"100000\r\n" + b" " * 2**20 + b"\r\n", 0
            while True:
                self.wfile.write(byte)
                time.sleep(pause)
        elif name == "drop":
            self.close_connection = True
        else:
            time.sleep(SLOW if name == "slow" else 0)
            reply = completion(asked, "no label at all" if name == "garbage" else label(prompt))
            if name in ("costly", "nousage"):
                million = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
                reply["usage"] = million if name == "costly" else None
            content = json.dumps({} if name == "empty" else reply).encode()
            content = {"malformed": b'{"choices": [', "html": b"<html>"}.get(name, content)
            size = len(content)
            if name == "half":
                content, self.close_connection = content[:20], True
            kind = "text/html" if name == "html" else "application/json"
            self._send(200, content, {"Content-Type": kind, "Content-Length": str(size)})

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        standard = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        self.send_response(status)
        for name, value in (standard | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class Running:
    """The address of a server in another process, and what it has seen."""

    def __init__(self, base_url: str):
        self.base_url = base_url

    def counts(self) -> dict[str, int]:
        """How often each text was asked about."""
        return self._get("counts")

    def peak(self) -> int:
        """The most requests that were under way at once."""
        return self._get("peak")

    def _get(self, name: str) -> Any:
        with urllib.request.urlopen(self.base_url.removesuffix("v1") + name) as found:
            return json.load(found)


@contextlib.contextmanager
def started(*options: str) -> Iterator[Running]:
    """A server in a process of its own, as long as the block goes."""
    command = [sys.executable, "-m", "tests.chat_server", *options]
    folder = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Running(process.stdout.readline().strip())
        finally:
            process.terminate()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser("python -m tests.chat_server")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--key", default="", help="the only key that is let in; default: any")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each answer takes")
    options = parser.parse_args()
    _Handler.state = _State(options.key, options.delay)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), _Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
