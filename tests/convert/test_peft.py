"""peft_import and peft_export, and their commands, on files written without peft."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Spec
from jaxclf.checkpoint import model_dir, model_files, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.checkpoint.model_dir import AdapterInfo
from jaxclf.convert import from_peft, hf_export, peft, peft_export, peft_import, to_peft
from jaxclf.core import errors
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.tasks import Task
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.heads import HeadConfig
from tests import tiny
from tests.tiny_adapters import load, random_adapters, write_adapters, write_model
from tests.tiny_encoders import with_heads

BERT = with_heads("bert", "sequence")
HEAD = "heads/sequence/out"
SETTINGS = {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 6,
    "target_modules": ["query", "key"],
    "rank_pattern": {r"layer\.2\.attention\.self\.query": 3},
    "layers_to_transform": [0, 2],
    "modules_to_save": ["classifier", "score"],
}
SPECS = {
    "llama": (tiny.CONFIG, Spec(rank=3, alpha=5.0, dropout=0.1)),
    "llama, all": (tiny.CONFIG, Spec("dora", ("all-linear", "unembed"), rank=2, rslora=True)),
    "llama, patterns": (
        tiny.CONFIG,
        Spec(
            targets=("q", "layers/1/mlp/.*"),
            rank_pattern=(("layers/2/attention/q", 5), ("up", 1)),
            alpha_pattern=(("q", 2.5),),
            saved=("norm/scale", "layers/mlp_norm/scale"),
        ),
    ),
    "bert": (BERT, Spec("dora", ("q", "pooler"), layers=(1, 2), rank=2, saved=("heads/.*",))),
    "distilbert": (
        with_heads("distilbert", "sequence"),
        Spec(targets=("all-linear",), rank_pattern=(("down", 3),), saved=("heads/.*",)),
    ),
    "electra": (
        with_heads("electra", "token"),
        Spec(targets=("project", "layers/0/mlp/up"), saved=("heads/.*",)),
    ),
    "roberta, its own head": (with_heads("roberta", "sequence"), Spec(targets=("dense", "o"))),
    "roberta, bare": (with_heads("roberta"), Spec(targets=("v",), layers=(2,))),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model directory of BERT with a head."""
    directory = tmp_path_factory.mktemp("bases") / "bert"
    return write_model(directory, BERT, tiny.random_params(registry.create(BERT)))


