"""Batches in a shuffled, endless order that can be resumed at any step (grain)."""

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from jaxclf.core.errors import InputError
from jaxclf.data import batching
from jaxclf.data.batching import Batch, PromptBatch
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.examples import Tokens
from jaxclf.data.prefixes import NONE, SharedPrefixes

# Rows filled side by side before any is emitted; more of them leave less padding.
_PACKING_BINS = 64
_WINDOW = 32  # batches whose examples are sorted by length together


Examples = Sequence[Tokens] | Sequence[Encoded]


class _Rows:
    """Random access to the examples' arrays, as grain reads a source."""

    def __init__(self, examples: Examples, shared: SharedPrefixes):
        self.examples, self.shared = examples, shared

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> batching.ExampleRow:
        return batching.row(self.examples[index], self.shared)


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
        salt = zlib.crc32(element[0]["tokens"].tobytes())
        np.random.default_rng([self.seed, salt]).shuffle(starts)
        return [self.padded(rows[start : start + self.batch_size]) for start in starts]


def train_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    row_length: int = 0,
    like_lengths: bool = False,
    shared: SharedPrefixes = NONE,
    groups: int = 1,
) -> grain.DatasetIterator[Batch]:
    """An endless iterator of `Batch`; `get_state` and `set_state` make it resumable.

    Every epoch has an order of its own, drawn from `seed`, in which each example comes once. The
    batches are those of all devices: each process makes them whole and keeps the rows of its own.
    `batch_size` counts examples, or rows when `row_length` > 0 packs several examples into rows of
    that many tokens; an example that is longer raises InputError. `like_lengths` pads less:
    examples of like length stand together, in windows of some batches. Prefixes that are `shared`
    are laid once over the rows of each of `groups` micro-batches; lengths then are of the rest.
    """
    padded = functools.partial(batching.padded, shared=shared, groups=groups)
    dataset = grain.MapDataset.source(_Rows(examples, shared)).shuffle(seed).repeat()
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
        lengths |= {f"{name}/positions": budget, f"{name}/labels": budget}
    filled = grain.experimental.FirstFitPackIterDataset(
        rows, length_struct=lengths, num_packing_bins=_PACKING_BINS, seed=seed
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


def prompt_batches(
    examples: Sequence[Tokens], batch_size: int, shared: SharedPrefixes = NONE
) -> Iterator[tuple[list[int], PromptBatch]]:
    """Every example once, by length, as (indices, prompts); the last batch is filled up, not cut.

    Prompts of like length stand together, so that little padding is computed; they are without the
    prefixes that are `shared`.
    """
    lengths = [
        len(item.text) + (0 if shared.number(item) else len(item.prefix)) for item in examples
    ]
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = [int(index) for index in order[start : start + batch_size]]
        yield indices, batching.prompts([examples[index] for index in indices], batch_size, shared)


def score_batches(
    examples: Sequence[Encoded], batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Every example once, by length, as (indices, batch); missing rows repeat the last example."""
    order = np.argsort([len(item.tokens) for item in examples], kind="stable")
    for start in range(0, len(order), batch_size):
        indices = [int(index) for index in order[start : start + batch_size]]
        filled = indices + indices[-1:] * (batch_size - len(indices))
        yield indices, batching.padded([batching.row(examples[index]) for index in filled])
