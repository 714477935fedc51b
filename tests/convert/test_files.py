"""A folder that a conversion writes is there whole, or as it was."""

from pathlib import Path

import pytest

from jaxclf.convert import files
from jaxclf.core.errors import InputError


def left(folder: Path, *names: str) -> Path:
    """What a process that was killed left beside `folder`/out: these folders, each with a file."""
    found = folder / ".out.abcd1234"
    for name in names:
        (found / name).mkdir(parents=True)
        (found / name / "file").write_text(name)
    return found


@pytest.mark.parametrize(
    ("names", "is_there", "content"),
    [
        (("new", "old"), False, "old"),  # killed between the two renames
        (("old",), True, "own"),  # killed after them
        (("new",), False, None),
        (("new",), True, "own"),
    ],
)
def test_what_a_killed_process_put_aside_comes_back(tmp_path, names, is_there, content):
    found = left(tmp_path, *names)
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
        (out / "file").write_text("own")
    files._clear_away(out)
    assert not found.exists()
    assert ((out / "file").read_text() if out.exists() else None) == content


def test_what_is_not_ours_stays(tmp_path):
    mine, others = left(tmp_path, "new", "mine"), tmp_path / ".out.short"
    others.mkdir()
    files._clear_away(tmp_path / "out")
    assert mine.is_dir()
    assert others.is_dir()


def test_a_failed_conversion_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    with files.new_directory(out, False) as new:
        (new / "file").write_text("first")
    with pytest.raises(OSError, match="full"), files.new_directory(out, True) as new:  # noqa: PT012
        (new / "file").write_text("second")
        raise OSError("full")
    with pytest.raises(InputError, match="exists already"), files.new_directory(out, False):
        pass
    assert (out / "file").read_text() == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
