"""What all parts of the campaign share: artifacts to damage, verdicts, and what must not differ."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import Command, Commands

# What a case comes to. Those in FAULTS are defects of ours.
FINE = ("same", "told", "harmless")
FAULTS = ("silent", "lost", "hung", "traceback", "wrong code", "left behind")


@dataclasses.dataclass(frozen=True)
class Result:
    """One case, or `count` of them: part and name, the verdict, and what was seen."""

    part: str
    case: str
    verdict: str
    seen: str = ""
    count: int = 1


@dataclasses.dataclass
class World:
    """Where the campaign works: a scratch folder, the commands, and the artifacts in it."""

    scratch: Path
    commands: Commands
    seed: int
    short: bool
    finished: set[str] = dataclasses.field(default_factory=set)  # parts, and kinds of their cases

    @property
    def artifacts(self) -> Path:
        return self.scratch / "artifacts"

    def random(self, part: str) -> random.Random:
        return random.Random(f"{self.seed} {part}")

    def folder(self, part: str) -> Path:
        """An empty folder of this part."""
        found = self.scratch / part
        shutil.rmtree(found, ignore_errors=True)
        found.mkdir(parents=True)
        return found

    def few(self, count: int, short: int) -> int:
        return short if self.short else count


Part = Callable[[World], Iterator[Result]]

# The quickstart in a few seconds, with evaluations and checkpoints in between.
TRAIN = [
    "--config",
    "configs/quickstart.py:smoke",
    "--config.train.steps=12",
    "--config.train.save_steps=3",
    "--config.train.logging_steps=1",
    "--config.train.eval_steps=6",
    "--config.data.limit=16",
    "--config.train.keep=2",
    "--config.eval.max_new_tokens=8",
]
SCORED = [
    "--config",
    "configs/quickstart.py:smoke,task=intent",
    "--config.train.steps=4",
    "--config.train.save_steps=2",
    "--config.data.limit=16",
    "--config.eval.max_new_tokens=8",
    "--config.eval.decoding=score",
]
ENCODER = [
    "--config",
    "configs/my_task.py:smoke",
    "--config.model.name=encoder_smoke",
    "--config.eval.decoding=free",
    "--config.train.max_length=32",
    "--config.train.steps=12",
    "--config.train.save_steps=3",
    "--config.train.eval_steps=3",
    "--config.train.logging_steps=1",
    "--config.train.batch_size=4",
    "--config.data.limit=0",
]
PROMPTED = [
    "--config",
    "configs/quickstart.py:no_tuning,smoke,task=intent",
    "--config.prompt.template=listing",
    "--config.api.model=m",
    "--config.model.name=llama_smoke",
    "--config.data.limit=16",
]


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Texts of four classes that a small encoder can learn."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        label = rng.choice(("alpha", "beta", "gamma", "delta"))
        words = [rng.choice(("red", "blue", "sun", "moon", "tree")) for _ in range(4)]
        lines.append(json.dumps({"text": " ".join([*words, label]), "label": label}))
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def encoder(world: World) -> list[str]:
    """The arguments of a small encoder's training on records of the world's own."""
    rows = world.scratch / "rows"
    if not rows.is_dir():
        rows.mkdir()
        for seed, (split, count) in enumerate({"train": 40, "dev": 24, "test": 24}.items()):
            write_rows(rows / f"{split}.jsonl", count, seed)
    splits = (f"--config.data.{split}={rows / split}.jsonl" for split in ("train", "dev", "test"))
    return [*ENCODER, *splits]


def failed(command: Command, expected: tuple[int, ...] = (2, 3, 4, 5, 75)) -> str:
    """The verdict on a command that should have ended with an error."""
    if command.hung:
        return "hung"
    if command.traceback or (command.code or 0) < 0:
        return "traceback"
    return "told" if command.code in expected else "wrong code"


# What a run that was disturbed must not differ in -------------------------------------------------

_MEASURED = {
    *("seconds", "scoring_seconds", "texts_per_second", "peak_bytes", "steps_by_this_process"),
    "examples_per_second",
    "tokens_per_second",
    "examples_seen_by_this_process",
    "tokens_computed_by_this_process",
    "tokens_saved_by_shared_prefixes",
    "compiled_shapes",
    *("requests", "retries"),  # of this command alone
}
# What is sealed is compared itself; digests of configs differ with the paths in these.
_PASSED_OVER = (".html", ".log", "log.txt", ".lock", ".svg", "seal.json")


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of all that an undisturbed command leaves, by the path below the folder.

    Pages, logs and TensorBoard's events are left out, and of reports what a clock measured. The
    folder's own path counts as the same wherever it is.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.endswith(_PASSED_OVER) or "tensorboard/" in name:
            continue
        # Of checkpoints what we write, and the values of arrays: orbax writes times beside these.
        is_ours = path.name == "meta.json" or "/c/" in name
        if any(part in name for part in ("checkpoints/", "params/")) and not is_ours:
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = content.replace(os.fsencode(folder), b"FOLDER")
        if path.name == "answers.jsonl":  # in the order in which a server happened to answer
            content = b"".join(sorted(content.splitlines(keepends=True)))
        if path.name in ("report.json", "curve.json", "results.json"):
            content = json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_times(item)
            for name, item in value.items()
            if name not in _MEASURED and name != "seal"
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [
        f"{'missing' if name not in other else 'extra' if name not in one else 'differs'}: {name}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]
