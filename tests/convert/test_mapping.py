"""The engine: rows become tensors, and every defect of a checkpoint is listed."""

import pytest

from jaxclf.convert import decoders, mapping
from jaxclf.convert.mapping import TensorRow
from jaxclf.core import tree
from jaxclf.core.errors import ArtifactError
from jaxclf.models import registry

ROWS = (
    TensorRow("embed.weight", "embed/embedding"),
    TensorRow("layers.{layer}.up.weight", "layers/up/kernel", transpose=True),
    TensorRow("head.weight", "unembed/kernel", transpose=True),
)
LEAVES = {"embed/embedding": (9, 4), "layers/up/kernel": (2, 4, 6)}


def test_a_row_becomes_a_tensor_per_layer_transposed_where_it_says_so():
    tensors = mapping.expand(ROWS, LEAVES)
    assert [(t.name, t.shape, t.layer) for t in tensors] == [
        ("embed.weight", (9, 4), None),
        ("layers.0.up.weight", (6, 4), 0),
        ("layers.1.up.weight", (6, 4), 1),
    ]


def test_a_leaf_without_a_row_is_a_defect_of_the_table():
    with pytest.raises(ValueError, match=r"no row for \['norm/scale'\]"):
        mapping.expand(ROWS, LEAVES | {"norm/scale": (4,)})


def test_missing_unused_and_wrong_shaped_tensors_are_listed_together():
    tensors = mapping.expand(ROWS, LEAVES)
    found = {"embed.weight": (8, 4), "layers.0.up.weight": (6, 4), "x.bias": (3,), "y.freq": (1,)}
    with pytest.raises(ArtifactError) as caught:
        mapping.check(tensors, found, [r".*\.freq"], "checkpoint")
    assert str(caught.value).splitlines()[1:] == [
        "  missing: layers.1.up.weight (6, 4)",
        "  wrong shape: embed.weight (8, 4), expected (9, 4) by config.json",
        "  unused: x.bias (3,)",
    ]


def test_rows_of_one_name_are_parts_of_a_tensor():
    rows = (
        TensorRow("layers.{layer}.qk.weight", "layers/q/kernel", transpose=True),
        TensorRow("layers.{layer}.qk.weight", "layers/k/kernel", transpose=True),
    )
    tensors = mapping.expand(rows, {"layers/q/kernel": (2, 4, 6), "layers/k/kernel": (2, 4, 3)})
    assert [(t.name[7], t.ours[7], t.slices) for t in tensors] == [
        ("0", "q", (slice(0, 6, 1),)),
        ("1", "q", (slice(0, 6, 1),)),
        ("0", "k", (slice(6, 9, 1),)),
        ("1", "k", (slice(6, 9, 1),)),
    ]
    mapping.check(tensors, {f"layers.{i}.qk.weight": (9, 4) for i in range(2)}, [], "checkpoint")


def test_what_fits_passes():
    tensors = mapping.expand(ROWS, LEAVES)
    mapping.check(tensors, {t.name: t.shape for t in tensors}, [], "checkpoint")


@pytest.mark.parametrize("name", ["llama3_8b", "llama3.2_1b"])
def test_the_llama_table_covers_the_model(name):
    leaves = tree.flatten(registry.create(name).abstract)
    config = registry.CONFIGS[name]
    rows = decoders.rows(config)
    tensors = mapping.expand(rows, {path: leaf.shape for path, leaf in leaves.items()})
    assert len(tensors) == config.num_layers * 9 + (2 if config.tie_embeddings else 3)
    assert len({tensor.name for tensor in tensors}) == len(tensors)
