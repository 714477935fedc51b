"""A decoder of 2.9 M parameters learns 20 Newsgroups from scratch, on a laptop.

    python -m jaxclf.train --config configs/tiny_llama_20ng.py --workdir runs/tiny_llama_20ng

It reads the first 128 tokens of a post and its prompt. Without any pretraining it shows what a run
does, not what a tuned Llama reaches.

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|7class|20class`, `:no_tuning` (for jaxclf.prompt), `:smoke` (four steps).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.tiny_llama(argument, data="20ng", steps=3_600, dev_fraction=0.05)
