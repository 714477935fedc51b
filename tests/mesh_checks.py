"""What must hold on eight devices; `test_mesh` runs each of these in a process that has them."""

import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclf.adapters import partition, tuning
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.classifiers.opening import open_run
from jaxclf.config import defaults
from jaxclf.data import batching, loader, prefixes
from jaxclf.decoding import decode
from jaxclf.distributed import sharding
from jaxclf.ensemble import features
from jaxclf.ensemble.attens import Pooling
from jaxclf.models import quantization, registry
from jaxclf.models.attention import attend
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.heads import HeadConfig
from jaxclf.models.masks import visible
from jaxclf.planning import hlo
from jaxclf.runs.evaluation import evaluate
from jaxclf.runs.training import train
from jaxclf.training import losses, optim, train_step
from jaxclf.training.layerwise import Layerwise
from jaxclf.training.losses import Objective, Term
from tests.ensemble.test_features import seen_of, texts
from tests.models.test_attention import inputs as attention_inputs
from tests.models.test_attention import (
    outputs_and_gradients,
    shared_inputs,
    shared_outputs_and_gradients,
)
from tests.tiny import ATTRIBUTES, EXPERTS, LLAMA4, examples, random_params, sharing
from tests.tiny_encoders import ENCODERS
from tests.tiny_t5 import FLAN

MESHES = {
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "fsdp-tensor": (1, 4, 2, 1),
    "data-fsdp-tensor": (2, 2, 2, 1),
    "fsdp-tensor-sequence": (1, 2, 2, 2),
}
ONE = (1, 1, 1, 1)
RATE = 3e-3
CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    dropout=0.1,
)
SIZES = [(3, 5, 1), (3, 9, 2), (3, 2, 1), (3, 11, 1), (3, 4, 9), (3, 8, 7), (3, 3, 2), (3, 7, 4)]


def on(shape: tuple[int, ...]):
    """The mesh of these sizes as a context."""
    sizes = dict(zip(sharding.AXES, shape, strict=True))
    return jax.set_mesh(sharding.make_mesh(sizes, jax.devices()[: np.prod(shape)]))


def text_batch(count: int = 1, sizes=SIZES) -> batching.Batch:
    """Eight examples in `count` micro-batches."""
    batch = batching.padded([batching.row(each) for each in examples(sizes, vocab_size=64)])
    return jax.tree.map(lambda rows: rows.reshape(count, -1, rows.shape[1]), batch)


def shared_batch(count: int = 1) -> batching.Batch:
    """Sixteen examples that share two prefixes, in `count` micro-batches."""
    texts = sharing(examples([*SIZES, *SIZES], vocab_size=64), (11, 6))
    shared = prefixes.find(texts, len(texts), least=1)
    batch = batching.padded([batching.row(each, shared) for each in texts], shared, count)
    assert batch.prefixes is not None
    return jax.tree.map(lambda rows: rows.reshape(count, -1, rows.shape[1]), batch)


def trained(shape, model, tuned, params, batch, objective, count=10, optimizer=None):
    """Losses of `count` steps, and what was trained, computed on this mesh."""
    # AdamW makes whole steps of gradients that are zero but for rounding: of a key's bias (hence
    # the eps), and of most of an adapter (hence no AdamW).
    optimizer = optimizer or optax.adamw(RATE, eps=1e-4)
    if isinstance(tuned, tuning.Adapted):
        optimizer = optax.sgd(10 * RATE, momentum=0.9)
    step = train_step.make_train_step(
        model, tuned, optimizer, optax.constant_schedule(RATE), objective, may_skip=False
    )
    with on(shape):
        start, frozen = sharding.put(tuned.start(sharding.put(params), jax.random.key(1)))
        state = sharding.born(
            lambda tree, key: train_step.init_state(tree, optimizer, key), start, jax.random.key(0)
        )
        lies = sharding.shardings(state), sharding.whole()
        run = jax.jit(step, donate_argnums=0, out_shardings=lies)
        batch = sharding.put_batch(batch, axis=1)
        found = []
        for _ in range(count):
            state, metrics = run(state, frozen, batch)
            found.append(float(metrics.loss))
        return found, jax.device_get(state.trained)


def agree(names, *arguments):
    expected = trained(ONE, *arguments)
    assert expected[0][-1] < expected[0][0]
    for name in names:
        found = trained(MESHES[name], *arguments)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, err_msg=name)

        def close(one, other, name=name):
            scale = np.max(np.abs(other)) or 1.0
            np.testing.assert_allclose(one / scale, other / scale, atol=1e-5, err_msg=name)

        jax.tree.map(close, found[1], expected[1])


