"""Servers and processes that are dead, stuck or wrong, and two writers of one folder.

Nothing waits without an end: a command goes on, or ends with its code within a limit.
"""

import collections
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import Command
from benchmarks.faults.world import (
    PROMPTED,
    TRAIN,
    Result,
    World,
    differences,
    encoder,
    failed,
    snapshot,
)
from jaxclf.distributed.processes import LONGEST_START
from jaxclf.remote.stand_in import completion, label, text_of

HEARTBEAT = 10
KEY = "sk-a-secret-that-nobody-may-see"


def run(world: World) -> Iterator[Result]:
    folder = world.folder("peers")
    yield from _servers(world, folder)
    if not world.short:
        yield from _stopped_asking(world, folder)
        yield from _processes(world, folder)
        yield from _orphans(world, folder)
    yield from _two_writers(world, folder)


# Servers ------------------------------------------------------------------------------------------


class Server:
    """A server of chat completions on a socket of its own, which answers as `behave` says.

    `behave(asked, count, reply)` gets the question, how often it was asked, and the right answer;
    it returns the bytes to send, or an iterator of them.
    """

    def __init__(self, behave: Callable[[dict, int, dict], Any]):
        self.behave = behave
        self.asked: collections.Counter[str] = collections.Counter()
        self.answered: collections.Counter[str] = collections.Counter()
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(100)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        try:
            while file.readline():
                headers = {}
                while line := file.readline().decode("latin1").strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                asked = json.loads(file.read(int(headers.get("content-length", "0"))) or b"{}")
                prompt = "\n".join(part["content"] for part in asked["messages"])
                text = text_of(prompt)
                self.asked[text] += 1
                reply = completion(asked, label(prompt))
                sent = self.behave(asked | {"headers": headers}, self.asked[text], reply)
                for part in [sent] if isinstance(sent, bytes) else sent:
                    connection.sendall(part)
                self.answered[text] += isinstance(sent, bytes) and sent.startswith(_DONE)
        except (OSError, ValueError, KeyError):
            pass
        finally:
            connection.close()


_DONE = b"HTTP/1.1 200"


def http(status: int, body: Any, *headers: str, kind: str = "application/json") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


def _first(times: int, fault: bytes) -> Callable[[dict, int, dict], bytes]:
    """The fault so many times for each text, then the answer."""
    return lambda asked, count, reply: fault if count <= times else http(200, reply)


def _always(fault: bytes) -> Callable[[dict, int, dict], bytes]:
    return lambda asked, count, reply: fault


def _with(**changes: Any) -> Callable[[dict, int, dict], bytes]:
    """The answer with other values: of the whole (`usage`), the choice or the message."""

    def behave(asked: dict, count: int, reply: dict) -> bytes:
        for name, value in changes.items():
            owner = reply if name in ("usage", "choices") else reply["choices"][0]["message"]
            owner[name] = value
        return http(200, reply)

    return behave


def _drip(asked: dict, count: int, reply: dict) -> Iterator[bytes]:
    for byte in http(200, reply):
        time.sleep(0.4)
        yield bytes([byte])


def _endless(asked: dict, count: int, reply: dict) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"100000\r\n" + b" " * (1 << 20) + b"\r\n"


def _silent(asked: dict, count: int, reply: dict) -> bytes:
    time.sleep(60)
    return b""


def _echo(status: int) -> Callable[[dict, int, dict], bytes]:
    return lambda asked, count, reply: http(
        status, {"error": {"message": f"not for {asked['headers'].get('authorization')}"}}
    )


_SLOW_DOWN = http(429, {"error": {"message": "slow down"}}, "Retry-After: 0.05")
_PRICED = ["--config.api.max_cost=1", "--config.api.input_price=1", "--config.api.output_price=1"]