def write_source(directory, settings, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def bert_tensors():
    """What SETTINGS say that an adapter of BERT holds, written out."""
    random = np.random.default_rng(0)
    size = BERT.hidden_size
    shapes = {"classifier.weight": (5, size), "classifier.bias": (5,)}
    for layer in (0, 2):
        for name in ("query", "key"):
            module = f"bert.encoder.layer.{layer}.attention.self.{name}"
            rank = 3 if (layer, name) == (2, "query") else 2
            shapes[f"{module}.lora_A.weight"] = (rank, size)
            shapes[f"{module}.lora_B.weight"] = (size, rank)
    return {
        f"base_model.model.{name}": random.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


def tensors_of(directory):
    found = safetensors.numpy.load_file(directory / "adapter_model.safetensors")
    return {name: (array.shape, array.tobytes()) for name, array in found.items()}


def settings_of(directory):
    return json.loads((directory / "adapter_config.json").read_text())


def test_every_tensor_lands_where_the_model_reads_it(base, tmp_path):
    tensors = bert_tensors()
    source = write_source(tmp_path / "theirs", SETTINGS, tensors)
    peft_import.convert(source, tmp_path / "ours", str(base))
    found = load(tmp_path / "ours", registry.create(BERT).abstract)
    assert found.spec == Spec(
        targets=("q", "k"),
        layers=(0, 2),
        rank=2,
        alpha=6.0,
        rank_pattern=(("layers/2/attention/q", 3),),
        saved=(f"{HEAD}/bias", f"{HEAD}/kernel"),
    )
    name = "base_model.model.bert.encoder.layer.{}.attention.self.{}.lora_{}.weight"
    query, key = (found.factors["layers"]["attention"][leaf] for leaf in "qk")
    np.testing.assert_array_equal(query["a"][0, :, :2], tensors[name.format(0, "query", "A")].T)
    np.testing.assert_array_equal(query["b"][0, :2], tensors[name.format(0, "query", "B")].T)
    np.testing.assert_array_equal(query["a"][1], tensors[name.format(2, "query", "A")].T)
    np.testing.assert_array_equal(key["b"][1], tensors[name.format(2, "key", "B")].T)
    assert not np.any(query["a"][0, :, 2:])
    assert not np.any(query["b"][0, 2:])
    head = found.saved["heads"]["sequence"]["out"]
    np.testing.assert_array_equal(head["kernel"], tensors["base_model.model.classifier.weight"].T)
    np.testing.assert_array_equal(head["bias"], tensors["base_model.model.classifier.bias"])

    source = model_dir.resolve(tmp_path / "ours")
    assert source.adapters is not None
    assert source.adapters.checkpoint == str(base)
    model_dir.check_base(source.adapters, model_dir.resolve(base), "ours")


@pytest.mark.parametrize("name", SPECS)
def test_our_adapters_survive_the_round_trip(name, tmp_path):
    config, spec = SPECS[name]
    params = tiny.random_params(registry.create(config))
    before = random_adapters(params, spec)
    write_adapters(tmp_path / "ours", config, before)
    write_model(tmp_path / "base", config, params)
    peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    peft_import.convert(tmp_path / "theirs", tmp_path / "back", str(tmp_path / "base"))
    after = load(tmp_path / "back", params)
    assert lora.places(params, after.spec) == lora.places(params, spec)
    assert tree_store.describe(after) == tree_store.describe(before)
    for field in ("kind", "rslora", "dropout"):
        assert getattr(after.spec, field) == getattr(spec, field)
    assert model_dir.read_model(tmp_path / "back" / "model.json") == (config, "float32")
    peft_export.export(tmp_path / "back", tmp_path / "again")
    assert tensors_of(tmp_path / "again") == tensors_of(tmp_path / "theirs")


def test_modules_are_named_as_short_as_can_be(tmp_path):
    write_adapters(tmp_path / "ours", *random_of("llama, patterns"))
    peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    settings = settings_of(tmp_path / "theirs")
    mlp = [f"model.layers.1.mlp.{name}_proj" for name in ("down", "gate", "up")]
    assert settings["target_modules"] == [*mlp, "q_proj"]
    assert settings["rank_pattern"] == {mlp[2]: 1, "model.layers.2.self_attn.q_proj": 5}
    assert settings["alpha_pattern"] == {"q_proj": 2.5}
    assert settings["task_type"] == "CAUSAL_LM"
    norms = [f"model.layers.{layer}.post_attention_layernorm" for layer in range(3)]
    assert settings["modules_to_save"] == [*norms, "model.norm"]


def random_of(name):
    config, spec = SPECS[name]
    return config, random_adapters(tiny.random_params(registry.create(config)), spec)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": "all-linear"}, {"targets": ("q", "k"), "layers": (0, 2)}),
        ({"target_modules": None}, {"targets": ("q", "k"), "layers": (0, 2)}),
        ({"target_modules": r".*\.(0|2)\..*self\.(query|key)"}, {"layers": (0, 2)}),
        ({"exclude_modules": ["value"], "target_modules": ["query", "key", "value"]}, {}),
        ({"alpha_pattern": {"query": 3}}, {"alpha_pattern": (("q", 3.0),), "alpha": 6.0}),
        ({"alpha_pattern": {"uery": 3}}, {"alpha_pattern": ()}),
        ({"use_rslora": True, "lora_dropout": 0.25}, {"rslora": True, "dropout": 0.25}),
        ({"some_new_option": None, "another": False, "bias": "none"}, {"kind": "lora"}),
        ({"init_lora_weights": "gaussian", "peft_version": "0.99"}, {}),
        # Those of the file count.
        ({"modules_to_save": None}, {"saved": (f"{HEAD}/bias", f"{HEAD}/kernel")}),
    ],
    ids=str,
)
def test_settings_become_a_spec(settings, expected, base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS | settings, bert_tensors())
    peft_import.convert(source, tmp_path / "ours", str(base))
    spec = load(tmp_path / "ours", registry.create(BERT).abstract).spec
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"lora_bias": True},
        {"loftq_config": {"loftq_bits": 4}},
        {"megatron_config": {}, "megatron_core": "mine"},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [3]},
        {"target_parameters": ["experts"]},
        {"alora_invocation_tokens": [1, 2]},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"ensure_weight_tying": True},
        {"peft_type": "LOHA"},
        {"peft_type": None},
        {"init_lora_weights": "pissa"},
        {"task_type": "QUESTION_ANS"},
        {"some_new_option": 1},
    ],
    ids=str,
)
def test_what_would_compute_something_else_is_refused_by_name(settings, base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS | settings, bert_tensors())
    *_, name = settings
    with pytest.raises(InputError, match=f"adapter_config.json: not supported.*: {name}="):
        peft_import.convert(source, tmp_path / "ours", str(base))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0},
        {"lora_alpha": "16"},
        {"rank_pattern": {"query": 0}},
        {"rank_pattern": ["query"]},
        {"alpha_pattern": {"(": 2}},
        {"target_modules": "("},
        {"target_modules": 3},
        {"layers_to_transform": ["0"]},
        {"modules_to_save": "classifier"},
    ],
    ids=str,
)
def test_impossible_settings_are_an_artifact_error(settings, base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS | settings, bert_tensors())
    (name,) = settings
    with pytest.raises(ArtifactError, match=f"impossible: {name}="):
        peft_import.convert(source, tmp_path / "ours", str(base))