def config(**fields):
    found = defaults.default()
    with found.unlocked():
        for name, value in fields.items():
            group, _, field = name.rpartition("__")
            target = found[group] if group else found
            target[field] = value
    return found


def full():
    model = registry.create(CONFIG, remat=True)
    tuned = tuning.choose(config(), model.abstract)
    params = random_params(model)
    agree(MESHES, model, tuned, params, text_batch(), losses.GENERATION)
    agree(
        ["data-fsdp-tensor"],
        model,
        tuned,
        params,
        shared_batch(2),
        losses.GENERATION,
    )


def attributes():
    """Layers that see less, caps, sinks, norms and biases, alone and beside a shared prefix."""
    model = registry.create(dataclasses.replace(CONFIG, **ATTRIBUTES), remat=True)
    tuned = tuning.choose(config(), model.abstract)
    params = jax.tree.map(lambda leaf: leaf / 2, random_params(model))
    agree(["fsdp-tensor-sequence"], model, tuned, params, text_batch(), losses.GENERATION)
    agree(["fsdp-tensor"], model, tuned, params, shared_batch(2), losses.GENERATION)


def experts():
    """Feed-forward by experts, whole and below adapters: every device sorts its own tokens."""
    dims = dataclasses.replace(CONFIG, **EXPERTS | {"expert_size": 32, "normalised_experts": False})
    plain = jax.tree.map(lambda leaf: leaf / 2, random_params(registry.create(dims)))
    names = ["data-fsdp-tensor", "fsdp-tensor-sequence"]
    model = registry.create(dims, remat=True)
    whole = tuning.choose(config(), model.abstract)
    agree(names, model, whole, plain, text_batch(), losses.GENERATION)
    still = dataclasses.replace(dims, dropout=0.0)  # in a few steps adapters learn less than it
    for quantised in ("none", "nf4"):
        model = registry.create(still, remat=True, quantise=quantised)
        fields = config(
            tune="lora",
            lora__target_modules="q,gate,up,down",
            lora__dropout=0.0,
            model__quantize=quantised,
        )
        tuned = tuning.choose(fields, model.abstract)
        params = plain if quantised == "none" else quantization.quantised(plain, quantised)
        agree(names[:1], model, tuned, params, text_batch(), losses.GENERATION)


def two_kinds_of_layers():
    """Layers with experts and without, which lie in two stacks."""
    dims = dataclasses.replace(CONFIG, **LLAMA4 | {"expert_size": 32, "shared_expert_size": 32})
    model = registry.create(dims, remat=True)
    params = jax.tree.map(lambda leaf: leaf / 2, random_params(model))
    tuned = tuning.choose(config(), model.abstract)
    names = ["data-fsdp-tensor", "fsdp-tensor-sequence"]
    agree(names, model, tuned, params, text_batch(), losses.GENERATION)


def lean():
    """Steps in less memory: from the same gradients the same bits on every mesh, and learning."""
    dims = dataclasses.replace(
        CONFIG, hidden_size=128, intermediate_size=512, head_dim=32, dropout=0.0
    )
    model = registry.create(dims, param_dtype=jnp.bfloat16, remat=2)
    fields = config(train__adam_moments="int8", train__stochastic_rounding=True).train
    optimizer = optim.optimizer(fields)
    assert isinstance(optimizer, Layerwise)
    params = jax.device_get(random_params(model))
    gradient = jax.tree.map(lambda leaf: np.sin(np.arange(leaf.size)).reshape(leaf.shape), params)
    found, names = {}, ("fsdp-tensor", "fsdp-tensor-sequence")
    for name, shape in {"one": ONE, **{name: MESHES[name] for name in names}}.items():
        with on(shape):
            tree, given = sharding.put(params), sharding.put(gradient)
            state = sharding.born(optimizer.init, tree)
            lies = sharding.shardings(tree), sharding.shardings(state)
            apply = jax.jit(optimizer.apply, out_shardings=lies)
            for step in range(3):
                key = jax.random.key(step)
                tree, state = apply(given, jnp.float32(1), state, tree, key)
            found[name] = jax.device_get((tree, state))
        jax.tree.map(np.testing.assert_array_equal, found[name], found["one"])
    tuned = tuning.choose(config(), model.abstract)
    arguments = (model, tuned, params, text_batch(), losses.GENERATION, 10, optimizer)
    expected = trained(ONE, *arguments)[0]
    assert expected[-1] < 0.9 * expected[0]
    # Gradients differ by rounding, which chance then makes larger.
    np.testing.assert_allclose(trained(MESHES[names[1]], *arguments)[0], expected, rtol=0.01)


