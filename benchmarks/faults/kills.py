"""SIGKILL at random times and at random writes: the same command goes on to the same results."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.commands import Command
from benchmarks.faults.world import (
    PROMPTED,
    SCORED,
    TRAIN,
    Result,
    World,
    differences,
    encoder,
    snapshot,
)

# A command on a folder: its module and arguments.
Kind = Callable[[World, Path], tuple[str, list[object]]]


def _train(words: list[str]) -> Kind:
    return lambda world, folder: ("jaxclf.train", [*words, "--workdir", folder])


def _encoder(world: World, folder: Path) -> tuple[str, list[object]]:
    return "jaxclf.train", [*encoder(world), "--workdir", folder]


def _curve(world: World, folder: Path) -> tuple[str, list[object]]:
    words = [*encoder(world), "--config.train.steps=4"]
    return "jaxclf.curve", [*words, "--sizes", "8,all", "--seeds", "2", "--workdir", folder]


def _reproduce(world: World, folder: Path) -> tuple[str, list[object]]:
    cells = ["--rows", "distilbert-k3", "--columns", "rte"]
    return "jaxclf.reproduce", ["attens_k", "--scale", "smoke", *cells, "--workdir", folder]


def _predict(world: World, folder: Path) -> tuple[str, list[object]]:
    folder.mkdir(exist_ok=True)
    words = ["--checkpoint", world.artifacts / "scored", "--input", world.artifacts / "many.jsonl"]
    output = folder / "labels.jsonl"
    return "jaxclf.predict", [*words, "--output", output, "--batch-size", "4", "--overwrite"]


def _prompt(world: World, folder: Path) -> tuple[str, list[object]]:
    url = (world.artifacts / "url").read_text("utf-8")
    words = [*PROMPTED, f"--config.api.base_url={url}", "--workdir", folder]
    return "jaxclf.prompt", words


ENSEMBLE = ["--config", "configs/attens_minilm.py:smoke,task=rte,k=3", "--config.attens.epochs=2"]

# Name → the command, and how many kills at random times and at random writes a campaign makes.
KINDS: dict[str, tuple[Kind, int, int]] = {
    "train": (_train(TRAIN), 36, 24),
    "train, scored": (_train(SCORED), 18, 12),
    "LoRA": (_train([*TRAIN, "--config.tune=lora"]), 30, 20),
    "encoder": (_encoder, 36, 24),
    "ensemble": (_train(ENSEMBLE), 18, 12),
    "curve": (_curve, 12, 12),
    "reproduce": (_reproduce, 12, 6),
    "predict": (_predict, 18, 12),
    "prompt": (_prompt, 10, 10),
}
_IN_A_ROW = 6  # kills before a run is let to its end


def run(world: World) -> Iterator[Result]:
    kinds = {"encoder": KINDS["encoder"]} if world.short else KINDS
    for name, (kind, times, writes) in kinds.items():
        if f"kills {name}" in world.finished:
            continue
        times, writes = world.few(times, 1), world.few(writes, 2)
        yield from _Killed(world, name, kind).cases(times, writes)
        yield Result(f"kills {name}", "finished", "harmless")


class _Killed:
    """The kills of one kind of command."""

    def __init__(self, world: World, name: str, kind: Kind):
        self.world, self.name, self.kind = world, name, kind
        self.folder = world.folder(f"kills-{name.replace(', ', '-')}")
        self.rng = world.random(f"kills {name}")

    def start(self, workdir: Path, **options) -> Command:
        module, arguments = self.kind(self.world, workdir)
        return self.world.commands.start(
            module, arguments, self.folder / f"{workdir.name}.log", **options
        )

    def cases(self, times: int, writes: int) -> Iterator[Result]:
        whole, noted = self.folder / "whole", self.folder / "writes"
        if not self._finish(self.folder / "first"):  # compiles what the others then find
            yield Result("kills", f"{self.name}: undisturbed", "wrong code", "does not end with 0")
            return
        begun = time.monotonic()
        command = self.start(whole, folder=whole, noted=noted)
        command.wait()
        seconds = time.monotonic() - begun
        self.expected = snapshot(whole)
        different = differences(snapshot(self.folder / "first"), self.expected)
        verdict = "silent" if different or command.code else "same"
        yield Result("kills", f"{self.name}: twice undisturbed", verdict, "; ".join(different[:4]))
        yield from self._at_times(times, seconds)
        total = int(noted.read_text("utf-8")) if noted.exists() else 0
        for last in sorted(self.rng.sample(range(1, total + 1), min(writes, total))):
            folder = self.folder / f"write{last}"
            command = self.start(folder, folder=folder, last=last)
            command.wait()
            reached = "" if command.code == -signal.SIGKILL else f"ended with {command.code}; "
            yield self._ended(folder, f"{self.name}: at write {last} of {total}", reached)

    def _at_times(self, kills: int, seconds: float) -> Iterator[Result]:
        number, chain = 0, 0
        while number < kills:
            chain += 1
            folder, done = self.folder / f"chain{chain}", 0
            while done < _IN_A_ROW and number < kills:
                command = self.start(folder)
                time.sleep(self.rng.uniform(0.1, 0.9) * seconds)
                if command.poll() is not None:
                    break
                command.send(signal.SIGKILL)
                command.wait()
                done, number = done + 1, number + 1
            result = self._ended(folder, f"{self.name}: chain {chain}", f"{done} kills; ")
            yield dataclasses.replace(result, count=max(1, done))
            if not done:  # it ended before it was killed: a machine much faster than it was
                seconds *= 0.7

    def _ended(self, folder: Path, case: str, before: str) -> Result:
        """Let the command end, and compare."""
        if not self._finish(folder):
            log = (self.folder / f"{folder.name}.log").read_text("utf-8", errors="replace")
            return Result("kills", case, "lost", before + " ".join(log.split())[-300:])
        different = differences(self.expected, snapshot(folder))
        verdict = "silent" if different else "same"
        return Result("kills", case, verdict, before + "; ".join(different[:4]))

    def _finish(self, folder: Path) -> bool:
        command = self.start(folder)
        command.wait()
        return command.code == 0