def test_missing_unused_and_wrong_shaped_tensors_are_listed(base, tmp_path):
    tensors = bert_tensors()
    layer = "base_model.model.bert.encoder.layer."
    del tensors[f"{layer}0.attention.self.query.lora_B.weight"]
    del tensors["base_model.model.classifier.weight"]
    tensors[f"{layer}1.attention.self.query.lora_A.weight"] = np.zeros((2, 24), np.float32)
    tensors[f"{layer}2.attention.self.key.lora_A.weight"] = np.zeros((3, 24), np.float32)
    tensors["base_model.model.score.weight"] = np.zeros((5, 24), np.float32)
    source = write_source(tmp_path / "theirs", SETTINGS, tensors)
    with pytest.raises(ArtifactError) as caught:
        peft_import.convert(source, tmp_path / "ours", str(base))
    assert sorted(str(caught.value).splitlines()[1:]) == [
        f"  missing: {layer}0.attention.self.query.lora_B.weight (24, 2)",
        "  missing: base_model.model.classifier.weight (5, 24)",
        f"  unused: {layer}1.attention.self.query.lora_A.weight (2, 24)",
        "  unused: base_model.model.score.weight (5, 24)",
        f"  wrong shape: {layer}2.attention.self.key.lora_A.weight (3, 24), "
        "expected (2, 24) by adapter_config.json",
    ]
    assert not (tmp_path / "ours").exists()


def test_a_magnitude_is_missing_where_dora_is_said(base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS | {"use_dora": True}, bert_tensors())
    with pytest.raises(ArtifactError, match=r"missing: .*query\.lora_magnitude_vector \(24,\)"):
        peft_import.convert(source, tmp_path / "ours", str(base))


def test_a_head_that_the_base_lacks_must_be_whole(tmp_path):
    config = with_heads("distilbert", "sequence")
    params = tiny.random_params(registry.create(config))
    write_model(tmp_path / "bare", with_heads("distilbert"), params | {"heads": {}})
    write_adapters(tmp_path / "ours", *random_of("distilbert"))
    peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    peft_import.convert(tmp_path / "theirs", tmp_path / "back", str(tmp_path / "bare"))
    assert model_dir.read_model(tmp_path / "back" / "model.json")[0] == config

    tensors = safetensors.numpy.load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    part = {name: array for name, array in tensors.items() if "pre_classifier" not in name}
    settings = settings_of(tmp_path / "theirs") | {"modules_to_save": None}
    source = write_source(tmp_path / "part", settings, part)
    with pytest.raises(ArtifactError, match=r"missing: base_model\.model\.pre_classifier\.weight"):
        peft_import.convert(source, tmp_path / "other", str(tmp_path / "bare"))


def test_what_kind_a_head_is_must_be_told(base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS | {"task_type": None}, bert_tensors())
    peft_import.convert(source, tmp_path / "ours", str(base))  # the base tells
    assert model_dir.read_model(tmp_path / "ours" / "model.json")[0] == BERT
    bare = with_heads("bert")
    write_model(tmp_path / "bare", bare, tiny.random_params(registry.create(bare)))
    with pytest.raises(InputError, match="of which kind. Set its task_type to SEQ_CLS or TOKEN_"):
        peft_import.convert(source, tmp_path / "other", str(tmp_path / "bare"))
    write_source(source, SETTINGS | {"task_type": "TOKEN_CLS"}, bert_tensors())
    peft_import.convert(source, tmp_path / "other", str(tmp_path / "bare"))
    found, _ = model_dir.read_model(tmp_path / "other" / "model.json")
    assert found == dataclasses.replace(
        BERT, heads=(HeadConfig("token", "token", 5),), pooler=False
    )


