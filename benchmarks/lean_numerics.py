"""Full tuning in less memory beside AdamW in float32: the same dev metrics, the same loss?

    JAXCLF_DATA_ROOT=DATA python benchmarks/lean_numerics.py runs/lean --plot docs/images/lean.svg

Trains each model three times each way (seeds 0, 1, 2) and prints dev metrics as mean ± standard
deviation over the seeds, and the loss of the last hundred steps. What is finished is not run again.
`plain`: AdamW in float32. `lean`: bfloat16 parameters, stochastic rounding, moments in 8 bits.
`nearest`: the same with updates rounded to the nearest number, for comparison.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxclf import report

_LEAN = ("model.param_dtype=bfloat16", "train.adam_moments=int8")
ARMS = {
    "plain": (),
    "lean": (*_LEAN, "train.stochastic_rounding=true"),
    "nearest": (*_LEAN, "train.stochastic_rounding=false"),
}
# Short runs: a difference of the steps shows early, and in the loss first.
MODELS = {
    "tiny Llama (2.9 M, from nothing)": (
        "tiny_llama",
        "configs/tiny_llama_massive.py:task=intent",
        ("train.steps=300", "eval.decoding=score"),
    ),
    "MiniLM (22.7 M)": ("minilm", "configs/minilm_massive.py:task=intent", ("train.steps=300",)),
}
SEEDS = (0, 1, 2)
_WINDOW = 25  # steps that a point of the picture is the mean of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--plot", type=Path, help="SVG of the training loss")
    parser.add_argument("--overrides", nargs="*", default=[], help="such as train.steps=100")
    options = parser.parse_args()
    lines = ["| model | steps | dev accuracy | dev NLL | loss of the last 100 steps |"]
    lines.append("|---|---|---|---|---|")
    curves: dict[str, dict[str, list[np.ndarray]]] = {}
    for title, (name, config, fields) in MODELS.items():
        for arm, own in ARMS.items():
            scores, losses = [], []
            for seed in SEEDS:
                workdir = options.folder / f"{name}-{arm}-{seed}"
                train(config, workdir, (*fields, *own, *options.overrides, f"seed={seed}"))
                scores.append(metrics(workdir))
                losses.append(loss(workdir))
            curves.setdefault(title, {})[arm] = losses
            accuracy, nll = np.array(scores).T
            last = np.array([each[-100:].mean() for each in losses])
            lines.append(
                f"| {title} | {arm} | {_summary(100 * accuracy, 1)} | {_summary(nll, 3)} "
                f"| {_summary(last, 3)} |"
            )
    print("\n".join(lines))
    if options.plot:
        draw(curves, options.plot)


def train(config: str, workdir: Path, overrides: tuple[str, ...]) -> None:
    if (workdir / "report.json").is_file():
        return
    fields = (
        *overrides,
        "train.eval_steps=0",
        "train.logging_steps=1",
        "eval.split=dev",
        "eval.temperature=none",
    )
    words = [f"--config.{field}" for field in fields]
    command = ["-m", "jaxclf.train", "--config", config, "--workdir", str(workdir), *words]
    subprocess.run([sys.executable, *command], check=True)


def metrics(workdir: Path) -> tuple[float, float]:
    found = report.read(workdir)["calibration"]["intent"]
    return found["accuracy"], found["nll"]


def loss(workdir: Path) -> np.ndarray:
    lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
    return np.array([row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row])


def _summary(values: np.ndarray, digits: int) -> str:
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def draw(curves: dict[str, dict[str, list[np.ndarray]]], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (title, arms) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for color, (arm, losses) in zip(("C0", "C1", "C3"), arms.items(), strict=True):
            for number, values in enumerate(losses):
                usable = len(values) // _WINDOW * _WINDOW
                means = values[:usable].reshape(-1, _WINDOW).mean(axis=1)
                label = arm if number == 0 else None
                steps = _WINDOW * np.arange(1, len(means) + 1)
                axes.plot(steps, means, color=color, alpha=0.7, linewidth=1, label=label)
        axes.set(title=title, xlabel="step", ylabel="training loss", yscale="log")
        axes.legend()
        axes.grid(alpha=0.3)
    with mpl.rc_context({"svg.hashsalt": "jaxclf"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
