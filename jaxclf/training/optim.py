"""Which parameters are trained, and by which optimizer."""

import jax
import optax
from ml_collections import ConfigDict

from jaxclf.adapters.partition import PARTS, is_stacked
from jaxclf.core.types import Tree, path_name
from jaxclf.training.eight_bit import eight_bit
from jaxclf.training.layerwise import Layerwise


def schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, or linear or cosine down to 0."""
    rate, warmup = config.learning_rate, config.warmup_steps
    rest = max(1, config.steps - warmup)
    after = {
        "constant": optax.constant_schedule(rate),
        "linear": optax.linear_schedule(rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(rate, rest),
    }[config.schedule]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def optimizer(config: ConfigDict, b_rate: float = 1.0) -> optax.GradientTransformation | Layerwise:
    """What `config.train` asks for: `adamw`, or its steps a layer at a time in less memory.

    `b_rate`: see `adamw`.
    """
    if config.adam_moments == "float32" and not config.stochastic_rounding:
        return adamw(config, b_rate)
    inner = optax.chain(*_of_leaves(config, b_rate))
    inner = eight_bit(inner) if config.adam_moments == "int8" else inner
    return Layerwise(inner, config.max_grad_norm, config.stochastic_rounding)


def adamw(config: ConfigDict, b_rate: float = 1.0) -> optax.GradientTransformation:
    """AdamW with clipping by global norm, for gradients and moments in float32.

    Decay leaves one-dimensional leaves (norm scales and biases) alone; stacked layers add one axis.
    `b_rate`: how many times the learning rate is for an adapter's `b`. Source: Loshchilov & Hutter
    2019; Hayou et al. 2024 (LoRA+).
    """
    clip = (
        optax.clip_by_global_norm(config.max_grad_norm)
        if config.max_grad_norm
        else optax.identity()
    )
    return optax.chain(clip, *_of_leaves(config, b_rate))


def _of_leaves(config: ConfigDict, b_rate: float) -> tuple[optax.GradientTransformation, ...]:
    """AdamW after clipping, which looks at no leaf beside its own."""

    def is_matrix(path, leaf) -> bool:
        return leaf.ndim > 1 + is_stacked(path_name(path))

    def decayed(params: Tree):
        return jax.tree_util.tree_map_with_path(is_matrix, params)

    def faster_b(updates: Tree, _: Tree = None):
        def scaled(path, leaf):
            name = path_name(path).partition(f"/{PARTS}/")[0]
            return leaf * b_rate if name.endswith("/b") else leaf

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return (
        optax.scale_by_adam(b1=config.adam_beta1, b2=config.adam_beta2, eps=config.adam_epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decayed)
        if config.weight_decay
        else optax.identity(),
        optax.scale_by_learning_rate(schedule(config)),
        optax.stateless(faster_b) if b_rate != 1 else optax.identity(),
    )
