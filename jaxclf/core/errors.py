"""What can go wrong, and the exit code each kind ends a command with."""

import sys
from collections.abc import Callable
from typing import NoReturn


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
    """Training met a loss or gradient that is not finite."""

    exit_code = 5


class Preempted(JaxclfError):  # noqa: N818 - a request that was met, not an error
    """The process was asked to stop; the state was saved first."""

    exit_code = 75


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run an entry point on the command line's arguments and exit with its code.

    Errors a user can act on end as one line on standard error; anything else is a defect of
    ours and keeps its traceback.
    """
    try:
        main(sys.argv[1:])
    except JaxclfError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(StorageError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
