r"""Flan-T5 XXL on 20 Newsgroups, tuned in full.

    python -m jaxclf.train --config configs/flan_t5_xxl_20ng.py \
        --workdir runs/flan_t5_xxl_20ng

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:task=both|7class|20class`, `:lora|qlora` (adapters alone),
`:no_tuning` (for jaxclf.prompt), `:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.flan_t5(
        argument,
        data="20ng",
        model="flan_t5_xxl",
        checkpoint="google/flan-t5-xxl",
        batch_size=8,
        steps=4_000,
    )
