"""Trees on disk: bit-exact round trips, and every kind of damage named."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxclf.checkpoint import tree_store
from jaxclf.core.errors import ArtifactError
from jaxclf.core.tree import flatten, nest


def leaf(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


PARTS = {
    "embed/embedding": leaf((7, 4), ml_dtypes.bfloat16),
    "layers/mlp/up/kernel": leaf((3, 4, 5), ml_dtypes.bfloat16),
    "layers/norm/scale": np.zeros((3, 4), np.float32),  # zeros are what lost chunks read as
    "norm/scale": leaf((4,), np.float16),
}


@pytest.mark.parametrize("shape", [(3, 300), (300, 3), (2, 129, 5), (128,), (4, 256)])
def test_a_view_is_copied_whole_however_it_is_turned(shape):
    array = leaf(shape, np.float32)
    for view in (array, array.T):
        found = tree_store.contiguous(view, "float64")
        np.testing.assert_array_equal(found, view)
        assert found.flags.c_contiguous
        assert found.dtype == np.float64


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A tree written as a conversion does, in blocks of two rows of the kernel."""
    monkeypatch.setattr(tree_store, "BLOCK_BYTES", 20)
    with tree_store.TreeWriter(tmp_path / "params") as writer:
        for path, array in PARTS.items():
            stacked = path.startswith("layers")
            writer.write(path, array.shape, array.dtype.name, array if stacked else [array])
    return tmp_path / "params", writer.manifest


def abstract(dtype=None):
    tree = {path: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype) for path, a in PARTS.items()}
    return nest(tree)


def named(error):
    """The leaves an error lists."""
    return re.findall(r"^  (\S+): ", str(error), re.MULTILINE)


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_what_is_written_in_blocks_is_read_back_bit_for_bit(written):
    restored = flatten(tree_store.restore(*written, abstract()))
    for path, array in PARTS.items():
        assert np.asarray(restored[path]).tobytes() == array.tobytes()
        assert restored[path].dtype == array.dtype


def test_the_manifest_holds_the_checksums_of_the_leaves_themselves(written):
    assert written[1] == tree_store.describe(nest(PARTS))


def test_orbax_reads_it_without_us(written):
    restored = flatten(ocp.StandardCheckpointer().restore(written[0]))
    assert {path: array.tobytes() for path, array in PARTS.items()} == {
        path: np.asarray(array).tobytes() for path, array in restored.items()
    }


def test_a_transposed_part_is_written_as_it_reads(tmp_path):
    kernel = leaf((5, 3), np.float32)
    with tree_store.TreeWriter(tmp_path / "params") as writer:
        writer.write("k", (3, 5), "float32", [kernel.T])
    np.testing.assert_array_equal(tree_store.read(tmp_path / "params", "k"), kernel.T)


def test_layers_are_read_one_by_one(written):
    for index, layer in enumerate(PARTS["layers/mlp/up/kernel"]):
        read = tree_store.read(written[0], "layers/mlp/up/kernel", index)
        assert read.tobytes() == layer.tobytes()


@pytest.mark.parametrize("parts", [[np.zeros((2, 2))], [np.zeros((4, 5))] * 2])
def test_parts_that_do_not_fill_the_leaf_are_refused(tmp_path, parts):
    with pytest.raises(ValueError, match="kernel"), tree_store.TreeWriter(tmp_path / "p") as writer:
        writer.write("kernel", (3, 4, 5), "float32", parts)


def test_floats_are_cast_on_request_only(written):
    restored = tree_store.restore(*written, abstract(jnp.float32), cast=True)
    np.testing.assert_array_equal(
        np.asarray(restored["embed"]["embedding"]), PARTS["embed/embedding"].astype(np.float32)
    )
    with pytest.raises(ArtifactError, match="embed/embedding: dtype bfloat16, expected float32"):
        tree_store.restore(*written, abstract(jnp.float32))


def test_missing_unexpected_and_wrong_leaves_are_all_listed(written):
    tree = abstract()
    tree["extra"] = tree.pop("norm")
    tree["embed"]["embedding"] = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
    with pytest.raises(ArtifactError) as caught:
        tree_store.restore(*written, tree)
    for line in (
        "extra/scale: missing",
        "norm/scale: unexpected",
        "embed/embedding: shape (7, 4), expected (8, 4)",
    ):
        assert line in str(caught.value)


