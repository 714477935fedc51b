"""Adapters: few trained arrays beside a frozen parameter tree, as pure functions.

    adapters = init(params, spec, key)     a small tree of its own
    bound = bind(params, adapters)         the model's tree with `LoraKernel`s where kernels stood
    merged = merge(params, adapters)       the model's tree, multiplied out

An adapter has two parts. `factors`: for each chosen module its `a` and `b` (and DoRA's
`magnitude`), stacked over the chosen layers. `saved`: leaves that are trained themselves and take
the base's place (heads; biases alone for BitFit). Both train in float32.

Source: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA), Zhang et al.
2023 (LoRA-FA), Ben Zaken et al. 2022 (BitFit).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.core.errors import InputError
from jaxclf.core.tree import flatten, nest
from jaxclf.core.types import Array, Float, Int, Key, Params
from jaxclf.models.kernels import LoraKernel, column_norms, plain

AdapterKind = Literal["lora", "dora", "lora_fa"]

ALL_LINEAR = "all-linear"
_IN_LAYERS = "layers/"


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which modules get factors, of which size, and which leaves are trained along.

    `targets`: the last name of a module (`q`), a regular expression of its path with its layer
    (`layers/1/attention/q`), or `all-linear` (every kernel of the layers but experts', as in peft;
    these are named: `gate`, `up`, `down`, and each expert gets factors). `layers`: the chosen
    ones; empty: all. `rank_pattern`, `alpha_pattern`: (pattern, value) pairs as for targets; the
    first that matches counts. `saved`: patterns of leaf paths trained along. Dropout is of what
    enters `a`.
    """

    kind: AdapterKind = "lora"
    targets: tuple[str, ...] = ("q", "v")
    layers: tuple[int, ...] = ()
    rank: int = 8
    alpha: float = 16.0
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    dropout: float = 0.0
    rslora: bool = False
    saved: tuple[str, ...] = ()

    def scale(self, rank: int, alpha: float) -> float:
        """What a·b is multiplied by: alpha/rank, for rsLoRA alpha/sqrt(rank)."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)


@dataclasses.dataclass(frozen=True)
class Place:
    """One module with factors: its chosen layers (None: it has no layers), a rank and alpha each.

    Factors of a stack are as wide as the largest rank; the rest of a narrower layer is zero and,
    having no gradient, stays zero.
    """

    layers: tuple[int, ...] | None
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]

    @property
    def rank(self) -> int:
        return max(self.ranks)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapters:
    """The trained arrays: `factors` by module path, `saved` by leaf path, both nested dicts."""

    factors: Params
    saved: Params
    spec: Spec = dataclasses.field(metadata={"static": True})


def places(params: Params, spec: Spec) -> dict[str, Place]:
    """Module path (without its layer) → its place, for all that `spec` chooses.

    Raises InputError for a target or pattern that chooses nothing, a layer that is not there, or
    what factors of experts cannot have.
    """
    modules = _modules(params)
    counts = {path: shape[0] for path, shape in modules.items() if path.startswith(_IN_LAYERS)}
    depth = max(counts.values(), default=0)
    if beyond := [layer for layer in spec.layers if not 0 <= layer < depth]:
        raise InputError(
            f"lora.layers_to_transform names layer {beyond[0]}; the model has {depth:,} layers"
        )
    unmatched = set(spec.targets) | {pattern for pattern, _ in spec.rank_pattern}
    unmatched |= {pattern for pattern, _ in spec.alpha_pattern}
    found = {}
    for path, shape in modules.items():
        layered = path in counts
        chosen: Sequence[int | None] = (None,)
        if layered:  # an encoder may have more layers than its decoder
            chosen = [n for n in spec.layers or range(counts[path]) if n < counts[path]]
        kept, ranks, alphas = [], [], []
        for layer in chosen:
            name = _in_layer(path, layer)
            targets = [
                target
                for target in spec.targets
                if _matches(target, name)
                and not (target == ALL_LINEAR and _experts(shape, layered))
            ]
            unmatched -= set(targets)
            if not targets:
                continue
            rank, by_rank = _first_match(spec.rank_pattern, name, spec.rank)
            alpha, by_alpha = _first_match(spec.alpha_pattern, name, spec.alpha)
            unmatched -= {by_rank, by_alpha}
            kept.append(layer)
            ranks.append(rank)
            alphas.append(alpha)
        if kept:
            if _experts(shape, layered) and (spec.kind == "dora" or spec.dropout):
                raise InputError(
                    f"lora: {path} are experts, whose factors have no dropout and no magnitude, as "
                    f"in peft; tune is {spec.kind!r} and lora.dropout {spec.dropout}. Set them to "
                    "'lora' and 0, or name other modules in lora.target_modules"
                )
            layers = tuple(kept) if layered else None
            found[path] = Place(layers, tuple(ranks), tuple(alphas))
    if unmatched:
        raise InputError(
            f"lora: {', '.join(map(repr, sorted(unmatched)))} matches no module; there are: "
            f"{', '.join(modules)}"
        )
    return found


def init(params: Params, spec: Spec, key: Key[Array, ""]) -> Adapters:
    """Adapters that change nothing yet: `a` uniform in ±1/sqrt(D), `b` zero; saved leaves copied.

    `params` may hold quantised kernels. Source: the start of the peft library.
    """
    factors = {}
    for index, (path, place) in enumerate(places(params, spec).items()):
        base = _leaf(params, f"{path}/kernel")
        *stack, size_in, size_out = base.shape
        if place.layers is not None:
            stack[0] = len(place.layers)
        bound = size_in**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, index),
            (*stack, size_in, place.rank),
            jnp.float32,
            -bound,
            bound,
        )
        mask = np.arange(place.rank) < np.array(place.ranks)[:, None]
        mask = mask.reshape(-1, *[1] * len(stack), place.rank) if stack else mask[0]
        arrays = {
            "a": a * mask,
            "b": jnp.zeros((*stack, place.rank, size_out), jnp.float32),
        }
        if spec.kind == "dora":
            kernel = plain(_chosen(base, place), jnp.float32)
            arrays["magnitude"] = jnp.linalg.norm(kernel, axis=-2)
        factors |= {f"{path}/{name}": array for name, array in arrays.items()}
    # Copies: a buffer that is donated to the train step must not be the base's.
    saved = {path: jnp.array(leaf, jnp.float32) for path, leaf in _saved(params, spec).items()}
    return Adapters(nest(factors), nest(saved), spec)


def abstract(params: Params, spec: Spec) -> Adapters:
    """The shapes of `init` for a base of these parameters (arrays, or their shapes alone)."""
    return jax.eval_shape(lambda tree: init(tree, spec, jax.random.key(0)), params)


def bind(params: Params, adapters: Adapters, key: Key[Array, ""] | None = None) -> Params:
    """The base's tree with a LoraKernel at every place, and saved leaves in place of the base's.

    A key turns dropout on. Pure: gradients reach the adapters and, if asked for, the base.
    """
    spec = adapters.spec
    leaves = _leaves(params)
    for path, leaf in flatten(adapters.saved).items():
        leaves[path] = leaf.astype(leaves[path].dtype)
    for index, (path, place) in enumerate(places(params, spec).items()):
        of_place = None if key is None or not spec.dropout else jax.random.fold_in(key, index)
        leaves[f"{path}/kernel"] = _kernel(
            leaves[f"{path}/kernel"], _leaf(adapters.factors, path), place, spec, of_place
        )
    return nest(leaves)


def merge(params: Params, adapters: Adapters) -> Params:
    """The base's tree with every addition multiplied out, in the base's dtypes."""
    return multiply_out(bind(params, adapters))


def multiply_out(bound: Params) -> Params:
    """A bound tree with a plain kernel wherever a LoraKernel stands."""
    return _without_factors(bound, _merged)


def merge_layer(
    kernel: Float[Array, "D F"], adapters: Adapters, path: str, place: Place, layer: int | None
) -> Float[Array, "D F"]:
    """The merged kernel of one layer (None: of a module without layers), in its own dtype."""
    if place.layers is not None and layer not in place.layers:
        return kernel
    index = 0 if place.layers is None else place.layers.index(layer)
    factors = _leaf(adapters.factors, path)
    if place.layers is not None:
        factors = {name: array[index] for name, array in factors.items()}
    scale = jnp.float32(adapters.spec.scale(place.ranks[index], place.alphas[index]))
    return _merged(LoraKernel(kernel, factors["a"], factors["b"], scale, factors.get("magnitude")))


def unmerge(params: Params, adapters: Adapters) -> Params:
    """The base of a merged tree; saved leaves stay as they are.

    Raises ValueError for DoRA: a merged column no longer tells the norm it was divided by.
    """
    if adapters.spec.kind == "dora":
        raise ValueError("DoRA cannot be unmerged: keep the base")
    return _without_factors(
        bind(params, adapters),
        lambda kernel: _merged(dataclasses.replace(kernel, scale=-kernel.scale)),
    )


def stack(adapters: Sequence[Adapters]) -> Adapters:
    """Adapters of one spec with a leading A axis, for `jax.vmap` over them.

    Raises ValueError where specs or shapes differ.
    """
    if any(one.spec != adapters[0].spec for one in adapters):
        raise ValueError("adapters of different specs cannot be stacked")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def by_row(
    apply: Callable[[Params, Any], Any],
    params: Params,
    stacked: Adapters,
    ids: Int[Array, " B"],
    batch: Any,
) -> Any:
    """`apply(bound params, batch)` where row i of the batch uses adapter `ids[i]`.

    Every leaf of `batch` and of the result has a leading B axis.
    """

    def one(adapters: Adapters, row: Any) -> Any:
        result = apply(bind(params, adapters), jax.tree.map(lambda leaf: leaf[None], row))
        return jax.tree.map(lambda leaf: leaf[0], result)

    return jax.vmap(one)(jax.tree.map(lambda leaf: leaf[ids], stacked), batch)


def count(params: Params, spec: Spec) -> int:
    """Values that are trained: those of factors (LoRA-FA: of `b`) and of saved leaves."""
    total = 0
    for path, place in places(params, spec).items():
        *stack, size_in, size_out = _leaf(params, f"{path}/kernel").shape
        per_rank = size_out + (0 if spec.kind == "lora_fa" else size_in)
        experts = math.prod(stack if place.layers is None else stack[1:])
        total += sum(place.ranks) * per_rank * experts
        total += len(place.ranks) * size_out * (spec.kind == "dora")
    return total + sum(math.prod(leaf.shape) for leaf in _saved(params, spec).values())


# Kernels ------------------------------------------------------------------------------------------


def _kernel(
    base: Any, factors: Mapping[str, Array], place: Place, spec: Spec, key: Key[Array, ""] | None
) -> LoraKernel:
    """The base's kernel with factors for all of its layers; layers not chosen get zeros."""
    scales = np.array(list(map(spec.scale, place.ranks, place.alphas)), np.float32)
    arrays = {**factors, "scale": jnp.asarray(scales)}
    if place.layers is None:
        arrays["scale"] = arrays["scale"][0]
    elif experts := base.shape[1:-2]:
        scales = scales.reshape(-1, *[1] * len(experts))
        arrays["scale"] = jnp.broadcast_to(scales, (len(scales), *experts))
    if place.layers is not None and len(place.layers) < (depth := base.shape[0]):
        at = np.array(place.layers)
        arrays = {
            name: jnp.zeros((depth, *array.shape[1:]), array.dtype).at[at].set(array)
            for name, array in arrays.items()
        }
    kernel = LoraKernel(
        base,
        arrays["a"],
        arrays["b"],
        arrays["scale"],
        key=key if key is None or place.layers is None else jax.random.split(key, base.shape[0]),
        dropout=spec.dropout,
    )
    if spec.kind != "dora":
        return kernel
    magnitude = arrays["magnitude"]
    if place.layers is not None and len(place.layers) < base.shape[0]:
        # Of a layer that was not chosen the norm is the base's own: nothing changes.
        chosen = np.isin(np.arange(base.shape[0]), place.layers)[:, None]
        magnitude = jnp.where(chosen, magnitude, jax.lax.stop_gradient(column_norms(kernel)))
    return dataclasses.replace(kernel, magnitude=magnitude)


