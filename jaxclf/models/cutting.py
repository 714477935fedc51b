"""A model with fewer layers than the one that it is cut from."""

import dataclasses
from typing import Any

from jaxclf.core.errors import InputError
from jaxclf.models.registry import ModelConfig
from jaxclf.models.t5 import T5Config


def evenly_spaced(count: int, kept: int) -> tuple[int, ...]:
    """Which of `count` layers stay, the first and the last among them: of 12, 6 are 0, 2, 4, 7, 9
    and 11. Source: Sanh et al. 2019 (DistilBERT), its released code."""
    if kept == 1:
        return (0,)
    return tuple(round(place * (count - 1) / (kept - 1)) for place in range(kept))


def with_layers(dimensions: ModelConfig, kept: int) -> ModelConfig:
    """The dimensions with evenly spaced layers of `kept` in number; 0: all.

    Raises InputError for more layers than there are, or a model of two stacks.
    """
    if not kept:
        return dimensions
    if isinstance(dimensions, T5Config):
        raise InputError(
            f"model.layers is {kept}; {dimensions.family} has two stacks of layers, which are not "
            "cut. Set it to 0, or choose an encoder or another decoder"
        )
    if kept > dimensions.num_layers:
        raise InputError(
            f"model.layers is {kept}; the model has {dimensions.num_layers} layers. Lower it, or "
            "set it to 0 for all"
        )
    places = evenly_spaced(dimensions.num_layers, kept)
    changed: dict[str, Any] = {"num_layers": kept}
    for name in ("layer_types", "rotary_layers"):  # what each layer has of its own
        if each := getattr(dimensions, name, ()):
            changed[name] = tuple(each[place] for place in places)
    return dataclasses.replace(dimensions, **changed)