def adapters():
    for quantised, names in (("none", ["fsdp-tensor-sequence"]), ("nf4", ["fsdp-tensor"])):
        model = registry.create(CONFIG, remat=True, quantise=quantised)
        fields = config(
            tune="lora",
            lora__target_modules="all-linear",
            lora__dropout=0.1,
            model__quantize=quantised,
        )
        tuned = tuning.choose(fields, model.abstract)
        plain = random_params(registry.create(CONFIG))
        params = plain if quantised == "none" else quantization.quantised(plain, "nf4")
        agree(names, model, tuned, params, shared_batch(), losses.GENERATION)


def encoders():
    meshes = {"roberta": ["data-fsdp-tensor"], "electra": ["fsdp-tensor-sequence"]}
    for family, names in meshes.items():
        head = HeadConfig("label", "sequence", 5)
        dims = dataclasses.replace(
            ENCODERS[family],
            heads=(head,),
            vocab_size=64,
            hidden_size=32,
            embedding_size=32 if family == "roberta" else 16,
            intermediate_size=64,
            num_heads=4,
            max_position=32,
        )
        model = registry.create(dims)
        tuned = tuning.choose(config(), model.abstract)
        batch = text_batch()
        random = np.random.default_rng(0)
        places = np.zeros((1, 8, 1), np.int32)
        labels = random.integers(0, 5, places.shape).astype(np.int32)
        targets = {"label": batching.Targets(places, labels, np.ones(places.shape, bool))}
        batch = batch._replace(types=np.zeros_like(batch.tokens), targets=targets)
        agree(
            names,
            model,
            tuned,
            jax.tree.map(
                lambda leaf: leaf + 0.1 * np.sin(np.arange(leaf.size)).reshape(leaf.shape),
                jax.jit(model.init)(jax.random.key(0)),
            ),
            batch,
            Objective(losses.head_scores, {"label": Term("class")}),
        )


def encoder_with_decoder():
    """A T5's losses, parameters and greedy tokens."""
    dims = dataclasses.replace(
        FLAN, vocab_size=64, intermediate_size=64, num_layers=1, num_decoder_layers=1, head_dim=8
    )
    model = registry.create(dims, remat=True)
    texts = [dataclasses.replace(each, apart=True) for each in examples(SIZES, vocab_size=64)]
    batch = batching.padded([batching.row(each) for each in texts])
    batch = jax.tree.map(lambda rows: rows[None], batch)
    tuned, params = tuning.choose(config(), model.abstract), random_params(model)
    agree(["fsdp-tensor-sequence"], model, tuned, params, batch, losses.GENERATION, 3)
    heads = HeadConfig("label", "sequence", 5), HeadConfig("words", "token", 3)
    scored = registry.create(dims.with_heads(heads))
    terms = {head.name: Term("class") for head in heads}
    places = np.zeros((1, 8, 2), np.int32) + np.arange(2, dtype=np.int32)
    targets = batching.Targets(places, places % 3, np.ones(places.shape, bool))
    scored_batch = batch._replace(targets=dict.fromkeys(terms, targets))
    tuned = tuning.choose(config(), scored.abstract)
    fixed = scored, tuned, random_params(scored), scored_batch
    agree(["fsdp-tensor-sequence"], *fixed, Objective(losses.head_scores, terms))
    greedy = decode.make_greedy(model, 6, eos_id=2)
    prompts = batching.prompts(
        [dataclasses.replace(each, label=each.label[:0]) for each in texts], 8
    )
    found = []
    for shape in (ONE, MESHES["data-fsdp-tensor"]):
        with on(shape):
            answers = jax.jit(greedy)(sharding.put(params), sharding.put_batch(prompts))
            found.append(np.asarray(answers))
    np.testing.assert_array_equal(*found)


