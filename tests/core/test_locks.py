"""One writer at a time, whoever it is and however it ends."""

import errno
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from jaxclf import curve, predict, prompt, reproduce, train
from jaxclf.config.defaults import default
from jaxclf.convert import files
from jaxclf.core import locks
from jaxclf.core.errors import InputError
from jaxclf.ensemble.run import train_ensemble
from jaxclf.runs import comparison, evaluation

HOLDER = """
import sys, time
from pathlib import Path
from jaxclf.core import locks
with locks.folder(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `run`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_and_told_whom_it_meets(holder, tmp_path):
    with (
        pytest.raises(InputError, match=rf"run is being written by process {holder.pid} since \d"),
        locks.folder(tmp_path / "run"),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with locks.folder(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


RUN = ["--config", "configs/quickstart.py:smoke", "--workdir"]
PROMPT = ["--config", "configs/quickstart.py:no_tuning,smoke", "--workdir"]
SERVER = ["--config.api.model=m", "--config.api.base_url=http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    "write",
    [
        lambda place: train.main([*RUN, place]),
        lambda place: curve.main([*RUN, place, "--sizes", "4", "--seeds", "1"]),
        lambda place: prompt.main([*PROMPT, place, *SERVER, "--config.prompt.template=listing"]),
        lambda place: reproduce.main(["attens2", "--scale", "smoke", "--workdir", place]),
        lambda place: train_ensemble(default(), Path(place)),
        lambda place: evaluation.evaluate(Mock(), Path(place)),
        lambda place: comparison.write(Path(place), {}),
    ],
    ids=["train", "curve", "prompt", "reproduce", "ensemble", "evaluate", "compare"],
)
def test_no_command_writes_into_a_folder_that_another_process_holds(holder, tmp_path, write):
    with pytest.raises(InputError, match=f"being written by process {holder.pid}"):
        write(str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_no_command_writes_a_file_that_another_process_writes(holder, tmp_path):
    (tmp_path / "run" / ".lock").rename(tmp_path / ".labels.jsonl.lock")
    words = ["--checkpoint", str(tmp_path), "--input", str(tmp_path / "texts.jsonl")]
    with pytest.raises(InputError, match=f"being written by process {holder.pid}"):
        predict.main([*words, "--output", str(tmp_path / "labels.jsonl")])
    (tmp_path / ".labels.jsonl.lock").rename(tmp_path / ".model.lock")
    with (
        pytest.raises(InputError, match=f"being written by process {holder.pid}"),
        files.new_directory(tmp_path / "model"),
    ):
        pass


def test_another_name_of_the_folder_is_the_same_folder(holder, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(InputError, match="being written"), locks.folder(tmp_path / "link"):
        pass


def test_a_thread_may_hold_it_twice_and_another_not_at_all(tmp_path):
    found = []

    def other():
        try:
            with locks.folder(tmp_path):
                found.append("held")
        except InputError as error:
            found.append(str(error))

    with locks.folder(tmp_path), locks.folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread" in found[0]
    other()
    assert found[1:] == ["held"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_nothing_was_written_into_is_not_left_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), locks.folder(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with locks.folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert list((tmp_path / "a" / "b").iterdir()) == [tmp_path / "a" / "b" / "kept"]


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match="is a file; name another"), locks.folder(place):
            pass


def test_a_worker_that_outlived_its_parent_is_named(holder, tmp_path):
    lock = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    text = lock.read_text()
    assert '"parent": null' in text
    lock.write_text(text.replace('"parent": null', f'"parent": {gone.pid}'))
    with (
        pytest.raises(
            InputError, match=f"outlived its parent {gone.pid}. End it: kill {holder.pid}"
        ),
        locks.folder(tmp_path / "run"),
    ):
        pass


def test_where_the_file_system_knows_no_locks_one_warning_says_so(tmp_path, monkeypatch, capsys):
    def flock(handle, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_warned", False)
    for _ in range(2):
        with locks.folder(tmp_path):
            pass
    assert capsys.readouterr().out.count("knows no locks") == 1


def test_who_waits_gets_it_when_the_other_is_done(holder, tmp_path):
    (tmp_path / "run").rename(tmp_path / "other")  # the holder's own file, under another name
    (tmp_path / "other" / ".lock").rename(tmp_path / ".model.lock")
    threading.Timer(0.5, holder.kill).start()
    with locks.file(tmp_path / "model", patience=60):
        assert holder.wait() != 0


def test_what_a_killed_conversion_left_is_cleared_away_and_nothing_lost(tmp_path):
    destination = tmp_path / "model"
    left = tmp_path / ".model.abcd_123"
    (left / "new").mkdir(parents=True)
    (left / "old").mkdir()
    (left / "old" / "weights").write_text("mine")
    with (
        pytest.raises(InputError, match="exists already"),  # it is there again
        files.new_directory(destination),
    ):
        pass
    assert (destination / "weights").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_conversions_into_one_place_are_not_made(tmp_path):
    destination = tmp_path / "model"
    with files.new_directory(destination) as new:
        (new / "weights").touch()
        found = []

        def other():
            try:
                with files.new_directory(destination):
                    pass
            except InputError as error:
                found.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "being written" in found[0]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in destination.iterdir()] == ["weights"]
