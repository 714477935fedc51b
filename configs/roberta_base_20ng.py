"""RoBERTa-base with heads on 20 Newsgroups, the baseline of Zhao et al. 2025.

    python -m jaxclf.train --config configs/roberta_base_20ng.py --workdir runs/roberta_base_20ng

Variants, after the file's name and separated by commas (the first is the default):
`:task=20class|7class|both`, `:lora|qlora` (adapters alone),
`:smoke` (four steps of a tiny model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025_roberta(
        argument, data="20ng", model="roberta_base", checkpoint="FacebookAI/roberta-base"
    )
