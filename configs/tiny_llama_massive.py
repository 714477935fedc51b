"""A decoder of 2.9 M parameters learns MASSIVE from scratch, in a quarter of an hour on a laptop.

    python -m jaxclf.train --config configs/tiny_llama_massive.py --workdir runs/tiny_llama_massive

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:no_tuning` (for jaxclf.prompt), `:smoke` (four steps of a tiny model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.tiny_llama(argument, data="massive", steps=3_200)
