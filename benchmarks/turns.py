"""Arms of a comparison that take turns, each in a process of its own.

What else the machine does meets all of them alike, and no idle threads of one library wait in the
way of another.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# A function of batches that returns the examples it went through, and endless batches.
Arm = tuple[Callable[[Iterator[Any]], int], Iterator[Any]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every comparison; `description` is the text of --help."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of each arm in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=40, help="steps of each arm before")
    parser.add_argument(
        "--apart",
        action="store_true",
        help="one arm after the other, where they do not fit the memory together",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run the batches of a round once before it: where steps are slow and shapes many",
    )
    parser.add_argument("--output", type=Path, help="JSON with every measured value")
    return parser


def measure(arms: Mapping[str, Callable[[], Arm]], options: argparse.Namespace) -> dict[str, float]:
    """Examples per second of every arm, the median over rounds; printed, and kept on request.

    `arms`: for each name a function that a new process can unpickle and call.
    """
    speeds: dict[str, list[float]] = {}
    for together in [[name] for name in arms] if options.apart else [list(arms)]:
        speeds |= _rounds({name: arms[name] for name in together}, options)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, value in medians.items():
        low, high = min(speeds[name]), max(speeds[name])
        print(
            f"{name:24} {value:7.2f} examples/s   ({low:.2f} to {high:.2f} in "
            f"{options.rounds} rounds)"
        )
    if options.output:
        options.output.write_text(
            json.dumps({"examples_per_second": speeds}, indent=1) + "\n", "utf-8"
        )
    return medians


def _rounds(
    arms: Mapping[str, Callable[[], Arm]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Examples per second of every round of arms that take turns."""
    context = multiprocessing.get_context("spawn")
    connections = {}
    for name, make in arms.items():
        here, there = context.Pipe()
        arguments = (make, options.warmup, options.steps, options.rehearse, there)
        context.Process(target=_work, args=arguments, daemon=True).start()
        there.close()  # so that a process that dies is met by EOFError, not waited for
        here.recv()  # one prepares at a time
        connections[name] = here
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        for name, connection in connections.items():
            connection.send(True)
            speeds[name].append(connection.recv())
    for connection in connections.values():
        connection.send(False)
    return speeds


def _work(
    make: Callable[[], Arm], warmup: int, steps: int, rehearse: bool, connection: Connection
) -> None:
    """One arm's process: a round for each message, answered by examples per second."""
    run, batches = make()
    run(itertools.islice(batches, warmup))  # every shape compiled, every buffer allocated
    connection.send(None)
    while connection.recv():
        chosen = itertools.islice(batches, steps)
        if rehearse:
            rehearsed = list(chosen)
            run(iter(rehearsed))
            chosen = iter(rehearsed)
        start = time.perf_counter()
        count = run(chosen)
        connection.send(count / (time.perf_counter() - start))
