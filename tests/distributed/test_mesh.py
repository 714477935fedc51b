"""One device and eight: the same numbers. Each check runs in a process that has eight devices."""

import os
from types import SimpleNamespace

import jax
import pytest

from jaxclf.core.errors import InputError
from jaxclf.distributed import sharding

CHECKS = (
    *(
        "full",
        "attributes",
        "experts",
        "two_kinds_of_layers",
        "lean",
        "adapters",
        "encoders",
        "decoding",
        "kernels",
        "checkpoints",
        "examples_seen",
    ),
    *("encoder_with_decoder", "whole_run", "module_features", "compiled_text", "every_config"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_eight_devices(forks, name, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    program = f"from tests import mesh_checks; mesh_checks.{name}()"
    check = forks.start(program, tmp_path / "log", XLA_FLAGS=flags)
    assert check.wait(600) == 0, check.log.read_text()[-8000:]


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ((1, -1, 1, 1), 8, (1, 8, 1, 1)),
        ((2, -1, 2, 1), 8, (2, 2, 2, 1)),
        ((1, 1, 1, 1), 1, (1, 1, 1, 1)),
    ],
)
def test_one_axis_takes_what_the_others_leave(sizes, count, expected):
    found = sharding.complete(dict(zip(sharding.AXES, sizes, strict=True)), count)
    assert tuple(found.values()) == expected


@pytest.mark.parametrize("sizes", [(3, -1, 1, 1), (2, 2, 1, 1), (-1, -1, 1, 1), (16, 1, 1, 1)])
def test_sizes_that_do_not_make_the_devices_are_refused(sizes):
    with pytest.raises(InputError, match=r"do not make 8 devices"):
        sharding.complete(dict(zip(sharding.AXES, sizes, strict=True)), 8)


def _devices(slices: list[int], platform: str = "tpu"):
    """Stand-ins for devices, of whose slices the mesh knows nothing but their numbers."""
    return [
        SimpleNamespace(id=number, slice_index=index, platform=platform)
        for number, index in enumerate(slices)
    ]


@pytest.mark.parametrize(
    ("slices", "platform", "wanted", "expected"),
    [
        ([0, 1, 0, 1], "tpu", 0, [[0, 2], [1, 3]]),  # by itself
        ([0, 1, 0, 1], "tpu", 2, [[0, 2], [1, 3]]),
        ([0, 1, 2, 3], "tpu", 2, [[0, 1], [2, 3]]),
        ([0, 0, 0, 0], "tpu", 0, [[0, 1, 2, 3]]),
        ([0, 1, 0, 1], "gpu", 0, [[0, 2, 1, 3]]),  # hosts, one after the other
        ([1, 0, 1, 0], "gpu", 2, [[1, 3], [0, 2]]),
    ],
)
def test_devices_of_a_slice_stay_together(slices, platform, wanted, expected):
    found = sharding.by_slice(_devices(slices, platform), wanted)
    assert [[device.id for device in group] for group in found] == expected


@pytest.mark.parametrize(("slices", "wanted"), [([0, 0, 1, 1], 4), ([0, 0, 0, 1, 1, 1], 4)])
def test_a_number_that_cuts_slices_is_refused(slices, wanted):
    with pytest.raises(InputError, match=rf"dcn_data is {wanted}, .* in 2 slice"):
        sharding.by_slice(_devices(slices), wanted)


def test_only_data_crosses_between_slices(monkeypatch):
    device = jax.devices()[0]
    monkeypatch.setattr(sharding, "by_slice", lambda devices, wanted: [devices[:1], devices[1:]])
    with pytest.raises(InputError, match=r"mesh\.data is 1; expected a multiple of 2"):
        sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 1, "sequence": 1}, [device, device])


SIZES = {"data": 2, "fsdp": 4, "tensor": 2, "sequence": 1}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("layers/attention/q/kernel", (3, 8, 6), (None, "fsdp", "tensor")),
        ("opt_state/1/mu/layers/mlp/down/kernel", (3, 6, 8), (None, "tensor", "fsdp")),
        ("layers/attention/q/kernel/parts/0", (8, 6), ("fsdp", "tensor")),
        ("layers/mlp/up/kernel/values", (3, 4, 6), (None, "fsdp", "tensor")),
        ("layers/mlp/up/kernel/scale", (3, 1, 6), (None, None, "tensor")),
        ("opt_state/0/nu/layers/mlp/down/kernel/codes", (3, 6, 8), (None, "tensor", "fsdp")),
        ("opt_state/0/nu/layers/mlp/down/kernel/scale", (3, 6, 2), (None, "tensor", None)),
        ("opt_state/0/mu/factors/layers/attention/o/a/codes", (3, 6, 5), (None, "tensor", None)),
        ("opt_state/0/mu/layers/attention/q/kernel/parts/0/codes", (8, 6), ("fsdp", "tensor")),
        ("factors/layers/attention/o/a", (3, 6, 5), (None, "tensor", None)),
        ("factors/layers/attention/o/b", (3, 5, 8), (None, None, "fsdp")),
        ("saved/heads/topic/out/kernel", (8, 5), ("fsdp", None)),
        ("embed/tokens/embedding", (61, 8), (None, ("fsdp", "tensor"))),
        ("step", (), ()),
    ],
)
def test_rules_name_every_kind_of_leaf(path, shape, expected):
    assert sharding.spec(path, shape, SIZES) == jax.P(*expected)


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(InputError, match=r"no rule for layers/new/thing \(3, 4\)"):
        sharding.spec("layers/new/thing", (3, 4), SIZES)


def test_a_size_that_cannot_be_divided_is_named():
    with pytest.raises(InputError, match=r"unembed/kernel .*: 61 cannot be divided over tensor=2"):
        sharding.spec("unembed/kernel", (8, 61), SIZES)
