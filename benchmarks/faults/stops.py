"""SIGTERM and Ctrl-C at random times, on a loaded machine: saved within seconds, and resumed."""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.faults.kills import ENSEMBLE
from benchmarks.faults.world import TRAIN, Result, World, differences, encoder, snapshot
from jaxclf.core import workers

WITHIN = 10.0  # seconds from the signal to the end


def run(world: World) -> Iterator[Result]:
    kinds = {
        "train": (TRAIN, 26, 4),
        "LoRA": ([*TRAIN, "--config.tune=lora"], 14, 2),
        "encoder": (encoder(world), 14, 2),
        "ensemble": (ENSEMBLE, 6, 0),
    }
    if world.short:
        kinds = {"encoder": (encoder(world), 2, 1)}
    for name, (words, terms, interrupts) in kinds.items():
        if f"stops {name}" in world.finished:
            continue
        folder, rng = world.folder(f"stops-{name}"), world.random(f"stops {name}")
        arguments = [*words, "--workdir", folder / "whole"]
        begun = time.monotonic()
        world.commands.run("jaxclf.train", arguments, folder / "whole.log")
        seconds = time.monotonic() - begun
        expected = snapshot(folder / "whole")
        for number in range(terms + interrupts):
            sent = signal.SIGTERM if number < terms else signal.SIGINT
            workdir, log = folder / str(number), folder / f"{number}.log"
            arguments = [*words, "--workdir", workdir]
            with _load(2):
                command = world.commands.start("jaxclf.train", arguments, log)
                time.sleep(rng.uniform(0.15, 0.95) * seconds)
                asked = time.monotonic()
                command.send(sent)
                command.wait(60)
                took = time.monotonic() - asked
            seen = f"code {command.code} after {took:.1f} s"
            verdict = "told" if command.code in (0, 75, 130) else "wrong code"
            if command.hung or took > WITHIN:
                verdict = "hung"
            elif command.traceback:
                verdict = "traceback"
            again = world.commands.run("jaxclf.train", arguments, folder / f"{number}-2.log")
            different = differences(expected, snapshot(workdir))
            if again.code or different:
                verdict = "silent" if not again.code else "lost"
                seen += f"; resumed {again.code}: {'; '.join(different[:4])}"
            yield Result("stops", f"{name}: {sent.name} {number + 1}", verdict, seen)
        yield Result(f"stops {name}", "finished", "harmless")


@contextmanager
def _load(count: int) -> Iterator[None]:
    """That many processes that compute without end."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def _spin() -> None:
    workers.end_with_parent()
    while True:
        pass
