"""Llama 2 7B on MASSIVE en-US, tuned in full as in Zhao et al. 2025.

    python -m jaxclf.train --config configs/llama2_7b_massive.py --workdir runs/llama2_7b_massive

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:task=both|intent|slots`, `:lora|qlora` (adapters alone),
`:lean` (in full, in less memory), `:no_tuning` (for jaxclf.prompt), `:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025(
        argument,
        data="massive",
        model="llama2_7b",
        checkpoint="meta-llama/Llama-2-7b-hf",
        wrapper="llama2",
        steps=4_000,
    )
