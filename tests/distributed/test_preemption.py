"""SIGTERM, where the process may take it and where it may not."""

import signal
import threading

from jaxclf.distributed.preemption import Interrupts


def test_outside_the_main_thread_sigterm_is_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def train():
        with Interrupts() as interrupts:
            seen.append((signal.getsignal(signal.SIGTERM), interrupts.reached(1)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_within_the_block_sigterm_is_taken_and_then_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.hold()
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.reached(1)
    assert signal.getsignal(signal.SIGTERM) == before
