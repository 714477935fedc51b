"""Memory of a train step with a vocabulary of 128,256: logits at labels, and at every token.

    python benchmarks/logits_memory.py                  # eight imaginary devices
    python benchmarks/logits_memory.py --devices 1

16,384 tokens in eight rows, full tuning in float32, rematerialised layers; compiled and not run:
the compiler's own account of one device. `naive` is the very same step with a label place at every
token, which is what a model that returns logits for its input computes. Of arrays with the
vocabulary among their dimensions the largest is given that is not of the embeddings' own shape.
"""

import argparse
import math
import re

import jax

from jaxclf.adapters import tuning
from jaxclf.config import defaults
from jaxclf.data.batching import ANSWER, Batch, Targets
from jaxclf.distributed import sharding
from jaxclf.models import registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.training import losses, optim
from jaxclf.training.train_step import init_state, make_train_step

ROWS, LENGTH = 8, 2048
DIMENSIONS = DecoderConfig(
    vocab_size=128_256,
    hidden_size=1024,
    intermediate_size=2816,
    num_layers=8,
    num_heads=16,
    num_kv_heads=4,
    head_dim=64,
    max_position=LENGTH,
)


def compiled(places: int):
    """The train step for rows with so many label places."""
    config = defaults.default()
    model = registry.create(DIMENSIONS, remat=True)
    tuned = tuning.choose(config, model.abstract)
    optimizer = optim.optimizer(config.train)
    step = make_train_step(
        model, tuned, optimizer, optim.schedule(config.train), losses.GENERATION, may_skip=False
    )

    def array(*shape: int, dtype=jax.numpy.int32):
        shape = (1, ROWS, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.of_rows(shape, 1))

    targets = Targets(array(places), array(places), array(places, dtype=jax.numpy.bool_))
    batch = Batch(*(array(LENGTH) for _ in range(3)), None, {ANSWER: targets})

    def start(params, key):
        trained, frozen = tuned.start(params, key)
        return init_state(trained, optimizer, key), frozen

    key = jax.eval_shape(lambda: jax.random.key(0))
    state, frozen = map(sharding.abstract, jax.eval_shape(start, model.abstract, key))
    results = sharding.shardings(state), sharding.whole()
    return (
        jax.jit(step, donate_argnums=0, out_shardings=results).lower(state, frozen, batch).compile()
    )


def largest(text: str, devices: int) -> tuple[int, str]:
    """Bytes and shape of the largest array with the vocabulary's dimension, but the embeddings'."""
    size, hidden = DIMENSIONS.vocab_size, DIMENSIONS.hidden_size
    found = {(0, "none")}
    for shape in set(re.findall(r"f32\[([\d,]+)\]", text)):
        sizes = list(map(int, shape.split(",")))
        rest = math.prod(sizes) // size
        of_vocabulary = size in sizes or size // devices in sizes
        if of_vocabulary and hidden not in sizes and hidden // devices not in sizes and rest:
            found.add((4 * math.prod(sizes), f"f32[{shape}]"))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=int, default=8, help="label places in a row")
    parser.add_argument("--devices", type=int, default=8, choices=(1, 2, 4, 8))
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    mesh = defaults.default().mesh
    temporary = {}
    with sharding.use(mesh):
        for name, places in (("labels alone", options.labels), ("naive", LENGTH)):
            program = compiled(places)
            memory = program.memory_analysis()
            size, shape = largest(program.as_text(), options.devices)
            temporary[name] = memory.temp_size_in_bytes
            print(
                f"{name:14} arguments {memory.argument_size_in_bytes / 2**30:5.2f} GiB, temporary "
                f"{temporary[name] / 2**30:6.2f} GiB, largest array of logits {shape}: "
                f"{size / 2**20:,.0f} MiB"
            )
    ratio = temporary["naive"] / temporary["labels alone"]
    print(f"temporary memory naive / labels alone {ratio:.1f}")


if __name__ == "__main__":
    main()
