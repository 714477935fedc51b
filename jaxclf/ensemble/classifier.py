"""An ensemble as a classifier: features of a frozen base, labels by its combiners."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.classifiers.base import LocalClassifier, Progress
from jaxclf.classifiers.heads import READ, inputs, whole_text_prediction
from jaxclf.core.types import Params
from jaxclf.data.batching import Batch, PromptBatch
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.ensemble import attens, features
from jaxclf.ensemble.attens import Combiner, Pooling
from jaxclf.models.registry import Model
from jaxclf.prompts.builder import PromptSource


class EnsembleClassifier(LocalClassifier):
    """Labels texts by combiners over what a base and its modules see.

    `combiners`: for each task its combiner and the modules that it reads, as their places after
    the base in the order of the pass. Parameters are {"base": the base's, "modules": stacks of
    adapters, "combiners": task → the combiner's}.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        recipe: Recipe,
        pooling: Pooling,
        combiners: Mapping[str, tuple[Combiner, tuple[int, ...]]],
    ):
        super().__init__(model, tokenizer, recipe)
        self.pooling = pooling
        compute = features.make_pass(model, pooling)

        def scores(params: Params, batch: Batch | PromptBatch) -> dict[str, Any]:
            seen = jnp.swapaxes(compute(params["base"], params["modules"], batch), 0, 1)
            found = {}
            for task in recipe.tasks:
                combiner, places = combiners[task.name]
                rows = seen[:, np.array((0, *places))]
                values, _ = attens.combine(combiner, params["combiners"][task.name], rows)
                found[task.name] = READ[task.kind](values)
            return sharding.everywhere(found)

        self.scores = jax.jit(scores)

    def _labelled(
        self,
        records: Sequence[Record],
        batch_size: int,
        prompt: PromptSource | None,
        progress: Progress,
    ) -> dict[int, Prediction]:
        examples = inputs(records, self.recipe, self.tokenizer)
        rows: dict[int, dict[str, np.ndarray]] = {}
        batch_size = sharding.divisible(batch_size)
        for indices, batch in features.batches(examples, batch_size, self.pooling):
            scores = jax.device_get(self.scores(self.params, sharding.put_batch(batch)))
            for row, index in enumerate(indices):
                rows[index] = {name: values[row] for name, values in scores.items()}
            progress(len(indices))
        return {
            index: whole_text_prediction(
                records[index], self.recipe.tasks, found, examples[index].cut
            )
            for index, found in rows.items()
        }
