"""Steps in less memory: moments in 8 bits, bfloat16 rounded by chance, a layer at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclf.config import defaults
from jaxclf.core.tree import flatten
from jaxclf.models import registry
from jaxclf.training import eight_bit, layerwise, optim
from tests.tiny import shapes


def settings(**fields):
    config = defaults.default().train
    config.update({"learning_rate": 1e-2, "weight_decay": 0.1, "warmup_steps": 3, **fields})
    return config


def numbers(seed: int, *shape: int):
    """Of widely different sizes, as gradients are."""
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.normal(size=shape) * np.exp(2 * draw.normal(size=shape)), jnp.float32)


def params(dtype=jnp.float32):
    tree = {
        "embed": {"embedding": numbers(0, 64, 128)},
        "layers": {
            "mlp": {"up": {"kernel": numbers(1, 3, 64, 128)}},
            "norm": {"scale": 1 + numbers(2, 3, 64)},
        },
        "norm": {"scale": 1 + numbers(3, 64)},
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def gradient(step: int):
    return jax.tree.map(lambda leaf: leaf * jnp.sin(step + jnp.arange(leaf.shape[-1])), params())


def steps(optimizer, tree, count=5, seed=0):
    state, apply = optimizer.init(tree), jax.jit(optimizer.apply)
    for step in range(count):
        found = gradient(step)
        key = jax.random.fold_in(jax.random.key(seed), step)
        tree, state = apply(found, optax.tree.norm(found), state, tree, key)
    return tree, state


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 1e6])
def test_a_layer_at_a_time_is_adamw(max_grad_norm):
    config = settings(max_grad_norm=max_grad_norm)
    adamw = optim.adamw(config, b_rate=1.0)
    expected, state = params(), adamw.init(params())
    for step in range(5):
        updates, state = adamw.update(gradient(step), state, expected)
        expected = optax.apply_updates(expected, updates)
    inner = optax.chain(*optim._of_leaves(config, 1.0))
    found, _ = steps(layerwise.Layerwise(inner, max_grad_norm, stochastic=False), params())
    small = 1e-6 * config.learning_rate  # of a step
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=small), found, expected
    )


def test_a_layer_at_a_time_holds_no_stack_of_float32():
    config = settings(adam_moments="int8", stochastic_rounding=True)
    optimizer, tree = optim.optimizer(config), params(jnp.bfloat16)
    state, key = jax.eval_shape(optimizer.init, tree), jax.random.key(0)
    made = shapes(lambda g, p, s: optimizer.apply(g, jnp.float32(1), s, p, key), tree, tree, state)
    assert (3, 64, 128) in made  # the stacks themselves, in 8 and 16 bits
    program = jax.jit(lambda g, p, s: optimizer.apply(g, jnp.float32(1), s, p, key))
    text = program.lower(tree, tree, state).as_text()
    assert "tensor<3x64x128xbf16>" in text
    assert "tensor<3x64x128xf32>" not in text


@pytest.mark.parametrize(("signed", "worst"), [(True, 0.02), (False, 0.02)])
def test_eight_bits_are_near_and_right_in_the_mean(signed, worst):
    x = numbers(4, 8, 256) if signed else jnp.square(numbers(5, 8, 256)) * 1e-9

    @jax.jit
    def coded(seed):
        bits = jax.random.bits(jax.random.key(seed), x.shape, jnp.uint16)
        return eight_bit.decode(eight_bit.encode(x, 128, signed, bits))

    found = np.stack([coded(seed) for seed in range(100)]).astype(np.float64)
    # Of the quantity that an update has, a first moment or the root of a second one.
    exact, found = (
        (np.asarray(x, np.float64), found) if signed else (np.sqrt(np.float64(x)), found**0.5)
    )
    largest = np.repeat(np.abs(exact).reshape(8, 2, 128).max(-1), 128, axis=-1)
    assert np.max(np.abs(found - exact) / largest) < worst
    assert np.max(np.abs(found.mean(0) - exact) / largest) < worst / 5
    assert np.all((found > 0) == (exact > 0)) or signed


def test_nothing_stays_nothing_and_the_largest_is_exact():
    zeros = jnp.zeros((2, 64))
    full = jnp.full((2, 64), 2**16 - 1, jnp.uint16)
    for signed in (True, False):
        assert not np.any(eight_bit.decode(eight_bit.encode(zeros, 64, signed, full)))
        peak = zeros.at[0, 3].set(7.5)
        np.testing.assert_array_equal(
            eight_bit.decode(eight_bit.encode(peak, 64, signed, full)), peak
        )


def test_a_second_moment_decays_though_each_step_is_below_a_code():
    nu, key = jnp.ones((64, 128)).at[:, 0].set(4.0), jax.random.key(0)

    def step(moment, index):
        bits = jax.random.bits(jax.random.fold_in(key, index), nu.shape, jnp.uint16)
        decayed = eight_bit.decode(moment).at[:, 1:].multiply(0.999)
        return eight_bit.encode(decayed, 128, False, bits), None

    start = eight_bit.encode(nu, 128, False, jnp.zeros(nu.shape, jnp.uint16))
    end, _ = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(700)))(start)
    rest = np.mean(eight_bit.decode(end)[:, 1:]) / np.mean(eight_bit.decode(start)[:, 1:])
    assert rest == pytest.approx(0.999**700, rel=0.03)


def test_what_is_small_or_has_no_blocks_stays_as_it_is():
    tree = params() | {"odd": {"kernel": numbers(6, 100, 130)}}
    state = flatten(eight_bit.eight_bit(optax.scale_by_adam()).init(tree))
    kinds = {path: str(leaf.dtype) for path, leaf in state.items()}
    assert kinds["mu/layers/mlp/up/kernel/codes"] == "int8"
    assert kinds["nu/layers/mlp/up/kernel/codes"] == "uint8"
    assert state["nu/layers/mlp/up/kernel/scale"].shape == (3, 64, 1)
    assert kinds["mu/embed/embedding/codes"] == "int8"
    for path in ("mu/layers/norm/scale", "nu/norm/scale", "mu/odd/kernel"):
        assert kinds[path] == "float32"


def test_rounding_by_chance_is_right_in_the_mean_and_keeps_what_bfloat16_has():
    x = jnp.concatenate([numbers(7, 500), jnp.float32([0, -0.0, 3e38, -3e38])])

    @jax.jit
    def rounded(seed):
        bits = jax.random.bits(jax.random.key(seed), x.shape, jnp.uint16)
        return layerwise.rounded(x, bits)

    found = np.stack([rounded(seed) for seed in range(400)]).astype(np.float64)
    spacing = np.abs(np.float64(x)) * 2.0**-7
    assert np.all(np.abs(found - np.float64(x)) <= spacing)
    assert np.max(np.abs(found.mean(0) - np.float64(x)) / (spacing + 1e-300)) < 0.15
    exact = x.astype(jnp.bfloat16)
    full = jnp.full(x.shape, 2**16 - 1, jnp.uint16)
    np.testing.assert_array_equal(layerwise.rounded(exact.astype(jnp.float32), full), exact)
    odd = jnp.float32([np.inf, -np.inf, np.nan])
    found = layerwise.rounded(odd, full[:3]).astype(jnp.float32)
    np.testing.assert_array_equal(found, odd)


def test_steps_below_the_spacing_of_bfloat16_are_made_in_the_mean():
    config = settings(learning_rate=1e-4, weight_decay=0.0, warmup_steps=0, max_grad_norm=0.0)
    one = jax.tree.map(jnp.ones_like, params(jnp.bfloat16))
    moved = {}
    for stochastic in (False, True):
        config.update({"stochastic_rounding": stochastic, "adam_moments": "int8"})
        optimizer, tree = optim.optimizer(config), one
        state, apply = optimizer.init(tree), jax.jit(optimizer.apply)
        for step in range(50):
            found = jax.tree.map(jnp.ones_like, one)
            key = jax.random.key(step)
            tree, state = apply(found, jnp.float32(1), state, tree, key)
        moved[stochastic] = 1 - np.mean(np.float64(tree["layers"]["mlp"]["up"]["kernel"]))
    assert moved[False] == 0
    assert moved[True] == pytest.approx(50 * 1e-4, rel=0.05)


def test_gradients_of_micro_batches_are_summed_by_chance_too():
    """The hundredth of what is there already is below the spacing of bfloat16."""
    optimizer = optim.optimizer(settings(stochastic_rounding=True))
    assert isinstance(optimizer, layerwise.Layerwise)
    small = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.002), params(jnp.bfloat16))
    add, total = jax.jit(optimizer.add), jax.tree.map(jnp.ones_like, params(jnp.bfloat16))
    for step in range(100):
        total = add(total, small, jax.random.key(step))
    for path, leaf in flatten(total).items():
        assert leaf.dtype == jnp.bfloat16
        exact = 1 + 100 * float(jnp.bfloat16(0.002))
        assert np.mean(np.float64(leaf)) == pytest.approx(exact, rel=0.01), path


def test_the_same_key_gives_the_same_bits_and_another_one_others():
    config = settings(adam_moments="int8", stochastic_rounding=True)
    first, again, other = (
        steps(optim.optimizer(config), params(jnp.bfloat16), seed=seed) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    up = [tree["layers"]["mlp"]["up"]["kernel"] for tree, _ in (first, other)]
    assert 0.01 < np.mean(up[0] != up[1]) < 0.9
    layers = np.float32(up[0]) - np.float32(params(jnp.bfloat16)["layers"]["mlp"]["up"]["kernel"])
    assert not np.array_equal(layers[0], layers[1])


def test_a_step_that_is_not_finite_changes_nothing():
    config = settings(adam_moments="int8", stochastic_rounding=True)
    optimizer = optim.optimizer(config)
    tree, state = steps(optimizer, params(jnp.bfloat16))
    bad = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), gradient(0))
    kept = optimizer.apply(bad, jnp.float32(jnp.nan), state, tree, jax.random.key(9), jnp.bool_(1))
    jax.tree.map(np.testing.assert_array_equal, kept, (tree, state))


def test_lean_memory_is_a_few_bytes_a_parameter():
    model = registry.create("llama3_8b", param_dtype=jnp.bfloat16)
    config = settings(adam_moments="int8", stochastic_rounding=True)
    state = jax.eval_shape(optim.optimizer(config).init, model.abstract)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.abstract))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert held / count < 2.1
