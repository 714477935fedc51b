"""The runs of a table, one by one: finished ones are read, others go on, one that fails is noted.

DIR/llama3-8b-zero-shot-tuned-20class-seed0/     a run's own folder, with its log.txt
DIR/attens-bert-base-seed0/adapters/             what the ensembles on one base share
"""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.config import loading
from jaxclf.core import errors, workers
from jaxclf.core.errors import JaxclfError, Preempted
from jaxclf.data import datasets
from jaxclf.tables.definitions import Run

LOG = "log.txt"
_LONGEST = 400  # characters of a reason

Execute = Callable[["TableRun", ConfigDict], None]


@dataclasses.dataclass(frozen=True)
class TableRun:
    """A run of a table with one seed, below `workdir`."""

    run: Run
    seed: int
    workdir: Path
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.workdir / f"{self.run.name}-seed{self.seed}"

    @property
    def shared(self) -> Path:
        """What an ensemble shares with those on the same base."""
        return self.workdir / f"{self.run.group}-seed{self.seed}"

    def load(self) -> ConfigDict:
        """The run's config; raises InputError where there is no such file, variant or field."""
        config = self.load_base()
        if not self.run.group:
            return config
        with config.unlocked():
            config.attens.adapters = config.attens.adapters or str(self.shared / "adapters")
            if not config.model.checkpoint:
                # A base that starts at random has to be the same for all who share its adapters.
                config.model.name, config.model.checkpoint = "", str(self.shared / "base")
        return config

    def load_base(self) -> ConfigDict:
        """The config before it is told what it shares."""
        overrides = (*self.run.overrides, *self.overrides, f"seed={self.seed}")
        return loading.load(str(loading.CONFIGS / self.run.config), overrides)


def finished(job: TableRun) -> dict[str, Any] | None:
    """As `report.finished`; raises InputError as `load`, too."""
    return report.finished(job.load(), job.folder)


