"""Answers that were paid for, on disk before they are used, so that none is asked for twice.

    with Ledger(workdir / "answers.jsonl") as ledger:
        key = fingerprint(model="m", messages=[…], temperature=0)
        if key not in ledger:
            ledger.add(key, Answer("alarm_set", "stop", 312, 4))
        ledger[key].text

One line an answer, added and never changed. What a kill leaves of a line is cut off when the file
is opened again.
"""

import dataclasses
import hashlib
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxclf.core.errors import ArtifactError, InputError

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server said.

    finish: why it ended there ("stop", "length", …). The tokens are counted by the server, 0 where
    it says nothing. model: the version that answered, by its own word.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    model: str = ""


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
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the file is closed
        except BlockingIOError:
            raise InputError(
                f"{self.path} is in use by another process; wait for it or give another --workdir"
            ) from None
        self._file.seek(0)
        content = self._file.readall()
        self._size = content.rfind(b"\n") + 1
        self._file.truncate(self._size)
        for number, line in enumerate(content[: self._size].splitlines(), 1):
            try:
                fields = json.loads(line)
                key = fields.pop("key")
                self._answers[key] = Answer(**fields)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ArtifactError(
                    f"{self.path}:{number}: not an answer of ours ({error!r}). Restore the file "
                    "from a copy, or remove the line to ask for its answer again"
                ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def add(self, key: str, answer: Answer) -> None:
        """Return when the answer is on disk."""
        row = {"key": key} | dataclasses.asdict(answer)
        line = json.dumps(row).encode() + b"\n"
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