# Case → how the server answers, more arguments, and the exit codes that are right.
SERVERS: dict[str, tuple[Callable, list[str], tuple[int, ...]]] = {
    "an answer": (_with(), [], (0,)),
    "429, then answers": (_first(2, _SLOW_DOWN), ["--config.api.retries=5"], (0,)),
    "429 for ever": (_always(_SLOW_DOWN), [], (4,)),
    "wait until 2099": (
        _always(http(429, {}, "Retry-After: Wed, 21 Oct 2099 07:28:00 GMT")),
        [],
        (4,),
    ),
    "wait -5 s": (_first(1, http(429, {}, "Retry-After: -5")), [], (0,)),
    "wait nan": (_first(1, http(429, {}, "Retry-After: nan")), [], (0,)),
    "wait inf": (_always(http(429, {}, "Retry-After: inf")), [], (4,)),
    "500, then answers": (_first(1, http(500, {"error": {"message": "broke"}})), [], (0,)),
    "503 for ever": (_always(http(503, b"<html>", kind="text/html")), [], (4,)),
    "400": (_always(http(400, {"error": {"message": "no"}})), [], (2,)),
    "401 that repeats the key": (_echo(401), [], (2,)),
    "500 that repeats the key": (_echo(500), [], (4,)),
    "a byte each 0.4 s": (_drip, [], (4,)),
    "silence": (_silent, [], (4,)),
    "an endless body": (_endless, ["--config.api.concurrency=1"], (4,)),
    "closed at once": (_always(b""), [], (4,)),
    "half an answer": (_first(1, http(200, b'{"choices": [{"mess')), [], (0,)),
    "no JSON": (_always(http(200, b"<html>", kind="text/html")), [], (4,)),
    "no UTF-8": (_always(http(200, b'{"choices":[{"message":{"content":"\xff\xfe"}}]}')), [], (4,)),
    "an empty object": (_always(http(200, {})), [], (4,)),
    "null": (_always(http(200, b"null")), [], (4,)),
    "a list": (_always(http(200, [1])), [], (4,)),
    "deeply nested": (_always(http(200, b"[" * 100_000)), [], (4,)),
    "no choices": (_with(choices=[]), [], (4,)),
    "content a list": (_with(content=[{"type": "text", "text": "x"}]), [], (4,)),
    "content a number": (_with(content=7), [], (0, 4)),
    "content of surrogates": (_with(content="a\ud800\u202e</s>"), [], (0,)),
    "content of 20 MB": (_with(content="x" * (20 << 20)), ["--config.api.concurrency=2"], (0, 4)),
    "content of HTML": (_with(content="<script>alert(1)</script>=cmd|'/c calc'!A0"), [], (0,)),
    "usage in words": (_with(usage={"prompt_tokens": "many"}), [], (0, 4)),
    "usage below zero": (_with(usage={"prompt_tokens": -5, "completion_tokens": -5}), [], (0, 4)),
    "redirect": (_always(http(307, b"", "Location: http://127.0.0.1:1/x")), [], (2, 4)),
    "dearer than the cap": (
        _with(usage={"prompt_tokens": 5_000_000, "completion_tokens": 9}),
        _PRICED,
        (2,),
    ),
}


def _ask(world: World, url: str, workdir: Path, *words: str, log: Path, **options) -> Command:
    asked = [*PROMPTED, f"--config.api.base_url={url}", "--config.api.timeout=3", *words]
    return world.commands.start(
        "jaxclf.prompt",
        [*asked, "--config.data.limit=8", "--workdir", workdir],
        log,
        environment={"OPENAI_API_KEY": KEY},
        **options,
    )


def _servers(world: World, folder: Path) -> Iterator[Result]:
    names = list(SERVERS)
    for name in names[1:3] if world.short else names:
        behave, words, codes = SERVERS[name]
        workdir, log = folder / f"server-{names.index(name)}", folder / f"{names.index(name)}.log"
        with Server(behave) as server:
            begun = time.monotonic()
            command = _ask(world, server.url, workdir, "--config.api.retries=1", *words, log=log)
            command.wait(90)
            verdict = failed(command, codes)
            paid = [text for text, count in server.answered.items() if count > 2]
            if paid and command.code == 0:
                verdict = "lost"
        files = [path for path in workdir.rglob("*") if path.is_file()] if workdir.exists() else []
        if any(KEY.encode() in path.read_bytes() for path in [*files, log]):
            verdict = "silent"
        seen = f"code {command.code} in {time.monotonic() - begun:.1f} s: {command.last_words(160)}"
        yield Result("peers", f"server: {name}", verdict, seen)
    few = [] if not world.short else ["--config.api.retries=1"]
    dead = _ask(world, "http://127.0.0.1:9/v1", folder / "dead", *few, log=folder / "dead.log")
    dead.wait(90)
    yield Result("peers", "server: none", failed(dead, (4,)), dead.last_words(160))


