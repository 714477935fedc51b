"""What a run takes over from a checkpoint's head: rows by their names, never by their places."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.checkpoint import model_dir
from jaxclf.classifiers import transfer
from jaxclf.core.errors import InputError
from jaxclf.core.tree import flatten, nest
from jaxclf.data.tasks import Task, head_labels
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.heads import HeadConfig
from tests.tiny_adapters import write_model
from tests.tiny_encoders import ENCODERS

BIO = ("O", "B-place", "I-place", "B-time", "I-time")


def config_of(head: HeadConfig):
    pooler = head.kind == "sequence"
    return dataclasses.replace(ENCODERS["bert"], heads=(head,), pooler=pooler)


def checkpoint(directory, known, kind="sequence"):
    """A converted model whose head scores `known`: row i is filled with i."""
    config = config_of(HeadConfig(kind, kind, len(known)))
    leaves = flatten(registry.create(config).abstract)
    values = {path: jnp.zeros(leaf.shape) for path, leaf in leaves.items()}
    for name in ("kernel", "bias"):
        path = f"heads/{kind}/out/{name}"
        values[path] = jnp.broadcast_to(jnp.arange(len(known), dtype=float), leaves[path].shape)
    write_model(directory, config, nest(values))
    origin = {"source": "theirs", "unused": [], "labels": list(known)}
    (directory / "conversion.json").write_text(json.dumps(origin))
    return model_dir.resolve(directory)


def rows(base, task: Task, slot_format="names"):
    """Label → the row of the checkpoint that a run of this task reads for it, and the notes."""
    recipe = Recipe((task,), None, slot_format, max_length=16, max_new_tokens=0)
    labels = head_labels(task, slot_format)
    kind = "token" if task.kind == "slots" else "sequence"
    model = registry.create(config_of(HeadConfig(task.name, kind, len(labels))))
    plan = transfer.plan(model, base, "keep", recipe)
    head = transfer.load(model, base, plan, jax.random.key(0))["heads"][task.name]["out"]
    assert np.array_equal(head["kernel"], np.broadcast_to(head["bias"], head["kernel"].shape))
    return dict(zip(labels, map(int, head["bias"]), strict=True)), plan.notes


def classes(*labels):
    return Task("topic", "class", tuple(sorted(labels)))


def unnamed(count):
    return [f"LABEL_{i}" for i in range(count)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([str(i) for i in range(12)], range(12)),
        ([f"{i:03}" for i in range(12)], range(12)),
        ([f"class {i}" for i in range(12)], range(12)),
        ([f"{i}.0" for i in range(12)], range(12)),
        (["-1", "0", "1"], [0, 1, 2]),
        ([str(i) for i in range(1, 13)], range(12)),
    ],
    ids=["integers", "leading zeros", "numbered", "decimals", "signs", "from one"],
)
def test_row_i_of_a_head_without_names_is_label_i(tmp_path, labels, expected):
    found, _ = rows(checkpoint(tmp_path / "base", unnamed(len(labels))), classes(*labels))
    assert found == dict(zip(labels, expected, strict=True))


def test_numbers_of_unnamed_rows_are_read_where_they_are_in_another_order(tmp_path):
    known = sorted(unnamed(12))  # LABEL_0, LABEL_1, LABEL_10 …
    found, notes = rows(checkpoint(tmp_path / "base", known), classes(*map(str, range(12))))
    assert found == {str(i): known.index(f"LABEL_{i}") for i in range(12)}
    assert notes == ()


def test_what_is_assumed_of_a_head_without_names_is_said(tmp_path):
    base = checkpoint(tmp_path / "base", unnamed(3))
    found, (note,) = rows(base, classes("news", "alarm", "music"))
    assert found == {"alarm": 0, "music": 1, "news": 2}
    assert "alarm, music, news, in this order" in note
    assert "model.heads=new" in note


@pytest.mark.parametrize("known", [["news", "alarm", "music"], ["10", "9", "0"]])
def test_rows_are_found_by_their_names(tmp_path, known):
    found, notes = rows(checkpoint(tmp_path / "base", known), classes(*known))
    assert found == {name: row for row, name in enumerate(known)}
    assert notes == ()


@pytest.mark.parametrize(
    ("known", "slot_format"),
    [
        (["B-time", "B-place", "I-place", "I-time", "O"], "bio"),
        (["time", "Other", "place"], "names"),
    ],
)
def test_rows_of_tags_are_found_by_their_names(tmp_path, known, slot_format):
    task = Task("tags", "slots", ("place", "time"))
    found, _ = rows(checkpoint(tmp_path / "base", known, "token"), task, slot_format)
    assert found == {name: row for row, name in enumerate(known)}


def test_rows_of_several_labels_are_found_by_their_names(tmp_path):
    task = Task("topics", "multilabel", ("a", "b", "c"))
    found, _ = rows(checkpoint(tmp_path / "base", ["c", "a", "b"]), task)
    assert found == {"c": 0, "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("known", "labels", "words"),
    [
        (["Alarm", "music"], ["alarm", "music"], "'alarm' of task topic.*'Alarm' is another name"),
        (["a", "b", "c"], ["a", "b", "d"], "'d' of task topic is outside"),
        (["a", "LABEL_1"], ["a", "b"], "'b' of task topic is outside"),
        (["LABEL_0", "LABEL_2"], ["0", "1"], "'0' of task topic is outside"),
        (["0", "1"], ["00", "01"], "'00' of task topic is outside"),
    ],
    ids=["case", "one other", "half named", "a gap", "written otherwise"],
)
def test_names_that_are_others_are_refused(tmp_path, known, labels, words):
    base = checkpoint(tmp_path / "base", known)
    with pytest.raises(InputError, match=f"(?s){words}.*model.heads=new"):
        rows(base, classes(*labels))


def test_tags_of_which_some_have_other_names_are_refused(tmp_path):
    base = checkpoint(tmp_path / "base", [tag.replace("-time", "-date") for tag in BIO], "token")
    with pytest.raises(InputError, match=r"'B-time' of task tags is outside"):
        rows(base, Task("tags", "slots", ("place", "time")), "bio")


def test_a_model_of_fewer_layers_takes_evenly_spaced_ones(tmp_path):
    leaves = flatten(registry.create(config_of(HeadConfig("topic", "sequence", 2))).abstract)
    whole = {
        path: jnp.broadcast_to(
            jnp.arange(leaf.shape[0], dtype=float).reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape
        )
        for path, leaf in leaves.items()
    }
    named = {path.replace("heads/topic", "heads/sequence"): leaf for path, leaf in whole.items()}
    write_model(tmp_path, config_of(HeadConfig("sequence", "sequence", 2)), nest(named))
    base = model_dir.resolve(tmp_path)  # of 3 layers
    config = dataclasses.replace(config_of(HeadConfig("topic", "sequence", 2)), num_layers=2)
    model = registry.create(config)
    plan = transfer.plan(model, base, "keep")
    assert plan.layers == (0, 2)
    assert any("0, 2" in note for note in plan.notes)
    for path, leaf in flatten(transfer.load(model, base, plan, jax.random.key(0))).items():
        expected = whole[path][np.array([0, 2])] if path.startswith("layers/") else whole[path]
        np.testing.assert_array_equal(leaf, expected)
