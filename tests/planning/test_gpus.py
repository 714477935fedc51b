"""Devices of GPUs that are not here."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxclf.core.errors import InputError
from jaxclf.distributed import sharding
from jaxclf.planning import gpus

needs_compiler = pytest.mark.skipif(
    not gpus.can_compile(), reason="compiling for a GPU needs jax's plugin for CUDA"
)


@needs_compiler
@pytest.mark.parametrize("kind", gpus.GPUS)
def test_every_gpu_is_compiled_for(kind):
    """A matmul in bfloat16, of one GPU; the compiler takes all the figures."""
    (device,) = gpus.devices(kind, 1)
    assert device.platform == "gpu"
    one = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), [device])
    with jax.set_mesh(one):
        x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=sharding.whole())
        compiled = jax.jit(lambda x: x @ x).lower(x).compile()
    assert compiled.memory_analysis().peak_memory_in_bytes >= 2 * 2 * 256**2
    assert device.device_kind == gpus.GPUS[kind].description


@needs_compiler
def test_more_gpus_than_one_host_has_are_several_hosts():
    assert [device.process_index for device in gpus.devices("h100", 16)] == [0] * 8 + [1] * 8
    tray = gpus.devices("gb200", 8, per_host=4)
    assert [device.process_index for device in tray] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [("h101", 8, "known: a100"), ("h100", 12, "whole hosts: 16"), ("h100", 0, "whole hosts: 8")],
)
def test_gpus_that_cannot_be_are_told(kind, count, message):
    with pytest.raises(InputError, match=message):
        gpus.devices(kind, count)


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(gpus, "can_compile", lambda: False)
    gpus.devices.cache_clear()
    with pytest.raises(InputError, match=re.escape(".[plan-gpu]")):
        gpus.devices("h100", 8)