def _stopped_asking(world: World, folder: Path) -> Iterator[Result]:
    """Commands that are killed and stopped while answers are under way; none is paid twice."""

    def slow(asked: dict, count: int, reply: dict) -> bytes:
        time.sleep(0.3)
        return http(200, reply)

    rng = world.random("stopped asking")
    for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        with Server(slow) as server:
            workdir, log = folder / f"asked-{sent.name}", folder / f"asked-{sent.name}.log"
            words = ["--config.data.limit=40", "--config.api.concurrency=4"]
            codes = []
            for _ in range(4):
                command = _ask(world, server.url, workdir, *words, log=log)
                time.sleep(rng.uniform(1.0, 3.0))
                command.send(sent)
                codes.append(command.wait(30))
            command = _ask(world, server.url, workdir, *words, log=log)
            command.wait(90)
            twice = sum(count > 1 for count in server.answered.values())
            verdict = failed(command, (0,))
            # Who is killed cannot store what comes after; at most what was under way each time.
            if twice > (16 if sent == signal.SIGKILL else 0):
                verdict = "lost"
            seen = f"codes {codes}, then {command.code}; answered twice: {twice}"
            yield Result("peers", f"asking, {sent.name}", verdict, seen)


# Processes ----------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _pair(
    world: World,
    workdir: Path,
    name: str,
    before: tuple[str, str] = ("", ""),
    more: tuple[list[str], list[str]] = ([], []),
    steps: int = 10_000,
) -> list[Command]:
    """Two processes of one run, each with a device of its own."""
    words = [*TRAIN, "--config.train.batch_size=4", "--config.train.schedule=constant"]
    words += [f"--config.train.steps={steps}", "--config.train.eval_steps=0"]
    words += ["--workdir", str(workdir), "--distributed", f"--heartbeat={HEARTBEAT}"]
    address = f"localhost:{_free_port()}"
    return [
        world.commands.start(
            "jaxclf.train",
            [*words, *more[number]],
            workdir.parent / f"{name}-{number}.log",
            before=before[number],
            environment={
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
        )
        for number in range(2)
    ]


def _until_step(workdir: Path, step: int, processes: list[Command]) -> None:
    """Return when the run has logged the step, or a process has ended."""
    end = time.monotonic() + 150
    path = workdir / "metrics.jsonl"
    while time.monotonic() < end and all(each.poll() is None for each in processes):
        if path.exists() and path.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.1)


def _ends(processes: list[Command], seconds: float) -> list[int | str]:
    """The exit code of each, or "hung" where it did not end in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(each.poll() is None for each in processes):
        time.sleep(0.1)
    found: list[int | str] = []
    for each in processes:
        found.append("hung" if each.poll() is None else each.code or 0)
        each.send(signal.SIGCONT)
        each.send(signal.SIGKILL)
        each.wait()
    return found


def _raises(error: str) -> str:
    """Python that lets step 5 of a run fail."""
    return f"""
import jaxclf.runs.training as training
count = training._Run.count
def failing(self, *rest):
    count(self, *rest)
    if self.step == 5:
        raise {error}
