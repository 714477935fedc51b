"""Batches in a shuffled, endless order that can be resumed at any step (grain)."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxclf.core import streams
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data import batching
from jaxclf.data.batching import Batch, PromptBatch
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.examples import Tokens
from jaxclf.data.prefixes import NONE, SharedPrefixes
from jaxclf.data.shape_budget import Budget

# Rows filled side by side before any is emitted; more of them leave less padding.
_PACKING_BINS = 64
_WINDOW = 32  # batches whose examples are sorted by length together
_VERSION = 2  # of the order of batches: a state of another one would go on with other examples


Examples = Sequence[Tokens] | Sequence[Encoded]


class _Shuffled(grain.MapDataset[Any]):
    """The examples' arrays, in an order of its own for every epoch.

    Grain's `shuffle` adds the epoch to the seed, so that neighbouring seeds share their orders.
    """

    def __init__(self, examples: Examples, shared: SharedPrefixes, seed: int):
        super().__init__()
        self._examples, self._shared, self._seed = examples, shared, seed
        self._orders: dict[int, np.ndarray] = {}  # of the last epoch that was read

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:  # an `ExampleRow`
        epoch, place = divmod(index, len(self))
        if epoch not in self._orders:
            drawn = streams.generator(self._seed, "order", epoch).permutation(len(self))
            self._orders = {epoch: drawn}
        return batching.row(self._examples[int(self._orders[epoch][place])], self._shared)


class _LikeLengths(grain.experimental.FlatMapTransform):
    """A window of examples → batches of like lengths, in an order that tells nothing of them."""

    max_fan_out = _WINDOW

    def __init__(
        self, batch_size: int, seed: int, padded: Callable[[list[batching.ExampleRow]], Batch]
    ):
        self.batch_size, self.seed, self.padded = batch_size, seed, padded

    def flat_map(self, element: list[batching.ExampleRow]) -> list[Batch]:
        rows = sorted(element, key=lambda row: len(row["tokens"]))
        starts = np.arange(0, len(rows), self.batch_size)
        # Drawn from the window itself: a resumed run meets the same order.
        window = element[0]["tokens"].tobytes().hex()
        streams.generator(self.seed, "windows", window).shuffle(starts)
        return [self.padded(rows[start : start + self.batch_size]) for start in starts]


class TrainBatches(Iterator[Batch]):
    """An endless iterator of batches; `get_state` and `set_state` make it resumable.

    `budget`: of the shapes that batches are padded to, which is a part of the state.
    """

    def __init__(self, batches: grain.DatasetIterator[Batch], budget: Budget):
        self._batches, self.budget = batches, budget

    def __next__(self) -> Batch:
        return self.budget.fit(next(self._batches))

    def get_state(self) -> dict[str, Any]:
        """What JSON can hold."""
        shapes = [list(shape) for shape in self.budget.shapes]
        return {"version": _VERSION, "order": self._batches.get_state(), "shapes": shapes}

    def set_state(self, state: Any) -> None:
        """Go on where an iterator of the same arguments stood.

        Raises ArtifactError for a state of a version that orders examples otherwise.
        """
        version = state.get("version", 1) if isinstance(state, dict) else 1
        if version != _VERSION:
            raise ArtifactError(
                f"the place in the data is that of version {version} of the order of batches; this "
                f"is version {_VERSION}, which would go on with other examples. Go on with the "
                "jaxclf that began the run, or begin anew in another --workdir"
            )
        try:
            shapes = [tuple(map(int, shape)) for shape in state["shapes"]]
            self._batches.set_state(state["order"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the place in the data is damaged ({error!r})") from error
        self.budget = Budget(self.budget.limit, shapes)


def train_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    row_length: int = 0,
    like_lengths: bool = False,
    shared: SharedPrefixes = NONE,
    groups: int = 1,
    max_shapes: int = sys.maxsize,
) -> TrainBatches:
    """The batches of a run.

    Every epoch has an order of its own, drawn from `seed`, in which each example comes once. The
    batches are those of all devices: each process makes them whole and keeps the rows of its own.
    `batch_size` counts examples, or rows when `row_length` > 0 packs several examples into rows of
    that many tokens; an example that is longer raises InputError. `like_lengths` pads less:
    examples of like length stand together, in windows of some batches. Prefixes that are `shared`
    are laid once over the rows of each of `groups` micro-batches; lengths then are of the rest.
    Past `max_shapes` shapes, a batch of a new one is padded to one of them.
    """
    batches = _batches(
        examples,
        batch_size=batch_size,
        seed=seed,
        row_length=row_length,
        like_lengths=like_lengths,
        shared=shared,
        groups=groups,
    )
    return TrainBatches(batches, Budget(max_shapes))


def _batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    row_length: int,
    like_lengths: bool,
    shared: SharedPrefixes,
    groups: int,
) -> grain.DatasetIterator[Batch]:
    """The batches as they come, in the shapes of their examples."""
    padded = functools.partial(batching.padded, shared=shared, groups=groups)
    dataset = _Shuffled(examples, shared, seed).repeat()
    rows = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0))
    if like_lengths:
        windows = rows.batch(batch_size * _WINDOW, batch_fn=list)
        batches = _LikeLengths(batch_size, seed, padded)
        return iter(grain.experimental.FlatMapIterDataset(windows, batches))
    if not row_length:
        return iter(rows.batch(batch_size, batch_fn=padded))
    for item in examples:
        if (length := len(batching.row(item, shared)["tokens"])) > row_length:
            raise InputError(
                f"record {item.id} has {length:,} tokens; a packed row holds {row_length:,}. "
                "Raise train.row_length or lower train.max_length."
            )
    first = batching.row(examples[0], shared)
    lengths = dict.fromkeys(first, row_length)
    for name in batching.target_names(first):
        budget = label_budget(examples, name, row_length, shared)
        lengths |= {each: budget for each in first if each.startswith(f"{name}/")}
    filled = grain.experimental.FirstFitPackIterDataset(
        rows,
        length_struct=lengths,
        num_packing_bins=_PACKING_BINS,
        seed=streams.number(seed, "packing"),
    )
    return iter(
        filled.batch(batch_size).map(
            functools.partial(batching.packed, shared=shared, groups=groups)
        )
    )


def used_tokens(examples: Examples) -> np.ndarray:
    """The sorted token ids that models read in batches of the examples, padding's with them."""
    read = [batching.row(item)["tokens"] for item in examples]
    read += [item.label for item in examples if isinstance(item, Tokens) and item.apart]
    return np.unique(np.concatenate([[0], *read]))


