"""AttEns: an attention layer that combines what k adapters of one frozen base see in a text.

    features  [B, A+1, D]   last hidden states over tokens (Agg1): the base's own, then A modules'
    modules = norm(features[:, 1:])
    outputs = multi-head self-attention of the A modules of one text, each to all
    sum     = norm(Agg2(outputs)) + feed-forward(norm(features[:, 0]))        (Agg3)
    scores  = classifier(norm(sum))

Only what stands here is trained, all of it in float32. Source: Beiranvand et al. 2025, Methodology.
The authors' released program differs in places; `Combiner.across` and `Combiner.norms`, and
`Pooling.padding`, give what it does.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxclf.core.types import AnyArray, Array, Bool, Float, Key, Params
from jaxclf.models import layers

Over = Literal["mean", "max", "min"]
Combine = Literal["sum", "mean", "product", "concat", "max", "min"]

_EPS = 1e-5  # of the norms, as in PyTorch's LayerNorm


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How hidden states over tokens become one vector (Agg1).

    `over`: "last" is the last token (decoders). `padding` > 0: texts are padded to so many tokens,
    and those count too, as in the released program.
    """

    over: Literal["mean", "max", "min", "last"] = "mean"
    padding: int = 0


@dataclasses.dataclass(frozen=True)
class Combiner:
    """The layer's dimensions (D, C) and choices: Agg2 is `over`, Agg3 is `combine`.

    `norms`: each place has its "own" LayerNorm, or one is "shared" by all. `across`: a module
    attends to the "modules" of its text, or, as in the released program, to itself in the other
    texts of the "batch", so that a prediction depends on its neighbours. `hidden_size` is a
    multiple of `heads`.
    """

    hidden_size: int
    classes: int
    heads: int = 4
    over: Over = "mean"
    combine: Combine = "sum"
    norms: Literal["own", "shared"] = "own"
    across: Literal["modules", "batch"] = "modules"


_PLACES = ("tokens", "base", "modules", "sum")  # where a norm stands


def init(combiner: Combiner, key: Key[Array, ""]) -> Params:
    """Parameters at their random start: that of PyTorch's MultiheadAttention and Linear."""
    size, classes = combiner.hidden_size, combiner.classes
    width = 2 * size if combiner.combine == "concat" else size
    query, key_, value, out, base, last = jax.random.split(key, 6)

    def norm(size: int) -> Params:
        return {"scale": jnp.ones(size), "bias": jnp.zeros(size)}

    # PyTorch draws query, key and value as one matrix [3D, D] and starts their biases at zero.
    within, zeros = math.sqrt(1.5 / size), {"bias": jnp.zeros(size)}
    attention = {
        "q": random_linear(query, size, size, within) | zeros,
        "k": random_linear(key_, size, size, within) | zeros,
        "v": random_linear(value, size, size, within) | zeros,
        "o": random_linear(out, size, size, size**-0.5) | zeros,
    }
    names = _PLACES if combiner.norms == "own" else ("shared",)
    norms = {name: norm(size) for name in names}
    if width != size:
        norms["sum"] = norm(width)
    return {
        "attention": attention,
        "base": random_linear(base, size, size, size**-0.5),
        "norms": norms,
        "classifier": random_linear(last, width, classes, width**-0.5),
    }


def random_linear(key: Key[Array, ""], size_in: int, size_out: int, bound: float) -> Params:
    """A kernel uniform within ±bound and a bias within ±1/sqrt(in)."""
    first, second = jax.random.split(key)
    limit = size_in**-0.5
    return {
        "kernel": jax.random.uniform(first, (size_in, size_out), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(second, (size_out,), minval=-limit, maxval=limit),
    }


def combine(
    combiner: Combiner, params: Params, features: Float[AnyArray, "B A1 D"]
) -> tuple[Float[Array, "B C"], Float[Array, "rows N queries keys"]]:
    """Scores, and attention weights: `[B, N, A, A]`, or `[A, N, B, B]` across the batch."""

    def norm(place: str, x: AnyArray) -> Array:
        norms = params["norms"]
        found = norms.get(place) or norms["shared"]
        return layers.layer_norm(x, found["scale"], found["bias"], _EPS)

    modules, base = norm("tokens", features[:, 1:]), norm("base", features[:, 0])
    if combiner.across == "batch":
        modules = jnp.swapaxes(modules, 0, 1)
    outputs, weights = attend(params["attention"], modules, combiner.heads)
    if combiner.across == "batch":
        outputs = jnp.swapaxes(outputs, 0, 1)
    found = norm("modules", _REDUCE[combiner.over](outputs, axis=1))
    both = jnp.stack([found, linear(params["base"], base)])
    if combiner.combine == "concat":
        total = jnp.concatenate([both[0], both[1]], axis=-1)
    else:
        total = _REDUCE[combiner.combine](both, axis=0)
    return linear(params["classifier"], norm("sum", total)), weights


def pool(
    hidden: Float[AnyArray, "B T D"], mask: Bool[AnyArray, "B T"], pooling: Pooling
) -> Float[Array, "B D"]:
    """One vector a text, in float32. `mask`: which tokens are the text's own."""
    hidden, mask = jnp.asarray(hidden, jnp.float32), jnp.asarray(mask)
    if pooling.over == "last":
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    kept = jnp.ones_like(mask) if pooling.padding else mask
    kept = kept[..., None]
    if pooling.over == "mean":
        return jnp.sum(jnp.where(kept, hidden, 0.0), axis=1) / jnp.sum(kept, axis=1)
    reduce, out = (jnp.max, -jnp.inf) if pooling.over == "max" else (jnp.min, jnp.inf)
    return reduce(jnp.where(kept, hidden, out), axis=1)


def attend(
    params: Params, x: Float[Array, "rows S D"], heads: int
) -> tuple[Float[Array, "rows S D"], Float[Array, "rows N S S"]]:
    """Multi-head self-attention and its weights, which sum to 1 over the last axis.

    Not that of `models.attention`, of which no kernel ever holds the weights.
    Source: Vaswani et al. 2017, section 3.2; the layout of PyTorch's MultiheadAttention.
    """
    query, key, value = (linear(params[name], x).reshape(*x.shape[:2], heads, -1) for name in "qkv")
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1)
    found = jnp.einsum("bnts,bsnh->btnh", weights, value)
    return linear(params["o"], found.reshape(x.shape)), weights


def linear(params: Params, x: Float[AnyArray, "*batch D"]) -> Float[Array, "*batch F"]:
    return layers.matmul(jnp.asarray(x), params["kernel"]) + params["bias"]


_REDUCE = {
    "mean": jnp.mean,
    "sum": jnp.sum,
    "product": jnp.prod,
    "max": jnp.max,
    "min": jnp.min,
}
