"""Numbers that are none: NaN and infinity in weights and in scores."""

import numpy as np

from jaxclf.core.errors import NonFiniteError

_STRIPE = 2**16
_EXPONENTS = {
    "float64": np.uint64(0x7FF0_0000_0000_0000),
    "float32": np.uint32(0x7F80_0000),
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
}


def count_not_finite(array: np.ndarray) -> int:
    """How many values of a contiguous array are NaN or infinite: those whose exponent is all ones.

    By the bits, in stripes that stay in the cache: a small part of what a checksum costs, while
    `np.isfinite` of bfloat16 takes as long as that. Integers are finite.
    """
    mask = _EXPONENTS.get(array.dtype.name)
    if mask is None:
        return 0
    bits = array.reshape(-1).view(mask.dtype)
    return sum(
        int(np.count_nonzero((bits[start : start + _STRIPE] & mask) == mask))
        for start in range(0, bits.size, _STRIPE)
    )


def check_scores(scores: np.ndarray, of: str) -> None:
    """Raise NonFiniteError where a score is NaN or infinite: the best of them means nothing."""
    if not np.isfinite(scores).all():
        raise not_finite(of)


def not_finite(of: str) -> NonFiniteError:
    """The error for scores `of` something that are NaN or infinite."""
    return NonFiniteError(
        f"the scores of {of} are NaN or infinite: the model overflows, and no label can be told. "
        "Compute in a wider type (--config.model.dtype=float32); if that does not help, the "
        "checkpoint is at fault"
    )
