"""A flipped bit, an emptied, a halved or a lost file, in every kind of artifact.

Each command either gives what it gave before, or says which file is not as it was (exit code 3).
"""

import contextlib
import io
import json
import random
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.world import PROMPTED, SCORED, Result, World

SECONDS = 90  # after which a command counts as hung

Outcome = tuple[Any, str, bytes | None]
"""Exit code, or what else it came to; what was said; what was written."""


class _Slow(BaseException):
    pass


def _alarm(*_: object) -> None:
    raise _Slow


def call(main: Callable[[list[str]], None], arguments: list[object]) -> tuple[Any, str]:
    """A command within this process: its exit code, or "hung" or "traceback", and its error."""
    from jaxclf.core import errors

    said = io.StringIO()
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            main([str(each) for each in arguments])
        return 0, ""
    except errors.JaxclfError as error:
        return error.exit_code, str(error)
    except OSError as error:
        return 4, f"OSError {error}"
    except SystemExit as error:
        return error.code or 0, said.getvalue()[-200:]
    except _Slow:
        return "hung", ""
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "traceback",
            f"{type(error).__name__}: {str(error)[:150]} at {place.filename}:{place.lineno}",
        )
    finally:
        signal.alarm(0)


class _Actions:
    """What is done with an artifact; each gives an outcome."""

    def __init__(self, world: World):
        self.world, self.folder = world, world.folder("flips")
        self.number = 0

    def _output(self, name: str) -> Path:
        self.number += 1
        found = self.folder / f"{self.number}-{name}"
        shutil.rmtree(found, ignore_errors=True)
        return found

    def predict(self, artifact: Path) -> Outcome:
        import jaxclf.predict

        output, texts = self._output("labels.jsonl"), self.world.artifacts / "texts.jsonl"
        words = ["--checkpoint", artifact, "--input", texts, "--output", output]
        return (*call(jaxclf.predict.main, words), _content(output))

    def resume_predict(self, artifact: Path) -> Outcome:
        import jaxclf.predict

        words = ["--checkpoint", self.world.artifacts / "scored"]
        words += ["--input", self.world.artifacts / "many.jsonl", "--batch-size", "4"]
        output = artifact / "labels.jsonl"
        return (*call(jaxclf.predict.main, [*words, "--output", output]), _content(output))

    def evaluate(self, artifact: Path) -> Outcome:
        import jaxclf.evaluate

        output = self._output("evaluation")
        found = call(jaxclf.evaluate.main, ["--checkpoint", artifact, "--output", output])
        return (*found, _content(output / "predictions.jsonl"))

    def compare(self, artifact: Path) -> Outcome:
        import jaxclf.compare

        output, other = self._output("comparison"), self.world.artifacts / "lora"
        words = [artifact, other, "--output", output, "--samples", "50"]
        return (*call(jaxclf.compare.main, words), _content(output / "comparison.json"))

    def resume(self, artifact: Path) -> Outcome:
        import jaxclf.train

        found = call(jaxclf.train.main, [*SCORED, "--workdir", artifact])
        return (*found, _content(artifact / "predictions.jsonl"))

    def ask_again(self, artifact: Path) -> Outcome:
        import jaxclf.prompt

        url = (self.world.artifacts / "url").read_text("utf-8")
        words = [*PROMPTED, f"--config.api.base_url={url}", "--config.api.retries=0"]
        found = call(jaxclf.prompt.main, [*words, "--workdir", artifact])
        return (*found, _content(artifact / "predictions.jsonl"))

    def from_hf(self, artifact: Path) -> Outcome:
        from jaxclf.convert import from_hf

        output = self._output("converted")
        return (*call(from_hf.main, [artifact, output]), _contents(output))

    def to_hf(self, artifact: Path) -> Outcome:
        from jaxclf.convert import to_hf

        output = self._output("exported")
        return (*call(to_hf.main, [artifact, output]), _contents(output))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _contents(folder: Path) -> bytes | None:
    if not folder.is_dir():
        return None
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# Kind → the artifact's folder, the files there, what is then done, and how many bits are flipped.
KINDS: dict[str, tuple[str, str, str, int]] = {
    "arrays of a checkpoint": ("scored", "checkpoints/*/params/*/c/**/*", "predict", 60),
    "zarr.json": ("scored", "checkpoints/*/params/*/zarr.json", "predict", 40),
    "meta.json of a checkpoint": ("scored", "checkpoints/*/meta/meta.json", "predict", 60),
    "orbax's list of leaves": ("scored", "checkpoints/*/params/_METADATA", "predict", 30),
    "optimizer state": ("scored", "checkpoints/4/state/*/c/**/*", "resume", 20),
    "config.json": ("scored", "config.json", "predict", 70),
    "task.json": ("scored", "task.json", "predict", 70),
    "model.json": ("scored", "model.json", "predict", 60),
    "seal.json": ("scored", "seal.json", "predict", 60),
    "data.json": ("scored", "data.json", "predict", 20),
    "tokenizer": ("scored", "tokenizer/*", "predict", 80),
    "temperature.json": ("scored", "temperature.json", "predict", 50),
    "config.json, resumed": ("scored", "config.json", "resume", 20),
    "task.json, resumed": ("scored", "task.json", "resume", 20),
    "adapters.json": ("lora", "adapters.json", "predict", 60),
    "arrays of the adapters' base": ("lora", "base/params/*/c/**/*", "predict", 30),
    "the base's other files": ("lora", "base/*.json", "predict", 50),
    "predictions.jsonl": ("scored", "predictions.jsonl", "compare", 40),
    "report.json": ("scored", "report.json", "compare", 50),
    "report.json, evaluated": ("scored", "report.json", "evaluate", 10),
    "answers.jsonl": ("asked", "answers.jsonl", "ask_again", 60),
    "predict's partial file": ("partial", "labels.jsonl.partial", "resume_predict", 40),
    "arrays of a converted model": ("converted", "params/*/c/**/*", "to_hf", 30),
    "other files of a converted model": ("converted", "*.json", "to_hf", 60),
    "tokenizer of a converted model": ("converted", "tokenizer/*", "to_hf", 40),
}


