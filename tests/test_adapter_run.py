"""Whole runs that train adapters beside a frozen base: what they store, resume and refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxclf import config as configs
from jaxclf import storage
from jaxclf.checkpoints import resolve
from jaxclf.classify import find_model, open_run
from jaxclf.errors import ArtifactError, InputError
from jaxclf.evaluation import evaluate
from jaxclf.storage import flatten, manifest_to_json
from jaxclf.training import train

ROOT = Path(__file__).parent.parent
BASES = {"encoder": "minilm_massive.py:smoke", "decoder": "quickstart.py:smoke"}


def tiny(kind: str, *overrides: str):
    """Four steps of adapters of a tiny model on built-in utterances."""
    return configs.load(
        str(ROOT / "configs" / BASES[kind]),
        [
            "data.name=builtin",
            "data.limit=16",
            "train.steps=4",
            "train.checkpoint_every=2",
            "train.schedule=constant",
            "train.learning_rate=0.01",
            "train.max_length=128",
            "eval.max_new_tokens=8",
            *overrides,
        ],
    )


def stored(workdir: Path) -> dict:
    return manifest_to_json(resolve(workdir, "last").manifest)


LORA = ("tune=lora", "lora.targets=all-linear", "lora.rank=2", "lora.dropout=0.1")


@pytest.fixture(scope="module", params=BASES)
def finished(request, tmp_path_factory) -> tuple[str, Path]:
    workdir = tmp_path_factory.mktemp("runs") / request.param
    train(tiny(request.param, *LORA), workdir)
    return request.param, workdir


def test_a_run_stores_adapters_alone_and_reports_what_was_trained(finished):
    kind, workdir = finished
    paths = stored(workdir)
    assert all(path.startswith(("factors/layers/", "saved/heads/")) for path in paths)
    assert any(path.startswith("saved/heads/") for path in paths) == (kind == "encoder")
    model = json.loads((workdir / "report.json").read_text())["model"]
    trained = sum(int(np.prod(leaf["shape"])) for leaf in paths.values())
    assert model["trained_parameters"] == trained < 0.5 * model["parameters"]
    changed = storage.read(resolve(workdir, "last").params_dir, "factors/layers/attention/q/b")
    assert np.any(changed)


def test_evaluate_opens_base_and_adapters(finished, tmp_path):
    _, workdir = finished
    again = evaluate(open_run(workdir), tmp_path)
    assert again["eval"] == json.loads((workdir / "report.json").read_text())["eval"]
    predicted = (tmp_path / "predictions.jsonl").read_text()
    assert predicted == (workdir / "predictions.jsonl").read_text()


def test_a_resumed_run_ends_as_an_unbroken_one(finished, tmp_path):
    kind, workdir = finished
    train(tiny(kind, *LORA, "train.steps=2"), tmp_path / "run")
    train(tiny(kind, *LORA), tmp_path / "run")
    assert stored(tmp_path / "run") == stored(workdir)


def test_another_base_is_refused_by_name(finished, tmp_path):
    """Both at resume and at prediction: the base was exchanged for one of another seed."""
    kind, workdir = finished
    other = tmp_path / "other"
    train(tiny(kind, *LORA, "seed=1", "train.steps=2"), other)
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/base")
    shutil.copytree(other / "base", tmp_path / "run/base")
    for attempt in (
        lambda: open_run(tmp_path / "run"),
        lambda: train(tiny(kind, *LORA, "train.steps=6"), tmp_path / "run"),
    ):
        with pytest.raises(ArtifactError, match="another|fingerprint") as caught:
            attempt()
        assert caught.value.exit_code == 3
        assert json.loads((workdir / "adapters.json").read_text())["fingerprint"][:16] in str(
            caught.value
        )


def test_adapters_are_no_model_to_start_from(finished, tmp_path):
    kind, workdir = finished
    with pytest.raises(InputError, match="conversion.to_hf --merge"):
        train(tiny(kind, "model.name="), tmp_path / "run", resolve(workdir))


@pytest.mark.parametrize(
    ("kind", "overrides", "trained"),
    [
        (
            "encoder",
            ["tune=bitfit"],
            {"saved/layers/attention/q/bias", "saved/heads/intent/out/bias"},
        ),
        ("encoder", ["tune=head"], {"saved/heads/intent/out/kernel"}),
        ("encoder", ["tune=prefix", "model.prefix=3"], {"saved/layers/prefix/key"}),
        ("decoder", ["tune=prefix", "model.prefix=3"], {"saved/layers/prefix/value"}),
        ("decoder", ["tune=dora", "lora.b_rate=16.0"], {"factors/layers/attention/q/magnitude"}),
        ("decoder", ["tune=lora_fa"], {"factors/layers/attention/v/b"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_tuning_trains_what_it_names_and_opens_again(kind, overrides, trained, tmp_path):
    train(tiny(kind, *overrides, "train.steps=2"), tmp_path / "run")
    source = resolve(tmp_path / "run")
    assert trained <= source.manifest.keys()
    opened = open_run(tmp_path / "run")
    base = {path: leaf for path, leaf in flatten(opened.params).items() if path.endswith("/kernel")}
    kept = resolve(tmp_path / "run/base")
    for path in base.keys() & kept.manifest.keys():
        if not path.startswith("heads/"):
            np.testing.assert_array_equal(base[path], storage.read(kept.params_dir, path))


def test_lora_fa_leaves_a_as_it_was_drawn(tmp_path):
    for steps in (2, 4):
        train(tiny("decoder", "tune=lora_fa", f"train.steps={steps}"), tmp_path / "run")
        source = resolve(tmp_path / "run", "last")
        read = {
            name: storage.read(source.params_dir, f"factors/layers/attention/q/{name}")
            for name in "ab"
        }
        if steps == 2:
            before = read
    np.testing.assert_array_equal(before["a"], read["a"])
    assert np.any(before["b"] != read["b"])


@pytest.mark.parametrize("kind", BASES)
def test_a_quantised_base_is_trained_on_and_opened_again(kind, tmp_path):
    config = tiny(kind, *LORA, "model.quantise=nf4", "train.steps=2")
    train(config, tmp_path / "run")
    base = resolve(tmp_path / "run/base")
    assert base.manifest["layers/mlp/up/kernel/values"].dtype == "uint8"
    again = evaluate(open_run(tmp_path / "run"), tmp_path / "again")
    assert again["eval"] == json.loads((tmp_path / "run/report.json").read_text())["eval"]
    with pytest.raises(InputError, match="are 'nf4'"):
        find_model(str(tmp_path / "run/base"), "int8")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune=head"], "has no parameter that it trains"),
        (["tune=lora", "lora.targets=query"], "'query' matches no module"),
        (["tune=lora", "train.trained=norms"], "tune='lora' trains others"),
        (["model.quantise=int4"], "a quantised model is frozen"),
        (["tune=prefix"], "model.prefix is 0"),
        (["tune=lora", "lora.rank=0"], "lora.rank is 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(overrides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(tiny("decoder", *overrides), tmp_path / "run")
