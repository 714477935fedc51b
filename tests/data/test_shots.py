"""Which training records become the examples of a prompt, and in which order."""

import pytest

from jaxclf.data import shots
from jaxclf.data.tasks import Record
from jaxclf.errors import InputError

NEWS = [Record(f"n{i}", f"news number {i}", {"topic": "ab"[i % 2]}) for i in range(8)]


def test_shots_are_the_same_by_seed() -> None:
    first = shots.by_seed(NEWS, 5, seed=1)
    assert first == shots.by_seed(NEWS, 5, seed=1)
    assert len({shot.id for shot in first}) == 5
    assert first != shots.by_seed(NEWS, 5, seed=2)
    assert shots.by_seed(NEWS, 0, seed=1) == []


def test_fresh_shots_differ_by_example_and_leave_it_out() -> None:
    drawn = [
        shots.by_seed(NEWS, 5, seed=1, index=i, exclude_id=record.id)
        for i, record in enumerate(NEWS)
    ]
    for record, found in zip(NEWS, drawn, strict=True):
        assert len({shot.id for shot in found} - {record.id}) == 5
    assert len({tuple(shot.id for shot in found) for found in drawn}) > 4
    assert drawn[3] == shots.by_seed(NEWS, 5, seed=1, index=3, exclude_id=NEWS[3].id)
    assert shots.by_seed(NEWS, 5, 1, index=0) != shots.by_seed(NEWS, 5, 1)


def test_too_few_training_records_for_the_shots() -> None:
    assert len(shots.by_seed(NEWS, 8, seed=0, exclude_id="of another split")) == 8
    with pytest.raises(InputError, match=r"prompt\.shots is 8; the training split has 7 usable"):
        shots.by_seed(NEWS, 8, seed=0, index=0, exclude_id="n0")
    with pytest.raises(InputError, match=r"prompt\.shots is 9"):
        shots.by_seed(NEWS, 9, seed=0)
