"""A request to stop, where it can be taken and where it cannot."""

import signal
import threading

from jaxclf.distributed.preemption import Interrupts


def test_only_the_main_thread_takes_signals():
    """A run in another one, as a server or a scheduler starts it, goes without."""
    before = signal.getsignal(signal.SIGTERM)
    handlers = []

    def run():
        with Interrupts() as interrupts:
            interrupts.hold()
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not interrupts.reached(1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