training._Run.count = failing
"""


def _processes(world: World, folder: Path) -> Iterator[Result]:
    signals = {
        "second killed": (1, signal.SIGKILL),
        "first killed": (0, signal.SIGKILL),
        "second stuck": (1, signal.SIGSTOP),
        "first stuck": (0, signal.SIGSTOP),
        "first asked to stop": (0, signal.SIGTERM),
        "second interrupted": (1, signal.SIGINT),
    }
    for number, (name, (who, sent)) in enumerate(signals.items()):
        workdir = folder / f"pair{number}"
        pair = _pair(world, workdir, f"pair{number}")
        _until_step(workdir, 6, pair)
        pair[who].send(sent)
        asked = sent in (signal.SIGTERM, signal.SIGINT)
        codes = _ends(pair if asked else [pair[1 - who]], HEARTBEAT + 40)
        pair[who].send(signal.SIGCONT)
        pair[who].send(signal.SIGKILL)
        verdict = "hung" if "hung" in codes else "told" if 0 not in codes else "wrong code"
        if sent == signal.SIGTERM and codes != [75, 75]:
            verdict = "wrong code"
        yield Result("peers", f"processes: {name}", verdict, f"codes {codes}")
    errors = {
        "OSError in the first": (0, "OSError(28, 'No space left on device')", 4),
        "OSError in the second": (1, "OSError(28, 'No space left on device')", 4),
        "non-finite in the second": (1, "training.NonFiniteError('a step')", 5),
        "Ctrl-C in the second": (1, "KeyboardInterrupt()", 130),
        "bad input in the first": (0, "training.InputError('a value')", 2),
        "a defect in the second": (1, "RuntimeError('a defect')", None),
    }
    for number, (name, (who, error, code)) in enumerate(errors.items()):
        before = ("", _raises(error)) if who else (_raises(error), "")
        pair = _pair(world, folder / f"error{number}", f"error{number}", before)
        codes = _ends(pair, 150 + HEARTBEAT)
        right = all(each == code for each in codes) if code else 0 not in codes
        verdict = "hung" if "hung" in codes else "told" if right else "wrong code"
        yield Result("peers", f"processes: {name}", verdict, f"codes {codes}")
    others: dict[str, tuple[list[str], list[str]]] = {
        "other seeds": ([], ["--config.seed=1"]),
        "other data": ([], ["--config.data.limit=8"]),
        "other steps": ([], ["--config.train.steps=5"]),
    }
    for number, (name, more) in enumerate(others.items()):
        pair = _pair(world, folder / f"other{number}", f"other{number}", more=more)
        codes = _ends(pair, 150)
        verdict = "hung" if "hung" in codes else "told" if codes == [2, 2] else "wrong code"
        yield Result("peers", f"processes: {name}", verdict, f"codes {codes}")
    pair = _pair(world, folder / "alone", "alone")
    pair[1].send(signal.SIGKILL)
    codes = _ends(pair[:1], LONGEST_START + 30)
    verdict = "hung" if codes == ["hung"] else "told" if codes == [2] else "wrong code"
    yield Result("peers", "processes: the other never comes", verdict, f"codes {codes}")


def _orphans(world: World, folder: Path) -> Iterator[Result]:
    """The first process of `reproduce` and `curve` is killed: its workers end with it."""
    cells = ["attens_k", "--scale", "smoke", "--rows", "distilbert-k3", "--columns", "rte"]
    for number in range(4):
        workdir = folder / f"orphans{number}"
        words = [*cells, "--workdir", workdir]
        command = world.commands.start("jaxclf.reproduce", words, folder / "orphans.log")
        time.sleep(6 + 4 * number)
        workers = _children(command.pid)
        command.send(signal.SIGKILL)
        command.wait()
        time.sleep(3)
        alive = [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        verdict = "left behind" if alive else "told"
        yield Result("peers", f"orphans {number + 1}", verdict, f"{len(workers)} workers")


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(path.parent.name), *_children(int(path.parent.name))]
    return found


# Two writers of one folder ------------------------------------------------------------------------


def _two_writers(world: World, folder: Path) -> Iterator[Result]:
    given = ["--checkpoint", world.artifacts / "scored"]
    many = ["--input", world.artifacts / "many.jsonl", "--batch-size", "4"]
    kinds: dict[str, tuple[str, Callable[[Path], list[object]], Callable[[Path], Any]]] = {
        "predict": (
            "predict",
            lambda place: [*given, *many, "--output", place / "labels.jsonl"],
            lambda place: (place / "labels.jsonl").read_bytes(),
        ),
        "train": (
            "train",
            lambda place: [*encoder(world), "--workdir", place / "run"],
            lambda place: snapshot(place / "run"),
        ),
        "evaluate": (
            "evaluate",
            lambda place: [*given, "--output", place / "evaluation"],
            lambda place: (place / "evaluation/predictions.jsonl").read_bytes(),
        ),
        "curve": (
            "curve",
            lambda place: [
                *encoder(world),
                "--config.train.steps=4",
                *("--sizes", "8,all", "--seeds", "1", "--workdir"),
                place / "curve",
            ],
            lambda place: snapshot(place / "curve"),
        ),
    }
    for name in ["predict"] if world.short else kinds:
        module, words, content = kinds[name]
        alone = folder / f"alone-{name}"
        alone.mkdir()
        world.commands.run(f"jaxclf.{module}", words(alone), folder / "alone.log")
        expected = content(alone)
        for number in range(world.few(3, 1)):
            place = folder / f"two-{name}-{number}"
            place.mkdir()
            logs = [folder / f"two-{name}-{number}-{each}.log" for each in "ab"]
            pair = []
            for log in logs:
                pair.append(world.commands.start(f"jaxclf.{module}", words(place), log))
                time.sleep(0.4 * number)
            codes = [each.wait(150) for each in pair]
            verdict = "told" if sorted(codes) in ([0, 2], [0, 0]) else "wrong code"
            if any(each.hung for each in pair):
                verdict = "hung"
            elif any(each.traceback for each in pair):
                verdict = "traceback"
            elif 0 in codes and content(place) != expected:
                verdict = "silent"
                if isinstance(expected, dict):
                    codes.append("; ".join(differences(expected, content(place))[:3]))
            yield Result("peers", f"two at once: {name} {number + 1}", verdict, f"codes {codes}")
