"""Export a run or model directory of ours as a Hugging Face checkpoint.

python -m conversion.to_hf SRC DST [--step best|last|N] [--overwrite]
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from conversion import files, mapping
from conversion.from_hf import FAMILIES, TOKENIZER_FILES
from jaxclf import checkpoints, errors, report, storage
from jaxclf.checkpoints import ModelSource, Which
from jaxclf.models import zoo

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

A decoder fine-tuned to classify by generating the label, exported by jaxclf.
"""


def run_card(source: ModelSource) -> str:
    """The model card of the run's report; a short one where there is none."""
    path = source.run_dir / "report.json" if source.run_dir else None
    if path is None or not path.is_file():
        return _CARD
    return report.model_card(storage.read_json(path))


def export(
    source: str | Path,
    destination: Path,
    *,
    step: Which = "best",
    card: str | Callable[[ModelSource], str] = run_card,
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    progress: Callable[[str], None] = print,
) -> None:
    """Write `destination` from what `source` resolves to; parameters keep their dtype.

    `card`: the text of README.md, or a function that makes it. Memory peaks at the largest
    tensor plus a few blocks. Raises ArtifactError where the source is corrupt or incomplete.
    """
    found = checkpoints.resolve(source, step)
    config, dtype = checkpoints.read_model(found.model_json)
    family = FAMILIES["llama"]
    abstract = zoo.create(config).abstract
    storage.check_tree(found.params_dir, found.manifest, abstract, cast=True)
    storage.verify(found.params_dir, found.manifest)

    shapes = {path: leaf.shape for path, leaf in found.manifest.items()}
    tensors = mapping.expand(family.ROWS, shapes)
    tensors.sort(key=lambda tensor: -1 if tensor.layer is None else tensor.layer)
    places = {tensor.name: tensor for tensor in tensors}

    def blocks(name: str) -> Iterator[np.ndarray]:
        progress(f"{list(places).index(name) + 1}/{len(places)} {name}")
        return _blocks(found.params_dir, places[name])

    with files.new_directory(destination, overwrite) as new:
        described = {t.name: (t.shape, found.manifest[t.ours].dtype) for t in tensors}
        files.write_weights(new, described, blocks, max_shard_bytes)
        theirs = family.write_config(config) | {"dtype": dtype} | _token_ids(found)
        (new / "config.json").write_text(json.dumps(theirs, indent=2) + "\n")
        files.copy_files(found.tokenizer_dir, new, TOKENIZER_FILES)
        files.copy_files(found.model_json.parent, new, ["generation_config.json"])
        (new / "README.md").write_text(card if isinstance(card, str) else card(found))


def _blocks(params_dir: Path, tensor: mapping.Tensor) -> Iterator[np.ndarray]:
    """The rows of a Hugging Face tensor; transposing all at once would hold it twice."""
    part = storage.read(params_dir, tensor.ours, tensor.layer)
    part = part.T if tensor.transpose else part
    rows = storage.rows_per_block(part.shape, part.itemsize)
    for start in range(0, len(part), rows):
        yield storage.contiguous(part[start : start + rows], part.dtype.name)


def _token_ids(source: ModelSource) -> dict[str, Any]:
    """The special ids that transformers' generate looks for in config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = source.model_json.parent / "generation_config.json"
    if generation.is_file():
        theirs = storage.read_json(generation)
        return {name: theirs.get(name) for name in names}
    if source.tokenizer_dir.is_dir():
        from jaxclf.data.tokenize import Tokenizer

        tokenizer = Tokenizer.load(source.tokenizer_dir)
        ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return dict(zip(names, ids, strict=True))
    return dict.fromkeys(names)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.to_hf", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", metavar="SRC", help="run, step or model directory")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to write")
    parser.add_argument(
        "--step", type=_step, default="best", help="of a run: best (default), last or a number"
    )
    parser.add_argument(
        "--card", type=Path, help="text of README.md; default: made from the run's report"
    )
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest file (default: 5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing here computes
    export(
        options.source,
        options.destination,
        step=options.step,
        card=options.card.read_text("utf-8") if options.card else run_card,
        max_shard_bytes=int(options.shard_gb * 10**9),
        overwrite=options.overwrite,
    )
    print(f"wrote {options.destination}")


def _step(text: str) -> Which:
    if text == "best" or text == "last":
        return text
    return int(text)


if __name__ == "__main__":
    errors.run(main)
