"""What the memory here cannot hold is refused before it is allocated."""

import jax
import pytest

from jaxclf.checkpoint import model_dir
from jaxclf.core import memory
from jaxclf.core.errors import InputError
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.distributed import sharding
from jaxclf.models import registry
from tests import tiny
from tests.tiny_adapters import write_model


def test_memory_is_known_where_the_kernel_tells_it():
    free = memory.free_bytes()
    assert free is None or free > 2**20


def test_a_random_start_beyond_the_memory_is_refused(monkeypatch):
    model = registry.create("llama2_70b")
    monkeypatch.setattr(memory, "free_bytes", lambda: 100 * 2**30)
    with pytest.raises(InputError, match=r"257\.0 GiB of memory here, of which 100\.0 GiB"):
        sharding.born(model.init, jax.random.key(0))


def test_a_checkpoint_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    model = registry.create(tiny.CONFIG)
    write_model(tmp_path / "ours", tiny.CONFIG, tiny.random_params(model))
    model_dir.load_params(tmp_path / "ours", model.abstract)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(InputError, match="Choose a smaller model"):
        model_dir.load_params(tmp_path / "ours", model.abstract)


def test_memory_that_nobody_knows_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    sharding.check_memory(sharding.abstract(registry.create("llama2_70b").abstract))


@pytest.mark.parametrize("size", [100, 10**9, 10**30])
def test_a_vocabulary_that_no_tokenizer_has_is_refused(size):
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size is .* to 1,000,000"):
        Tokenizer.train(["a"], size)
