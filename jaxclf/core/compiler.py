"""How programs are compiled: kept between runs, and on TPUs with collectives beside computation."""

import os

from jaxclf.core import cache

# libtpu's own defaults gather and sum, then compute. With these a gather is begun within one fusion
# and goes on in those after it, each of which computes something else.
_TPU = (
    "--xla_enable_async_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)


def configure() -> None:
    """Before JAX finds its devices: what a command that computes wants of the compiler.

    A user's own LIBTPU_INIT_ARGS stands, also an empty one.
    """
    for_tpus()
    cache.keep_programs()


def for_tpus() -> None:
    os.environ.setdefault("LIBTPU_INIT_ARGS", " ".join(_TPU))
