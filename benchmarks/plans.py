"""What Llama's configs need on TPU slices, by the planner, as tables in Markdown.

    python benchmarks/plans.py                 # full tuning on the slices of the README
    python benchmarks/plans.py --smallest      # LoRA and QLoRA of 70B: smallest slice of each kind
    python benchmarks/plans.py --layers        # seconds to compile 8 layers and 80

Needs `pip install -e '.[plan]'`; no TPU. About a minute a program on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = (
    ("llama3_70b_20ng.py", "v5p:4x4x2", "fsdp=8,tensor=4"),
    ("llama3_70b_20ng.py", "v5p:2x2x4", "fsdp=4,tensor=4"),
    ("llama3_70b_20ng.py", "v6e:8x8", "fsdp=8,tensor=8"),
    ("llama3_70b_massive.py", "v5p:4x4x2", "fsdp=8,tensor=4"),
    ("llama2_70b_20ng.py", "v5p:4x4x2", "fsdp=8,tensor=4"),
    ("llama2_70b_massive.py", "v5p:4x4x2", "fsdp=8,tensor=4"),
    ("llama3_8b_20ng.py", "v5e:4x4", "fsdp=8,tensor=2"),
    ("llama3_8b_massive.py", "v5e:4x4", "fsdp=8,tensor=2"),
    ("llama2_7b_20ng.py", "v5e:4x4", "fsdp=8,tensor=2"),
    ("llama2_7b_massive.py", "v5e:4x4", "fsdp=8,tensor=2"),
)


def plan(*arguments: str) -> dict:
    """The plan's JSON; one that does not fit is a result too."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "jaxclf.plan", *arguments, "--output", str(output)]
        done = subprocess.run(command, text=True, capture_output=True)
        if not output.is_file():
            raise SystemExit(done.stderr)
        return json.loads(output.read_text())


def full_tuning() -> None:
    print("| config | slice | mesh | peak | reserved | a step at peak | decoding | compiled in |")
    print("|---|---|---|---|---|---|---|---|")
    for name, topology, mesh in CASES:
        found = plan("--config", f"configs/{name}", "--topology", topology, "--mesh", mesh)
        step, decoding = found["train_step"], found["decoding"]
        if "error" in step:
            print(f"| {name} | {topology} | {mesh} | does not fit: {step['error']} | | | | |")
            continue
        print(
            f"| {name} | {topology} | {mesh} | {step['peak_gib']:.1f} GiB | "
            f"{step['reserved_gib']:.1f} of {found['memory_gib']:.0f} | "
            f"{step['seconds_overlapped']:.1f} to {step['seconds_in_turn']:.1f} s | "
            f"{decoding['peak_gib']:.1f} GiB, {decoding['seconds_overlapped']:.1f} s | "
            f"{step['compile_seconds']:.0f} s |",
            flush=True,
        )


def smallest() -> None:
    print("| config | generation | slice | chips | mesh | micro-batches | reserved |")
    print("|---|---|---|---|---|---|---|")
    for variant in ("lora", "qlora"):
        name = f"llama3_70b_20ng.py:{variant}"
        for generation, found in plan("--config", f"configs/{name}")["smallest"].items():
            if found is None:
                print(f"| {name} | {generation} | none | | | | |")
                continue
            print(
                f"| {name} | {generation} | {found['topology']} | {found['chips']} | "
                f"{found['mesh_name']} | {found['accumulate']} | "
                f"{found['train_step']['reserved_gib']:.1f} of {found['memory_gib']:.0f} GiB |",
                flush=True,
            )


def layers() -> None:
    import os

    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    import dataclasses

    from jaxclf import chips, config
    from jaxclf.models import zoo
    from jaxclf.planning import Job

    sizes = {"data": 1, "fsdp": 8, "tensor": 4, "sequence": 1}
    seconds = {}
    for count in (8, 80):
        dims = dataclasses.replace(zoo.find("llama3_70b"), num_layers=count)
        zoo.CONFIGS[f"llama_{count}"] = dims
        fields = config.load("configs/llama3_70b_20ng.py", [f"model.name=llama_{count}"])
        program = Job(fields, chips.topology("v5p:4x4x2")).train_step(sizes, 1)
        seconds[count] = program.compile_seconds
        print(f"{count} layers: {seconds[count]:.1f} s to compile", flush=True)
    print(f"{seconds[80] / seconds[8]:.2f} times as long for ten times the layers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    if options.smallest:
        smallest()
    elif options.layers:
        layers()
    else:
        full_tuning()


if __name__ == "__main__":
    main()
