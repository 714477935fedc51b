"""What a classifier says of a record: labels, scores, and what could not be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxclf.core.types import Float
from jaxclf.data.tasks import Label

UNPARSED = None  # the prediction for an output outside the label set


@dataclass(frozen=True)
class Prediction:
    """One record's gold labels (slots as BIO tags) and what was predicted for it.

    raw: the generated text. scores: task name → label → score, where labels were scored.
    unknown_slots, guessed: as in `Parsed`. cut: tokens (of a server: characters) that were cut from
    the end of the text before it was read. slot_scores: task name → the probability of each of
    `head_labels` `[words C]` for each word, zeros where it was cut, where heads scored slots.
    """

    id: str
    text: str
    gold: Mapping[str, Label]
    predicted: Mapping[str, Label]
    raw: str = ""
    scores: Mapping[str, Mapping[str, float]] | None = None
    unknown_slots: int = 0
    guessed: tuple[str, ...] = ()
    cut: int = 0
    slot_scores: Mapping[str, Float[np.ndarray, "words C"]] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def unparsed(self) -> list[str]:
        """Names of the tasks whose output was outside the label set, whatever replaced it."""
        return [
            name
            for name, value in self.predicted.items()
            if value is UNPARSED or name in self.guessed
        ]
