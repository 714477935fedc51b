"""Convert a LoRA adapter of the peft library into an adapter directory of ours.

The same command as `python -m jaxclf.convert.from_peft`, which says how to use it.
"""

from jaxclf.convert.from_peft import main
from jaxclf.core import errors

if __name__ == "__main__":
    errors.run(main)
