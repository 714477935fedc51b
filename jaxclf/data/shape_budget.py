"""How many shapes of batches a program is compiled for: each costs a compilation."""

import math
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from jaxclf.core.types import AnyArray
from jaxclf.data.batching import Batch, PromptBatch, Soft, Targets

Either = TypeVar("Either", Batch, PromptBatch)
Widths = tuple[int, ...]


class Budget:
    """The shapes met so far. Past the limit, a batch of a new one is padded to a known one.

    `shapes`: tokens of a row, then places of each target; what a later batch is padded to depends
    on them, so they belong to the state of a run. A batch that no known shape has room for is one
    more in any case.
    """

    def __init__(self, limit: int = 24, shapes: Iterable[Widths] = ()):
        self.limit = limit
        self.shapes: list[Widths] = [*shapes]

    def fit(self, batch: Either) -> Either:
        """The batch, padded to a known shape where the limit is reached."""
        wanted = _widths(batch)
        if wanted in self.shapes:
            return batch
        if len(self.shapes) >= self.limit:
            room = [each for each in self.shapes if all(map(int.__ge__, each, wanted))]
            if room:
                return _widened(batch, min(room, key=math.prod))
        self.shapes.append(wanted)
        return batch


def _widths(batch: Batch | PromptBatch) -> Widths:
    targets = batch.targets.values() if isinstance(batch, Batch) else ()
    return batch.tokens.shape[-1], *(each.positions.shape[-1] for each in targets)


def _widened(batch: Either, widths: Widths) -> Either:
    """The batch with padding: after the tokens of a row, or before those of a prompt."""
    if isinstance(batch, PromptBatch):
        tokens, segment_ids, positions = (
            _filled(array, widths[0], before=True) for array in batch[:3]
        )
        return PromptBatch(tokens, segment_ids, positions, batch.seen, batch.answer)
    tokens, segment_ids, positions = (_filled(array, widths[0]) for array in batch[:3])
    types = None if batch.types is None else _filled(batch.types, widths[0])
    targets = {
        name: Targets(*(_filled(array, width) for array in each))
        for (name, each), width in zip(batch.targets.items(), widths[1:], strict=True)
    }
    prefixes = batch.prefixes
    if prefixes is not None:
        prefixes = prefixes._replace(seen=_filled(prefixes.seen, widths[0]))
    soft = batch.soft and {
        name: Soft(*(_filled(array, targets[name].positions.shape[1]) for array in each))
        for name, each in batch.soft.items()
    }
    return Batch(tokens, segment_ids, positions, types, targets, prefixes, batch.lengths, soft)


def _filled(array: AnyArray, width: int, before: bool = False) -> np.ndarray:
    """The second dimension filled with zeros to `width`."""
    missing = width - array.shape[1]
    pads = [(0, 0)] * array.ndim
    pads[1] = (missing, 0) if before else (0, missing)
    return np.pad(array, pads)
