"""The LoRA transform: what it changes, what it leaves, and that its forms agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Adapters, Spec
from jaxclf.core.errors import InputError
from jaxclf.core.tree import flatten
from jaxclf.models import registry
from jaxclf.models.quantization import QuantKernel, quantise
from jaxclf.models.quantization import quantised as quantised_model
from tests import tiny, tiny_encoders

LLAMA = registry.create(tiny.CONFIG)
EXPERTS = registry.create(dataclasses.replace(tiny.CONFIG, **tiny.EXPERTS))
LLAMA4 = registry.create(dataclasses.replace(tiny.CONFIG, **tiny.LLAMA4))
BERT = registry.create(tiny_encoders.with_heads("bert", "sequence"))
TOKENS = np.arange(24, dtype=np.int32).reshape(3, 8) % tiny.CONFIG.vocab_size
POSITIONS = np.tile(np.arange(8, dtype=np.int32), (3, 1))
SEGMENTS = np.ones((3, 8), np.int32)

SPECS = {
    "lora": Spec(targets=("q", "v"), rank=3, alpha=5.0),
    "all-linear": Spec(targets=("all-linear",), rank=2),
    "rslora": Spec(targets=("q",), rank=4, rslora=True),
    "dora": Spec(kind="dora", targets=("q", "o"), rank=3),
    "lora_fa": Spec(kind="lora_fa", targets=("k",), rank=3),
    "layers": Spec(targets=("q",), layers=(2, 0), rank=2),
    "dora, layers": Spec(kind="dora", targets=("q", "o"), layers=(1,), rank=2),
    "patterns": Spec(
        targets=("q", "layers/1/mlp/.*"),
        rank_pattern=(("layers/2/attention/q", 5), ("up", 1)),
        alpha_pattern=(("q", 2.0),),
    ),
}


OF_EXPERTS = {
    "experts": Spec(targets=("gate", "up", "down"), rank=3, alpha=5.0),
    "rslora": Spec(targets=("down",), rank=3, rslora=True),
    "lora_fa": Spec(kind="lora_fa", targets=("up",), rank=3),
    "patterns": Spec(
        targets=("all-linear", "layers/[02]/mlp/(gate|down)"),
        rank_pattern=(("layers/2/mlp/.*", 5),),
        alpha_pattern=(("gate", 2.0),),
    ),
}

_COMPILED = {}


def hidden(params, model=LLAMA, tokens=TOKENS, segments=SEGMENTS):
    """Hidden states, by one program a structure of parameters for all tests."""
    if id(model) not in _COMPILED:

        def states(params, tokens, segments):
            return model.bind(params).hidden(tokens, POSITIONS[: len(tokens)], segments)

        _COMPILED[id(model)] = jax.jit(states)
    return _COMPILED[id(model)](params, tokens, segments)


def filled(adapters: Adapters, seed: int = 0) -> Adapters:
    """Adapters that change something: factors that padding keeps at zero stay there."""
    random = np.random.default_rng(seed)
    masks = flatten(jax.tree.map(lambda leaf: leaf != 0, adapters.factors))

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("factors/")
        values = random.normal(0, 0.1, leaf.shape).astype(np.float32)
        if name.endswith("/a"):
            return values * masks[name]
        if name.endswith("/b"):  # a rank that `a` lacks is none of `b` either
            return values * np.any(masks[name[:-1] + "a"], axis=-2)[..., None]
        return leaf + values

    return jax.tree_util.tree_map_with_path(draw, adapters)


def start(spec: Spec, model=LLAMA, seed: int = 0):
    params = tiny.random_params(model, seed)
    return params, lora.init(params, spec, jax.random.key(seed))


CASES = [
    *((model, spec) for model in (LLAMA, BERT) for spec in SPECS.values()),
    *((EXPERTS, spec) for spec in OF_EXPERTS.values()),
    (LLAMA4, Spec(targets=("all-linear", "layers/1/sparse/mlp/gate"), rank=2)),
]
NAMES = [*(f"{name}-{spec}" for name in ("llama", "bert") for spec in SPECS)]
NAMES += [*(f"experts-{spec}" for spec in OF_EXPERTS), "llama4"]


@pytest.mark.parametrize(("model", "spec"), CASES, ids=NAMES)
def test_new_adapters_change_nothing_and_merged_equals_bound(model, spec):
    params, adapters = start(spec, model)
    base = hidden(params, model)
    np.testing.assert_allclose(hidden(lora.bind(params, adapters), model), base, atol=2e-6)
    adapters = filled(adapters)
    bound = hidden(lora.bind(params, adapters), model)
    assert np.max(np.abs(bound - base)) > 1e-2
    merged = lora.merge(params, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(hidden(merged, model), bound, atol=1e-5)


def test_unmerging_gives_the_base_back_but_not_for_dora():
    params, adapters = start(SPECS["patterns"])
    adapters = filled(adapters)
    again = lora.unmerge(lora.merge(params, adapters), adapters)
    for path, leaf in flatten(again).items():
        np.testing.assert_allclose(leaf, flatten(params)[path], atol=1e-6, err_msg=path)
    params, adapters = start(SPECS["dora"])
    with pytest.raises(ValueError, match="keep the base"):
        lora.unmerge(params, adapters)


def test_patterns_choose_layers_ranks_and_alphas():
    params, adapters = start(SPECS["patterns"])
    found = lora.places(params, adapters.spec)
    assert found["layers/attention/q"].ranks == (8, 8, 5)
    assert found["layers/attention/q"].alphas == (2.0, 2.0, 2.0)
    assert found["layers/mlp/up"] == lora.Place((1,), (1,), (16.0,))
    assert found["layers/mlp/down"].layers == (1,)
    assert not np.any(adapters.factors["layers"]["attention"]["q"]["a"][2, :, 5:])
    kernel = lora.bind(params, adapters)["layers"]["attention"]["q"]["kernel"]
    np.testing.assert_allclose(kernel.scale, [2 / 8, 2 / 8, 2 / 5])


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_count_is_that_of_the_values_that_get_a_gradient(spec):
    params, adapters = start(dataclasses.replace(spec, saved=(r"norm/scale",)))
    # From a point where no factor is zero for another reason than its rank.
    gradient = jax.grad(lambda tree: jnp.sum(hidden(lora.bind(params, tree)) ** 2))(
        filled(adapters)
    )
    if spec.kind == "lora_fa":
        gradient = {path: leaf for path, leaf in flatten(gradient).items() if path[-2:] != "/a"}
    touched = sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(gradient))
    assert lora.count(params, adapters.spec) == touched


@pytest.mark.parametrize("model", [LLAMA, BERT], ids=["llama", "bert"])
def test_nine_adapters_in_one_call_equal_nine_runs(model):
    params = tiny.random_params(model)
    spec = Spec(targets=("q", "v"), rank=2, saved=(r"(.*/)?norm/.*",))
    adapters = [filled(lora.init(params, spec, jax.random.key(i)), i) for i in range(9)]
    stacked = lora.stack(adapters)
    together = jax.jit(jax.vmap(lambda one: hidden(lora.bind(params, one), model)))(stacked)
    single = jax.jit(lambda one: hidden(lora.bind(params, one), model))
    for one, found in zip(adapters, together, strict=True):
        np.testing.assert_allclose(found, single(one), atol=1e-5)


@pytest.mark.parametrize("model", [LLAMA, BERT], ids=["llama", "bert"])
def test_each_row_uses_the_adapter_it_names(model):
    params = tiny.random_params(model)
    spec = SPECS["lora"]
    adapters = [filled(lora.init(params, spec, jax.random.key(i)), i) for i in range(3)]
    batch = {"tokens": TOKENS, "segments": SEGMENTS}

    def apply(bound, batch):
        return hidden(bound, model, batch["tokens"], batch["segments"])

    found = lora.by_row(apply, params, lora.stack(adapters), jnp.array([2, 0, 2]), batch)
    for row, name in enumerate([2, 0, 2]):
        alone = hidden(lora.bind(params, adapters[name]), model)[row]
        np.testing.assert_allclose(found[row], alone, atol=1e-5)


def test_adapters_of_other_specs_are_not_stacked():
    one, other = (start(SPECS[name])[1] for name in ("lora", "rslora"))
    with pytest.raises(ValueError, match="different specs"):
        lora.stack([one, other])


def test_dropout_is_of_the_factors_alone_and_needs_a_key():
    params, adapters = start(dataclasses.replace(SPECS["lora"], dropout=0.5))
    adapters = filled(adapters)
    still = hidden(lora.bind(params, adapters))
    one, two = (hidden(lora.bind(params, adapters, jax.random.key(i))) for i in (1, 2))
    assert not np.allclose(one, two)
    assert not np.allclose(one, still)
    again = hidden(lora.bind(params, adapters, jax.random.key(1)))
    np.testing.assert_array_equal(one, again)
    # With b at zero there is nothing to drop.
    fresh = lora.init(params, adapters.spec, jax.random.key(0))
    kept = hidden(lora.bind(params, fresh, jax.random.key(1)))
    np.testing.assert_allclose(kept, hidden(params), atol=2e-6)


def test_nothing_of_the_base_gets_a_gradient():
    """The step's shapes hold no gradient of a kernel, and the compiler counts fewer FLOPs."""
    model = registry.create(dataclasses.replace(tiny.CONFIG, num_layers=4, hidden_size=64))
    params = tiny.random_params(model)
    adapters = lora.init(params, SPECS["lora"], jax.random.key(0))

    def loss(bound):
        return jnp.sum(hidden(bound, model) ** 2)

    def of_adapters(adapters, params):
        return jax.grad(lambda one: loss(lora.bind(params, one)))(adapters)

    full = jax.jit(jax.grad(loss)).lower(params).compile()
    small = jax.jit(of_adapters).lower(adapters, params).compile()
    outputs = jax.eval_shape(of_adapters, adapters, params)
    assert {leaf.shape for leaf in jax.tree.leaves(outputs)} == {
        leaf.shape for leaf in jax.tree.leaves(adapters)
    }
    assert small.cost_analysis()["flops"] < 0.8 * full.cost_analysis()["flops"]
    memory = [part.memory_analysis().temp_size_in_bytes for part in (small, full)]
    outputs = [part.memory_analysis().output_size_in_bytes for part in (small, full)]
    assert outputs[0] < 0.1 * outputs[1]
    assert memory[0] < memory[1]


