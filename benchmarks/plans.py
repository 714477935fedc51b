"""What configs need on TPU slices and GPUs, by the planner, as tables in Markdown.

    python benchmarks/plans.py                 # full tuning on the slices of docs/measurements.md
    python benchmarks/plans.py --smallest      # LoRA and QLoRA of 70B: smallest slice of each kind
    python benchmarks/plans.py --layers        # seconds to compile 8 layers and 80
    python benchmarks/plans.py --gpu           # train steps on GPUs, arithmetic beside compiler
    python benchmarks/plans.py --gpu --write   # and the table of benchmarks/README.md anew

Needs `pip install -e '.[plan]'` (`'.[plan-gpu]'` for --gpu); no TPU, no GPU, no data. About a
minute a program on two cores.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent / "README.md"

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

# Config, GPUs, mesh, micro-batches.
ON_GPUS = (
    ("llama3_8b_20ng.py", "h100:8", "fsdp=8", 1),
    ("llama3_8b_20ng.py", "a100:8", "fsdp=4,tensor=2", 1),
    ("llama3_8b_20ng.py", "h100:64", "fsdp=8,tensor=8", 1),
    ("llama3_8b_20ng.py", "b200:8", "fsdp=8", 1),
    ("llama3_8b_20ng.py:lora", "a100:8", "fsdp=8", 1),
    ("llama3_8b_20ng.py:lora", "h100:8", "fsdp=4,sequence=2", 1),
    ("llama3_8b_20ng.py:qlora", "h100:1", "fsdp=1", 8),
    ("llama3_8b_massive.py", "h100:8", "fsdp=8", 1),
    ("llama3_8b_massive.py:qlora", "l40s:1", "fsdp=1", 1),
    ("llama3_70b_20ng.py", "h100:64", "fsdp=8,tensor=8", 1),
    ("llama3_70b_20ng.py:qlora", "h100:8", "fsdp=8", 1),
    ("llama3_70b_20ng.py:lean", "a100:8", "fsdp=8", 1),
    ("llama3_70b_massive.py:lean", "a100:8", "fsdp=8", 1),
    ("llama2_70b_20ng.py:lean", "a100:8", "fsdp=8", 1),
    ("llama2_70b_massive.py:lean", "a100:8", "fsdp=8", 1),
    ("llama3_8b_20ng.py:lean", "a100:1", "fsdp=1", 8),
    ("llama3_70b_20ng.py:qlora", "h100:1", "fsdp=1", 8),
    ("llama3_8b_20ng.py:qlora", "rtx4090:1", "fsdp=1", 8),
    ("flan_t5_xxl_20ng.py:lora", "h100:8", "fsdp=8", 1),
    ("roberta_large_20ng.py", "a100:1", "fsdp=1", 1),
    ("roberta_large_20ng.py", "h100:8", "fsdp=8", 1),
    ("roberta_base_20ng.py", "rtx4090:1", "fsdp=1", 1),
    ("minilm_20ng.py", "l4:1", "fsdp=1", 1),
    ("attens_bert_base.py", "a100:1", "fsdp=1", 1),
)


def plan(*arguments: str) -> dict:
    """The plan's JSON; one that does not fit is a result too."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "jaxclf.plan", *arguments, "--output", str(output)]
        done = subprocess.run(command, encoding="utf-8", capture_output=True)
        if not output.is_file():
            raise SystemExit(done.stderr)
        return json.loads(output.read_text("utf-8"))


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


def on_gpus() -> str:
    """Train steps: bytes by arithmetic and by the compiler, and what they exchange and run."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    os.environ.pop("JAXCLF_DATA_ROOT", None)  # rows as long as the config lets them be, anywhere
    from jaxclf.config import loading
    from jaxclf.planning import gpus, hardware, plans

    if not gpus.can_compile():
        raise SystemExit(f"compiling for GPUs needs {gpus.EXTRA}")
    lines = [
        "| config | GPUs | mesh | micro-batches | compiled | arithmetic | off by | NVLink "
        "| network | collectives (asynchronous) | kernels | compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name, topology, mesh, accumulate in ON_GPUS:
        loaded = loading.load(
            f"configs/{name}", [f"train.gradient_accumulation_steps={accumulate}"]
        )
        top = hardware.topology(topology)
        read = plans.read(loaded, say=lambda text: None)
        sizes = plans.read_mesh(mesh, top)
        head = f"| {name} | {topology} | {mesh} | {accumulate} | "
        try:
            found = plans.plan(loaded, top, sizes, read, decoding=False, say=lambda text: None).data
            lines.append(head + _gpu_cells(found))
        except Exception as error:  # a cell that fails is a result too
            lines.append(f"{head}failed: {str(error).splitlines()[0][:200]} | | | | | | | |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def _gpu_cells(found: dict) -> str:
    step, estimate = found["train_step"], sum(found["estimate_gib"].values())
    if "error" in step:
        return f"does not fit: {step['error']} | | | | | | | |"
    peak = step["peak_gib"]
    crossing = step["crossing_gib"].values()
    inside, network = (sum(each[name] for each in crossing) for name in ("links", "network"))
    counts, beside = step["collectives_count"], step["collectives_asynchronous"]
    kernels = ", ".join(f"`{name}`" for name in step["kernels"] if not name.startswith("__triton"))
    return (
        f"{peak:.1f} of {found['usable_gib']:.1f} GiB | {estimate:.1f} | "
        f"{estimate / peak - 1:+.0%} | {inside:.1f} GiB | {network:.1f} GiB | "
        f"{sum(counts.values()):,.0f} ({sum(beside.values()):,.0f}) | {kernels or 'none'} | "
        f"{step['compile_seconds']:.0f} s |"
    )


def write(table: str) -> None:
    """Put the table in the place of the one in benchmarks/README.md."""
    text = README.read_text("utf-8")
    begin, end = "<!-- plans --gpu -->\n", "<!-- end -->\n"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    README.write_text(
        re.sub(pattern, lambda _: f"{begin}\n{table}\n\n{end}", text, flags=re.S), "utf-8"
    )


def layers() -> None:
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    import dataclasses

    from jaxclf.config import loading
    from jaxclf.models import registry
    from jaxclf.planning import hardware, programs
    from jaxclf.planning.estimate import PlannedRun

    sizes = {"data": 1, "fsdp": 8, "tensor": 4, "sequence": 1}
    seconds = {}
    for count in (8, 80):
        dims = dataclasses.replace(registry.find("llama3_70b"), num_layers=count)
        registry.CONFIGS[f"llama_{count}"] = dims
        fields = loading.load("configs/llama3_70b_20ng.py", [f"model.name=llama_{count}"])
        program = programs.train_step(PlannedRun(fields, hardware.topology("v5p:4x4x2")), sizes, 1)
        seconds[count] = program.compile_seconds
        print(f"{count} layers: {seconds[count]:.1f} s to compile", flush=True)
    print(f"{seconds[80] / seconds[8]:.2f} times as long for ten times the layers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--write", action="store_true", help="of --gpu: into benchmarks/README.md")
    options = parser.parse_args()
    if options.smallest:
        smallest()
    elif options.layers:
        layers()
    elif options.gpu:
        table = on_gpus()
        if options.write:
            write(table)
    else:
        full_tuning()


if __name__ == "__main__":
    main()
