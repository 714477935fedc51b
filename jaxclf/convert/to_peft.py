"""Export the adapters of a run, or an adapter directory, for the peft library.

jaxclf convert to-peft runs/adapters exported
"""

from pathlib import Path

from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("convert to-peft", __doc__)
    parser.add_argument("source", metavar="SRC", help="run, step or adapter directory")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to write")
    parser.add_argument("--step", default="best", help="of a run: best (default), last or a number")
    parser.add_argument("--task", help="which head goes along, where there are several")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    options = parser.parse_args(arguments)

    # Only now what takes seconds to import.
    import jax

    from jaxclf.checkpoint.steps import read_step
    from jaxclf.convert import peft_export

    jax.config.update("jax_platforms", "cpu")  # nothing here computes
    peft_export.export(
        options.source,
        options.destination,
        step=read_step(options.step),
        task=options.task,
        overwrite=options.overwrite,
    )
    print(f"wrote {options.destination}")


if __name__ == "__main__":
    errors.run(main)