def _merged(kernel: LoraKernel) -> Array:
    scale = kernel.scale[..., None, None]
    addition = kernel.a.astype(jnp.float32) @ kernel.b.astype(jnp.float32) * scale
    whole = plain(kernel.base, jnp.float32) + addition
    if kernel.magnitude is not None:
        whole *= (kernel.magnitude / column_norms(kernel))[..., None, :]
    return whole.astype(kernel.base.dtype)


def _without_factors(bound: Params, multiply_out: Callable[[LoraKernel], Array]) -> Params:
    return jax.tree.map(
        lambda node: multiply_out(node) if isinstance(node, LoraKernel) else node,
        bound,
        is_leaf=lambda node: isinstance(node, LoraKernel),
    )


# Paths --------------------------------------------------------------------------------------------


def _leaves(params: Params, prefix: str = "") -> dict[str, Any]:
    """Path → what stands there; unlike `flatten`, a quantised kernel is one leaf."""
    found = {}
    for name, node in params.items():
        found |= (
            _leaves(node, f"{prefix}{name}/") if isinstance(node, dict) else {prefix + name: node}
        )
    return found


def _saved(params: Params, spec: Spec) -> dict[str, Any]:
    """The leaves that are trained themselves, by path."""
    return {
        path: leaf
        for path, leaf in flatten(params).items()
        if any(re.fullmatch(pattern, path) for pattern in spec.saved)
    }


