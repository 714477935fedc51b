"""What a run says while it goes: a progress bar or plain lines, metrics.jsonl, TensorBoard events.

with Logger(workdir, total_steps=1000) as log:
    log.advance(10, examples=80, tokens=5200, loss=0.71)
    log.metrics(10, {"train/loss": 0.71, "train/learning_rate": 1e-3})
    log.say("checkpoint saved")
"""

import importlib.util
import json
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat, cast

from jaxclf.core import files

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_SECONDS_BETWEEN_LINES = 5.0
_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)


@contextmanager
def quiet(wanted: bool = True) -> Generator[None]:
    """Within the block, in this thread, nothing is shown; files are written as ever."""
    token = _is_quiet.set(wanted)
    try:
        yield
    finally:
        _is_quiet.reset(token)


def say(text: str) -> None:
    """Print a line, unless it is `quiet`; what the terminal's encoding lacks is escaped."""
    if not _is_quiet.get():
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


class Logger:
    """A run's log, from `resume_step` (0: a fresh start) to `total_steps`; a context manager.

    Lines and events of steps past `resume_step`, which a run that was cut off wrote and this one
    will write again, are dropped. Plain lines stand every `every` steps. Errors of the disk are
    raised as OSError, but for those of events.
    """

    def __init__(
        self, workdir: str | Path, total_steps: int, resume_step: int = 0, every: int = 10
    ):
        from rich.console import Console

        self.workdir, self.total_steps, self.every = Path(workdir), total_steps, every
        self.workdir.mkdir(parents=True, exist_ok=True)
        drop_later(self.workdir / METRICS_FILE, resume_step)
        self._rates = Rates(resume_step)
        self._console = Console(file=sys.stdout)
        self._bar = _make_bar(self._console) if _has_bars(self._console) else None
        self._row = self._bar and self._bar.add_task(
            "", total=total_steps, completed=resume_step, facts=""
        )
        self._events = Events(self.workdir / TENSORBOARD_FOLDER, resume_step, self.say)

    def __enter__(self) -> "Logger":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(
        self, step: int, examples: int = 0, tokens: int = 0, loss: SupportsFloat | None = None
    ) -> None:
        """Show that `step` is done. `examples` and `tokens` since the call before, tokens without
        padding; `loss` in nats per label token."""
        self._rates.add(step, examples, tokens)
        if self._bar and self._row is not None:
            facts = self._rates.describe(self.total_steps, loss)
            self._bar.update(self._row, completed=step, facts=facts)
        elif step % self.every == 0 or step == self.total_steps:
            facts = self._rates.describe(self.total_steps, loss)
            self.say(f"step {step}/{self.total_steps}  {facts}")

    def metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write a line of metrics.jsonl and an event of TensorBoard; not finite is null there."""
        numbers = {name: float(value) for name, value in values.items()}
        line = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row = json.dumps({"step": step, **line}, allow_nan=False)
        # Opened for each line: a bucket mounted as a folder has a file only when it is closed.
        with (self.workdir / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(row + "\n")
        self._events.add(step, numbers)

    def task(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Progress of a part of the run, such as an evaluation of `total` records; see `count`."""
        return count(name, total, bar=self._bar)

    def say(self, text: str) -> None:
        """Print text as it is, above the progress bar where there is one."""
        if self._bar:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)


