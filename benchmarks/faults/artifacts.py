"""The artifacts that are damaged: runs, an export, a converted model, texts and stored answers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.faults import flips
from benchmarks.faults.commands import REPOSITORY
from benchmarks.faults.world import PROMPTED, SCORED, World

_TEXTS = ("wake me at five", "play some jazz", "what is the weather", "turn off the lights")


def build(world: World) -> None:
    """Make what is missing; raises RuntimeError where a command fails."""
    folder = world.artifacts
    folder.mkdir(exist_ok=True)
    _write_texts(folder / "texts.jsonl", list(_TEXTS))
    _write_texts(
        folder / "many.jsonl", [f"wake me at {i} and play song {i % 7}" for i in range(400)]
    )
    url = (folder / "url").read_text("utf-8")
    for name, module, words in (
        ("scored", "jaxclf.train", [*SCORED, "--workdir", folder / "scored"]),
        ("lora", "jaxclf.train", [*SCORED, "--config.tune=lora", "--workdir", folder / "lora"]),
        ("hf", "jaxclf.convert.to_hf", [folder / "scored", folder / "hf"]),
        ("converted", "jaxclf.convert.from_hf", [folder / "hf", folder / "converted"]),
        (
            "asked",
            "jaxclf.prompt",
            [*PROMPTED, f"--config.api.base_url={url}", "--workdir", folder / "asked"],
        ),
    ):
        if (folder / name).exists():
            continue
        command = world.commands.run(module, words, world.scratch / f"{name}.log")
        if command.code:
            raise RuntimeError(f"{module} ended with {command.code}: {command.text[-2000:]}")
    if not (folder / "partial").exists():
        flips.write_partial(world)


def _write_texts(path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@contextmanager
def chat_server(world: World) -> Iterator[None]:
    """A server that answers questions, at the address in artifacts/url."""
    world.artifacts.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chat_server"],
        cwd=REPOSITORY,
        env=world.commands.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout
            url = server.stdout.readline().strip()
            (world.artifacts / "url").write_text(url, "utf-8")
            yield
        finally:
            server.terminate()
