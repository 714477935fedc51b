"""A request to stop (SIGTERM), taken at a point where the work can be saved."""

import signal
from types import FrameType, TracebackType

from jaxclf.errors import Preempted


class Interrupts:
    """Within the block, SIGTERM stops at once while nothing can be lost, else sets `requested`.

    with Interrupts() as interrupts:
        prepare()                       # SIGTERM here raises Preempted
        interrupts.hold()
        while not interrupts.requested:
            step()                      # SIGTERM here is seen by the loop, which saves
    """

    def __init__(self):
        self.requested = False
        self._held = False

    def hold(self) -> None:
        """From here on a request only sets the flag."""
        self._held = True

    def __enter__(self) -> "Interrupts":
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._held:
            raise Preempted("stopped by SIGTERM before the first step; nothing was lost")
