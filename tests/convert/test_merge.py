"""Adapters and their base exported as one model, and bases converted into 8 and 4 bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Spec
from jaxclf.checkpoint import model_dir, model_files, tree_store
from jaxclf.checkpoint.model_dir import AdapterInfo, ModelSource, find_model, resolve
from jaxclf.classifiers.opening import open_run
from jaxclf.convert import hf_export, hf_import, to_hf
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.tree import flatten
from jaxclf.models import registry
from jaxclf.models.quantization import quantised
from jaxclf.runs.training import train
from tests import tiny
from tests.adapters.test_lora import filled
from tests.convert.test_commands import CONFIG, convert, export, quiet, write_source
from tests.runs.test_adapter_run import tiny as run_config

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6)
SPECS = {
    "lora": Spec(targets=("all-linear",), rank=2),
    "dora": Spec(kind="dora", targets=("q", "down"), layers=(0, 2), rank=3),
    "patterns": Spec(targets=("q", "layers/1/mlp/.*"), rank_pattern=(("layers/2/.*", 5),)),
    "saved": Spec(targets=("v",), saved=("norm/scale", "unembed/kernel")),
}


def hidden(model, params):
    positions = np.tile(np.arange(TOKENS.shape[1], dtype=np.int32), (len(TOKENS), 1))
    module = model.bind(params)
    return module.logits(module.hidden(TOKENS, positions, np.ones_like(TOKENS)))


def adapter_directory(directory, base, params, spec):
    """What peft_import leaves: adapters of a converted base, all of them in use."""
    adapters = filled(lora.init(params, spec, jax.random.key(0)))
    model_dir.write_base(directory, adapters, CONFIG, "float32", "none")
    fingerprint = tree_store.fingerprint(resolve(base).manifest)
    info = AdapterInfo(spec, str(base), fingerprint)
    model_dir.write_adapters(directory / "adapters.json", info)
    model_files.seal(directory)
    return adapters


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_a_merged_export_computes_what_the_adapters_do(spec, tmp_path):
    model = registry.create(CONFIG)
    params = tiny.random_params(model)
    model_dir.write_base(tmp_path / "base", params, CONFIG, "float32", "none")
    adapters = adapter_directory(tmp_path / "adapters", tmp_path / "base", params, spec)

    with pytest.raises(InputError, match="--merge"):
        export(tmp_path / "adapters", tmp_path / "out")
    export(tmp_path / "adapters", tmp_path / "out", merge=True)
    convert(tmp_path / "out", tmp_path / "back")
    merged = model_dir.load_params(tmp_path / "back", model.abstract)
    expected = hidden(model, lora.bind(params, adapters))
    assert np.max(np.abs(expected - hidden(model, params))) > 1e-2
    np.testing.assert_allclose(hidden(model, merged), expected, atol=1e-5)


def test_the_base_of_a_merge_must_be_the_adapters_own(tmp_path):
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "base")
    params = tiny.random_params(registry.create(CONFIG))
    adapter_directory(tmp_path / "adapters", tmp_path / "base", params, SPECS["lora"])
    write_source(tmp_path / "hf", seed=1)
    convert(tmp_path / "hf", tmp_path / "base", overwrite=True)
    with pytest.raises(ArtifactError, match="fingerprint"):
        export(tmp_path / "adapters", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "overrides", "task"),
    [
        ("encoder", ("lora.target_modules=all-linear",), "intent"),
        ("decoder", ("model.quantize=nf4", "lora.rank=4"), None),
    ],
)
def test_a_run_is_merged_and_its_flips_are_counted(kind, overrides, task, tmp_path):
    run = tmp_path / "run"
    train(run_config(kind, "tune=lora", "train.steps=2", *overrides), run)
    if "model.quantize=nf4" in overrides:
        base = resolve(run / "base")
        assert base.manifest["layers/mlp/up/kernel/values"].dtype == "uint8"
        with pytest.raises(InputError, match="are 'nf4'"):
            find_model(str(run / "base"), "int8")
    options = ["--task", task] if task else []
    to_hf.main([str(run), str(tmp_path / "out"), "--merge", "--check", "6", *options])
    card = (tmp_path / "out/README.md").read_text()
    assert "merging (keep) changes 0 of 6 answers" in card
    convert(tmp_path / "out", tmp_path / "back")
    opened = open_run(run)
    merged = jax.jit(lora.multiply_out)(opened.classifier.params)
    back = resolve(tmp_path / "back")
    for path in ("layers/attention/q/kernel", "layers/attention/v/kernel"):
        leaf = flatten(merged)[path]
        found = tree_store.read(back.params_dir, path)
        # In memory a merged kernel has its base's dtype: bfloat16 where that is quantised.
        spacing = float(jnp.finfo(leaf.dtype).eps)
        np.testing.assert_allclose(found, leaf.astype(np.float32), rtol=spacing, atol=1e-6)


def test_flips_are_not_counted_without_the_data(tmp_path, monkeypatch):
    """A run whose data are gone is merged all the same."""

    def gone(*_):
        raise InputError("no such data set here")

    info = AdapterInfo(SPECS["lora"], "", "")
    source = ModelSource(tmp_path, {}, tmp_path, tmp_path, tmp_path, None, info)
    monkeypatch.setattr(model_dir, "resolve", lambda *_: source)
    monkeypatch.setattr(hf_export.merging, "count_flips", gone)
    (line,) = hf_export.check_merged("run", "best", "keep", 4)
    assert line == "not compared with the unmerged model: no such data set here"


# Quantised bases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_conversion_writes_what_quantising_in_memory_gives(kind, tmp_path):
    config = dataclasses.replace(CONFIG, hidden_size=64, intermediate_size=128)
    write_source(tmp_path / "hf", config)
    convert(tmp_path / "hf", tmp_path / "plain")
    hf_import.convert(tmp_path / "hf", tmp_path / "out", quantise=kind, progress=quiet)
    source = resolve(tmp_path / "out")
    assert model_dir.quantisation(source) == kind
    plain = model_dir.load_params(tmp_path / "plain", registry.create(config).abstract)
    expected = quantised(plain, kind)
    model = registry.create(config, quantise=kind)
    found = model_dir.load_params(source, model.abstract)
    for path, leaf in flatten(expected).items():
        np.testing.assert_array_equal(flatten(found)[path], leaf, err_msg=path)
    logits = hidden(model, found)
    restored = jax.tree.map(
        lambda node: node.dequantise(jnp.float32) if hasattr(node, "dequantise") else node,
        found,
        is_leaf=lambda node: hasattr(node, "dequantise"),
    )
    plain_model = registry.create(config)
    np.testing.assert_allclose(logits, hidden(plain_model, restored), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.55), ("int4", 0.30), ("nf4", 0.30)])
@pytest.mark.parametrize("name", ["llama2_7b", "llama3_8b", "llama3_70b"])
def test_bytes_of_a_frozen_llama_against_bfloat16(name, kind, limit):
    def size(model):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.abstract))

    half = registry.create(name, param_dtype=jnp.bfloat16)
    small = registry.create(name, param_dtype=jnp.bfloat16, quantise=kind)
    assert size(small) <= limit * size(half)


def test_a_quantised_base_is_not_exported(tmp_path):
    write_source(tmp_path / "hf")
    hf_import.convert(tmp_path / "hf", tmp_path / "out", quantise="int8", progress=quiet)
    with pytest.raises(InputError, match="export what it came from"):
        export(tmp_path / "out", tmp_path / "again")
