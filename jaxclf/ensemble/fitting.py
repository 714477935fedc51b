"""Training what stands on features that do not change: the combiner, or one layer on the base.

The features are read from disk as they are needed, so their number is not bound by memory.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.config.rules import LARGEST
from jaxclf.core import streams
from jaxclf.core.errors import ArtifactError, InputError, NonFiniteError, Preempted
from jaxclf.core.logs import Logger
from jaxclf.core.types import AnyArray, Array, Float, Key, Params, Shaped
from jaxclf.data.tasks import Task
from jaxclf.distributed.preemption import Interrupts
from jaxclf.ensemble import attens
from jaxclf.ensemble.attens import Combiner
from jaxclf.training import optim
from jaxclf.training.losses import Term, place_losses

_CHUNK = 64  # steps that one compiled call makes
_SECONDS_BETWEEN_SAVES = 60.0
_VERSION = 2  # of the orders that are drawn, and of how a checkpoint is numbered


class FeatureHead(NamedTuple):
    """Something trained on features: its random start, and features `[B, A+1, D]` to scores."""

    init: Callable[[Key[Array, ""]], Params]
    scores: Callable[[Params, Float[AnyArray, "B A1 D"]], Float[Array, "B C"]]


def combiner_head(combiner: Combiner) -> FeatureHead:
    """The attention ensemble."""
    return FeatureHead(
        lambda key: attens.init(combiner, key),
        lambda params, features: attens.combine(combiner, params, features)[0],
    )


def layer_head(size: int, classes: int) -> FeatureHead:
    """One linear layer on the base's own vector; PyTorch's random start."""

    def init(key: Key[Array, ""]) -> Params:
        return attens.random_linear(key, size, classes, size**-0.5)

    return FeatureHead(init, lambda params, features: attens.linear(params, features[:, 0]))


@dataclasses.dataclass(frozen=True)
class Data:
    """Features of N texts, the base's array first, and their labels (class numbers or numbers)."""

    vectors: Sequence[Float[np.ndarray, "N D"]]
    labels: Shaped[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: np.ndarray) -> Float[np.ndarray, "rows A1 D"]:
        return np.stack([each[indices] for each in self.vectors], axis=1)


def fit(
    head: FeatureHead,
    term: Term,
    data: Data,
    config: ConfigDict,
    seed: int,
    directory: Path,
    interrupts: Interrupts,
) -> Params:
    """Train for `attens.epochs`, or go on from what `directory` holds; the last epoch counts.

    Each epoch has an order of its own, drawn from `seed` and the directory's name. Raises Preempted
    after saving where the run is asked to stop, NonFiniteError where the loss is not finite.
    """
    fields, name = config.attens, directory.name
    size = fields.batch_size
    steps = math.ceil(len(data) / size)  # an epoch
    total = fields.epochs * steps
    if total > LARGEST:
        raise InputError(
            f"attens.epochs is {fields.epochs:,}, which makes {total:,} steps; a combiner has "
            f"{LARGEST:,} at most. Lower it"
        )
    optimizer = optim.adamw(_optimizer_fields(config, total))
    run = make_steps(head, term, optimizer)
    params = random_start(head, seed, name)
    opt_state = jax.jit(optimizer.init)(params)
    done, losses = 0, []  # steps, and the losses of those in the epoch that is not done
    with Checkpoints(directory, 1, "") as checkpoints:
        if latest := checkpoints.latest_step():
            restored = checkpoints.restore(latest, params, opt_state)
            params, opt_state = restored.params, restored.state
            done, losses = latest, _losses(restored.iterator_state, directory)
        saved = time.monotonic()
        with Logger(directory, total, done, every=steps) as logger:
            while done < total:
                epoch, within = divmod(done, steps)
                order = streams.generator(seed, "order", name, epoch).permutation(len(data))
                filled = np.resize(order, steps * size).reshape(steps, size)
                mask = (np.arange(steps * size) < len(data)).reshape(steps, size)
                found = []
                for start in range(within, steps, _CHUNK):
                    part = slice(start, start + _CHUNK)
                    rows = data.rows(filled[part].reshape(-1))
                    rows = rows.reshape(-1, size, *rows.shape[1:])
                    batches = (rows, data.labels[filled[part]], mask[part])
                    params, opt_state, new = run(params, opt_state, jax.device_put(batches))
                    found.append(new)
                    done += len(new)
                    if interrupts.requested:
                        break
                losses += np.concatenate(found).tolist()
                loss = float(np.mean(np.array(losses, np.float32)))
                if not math.isfinite(loss):
                    raise NonFiniteError(
                        f"epoch {epoch + 1}: loss {loss}. Lower attens.learning_rate, or look at "
                        "the features: a hidden state may not be finite"
                    )
                if done % steps == 0:
                    logger.advance(done, examples=len(data), loss=loss)
                    logger.metrics(done, {"train/loss": loss})
                    losses = []
                ends = done == total or interrupts.requested
                if ends or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    place = {"version": _VERSION, "losses": losses}
                    checkpoints.save(done, params, opt_state, place, {})
                    checkpoints.wait()
                    saved = time.monotonic()
                if interrupts.requested:
                    raise Preempted(
                        f"stopped by SIGTERM; saved epoch {done / steps:.4g} of {fields.epochs} of "
                        f"{name}. The same command resumes"
                    )
    return params


