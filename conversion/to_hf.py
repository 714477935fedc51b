"""Export a run or model directory of ours as a Hugging Face checkpoint.

The same command as `python -m jaxclf.convert.to_hf`, which says how to use it.
"""

from jaxclf.convert.to_hf import main
from jaxclf.core import errors

if __name__ == "__main__":
    errors.run(main)
