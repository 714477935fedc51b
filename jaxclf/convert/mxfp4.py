"""Kernels of experts in MXFP4, as gpt-oss is released: read as the numbers that they stand for.

Beside NAME_blocks `[E F D/32 16]`, two numbers of 4 bits a byte (the low half first), stands
NAME_scales `[E F D/32]`, the exponent of 32 numbers. They stand for NAME `[E D F]`. Source: the OCP
Microscaling Formats specification 1.0 (2023), sections 5.2 and 5.3.1.
"""

import ml_dtypes
import numpy as np

from jaxclf.core.errors import ArtifactError

BLOCKS, SCALES = "_blocks", "_scales"
DTYPE = "bfloat16"  # which has all of these numbers
_PER_BYTE, _PER_BLOCK = 2, 32

# Twice what 4 bits stand for, so that the largest scale is half of 2^128 and a float32.
_TWICE = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
_TWICE = np.array([*_TWICE, *(-value for value in _TWICE)], np.float32)
_PAIRS = np.stack([_TWICE[np.arange(256) & 15], _TWICE[np.arange(256) >> 4]], axis=-1)
_HALF_SCALES = np.ldexp(np.float32(1), np.arange(256) - 128)


def shape(
    name: str, blocks: tuple[int, ...], scales: tuple[int, ...], source: object
) -> tuple[int, int, int]:
    """The shape that these stand for; raises ArtifactError where they do not fit."""
    if len(blocks) != 4 or blocks[:-1] != scales or blocks[-1] * _PER_BYTE != _PER_BLOCK:
        raise ArtifactError(
            f"{source}: {name}{BLOCKS} {blocks} and {name}{SCALES} {scales} are no MXFP4: expected "
            f"[E F D/{_PER_BLOCK} {_PER_BLOCK // _PER_BYTE}] and [E F D/{_PER_BLOCK}]"
        )
    experts, columns, groups, _ = blocks
    return experts, groups * _PER_BLOCK, columns


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """`[E D F]` in bfloat16, exactly; one expert at a time is held in more bits.

    A scale of 255, no number by the specification, is 2^128 as in transformers.
    """
    experts, columns, groups, _ = blocks.shape
    found = np.empty((experts, groups * _PER_BLOCK, columns), ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):  # what float32 has no number for is infinite
        for expert in range(experts):
            values = _PAIRS[blocks[expert]].reshape(columns, groups, _PER_BLOCK)
            values = values * _HALF_SCALES[scales[expert]][..., None]
            found[expert] = values.reshape(columns, -1).T
    return found