def _leaf(params: Params, path: str) -> Any:
    node: Any = params
    for name in path.split("/"):
        node = node[name]
    return node


def _modules(params: Params) -> dict[str, tuple[int, ...]]:
    """Module path → the shape of its kernel."""
    return {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in _leaves(params).items()
        if path.endswith("/kernel")
    }


def _experts(shape: Sequence[int], layered: bool) -> bool:
    """Whether a kernel of this shape is those of several experts."""
    return len(shape) - layered > 2


def _in_layer(path: str, layer: int | None) -> str:
    return path if layer is None else f"{_IN_LAYERS}{layer}/{path.removeprefix(_IN_LAYERS)}"


def _matches(pattern: str, path: str) -> bool:
    if pattern == ALL_LINEAR:
        return path.startswith(_IN_LAYERS)
    return any(re.fullmatch(pattern, name) for name in (path, path.rpartition("/")[2]))


def _first_match(pairs: Sequence[tuple[str, Any]], path: str, default: Any) -> tuple[Any, Any]:
    """(value, pattern) of the first pattern that matches, or the default and None."""
    return next(
        ((value, pattern) for pattern, value in pairs if _matches(pattern, path)), (default, None)
    )


def _chosen(kernel: Any, place: Place) -> Any:
    if place.layers is None:
        return kernel
    return jax.tree.map(lambda leaf: leaf[np.array(place.layers)], kernel)
