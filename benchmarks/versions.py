"""Steps of this checkout beside those of another one, in turns: is anything slower than it was?

    git worktree add ../before COMMIT && python benchmarks/versions.py ../before

Each checkout has a process of its own; both compute the same model, one after the other, round by
round, so that whatever else the machine does meets both. Printed is the median over rounds of their
times, and of the ratio of before to now: above 1 is faster.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = {"llama_2m": "decoder", "minilm_l6": "encoder"}
ROWS, LENGTH, NEW = 16, 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="training, decoding or scoring alone")
    parser.add_argument("--work", default="", help="what a process of one checkout computes")
    options = parser.parse_args()
    if options.work:
        return work(options.work)
    print("| what | before, ms | now, ms | ratio |\n|---|---:|---:|---:|")
    here = Path(__file__).parents[1]
    for name, kind in MODELS.items():
        for what in ("training", "decoding") if kind == "decoder" else ("training", "scoring"):
            if options.only not in ("", what):
                continue
            pair = [started(root, f"{name} {what}") for root in (Path(options.other), here)]
            times = [[once(each) for each in pair] for _ in range(options.rounds + 3)][3:]
            for each in pair:
                each.communicate("end\n")
            before, now = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(old / new for old, new in times)
            print(f"| {what}, `{name}` | {before:.1f} | {now:.1f} | {ratio:.3f} |", flush=True)
    return None


def started(root: Path, work: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "none", "--work", work]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, cwd=root, **pipes)


def once(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def work(what: str) -> None:
    """Milliseconds of one step for every line that is read."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxclf.data.batching import PromptBatch
    from jaxclf.decoding import decode
    from jaxclf.models import registry

    name, kind = what.split()
    model = registry.create(name, unroll=64)
    params = jax.jit(model.init)(jax.random.key(0))
    random = np.random.default_rng(0)
    tokens = random.integers(5, 2000, (ROWS, LENGTH)).astype(np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    ones = np.ones_like(tokens)

    def hidden(params):
        return model.bind(params).hidden(tokens, places, ones)

    def loss(params):
        return jnp.mean(jnp.square(hidden(params)))

    programs = {
        "training": lambda: jax.jit(jax.grad(loss)),
        "scoring": lambda: jax.jit(hidden),
        "decoding": lambda: jax.jit(
            lambda params: decode.make_greedy(model, NEW, eos_id=-7)(
                params, PromptBatch(tokens, ones, places)
            )
        ),
    }
    program = programs[kind]()
    for line in sys.stdin:
        if line == "end\n":
            return
        begun = time.perf_counter()
        jax.block_until_ready(program(params))
        print(1000 * (time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    main()
