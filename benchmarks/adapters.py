"""What adapters and quantised bases cost: a step's memory and work, inference, storage, precision.

    pip install -e '.[demo]'
    python benchmarks/adapters.py [--run RUN]

    step        a compiled train step of a Llama of 20 M parameters, 8 rows of 384 tokens: peak
                memory and FLOPs by the compiler's own analysis, adapters against full tuning
    inference   the same model's answers with adapters unmerged, merged, and without any
    storage     checkpoints of ten tasks: ten adapters beside one base, against ten models
    precision   RUN, an encoder tuned in full (configs/minilm_massive.py): its head's logits with
                weights in bfloat16, 8 and 4 bits, against float32, on its first 1,000 test texts;
                only weights differ, all matmuls are in float32

Prints one line a figure; docs/measurements.md states them.
"""

import argparse
import dataclasses
import math
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.adapters import lora, tuning
from jaxclf.adapters.lora import Spec
from jaxclf.classifiers.opening import open_run
from jaxclf.config import defaults
from jaxclf.core.allocator import keep_freed_memory
from jaxclf.data import datasets, loader
from jaxclf.data.batching import ANSWER, Batch, Targets
from jaxclf.data.encoder_inputs import encode
from jaxclf.models import quantization, registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.training import losses, optim
from jaxclf.training.train_step import init_state, make_train_step

BATCH, TOKENS = 8, 384
DIMENSIONS = DecoderConfig(
    vocab_size=8192,
    hidden_size=384,
    intermediate_size=1024,
    num_layers=6,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
)
SPECS = {
    "rank 8 on q, v": Spec(targets=("q", "v"), rank=8, alpha=16.0),
    "rank 16 on all kernels": Spec(targets=("all-linear",), rank=16, alpha=32.0),
}


def configuration():
    config = defaults.default()
    config.tune = "lora"
    config.lora.target_modules = "q,v"
    config.model.gradient_checkpointing = False
    config.model.unroll = DIMENSIONS.num_layers
    config.train.learning_rate = 1e-4
    config.train.max_grad_norm = 0.0
    return config


def rows(lead: tuple[int, ...]) -> Batch:
    """Random tokens, `[*lead, T]`, with one answer token at the end of each row."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, DIMENSIONS.vocab_size, (*lead, TOKENS), dtype=np.int32)
    positions = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), tokens.shape)
    places = np.full((*lead, 1), TOKENS - 1, np.int32)
    targets = Targets(places, np.ones_like(places), np.ones(places.shape, bool))
    return Batch(tokens, np.ones_like(tokens), positions, None, {ANSWER: targets})


def step() -> None:
    figures = {}
    for tune in ("full", "lora"):
        config = configuration()
        config.tune = tune
        model = create_model(config, DIMENSIONS)
        tuned = tuning.choose(config, model.abstract)
        key = jax.eval_shape(lambda: jax.random.key(0))
        trained, frozen = jax.eval_shape(tuned.start, model.abstract, key)
        optimizer = optim.optimizer(config.train)
        schedule = optim.schedule(config.train)
        state = jax.eval_shape(lambda t, k, o=optimizer: init_state(t, o, k), trained, key)
        function = make_train_step(
            model, tuned, optimizer, schedule, losses.GENERATION, may_skip=False
        )
        compiled = jax.jit(function, donate_argnums=0).lower(state, frozen, rows((1, BATCH)))
        compiled = compiled.compile()
        memory, work = compiled.memory_analysis(), compiled.cost_analysis()
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
        figures[tune] = peak, work["flops"]
        print(f"step       {tune:5} {peak / 2**20:7,.0f} MiB  {work['flops'] / 1e9:6.0f} GFLOP")
    memory, work = (a / b for a, b in zip(figures["lora"], figures["full"], strict=True))
    print(f"step       lora / full: memory {memory:.2f}, FLOPs {work:.2f}")


def inference(rounds: int = 15) -> None:
    model = create_model(configuration(), DIMENSIONS)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = jax.device_put(rows((BATCH,)))
    answer = jax.jit(lambda params: losses.label_logits(model.bind(params), batch))
    arms = {"no adapters": params}
    for name, spec in SPECS.items():
        adapters = lora.init(params, spec, jax.random.key(1))
        arms[f"{name}, unmerged"] = lora.bind(params, adapters)
        arms[f"{name}, merged"] = lora.merge(params, adapters)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 2):
        for name, tree in arms.items():
            start = time.perf_counter()
            answer(tree).block_until_ready()
            if turn >= 2:  # the first compile and warm up
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["no adapters"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"inference  {name:36} {median * 1e3:6.0f} ms a batch  {median / base:.2f}x")


def storage() -> None:
    for name, bytes_each in (("minilm_l6", 4), ("llama2_7b", 2), ("llama3_70b", 2)):
        abstract = registry.create(name).abstract
        whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)) * bytes_each
        for label, spec in SPECS.items():
            # Adapters are float32, as they are trained; heads are not counted on either side.
            own = 4 * lora.count(abstract, dataclasses.replace(spec, saved=()))
            one_base = whole + 10 * own
            print(
                f"storage    {name:10} {label:24} ten models {10 * whole / 1e9:8.2f} GB, one base "
                f"and ten adapters {one_base / 1e9:7.2f} GB; an adapter {own / 1e6:.1f} MB"
            )


def precision(run: Path, texts: int = 1000) -> None:
    opened = open_run(run)
    recipe = opened.classifier.recipe
    records = datasets.load(opened.config.data).splits["test"][:texts]
    examples = encode(
        records, recipe.tasks, opened.classifier.tokenizer, recipe.slot_format, recipe.max_length
    )
    task = next(task for task in recipe.tasks if task.kind == "class")

    model = opened.classifier.model
    scores = jax.jit(lambda params, batch: losses.head_scores(model.bind(params), batch)[task.name])

    def logits(params) -> np.ndarray:
        found = np.zeros((len(examples), len(task.labels)))
        for indices, batch in loader.score_batches(examples, 64):
            found[indices] = np.asarray(scores(params, batch))[: len(indices), 0]
        return found

    plain = opened.classifier.params
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), plain)
    exact, rounded = logits(plain), logits(half)
    found = {"bfloat16": rounded}
    for kind in ("int8", "int4", "nf4"):
        found[kind] = logits(quantization.quantised(half, kind))
    for name, values in found.items():
        error, to_half = (
            math.sqrt(np.mean(np.square(values - other)) / np.var(other))
            for other in (exact, rounded)
        )
        flips = int(np.sum(values.argmax(axis=1) != exact.argmax(axis=1)))
        print(
            f"precision  {name:9} error of the logits {error:.4f} of their deviation to float32, "
            f"{to_half:.4f} to bfloat16; {flips} of {len(examples):,} labels differ from float32's"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a finished run of configs/minilm_massive.py")
    options = parser.parse_args()
    keep_freed_memory()
    storage()
    step()
    inference()
    if options.run:
        precision(options.run)


if __name__ == "__main__":
    main()
