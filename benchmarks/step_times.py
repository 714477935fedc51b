"""Predicted steps beside published ones, and the shares of the peaks that are fitted to them.

    python benchmarks/step_times.py

Shares are fitted to the steps of v6e, of v5p and v5e, and of H100 (least squares of relative
errors). Each step is also predicted with shares that were fitted without its model.

Sources: the logs in the recipes of AI-Hypercomputer/tpu-recipes (training/trillium) with batches
and what is kept from MaxText's benchmark configs; MaxText's "Run Llama2" (share of the peak on
v5p-128 and v5e-256, batches of its scripts, attention counted without its mask, as it was then);
torchtitan's benchmarks of 2024-12 and 2025-06 (H100 of 500 W, bfloat16, torch.compile).
"""

import argparse
import os
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from scipy.optimize import nnls

from jaxclf.config import loading
from jaxclf.distributed import sharding
from jaxclf.planning import hardware, step_time
from jaxclf.planning.estimate import PlannedRun
from jaxclf.planning.step_time import Shares, Work

_QKV, _ATTENTION = ("q", "k", "v"), ("q", "k", "v", "o")


_HEAD = (
    "| model | chips | tokens a chip | published | predicted | error | fitted without "
    "| share of the peak: published, predicted |"
)


class Published(NamedTuple):
    """A published step: tokens of all chips; products whose results are kept, none again.

    `peak`: model FLOP/s over the peak, where no seconds were published.
    """

    model: str
    topology: str
    length: int
    tokens: int
    kept: tuple[str, ...]
    seconds: float = 0.0
    peak: float = 0.0
    tensor: int = 1

    @property
    def chips(self) -> int:
        return hardware.topology(self.topology).count


def _of_gpus(
    model: str, chips: int, rows: int, kept: tuple[str, ...], rate: float, tensor: int = 1
):
    """`rows` of 8,192 tokens on each group of `tensor` GPUs; `rate`: tokens/s of a GPU."""
    tokens = 8192 * rows * chips // tensor
    return Published(model, f"h100:{chips}", 8192, tokens, kept, tokens / chips / rate, 0.0, tensor)


STEPS = (
    Published("llama3.1_8b", "v6e:2x4", 8192, 196_608, _ATTENTION, 3.443),
    Published("llama3.1_8b", "v6e:4x4", 8192, 393_216, _ATTENTION, 3.393),
    Published("llama3.1_8b", "v6e:4x8", 8192, 786_432, _ATTENTION, 3.495),
    Published("llama3.1_8b", "v6e:8x8", 8192, 2_621_440, _ATTENTION, 5.652),
    Published("llama3.1_8b", "v6e:8x16", 8192, 4_194_304, _ATTENTION, 4.602),
    Published("llama3.1_8b", "v6e:16x16", 8192, 8_388_608, _ATTENTION, 4.546),
    Published("llama3.1_70b", "v6e:4x8", 8192, 524_288, _QKV, 17.790),
    Published("llama3.1_70b", "v6e:8x8", 8192, 1_048_576, _QKV, 18.688),
    Published("llama3.1_70b", "v6e:8x16", 8192, 4_194_304, _QKV, 34.786),
    Published("llama3.1_70b", "v6e:16x16", 8192, 10_485_760, _QKV, 42.656),
    Published("llama2_70b", "v6e:16x16", 4096, 2_097_152, _QKV, 9.052),
    Published("llama2_70b", "v5p:4x4x4", 4096, 1_048_576, (*_ATTENTION, "down"), peak=0.65),
    Published("llama2_70b", "v5e:16x16", 2048, 1_048_576, _QKV, peak=0.57),
    _of_gpus("llama3.1_8b", 8, 2, _ATTENTION, 6_667),
    _of_gpus("llama3.1_8b", 128, 2, _ATTENTION, 6_514),
    _of_gpus("llama3.1_8b", 64, 12, _ATTENTION, 4_378, tensor=8),
    _of_gpus("llama3.1_70b", 256, 16, (), 597.3, tensor=8),
)


def job(step: Published) -> PlannedRun:
    """Full tuning with a label at every token, master parameters in float32."""
    overrides = (
        f"model.name={step.model}",
        f"train.max_length={step.length}",
        f"train.batch_size={step.tokens // step.length}",
        "train.gradient_accumulation_steps=1",
        "model.checkpoint_layers=1",
        "model.param_dtype=float32",
    )
    config = loading.load("configs/llama3_8b_20ng.py", [*overrides])
    return PlannedRun(config, hardware.topology(step.topology), label_tokens=step.length)


