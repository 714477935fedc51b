"""The campaign of faults in a short form: what is killed, damaged or fed nonsense never lies."""

from collections.abc import Iterator

import pytest

from benchmarks.faults import artifacts
from benchmarks.faults.__main__ import PARTS, table
from benchmarks.faults.commands import Commands
from benchmarks.faults.world import FAULTS, Result, World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    scratch = tmp_path_factory.mktemp("faults")
    with Commands(scratch) as commands:
        world = World(scratch, commands, seed=1, short=True)
        with artifacts.chat_server(world):
            artifacts.build(world)
            yield world


# How soon a stopped run ends depends on what else the machine does: that is for the long form.
@pytest.mark.parametrize("part", [name for name in PARTS if name != "stops"])
def test_no_fault_is_silent_and_nothing_hangs(part, world):
    results = list(PARTS[part](world))
    assert results
    assert not [each for each in results if each.verdict in FAULTS]


def test_the_table_counts_by_part_and_lists_the_faults():
    results = [
        Result("kills", "one", "same"),
        Result("kills", "another", "silent", "differs: x"),
        Result("mutations", "others", "told", count=4),
    ]
    lines = table(results).splitlines()
    assert lines[2] == "| kills | 2 | 1 | 1 | 0 | 0 | 0 | 0 | 0 |"
    assert lines[3] == "| mutations | 4 | 4 | 0 | 0 | 0 | 0 | 0 | 0 |"
    assert lines[4] == "| all | 6 | 5 | 1 | 0 | 0 | 0 | 0 | 0 |"
    assert "SILENT kills: another" in "\n".join(lines)
