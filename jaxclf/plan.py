"""Show whether a config fits on TPUs or GPUs, before anyone pays for them.

jaxclf plan --config configs/llama3_70b_20ng.py --topology v5p:4x4x2 \\
    --mesh fsdp=8,tensor=4

The run's own programs are compiled, training, decoding or scoring, for TPUs by libtpu (pip install
-e '.[plan]'), for GPUs by XLA:GPU (pip install -e '.[plan-gpu]'), each in an environment of its own
and on a machine that has neither. Without the latter, bytes on GPUs are an estimate.

Data and tokenizer are read where they are on this machine; what is missing is stood in for and
said. Nothing is fetched. Without --mesh, meshes and micro-batches are ranked and the fastest that
fits is compiled; --topology auto finds the smallest slice of each TPU generation.

Exit codes: 0 it fits, 1 it does not, 2 wrong input.
"""

import os
import sys
from pathlib import Path

from jaxclf.config import loading
from jaxclf.core import command, compiler, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("plan", __doc__)
    loading.add_arguments(parser, workdir=False)
    parser.add_argument(
        "--topology",
        default="auto",
        metavar="SLICE",
        help="v5p:4x4x2, v6e:8x8; a100:8, h100:64 (8 nodes), gb200:72, rtx4090:1 …; or auto "
        "(default): the smallest TPU slices that fit",
    )
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N", help="so many TPU slices; default: 1"
    )
    parser.add_argument(
        "--price", type=float, metavar="USD", help="of a chip for an hour, to tell what tokens cost"
    )
    parser.add_argument(
        "--mesh", default="", metavar="AXIS=SIZE,…", help="such as fsdp=8,tensor=4; default: search"
    )
    parser.add_argument(
        "--label-tokens",
        type=int,
        metavar="N",
        help="tokens of a decoded answer; default: eval.max_new_tokens, or the longest of the data",
    )
    parser.add_argument("--skip-decoding", action="store_true", help="compile the train step alone")
    parser.add_argument("--output", default="", metavar="FILE", help="the plan as JSON")
    options = loading.parse(parser, arguments)
    config = loading.load(options.config, options.overrides)
    if options.price is not None and not options.price > 0:
        raise errors.InputError(f"--price {options.price}: expected more than 0")
    if options.label_tokens is not None:
        if options.label_tokens < 1:
            raise errors.InputError(f"--label-tokens {options.label_tokens}: expected 1 or more")
        config.eval.max_new_tokens = options.label_tokens

    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would look for a machine of Google's
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # two plans at once
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    compiler.for_tpus()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA:GPU tells of every slow reshard
    from jaxclf.planning import gpus, hardware, plans

    if options.topology == "auto":
        if options.mesh or options.slices != 1:
            raise errors.InputError("--mesh and --slices need a --topology that they are of")
        found = plans.smallest(config, plans.read(config))
    else:
        import jax

        topology = hardware.topology(options.topology, options.slices, options.price)
        if not (topology.is_tpu or gpus.can_compile()):
            jax.config.update("jax_num_cpu_devices", topology.count)
        mesh = plans.read_mesh(options.mesh, topology) if options.mesh else None
        found = plans.plan(
            config, topology, mesh, plans.read(config), decoding=not options.skip_decoding
        )
    print(found.table())
    if options.output:
        found.write(Path(options.output))
    if not found.fits:
        sys.exit(1)


if __name__ == "__main__":
    errors.run(main)