def test_a_copy_of_the_bases_unembedding_must_equal_it(tmp_path):
    config, before = random_of("llama, all")
    params = tiny.random_params(registry.create(config))
    write_adapters(tmp_path / "ours", config, before)
    write_model(tmp_path / "base", config, params)
    peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    tensors = safetensors.numpy.load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    name = "base_model.model.lm_head.base_layer.weight"
    for change in (0.0, 1.0):
        copy = np.ascontiguousarray(params["unembed"]["kernel"].T) + np.float32(change)
        settings = settings_of(tmp_path / "theirs")
        source = write_source(tmp_path / "theirs", settings, tensors | {name: copy})
        if change:
            with pytest.raises(ArtifactError, match="lm_head.*trained on another base"):
                peft_import.convert(source, tmp_path / "other", str(tmp_path / "base"))
        else:
            peft_import.convert(source, tmp_path / "back", str(tmp_path / "base"))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_refused_with_the_remedy(name, base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS, bert_tensors())
    (source / "adapter_model.safetensors").rename(source / name)
    with pytest.raises(InputError, match=f"{name}.*save_pretrained"):
        peft_import.convert(source, tmp_path / "ours", str(base))


def test_damaged_files_are_artifact_errors(base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS, bert_tensors())
    weights = source / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="adapter_model.safetensors: corrupt"):
        peft_import.convert(source, tmp_path / "ours", str(base))
    for content in ("{", "[]"):
        (source / "adapter_config.json").write_text(content)
        with pytest.raises(ArtifactError, match="adapter_config.json: (not|must be a) JSON"):
            peft_import.convert(source, tmp_path / "ours", str(base))
    (source / "adapter_config.json").unlink()
    with pytest.raises(ArtifactError, match="adapter_config.json: missing"):
        peft_import.convert(source, tmp_path / "ours", str(base))
    write_source(source, SETTINGS, {"base_model.model.classifier.bias": np.zeros(5, np.float32)})
    with pytest.raises(ArtifactError, match="missing"):
        peft_import.convert(source, tmp_path / "ours", str(base))


def test_a_file_without_factors_is_none(base, tmp_path):
    head = {name: array for name, array in bert_tensors().items() if "classifier" in name}
    source = write_source(tmp_path / "theirs", SETTINGS | {"target_modules": None}, head)
    with pytest.raises(ArtifactError, match="holds no factors of LoRA"):
        peft_import.convert(source, tmp_path / "ours", str(base))


def test_the_base_is_named_by_the_settings_or_the_caller(base, tmp_path):
    source = write_source(
        tmp_path / "theirs", SETTINGS | {"base_model_name_or_path": str(base)}, bert_tensors()
    )
    peft_import.convert(source, tmp_path / "ours")
    with pytest.raises(InputError, match="holds adapters itself"):
        peft_import.convert(source, tmp_path / "other", str(tmp_path / "ours"))
    write_source(source, SETTINGS | {"base_model_name_or_path": None}, bert_tensors())
    with pytest.raises(InputError, match="names no base; give it with --base"):
        peft_import.convert(source, tmp_path / "other")
    write_source(source, SETTINGS | {"revision": "v2"}, bert_tensors())
    with pytest.raises(InputError, match="revision 'v2' of base.*--base"):
        peft_import.convert(source, tmp_path / "other")


def named(directory, labels):
    (directory / "conversion.json").write_text(json.dumps({"labels": labels}))
    model_files.seal(directory)


def exported_labels(adapter, destination):
    """What a merged export of adapters calls its scores."""
    hf_export.export(adapter, destination, merge=True, progress=lambda line: None)
    return [*json.loads((destination / "config.json").read_text())["id2label"].values()]


def test_a_head_keeps_the_names_of_the_bases(base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS, bert_tensors())
    base = shutil.copytree(base, tmp_path / "base")
    names = ["c", "e", "a", "d", "b"]
    named(base, names)
    peft_import.convert(source, tmp_path / "ours", str(base))
    assert exported_labels(tmp_path / "ours", tmp_path / "merged") == names
    named(base, names[:3])  # of a head of another size
    peft_import.convert(source, tmp_path / "other", str(base))
    assert exported_labels(tmp_path / "other", tmp_path / "plain") == [
        f"LABEL_{index}" for index in range(5)
    ]


