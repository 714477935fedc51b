"""Processes that do parts of another one's work, and end when it does."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

_SET_PARENT_DEATH_SIGNAL = 1  # Linux: PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """From here on this process of `multiprocessing` ends at once when its parent does.

    However the parent ends: a worker that lived on would write beside those of the next command.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, name="ends with the parent", daemon=True).start()
    if sys.platform == "linux":
        # The system's own way reaches a process whose threads are all held up in a library, but
        # counts the parent's thread that started this one, which has to live as long as this.
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it ended before that was said
            os._exit(1)
