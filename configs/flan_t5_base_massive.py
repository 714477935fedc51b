r"""Flan-T5 base on MASSIVE en-US, tuned in full.

    python -m jaxclf.train --config configs/flan_t5_base_massive.py \
        --workdir runs/flan_t5_base_massive

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:task=both|intent|slots`, `:lora|qlora` (adapters alone),
`:no_tuning` (for jaxclf.prompt), `:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.flan_t5(
        argument,
        data="massive",
        model="flan_t5_base",
        checkpoint="google/flan-t5-base",
        batch_size=32,
        steps=4_000,
    )