@pytest.mark.parametrize("spec", OF_EXPERTS.values(), ids=list(OF_EXPERTS))
def test_factors_of_experts_are_unmerged_and_counted(spec):
    params, adapters = start(spec, EXPERTS)
    adapters = filled(adapters)
    again = lora.unmerge(lora.merge(params, adapters), adapters)
    for path, leaf in flatten(again).items():
        np.testing.assert_allclose(leaf, flatten(params)[path], atol=1e-6, err_msg=path)
    drawn = {path: np.count_nonzero(leaf) for path, leaf in flatten(adapters.factors).items()}
    frozen = spec.kind == "lora_fa"
    trained = sum(count for path, count in drawn.items() if path[-2:] != "/a" or not frozen)
    assert lora.count(params, spec) == trained


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_quantised_experts_stand_below_adapters(kind):
    params, adapters = start(OF_EXPERTS["experts"], EXPERTS)
    quantised = quantised_model(params, kind)
    of_mlp = quantised["layers"]["mlp"]
    assert all(isinstance(of_mlp[name]["kernel"], QuantKernel) for name in ("gate", "up", "down"))
    assert not isinstance(of_mlp["router"]["weight"], QuantKernel)
    restored = jax.tree.map(
        lambda leaf: leaf.dequantise(jnp.float32) if hasattr(leaf, "dequantise") else leaf,
        quantised,
        is_leaf=lambda leaf: hasattr(leaf, "dequantise"),
    )
    adapters = filled(adapters)
    bound = hidden(lora.bind(quantised, adapters), EXPERTS)
    np.testing.assert_allclose(bound, hidden(lora.bind(restored, adapters), EXPERTS), atol=1e-5)
    gradient = jax.grad(lambda one: jnp.sum(hidden(lora.bind(quantised, one), EXPERTS) ** 2))(
        adapters
    )
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_all_linear_layers_are_not_experts():
    found = lora.places(EXPERTS.abstract, SPECS["all-linear"])
    assert set(found) == {f"layers/attention/{name}" for name in "qkvo"}


