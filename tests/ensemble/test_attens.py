"""The attention combiner: parity with torch, and where the released program departs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.ensemble import attens
from jaxclf.ensemble.attens import Combiner, Pooling

SIZE, CLASSES, MODULES, TEXTS = 24, 5, 7, 6
PAPER = Combiner(SIZE, CLASSES)
LENGTHS = np.array([9, 1, 5, 9, 3, 2])
MEAN = Pooling()
OTHERS = [
    PAPER,
    Combiner(SIZE, CLASSES, heads=3, over="max", combine="product"),
    Combiner(SIZE, CLASSES, over="min", combine="concat", norms="shared"),
    Combiner(SIZE, 1, combine="max", norms="shared"),
    Combiner(SIZE, CLASSES, combine="min", across="batch"),
    Combiner(SIZE, CLASSES, combine="mean"),
]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params_of(combiner):
    """Random everywhere: norms and biases too, so that an ignored one fails."""
    tree = attens.init(combiner, jax.random.key(0))
    leaves, structure = jax.tree.flatten(tree)
    moved = [leaf + 0.3 * random(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, moved)


def features(hidden, pooling=MEAN):
    """`[B, A+1, D]` from last hidden states `[A+1, B, T, D]` of texts of differing lengths."""
    mask = jnp.arange(hidden.shape[2]) < LENGTHS[:, None]
    return jnp.stack([attens.pool(each, mask, pooling) for each in hidden], axis=1)


@pytest.mark.parametrize("combiner", OTHERS, ids=lambda c: f"{c.over}-{c.combine}-{c.across}")
def test_outputs_and_gradients_equal_a_torch_module(combiner):
    torch = pytest.importorskip("torch")
    params, hidden = params_of(combiner), random(MODULES + 1, TEXTS, 9, SIZE)
    module = torch_module(torch, combiner)
    load(torch, module, params)
    target = random(TEXTS, combiner.classes, seed=1)

    def loss(params, hidden):
        scores, weights = attens.combine(combiner, params, features(hidden))
        return jnp.sum(scores * target), (scores, weights)

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (of_params, of_hidden), (scores, weights) = gradient(params, jnp.asarray(hidden))

    inputs = torch.tensor(hidden, requires_grad=True)
    expected, expected_weights = module(inputs, torch.tensor(LENGTHS))
    (expected * torch.tensor(target)).sum().backward()
    np.testing.assert_allclose(scores, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights.detach(), atol=1e-6)
    scale = inputs.grad.abs().max().item()
    np.testing.assert_allclose(of_hidden / scale, inputs.grad.numpy() / scale, atol=1e-5)
    theirs = gradients(module, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        wanted = theirs[jax.tree_util.keystr(path, simple=True, separator="/")]
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(leaf / scale, wanted / scale, atol=1e-5, err_msg=str(path))


def torch_module(torch, combiner):
    """The paper's Methodology written with PyTorch's own layers."""
    nn = torch.nn
    width = 2 * SIZE if combiner.combine == "concat" else SIZE
    reduce = {
        "mean": lambda x, dim: x.mean(dim),
        "sum": lambda x, dim: x.sum(dim),
        "product": lambda x, dim: x.prod(dim),
        "max": lambda x, dim: x.amax(dim),
        "min": lambda x, dim: x.amin(dim),
    }

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(SIZE, combiner.heads, batch_first=True)
            self.base = nn.Linear(SIZE, SIZE)
            names = ["tokens", "base", "modules", "sum"]
            own = combiner.norms == "own"
            shared = nn.LayerNorm(SIZE)
            self.norms = {n: nn.LayerNorm(SIZE) if own else shared for n in names}
            if width != SIZE:
                self.norms["sum"] = nn.LayerNorm(width)
            self.classifier = nn.Linear(width, combiner.classes)

        def forward(self, hidden, lengths):
            mask = torch.arange(hidden.shape[2]) < lengths[:, None]
            pooled = (hidden * mask[..., None]).sum(2) / lengths[:, None]
            base, modules = pooled[0], pooled[1:].transpose(0, 1)
            modules = self.norms["tokens"](modules)
            if combiner.across == "batch":
                modules = modules.transpose(0, 1)
            found, weights = self.attention(modules, modules, modules, average_attn_weights=False)
            if combiner.across == "batch":
                found = found.transpose(0, 1)
            found = self.norms["modules"](reduce[combiner.over](found, 1))
            other = self.base(self.norms["base"](base))
            if combiner.combine == "concat":
                total = torch.cat([found, other], dim=-1)
            else:
                total = reduce[combiner.combine](torch.stack([found, other]), 0)
            return self.classifier(self.norms["sum"](total)), weights

    return Module()


def pairs(module, params):
    """(our path, our shape, torch's parameter, rows of it, whether it is transposed)."""
    attention = params["attention"]
    for number, name in enumerate("qkv"):
        rows = slice(number * SIZE, (number + 1) * SIZE)
        yield f"attention/{name}/kernel", module.attention.in_proj_weight, rows, True
        yield f"attention/{name}/bias", module.attention.in_proj_bias, rows, False
    assert set(attention) == {*"qkvo"}
    layers = {"attention/o": module.attention.out_proj, "base": module.base}
    layers["classifier"] = module.classifier
    for path, layer in layers.items():
        yield f"{path}/kernel", layer.weight, slice(None), True
        yield f"{path}/bias", layer.bias, slice(None), False
    for name in params["norms"]:
        norm = module.norms["tokens" if name == "shared" else name]
        yield f"norms/{name}/scale", norm.weight, slice(None), False
        yield f"norms/{name}/bias", norm.bias, slice(None), False


def load(torch, module, params):
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    with torch.no_grad():
        for path, theirs, rows, transposed in pairs(module, params):
            ours = torch.tensor(np.array(leaves.pop(path)))
            theirs[rows] = ours.T if transposed else ours
    assert not leaves


def gradients(module, params):
    return {
        path: theirs.grad[rows].T.numpy() if transposed else theirs.grad[rows].numpy()
        for path, theirs, rows, transposed in pairs(module, params)
    }


def test_a_prediction_does_not_depend_on_its_neighbours():
    params, rows = params_of(PAPER), jnp.asarray(random(TEXTS, MODULES + 1, SIZE))
    together, _ = attens.combine(PAPER, params, rows)
    alone = [attens.combine(PAPER, params, rows[place : place + 1])[0][0] for place in range(TEXTS)]
    np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-6)


