"""Several processes that are one run: they agree on what they do, and end together.

Both by the few keys and values that JAX's coordinator keeps, in the first process.
"""

import contextlib
import json
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the coordinator's keys and values have no public name yet

from jaxclf.core import errors
from jaxclf.core.errors import InputError, Preempted, StorageError
from jaxclf.distributed import processes
from jaxclf.distributed.processes import leave_at_exit

_ENDED, _LEAVES = "jaxclf/ended", "jaxclf/leaves"
_LONGEST_MEETING = 300  # seconds, as JAX waits for all to join


def _place() -> tuple[int, int]:
    """Which process this is, of how many; asking `jax` would start its devices."""
    return distributed.global_state.process_id, distributed.global_state.num_processes


@contextlib.contextmanager
def joined(heartbeat: int = processes.HEARTBEAT_SECONDS) -> Iterator[None]:
    """`processes.join`; what ends one process within the block ends all, with its exit code.

    An error of one would leave the others at the next point where all have to come together.
    Whoever fails first says so; the others look for that, and end whatever they are at.
    """
    processes.join(heartbeat)
    watch = _Watch(heartbeat)
    try:
        yield
    except Preempted:  # of all, after the same step
        watch.stop()
        raise
    except BaseException as error:
        if not _is_of_a_peer(error):
            watch.end(error)
            raise
        lost = StorageError(f"lost another process of this run ({_one_line(error)})")
        watch.end(lost)
        raise lost from None
    watch.stop()


class _Watch:
    """A thread that ends this process when another one of the run has failed."""

    def __init__(self, heartbeat: int):
        self.client: Any = distributed.global_state.client
        self.index, self.count = _place()
        self.pause = min(max(heartbeat / 20, 0.1), 1.0)  # seconds between two looks
        self.patience = heartbeat / 2  # seconds for the others to see it
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watches the others", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def end(self, error: BaseException) -> None:
        """Tell the others; returns when they leave, so that this process may, too.

        Where another one failed before, this is what came of it: it ends as that one did.
        """
        code = errors.code_of(error)
        ended = {"process": self.index, "code": code, "why": _one_line(error)}
        self.stop()
        with contextlib.suppress(RuntimeError):  # another was faster
            self.client.key_value_set(_ENDED, json.dumps(ended))
        first = self._ended() or ended
        if first["process"] != self.index:
            self._follow(first)
        leave_at_exit(code)
        self._part()

    def _look(self) -> None:
        while not self._stopped.wait(self.pause):
            if first := self._ended():
                self._follow(first)

    def _ended(self) -> dict[str, Any] | None:
        """What the first process that failed said, if one did."""
        try:
            return json.loads(self.client.key_value_try_get(_ENDED))
        except RuntimeError:
            return None

    def _follow(self, first: Mapping[str, Any]) -> NoReturn:
        with contextlib.suppress(OSError, ValueError):
            print(
                f"error: process {first['process']} of this run ended: {first['why']}",
                file=sys.__stderr__,
                flush=True,
            )
        self._part()
        os._exit(first["code"])

    def _part(self) -> None:
        """Return when all leave: none is to see the connections of another one break."""
        end = time.monotonic() + self.patience
        with contextlib.suppress(RuntimeError):
            self.client.key_value_set(f"{_LEAVES}/{self.index}", "", allow_overwrite=True)
            while len(self.client.key_value_dir_get(_LEAVES)) < self.count:
                if time.monotonic() > end:
                    break
                time.sleep(self.pause / 2)
        if self.index == 0:  # which keeps these words
            time.sleep(2 * self.pause)


def _is_of_a_peer(error: BaseException) -> bool:
    """Whether an error of JAX says that the connection to another process broke."""
    words = r"gloo|nccl|connection|socket|peer|unavailable|coordination|heartbeat"
    return isinstance(error, jax.errors.JaxRuntimeError) and bool(
        re.search(words, str(error), re.I)
    )


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")


def agree(what: str, values: Mapping[str, Any]) -> None:
    """Raise InputError in all processes where one of these values is not the same in all.

    what: names this meeting; every process has to come to it, within some minutes.
    """
    own, count = _place()
    if count == 1:
        return
    client: Any = distributed.global_state.client
    client.key_value_set(f"jaxclf/{what}/{own}", json.dumps(values))
    found = []
    for index in range(count):
        try:
            text = client.blocking_key_value_get(f"jaxclf/{what}/{index}", 1000 * _LONGEST_MEETING)
        except RuntimeError as error:
            raise StorageError(
                f"process {index} of this run has not told its {what} within {_LONGEST_MEETING:,} s"
            ) from error
        found.append(json.loads(text))
    for index, each in enumerate(found):
        different = [name for name in {**found[0], **each} if found[0].get(name) != each.get(name)]
        if different:
            pairs = (f"{name} {found[0].get(name)!r} and {each.get(name)!r}" for name in different)
            raise InputError(
                f"the processes of this run differ in their {what}: process 0 and process {index} "
                f"have {'; '.join(pairs)}. Start all with the same command on the same data"
            )
