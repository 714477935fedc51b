"""How a command ends."""

import subprocess
import sys

import pytest

ENDING = """
import signal, sys, threading, time
from jaxclf.core import errors
def main(arguments):
    {body}
errors.run(main)
"""
LIBRARY = "threading.Thread(target=time.sleep, args=(600,)).start()"


def end(body: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENDING.format(body=body)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("errors.StorageError('the disk is full')", 4, "error: the disk is full\n"),
        ("OSError(28, 'No space left')", 4, "error: [Errno 28] No space left\n"),
        ("errors.NonFiniteError('step 3')", 5, "error: step 3\n"),
        ("KeyboardInterrupt", 130, "interrupted\n"),
        ("ZeroDivisionError('ours')", 1, "ZeroDivisionError: ours\n"),
    ],
)
def test_an_error_ends_the_process_though_a_librarys_thread_goes_on(error, code, said):
    found = end(f"{LIBRARY}; print('out'); raise {error}")
    assert (found.returncode, found.stdout) == (code, "out\n")
    assert found.stderr.endswith(said)


def test_sigterm_ends_any_command_with_its_code():
    found = end("signal.raise_signal(signal.SIGTERM)")
    assert found.returncode == 75
    assert found.stderr.startswith("error: stopped by SIGTERM")


@pytest.mark.parametrize("body", ["pass", "sys.exit(1)", "raise errors.InputError('wrong')"])
def test_a_signal_after_the_end_changes_no_code(body):
    """In the last moments of the interpreter, which has dropped all handlers of Python's."""
    finalizing = (
        "Last = type('Last', (), {'__del__': lambda _, ask=signal.raise_signal, "
        "numbers=(signal.SIGTERM, signal.SIGINT): [ask(number) for number in numbers]}); "
        "sys.last_of_all = Last()"
    )
    threads = "threading.Timer(0.3, signal.raise_signal, [signal.SIGTERM]).start()"
    expected = end(body)
    for late in (finalizing, threads):
        found = end(f"{late}; {body}")
        assert (found.returncode, found.stderr) == (expected.returncode, expected.stderr)
