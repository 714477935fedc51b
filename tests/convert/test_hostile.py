"""Files of Hugging Face that are damaged, lie, or ask for more than there is."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from benchmarks.faults import model_files
from jaxclf.convert import files, hf_export, hf_import, peft_import
from jaxclf.core.errors import ArtifactError, InputError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """See `model_files.write_folders`; no test changes them."""
    root = tmp_path_factory.mktemp("folders")
    model_files.write_folders(root)
    return root


@pytest.fixture
def theirs(folders, tmp_path):
    """A copy of one of the folders, to be changed."""

    def copy(name):
        target = tmp_path / "theirs" / name
        target.mkdir(parents=True)
        for path in (folders / name).iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        return target

    return copy


def convert(source, destination, **options):
    hf_import.convert(source, destination, progress=lambda line: None, **options)


def refuse(source, words, error=ArtifactError, **options):
    """The conversion is refused in these words, and leaves nothing behind, not even a parent."""
    parent = source.parents[1]
    before = sorted(parent.iterdir())
    with pytest.raises(error, match=words) as caught:
        convert(source, parent / "new" / "folder" / "ours", **options)
    assert sorted(parent.iterdir()) == before
    return str(caught.value)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_values(path, changes):
    """Set some values of a file's tensors: name → (index, value)."""
    tensors = {name: a.copy() for name, a in safetensors.numpy.load_file(path).items()}
    for name, (index, value) in changes.items():
        tensors[name].reshape(-1)[index] = value
    safetensors.numpy.save_file(tensors, path)


# NaN and infinity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("quantise", ["none", "int8", "int4", "nf4"])
def test_weights_that_are_no_numbers_are_named_and_counted(theirs, quantise):
    source = theirs("llama")
    for path in source.glob("*.safetensors"):
        names = safetensors.numpy.load_file(path)
        changes = {
            "model.layers.1.mlp.up_proj.weight": (slice(0, 2), np.nan),
            "model.norm.weight": (3, -np.inf),
        }
        with_values(path, {name: each for name, each in changes.items() if name in names})
    message = refuse(source, "NaN or infinite", quantise=quantise)
    assert "model.norm.weight: 1 of 16 values" in message
    lines = [line for line in message.splitlines() if "up_proj" in line]
    assert len(lines) == 1
    assert lines[0].strip().startswith("model.layers.1.mlp.up_proj.weight: ")
    assert quantise != "none" or "2 of 384 values" in lines[0]


def test_a_cast_that_overflows_is_refused(theirs):
    source = theirs("bert")
    with_values(source / "model.safetensors", {"bert.pooler.dense.bias": (0, 3.4e38)})
    refuse(source, r"bert\.pooler\.dense\.bias: 1 of 16 .*(?s:.*)dtype", dtype="bfloat16")
    convert(source, source.parents[1] / "kept")


def test_adapters_that_are_no_numbers_are_refused(folders, theirs, tmp_path):
    source = theirs("adapter")
    name = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
    with_values(source / "adapter_model.safetensors", {name: (0, np.inf)})
    with pytest.raises(ArtifactError, match=r"layer\.1.*lora_B\.weight: 1 of 32 values"):
        peft_import.convert(source, tmp_path / "ours", str(folders / "bert-converted"))
    assert not (tmp_path / "ours").exists()


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [3, None, ["a"], {"a": "b"}, True])
def test_an_index_of_no_names_is_refused(theirs, place):
    source = theirs("llama")
    edit(source / "model.safetensors.index.json", weight_map={"model.norm.weight": place})
    refuse(source, "weight_map")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", ["[" * 100_000, "", "\xff", "[]"])
def test_json_that_is_none_is_refused(theirs, name, content):
    source = theirs("bert")
    (source / name).write_bytes(content.encode("latin-1"))
    refuse(source, name.replace(".", r"\."), (ArtifactError, InputError))


def test_json_that_is_no_tokenizer_is_refused(theirs):
    source = theirs("bert")
    (source / "tokenizer.json").write_text("{}")
    refuse(source, "theirs/bert: the tokenizer cannot be read.*tokenizer.path")


@pytest.mark.parametrize(("token", "new"), [("m", "M"), ("g", "revision")])
def test_a_vocabulary_without_a_token_that_merges_need_is_refused(theirs, token, new):
    """The library raises, or panics, only when it reads its own serialization."""
    source = theirs("bert")
    fields = json.loads((source / "tokenizer.json").read_text())
    vocabulary = fields["model"]["vocab"]
    vocabulary[new] = vocabulary.pop(token)
    (source / "tokenizer.json").write_text(json.dumps(fields))
    refuse(source, "the tokenizer cannot be read")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"]
)
def test_a_link_to_nothing_is_refused_and_one_to_a_file_followed(theirs, tmp_path, name):
    source = theirs("bert")
    elsewhere = tmp_path / f"blob-{name}"
    os.replace(source / name, elsewhere)
    (source / name).symlink_to(elsewhere)
    convert(source, tmp_path / "ours")
    assert not [path for path in (tmp_path / "ours").rglob("*") if path.is_symlink()]
    os.replace(elsewhere, tmp_path / "gone")
    refuse(source, name.replace(".", r"\."))


