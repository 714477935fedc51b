"""Decoders of every family beside transformers: how far off, and what works; the table of docs/.

    python benchmarks/families.py

Tiny random models with unusual values (a window shorter than the text, caps that bite, biases,
norms far from 1), in float32. Errors are relative to the largest value.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch

from jaxclf.adapters import lora
from jaxclf.checkpoint.model_dir import load_params, read_model
from jaxclf.convert import hf_export, hf_import
from jaxclf.models import registry
from tests.parity import test_decoders as cases
from tests.tiny_adapters import random_adapters


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    columns = ("model", "logits", "gradients", "greedy", "LoRA merged", "kernels", "export")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(row(name, Path(folder)))} |", flush=True)


def row(name: str, folder: Path) -> list[str]:
    hf = cases.theirs(name)
    hf.save_pretrained(folder / "theirs")
    hf_import.convert(folder / "theirs", folder / "ours", progress=lambda line: None)
    config, _ = read_model(folder / "ours/model.json")
    model = registry.create(config)
    params = load_params(folder / "ours", model.abstract)
    theirs, ours, gradients = cases.losses_and_logits(hf, model, params)
    worst = max(cases.off(own, expected) for _, own, expected in gradients)
    expected, found = cases.greedy_answers(hf, model, params)

    tokens = cases.texts()
    places, ones = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape), np.ones_like(tokens)

    def logits(params):
        module = model.bind(params)
        return module.logits(module.hidden(tokens, places, ones))

    adapters = random_adapters(params, lora.Spec(rank=4))
    factored = logits(lora.bind(params, adapters))
    merged = logits(lora.merge(params, adapters))

    hf_export.export(folder / "ours", folder / "again", progress=lambda line: None)
    again, info = type(hf).from_pretrained(folder / "again", output_loading_info=True)
    exact = not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    pairs = zip(hf.parameters(), again.parameters(), strict=True)
    exact &= all(torch.equal(one, other) for one, other in pairs)
    return [
        f"`{name}`",
        f"{cases.off(ours[1], theirs[1]):.0e}",
        f"{worst:.0e}",
        "the same" if found == expected else "differs",
        f"{cases.off(merged, factored):.0e}",
        kernels(config),
        "bit for bit" if exact else "differs",
    ]


def kernels(config) -> str:
    """Which layers attend by splash (TPUs) and cuDNN (GPUs), alone and beside a shared prefix."""
    if config.attention_cap or config.sinks:
        return "scores by blocks; plain beside a prefix"
    kinds = {kind.sight.window for kind in config.kinds} or {None}
    if kinds == {None}:
        return "all"
    return "all; plain beside a prefix where a window is"


if __name__ == "__main__":
    main()
