"""Models of every family beside transformers: how far off, and what works; the tables of docs/.

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

from jaxclf.adapters import lora
from jaxclf.checkpoint.model_dir import load_params, read_model
from jaxclf.convert import hf_export, hf_import
from jaxclf.core import tree
from jaxclf.models import registry
from tests.tiny_adapters import random_adapters

KERNELS = "scores by blocks"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    # They need torch.
    from tests.parity import test_decoders, test_encoder_families, test_t5_families

    decoders = ("logits", "gradients", "greedy", "LoRA merged", "kernels", "export")
    table(decoders, test_decoders, test_decoders.CASES, decoder_row)
    encoders = ("sequence head", "token head", "gradients", "LoRA merged", "kernels", "export")
    table(encoders, test_encoder_families, test_encoder_families.CASES, encoder_row)
    table(encoders, test_t5_families, test_t5_families.HEADED, t5_row)


def table(columns, cases, names, row) -> None:
    print(f"| model | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            cells = row(cases, name, Path(folder))
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
    print()


def decoder_row(cases, name: str, folder: Path) -> list[str]:
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

    return [
        f"{cases.off(ours[1], theirs[1]):.0e}",
        f"{worst:.0e}",
        "the same" if found == expected else "differs",
        merged(logits, params),
        kernels(config),
        exported(hf, folder),
    ]


def encoder_row(cases, name: str, folder: Path) -> list[str]:
    errors, worst = [], 0.0
    for kind in ("sequence", "token"):
        hf = cases.theirs(name, f"For{kind.title()}Classification")
        theirs, ours, gradients, segments = cases.compared(hf, folder / kind, kind)
        scores = ours[1] if kind == "token" else ours[1][:, 0]
        seen = segments > 0 if kind == "token" else slice(None)
        errors.append(f"{cases.off(scores[seen], theirs[1][seen]):.0e}")
        largest = max(np.abs(wanted).max() for *_, wanted in gradients)
        for part, own, wanted in gradients:
            if not part.ours.endswith("k/bias"):  # whose gradient is 0 but for rounding
                scale = max(np.abs(wanted).max(), 1e-3 * largest)
                worst = max(worst, float(np.abs(own - wanted).max() / scale))
    config, _ = read_model(folder / "token/ours/model.json")
    model = registry.create(config)
    params = load_params(folder / "token/ours", model.abstract)
    arrays = cases.texts(False)

    def hidden(params):
        return model.bind(params).hidden(*arrays)

    by_blocks = config.distance_buckets or config.distance_vectors or config.layer_types
    return [
        *errors,
        f"{worst:.0e}",
        merged(hidden, params),
        "masks" if config.distance_vectors else KERNELS if by_blocks else "all",
        exported(hf, folder / "token"),
    ]


def t5_row(cases, name: str, folder: Path) -> list[str]:
    errors, worst = [], 0.0
    for kind in ("sequence", "token"):
        hf = cases.headed(name, kind)
        theirs, ours, gradients, (model, params) = cases.compared(hf, folder / kind, kind)
        errors.append(f"{cases.off(ours[1], theirs[1]):.0e}")
        worst = max([worst, *(cases.off(own, wanted) for _, own, wanted in gradients)])
        exact = exported(hf, folder / kind)

        def states(params, model=model, kind=kind):
            return model.bind(params).states(*cases.texts())[kind]

        same = merged(states, params)
    return [*errors, f"{worst:.0e}", same, KERNELS, exact]


def merged(outputs, params) -> str:
    """How far merged adapters are from the same ones beside their kernels."""
    from tests.parity.test_decoders import off

    has_experts = any("/router/" in path for path in tree.flatten(params))
    experts = ("gate", "up", "down") if has_experts else ()
    adapters = random_adapters(params, lora.Spec(targets=("q", "v", *experts), rank=4))
    found = outputs(lora.bind(params, adapters)), outputs(lora.merge(params, adapters))
    return f"{off(found[1], found[0]):.0e}"


def exported(hf, folder: Path) -> str:
    import torch

    hf_export.export(folder / "ours", folder / "again", progress=lambda line: None)
    again, info = type(hf).from_pretrained(folder / "again", output_loading_info=True)
    exact = not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    pairs = zip(hf.parameters(), again.parameters(), strict=True)
    exact &= all(torch.equal(one, other) for one, other in pairs)
    return "bit for bit" if exact else "differs"


def kernels(config) -> str:
    """Which layers attend by splash (TPUs) and cuDNN (GPUs), alone and beside a shared prefix."""
    if config.attention_cap or config.sinks:
        return f"{KERNELS}; plain beside a prefix"
    if any(kind.sight.chunk for kind in config.kinds):
        return "all; plain where a chunk is"
    kinds = {kind.sight.window for kind in config.kinds} or {None}
    if kinds == {None}:
        return "all"
    return "all; plain beside a prefix where a window is"


if __name__ == "__main__":
    main()
