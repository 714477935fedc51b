"""Where arrays lie on several devices: the mesh, the one table of rules, and what crosses it.

A mesh has four axes: `data` repeats all parameters, `fsdp` and `sequence` cut them along the model
dimension, `tensor` along heads and feed-forward. Rows of a batch are cut over data and fsdp, the
tokens of a row over sequence (and, between layers, over tensor too: Korthikanti et al. 2022).

Models name the axes of their activations through `constrain` and know no mesh; on one device it
does nothing.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxclf.core import memory
from jaxclf.core.errors import InputError
from jaxclf.core.types import Array, Float, Shaped, Tree, path_name

AXES = ("data", "fsdp", "tensor", "sequence")

# What a dimension is → the mesh axes that it is cut along.
MESH_AXES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "batch": ("data", "fsdp"),
    "length": ("sequence",),  # tokens, where heads or feed-forward are cut over tensor
    "between": ("sequence", "tensor"),  # tokens, between layers
    "model": ("fsdp", "sequence"),  # D of a parameter
    "features": ("fsdp", "sequence", "tensor"),  # D of a table
    "own_features": ("sequence", "tensor"),  # D of what was taken from it, rows cut already
    "inner": ("tensor",),  # heads times their size, F
    "heads": ("tensor",),
    "vocabulary": ("tensor",),
}

Dims = tuple[str | None, ...]

_LAYERS = r"layers/((encoder|decoder|sparse|dense)/)?"

# Path of a leaf → its last dimensions; those before them (layers, experts, adapters) are never cut.
RULES: tuple[tuple[str, Dims], ...] = (
    (r"embed/((tokens|positions|types)/)?embedding", (None, "features")),
    (rf"{_LAYERS}((attention|cross)/[qkv]|mlp/(shared/)?(gate|up))/kernel", ("model", "inner")),
    (rf"{_LAYERS}((attention|cross)/o|mlp/(shared/)?down)/kernel", ("inner", "model")),
    (rf"{_LAYERS}(attention/[qkv]|mlp/(shared/)?(gate|up))/bias", ("inner",)),
    (rf"{_LAYERS}mlp/router/weight", ("model", None)),
    (rf"{_LAYERS}attention/[qk]_norm/scale", (None,)),
    (rf"{_LAYERS}attention/sinks", ("heads",)),
    (rf"{_LAYERS}(attention/o|mlp/(down|shared/down|router))/bias", (None,)),
    (rf"{_LAYERS}prefix/(key|value)", (None, None, None)),
    (rf"(distances/((encoder|decoder)/)?|{_LAYERS}distances/)embedding", (None, None)),
    (r"vectors/embedding", (None, None)),
    (r"unembed/kernel", ("model", "vocabulary")),
    (r"(pooler|project|heads/[^/]+/(dense|out))/kernel", ("model", None)),
    (r"(pooler|project|heads/[^/]+/(dense|out))/bias", (None,)),
    (r"(layers/|embed/|heads/[^/]+/)?(\w+_)?norm/(scale|bias)", ("model",)),
)

# Leaves in whose place a node of codes and scales may stand: quantised ones, moments in 8 bits.
_SCALED = "kernel|embedding|rows|a|b|magnitude"


# The mesh -----------------------------------------------------------------------------------------


def make_mesh(sizes: Mapping[str, int] | ConfigDict, devices: Any = None) -> Mesh:
    """The mesh of these devices (default: all), see `complete`.

    `data` is divided over slices first (`dcn_data` of `sizes`; 0 or missing: the TPU slices that
    the devices are of): what is cut along other axes stays within one, and only sums of gradients
    cross the network between them, of each device its own part. Raises InputError.
    """
    devices = jax.devices() if devices is None else devices
    shape = complete(sizes, len(devices))
    groups = by_slice(devices, sizes.get("dcn_data", 0))
    if shape["data"] % len(groups):
        raise InputError(
            f"mesh.data is {shape['data']}; expected a multiple of {len(groups)}, the slices that "
            "the devices are in: only `data` may cross the network between slices"
        )
    within = [shape["data"] // len(groups), *list(shape.values())[1:]]
    grids = [
        mesh_utils.create_device_mesh(within, group, allow_split_physical_axes=True)
        for group in groups
    ]
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def by_slice(devices: Sequence[Any], wanted: int) -> list[list[Any]]:
    """The devices in groups of one size: of each slice, or so many as are wanted.

    Raises InputError where the number wanted would cut a TPU slice, or groups would differ in size.
    """
    found: dict[int, list[Any]] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    is_tpu = devices[0].platform == "tpu"
    count = wanted or (len(found) if is_tpu else 1)
    if len(devices) % count or (is_tpu and count > 1 and len(found) % count):
        raise InputError(
            f"mesh.dcn_data is {count}, which does not divide {len(devices):,} devices in "
            f"{len(found)} slice(s). Set it to the number of slices, or 0"
        )
    ordered = [device for key in sorted(found) for device in found[key]]
    size = len(ordered) // count
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def complete(sizes: Mapping[str, int] | ConfigDict, count: int) -> dict[str, int]:
    """Sizes of all axes for `count` devices; one may be given as -1, for all that others leave.

    Raises InputError where they do not multiply to that number.
    """
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size > 0)
    if shape.count(-1) == 1 and count % fixed == 0:
        shape = [count // fixed if size == -1 else size for size in shape]
    if math.prod(shape) != count or min(shape) < 1:
        given = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise InputError(
            f"mesh: {given} do not make {count:,} devices. Set sizes whose product is {count:,}; "
            "one of them may be -1, for what the others leave"
        )
    return dict(zip(AXES, shape, strict=True))


@contextlib.contextmanager
def use(sizes: Mapping[str, int] | ConfigDict) -> Iterator[Mesh]:
    """Within the block arrays are put on, and computed over, all devices of this mesh."""
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        yield mesh


def is_cut() -> bool:
    """Whether what is traced now is for several devices."""
    return jax.sharding.get_abstract_mesh().size > 1


def platform() -> str:
    """What is compiled for: that of the mesh in use (it may be one that is not here), or of jax."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def sizes() -> dict[str, int]:
    """The size of every axis of the mesh in use."""
    return dict.fromkeys(AXES, 1) | dict(jax.sharding.get_abstract_mesh().shape)


