"""How attention is computed where the config leaves it to the backend."""

import types

import jax
import pytest

from jaxclf.models import from_config
from tests.mesh_checks import config


@pytest.mark.parametrize(
    ("backend", "capability", "expected"),
    [
        ("cpu", None, "plain"),
        ("tpu", None, "splash"),
        ("gpu", "9.0", "cudnn"),
        ("gpu", "12.0", "cudnn"),
        ("gpu", "8.0", "cudnn"),
        ("gpu", "7.5", "plain"),  # a T4, for which no kernel has a form
        ("gpu", "gfx942", "plain"),  # AMD's
    ],
)
def test_attention_follows_the_backend(backend, capability, expected, monkeypatch):
    device = types.SimpleNamespace(**{"compute_capability": capability} if capability else {})
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert from_config.implementation(config()) == expected
    assert from_config.implementation(config(model__attention="plain")) == "plain"
