"""Prompt prefixes that examples share: found once, laid over the rows of every batch.

Two rows whose examples share the prefix `5 6 7` begin with a part of it each:

    prefix     tokens 5 6   numbers 1 1      own tokens 9 3 8    seen 1 1 1
               tokens 7 0   numbers 1 0      own tokens 4 2 0    seen 1 1 0

so that a mesh computes it once too, and every device its part.
"""

import collections
from collections.abc import Sequence

import numpy as np

from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.examples import Tokens

_DIVISIBLE = 64  # by which the tokens of a long row may be divided


class SharedPrefixes:
    """Prefixes with their numbers, from 1.

    >>> shared = SharedPrefixes([np.array([5, 6, 7])])
    >>> shared.laid(2)                     # tokens, positions and numbers, [2, 2] each
    """

    def __init__(self, prefixes: Sequence[np.ndarray] = ()):
        self.prefixes = list(prefixes)
        self.lengths = np.array([0, *map(len, self.prefixes)], np.int32)
        self._numbers = {each.tobytes(): n for n, each in enumerate(self.prefixes, 1)}

    def __bool__(self) -> bool:
        return bool(self.prefixes)

    def number(self, example: Tokens | Encoded) -> int:
        """The number of the example's prefix; 0 where it is not shared, or nothing follows it."""
        if isinstance(example, Encoded) or not len(example.text):
            return 0
        return self._numbers.get(example.prefix.tobytes(), 0)

    def laid(self, rows: int, length: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All prefixes over `rows` rows of as many places: tokens, positions, numbers.

        `length`: of what follows them in each row. Meshes divide the tokens of a row where their
        number lets them, so long rows get a few places more rather than an odd number.
        """
        width = -(-int(self.lengths.sum()) // rows)
        multiple = 1 << int(max(1, min(_DIVISIBLE, (length or width) // 64))).bit_length() - 1
        width = -(-width // multiple) * multiple
        positions = [np.arange(count) for count in self.lengths[1:]]
        numbers = np.repeat(np.arange(len(self.lengths)), self.lengths)

        def over_rows(values: np.ndarray) -> np.ndarray:
            filled = np.zeros(rows * width, np.int32)
            filled[: len(values)] = values
            return filled.reshape(rows, width)

        tokens = np.concatenate(self.prefixes)
        return over_rows(tokens), over_rows(np.concatenate(positions)), over_rows(numbers)

    def saved(self, seen: np.ndarray, segment_ids: np.ndarray, groups: int = 1) -> int:
        """Tokens of prefixes that a batch's examples would repeat, less those laid in each group.

        `seen`: of own tokens `[B, T]`, the number of the prefix.
        """
        before = np.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
        starts = (segment_ids != before) & (segment_ids > 0)
        return int(self.lengths[seen[starts]].sum()) - groups * int(self.lengths.sum())


NONE = SharedPrefixes()


def find(
    examples: Sequence[Tokens] | Sequence[Encoded], per_batch: float, least: int = 16
) -> SharedPrefixes:
    """The prefixes that two or more examples of a batch are expected to share.

    `per_batch`: examples whose rows are computed together. A prefix of one's own (examples drawn
    afresh for each text) is left where it is, and so is one of fewer than `least` tokens, which is
    cheaper to repeat. Of what an encoder reads nothing is shared: each token sees the text too.
    """
    counts: collections.Counter[bytes] = collections.Counter()
    arrays: dict[bytes, np.ndarray] = {}
    for example in examples:
        if isinstance(example, Encoded) or example.apart:
            return NONE
        if len(example.prefix) >= max(1, least):
            name = example.prefix.tobytes()
            counts[name] += 1
            arrays[name] = example.prefix
    enough = [name for name, count in counts.items() if per_batch * count / len(examples) >= 2]
    return SharedPrefixes([arrays[name] for name in enough])
