"""Evaluate prompts to a model that is not tuned.

python -m jaxclf.prompt --config configs/llama3_8b_20ng.py:no_tuning,five_shot --workdir runs/p

Several sets of examples, orders and styles of the prompt are compared in one run:
--config.prompt.seeds=3 --config.prompt.orders=2 --config.prompt.styles="('listing','labels')".
"""

import argparse
from pathlib import Path

from jaxclf import config as configs
from jaxclf import errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m jaxclf.prompt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configs.add_arguments(parser)
    options = configs.parse(parser, arguments)
    config = configs.load(options.config, options.overrides)

    # Only now what takes seconds to import: a typo is told at once.
    from conversion import from_hf
    from jaxclf import cache, prompting

    cache.keep_programs()
    prompting.run(config, Path(options.workdir), prompting.decoder(from_hf.resolve))


if __name__ == "__main__":
    errors.run(main)