def rows() -> int:
    """How many parts the rows of a batch are cut into."""
    return math.prod(sizes()[axis] for axis in MESH_AXES["batch"])


def divisible(count: int) -> int:
    """The next number of rows that can be divided over the mesh."""
    return -(-count // rows()) * rows()


def _mesh() -> Mesh:
    mesh = jax.sharding.get_mesh()
    return make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1]) if mesh.empty else mesh


# Parameters, adapters, optimizer state ------------------------------------------------------------


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """How the leaf at `path` is cut on a mesh of these sizes.

    `path`: of a parameter, with whatever stands before it (`opt_state/0/mu/…`); scalars, and
    dimensions of size 1, are never cut; scales of blocks are where that divides them.
    Raises InputError where no rule names the leaf, or a dimension cannot be divided.
    """
    if not shape:
        return PartitionSpec()
    found = _dims(path)
    if found is None or len(found) > len(shape):
        raise InputError(f"sharding: no rule for {path} {shape}; add one to RULES of sharding.py")
    if re.search(rf"/({_SCALED})/scale(/|$)", path):
        whole: Dims = (None,) * (len(shape) - len(found))
        return activation(shape, (*whole, *found), sizes)
    cut: list[tuple[str, ...] | None] = [None] * (len(shape) - len(found))
    for size, dim in zip(shape[len(cut) :], found, strict=True):
        axes = tuple(axis for axis in MESH_AXES[dim] if sizes[axis] > 1)
        parts = math.prod(sizes[axis] for axis in axes)
        if size > 1 and size % parts:
            raise InputError(
                f"sharding: {path} {shape}: {size:,} cannot be divided over "
                f"{' and '.join(f'{axis}={sizes[axis]}' for axis in axes)}. Choose a mesh whose "
                "sizes divide it"
            )
        cut.append(axes if axes and size > 1 else None)
    return PartitionSpec(*cut)


