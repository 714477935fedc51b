r"""RoBERTa-large with heads on MASSIVE, the baseline of Zhao et al. 2025.

    python -m jaxclf.train --config configs/roberta_large_massive.py \
        --workdir runs/roberta_large_massive

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:lora|qlora` (adapters alone),
`:smoke` (four steps of a tiny model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025_roberta(
        argument, data="massive", model="roberta_large", checkpoint="FacebookAI/roberta-large"
    )
