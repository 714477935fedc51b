"""Answers that were paid for, on disk before they are used, so that none is asked for twice.

    with Ledger(workdir / "answers.jsonl") as ledger:
        key = fingerprint(model="m", messages=[…], temperature=0)
        if key not in ledger:
            ledger.add(key, Answer("alarm_set", "stop", 312, 4))
        ledger[key].text

One line an answer, added and never changed, with a checksum. What a kill leaves of a line is cut
off when the file is opened again.
"""

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxclf.core import files, locks, logs
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.remote.label_logprobs import Place

MOST_TOKENS = 2**53  # of one answer, above all there is


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server said.

    finish: why it ended there ("stop", "length", …). The tokens are counted by the server, 0 where
    it says nothing. model: the version that answered, by its own word. top: the likeliest tokens at
    each place, where they were asked for and it gives them.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    model: str = ""
    top: tuple[Place, ...] = ()

    def check(self) -> None:
        """Raise ValueError where a field is of another type than it should be."""
        for name in ("text", "finish", "model"):
            if type(getattr(self, name)) is not str:
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}; expected text")
        for name in ("prompt_tokens", "completion_tokens"):
            count = getattr(self, name)
            if type(count) is not int or not 0 <= count <= MOST_TOKENS:
                raise ValueError(f"{name} is {count!r:.80}; expected a number of tokens")
        for place in self.top:
            for token, log_p in place:
                if type(token) is not str or type(log_p) not in (int, float) or not log_p <= 0:
                    raise ValueError(f"top holds {token!r:.80}, {log_p!r:.80}; expected log p")


def fingerprint(**asked: Any) -> str:
    """A name for what was asked: the same for the same model, messages and settings."""
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """The answers of a file, by `fingerprint`; threads may add at once, processes may not.

    Raises InputError where another process has the file open, ArtifactError where a line is none
    of ours; `add` raises OSError, and leaves no half line behind.
    """

    def __init__(self, path: Path):
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Ledger":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def _read(self) -> None:
        if not locks.take(self._file, self.path):  # until the file is closed
            raise InputError(
                f"{self.path} is in use by another process; wait for it or give another --workdir"
            )
        self._file.seek(0)
        content = self._file.readall()
        self._size = content.rfind(b"\n") + 1
        if self._size < len(content):
            logs.say(
                f"{self.path}: the last line is not whole, as a killed process leaves it; it was "
                "cut off, and its answer is asked for again"
            )
            self._file.truncate(self._size)
        for number, line in enumerate(content[: self._size].split(b"\n")[:-1], 1):
            try:
                key, answer = _parse(line)
            except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                raise ArtifactError(
                    f"{self.path}:{number}: not an answer of ours ({_reason(error)}). Restore the "
                    "file from a copy, or remove the line to ask for its answer again"
                ) from error
            self._answers[key] = answer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._answers and not self._size:  # the file was only looked into
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __iter__(self) -> Iterator[Answer]:
        """All answers of the file."""
        with self._lock:
            return iter([*self._answers.values()])

    def add(self, key: str, answer: Answer) -> None:
        """Return when the answer is on disk."""
        row = {"key": key} | dataclasses.asdict(answer)
        if not answer.top:  # as in files from before there were any
            del row["top"]
        line = json.dumps(row | {"checksum": _checksum(row)}).encode() + b"\n"
        with self._lock:
            try:
                left = line
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(self._size)
                raise
            self._size += len(line)
            self._answers[key] = answer


def _parse(line: bytes) -> tuple[str, Answer]:
    """The key and the answer of a line; raises whatever its content comes to."""
    fields = json.loads(line)
    if fields.pop("checksum") != _checksum(fields):
        raise ValueError("its checksum differs")
    key = fields.pop("key")
    answer = Answer(**files.tuples(fields))
    answer.check()
    return key, answer


def _checksum(row: Mapping[str, Any]) -> str:
    """Of the fields, in any order; not against intent, but against damage."""
    return fingerprint(**row)[:16]


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
