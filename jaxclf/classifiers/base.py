"""What labels texts: one protocol for decoders, heads, ensembles and models behind a server."""

import abc
import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from jax.sharding import Mesh

from jaxclf.core.types import Params
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.metrics import calibration
from jaxclf.models.registry import Model
from jaxclf.prompts.builder import PromptSource

Progress = Callable[[int], None]
"""Told how many texts more are labelled."""


def silent(count: int) -> None:
    """The progress of who does not watch."""


@runtime_checkable
class Classifier(Protocol):
    """Labels texts; needs nothing that is not its own, no mesh and no parameters."""

    recipe: Recipe

    def predict(
        self,
        records: Sequence[Record],
        batch_size: int,
        *,
        prompt: PromptSource | None = None,
        progress: Progress = silent,
    ) -> list[Prediction]:
        """One prediction a record, in the records' order, with tempered probabilities.

        `prompt`: in place of the recipe's, for those that have one.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """How labels came out, for the report; empty where there is but one way."""
        ...


Local = TypeVar("Local", bound="LocalClassifier")


class LocalClassifier(abc.ABC):
    """A classifier whose parameters lie on devices of this process.

    mesh: that they lie on; None: the one in force. temperatures: of the class tasks that have one
    (see `metrics.calibration`), for the probabilities of the predictions.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, recipe: Recipe):
        self.model, self.tokenizer, self.recipe = model, tokenizer, recipe
        self.params: Params = {}
        self.mesh: Mesh | None = None
        self.temperatures: Mapping[str, float] = MappingProxyType({})

    def with_params(
        self: Local,
        params: Params,
        mesh: Mesh | None = None,
        temperatures: Mapping[str, float] = MappingProxyType({}),
    ) -> Local:
        """The same classifier of these parameters; its compiled programs are kept."""
        found = copy.copy(self)
        found.params, found.mesh, found.temperatures = params, mesh, temperatures
        return found

    def predict(
        self,
        records: Sequence[Record],
        batch_size: int,
        *,
        prompt: PromptSource | None = None,
        progress: Progress = silent,
        tempered: bool = True,
    ) -> list[Prediction]:
        """One prediction a record, in the records' order; see `Classifier.predict`.

        `tempered=False`: probabilities as the model gives them, for who measures or fits these.
        """
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            found = self._labelled(records, batch_size, prompt, progress)
        if len(found) != len(records):
            raise RuntimeError(f"{len(found)} of {len(records)} records were scored")
        predictions = [found[index] for index in range(len(records))]
        return calibration.tempered(predictions, self.temperatures) if tempered else predictions

    def facts(self) -> dict[str, Any]:
        """How labels came out; heads have but one way."""
        return {}

    @property
    def scoring(self) -> dict[str, Any] | None:
        """What its probabilities depend on beside the parameters; None where there are none."""
        return {}

    @abc.abstractmethod
    def _labelled(
        self,
        records: Sequence[Record],
        batch_size: int,
        prompt: PromptSource | None,
        progress: Progress,
    ) -> dict[int, Prediction]:
        """Predictions by the index of their record."""
