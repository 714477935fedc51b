"""What is trained, and that an optimizer step is AdamW's, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxclf.adapters.partition import choose_trained
from jaxclf.config import defaults
from jaxclf.core.errors import InputError
from jaxclf.models.kernels import take
from jaxclf.models.unstacked import join_tables
from jaxclf.training import optim


def tree():
    """Three layers, with biases, as an encoder would have."""
    shapes = {
        "embed": {"embedding": (7, 4)},
        "layers": {
            "attention_norm": {"scale": (3, 4), "bias": (3, 4)},
            "attention": {"q": {"kernel": (3, 4, 5), "bias": (3, 5)}},
        },
        "norm": {"scale": (4,)},
    }
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def settings(**changes) -> ConfigDict:
    config = defaults.default().train
    config.update({"max_grad_norm": 0.0, "steps": 10, **changes})
    return config


def paths(part) -> set[str]:
    return {optim.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(part)}


BIASES = ["layers/attention_norm/bias", "layers/attention/q/bias"]
NORMS = {"layers/attention_norm/scale", "layers/attention_norm/bias", "norm/scale"}
ALL = {
    "embed/embedding",
    "layers/attention_norm/scale",
    "layers/attention_norm/bias",
    "layers/attention/q/kernel",
    "layers/attention/q/bias",
    "norm/scale",
}
IN_LAYERS = {path for path in ALL if path.startswith("layers/")}


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ("all", ALL),
        ("biases", set(BIASES)),
        ("norms", NORMS),
        ("last:3", IN_LAYERS),
        (r"layers/.*/q/.*|norm/scale", {"layers/attention/q/kernel", *BIASES[1:], "norm/scale"}),
    ],
)
def test_partitions_choose_whole_leaves(trained, expected):
    params = tree()
    part, rest = choose_trained(params, trained).split(params)
    assert paths(part) == expected
    assert paths(rest) == ALL - expected


def test_last_layers_are_cut_out_of_their_leaves():
    params = tree()
    part, rest = choose_trained(params, "last:2").split(params)
    assert paths(part) == IN_LAYERS
    assert paths(rest) == ALL
    kernel = params["layers"]["attention"]["q"]["kernel"]
    np.testing.assert_array_equal(part["layers"]["attention"]["q"]["kernel"], kernel[1:])
    np.testing.assert_array_equal(rest["layers"]["attention"]["q"]["kernel"], kernel[:1])


@pytest.mark.parametrize(
    "trained", ["all", "last:1", "last:2", "last:3", "biases", "norms", "embed.*"]
)
@pytest.mark.parametrize("unstacked", [False, True])
def test_join_undoes_split(trained, unstacked):
    params = tree()
    partition = choose_trained(jax.eval_shape(lambda: params), trained)
    partition = partition._replace(unstacked=unstacked)
    joined = partition.join(*partition.split(params))
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def untied():
    return {**tree(), "unembed": {"kernel": jnp.zeros((4, 7))}}


def test_a_table_may_train_in_some_of_its_rows():
    params, rows = untied(), np.array([0, 2, 5])
    table = params["embed"]["embedding"]
    partition = choose_trained(params, "all", rows)
    part, rest = partition.split(params)
    np.testing.assert_array_equal(part["embed"]["embedding"], table[rows])

    part["embed"]["embedding"] = -part["embed"]["embedding"]
    joined = partition.join(part, rest)
    expected = table.at[rows].multiply(-1)
    ids = np.array([[5, 1], [6, 0]])
    np.testing.assert_array_equal(take(joined["embed"]["embedding"], ids), expected[ids])
    whole = join_tables(joined)
    np.testing.assert_array_equal(whole["embed"]["embedding"], expected)
    del whole["embed"], params["embed"]
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_rows_of_a_frozen_table_are_of_no_account():
    params = tree()
    part, rest = choose_trained(params, "norms", np.array([1])).split(params)
    assert paths(part) == NORMS
    assert rest["embed"]["embedding"] is params["embed"]["embedding"]


def test_a_table_that_is_the_unembedding_too_trains_in_whole():
    with pytest.raises(InputError, match=r"train\.vocabulary.*'all'"):
        choose_trained(tree(), "all", np.array([0, 1]))


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ("last:0", r"'last:0'.*3 layers"),
        ("last:4", r"'last:4'.*3 layers"),
        ("layers/(", r"no regular expression"),
        ("attention/q/kernel", r"matches no parameter.*layers/attention/q/kernel"),
        ("kernel", "matches no parameter"),
        ("last:two", "matches no parameter"),
    ],
)
def test_what_trains_nothing_is_refused(trained, message):
    with pytest.raises(InputError, match=message):
        choose_trained(tree(), trained)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 1, 5: 1, 50: 1}),
        ({"warmup_steps": 4}, {0: 0, 1: 0.25, 4: 1, 9: 1}),
        ({"schedule": "linear"}, {0: 1, 5: 0.5, 10: 0, 12: 0}),
        ({"schedule": "linear", "warmup_steps": 2}, {0: 0, 1: 0.5, 2: 1, 6: 0.5, 10: 0}),
        ({"schedule": "cosine"}, {0: 1, 5: 0.5, 2: (1 + np.cos(0.2 * np.pi)) / 2, 10: 0}),
        ({"schedule": "cosine", "warmup_steps": 2}, {1: 0.5, 2: 1, 6: 0.5, 10: 0}),
    ],
    ids=str,
)
def test_schedules(changes, expected):
    rate = optim.schedule(settings(learning_rate=2e-3, **changes))
    for step, share in expected.items():
        np.testing.assert_allclose(rate(step), 2e-3 * share, rtol=1e-6, atol=1e-9)


def gradients(step: int):
    random = np.random.default_rng(100 + step)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), tree()
    )


def test_five_steps_are_adamw_by_hand():
    """Loshchilov & Hutter's algorithm 2 in float64, with clipping, warm-up and decay."""
    config = settings(
        learning_rate=0.02,
        warmup_steps=2,
        schedule="linear",
        weight_decay=0.3,
        max_grad_norm=2.0,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-3,
    )
    params = tree()
    optimizer = optim.optimizer(config)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)

    names = [optim.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    matrices = {"embed/embedding", "layers/attention/q/kernel"}
    decay = [0.3 if name in matrices else 0.0 for name in names]
    expected = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    first, second = ([np.zeros_like(leaf) for leaf in expected] for _ in range(2))
    for step in range(5):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)

        gradient = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients(step))]
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient))
        assert norm > 2
        rate = 0.02 * (step / 2 if step < 2 else 1 - (step - 2) / 8)
        for i, leaf in enumerate(gradient):
            leaf = leaf * 2.0 / norm
            first[i] = 0.8 * first[i] + 0.2 * leaf
            second[i] = 0.95 * second[i] + 0.05 * leaf**2
            mean, square = first[i] / (1 - 0.8 ** (step + 1)), second[i] / (1 - 0.95 ** (step + 1))
            expected[i] = expected[i] - rate * (
                mean / (np.sqrt(square) + 1e-3) + decay[i] * expected[i]
            )
    for name, leaf, other in zip(names, jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6, err_msg=name)


def test_small_gradients_are_not_clipped():
    small = jax.tree.map(lambda leaf: leaf * 1e-3, gradients(0))

    def update(max_grad_norm):
        optimizer = optim.optimizer(settings(max_grad_norm=max_grad_norm))
        return jax.jit(optimizer.update)(small, optimizer.init(tree()), tree())[0]

    jax.tree.map(np.testing.assert_array_equal, update(1.0), update(0.0))


def test_updates_of_bfloat16_parameters_are_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree())
    optimizer = optim.optimizer(settings(weight_decay=0.1, max_grad_norm=1.0))
    updates, state = jax.eval_shape(optimizer.update, gradients(0), optimizer.init(tree()), params)
    moments = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((moments, updates))}
    assert dtypes == {jnp.dtype("float32")}
