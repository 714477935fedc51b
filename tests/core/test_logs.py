"""metrics.jsonl, events and progress, through crashes and resumes."""

import json
import math
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxclf.core import logs
from jaxclf.core.logs import Logger, read_metrics


def run(workdir, steps, resume_step=0, total=100):
    with Logger(workdir, total, resume_step) as log:
        for step in steps:
            log.metrics(step, {"train/loss": 1 / step})
            log.advance(step, examples=8, tokens=200, loss=1 / step)


def steps_in(workdir) -> list[int]:
    return [row["step"] for row in read_metrics(workdir)]


def events(workdir) -> dict[str, list[tuple[int, float]]]:
    """Tag → steps and values, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(workdir / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_a_line_per_call_and_an_event_per_value(tmp_path):
    with Logger(tmp_path, 10) as log:
        log.metrics(1, {"train/loss": np.float32(0.5), "train/learning_rate": 1e-3})
        # flushed at once: a killed run keeps what it had said
        text = (tmp_path / "metrics.jsonl").read_text()
        assert events(tmp_path)["train/loss"] == [(1, 0.5)]
        log.metrics(2, {"dev/intent/accuracy": 1})
    assert text == '{"step": 1, "train/loss": 0.5, "train/learning_rate": 0.001}\n'
    assert read_metrics(tmp_path)[1] == {"step": 2, "dev/intent/accuracy": 1.0}
    assert events(tmp_path) == {
        "train/loss": [(1, 0.5)],
        "train/learning_rate": [(1, pytest.approx(1e-3))],
        "dev/intent/accuracy": [(2, 1.0)],
    }


def test_what_is_not_finite_is_null_in_json(tmp_path):
    with Logger(tmp_path, 10) as log:
        log.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "a": None, "b": None, "c": None, "d": 0.0
    }  # fmt: skip


def test_a_resumed_run_leaves_one_line_per_step(tmp_path):
    run(tmp_path, range(1, 8))
    run(tmp_path, range(6, 11), resume_step=5)
    assert steps_in(tmp_path) == list(range(1, 11))
    run(tmp_path, [1, 2])  # a fresh start
    assert steps_in(tmp_path) == [1, 2]


def test_events_that_a_resumed_run_writes_again_count_once(tmp_path):
    with Logger(tmp_path, 10) as log:
        for step in range(1, 8):
            log.metrics(step, {"train/loss": step})
    with Logger(tmp_path, 10, resume_step=5) as log:
        log.metrics(6, {"train/loss": 60})
    expected = [*((float(step), float(step)) for step in range(1, 6)), (6, 60.0)]
    assert events(tmp_path) == {"train/loss": expected}


def test_writing_events_starts_no_thread(tmp_path):
    before = threading.active_count()
    with Logger(tmp_path, 10) as log:
        log.metrics(1, {"train/loss": 1.0})
        assert threading.active_count() == before


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_events_that_cannot_be_written_are_said_once_and_end_nothing(tmp_path, capsys, when):
    if when == "at the start":
        (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with Logger(tmp_path, 10) as log:
        if when == "later":
            (events_file,) = (tmp_path / "tensorboard").iterdir()
            events_file.unlink()
            events_file.mkdir()
        for step in (1, 2, 3):
            log.metrics(step, {"train/loss": 1.0})
    assert steps_in(tmp_path) == [1, 2, 3]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no more TensorBoard events")
    assert str(tmp_path / "tensorboard") in line


def test_a_line_cut_by_a_crash_goes_at_the_next_start(tmp_path):
    run(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    for torn in ('{"step": 3, "train/l', '{"step": 3}', "\x00\x00", "[]\n", "5\n"):
        whole = path.read_text()
        path.write_text(whole + torn)
        assert steps_in(tmp_path) == [1, 2]
        run(tmp_path, [], resume_step=2)
        assert path.read_text() == whole


def test_plain_lines_when_output_is_no_terminal(tmp_path, capsys):
    with Logger(tmp_path, total_steps=25, every=10) as log:
        for step in range(1, 26):
            log.advance(step, examples=8, tokens=1000, loss=2.5)
        log.say("[bold]done[/bold]")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["step", "10/25"], ["step", "20/25"], ["step", "25/25"]
    ]  # fmt: skip
    assert all("loss 2.5000" in line and "\x1b" not in line for line in lines[:-1])
    assert lines[-1] == "[bold]done[/bold]"


def test_a_progress_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Logger(tmp_path, total_steps=4, resume_step=2) as log:
        log.advance(3, examples=8, tokens=1000, loss=2.5)
        log.say("[bold]saved[/bold]")
        log.advance(4, examples=8, tokens=1000)
    text = capsys.readouterr().out
    assert "4/4" in text
    assert "examples/s" in text
    assert "[bold]saved[/bold]" in text


def test_counting_says_plain_lines_every_few_seconds(capsys, monkeypatch):
    seconds = iter([0.0, 0.0, 1.0, 20.0, 21.0])
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with logs.count("labelling", total=100, done=20) as advance:
        advance(1)
        advance(39)
        advance(40)
    # 40 of the 80 left to do in 20 s: 2 a second
    assert capsys.readouterr().out == "60/100  labelling  2.0 examples/s  0:00:20 left\n"


def test_counting_is_a_line_of_the_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Logger(tmp_path, total_steps=4) as log, log.task("dev evaluation", 32) as advance:
        advance(32)
        log._bar.refresh()
    assert "32/32" in capsys.readouterr().out
    assert log._bar.task_ids == [0]  # it goes when it is done
    with logs.count("labelling", total=7) as advance:
        advance(7)
    assert "7/7" in capsys.readouterr().out


def test_speed_is_of_the_last_steps_without_the_first(monkeypatch):
    seconds = iter([0.0, 100.0, 102.0, 104.0])  # start; the first step compiles
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    rates = logs.Rates(resume_step=5)
    rates.add(6, examples=8, tokens=4000)
    # alone, the first step is all there is to go by: 100 s for 1 step, 4 left
    assert rates.describe(10, None) == "0.1 examples/s  40 tokens/s  0:06:40 left"
    rates.add(7, examples=80, tokens=4000)
    rates.add(8, examples=80, tokens=4000)
    # 2 steps in 4 s; 2 left
    assert rates.describe(10, 0.5) == "loss 0.5000  40 examples/s  2,000 tokens/s  0:00:04 left"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_an_error(tmp_path):
    def run_on_a_full_disk():
        with Logger(tmp_path, 10) as log:
            (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
            log.metrics(1, {"train/loss": 1.0})
            pytest.fail("the error was swallowed")

    with pytest.raises(OSError, match="No space left"):
        run_on_a_full_disk()


def test_a_workdir_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Logger(tmp_path / "file", 10)


def test_nothing_is_shown_where_it_is_quiet(tmp_path, capfd):
    with logs.quiet():
        run(tmp_path, range(1, 4), total=3)
        with logs.count("labelling", 3) as advance:
            advance(3)
        logs.say("hidden")
    logs.say("shown")
    assert capfd.readouterr().out == "shown\n"
    assert steps_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("has_widgets", [False, True])
def test_a_notebook_has_a_bar_where_it_has_widgets(monkeypatch, has_widgets):
    from rich.console import Console

    spec = "spec" if has_widgets else None
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda _: spec)
    assert logs._has_bars(Console(force_jupyter=True)) == has_widgets
    with logs.quiet():
        assert not logs._has_bars(Console(force_jupyter=True))
