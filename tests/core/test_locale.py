"""Commands in a locale whose encoding is ASCII."""

import subprocess
import sys

CODE = r"""
import sys
from jaxclf.core import errors, logs
logs.say("\xb1 \xe9")
errors.run(lambda arguments: print("\xb1 \xe9", *arguments))
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
    )


def test_what_the_terminal_lacks_is_escaped():
    done = run("a")
    assert done.stderr == b""
    assert done.stdout == b"\\xb1 \\xe9\n\\xb1 \\xe9 a\n"
    assert done.returncode == 0


def test_an_argument_that_cannot_be_read_is_refused():
    done = run("é".encode())
    assert b"is not in the encoding of the locale (ascii). Set LC_ALL=C.UTF-8" in done.stderr
    assert done.returncode == 2