def shardings(tree: Tree) -> Tree:
    """The sharding of every leaf (arrays, or their shapes alone) on the mesh in use.

    Raises InputError that lists every leaf without a rule or of a size that cannot be divided.
    """
    mesh, defects = _mesh(), []

    def one(path, leaf):
        try:
            name = path_name(path)
            return NamedSharding(mesh, spec(name, np.shape(leaf), mesh.shape))
        except InputError as error:
            defects.append(str(error))
            return None

    found = jax.tree_util.tree_map_with_path(one, tree)
    if defects:
        raise InputError("\n  ".join(defects))
    return found


def abstract(tree: Tree) -> Tree:
    """Shapes and dtypes of a tree with the sharding of each leaf, to restore or compute into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree),
    )


def whole() -> NamedSharding:
    """The sharding of an array that every device of the mesh in use has whole."""
    return NamedSharding(_mesh(), PartitionSpec())


def put(tree: Tree) -> Tree:
    """The tree of arrays as the rules cut it; what lies there already is not copied."""
    return jax.device_put(tree, shardings(tree))


def born(function: Any, *arguments: Any) -> Any:
    """`jit(function)(*arguments)`, whose results are computed where they are to lie.

    Raises InputError where the memory of this machine cannot hold them.
    """
    results = abstract(jax.eval_shape(function, *arguments))
    check_memory(results)
    found = jax.tree.map(lambda leaf: leaf.sharding, results)
    return jax.jit(function, out_shardings=found)(*arguments)


def check_memory(tree: Tree) -> None:
    """Raise InputError where the parts of a tree (see `abstract`) on CPU devices here find no room.

    The kernel would end the process without a word; accelerators say themselves what they lack.
    """
    needed = 0
    for leaf in jax.tree.leaves(tree):
        local = [device for device in leaf.sharding.addressable_devices if device.platform == "cpu"]
        part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        needed += len(local) * part
    free = memory.free_bytes()
    if free is not None and needed > free:
        values = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        raise InputError(
            f"{values:,} numbers take {needed / 2**30:,.1f} GiB of memory here, of which "
            f"{free / 2**30:,.1f} GiB are free. Choose a smaller model or adapter, a smaller "
            "model.param_dtype, or more machines"
        )


def like_params(tree: Tree) -> Tree:
    """Within a jitted function: the tree (gradients) cut as the parameters at its paths."""
    if not is_cut():
        return tree
    sizes = jax.sharding.get_abstract_mesh().shape

    def one(path, leaf):
        name = path_name(path)
        return jax.lax.with_sharding_constraint(leaf, spec(name, leaf.shape, sizes))

    return jax.tree_util.tree_map_with_path(one, tree)


def laid_out(layer: Tree) -> Tree:
    """Within a jitted function: the parameters of one layer, laid out as in their stack.

    Left alone, the compiler would rather have the dimension first along which they are gathered, or
    summed in the backward pass, and keep a second copy of the whole stack so.
    """
    if platform() == "cpu" or not is_cut():
        return layer
    sizes = jax.sharding.get_abstract_mesh().shape

    def one(path, leaf):
        found = re.fullmatch(r"(.*/kernel)(/value)?(/base)?", f"layers/{path_name(path)}")
        dims = _dims(found[1]) if found else None
        if dims is None:
            return leaf
        dims = (None,) * (leaf.ndim - len(dims)) + dims  # experts lie before them
        layout, cut = Layout(tuple(range(leaf.ndim))), activation(leaf.shape, dims, sizes)
        return jax.shard_map(
            lambda part: with_layout_constraint(part, layout), in_specs=cut, out_specs=cut
        )(leaf)

    return jax.tree_util.tree_map_with_path(one, layer)


def _dims(path: str) -> Dims | None:
    """The dimensions of a leaf; those of a node in its place (see `_SCALED`) follow from it."""
    path = re.sub(r"/parts/\d+(?=/|$)", "", path)
    parent, _, name = path.rpartition("/")
    if re.search(rf"/({_SCALED})$", parent) and name in ("values", "codes", "scale", "table"):
        return _dims(parent)
    if name in ("rows", "place"):  # a table's trained rows, and where they are
        return (None,) if name == "place" else (None, "features")
    if name in ("a", "b", "magnitude"):
        kernel = _dims(f"{parent}/kernel")
        if kernel is None:
            return None
        return {"a": (kernel[0], None), "b": (None, kernel[1]), "magnitude": (kernel[1],)}[name]
    for pattern, found in RULES:
        if re.fullmatch(rf"(?:.*/)?{pattern}", path):
            return found
    return None


# Activations and batches --------------------------------------------------------------------------


def constrain(x: Shaped[Array, "..."], *dims: str | None) -> Shaped[Array, "..."]:
    """`x`, cut along these dimensions (one name each, see MESH_AXES) where that divides it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, activation(x.shape, dims, mesh.shape))


