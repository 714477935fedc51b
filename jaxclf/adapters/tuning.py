"""What `config.tune` chooses: parameters of the model itself, or adapters beside a frozen base.

A tuning splits a run's parameters into what is trained and what is frozen, joins them again, and
says what of them a checkpoint stores: the whole model, or the adapters alone.
"""

import dataclasses
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Spec
from jaxclf.adapters.partition import Partition, choose_trained
from jaxclf.core.errors import InputError
from jaxclf.core.types import Array, Key, Params, Tree
from jaxclf.models.unstacked import join_tables, stack, unstack

_HEADS = ("heads/.*", "pooler/.*")
# What is trained along by the tunings that have no factors, as leaf paths.
_SAVED = {
    "bitfit": (".*/bias", *_HEADS),
    "head": _HEADS,
    "prefix": ("layers/(.*/)?prefix/.*", *_HEADS),
}


@dataclasses.dataclass(frozen=True)
class Whole:
    """The model's own parameters, as `train.trained` chooses them."""

    partition: Partition

    def start(self, params: Params, key: Key[Array, ""]) -> tuple[Params, Params]:
        """(trained, frozen) before the first step."""
        return self.partition.split(params)

    def join(self, trained: Params, frozen: Params, key: Key[Array, ""] | None = None) -> Params:
        """The parameters to bind to the model."""
        return self.partition.join(trained, frozen)

    def stored(self, trained: Params, frozen: Params) -> Params:
        """What a checkpoint holds: all parameters."""
        return join_tables(self.join(trained, frozen))

    def abstract(self, params: Params) -> Params:
        """The shapes of `stored` for a model of these parameters."""
        return params

    def resume(self, stored: Params, base: Params | None) -> tuple[Params, Params]:
        """(trained, frozen) from what a checkpoint held; no base is needed."""
        return self.partition.split(stored)

    def base(self, frozen: Params) -> Params | None:
        return None

    def count(self, params: Params) -> int:
        """How many values are trained."""
        trained, _ = jax.eval_shape(self.partition.split, params)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Adapters of `spec`; frozen are the base, and of the adapters what LoRA-FA leaves alone."""

    spec: Spec
    partition: Partition

    def start(self, params: Params, key: Key[Array, ""]) -> tuple[Tree, Tree]:
        """(trained, frozen) before the first step: adapters that change nothing yet."""
        return self.resume(lora.init(params, self.spec, key), params)

    def join(self, trained: Tree, frozen: Tree, key: Key[Array, ""] | None = None) -> Params:
        """The base with the adapters bound to it; a key turns their dropout on."""
        return lora.bind(self.base(frozen), self.stored(trained, frozen), key)

    def stored(self, trained: Tree, frozen: Tree) -> Tree:
        """What a checkpoint holds: the adapters."""
        return self.partition.join(trained, frozen["adapters"])

    def abstract(self, params: Params) -> Tree:
        """The shapes of `stored` for a base of these parameters."""
        return lora.abstract(params, self.spec)

    def resume(self, stored: Tree, base: Params | None) -> tuple[Tree, Tree]:
        """(trained, frozen) from what a checkpoint held and the base."""
        trained, fixed = self.partition.split(stored)
        if self.partition.unstacked:
            base = unstack(base)
        return trained, {"base": base, "adapters": fixed}

    def base(self, frozen: Tree) -> Params:
        return stack(frozen["base"])

    def count(self, params: Params) -> int:
        """How many values are trained."""
        return lora.count(params, self.spec)


def check_trains(config: ConfigDict) -> None:
    """Raise InputError where the config trains nothing, or has what only prompting knows."""
    if config.tune == "none":
        raise InputError(
            "tune is 'none', so there is nothing to train. Evaluate prompts with python -m "
            "jaxclf.prompt, or leave out the variant no_tuning"
        )
    prompt = config.prompt
    for name, unset in (("chain_of_thought", False), ("styles", ()), ("seeds", 1), ("orders", 1)):
        if prompt[name] != unset:
            raise InputError(
                f"prompt.{name} is {prompt[name]!r}, which is for prompting without tuning. Set it "
                f"to {unset!r}, or use the variant no_tuning with python -m jaxclf.prompt"
            )


def choose(config: ConfigDict, params: Params, tokens: np.ndarray | None = None) -> Whole | Adapted:
    """The tuning that the config names, for a model of these parameters (shapes will do).

    `tokens`: the sorted ids whose embeddings train where these do; None: all. Raises InputError
    where it would train nothing, or a pattern matches nothing.
    """
    check_trains(config)
    # Where every layer is compiled on its own, a stack of them would only be cut and glued.
    unstacked = config.model.unroll >= jax.tree.leaves(params["layers"])[0].shape[0]
    if config.tune == "full":
        partition = choose_trained(params, config.train.trained, tokens)
        return Whole(partition._replace(unstacked=unstacked))
    spec = _spec(config)
    abstract = lora.abstract(params, spec)
    if not jax.tree.leaves(abstract):
        raise InputError(
            f"tune is {config.tune!r}, but {config.model.name} has no parameter that it trains"
        )
    # LoRA-FA leaves `a` as it was drawn.
    trained = r".*(?<!/a)" if spec.kind == "lora_fa" else "all"
    return Adapted(spec, choose_trained(abstract, trained)._replace(unstacked=unstacked))


def _spec(config: ConfigDict) -> Spec:
    if config.tune in _SAVED:
        return Spec(targets=(), saved=_SAVED[config.tune])
    fields = config.lora
    return Spec(
        kind=config.tune,
        targets=tuple(filter(None, map(str.strip, fields.target_modules.split(",")))),
        layers=fields.layers_to_transform,
        rank=fields.rank,
        alpha=fields.alpha,
        rank_pattern=fields.rank_pattern,
        alpha_pattern=fields.alpha_pattern,
        dropout=fields.dropout,
        rslora=fields.use_rslora,
        saved=tuple(filter(None, map(str.strip, fields.modules_to_save.split(",")))),
    )