def decoding():
    """The same tokens on meshes of every axis, where caches are cut too."""
    model = registry.create(CONFIG)
    params = random_params(model)
    greedy = decode.make_greedy(model, 6, eos_id=2)
    compute = decode.make_prefix(model)
    *texts, last = sharing(examples(SIZES, vocab_size=64), (5,))
    texts.append(dataclasses.replace(last, prefix=last.prefix[:3]))  # which it shares with none
    shared = prefixes.find(texts, len(texts), least=1)
    prompts, row = batching.prompts(texts, 8, shared), batching.prefix_row(shared)
    found = []
    for shape in (ONE, MESHES["fsdp"], MESHES["data-fsdp-tensor"], MESHES["fsdp-tensor-sequence"]):
        with on(shape):
            put = sharding.put(params)
            prefix = jax.jit(compute)(put, row)
            answers = jax.jit(greedy)(put, sharding.put_batch(prompts), prefix)
            found.append(np.asarray(answers))
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def kernels():
    """Kernels over rows, heads and tokens that are cut equal the plain way on one device.

    With and without prefixes that rows share. Meshes cut queries, and key heads into fewer parts
    than there are devices. cuDNN's place is taken by XLA, in the same shard_map.
    """
    query, key, value, ids = attention_inputs(count=256)

    def total(implementation, causal):
        def of_arrays(arrays):
            found = attend(*arrays, visible(ids, causal, implementation))
            return jnp.sum(jnp.where(ids[..., None, None] > 0, found * jnp.cos(found), 0))

        return jax.jit(jax.value_and_grad(of_arrays))

    for shape, causal in (((2, 1, 2, 2), True), ((1, 1, 4, 2), True), ((2, 1, 2, 2), False)):
        expected = total("plain", causal)((query, key, value))
        with on(shape):
            actual = jax.device_get(total("splash", causal)((query, key, value)))
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=3e-4), actual, expected)
    for implementation, size in (("splash", 128), ("cudnn", 16)):
        arrays, *rest = shared_inputs(rows=4, size=size)
        expected = shared_outputs_and_gradients("plain", arrays, *rest)
        for shape in ((2, 1, 2, 2), (1, 1, 4, 2)):
            with on(shape):
                actual = jax.device_get(shared_outputs_and_gradients(implementation, arrays, *rest))
            jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5), actual, expected)
    *arrays, _ = attention_inputs(count=24, size=16)
    lengths = np.array([[17], [24]], np.int32)
    texts = np.int32(np.arange(24) < lengths)
    for causal, given in ((True, lengths), (False, lengths), (True, None), (False, None)):
        expected = outputs_and_gradients("plain", causal, arrays, texts)
        for shape in ((2, 1, 2, 2), (1, 2, 4, 1)):
            with on(shape):
                actual = outputs_and_gradients("cudnn", causal, arrays, texts, given)
                actual = jax.device_get(actual)
            jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-5), actual, expected)


def checkpoints():
    """What one mesh wrote, others read bit for bit: the one before it, and a single device."""
    model = registry.create(CONFIG)
    values = jax.device_get(random_params(model))
    before = ONE
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saved:
        for number, shape in enumerate((*MESHES.values(), ONE), 1):
            with on(shape):
                saved.save(number, sharding.put(values), {"step": jnp.int32(3)}, b"", {})
                saved.wait()
            others, before = {before, ONE}, shape
            for other in others:
                with on(other):
                    wanted = sharding.abstract(model.abstract)
                    found = saved.restore_params(number, wanted)
                    jax.tree.map(
                        lambda leaf, want: np.testing.assert_equal(leaf.sharding, want.sharding),
                        found,
                        wanted,
                    )
                    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), values)


def examples_seen():
    """Devices that share the rows of a batch have each example once an epoch, on every mesh."""
    texts = examples([(2, 3, 1)] * 32)
    texts = [dataclasses.replace(each, text=each.text * 0 + i) for i, each in enumerate(texts)]
    for shape in ((1, 1, 1, 1), (1, 2, 1, 1), (2, 2, 1, 1), (4, 2, 1, 1), (1, 4, 2, 1)):
        batches = loader.train_batches(texts, batch_size=8, seed=0)
        with on(shape):
            seen = []
            for _ in range(4):
                tokens = sharding.put_batch(next(batches)).tokens
                own = [s for s in tokens.addressable_shards if s.replica_id == 0]
                assert len(own) == sharding.rows()
                seen += [int(row[2]) for shard in own for row in np.asarray(shard.data)]
        assert sorted(seen) == list(range(32)), shape


