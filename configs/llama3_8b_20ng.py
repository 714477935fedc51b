"""Llama 3 8B on 20 Newsgroups, tuned in full as in Zhao et al. 2025.

    python -m jaxclf.train --config configs/llama3_8b_20ng.py --workdir runs/llama3_8b_20ng

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:task=both|7class|20class`, `:lora|qlora` (adapters alone),
`:lean` (in full, in less memory), `:no_tuning` (for jaxclf.prompt), `:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025(
        argument,
        data="20ng",
        model="llama3_8b",
        checkpoint="meta-llama/Meta-Llama-3-8B",
        wrapper="llama3",
        steps=4_000,
    )
