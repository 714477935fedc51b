"""A request to stop (SIGTERM), taken at a point where the work can be saved."""

import signal
import threading
from types import FrameType, TracebackType

import jax

from jaxclf.core.errors import Preempted
from jaxclf.distributed import processes


class Interrupts:
    """Within the block, SIGTERM stops at once while nothing can be lost, else sets `requested`.

    with Interrupts() as interrupts:
        prepare()                       # SIGTERM here raises Preempted
        interrupts.hold()
        while not interrupts.reached(number):
            step()                      # SIGTERM here is seen by the loop, which saves

    One of several processes leaves SIGTERM to JAX, which tells all of them to stop after the same
    step. Outside the main thread SIGTERM is left as it is: Python takes signals there alone.
    """

    def __init__(self):
        self.requested = False
        self._held = False

    def hold(self) -> None:
        """From here on a request only sets the flag."""
        self._held = True

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; to be asked once a step."""
        self.requested = processes.should_stop(step, self.requested)
        return self.requested

    def __enter__(self) -> "Interrupts":
        self._previous = None
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._held:
            raise Preempted("stopped by SIGTERM before the first step; nothing was lost")
