"""Llama 3 8B on MASSIVE en-US, tuned in full as in Zhao et al. 2025.

    python -m jaxclf.train --config configs/llama3_8b_massive.py --workdir runs/llama3_8b_massive

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:task=both|intent|slots`, `:lora|qlora` (adapters alone),
`:lean` (in full, in less memory), `:no_tuning` (for jaxclf.prompt), `:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025(
        argument,
        data="massive",
        model="llama3_8b",
        checkpoint="meta-llama/Meta-Llama-3-8B",
        wrapper="llama3",
        steps=4_000,
    )
