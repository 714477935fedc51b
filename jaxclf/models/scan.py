"""Layers as one stack, or several: drawn, and threaded through by a loop that is compiled once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclf.core.types import Array, Int, Shaped
from jaxclf.distributed import sharding
from jaxclf.models import kernels
from jaxclf.models.layers import Places, take_places


def stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules as one whose parameters have a leading L axis, each from its own key."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), count)
    return nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys))


Body = Callable[[Any, Any, Int[Array, ""], Places | None], Any]


def scan_layers(
    layers: Any,
    body: Body,
    carry: Any,
    remat: int,
    unroll: int = 1,
    at: Places | None = None,
    alone: bool = True,
    kinds: Sequence[Any] = (),
    order: Sequence[str] = (),
) -> Any:
    """Thread `carry` through `body(layer, carry, index, at)` for every stacked layer.

    One compiled body serves all layers. With `remat` a layer's activations are computed again in
    the backward pass, so that only each layer's input is kept, and where it is 2 or more, only that
    of each group of so many layers (or as many as divide their number) and those of the group at
    work. Without, what kernels and matrix products with parameters gave is kept too, and on a CPU,
    where memory is cheap and norms and activations are not, everything. `unroll` layers are
    compiled one by one and looped over: it saves copies into and out of the stack, and costs time
    to compile. `at`: the places that alone are wanted of the last layer; where all layers are
    compiled one by one, there are fewer than tokens and `alone` allows it, that layer computes no
    others. In all other calls of `body` it is None. Source: Chen et al. 2016 (groups of layers).

    `kinds`: one for each layer, where they differ in more than parameters: `body` gets it as
    `kind`. Layers are then scanned by the period in which kinds come again, and those after the
    last whole period one by one. `order`: where layers lie in several stacks, as they have other
    parameters, the name of each one's stack; `layers` has them by name then.
    """
    stacks = {name: layers[name] for name in dict.fromkeys(order)} if order else {"": layers}
    split = {name: nnx.split(stack) for name, stack in stacks.items()}
    params = {name: state for name, (_, state) in split.items()}
    count = len(order) or jax.tree.leaves(params)[0].shape[0]
    order, kinds = order or ("",) * count, kinds or (None,) * count
    own = [order[:index].count(order[index]) for index in range(count)]  # place in its stack

    def layer(index: int, prevent_cse: bool):
        graphdef, kind = split[order[index]][0], kinds[index]

        def step(carry, item, at=None):
            layer_params, index = item
            layer_params = sharding.laid_out(kernels.of_layer(layer_params, index))
            options = {} if kind is None else {"kind": kind}
            return body(nnx.merge(graphdef, layer_params), carry, index, at, **options), None

        if not remat and sharding.platform() == "cpu":
            return step
        return jax.checkpoint(step, prevent_cse=prevent_cse, policy=None if remat else _is_dear)

    if unroll >= count:
        apart = {name: _apart(stack) for name, stack in params.items()}
        for index in range(count - 1):
            item = apart[order[index]][own[index]], jnp.int32(index)
            carry, _ = layer(index, prevent_cse=True)(carry, item)
        step = layer(count - 1, prevent_cse=True)
        last = apart[order[-1]][own[-1]], jnp.int32(count - 1)
        if alone and at is not None and at.shape[1] < carry.shape[1]:
            return step(carry, last, at)[0]
        carry, _ = step(carry, last)
        return carry if at is None else take_places(carry, at)

    period = _period([*zip(order, kinds, strict=True)])
    whole = count // period * period

    def of_period(carry, items):
        """Inside a scan no common-subexpression elimination crosses iterations."""
        params, indices = items
        if period == 1:
            return layer(0, prevent_cse=False)(carry, (params[order[0]], indices))
        for place in range(period):
            item = _at(params[order[place]], own[place]), indices[place]
            carry, _ = layer(place, prevent_cse=False)(carry, item)
        return carry, None

    def scanned(carry, items):
        return jax.lax.scan(of_period, carry, items, unroll=unroll)

    def grouped(items, size: int):
        return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), items)

    indices, found = jnp.arange(whole), {}
    for name in dict.fromkeys(order[:whole]):
        found[name] = params[name]
        if (size := order[:whole].count(name)) < order.count(name):
            found[name] = jax.tree.map(lambda leaf, size=size: leaf[:size], params[name])
        if period > 1:
            found[name] = grouped(found[name], order[:period].count(name))
    items = found, grouped(indices, period) if period > 1 else indices
    group = group_size(whole // period, remat // period)
    if group == 1:
        carry, _ = scanned(carry, items)
    else:
        steps = jax.checkpoint(scanned, prevent_cse=False)
        carry, _ = jax.lax.scan(steps, carry, grouped(items, group))
    for index in range(whole, count):
        item = _at(params[order[index]], own[index]), jnp.int32(index)
        carry, _ = layer(index, prevent_cse=True)(carry, item)
    return carry if at is None else take_places(carry, at)


def _at(stack: Any, place: int) -> Any:
    """The layer at that place of a stack."""
    return jax.tree.map(lambda leaf: leaf[place], stack)


def _period(kinds: Sequence[Any]) -> int:
    """After how many layers their kinds come again."""
    lengths = range(1, len(kinds) + 1)
    return next(n for n in lengths if all(a == b for a, b in zip(kinds, kinds[n:], strict=False)))


def group_size(count: int, remat: int) -> int:
    """Layers that are computed again as one, of `count`: at most `remat`, and a divisor."""
    return max(size for size in range(1, max(1, remat) + 1) if count % size == 0)


def _is_dear(primitive: Any, *arguments: Any, **params: Any) -> bool:
    """Whether an operation's result is kept where all else is computed again.

    Source: Korthikanti et al. 2022, section 5 (selective activation recomputation).
    """
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    is_kernel = primitive.name == "pallas_call" or "attention" in primitive.name
    return is_kernel or products(primitive, *arguments, **params)


def _apart(stack: Any) -> list[Any]:
    """Each layer of a stack."""
    leaves, structure = jax.tree.flatten(stack)
    parts = zip(*map(_parts, leaves), strict=True)
    return [jax.tree.unflatten(structure, each) for each in parts]


def _parts(stack: Shaped[Array, "L ..."]) -> list[Array]:
    """Each layer's part; unlike indexing, its gradient is one concatenation."""
    return [jnp.squeeze(part, 0) for part in jax.lax.split(stack, (1,) * len(stack))]
