"""Trees of arrays and other values: flat by path, and nested again."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxclf.core.types import path_name


def flatten(tree: Any) -> dict[str, Any]:
    """Leaf path → leaf, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten` for nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def at(found: Any, *names: str) -> Any:
    """What lies in nested mappings under these names, or None where it is not there."""
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
