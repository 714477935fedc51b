"""Fixtures and settings shared by all tests."""

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# Before anything imports JAX: the numbers compared are those of float32 on the CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, and tiny models gain nothing from fast machine code.
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if metadata.version("jaxlib").startswith("0.10."):  # later ones end over a flag they do not know
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # which halves it
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
# Nothing in a test may depend on a network; the tests of the hub's readers use local files.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Programs compiled by one test, or an earlier run, serve the others.
_COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from tests.forks import Forks, serving  # noqa: E402

# The same cases in every run, on every machine, however slow it is.
hypothesis.settings.register_profile(
    "deterministic", derandomize=True, database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """The folder that holds data/, tokenizers/ and weights/; skips where it is absent."""
    root = os.environ.get("JAXCLF_DATA_ROOT", "")
    if not root or not Path(root).is_dir():
        pytest.skip("JAXCLF_DATA_ROOT names no folder of real data")
    return Path(root).resolve().parent


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts processes that have imported everything."""
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def model():
    """The tiny decoder; a module that needs another one has its own."""
    from jaxclf.models import registry
    from tests.tiny import CONFIG

    return registry.create(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    """Random parameters of the module's `model`."""
    from tests.tiny import random_params

    return random_params(model)
