"""Evaluate prompts to a model that is not tuned.

jaxclf prompt --config configs/llama3_8b_20ng.py:no_tuning,five_shot --workdir runs/p

Several sets of examples, orders and styles of the prompt are compared in one run:
--config.prompt.seeds=3 --config.prompt.orders=2 --config.prompt.styles="('listing','labels')".
With --config.api.model=NAME a server is asked (config.api), and a stopped run goes on where it was.
"""

from pathlib import Path

from jaxclf.config import loading
from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("prompt", __doc__)
    loading.add_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say how many requests a server (config.api) would get, and about what they cost",
    )
    options = loading.parse(parser, arguments)
    config = loading.load(options.config, options.overrides)
    if options.dry_run and not config.api.model:
        raise errors.InputError("--dry-run is for a server's model, but api.model is empty")

    # Only now what takes seconds to import: a typo is told at once.
    from jaxclf.convert import hf_import
    from jaxclf.core import compiler
    from jaxclf.runs import prompting

    compiler.configure()
    opened = prompting.served if config.api.model else prompting.decoder(hf_import.resolve)
    prompting.run(config, Path(options.workdir), opened, options.dry_run)


if __name__ == "__main__":
    errors.run(main)
