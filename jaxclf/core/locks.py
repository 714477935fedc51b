"""One writer at a time: locks that the system drops with the process that holds them.

    with locks.folder(workdir):      # WORKDIR/.lock
        …
    with locks.file(output):         # .OUTPUT.lock beside it

    @locks.holds_folder("workdir")   # as long as the function runs
    def train(config, workdir): …

The lock file names its holder for whoever is refused, and goes with the block. What a killed
process leaves of one is locked by nobody and hinders nobody.
"""

import contextlib
import errno
import functools
import inspect
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from multiprocessing import parent_process
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from jaxclf.core import logs
from jaxclf.core.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None

FOLDER_LOCK = ".lock"

_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_warned = False
_guard = threading.Lock()
_held: dict[Path, int] = {}
"""The thread of this process that holds the lock of a path."""


@contextlib.contextmanager
def folder(path: str | Path) -> Generator[None]:
    """Within the block nobody else writes into this folder, which is made if it is missing.

    A thread may hold it several times, one in the other. Raises InputError where another process
    or thread holds it. A folder made for the block, and left empty by it, is removed again.
    """
    path = Path(path).absolute()
    with _made(path), _owned(path, path / FOLDER_LOCK):
        yield


@contextlib.contextmanager
def file(path: str | Path, patience: float = 0.0) -> Generator[None]:
    """The same for a file, or for a folder that takes its place in one step.

    patience: seconds to wait for another process that holds it.
    """
    path = Path(path).absolute()
    with _made(path.parent), _owned(path, path.with_name(f".{path.name}.lock"), patience):
        yield


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def holds_folder(
    name: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """A decorator: while the function runs, it holds the `folder` that its argument `name` is."""

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def holding(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with folder(signature.bind(*args, **kwargs).arguments[name]):
                return function(*args, **kwargs)

        return holding

    return decorate


@contextlib.contextmanager
def _made(path: Path) -> Generator[None]:
    """Make a folder; what was made and is left empty goes with the block."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    _make(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds something, or is gone
            for each in missing:
                each.rmdir()


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{path} is to be a folder, but {error.filename} is a file; name another"
        ) from error


@contextlib.contextmanager
def _owned(path: Path, lock: Path, patience: float = 0.0) -> Generator[None]:
    # By the real name: two names of a folder are one folder.
    lock = lock.parent.resolve() / lock.name
    with _guard:
        if (holder := _held.get(lock)) is None:
            _held[lock] = threading.get_ident()
    if holder == threading.get_ident():  # further out in this thread
        yield
        return
    if holder is not None:
        raise InputError(f"{path} is being written by another thread of this process")
    try:
        with _locked(path, lock, patience):
            yield
    finally:
        with _guard:
            del _held[lock]


@contextlib.contextmanager
def _locked(path: Path, lock: Path, patience: float) -> Generator[None]:
    end, told = time.monotonic() + patience, False
    with contextlib.ExitStack() as opened:
        while True:
            try:
                handle = opened.enter_context(lock.open("a+", encoding="utf-8"))
            except FileNotFoundError:  # whoever made the folder has just removed it
                _make(lock.parent)
                continue
            taken = take(handle, path)
            # A holder removes its file before it lets go: what was locked may be no file any more.
            if taken and _same(handle, lock):
                break
            opened.pop_all().close()
            if taken:
                continue
            if time.monotonic() >= end:
                raise InputError(f"{path} is being written by {_holder(lock)}")
            if not told:
                told = True
                logs.say(f"waiting for {path}, which is being written by {_holder(lock)}")
            time.sleep(0.2)
        handle.truncate(0)
        handle.write(json.dumps(_self()))
        handle.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def take(handle: IO[Any], path: Path) -> bool:
    """Lock an open file until it is closed; whether nobody else holds it.

    Where the file system of `path` knows no locks a warning says so, once, and all may go on.
    """
    global _warned
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            if isinstance(error, BlockingIOError | PermissionError):
                return False
            raise
        if not _warned:
            _warned = True
            logs.say(
                f"warning: the file system of {path} knows no locks ({error.strerror}); nothing "
                "keeps a second process from writing there at the same time"
            )
    return True


def _same(handle: IO[Any], path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _self() -> dict[str, Any]:
    """What a holder says of itself."""
    parent = parent_process()  # of a worker; else nothing
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv)[:200],
        "parent": parent.pid if parent is not None else None,
    }


def _holder(lock: Path) -> str:
    """Who holds a lock, and what to do about it; ends the sentence `… is being written by`."""
    found = _read(lock)
    if not found:
        return "another process. Wait until it ends, or name another place"
    pid, host = found.get("pid"), found.get("host")
    here = host == socket.gethostname()
    words = f"process {pid}{'' if here else f' on {host}'} since {found.get('since')}"
    parent = found.get("parent")
    if here and isinstance(parent, int) and not _runs(parent):
        return f"{words}, which outlived its parent {parent}. End it: kill {pid}"
    command = f" ({found['command']})" if found.get("command") else ""
    return f"{words}{command}. Wait until it ends, or name another place"


def _read(lock: Path) -> Mapping[str, Any]:
    """What the holder wrote; nothing where it has not come to that within a moment."""
    for _ in range(20):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(lock.read_text("utf-8"))
            if isinstance(found, dict):
                return found
        time.sleep(0.01)
    return {}


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