def test_names_travel_with_an_exported_adapter(base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS, bert_tensors())
    peft_import.convert(source, tmp_path / "ours", str(base))
    named(tmp_path / "ours", ["v", "w", "x", "ÿ", "z"])
    peft_export.export(tmp_path / "ours", tmp_path / "exported")
    peft_import.convert(tmp_path / "exported", tmp_path / "back", str(base))
    assert exported_labels(tmp_path / "back", tmp_path / "merged") == ["v", "w", "x", "ÿ", "z"]
    named(tmp_path / "ours", ["v", "w"])
    with pytest.raises(ArtifactError, match="5 scores and 2 labels"):
        peft_export.export(tmp_path / "ours", tmp_path / "other")


# Export -------------------------------------------------------------------------------------------


def write_run(directory):
    """A run of two heads, of which the better checkpoint is the first."""
    heads = (HeadConfig("topic", "sequence", 3), HeadConfig("tags", "token", 4))
    config = dataclasses.replace(BERT, heads=heads)
    params = tiny.random_params(registry.create(config))
    spec = Spec(rank=2, saved=("heads/.*", "pooler/.*"))
    trained = [random_adapters(params, spec, seed) for seed in (0, 1)]
    with Checkpoints(directory, keep=2) as saved:
        for step, (one, score) in enumerate(zip(trained, (0.9, 0.1), strict=True), start=1):
            saved.save(step, one, {"n": jnp.int32(step)}, None, {"score": score})
    model_dir.write_model(directory / "model.json", config, "float32")
    info = AdapterInfo(spec, "owner/base", "0" * 64)
    model_dir.write_adapters(directory / "adapters.json", info)
    tasks = (Task("topic", "class", ("a", "b", "ü")), Task("tags", "slots", ("x", "y", "z")))
    Recipe(tasks, None, "names", 16, 0).save(directory / "task.json")
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "tokenizer.json").write_text("{}")
    return trained


def test_a_run_is_exported_with_the_head_of_one_task(tmp_path):
    best, last = write_run(tmp_path / "run")
    with pytest.raises(InputError, match="topic, tags. Name one of them"):
        peft_export.export(tmp_path / "run", tmp_path / "theirs")
    peft_export.export(tmp_path / "run", tmp_path / "theirs", task="topic")
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    files = {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"}
    assert names == files
    settings = settings_of(tmp_path / "theirs")
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["base_model_name_or_path"] == "owner/base"
    assert settings["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    found = safetensors.numpy.load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    kernel = found["base_model.model.classifier.weight"]
    np.testing.assert_array_equal(kernel, best.saved["heads"]["topic"]["out"]["kernel"].T)
    card = (tmp_path / "theirs" / "README.md").read_text("utf-8")
    assert 'AutoModelForSequenceClassification.from_pretrained("owner/base", num_labels=3)' in card
    assert "in this order: a, b, ü." in card
    assert 'base.config.id2label = dict(enumerate(["a", "b", "ü"]))' in card
    assert "library_name: peft" in card

    peft_export.export(tmp_path / "run", tmp_path / "other", task="tags", step="last")
    assert settings_of(tmp_path / "other")["task_type"] == "TOKEN_CLS"
    found = safetensors.numpy.load_file(tmp_path / "other" / "adapter_model.safetensors")
    assert not [name for name in found if "pooler" in name]
    kernel = found["base_model.model.classifier.weight"]
    np.testing.assert_array_equal(kernel, last.saved["heads"]["tags"]["out"]["kernel"].T)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec(saved=("layers/.*/bias",)), r"saves whole modules.*query\.weight"),
        (Spec(targets=(), saved=("heads/.*",)), "trained no factors"),
        (Spec(targets=("q", "out"), saved=("heads/.*",)), r"give it factors: classifier\.weight"),
    ],
)
def test_what_peft_has_no_form_for_is_not_exported(spec, message, tmp_path):
    trained = random_adapters(tiny.random_params(registry.create(BERT)), spec)
    write_adapters(tmp_path / "ours", BERT, trained)
    with pytest.raises(InputError, match=message):
        peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_a_trained_embedding_of_a_tied_model_is_refused_both_ways(tmp_path):
    config = dataclasses.replace(tiny.CONFIG, tie_embeddings=True)
    params = tiny.random_params(registry.create(config))
    trained = random_adapters(params, Spec(saved=("embed/embedding",)))
    write_adapters(tmp_path / "ours", config, trained)
    with pytest.raises(InputError, match="ties its unembedding"):
        peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    write_model(tmp_path / "base", config, params)
    write_adapters(tmp_path / "plain", config, random_adapters(params, Spec()))
    peft_export.export(tmp_path / "plain", tmp_path / "theirs")
    tensors = safetensors.numpy.load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    name = "base_model.model.model.embed_tokens.weight"
    tensors[name] = np.asarray(params["embed"]["embedding"])
    write_source(tmp_path / "theirs", settings_of(tmp_path / "theirs"), tensors)
    with pytest.raises(InputError, match="ties its unembedding"):
        peft_import.convert(tmp_path / "theirs", tmp_path / "back", str(tmp_path / "base"))