def test_a_flipped_bit_is_named(written):
    directory, manifest = written
    for path in PARTS:
        for file in files(directory / path.replace("/", ".") / "c"):
            good = file.read_bytes()
            bad = bytearray(good)
            bad[0] ^= 1  # later ones may be padding of the last chunk
            file.write_bytes(bad)
            with pytest.raises(ArtifactError) as caught:
                tree_store.restore(directory, manifest, abstract())
            assert caught.value.exit_code == 3
            assert named(caught.value) == [path]
            file.write_bytes(good)
    tree_store.restore(directory, manifest, abstract())


@pytest.mark.parametrize("position", range(0, 420, 20))
def test_a_flipped_bit_in_a_description_is_named_or_harmless(written, position):
    directory, manifest = written
    path = "layers/mlp/up/kernel"
    file = directory / path.replace("/", ".") / "zarr.json"
    bad = bytearray(file.read_bytes())
    bad[position % len(bad)] ^= 2
    file.write_bytes(bad)
    try:
        restored = tree_store.restore(directory, manifest, abstract())
        assert tree_store.describe(restored) == manifest
    except ArtifactError as error:
        assert named(error) == [path]  # noqa: PT017 - some of its bytes mean nothing


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_truncated_and_missing_files_are_named_all_at_once(written, damage):
    directory, manifest = written
    damaged = ["embed/embedding", "layers/norm/scale"]
    for path in damaged:
        file = files(directory / path.replace("/", "."))[0]
        file.write_bytes(file.read_bytes()[:-1])
        if damage == "missing":
            file.unlink()
    with pytest.raises(ArtifactError) as caught:
        tree_store.restore(directory, manifest, abstract())
    assert named(caught.value) == damaged


def test_a_damaged_list_of_leaves_is_an_artifact_error(written):
    directory, manifest = written
    metadata = directory / "_METADATA"
    metadata.write_text(metadata.read_text().replace("norm", "nurm"))
    with pytest.raises(ArtifactError, match="params"):
        tree_store.restore(directory, manifest, abstract())


def test_any_tree_keeps_its_structure_kinds_and_bits(tmp_path):
    params = {"w": jnp.linspace(0, 1, 6).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}
    tree = {
        "optimizer": optax.adamw(1e-3).init(params),
        "key": jax.random.key(5),
        "count": 7,
        "flag": jnp.array(True),
        "pair": (jnp.int32(1), [jnp.uint8(2)]),
    }
    with ocp.Checkpointer(tree_store.handler()) as checkpointer:
        checkpointer.save(tmp_path / "state", args=tree_store.save_args(tree))
    manifest = tree_store.describe(tree)
    restored = tree_store.restore(tmp_path / "state", manifest, tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert tree_store.describe(restored) == manifest
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(tree["key"])
    assert restored["count"] == 7
    assert isinstance(restored["count"], int)


def test_numbers_that_jax_would_cut_are_refused():
    with pytest.raises(TypeError, match="count: JAX would store int64 as int32"):
        tree_store.describe({"count": np.int64(1)})


def test_leaves_are_placed_by_their_sharding(written):
    first = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    restored = tree_store.restore(*written, abstract(), sharding=first)
    assert all(leaf.sharding == first for leaf in jax.tree.leaves(restored))


def test_the_manifest_survives_json_and_nonsense_is_refused(written, tmp_path):
    data = tree_store.manifest_to_json(written[1])
    assert tree_store.manifest_from_json(data, tmp_path) == written[1]
    for wrong in ([], {"leaf": {}}, {"leaf": {"shape": ["x"], "dtype": "f", "sha256": ""}}, None):
        with pytest.raises(ArtifactError, match="not a manifest"):
            tree_store.manifest_from_json(wrong, tmp_path)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 3), (4, 1), (2, 1, 3), (3, 5, 2)])
def test_blocks_cover_every_shape_in_c_order(tmp_path, shape):
    array = leaf(shape, np.float32)
    tree = {"leaf": jnp.asarray(array)}
    with ocp.Checkpointer(tree_store.handler()) as checkpointer:
        checkpointer.save(tmp_path / "tree", args=tree_store.save_args(tree))
    tree_store.verify(tmp_path / "tree", tree_store.describe(tree))
    assert tree_store.read(tmp_path / "tree", "leaf").tobytes() == array.tobytes()


def test_every_damaged_leaf_of_many_is_counted(tmp_path):
    names = [f"leaf{i:02}" for i in range(30)]
    with tree_store.TreeWriter(tmp_path / "params") as writer:
        for name in names:
            writer.write(name, (2,), "float32", [np.ones(2, np.float32)])
    other = tree_store.describe({name: np.zeros(2, np.float32) for name in names})
    with pytest.raises(ArtifactError, match="and 10 more") as caught:
        tree_store.verify(tmp_path / "params", other)
    assert named(caught.value) == names[:20]
