"""GPT-4o on 20 Newsgroups, prompted as in Zhao et al. 2025.

    python -m jaxclf.prompt --config configs/gpt4o_20ng.py --workdir runs/gpt4o_20ng --dry-run

Without `--dry-run` it asks, with the key in the environment variable OPENAI_API_KEY. Variants,
after the file's name and separated by commas (the first is the default): `:zero_shot|five_shot`,
`:task=both|7class|20class`, `:smoke` (24 texts a split).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025_chat(argument, data="20ng", model="gpt-4o")
