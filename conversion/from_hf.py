"""Convert a Hugging Face checkpoint into a model directory of ours.

The same command as `python -m jaxclf.convert.from_hf`, which says how to use it.
"""

from jaxclf.convert.from_hf import main
from jaxclf.core import errors

if __name__ == "__main__":
    errors.run(main)