def between(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Hidden states where a layer begins or ends: each device has its own tokens.

    Where there are fewer tokens than features (decoding), each has its own features instead: it is
    cheaper to bring the tokens to the kernels' parts than the kernels to the tokens.
    """
    few = _few(x, x.shape[-1])
    return constrain(x, *((None, None, "model") if few else ("batch", "between", None)))


def gathered(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """What a layer's first matmuls read: all tokens that a device's heads and columns serve."""
    # What made `x` is computed for each device's own tokens, then exchanged.
    x = between(x)
    return x if _few(x, x.shape[-1]) else constrain(x, "batch", "length", None)


def inner(x: Float[Array, "B T F"], hidden_size: int) -> Float[Array, "B T F"]:
    """What feed-forward's last matmul reads."""
    return constrain(x, *_tokens(x, hidden_size), "inner")


def heads(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """What attention's last matmul reads."""
    return constrain(x, *_tokens(x, x.shape[2] * x.shape[3]), "heads", None)


def of_queries(
    query: Float[Array, "B T N H"], *others: Float[Array, "*rows S K H"]
) -> list[Float[Array, "*rows S K H"]]:
    """Keys and values of which each device has those of its own queries.

    Where `tensor` does not divide their heads, each is copied for every query head that it serves.
    """
    group = query.shape[-2] // others[0].shape[-2]
    if others[0].shape[-2] % sizes()["tensor"] == 0:
        return [*others]
    return [jnp.repeat(each, group, axis=-2) for each in others]


def _few(x: Float[Array, "B T ..."], features: int) -> bool:
    return x.shape[0] * x.shape[1] < features


def _tokens(x: Float[Array, "B T ..."], features: int) -> Dims:
    return (None, None) if _few(x, features) else ("batch", "length")


def looked_up(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Rows taken from a table: every device takes its features of all, then they are exchanged.

    Left alone, the compiler would rather gather the table.
    """
    x = constrain(x, None, None, "features")
    return between(constrain(x, "batch", None, "own_features"))


def activation(shape: tuple[int, ...], dims: Dims, sizes: Mapping[str, int]) -> PartitionSpec:
    """How an array of these dimensions is cut; one that an axis does not divide stays whole."""
    cut: list[tuple[str, ...] | None] = []
    for size, dim in zip(shape, dims, strict=True):
        axes = tuple(axis for axis in MESH_AXES[dim] if sizes[axis] > 1)
        while axes and size % math.prod(sizes[axis] for axis in axes):
            axes = axes[:-1]
        cut.append(axes or None)
    return PartitionSpec(*cut)


def everywhere(tree: Tree) -> Tree:
    """Within a jitted function: results that every process can read whole."""
    if not is_cut():
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


def of_rows(shape: tuple[int, ...], axis: int = 0) -> NamedSharding:
    """The sharding of an array of a batch whose `axis` counts rows."""
    mesh = _mesh()
    dims: Dims = (*[None] * axis, "batch", *[None] * (len(shape) - axis - 1))
    return NamedSharding(mesh, activation(shape, dims, mesh.shape))


def put_batch(batch: Tree, axis: int = 0) -> Tree:
    """A batch of NumPy arrays, the same in every process, with `axis` cut as rows are.

    Each process keeps the rows of its own devices: which examples a step sees does not depend on
    how many processes there are.
    """
    if not _mesh().is_multi_process:
        return jax.device_put(batch, jax.tree.map(lambda x: of_rows(x.shape, axis), batch))

    def own_rows(array):
        cut = of_rows(array.shape, axis)
        return jax.make_array_from_callback(array.shape, cut, array.__getitem__)

    with jax.transfer_guard("allow"):  # this is the transfer that is meant
        return jax.tree.map(own_rows, batch)