class Events:
    """A file of TensorBoard events, each on disk when `add` returns.

    TensorBoard's own writers of files do that in a thread, which can hang or die unnoticed.
    metrics.jsonl holds the same numbers, so a failure ends no run: `say` tells of the first one,
    and no event follows it.
    """

    def __init__(self, folder: Path, resume_step: int, say: Callable[[str], None]):
        self._say = say
        self._failed = False
        # By their names TensorBoard knows the files, and in which order to read them.
        self._path = folder / (
            f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        )
        # The start of a session lets TensorBoard forget events of this and later steps.
        start = {"status": "START"}
        self._write(
            {"file_version": "brain.Event:2"}, {"session_log": start, "step": resume_step + 1}
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step."""
        summary = {"value": [{"tag": tag, "simple_value": value} for tag, value in values.items()]}
        self._write({"summary": summary, "step": step})

    def _write(self, *events: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            # Neither has types; messages are made when their module is imported.
            from tensorboard.compat.proto import event_pb2  # pyright: ignore
            from tensorboard.summary.writer import record_writer  # pyright: ignore

            make = cast(Any, event_pb2).Event
            self._path.parent.mkdir(exist_ok=True)
            # Opened each time, as metrics.jsonl is.
            with self._path.open("ab") as file:
                writer = cast(Any, record_writer).RecordWriter(file)
                for event in events:
                    writer.write(make(wall_time=time.time(), **event).SerializeToString())
        except Exception as error:  # of the disk, or of an unfit TensorBoard or protobuf
            self._failed = True
            self._say(
                f"no more TensorBoard events from here on, {self._path} failed: {error}. Training "
                f"goes on; {METRICS_FILE} has all numbers"
            )


@contextmanager
def count(
    name: str, total: int, done: int = 0, bar: Any = None
) -> Generator[Callable[[int], None]]:
    """Progress of `total` things, `done` of them before; the block gets a function to add more.

    A line of the given rich bar, of one of its own on a terminal or in a notebook, or a plain line
    every few seconds.
    """
    from rich.console import Console

    console = Console(file=sys.stdout)
    own = bar is None and _has_bars(console)
    if own:
        bar = _make_bar(console)
        bar.start()
    row = bar.add_task(name, total=total, completed=done, facts=name) if bar else None
    start, told = time.monotonic(), time.monotonic()
    counted = done

    def advance(more: int) -> None:
        nonlocal counted, told
        counted += more
        now = time.monotonic()
        rate = (counted - done) / max(now - start, 1e-9)
        facts = f"{name}  {rate:,.1f} examples/s  {_left((total - counted) / max(rate, 1e-9))} left"
        if bar:
            bar.update(row, completed=counted, facts=facts)
        elif now - told > _SECONDS_BETWEEN_LINES:
            told = now
            say(f"{counted}/{total}  {facts}")

    try:
        yield advance
    finally:
        if own and bar:
            bar.stop()
        elif bar:
            bar.remove_task(row)


class Rates:
    """Speed over the last steps, so that compiling at the start does not count for ever."""

    def __init__(self, resume_step: int, window: int = 50):
        self._start = (resume_step, time.monotonic(), 0, 0)
        self._points: deque[tuple[int, float, int, int]] = deque(maxlen=window)

    def add(self, step: int, examples: int, tokens: int) -> None:
        """Note the time at which `step` was done, with its examples and tokens."""
        _, _, all_examples, all_tokens = self._points[-1] if self._points else self._start
        now = time.monotonic()
        self._points.append((step, now, all_examples + examples, all_tokens + tokens))

    def describe(self, total_steps: int, loss: SupportsFloat | None) -> str:
        """`loss 0.7123  812 examples/s  45,120 tokens/s  0:01:22 left`."""
        # The first point ends the first step, which compiled; before the second there is only it.
        first = self._points[0] if len(self._points) > 1 else self._start
        last = self._points[-1]
        steps, seconds, examples, tokens = (b - a for a, b in zip(first, last, strict=True))
        seconds = max(seconds, 1e-9)
        facts = [] if loss is None else [f"loss {float(loss):.4f}"]
        facts.append(f"{examples / seconds:,.{1 if examples < 10 * seconds else 0}f} examples/s")
        if tokens:
            facts.append(f"{tokens / seconds:,.0f} tokens/s")
        if steps > 0:
            left = (total_steps - last[0]) * seconds / steps
            facts.append(f"{_left(left)} left")
        return "  ".join(facts)


def _left(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none where there is no file."""
    path = Path(workdir) / METRICS_FILE
    return [row for _, row in _lines(path)] if path.exists() else []


def drop_later(path: Path, step: int) -> None:
    """Take the lines of steps past `step`, and a half-written one, out of a metrics file."""
    if not path.exists():
        return
    kept = "".join(line for line, row in _lines(path) if row["step"] <= step)
    if len(kept.encode()) == path.stat().st_size:
        return
    files.write_text(path, kept)


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each whole line with what it says; a line cut by a crash is left out."""
    lines = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and isinstance(row, dict) and isinstance(row.get("step"), int):
                lines.append((line, row))
    return lines


def _has_bars(console: Any) -> bool:
    """Whether a bar can move there: on a terminal, and in a notebook that has widgets."""
    if _is_quiet.get():
        return False
    return console.is_terminal or (
        console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    )


def _make_bar(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[facts]}"), console=console
    )
