r"""RoBERTa-base with heads on MASSIVE, the baseline of Zhao et al. 2025.

    python -m jaxclf.train --config configs/roberta_base_massive.py \
        --workdir runs/roberta_base_massive

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:lora|qlora` (adapters alone),
`:smoke` (four steps of a tiny model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025_roberta(
        argument, data="massive", model="roberta_base", checkpoint="FacebookAI/roberta-base"
    )
