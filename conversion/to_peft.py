"""Export the adapters of a run, or an adapter directory of ours, for the peft library.

The same command as `python -m jaxclf.convert.to_peft`, which says how to use it.
"""

from jaxclf.convert.to_peft import main
from jaxclf.core import errors

if __name__ == "__main__":
    errors.run(main)