def carry_out(
    jobs: Sequence[TableRun],
    execute: Execute,
    workers: int = 1,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> dict[TableRun, str]:
    """Run what is not finished; returns for each job that has no figures the reason, in one line.

    workers: processes at once; 0: in this one. keep: whether a process does several runs, which
    saves it the start and reading the same data, but keeps what a run leaves in memory. Raises
    Preempted where SIGTERM stopped it, KeyboardInterrupt; what was finished then stays so.
    """
    failed: dict[TableRun, str] = {}
    waiting = []
    for job in jobs:
        try:
            if finished(job) is None:
                waiting.append(job)
        except JaxclfError as error:
            failed[job] = _one_line(error)
    if done := len(jobs) - len(waiting) - len(failed):
        say(f"{done} of {len(jobs)} runs were finished before")
    crew = _Crew(execute, keep, say, len(waiting))
    groups: dict[Any, list[TableRun]] = {}
    for job in waiting:  # ensembles that share a folder run one after the other
        groups.setdefault(job.shared if job.run.group else job, []).append(job)
    if workers == 0:
        for job in waiting:
            failed |= crew.note(job, lambda job=job: attempt(job, execute))
        return failed
    queue = iter(groups.values())
    with ThreadPoolExecutor(workers) as pool, crew.stopping():
        for future in [pool.submit(crew.work, queue) for _ in range(workers)]:
            failed |= future.result()
    if crew.stopped:
        raise Preempted("stopped by SIGTERM; runs keep what they saved. The same command goes on")
    return failed


def attempt(job: TableRun, execute: Execute) -> str:
    """Run a job to its end; "" or the reason in one line why there is no figure of it.

    Raises Preempted where the run was asked to stop.
    """
    try:
        execute(job, job.load())
    except Preempted:
        raise
    except (JaxclfError, OSError) as error:
        return _one_line(error)
    except Exception as error:  # one run's defect is no reason to go without the others
        traceback.print_exc()
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            return f"does not fit: memory ran out ({job.folder / LOG})"
        return f"failed: {type(error).__name__}: {_one_line(error)} ({job.folder / LOG})"
    return "" if finished(job) is not None else "ended without a report of this config"


def _one_line(error: BaseException) -> str:
    """The message, cut where it is longer than anyone reads in a table."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


# Processes ----------------------------------------------------------------------------------------


class _Crew:
    """Processes that run jobs, each driven by a thread of this one.

    Processes of their own, so that one that the system ends for its memory takes no other along.
    """

    def __init__(self, execute: Execute, keep: bool, say: Callable[[str], None], total: int):
        self.execute, self.keep, self.say, self.total = execute, keep, say, total
        self.stopped = False
        self._started = 0
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []

    def work(self, queue: Iterator[Sequence[TableRun]]) -> dict[TableRun, str]:
        """Take groups of jobs until the queue is empty; the reasons of those that failed."""
        failed: dict[TableRun, str] = {}
        worker: _Worker | None = None
        try:
            while not self.stopped:
                with self._lock:
                    group = next(queue, ())
                if not group:
                    break
                for job in group:
                    if worker is None:
                        worker = self._start()
                    failed |= self.note(job, lambda job=job, worker=worker: worker.ask(job))
                    if not worker.alive or not self.keep:
                        worker.end()
                        worker = None
        finally:
            if worker is not None:
                worker.end()
        return failed

    def note(self, job: TableRun, run: Callable[[], str]) -> dict[TableRun, str]:
        """Run and say so; the reason, where there is one. Nothing where all is stopped."""
        if self.stopped:
            return {}
        with self._lock:
            self._started += 1
            number = f"[{self._started}/{self.total}] {job.folder.name}"
        start = time.monotonic()
        if not self.keep:
            self.say(f"{number}: started, see {job.folder / LOG}")
        reason = run()
        if self.stopped:
            return {}
        self.say(f"{number}: {reason or f'done in {time.monotonic() - start:,.0f} s'}")
        return {job: reason} if reason else {}

    def _start(self) -> "_Worker":
        worker = _Worker(self.execute, self.keep)
        with self._lock:
            self._workers.append(worker)
            if self.stopped:
                worker.process.terminate()
        return worker

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Within the block SIGTERM and Ctrl-C go to the processes, which save what they do."""

        def stop(*_: Any) -> None:
            self.stopped = True
            for worker in self._workers:
                worker.process.terminate()

        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, stop) if in_main else None
        try:
            yield
        except BaseException:
            stop()
            raise
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)


class _Worker:
    """A process that runs the jobs it is given, one after the other."""

    def __init__(self, execute: Execute, keep: bool):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, execute, keep))
        self.process.start()
        self.alive = True
        theirs.close()

    def ask(self, job: TableRun) -> str:
        """What `attempt` returns, or that the process ended over it."""
        try:
            self.pipe.send(job)
            return self.pipe.recv()
        except (EOFError, OSError):
            self.alive = False
            self.process.join()
            code = self.process.exitcode or 0
            if code == -9:  # SIGKILL, a name that Windows lacks
                return f"does not fit: the system ended it, for its memory ({job.folder / LOG})"
            return f"failed: its process ended with exit code {code} ({job.folder / LOG})"

    def end(self) -> None:
        self.pipe.close()  # on which it ends by itself
        self.process.join()


def _serve(pipe: Any, execute: Execute, keep: bool) -> None:
    """The life of a worker's process, which keeps the records it read for its other runs."""
    workers.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the first process tells us
    errors.stop_at_sigterm()
    if keep:
        datasets.keep_records()
    with contextlib.suppress(EOFError, Preempted):
        while True:
            job: TableRun = pipe.recv()
            job.folder.mkdir(parents=True, exist_ok=True)
            with _logged(job.folder / LOG):
                try:
                    reason = attempt(job, execute)
                except Preempted as error:
                    print(error)
                    reason = _one_line(error)
            _forget()
            pipe.send(reason)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Let all that is printed within the block, by libraries too, go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    with path.open("a", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, number)
                os.close(kept)


def _forget() -> None:
    """Drop compiled programs, which no other run's functions would find, and arrays."""
    import jax

    jax.clear_caches()
    gc.collect()