@pytest.mark.parametrize(
    "change", [{"kind": "dora"}, {"dropout": 0.1, "targets": ("q", "layers/1/mlp/up")}]
)
def test_experts_have_no_dropout_and_no_magnitude(change):
    spec = dataclasses.replace(OF_EXPERTS["experts"], **change)
    with pytest.raises(InputError, match=r"layers/mlp/(up|down) are experts.*target_modules"):
        lora.places(EXPERTS.abstract, spec)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_quantised_base_stands_below_adapters(kind, name):
    params, adapters = start(SPECS[name])
    quantised = dict(params)
    for group in ("attention", "mlp"):
        quantised["layers"] = quantised["layers"] | {
            group: {
                module: {"kernel": quantise(leaf["kernel"], kind, jnp.float32)}
                for module, leaf in params["layers"][group].items()
            }
        }
    restored = jax.tree.map(
        lambda leaf: leaf.dequantise(jnp.float32) if hasattr(leaf, "dequantise") else leaf,
        quantised,
        is_leaf=lambda leaf: hasattr(leaf, "dequantise"),
    )
    adapters = lora.init(quantised, SPECS[name], jax.random.key(0))
    np.testing.assert_allclose(hidden(lora.bind(quantised, adapters)), hidden(restored), atol=1e-5)
    adapters = filled(adapters)
    bound = hidden(lora.bind(quantised, adapters))
    np.testing.assert_allclose(bound, hidden(lora.bind(restored, adapters)), atol=1e-5)
    gradient = jax.grad(lambda one: jnp.sum(hidden(lora.bind(quantised, one)) ** 2))(adapters)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec(targets=("query",)), "'query' matches no module.*layers/attention/q"),
        (Spec(targets=("q",), layers=(3,)), "names layer 3; the model has 3 layers"),
        (Spec(targets=("q",), rank_pattern=(("v", 2),)), "'v' matches no module"),
    ],
)
def test_what_chooses_nothing_is_named(spec, message):
    with pytest.raises(InputError, match=message):
        lora.places(LLAMA.abstract, spec)


@pytest.mark.parametrize("name", ["lora", "patterns"])
def test_a_starts_uniform_below_one_over_the_root_of_its_inputs(name):
    base = tiny.random_params(LLAMA)
    factors = flatten(lora.init(base, SPECS[name], jax.random.key(0)).factors)
    found = {path: np.asarray(leaf) for path, leaf in factors.items() if path.endswith("/a")}
    assert found
    for path, values in found.items():
        drawn, bound = values[values != 0], values.shape[-2] ** -0.5
        assert np.abs(drawn).max() < bound, path
        assert np.abs(drawn).max() > 0.8 * bound, path  # of so many draws
    assert not any(np.any(leaf) for path, leaf in factors.items() if path.endswith("/b"))
