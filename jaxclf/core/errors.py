"""What can go wrong, and the exit code each kind ends a command with."""

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


class JaxclfError(Exception):
    """Base of the errors a command reports as one line instead of a traceback."""

    exit_code = 1


class InputError(JaxclfError):
    """The user's config, data or arguments are wrong."""

    exit_code = 2


class ArtifactError(JaxclfError):
    """A checkpoint, cache or converted file is corrupt or belongs to something else."""

    exit_code = 3


class StorageError(JaxclfError):
    """Reading or writing failed."""

    exit_code = 4


class NonFiniteError(JaxclfError):
    """Training met a loss or gradient, or labelling met scores, that are not finite."""

    exit_code = 5


class Preempted(JaxclfError):  # noqa: N818 - a request that was met, not an error
    """The process was asked to stop; the state was saved first."""

    exit_code = 75


def code_of(error: BaseException) -> int:
    """The exit code that a command ends with over an error."""
    if isinstance(error, JaxclfError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, OSError):
        return StorageError.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def stop_at_sigterm() -> None:
    """From here on SIGTERM raises Preempted in the main thread, unless a run handles it itself."""

    def stop(*_: Any) -> NoReturn:
        raise Preempted("stopped by SIGTERM; what was saved is kept. The same command goes on")

    signal.signal(signal.SIGTERM, stop)


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run an entry point on the command line's arguments and exit with its code.

    Errors a user can act on end as one line on standard error; anything else is a defect of
    ours and keeps its traceback.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        stop_at_sigterm()
        atexit.register(_ignore_signals)  # the first of ours, so the last that is called
    if isinstance(sys.stdout, io.TextIOWrapper):  # in a C locale "±" would end the command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(_readable(sys.argv[1:]))
    except (JaxclfError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(code_of(error))
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        _leave(code_of(error))
    except Exception as error:
        traceback.print_exc()
        _leave(code_of(error))
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, lambda *_: None)  # the command has its code
    sys.exit(0)


def _ignore_signals() -> None:
    """The interpreter drops its handlers as it ends: a signal would take the place of the code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _leave(code: int) -> NoReturn:
    """Exit, also where a library's threads would go on for ever after what went wrong."""
    others = {threading.current_thread(), threading.main_thread()}
    if any(not each.daemon for each in threading.enumerate() if each not in others):
        exit_at_once(code)
    sys.exit(code)


def exit_at_once(code: int) -> NoReturn:
    """End the process, whatever threads and exit handlers of libraries would wait for."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _readable(arguments: list[str]) -> list[str]:
    """The arguments, none of which may hold what the locale's encoding has no characters for."""
    for argument in arguments:
        if not argument.isascii() and argument != argument.encode(errors="ignore").decode():
            raise InputError(
                f"{argument!r} is not in the encoding of the locale "
                f"({sys.getfilesystemencoding()}). Set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
            )
    return arguments
