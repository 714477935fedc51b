"""One model of a frozen base and its adapters, leaf by leaf and layer by layer."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.adapters import lora
from jaxclf.checkpoint import model_dir, tree_store
from jaxclf.checkpoint.model_dir import ModelSource
from jaxclf.checkpoint.steps import Which
from jaxclf.classifiers import opening, transfer
from jaxclf.classifiers.transfer import Transfer
from jaxclf.config import loading
from jaxclf.convert import hf_import
from jaxclf.core import tree
from jaxclf.core.errors import InputError
from jaxclf.data import datasets
from jaxclf.data.predictions import Prediction
from jaxclf.data.splits import spread
from jaxclf.decoding.recipe import Recipe
from jaxclf.models import registry
from jaxclf.models.quantization import QuantKernel


def merge(found: ModelSource, directory: Path, dtype: str = "keep") -> ModelSource:
    """Write the merged parameters of a run of adapters below `directory`; where they then lie.

    `dtype`: "keep" the base's, or what all parameters are cast to. Memory peaks at a few layers of
    the largest leaf. Raises ArtifactError where the base is another one or a part is corrupt,
    InputError for what has no place in a plain model.
    """
    assert found.adapters is not None
    dimensions, _ = model_dir.read_model(found.model_json)
    if dimensions.prefix:
        raise InputError(f"{found.model_json.parent}: a trained prefix cannot be merged")
    base, plan = _base(found)
    tree_store.verify(base.params_dir, base.manifest, finite=True)
    _, base_dtype = model_dir.read_model(base.model_json)
    abstract = registry.create(dimensions).abstract
    adapters = model_dir.load_adapters(found, abstract)
    leaves = _Leaves(base, plan, adapters, abstract)
    with tree_store.TreeWriter(directory / "params", found.model_json.parent) as writer:
        for path, leaf in tree.flatten(abstract).items():
            stored = base_dtype if dtype == "keep" else dtype
            writer.write(path, leaf.shape, stored, leaves.parts(path))
    return dataclasses.replace(
        found, params_dir=directory / "params", manifest=writer.manifest, adapters=None
    )


def _base(found: ModelSource) -> tuple[ModelSource, Transfer]:
    """The adapters' base, and what the model took over from it."""
    assert found.adapters is not None
    if found.run_dir is None:
        base = hf_import.resolve(
            model_dir.located(found.adapters.checkpoint, found.params_dir.parent)
        )
        model_dir.check_base(found.adapters, base, found.params_dir.parent)
        return base, Transfer({path: path for path in base.manifest}, (), ())
    config = loading.read(found.run_dir / "config.json")
    base = model_dir.find_base(config, found.run_dir, hf_import.resolve)
    model_dir.check_base(found.adapters, base, found.run_dir)
    dimensions, _ = model_dir.read_model(found.model_json)
    model = registry.create(dimensions, quantise=config.model.quantize)
    recipe = Recipe.load(found.run_dir / "task.json")
    return base, transfer.plan(model, base, config.model.heads, recipe)


class _Leaves:
    """The merged leaves, one layer at a time."""

    def __init__(
        self,
        base: ModelSource,
        plan: Transfer,
        adapters: lora.Adapters,
        abstract: Any,
    ):
        self.base, self.plan, self.adapters = base, plan, adapters
        self.saved = tree.flatten(adapters.saved)
        self.places = lora.places(abstract, adapters.spec)
        self.depths = {
            path: leaf.shape[0] if path.startswith("layers/") else None
            for path, leaf in tree.flatten(abstract).items()
        }
        self.kind: Any = model_dir.quantisation(base)

    def parts(self, path: str) -> Iterator[np.ndarray]:
        """A leaf's layers in order, or itself as the only part."""
        if path in self.saved:
            yield np.asarray(self.saved[path])
            return
        depth = self.depths[path]
        module = path.removesuffix("/kernel")
        for layer in [None] if depth is None else range(depth):
            part = self._read(path, layer)
            if path.endswith("/kernel") and module in self.places:
                place = self.places[module]
                part = lora.merge_layer(jnp.asarray(part), self.adapters, module, place, layer)
            yield np.asarray(part)

    def _read(self, path: str, layer: int | None) -> np.ndarray:
        def stored(name: str) -> np.ndarray:
            if name not in self.plan.taken:
                raise InputError(
                    f"{name} was started at random and not trained, so that nothing keeps it; "
                    "name it in lora.modules_to_save"
                )
            place = layer
            if layer is not None and self.plan.is_cut(name):
                place = self.plan.layers[layer]
            leaf = tree_store.read(self.base.params_dir, self.plan.taken[name], place)
            return self.plan.ordered(name, leaf)

        if f"{path}/values" not in self.plan.taken:
            return stored(path)
        values, scale = (jnp.asarray(stored(f"{path}/{name}")) for name in ("values", "scale"))
        kind = "int8" if values.dtype == jnp.int8 else self.kind
        return np.asarray(QuantKernel(values, scale, kind).dequantise(jnp.float32))


def count_flips(
    run_dir: Path, step: Which, dtype: str, limit: int, overrides: Sequence[str] = ()
) -> dict[str, tuple[int, int]]:
    """Task → (labels that merging changes, labels) on records of the run's evaluation split.

    Both sides compute in `dtype` with parameters of it ("keep": the run's own). `limit` records
    spread over the split are labelled.
    """
    if dtype != "keep":
        overrides = [*overrides, f"model.dtype={dtype}", f"model.param_dtype={dtype}"]
    opened = opening.open_run(run_dir, step, overrides, hf_import.resolve)
    config = opened.config
    found = datasets.load(config.data, config.seed)
    split = datasets.scored_split(found, config.eval.split)
    records = spread(found.splits[split], limit)

    def label(params) -> list[Prediction]:
        classifier = opened.classifier.with_params(params, opened.classifier.mesh)
        return classifier.predict(records, config.eval.batch_size, prompt=opened.prompt)

    merged = jax.jit(lora.multiply_out)(opened.classifier.params)
    pairs = list(zip(label(opened.classifier.params), label(merged), strict=True))
    return {
        task.name: (
            sum(one.predicted[task.name] != other.predicted[task.name] for one, other in pairs),
            len(pairs),
        )
        for task in opened.classifier.recipe.tasks
    }
