"""Which meshes are tried, and which of them is taken, for needs and seconds that are given here."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from jaxclf.core.errors import InputError
from jaxclf.distributed import sharding
from jaxclf.planning import hardware, meshes
from jaxclf.planning.estimate import Need, PlannedRun, Sizes

USABLE = int(hardware.topology("h100:4").chip.usable)


class Given(PlannedRun):
    """A run whose bytes are a function of mesh and micro-batches."""

    def __init__(self, bytes_of: Callable[[Sizes, int], int], **facts: Any):
        facts = {"topology": "h100:4", "slices": 1, "rows": 8, "length": 4095, **facts}
        self.topology = hardware.topology(facts["topology"], facts["slices"])
        self.length, self.bytes_of = facts["length"], bytes_of
        self.config = SimpleNamespace(train=SimpleNamespace(batch_size=facts["rows"]))
        heads = {"num_heads": 4, **facts.get("heads", {})}
        self.model = SimpleNamespace(config=SimpleNamespace(**heads))

    def need(self, sizes: Sizes, accumulate: int) -> Need:
        return Need(0, 0, 0, self.bytes_of(sizes, accumulate))


@pytest.fixture(autouse=True)
def _seconds(monkeypatch):
    """The more tensor the faster; a micro-batch more costs a little."""
    monkeypatch.setattr(
        meshes, "step_seconds", lambda _, sizes, count: 10 - sizes["tensor"] + count / 100
    )


def shown(found: list[meshes.Choice]) -> list[tuple[int, ...]]:
    """data, fsdp, tensor, sequence and micro-batches of each."""
    assert sharding.AXES == ("data", "fsdp", "tensor", "sequence")
    return [(*(each.sizes[axis] for axis in sharding.AXES), each.accumulate) for each in found]


def test_every_mesh_that_divides_the_rows_is_tried_the_fastest_first():
    found = {tuple(choice[:4]) for choice in shown(meshes.choices(Given(lambda *_: 1, rows=2)))}
    assert found == {(1, 1, 4, 1), (1, 2, 2, 1), (2, 1, 2, 1)}  # 4 parts do not divide 2 rows
    seconds = [each.seconds for each in meshes.choices(Given(lambda *_: USABLE))]
    assert seconds == sorted(seconds)


def test_tokens_are_cut_only_in_long_rows():
    short, long = (
        {each.sizes["sequence"] for each in meshes.choices(Given(lambda *_: 1, length=length))}
        for length in (4095, 4096)
    )
    assert (short, long) == ({1}, {1, 2, 4})


def test_a_slice_holds_whole_copies():
    """Only data parallelism goes between slices of TPUs."""
    job = Given(lambda *_: 1, topology="v5e:2x2", slices=2)
    found = shown(meshes.choices(job))
    assert {data for data, *_ in found} == {2, 4, 8}


@pytest.mark.parametrize(
    ("share", "counts"),
    [(0.49, [1]), (0.51, [1, 2, 4, 8]), (2.0, [1, 2, 4, 8])],
)
def test_micro_batches_get_smaller_until_half_of_the_memory_is_free(share, counts):
    job = Given(lambda *_: int(share * USABLE))
    only = [each.accumulate for each in meshes.choices(job) if each.sizes["tensor"] == 4]
    assert only == counts


def test_a_mesh_that_cannot_divide_the_model_is_left_out():
    def refuses(sizes: Sizes, _: int) -> int:
        if sizes["tensor"] == 4:
            raise InputError("4 does not divide the heads")
        return 1

    assert {each.sizes["tensor"] for each in meshes.choices(Given(refuses))} == {1, 2}
    least = meshes.leanest(Given(refuses))
    assert least is not None
    assert least.sizes["tensor"] < 4

    def smaller(sizes: Sizes, accumulate: int) -> int:
        if accumulate > 1:
            raise InputError("so few rows cannot be divided")
        return USABLE

    assert {each.accumulate for each in meshes.choices(Given(smaller))} == {1}
    assert len(meshes.choices(Given(smaller))) == 6


def test_what_fits_leaves_a_tenth_of_the_memory():
    for bytes_, fits in ((int(0.9 * USABLE), True), (int(0.9 * USABLE) + 2, False)):
        assert bool(meshes.fitting(Given(lambda *_, bytes_=bytes_: bytes_))) == fits
    assert meshes.fitting(Given(lambda *_: int(1.04 * USABLE)), 1.05)


def test_the_leanest_has_most_micro_batches_and_whole_key_heads():
    def needs(sizes: Sizes, accumulate: int) -> int:
        return 1_000 // (sizes["tensor"] * accumulate)

    least = meshes.leanest(Given(needs, heads={"num_kv_heads": 2}))
    assert least is not None
    assert least.sizes["tensor"] == 2  # of 2 key heads 4 parts would be copies
    assert least.accumulate == 4  # of 8 rows on 2 parts
    assert least.need.total == 125
    # The fastest of those that need as much; the heads of an encoder are all heads of keys.
    for needed in (needs, lambda *_: 7):
        found = meshes.leanest(Given(needed))
        assert found is not None
        assert shown([found]) == [(1, 1, 4, 1, 8)]
    assert meshes.leanest(Given(needs, topology="h100:8", rows=4, heads={"num_heads": 1})) is None
