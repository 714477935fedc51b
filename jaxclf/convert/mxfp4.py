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

_POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
_VALUES = np.array([*_POSITIVE, *(-value for value in _POSITIVE)], np.float32)
# What each byte stands for.
_PAIRS = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=-1)
with np.errstate(over="ignore"):
    _POWERS = np.ldexp(np.float32(1), np.arange(256) - 127)  # the last is no number: inf


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
    """`[E D F]` in bfloat16, exactly; one expert at a time is held in more bits."""
    experts, columns, groups, _ = blocks.shape
    found = np.empty((experts, groups * _PER_BLOCK, columns), ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):  # 0 times a scale that is no number
        for expert in range(experts):
            values = _PAIRS[blocks[expert]].reshape(columns, groups, _PER_BLOCK)
            values = values * _POWERS[scales[expert]][..., None]
            found[expert] = values.reshape(columns, -1).T
    return found