def whole_run():
    """A run that was stopped on one mesh goes on on another, as if on one device."""
    fields = {
        "data__limit": 24,
        "model__name": "llama_smoke",
        "train__steps": 4,
        "train__batch_size": 4,
        "train__gradient_accumulation_steps": 2,
        "train__save_steps": 2,
        "train__logging_steps": 1,
        "prompt__template": "plain",
    }

    def run(folder: str, **more):
        train(config(**fields | more), Path(folder))
        rows = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(row)["train/loss"] for row in rows if "train/loss" in row]

    eight = (("mesh__fsdp", 2), ("mesh__tensor", 2), ("mesh__sequence", 2))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        expected = run(first, mesh__data=1, mesh__fsdp=1, mesh__tensor=4, mesh__sequence=2)
        run(second, **dict(eight) | {"train__steps": 2})
        resumed = run(second, mesh__data=1, mesh__fsdp=2, mesh__tensor=4)
        np.testing.assert_allclose(resumed, expected, rtol=1e-5)
        report = json.loads((Path(second) / "report.json").read_text())
        opened = open_run(Path(second), overrides=[f"mesh.{name[6:]}={n}" for name, n in eight])
        assert evaluate(opened, Path(second) / "again")["eval"] == report["eval"]


def module_features():
    """What base and adapters see, rows and parameters cut."""
    dims = dataclasses.replace(
        ENCODERS["bert"], vocab_size=64, hidden_size=32, embedding_size=32, num_heads=4
    )
    seen, examples = seen_of(dims), texts(11)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        expected = features.load(Path(first), seen, examples, 8, Pooling())
        with on(MESHES["data-fsdp-tensor"]):
            params = sharding.put(seen.params)
            cut = {name: sharding.put(each) for name, each in seen.adapters.items()}
            there = dataclasses.replace(seen, params=params, adapters=cut)
            found = features.load(Path(second), there, examples, 8, Pooling())
        for name, vectors in expected.items():
            np.testing.assert_allclose(found[name], vectors, atol=1e-5)


def compiled_text():
    """No array has all tokens and the vocabulary, and no stack of kernels is gathered whole."""
    dims = dataclasses.replace(CONFIG, vocab_size=160, num_layers=5, dropout=0.0)
    model = registry.create(dims, remat=True)
    tuned = partition.choose_trained(model.abstract, "all")
    step = train_step.make_train_step(
        model, tuned, optax.adamw(1e-2), optax.constant_schedule(1e-2), losses.GENERATION
    )
    batch = text_batch(sizes=[(3, 80, 2)] * 8)
    width = batch.tokens.shape[-1]
    assert width == 96
    with on(MESHES["fsdp-tensor"]):
        trained, frozen = tuned.split(sharding.abstract(model.abstract))
        state = sharding.abstract(
            jax.eval_shape(
                lambda tree: train_step.init_state(tree, optax.adamw(1e-2), jax.random.key(0)),
                trained,
            )
        )
        lies = sharding.shardings(state), sharding.whole()
        program = jax.jit(step, out_shardings=lies).lower(state, frozen, batch).compile()
    text = program.as_text()
    # Of all rows, of a device's two, and of the half that a device has between layers.
    tokens = {width, 8 * width, 2 * width, width // 2}
    for shape in hlo.shapes(text):
        assert not ({160, 80} & set(shape) and tokens & set(shape)), shape
    stacks = {
        leaf.shape for leaf in jax.tree.leaves(model.abstract["layers"]) if len(leaf.shape) > 2
    }
    assert hlo.gathered(text)
    for shape in hlo.gathered(text):
        assert shape not in stacks, shape
        assert not (shape[0] == 5 and len(shape) > 2), shape


def every_config():
    """Every leaf of every config has a rule, and the meshes of docs/measurements.md divide it."""
    for path in sorted((Path(__file__).parent.parent / "configs").glob("[a-z]*.py")):
        # Of these no run begins, and the closed models have no leaves.
        if path.stem not in ("common", "families") and not path.name.startswith("gpt"):
            _every_leaf(path)


def _every_leaf(path: Path):
    from jaxclf.config import loading
    from jaxclf.planning.estimate import PlannedRun
    from jaxclf.planning.hardware import topology

    for variant in ("", ":qlora"):  # whose leaves are those of :lora and of a base in 4 bits
        if variant and path.name.startswith(("attens", "my_task", "quickstart", "tiny")):
            continue
        found = loading.load(f"{path}{variant}")
        job = PlannedRun(found, topology("v5p:2x2x2"))
        sizes = {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
        assert job.need(sizes, 1).parameters > 0