def test_a_pipe_is_not_waited_for(theirs):
    source = theirs("bert")
    (source / "config.json").unlink()
    os.mkfifo(source / "config.json")
    refuse(source, r"config\.json: no regular file")


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 10**6, 2**31, 10**30])
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("llama", "num_hidden_layers"),
        ("llama", "vocab_size"),
        ("bert", "num_hidden_layers"),
        ("bert", "max_position_embeddings"),
        ("t5", "num_decoder_layers"),
        ("t5", "d_ff"),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused(theirs, folder, name, size):
    source = theirs(folder)
    edit(source / "config.json", **{name: size})
    assert len(refuse(source, "config.json|do not fit")) < 20_000


@pytest.mark.parametrize("count", [0, 10**9, -1, "2", 2.5])
def test_an_impossible_count_of_labels_is_refused(theirs, count):
    source = theirs("bert")
    fields = json.loads((source / "config.json").read_text())
    del fields["id2label"], fields["label2id"]
    (source / "config.json").write_text(json.dumps(fields | {"num_labels": count}))
    refuse(source, "num_labels")


@pytest.mark.parametrize(
    ("folder", "change"),
    [
        ("llama", {"rms_norm_eps": float("nan")}),
        ("llama", {"rms_norm_eps": 10**400}),
        ("llama", {"initializer_range": -1}),
        ("llama", {"rope_parameters": {"rope_theta": float("inf")}, "rope_theta": None}),
        ("llama", {"rope_parameters": {"rope_theta": 0}, "rope_theta": None}),
        ("llama", {"rope_parameters": {"rope_type": ["default"]}}),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 2}),
        ("bert", {"hidden_dropout_prob": 1.0}),
        ("bert", {"architectures": 5}),
        ("t5", {"feed_forward_proj": ["relu"]}),
        ("t5", {"decoder_start_token_id": 300}),
        ("t5", {"decoder_start_token_id": 0.5}),
    ],
)
def test_values_that_no_model_has_are_refused(theirs, folder, change):
    source = theirs(folder)
    edit(source / "config.json", **change)
    refuse(source, r"config\.json", (ArtifactError, InputError))


# Labels -------------------------------------------------------------------------------------------

NAMES = {"0": "a", "1": "b", "2": "c"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label2id": {"a": 0, "b": 2, "c": 1}}, "label2id contradicts id2label"),
        ({"label2id": {"a": 0, "b": 1}}, "label2id contradicts id2label"),
        ({"label2id": {"a": "0", "b": "1", "c": "2"}}, "label2id contradicts id2label"),
        ({"label2id": ["a", "b", "c"]}, "label2id contradicts id2label"),
        ({"num_labels": 4}, "num_labels is 4, and id2label names 3"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "names two scores 'a'"),
        ({"id2label": {"0": "a", "1": "b", "2": None}}, "None where a name is expected"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": None}, r"classifier\.weight \(3, 16\)"),
    ],
)
def test_labels_that_contradict_themselves_or_the_tensors_are_refused(theirs, change, words):
    source = theirs("bert")
    edit(source / "config.json", id2label=NAMES, label2id={"a": 0, "b": 1, "c": 2})
    convert(source, source.parents[1] / "good")
    edit(source / "config.json", **change)
    refuse(source, words)


@pytest.mark.parametrize("default", [{"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, None])
def test_names_stand_in_id2label_alone_where_label2id_is_transformers_own(
    theirs, tmp_path, default
):
    source = theirs("bert")
    edit(source / "config.json", id2label={"0": "x", "1": 7, "2": "z"}, label2id=default)
    convert(source, tmp_path / "ours")
    hf_export.export(tmp_path / "ours", tmp_path / "back", progress=lambda line: None)
    fields = json.loads((tmp_path / "back" / "config.json").read_text())
    assert fields["id2label"] == {"0": "x", "1": "7", "2": "z"}
    assert fields["label2id"] == {"x": 0, "7": 1, "z": 2}


# A short campaign ---------------------------------------------------------------------------------


def test_every_mutation_is_refused_or_read_as_the_file_says(folders):
    outcomes = [model_files.run_case(folders, seed=0, number=number) for number in range(80)]
    assert [outcome for outcome in outcomes if outcome.kind not in model_files.FINE] == []
    kinds = {outcome.kind for outcome in outcomes}
    assert {"refused", "equal"} <= kinds


def test_the_campaign_sees_other_arrays_than_the_files(folders, monkeypatch):
    def slipping(self, name):
        file, stored = self._places[name]
        return file.get_tensor(stored) + 1

    monkeypatch.setattr(files.Weights, "__getitem__", slipping)
    monkeypatch.setattr(model_files, "change", lambda directory, draw: "nothing")
    found = {model_files.run_case(folders, 0, number).kind for number in range(4)}
    assert found == {"silent"}
