"""Predicted steps from a few chips to thousands: weak and strong scaling, as a table and a picture.

    python benchmarks/scaling.py --write docs/images/scaling.svg

For each number of chips the fastest mesh that has room by arithmetic (`planning.meshes`), its step
by `planning.step_time`, which `benchmarks/step_times.py` compares with published steps. Full tuning
of Llama 3 70B on rows of 16,384 tokens. Weak: one row for two chips; strong: 512 rows.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxclf.config import loading
from jaxclf.planning import hardware, meshes, step_time
from jaxclf.planning.estimate import PlannedRun
from jaxclf.planning.plans import mesh_name

TPUS = ("4x4x2", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
TOPOLOGIES = {
    "TPU v5p": [f"v5p:{shape}" for shape in TPUS],
    "H100": [f"h100:{count}" for count in (32, 64, 128, 256, 512, 1024)],
}
_ROWS = 512


def point(topology: str, rows: int) -> tuple[int, float, float, str] | None:
    """(chips, tokens a second of one, share of the peak, mesh), None where nothing has room."""
    overrides = [f"train.batch_size={rows}", "train.gradient_accumulation_steps=1"]
    config = loading.load("configs/llama3_70b_20ng.py", overrides)
    job = PlannedRun(config, hardware.topology(topology))
    found = meshes.fitting(job)
    if not found:
        return None
    best, count = found[0], job.topology.count
    done = step_time.work(job, best.sizes, best.accumulate)
    peak = step_time.share_of_peak(done, best.seconds, job.topology)
    name = f"{mesh_name(best.sizes)}; {best.accumulate} micro-batch(es)"
    return count, done.tokens / best.seconds / count, peak, name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE.svg", help="the picture")
    options = parser.parse_args()
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    print("| chips | scaling | rows | tokens/s a chip | share of peak | mesh |")
    print("|---|---|---:|---:|---:|---|")
    for name, topologies in TOPOLOGIES.items():
        for topology in topologies:
            chips = hardware.topology(topology).count
            for kind, rows in (("weak", chips // 2), ("strong", _ROWS)):
                found = point(topology, rows)
                if found is None:
                    print(f"| `{topology}` | {kind} | {rows} | no room | | |")
                    continue
                count, rate, peak, mesh = found
                lines.setdefault((name, kind), []).append((count, rate * count))
                print(f"| `{topology}` | {kind} | {rows} | {rate:,.0f} | {peak:.1%} | {mesh} |")
    if options.write:
        draw(lines, options.write)


def draw(lines: dict[tuple[str, str], list[tuple[int, float]]], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colors = {name: f"C{number}" for number, name in enumerate(TOPOLOGIES)}
    for (name, kind), points in lines.items():
        style = "-o" if kind == "weak" else "--s"
        chips, rates = zip(*points, strict=True)
        axes.plot(chips, rates, style, color=colors[name], label=f"{name}, {kind}", markersize=4)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="chips",
        ylabel="tokens a second, predicted",
        title="Llama 3 70B, full tuning, rows of 16,384 tokens",
    )
    ticks = [32, 64, 128, 256, 512, 1024, 2048, 4096]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    with mpl.rc_context({"svg.hashsalt": "jaxclf"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
