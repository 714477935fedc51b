"""GPUs that are not here, to compile for: XLA:GPU needs a GPU's numbers, not the GPU.

    with jax.set_mesh(sharding.make_mesh({"fsdp": 8, …}, gpus.devices("h100", 8))):
        jax.jit(function).lower(…).compile().memory_analysis()

Needs `jax[cuda12]`, which is the extra `plan-gpu`, and runs anywhere, under JAX_PLATFORMS=cpu.
Memory kinds such as pinned_host are unknown to these devices.
"""

import dataclasses
import functools
import importlib.util
import math
from typing import Any

import jax
from jax.experimental import topologies

from jaxclf.core.errors import InputError

EXTRA = "pip install -e '.[plan-gpu]'"
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA:GPU asks of a GPU: bytes, GHz, bytes/s, and its compute capability.

    `memory`: what CUDA reports as the device's, which is less than its name says. `cores`:
    streaming multiprocessors; `shared`: memory that the blocks on one share.
    """

    description: str
    memory: int
    bandwidth: float
    cores: int
    clock: float
    cache: int
    capability: tuple[int, int]
    shared: int = 233_472
    threads: int = 2048
    fpus: int = 128

    def target(self) -> str:
        """The GPU as XLA's `GpuTargetConfigProto` in text form."""
        major, minor = self.capability
        # Hopper and later compile for sm_90a, sm_100a: their own instructions, not portable ones.
        features = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {self.threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.shared - 1024}
  core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth:.0f} l2_cache_size: {self.cache}
  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.description}"
"""


_MIB = 2**20
# Multiprocessors of GA102 and of Ada's chips; those of GA100, GH100 and GB100 hold more.
_SMALL = {"shared": 102_400, "threads": 1536}

# Sources: NVIDIA's data sheets and architecture papers; the figures that openxla/xla publishes
# for its own ahead-of-time compilation (xla/backends/gpu/target_config/specs).
GPUS: dict[str, Gpu] = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        81_050 * _MIB,
        2.039e12,
        108,
        1.41,
        40 * _MIB,
        (8, 0),
        shared=167_936,
        fpus=64,
    ),
    "a100-40": Gpu(
        "NVIDIA A100-SXM4-40GB",
        40_339 * _MIB,
        1.555e12,
        108,
        1.41,
        40 * _MIB,
        (8, 0),
        shared=167_936,
        fpus=64,
    ),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 81_008 * _MIB, 3.352e12, 132, 1.98, 50 * _MIB, (9, 0)),
    "h200": Gpu("NVIDIA H200", 144_384 * _MIB, 4.8e12, 132, 1.98, 50 * _MIB, (9, 0)),
    "b200": Gpu("NVIDIA B200", 182_642 * _MIB, 7.672e12, 148, 1.965, 132_644_864, (10, 0)),
    "gb200": Gpu("NVIDIA GB200", 188_730 * _MIB, 7.928e12, 152, 2.062, 135_528_448, (10, 0)),
    "a10g": Gpu("NVIDIA A10G", 22_515 * _MIB, 0.6e12, 80, 1.71, 6 * _MIB, (8, 6), **_SMALL),
    "l4": Gpu("NVIDIA L4", 22_563 * _MIB, 0.3e12, 58, 2.04, 48 * _MIB, (8, 9), **_SMALL),
    "l40s": Gpu("NVIDIA L40S", 45_467 * _MIB, 0.864e12, 142, 2.52, 96 * _MIB, (8, 9), **_SMALL),
    "rtx4090": Gpu(
        "NVIDIA GeForce RTX 4090",
        24_210 * _MIB,
        1.008e12,
        128,
        2.52,
        72 * _MIB,
        (8, 9),
        **_SMALL,
    ),
}


def can_compile() -> bool:
    """Whether jax's plugin for NVIDIA's GPUs is installed, which brings the compiler."""
    return any(importlib.util.find_spec(name) for name in _PLUGINS)


@functools.lru_cache(maxsize=32)
def devices(kind: str, count: int, per_host: int = 8) -> tuple[jax.Device, ...]:
    """`count` GPUs that are not here, `per_host` of them in each host where that divides them.

    Raises InputError for an unknown kind, for a number that fills no whole hosts, and where the
    compiler is not installed.
    """
    if kind not in GPUS:
        raise InputError(f"GPU {kind}: unknown; known: {', '.join(GPUS)}")
    if count < 1 or (count > per_host and count % per_host):
        raise InputError(
            f"{count:,} GPUs of kind {kind}: expected up to {per_host}, those of one host, or "
            f"whole hosts: {per_host * math.ceil(max(count, 1) / per_host):,}"
        )
    if not can_compile():
        raise InputError(f"compiling for {kind} needs jax's plugin for CUDA: {EXTRA}")
    hosts = max(1, count // per_host)
    try:
        description: Any = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=GPUS[kind].target(),
            topology=f"1x{hosts}x{count // hosts}",
        )
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"{count:,} GPUs of kind {kind}: XLA:GPU cannot describe them "
            f"({str(error).splitlines()[0]}). It comes with {EXTRA}"
        ) from error
    return tuple(description.devices)


def compiled(lowered: Any) -> tuple[Any, bool]:
    """A lowered program compiled, and whether that took to do without Triton's matrix products.

    Which tiles of a matrix product are good XLA:GPU tries out on the GPU. Without one its first
    guess may be none that Triton can have, where a GPU would choose others, or cuBLAS.
    """
    try:
        return lowered.compile(), False
    except jax.errors.JaxRuntimeError as error:
        if "output tile sizes" not in str(error):
            raise
    return lowered.compile({"xla_gpu_enable_triton_gemm": False}), True
