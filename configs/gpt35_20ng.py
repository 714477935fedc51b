"""GPT-3.5 on 20 Newsgroups, prompted as in Zhao et al. 2025.

    python -m jaxclf.prompt --config configs/gpt35_20ng.py --workdir runs/gpt35_20ng --dry-run

Without `--dry-run` it asks, with the key in the environment variable OPENAI_API_KEY. Variants,
after the file's name and separated by commas (the first is the default): `:zero_shot|five_shot`,
`:task=both|7class|20class`, `:smoke` (24 texts a split).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025_chat(
        argument,
        data="20ng",
        model="gpt-3.5-turbo",
        # Its window is 16,385 tokens, and of encoded files one has less than two characters.
        max_characters=20_000,
    )
