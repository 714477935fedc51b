"""Feed-forward by experts: what a loop over them computes, on every path."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclf.data import batching, loader
from jaxclf.models import registry
from jaxclf.models.kernels import MasterKernel
from jaxclf.models.masks import causal_mask
from tests.tiny import CONFIG, EXPERTS, LLAMA4, examples, random_params, summed_loss

MODEL = dataclasses.replace(CONFIG, **EXPERTS)


LAYERS_OF_TWO_KINDS = dataclasses.replace(CONFIG, **LLAMA4)


@pytest.fixture(scope="module", params=[MODEL, LAYERS_OF_TWO_KINDS], ids=["experts", "llama4"])
def model(request):
    return registry.create(request.param)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def looped(x, mlp, config):
    """The same for tokens `[S D]`, one after the other, in float64."""
    mlp = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mlp)
    found = np.zeros_like(x, np.float64)

    def linear(name, expert, x):
        return x @ mlp[name]["kernel"][expert] + mlp[name].get("bias", np.zeros(99))[expert]

    for number, token in enumerate(np.asarray(x, np.float64)):
        scores = token @ mlp["router"]["weight"] + mlp["router"].get("bias", 0)
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        chosen = np.argsort(-shares)[: config.experts_per_token]
        weights = shares / (shares[chosen].sum() if config.normalised_experts else 1.0)
        weights = sigmoid(scores) if config.routing == "sigmoid" else weights
        for expert in chosen:
            read = token * weights[expert] if config.weighted_inputs else token
            gate, up = (linear(name, expert, read) for name in ("gate", "up"))
            inner = gate * sigmoid(gate) * up
            if (limit := config.swiglu_limit) > 0:
                gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
                inner = (up + 1) * gate * sigmoid(config.swiglu_alpha * gate)
            found[number] += linear("down", expert, inner) * (
                1 if config.weighted_inputs else weights[expert]
            )
        if config.shared_expert_size:
            gate, up = (token @ mlp["shared"][name]["kernel"] for name in ("gate", "up"))
            found[number] += (gate * sigmoid(gate) * up) @ mlp["shared"]["down"]["kernel"]
    return found


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"normalised_experts": False},
        {"mlp_bias": False, "swiglu_limit": 0.0},
        {"experts_per_token": 4},
        {"experts_per_token": 1, "experts": 7},
        {"routing": "sigmoid"},
        {"weighted_inputs": True},
        {"mlp_bias": False, "swiglu_limit": 0.0, "shared_expert_size": 5},
    ],
    ids=str,
)
def test_experts_are_a_loop_over_them(change):
    config = dataclasses.replace(MODEL, **change)
    model = registry.create(config)
    params = random_params(model)
    x = np.random.default_rng(0).normal(0, 1, (2, 9, config.hidden_size)).astype(np.float32)

    @jax.jit
    def first_layer(params, x):
        graphdef, stacked = nnx.split(model.bind(params).layers)
        return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], stacked)).mlp(x)

    mlp = jax.tree.map(lambda leaf: leaf[0], params["layers"]["mlp"])
    expected = looped(x.reshape(-1, config.hidden_size), mlp, config).reshape(x.shape)
    off = np.abs(first_layer(params, x) - expected).max()
    assert off < 2e-6 * np.abs(expected).max()


def test_extending_a_cache_in_pieces_equals_one_pass(model, params):
    tokens = jax.random.permutation(jax.random.key(1), CONFIG.vocab_size)[None, :11]
    positions, segments = jnp.arange(11)[None], jnp.ones((1, 11), jnp.int32)

    @jax.jit
    def both(params):
        module = model.bind(params)
        mask, cache = causal_mask(segments), module.empty_cache(1, 11)
        pieces = []
        for start, end in [(0, 7), (7, 8), (8, 11)]:
            hidden, cache = module.extend(
                tokens[:, start:end], positions[:, start:end], mask[:, :, start:end], cache, start
            )
            pieces.append(hidden)
        return jnp.concatenate(pieces, axis=1), module.hidden(tokens, positions, segments)

    np.testing.assert_allclose(*both(params), rtol=0, atol=1e-5)


def test_packed_rows_sum_to_the_same_loss_as_single_rows(model, params):
    documents = examples([(0, 3, 2), (4, 9, 5), (4, 2, 1), (4, 13, 3), (1, 1, 4)])
    together = next(loader.train_batches(documents, batch_size=3, seed=0, row_length=40))
    assert together.segment_ids.max() > 1
    rows = []
    for tokens, segments in zip(together.tokens, together.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            read = tokens[segments == segment]
            (own,) = (e for e in documents if np.array_equal(batching.row(e)["tokens"], read))
            rows.append(batching.row(own))
    apart = batching.padded(rows)

    @jax.jit
    def sums(batch):
        return summed_loss(model.bind(params), batch)

    packed, single = sums(together), sums(apart)
    assert packed.count == single.count
    np.testing.assert_allclose(packed.loss, single.loss, rtol=1e-6)


BY_PERIODS = dataclasses.replace(
    LAYERS_OF_TWO_KINDS,
    num_layers=9,
    layer_types=("chunk", "full") * 4 + ("chunk",),
    rotary_layers=(True, False) * 4 + (True,),
    expert_layers=(False, True) * 4 + (False,),
)


@pytest.mark.parametrize(
    ("config", "unroll", "remat"),
    [
        (LAYERS_OF_TWO_KINDS, 1, 0),
        (LAYERS_OF_TWO_KINDS, 5, 1),
        (BY_PERIODS, 1, 0),
        (BY_PERIODS, 2, 1),
        (BY_PERIODS, 1, 4),
    ],
)
def test_layers_of_two_kinds_are_looped_over_in_their_order(config, unroll, remat):
    """However they are compiled: by periods, by groups of periods, or each on its own."""
    tokens = np.arange(11)[None]
    params = random_params(registry.create(config))

    @jax.jit
    def hidden(params):
        model = registry.create(config, unroll=unroll, remat=remat)
        return model.bind(params).hidden(tokens, tokens, np.ones_like(tokens))

    np.testing.assert_allclose(hidden(params), one_by_one(config)(params), rtol=0, atol=1e-5)


@functools.cache
def one_by_one(config):
    """Hidden states by a loop over the layers of two stacks."""
    tokens = np.arange(11)[None]

    @jax.jit
    def hidden(params):
        plain = registry.create(config).bind(params)
        x, ropes = plain.start(tokens, tokens)
        graphs = {name: nnx.split(plain.layers[name]) for name in ("sparse", "dense")}
        places = {"sparse": 0, "dense": 0}
        for kind, name in zip(config.kinds, config.order, strict=True):
            graphdef, stack = graphs[name]
            own = jax.tree.map(lambda leaf, place=places[name]: leaf[place], stack)
            mask = causal_mask(np.ones_like(tokens)) & kind.sight.reaches(tokens, tokens)[:, None]
            x = nnx.merge(graphdef, own)(x, ropes.get(kind.rope), mask)
            places[name] += 1
        return plain.norm(x)

    return hidden


def test_kernels_kept_in_more_bits_than_they_are_multiplied_in():
    half = registry.create(MODEL, dtype=jnp.bfloat16)
    params = random_params(half)
    tokens = np.arange(12)[None]

    def master(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        return MasterKernel(leaf, jnp.zeros(leaf.shape, jnp.bfloat16))

    @jax.jit
    def hidden(params):
        return half.bind(params).hidden(tokens, tokens, np.ones_like(tokens))

    kept = jax.tree_util.tree_map_with_path(master, params)
    assert isinstance(kept["layers"]["mlp"]["gate"]["kernel"], MasterKernel)
    np.testing.assert_array_equal(hidden(kept), hidden(params))