def random_start(head: FeatureHead, seed: int, name: str) -> Params:
    """The parameters that `fit` starts from in a directory of this name."""
    return jax.jit(head.init)(streams.key(seed, streams.INITIALIZATION, name))


def _losses(state: Any, directory: Path) -> list[float]:
    """Those of the epoch that a checkpoint stands in; raises ArtifactError."""
    try:
        if state["version"] != _VERSION:
            raise ValueError(f"version {state['version']}")
        return [float(loss) for loss in state["losses"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{directory}: saved by a version of jaxclf with another order of texts ({error!r}). "
            "Go on with that version, or remove the folder to train it anew"
        ) from error


def make_steps(
    head: FeatureHead, term: Term, optimizer: optax.GradientTransformation
) -> Callable[[Params, Any, Any], tuple[Params, Any, Float[Array, " steps"]]]:
    """A compiled function (parameters, optimizer state, batches) that makes a step a batch.

    Batches are features `[steps, B, A+1, D]`, labels and mask `[steps, B]`; the loss is the mean
    over a batch's texts that are not masked. Parameters and state are donated.
    """

    def mean_loss(params: Params, batch) -> Float[Array, ""]:
        features, labels, mask = batch
        scores = head.scores(params, features)
        losses = place_losses(term, scores[:, None], labels[:, None])[:, 0]
        return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.sum(mask)

    def step(state, batch):
        params, opt_state = state
        loss, gradient = jax.value_and_grad(mean_loss)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, opt_state), loss

    def steps(params: Params, opt_state: Any, batches):
        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), batches)
        return params, opt_state, losses

    return jax.jit(steps, donate_argnums=(0, 1))


def apply(function: Callable[[Float[AnyArray, "B A1 D"]], Any], data: Data, batch_size: int) -> Any:
    """`function` of all texts' features, in batches of one shape: arrays with a leading N axis."""
    compiled = jax.jit(function)
    found = []
    for start in range(0, len(data), batch_size):
        indices = np.arange(start, start + batch_size)
        rows = data.rows(np.minimum(indices, len(data) - 1))
        results = jax.device_get(compiled(jax.device_put(rows)))
        found.append(jax.tree.map(lambda array: array[: len(data) - start], results))  # noqa: B023
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *found)


def _optimizer_fields(config: ConfigDict, steps: int) -> ConfigDict:
    """The combiner's settings where `optim` looks for a run's."""
    fields = config.train.copy_and_resolve_references()
    with fields.unlocked():
        fields.steps, fields.warmup_steps = steps, 0
        for name in ("learning_rate", "schedule", "weight_decay"):
            fields[name] = config.attens[name]
    return fields


def combiner_of(config: ConfigDict, size: int, task: Task) -> Combiner:
    fields = config.attens
    classes = max(1, len(task.labels))
    return Combiner(
        size, classes, fields.heads, fields.over, fields.combine, fields.norms, fields.across
    )