def work(step: Published, found: PlannedRun) -> Work:
    sizes = dict.fromkeys(sharding.AXES, 1)
    sizes |= {"fsdp": step.chips // step.tensor, "tensor": step.tensor}
    dims = found.model.config
    hidden, inner = dims.hidden_size, dims.intermediate_size
    query, key = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
    columns = {
        "q": query,
        "k": key,
        "v": key,
        "o": query,
        "gate": inner,
        "up": inner,
        "down": inner,
    }
    again = 1 - sum(columns[name] for name in step.kept) / sum(columns.values())
    assert sum(columns.values()) * hidden * found.depth <= found.body
    return step_time.work(found, sizes, 1, again)


def measured(step: Published, found: PlannedRun, done: Work) -> float:
    """Seconds as published, or from a share of the peak that counts attention without its mask."""
    if step.seconds:
        return step.seconds
    dims = found.model.config
    masked = 3 * 2 * step.tokens * step.length * dims.num_heads * dims.head_dim * found.depth
    return (done.model + masked) / step.peak / step.chips / found.topology.chip.flops


def parts(step: Published, found: PlannedRun, done: Work) -> list[float]:
    """Seconds at the published peaks, of what each share is for; at last what is always waited."""
    chip = found.topology.chip
    return [
        done.products / chip.flops,
        done.attention / chip.flops,
        done.memory / chip.bandwidth,
        step_time.link_seconds(done.beside, chip),
        step_time.link_seconds(done.between, chip),
    ]


def fit(rows: np.ndarray, seconds: np.ndarray, like: Shares, free: tuple[int, ...]) -> Shares:
    """Shares of the least relative errors; those that are not `free` stay as in `like`.

    rows: [steps, 5], see `parts`.
    """
    factors = np.array([1 / like.products, 1 / like.attention, 1 / like.memory, like.waited])
    bound = [index for index in range(4) if index not in free]
    left = seconds - rows[:, 4] - rows[:, bound] @ factors[bound]
    factors[[*free]], _ = nnls(rows[:, [*free]] / seconds[:, None], left / seconds)
    return Shares(*(1 / factors[:3]), factors[3])


# What the published steps of a kind of chips can tell: products, attention and what is waited for;
# of fewer steps without attention; of two alone what is waited for.
FREE = {"v6e": (0, 1, 3), "v5": (3,), "h100": (0, 3)}


def group(step: Published) -> str:
    return next(name for name in FREE if step.topology.startswith(name))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    jobs = [job(step) for step in STEPS]
    works = [work(*each) for each in zip(STEPS, jobs, strict=True)]
    seconds = np.array([measured(*each) for each in zip(STEPS, jobs, works, strict=True)])
    rows = np.array([parts(*each) for each in zip(STEPS, jobs, works, strict=True)])
    groups = np.array([group(step) for step in STEPS])
    models = np.array([step.model for step in STEPS])
    for name, free in FREE.items():
        own = groups == name
        like = step_time.shares(jobs[np.argmax(own)].topology.kind)
        found = fit(rows[own], seconds[own], like, free)
        print(name, *(f"{key}={value:.3f}" for key, value in found._asdict().items()))
    print(f"\n{_HEAD}\n|---|---|" + "---:|" * 6)
    errors = []
    for index, (step, found, done) in enumerate(zip(STEPS, jobs, works, strict=True)):
        topology, like = found.topology, step_time.shares(found.topology.kind)
        predicted = step_time.seconds(done, topology)
        others = (groups == groups[index]) & (np.arange(len(STEPS)) != index)
        if groups[index] != "v5":  # which has one model alone
            others &= models != step.model
        apart = fit(rows[others], seconds[others], like, FREE[groups[index]])
        without = step_time.seconds(done, topology, apart)
        errors.append([predicted / seconds[index] - 1, without / seconds[index] - 1])
        peaks = [
            step_time.share_of_peak(done, each, topology) for each in (seconds[index], predicted)
        ]
        print(
            f"| {step.model} | `{step.topology}` | {step.tokens // step.chips:,} "
            f"| {seconds[index]:.2f} s | {predicted:.2f} s | {errors[-1][0]:+.1%} "
            f"| {errors[-1][1]:+.1%} | {peaks[0]:.1%}, {peaks[1]:.1%} |"
        )
    mean, largest = np.mean(np.abs(errors), axis=0), np.max(np.abs(errors), axis=0)
    print(
        f"\nerror: mean {mean[0]:.1%}, largest {largest[0]:.1%}; of shares fitted without the "
        f"model: mean {mean[1]:.1%}, largest {largest[1]:.1%}"
    )


if __name__ == "__main__":
    main()