def test_whole_models_and_prefixes_are_not_exported(base, tmp_path):
    with pytest.raises(InputError, match="holds a whole model.*to_hf"):
        peft_export.export(base, tmp_path / "theirs")
    config = dataclasses.replace(tiny.CONFIG, prefix=2)
    params = jax.tree.map(jnp.zeros_like, registry.create(config).abstract)
    trained = lora.init(params, Spec(saved=("layers/prefix/.*",)), jax.random.key(0))
    write_adapters(tmp_path / "ours", config, trained)
    with pytest.raises(InputError, match="has a trained prefix"):
        peft_export.export(tmp_path / "ours", tmp_path / "theirs")


def test_a_corrupt_adapter_directory_is_not_exported(tmp_path):
    write_adapters(tmp_path / "ours", *random_of("llama"))
    chunk = next((tmp_path / "ours" / "params" / "factors.layers.attention.q.a" / "c").rglob("0"))
    chunk = next(path for path in [chunk, *chunk.rglob("*")] if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ArtifactError, match="factors/layers/attention/q/a: its checksum differs"):
        peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("checkpoint", ["", "package:some/folder", "OURS"])
def test_a_base_that_transformers_cannot_open_is_not_named(checkpoint, base, tmp_path):
    checkpoint = checkpoint.replace("OURS", str(base))
    write_adapters(tmp_path / "ours", *random_of("llama"), checkpoint)
    peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    assert settings_of(tmp_path / "theirs")["base_model_name_or_path"] is None


def test_tokenizers_come_from_the_adapter_or_the_base(base, tmp_path):
    source = write_source(tmp_path / "theirs", SETTINGS, bert_tensors())
    base = shutil.copytree(base, tmp_path / "base")
    of_base, own = Tokenizer.train(["a b"], 262), Tokenizer.train(["a b a b"], 264)
    of_base.save(base / "tokenizer")
    peft_import.convert(source, tmp_path / "ours", str(base))
    own.save(source)
    peft_import.convert(source, tmp_path / "other", str(base))
    for name, expected in (("ours", of_base), ("other", own)):
        found = Tokenizer.load(tmp_path / name / "tokenizer")
        assert found.fingerprint == expected.fingerprint
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="the tokenizer cannot be read"):
        peft_import.convert(source, tmp_path / "none", str(base))


def test_the_commands_end_with_the_exit_code_of_their_error(base, tmp_path, monkeypatch, capsys):
    # Threads of pytest's own workers would have a command end the process at once.
    monkeypatch.setattr(errors, "exit_at_once", sys.exit)

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            errors.run(command.main)
        return caught.value.code

    source = write_source(tmp_path / "theirs", SETTINGS, bert_tensors())
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert run(from_peft, source, ours, "--base", base) == 0
    assert run(from_peft, source, ours, "--base", base) == 2
    assert run(from_peft, source, ours, "--base", base, "--overwrite") == 0
    assert run(from_peft, tmp_path / "absent", back, "--base", base) == 3
    assert run(to_peft, ours, back, "--step", "last") == 0
    assert run(to_peft, ours, back) == 2
    assert run(to_peft, ours, back, "--task", "sequence", "--overwrite") == 0
    assert run(to_peft, ours, tmp_path / "other", "--task", "topic") == 2
    assert run(to_peft, ours, tmp_path / "other", "--step", "first") == 2
    assert run(to_peft, tmp_path / "absent", tmp_path / "other") == 3
    assert tensors_of(back) == tensors_of(source)
    for command in (from_peft, to_peft):
        assert run(command, "--help") == 0
    assert peft.WEIGHTS in capsys.readouterr().out
