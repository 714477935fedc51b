"""Memory that the C library hands out: kept by the process instead of returned at every step."""

import ctypes
import sys

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let large blocks that are freed be used again without a page fault for each of their pages.

    XLA's CPU backend allocates a step's buffers anew in every step. By default glibc maps blocks
    of that size and unmaps them when they are freed, and the kernel then zeroes every page again:
    a fifth of a small model's step. The process keeps the most it ever needed. To be called before
    JAX starts its threads. True where it was done, False on systems without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {
        _M_MMAP_MAX: 0,
        _M_TRIM_THRESHOLD: 2**31 - 1,
        _M_TOP_PAD: 2**26,
        _M_ARENA_MAX: 1,  # other arenas are too small for such blocks
    }
    return all(mallopt(name, value) == 1 for name, value in settings.items())