def run(world: World) -> Iterator[Result]:
    import jax

    actions, rng = _Actions(world), world.random("flips")
    kinds = KINDS
    if world.short:
        kinds = {name: KINDS[name] for name in ("task.json", "temperature.json", "tokenizer")}
    for kind, (name, pattern, action, flips) in kinds.items():
        source, work = world.artifacts / name, actions.folder / name
        _copy(source, work)
        act = getattr(actions, action)
        code, said, expected = act(work)
        if code != 0:
            yield Result("flips", f"{kind}: untouched", "wrong code", f"{code}: {said}")
            continue
        _copy(source, work)
        changes = ["flip"] * world.few(flips, 4) + ["empty", "half", "delete"]
        for number, change in enumerate(changes):
            files = [path for path in sorted(work.glob(pattern)) if path.is_file()]
            path = rng.choice(files)
            note = _damage(path, change, rng)
            code, said, found = act(work)
            _copy(source, work)
            case = f"{kind}: {number + 1}, {change} {path.relative_to(work)} {note}"
            yield Result("flips", case, _verdict(code, found == expected), f"{code}: {said[:200]}")
        jax.clear_caches()


def _verdict(code: Any, same: bool) -> str:
    if code == 0:
        return "harmless" if same else "silent"
    if isinstance(code, str):
        return code
    return "told" if code in (2, 3) else "wrong code"


def _copy(source: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)


def _damage(path: Path, change: str, rng: random.Random) -> str:
    content = path.read_bytes()
    if change == "delete":
        path.unlink()
    elif change == "empty" or not content:
        path.write_bytes(b"")
    elif change == "half":
        path.write_bytes(content[: len(content) // 2])
    else:
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        altered = bytearray(content)
        altered[place] ^= 1 << bit
        path.write_bytes(altered)
        return f"byte {place} bit {bit}"
    return ""


def write_partial(world: World) -> None:
    """What a predict that was killed half-way leaves, as an artifact."""
    folder = world.artifacts / "partial"
    folder.mkdir()
    words = ["--checkpoint", world.artifacts / "scored", "--batch-size", "4"]
    words += ["--input", world.artifacts / "many.jsonl", "--output", folder / "labels.jsonl"]
    log = world.scratch / "partial.log"
    command = world.commands.start("jaxclf.predict", words, log)
    partial = folder / "labels.jsonl.partial"
    while command.poll() is None and not (partial.exists() and _lines(partial) > 60):
        pass
    command.send(signal.SIGKILL)
    command.wait()
    for other in folder.iterdir():  # such as a lock
        if other != partial:
            other.unlink()
    assert _lines(partial) > 1, json.dumps(command.last_words())


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
