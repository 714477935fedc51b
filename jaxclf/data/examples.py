"""An example as token ids: what a prompt and its answer become."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True)
class Tokens:
    """One example as int32 ids; the model reads prefix + text + label.

    `prefix` is the prompt before the text, bos included, the same array object for all examples
    of a fixed prompt. `text` is the text and the prompt after it. `label` is the answer and eos,
    empty without gold. `cut`: tokens cut from the end of the text. `apart`: an encoder reads prefix
    and text, a decoder of its own the label.
    """

    id: str
    prefix: Int32[np.ndarray, " prefix"]
    text: Int32[np.ndarray, " text"]
    label: Int32[np.ndarray, " label"]
    cut: int
    apart: bool = False