def label_budget(
    examples: Examples, name: str, row_length: int, shared: SharedPrefixes = NONE
) -> int:
    """Labels J of a target that a packed row may hold: its usual share and a quarter more."""
    rows = (batching.row(example, shared) for example in examples)
    sizes = [(len(row[f"{name}/labels"]), len(row["tokens"])) for row in rows]
    labels, tokens = (sum(column) for column in zip(*sizes, strict=True))
    share = 1.25 * row_length * labels / max(1, tokens)
    longest = max(count for count, _ in sizes)
    return min(row_length, batching.bucket(max(int(share), longest), smallest=4))


def by_length(examples: Examples, shared: SharedPrefixes = NONE) -> list[int]:
    """Indices of the examples, the shortest first, without the prefixes that are `shared`."""
    lengths = [
        len(item.tokens)
        if isinstance(item, Encoded)
        else len(item.text) + (0 if shared.number(item) else len(item.prefix))
        for item in examples
    ]
    return np.argsort(lengths, kind="stable").tolist()


def prompt_batches(
    examples: Sequence[Tokens], batch_size: int, shared: SharedPrefixes = NONE, done: int = 0
) -> Iterator[tuple[list[int], PromptBatch]]:
    """Every example once, by length, as (indices, prompts); the last batch is filled up, not cut.

    Prompts of like length stand together, so that little padding is computed; they are without the
    prefixes that are `shared`. So many as are `done` are left out.
    """
    order = by_length(examples, shared)
    for start in range(done, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, batching.prompts([examples[index] for index in indices], batch_size, shared)


def score_batches(
    examples: Sequence[Encoded], batch_size: int, done: int = 0
) -> Iterator[tuple[list[int], Batch]]:
    """Every example once, by length, as (indices, batch); missing rows repeat the last example.

    So many as are `done` are left out.
    """
    order = by_length(examples)
    for start in range(done, len(order), batch_size):
        indices = order[start : start + batch_size]
        filled = indices + indices[-1:] * (batch_size - len(indices))
        yield indices, batching.padded([batching.row(examples[index]) for index in filled])
