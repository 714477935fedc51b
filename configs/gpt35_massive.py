"""GPT-3.5 on MASSIVE, prompted as in Zhao et al. 2025.

    python -m jaxclf.prompt --config configs/gpt35_massive.py --workdir runs/gpt35_massive --dry-run

Without `--dry-run` it asks, with the key in the environment variable OPENAI_API_KEY. Variants,
after the file's name and separated by commas (the first is the default): `:zero_shot|five_shot`,
`:task=both|intent|slots`, `:smoke` (24 texts a split).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025_chat(argument, data="massive", model="gpt-3.5-turbo")