def test_across_the_batch_it_does_as_in_the_released_program():
    released = dataclasses.replace(PAPER, across="batch")
    params, rows = params_of(released), jnp.asarray(random(TEXTS, MODULES + 1, SIZE))
    together, weights = attens.combine(released, params, rows)
    alone, _ = attens.combine(released, params, rows[:1])
    assert np.abs(together[0] - alone[0]).max() > 1e-3
    assert weights.shape == (MODULES, 4, TEXTS, TEXTS)


def test_the_order_of_modules_does_not_matter():
    params, rows = params_of(PAPER), jnp.asarray(random(TEXTS, MODULES + 1, SIZE))
    order = np.array([0, *(1 + np.random.default_rng(0).permutation(MODULES))])
    first, _ = attens.combine(PAPER, params, rows)
    second, _ = attens.combine(PAPER, params, rows[:, order])
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_attention_weights_are_shares_of_the_modules():
    _, weights = attens.combine(PAPER, params_of(PAPER), random(TEXTS, MODULES + 1, SIZE))
    assert weights.shape == (TEXTS, 4, MODULES, MODULES)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("over", ["mean", "max", "min", "last"])
def test_what_stands_in_padding_is_not_seen(over):
    hidden = random(1, TEXTS, 9, SIZE)
    changed = hidden.copy()
    for row, length in enumerate(LENGTHS):
        changed[:, row, length:] = 1e3
    found, same = features(hidden, Pooling(over)), features(changed, Pooling(over))
    np.testing.assert_array_equal(found, same)
    pick = {"mean": np.mean, "max": np.max, "min": np.min, "last": lambda x, axis: x[-1]}[over]
    wanted = [pick(hidden[0, row, :length], axis=0) for row, length in enumerate(LENGTHS)]
    np.testing.assert_allclose(found[:, 0], np.stack(wanted), atol=1e-6)


def test_with_padding_the_mean_is_over_all_tokens_as_in_the_released_program():
    hidden = random(1, TEXTS, 9, SIZE)
    found = features(hidden, Pooling("mean", padding=9))
    np.testing.assert_allclose(found[:, 0], hidden[0].mean(1), atol=1e-6)


def test_the_last_token_of_prompts_padded_on_the_left():
    mask = jnp.array([[False, True, True], [True, True, True]])
    hidden = jnp.asarray(random(2, 3, SIZE))
    np.testing.assert_array_equal(attens.pool(hidden, mask, Pooling("last")), hidden[:, -1])


def test_it_starts_as_torch_does():
    params = attens.init(Combiner(768, 3), jax.random.key(0))
    bounds = {"q": (6 / (4 * 768)) ** 0.5, "o": 768**-0.5}
    for name, bound in bounds.items():
        kernel = params["attention"][name]["kernel"]
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert not np.any(params["attention"][name]["bias"])
    assert not np.allclose(params["attention"]["q"]["kernel"], params["attention"]["k"]["kernel"])
    assert 0.9 * 768**-0.5 < np.abs(params["base"]["bias"]).max() <= 768**-0.5
