"""Random adapters, and directories that hold them or their base."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Adapters, Spec
from jaxclf.checkpoint import model_dir, tree_store
from jaxclf.checkpoint.model_dir import AdapterInfo
from jaxclf.core.tree import flatten
from jaxclf.core.types import Params
from jaxclf.models.registry import ModelConfig


def random_adapters(params: Params, spec: Spec, seed: int = 0) -> Adapters:
    """Adapters that change the model; what fills up a narrower rank stays zero."""
    random = np.random.default_rng(seed)
    adapters = lora.init(params, spec, jax.random.key(seed))
    kept = {path: np.asarray(leaf != 0) for path, leaf in flatten(adapters).items()}

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = jnp.asarray(random.normal(0, 0.1, leaf.shape), jnp.float32)
        if name.endswith("/a"):
            return jnp.where(kept[name], values, 0)
        if name.startswith("factors/") and name.endswith("/b"):
            return jnp.where(np.any(kept[f"{name[:-1]}a"], axis=-2)[..., None], values, 0)
        return leaf + values

    return jax.tree_util.tree_map_with_path(draw, adapters)


def write_model(directory: Path, config: ModelConfig, tree: Any) -> Path:
    """A model directory, or what an adapter directory has in common with it."""
    with tree_store.TreeWriter(directory / "params") as writer:
        for path, leaf in flatten(tree).items():
            writer.write(path, leaf.shape, "float32", [np.asarray(leaf)])
    manifest = tree_store.manifest_to_json(writer.manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    model_dir.write_model(directory / "model.json", config, "float32")
    return directory


def write_adapters(
    directory: Path, config: ModelConfig, adapters: Adapters, checkpoint: str = "owner/base"
) -> Path:
    """An adapter directory, whose base is nowhere to be found."""
    write_model(directory, config, adapters)
    info = AdapterInfo(adapters.spec, checkpoint, fingerprint="0" * 64)
    model_dir.write_adapters(directory / "adapters.json", info)
    return directory


def load(directory: Path, base: Params) -> Adapters:
    return model_dir.load_adapters(model_dir.resolve(directory), base)
