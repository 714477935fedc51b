"""Whole runs that train adapters beside a frozen base: what they store, resume and refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.model_dir import load_params, read_model, resolve, write_base
from jaxclf.checkpoint.tree_store import manifest_to_json
from jaxclf.classifiers.opening import open_run
from jaxclf.config import loading
from jaxclf.core import streams
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.tree import flatten
from jaxclf.models import registry
from jaxclf.runs.evaluation import evaluate
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]
BASES = {"encoder": "minilm_massive.py:smoke", "decoder": "quickstart.py:smoke"}


def tiny(kind: str, *overrides: str):
    """Four steps of adapters of a tiny model on built-in utterances."""
    return loading.load(
        str(ROOT / "configs" / BASES[kind]),
        [
            "data.name=builtin",
            "data.limit=16",
            "train.steps=4",
            "train.save_steps=2",
            "train.schedule=constant",
            "train.learning_rate=0.01",
            "train.max_length=128",
            "eval.max_new_tokens=8",
            *overrides,
        ],
    )


def stored(workdir: Path) -> dict:
    return manifest_to_json(resolve(workdir, "last").manifest)


LORA = (
    "tune=lora",
    "model.unroll=9",
    "lora.target_modules=all-linear",
    "lora.rank=2",
    "lora.dropout=0.1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "encoder"
    train(tiny("encoder", *LORA), workdir)
    return workdir


def test_a_run_stores_adapters_alone_and_reports_what_was_trained(finished):
    paths = stored(finished)
    assert all(path.startswith(("factors/layers/", "saved/heads/")) for path in paths)
    assert any(path.startswith("saved/heads/") for path in paths)
    model = json.loads((finished / "report.json").read_text())["model"]
    trained = sum(int(np.prod(leaf["shape"])) for leaf in paths.values())
    assert model["trained_parameters"] == trained < 0.5 * model["parameters"]
    changed = tree_store.read(resolve(finished, "last").params_dir, "factors/layers/attention/q/b")
    assert np.any(changed)


def test_evaluate_opens_base_and_adapters(finished, tmp_path):
    again = evaluate(open_run(finished), tmp_path)
    assert again["eval"] == json.loads((finished / "report.json").read_text())["eval"]
    predicted = (tmp_path / "predictions.jsonl").read_text()
    assert predicted == (finished / "predictions.jsonl").read_text()


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_unbroken_one(finished, tmp_path):
    train(tiny("encoder", *LORA, "train.steps=2"), tmp_path / "run")
    train(tiny("encoder", *LORA), tmp_path / "run")
    assert stored(tmp_path / "run") == stored(finished)


def test_another_base_is_refused_by_name(finished, tmp_path):
    """Both at resume and at prediction: one number of the base was exchanged."""
    shutil.copytree(finished, tmp_path / "run")
    base = resolve(tmp_path / "run/base")
    model = registry.create(read_model(base.model_json)[0])
    params = load_params(base, model.abstract)
    params["embed"]["norm"]["bias"] = params["embed"]["norm"]["bias"].at[0].add(1)
    shutil.rmtree(tmp_path / "run/base")
    write_base(tmp_path / "run/base", params, model.config, "float32", "none")
    for attempt in (
        lambda: open_run(tmp_path / "run"),
        lambda: train(tiny("encoder", *LORA, "train.steps=6"), tmp_path / "run"),
    ):
        with pytest.raises(ArtifactError, match="belong to") as caught:
            attempt()
        assert caught.value.exit_code == 3
        for directory in (finished, tmp_path / "run"):
            found = tree_store.fingerprint(resolve(directory / "base").manifest)
            assert found[:16] in str(caught.value)


def test_adapters_are_no_model_to_start_from(finished, tmp_path):
    with pytest.raises(InputError, match="jaxclf.convert.to_hf --merge"):
        train(tiny("encoder", "model.name="), tmp_path / "run", resolve(finished))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "overrides", "trained"),
    [
        (
            "encoder",
            ["tune=bitfit"],
            {"saved/layers/attention/q/bias", "saved/heads/intent/out/bias"},
        ),
        ("decoder", ["tune=prefix", "model.num_virtual_tokens=3"], {"saved/layers/prefix/value"}),
        (
            "decoder",
            ["tune=dora", "lora.loraplus_lr_ratio=16.0"],
            {"factors/layers/attention/q/magnitude"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_tuning_trains_what_it_names_and_opens_again(kind, overrides, trained, tmp_path):
    train(tiny(kind, *overrides, "train.steps=2"), tmp_path / "run")
    source = resolve(tmp_path / "run")
    assert trained <= source.manifest.keys()
    opened = open_run(tmp_path / "run")
    leaves = flatten(opened.classifier.params)
    base = {path: leaf for path, leaf in leaves.items() if path.endswith("/kernel")}
    kept = resolve(tmp_path / "run/base")
    for path in base.keys() & kept.manifest.keys():
        if not path.startswith("heads/"):
            np.testing.assert_array_equal(base[path], tree_store.read(kept.params_dir, path))


@pytest.mark.slow
def test_lora_fa_leaves_a_as_it_was_drawn(tmp_path):
    config = tiny("decoder", "tune=lora_fa", "train.steps=2")
    train(config, tmp_path / "run")
    source, base = resolve(tmp_path / "run"), resolve(tmp_path / "run/base")
    params = load_params(base, registry.create(read_model(base.model_json)[0]).abstract)
    assert source.adapters is not None
    drawn = lora.init(params, source.adapters.spec, streams.key(config.seed, "adapters"))
    for path, leaf in flatten(drawn.factors).items():
        found = tree_store.read(source.params_dir, f"factors/{path}")
        assert np.array_equal(found, leaf) == path.endswith("/a"), path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune=head"], "has no parameter that it trains"),
        (["tune=lora", "lora.target_modules=query"], "'query' matches no module"),
        (["tune=lora", "train.trained=norms"], "tune='lora' trains others"),
        (["model.quantize=int4"], "a quantised model is frozen"),
        (["tune=prefix"], "model.num_virtual_tokens is 0"),
        (["tune=lora", "lora.rank=0"], "lora.rank is 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(overrides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(tiny("decoder", *overrides), tmp_path / "run")
