"""How much memory this process can still take, and how much it took."""

import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # of a container, as it sees itself


def free_bytes() -> int | None:
    """Bytes that can be allocated without swapping, of the machine or the container; None: unknown.

    Linux tells; elsewhere nothing is known.
    """
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text("utf-8").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int((_CGROUP / "memory.max").read_text("utf-8"))  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text("utf-8"))
        stat = dict(
            line.split() for line in (_CGROUP / "memory.stat").read_text("utf-8").splitlines()
        )
        cached = int(stat.get("inactive_file", 0))  # the kernel drops it when it needs room
    except (OSError, ValueError):
        return free
    return min(free, max(0, limit - used + cached))


def peak_bytes() -> int | None:
    """The most resident bytes that this process ever had; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
