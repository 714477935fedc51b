"""Disks that are full, become read-only or vanish: exit code 4, and with room the same results.

Needs the right to mount a tmpfs; without it the part says so and ends.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.world import TRAIN, Result, World, differences, failed, snapshot


def run(world: World) -> Iterator[Result]:
    folder = world.folder("disks")
    if not _may_mount(folder):
        yield Result("disks", "mount", "told", "no right to mount a tmpfs here: nothing was tried")
        return
    commands = world.commands
    whole = folder / "whole"
    commands.run("jaxclf.train", [*TRAIN, "--workdir", whole], folder / "whole.log")
    expected = snapshot(whole)
    used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    # From nearly nothing to a little more than a run takes.
    levels = world.few(20, 2)
    for number in range(levels):
        size = max(16, int(used * 1.3 * (number + 0.3) / levels))
        case = f"train on {size} KiB of about {used}"
        with _disk(folder / "disk", size) as disk:
            arguments = [*TRAIN, "--workdir", disk / "run"]
            command = commands.run("jaxclf.train", arguments, folder / f"{size}.log", seconds=120)
            verdict = "same" if command.code == 0 else failed(command, (4,))
            seen = f"code {command.code}: {command.last_words(160)}"
            _remount(disk, f"size={used * 8}k")
            again = commands.run("jaxclf.train", arguments, folder / f"{size}-2.log")
            different = differences(expected, snapshot(disk / "run"))
            if again.code or different:
                verdict = "lost" if again.code else "silent"
                seen += f"; with room {again.code}: {again.last_words(160)} {different[:4]}"
        yield Result("disks", case, verdict, seen)
    yield from _events(world, folder, expected)
    if not world.short:
        yield from _filled(world, folder)
        yield from _read_only(world, folder)
        yield from _deleted(world, folder, expected)


def _events(world: World, folder: Path, expected: dict[str, str]) -> Iterator[Result]:
    """The file of TensorBoard's events alone has no room."""
    workdir = folder / "events"
    with _disk(workdir / "tensorboard", 4):
        command = world.commands.run(
            "jaxclf.train", [*TRAIN, "--workdir", workdir], folder / "events.log", seconds=120
        )
        verdict = "same" if command.code == 0 else failed(command, (4,))
        if command.code == 0 and differences(expected, snapshot(workdir)):
            verdict = "silent"
        yield Result("disks", "no room for events", verdict, f"code {command.code}")


def _filled(world: World, folder: Path) -> Iterator[Result]:
    """A disk that somebody else fills while a run goes on."""
    with _disk(folder / "filled", 40_000) as disk:
        words = [*TRAIN, "--config.train.steps=4000", "--config.train.eval_steps=0"]
        log = folder / "filled.log"
        command = world.commands.start("jaxclf.train", [*words, "--workdir", disk / "run"], log)
        while not (disk / "run/metrics.jsonl").exists() and command.poll() is None:
            time.sleep(0.1)
        time.sleep(2)
        try:
            with (disk / "filling").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        except OSError:
            pass
        command.wait(120)
        seen = f"code {command.code}: {command.last_words(200)}"
        yield Result("disks", "filled by another", failed(command, (4,)), seen)


def _read_only(world: World, folder: Path) -> Iterator[Result]:
    artifacts, texts = world.artifacts, world.artifacts / "texts.jsonl"
    with _disk(folder / "read-only", 60_000) as disk:
        shutil.copytree(artifacts / "scored", disk / "scored")
        _remount(disk, "ro")
        labels = folder / "labels.jsonl"
        given = ["--checkpoint", artifacts / "scored"]
        cases = {
            "train into it": ("train", [*TRAIN, "--workdir", disk / "new"], (4,)),
            "predict into it": (
                "predict",
                [*given, "--input", texts, "--output", disk / "labels.jsonl"],
                (4,),
            ),
            "evaluate into it": ("evaluate", [*given, "--output", disk / "evaluation"], (4,)),
            "predict from it": (
                "predict",
                ["--checkpoint", disk / "scored", "--input", texts, "--output", labels],
                (0,),
            ),
            "export from it": (
                "convert.to_hf",
                [disk / "scored", folder / "exported"],
                (0,),
            ),
        }
        for case, (module, words, codes) in cases.items():
            command = world.commands.run(f"jaxclf.{module}", words, folder / "read-only.log")
            seen = f"code {command.code}: {command.last_words(160)}"
            yield Result("disks", f"read-only: {case}", failed(command, codes), seen)
        _remount(disk, "rw")


def _deleted(world: World, folder: Path, expected: dict[str, str]) -> Iterator[Result]:
    """The folder of a run is removed while it goes on."""
    for number in range(3):
        workdir, log = folder / f"deleted{number}", folder / f"deleted{number}.log"
        command = world.commands.start("jaxclf.train", [*TRAIN, "--workdir", workdir], log)
        while not (workdir / "metrics.jsonl").exists() and command.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5 * number)
        shutil.rmtree(workdir, ignore_errors=True)
        command.wait(120)
        verdict = failed(command, (4,))
        if command.code == 0:
            verdict = "same" if not differences(expected, snapshot(workdir)) else "lost"
        seen = f"code {command.code}: {command.last_words(160)}"
        yield Result("disks", f"deleted while it runs {number + 1}", verdict, seen)


@contextmanager
def _disk(folder: Path, kib: int) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k,nr_inodes=100k", "tmpfs", folder]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def _may_mount(folder: Path) -> bool:
    try:
        with _disk(folder / "probe", 16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
