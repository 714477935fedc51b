"""Convert a LoRA adapter of the peft library into an adapter directory.

jaxclf convert from-peft their/adapter models/adapter

SRC holds adapter_config.json and adapter_model.safetensors. BASE is the model it was trained on: a
Hugging Face directory or hub id, package:NAME/FOLDER, or a run or model directory of jaxclf.
"""

from pathlib import Path

from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("convert from-peft", __doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="adapter directory of peft")
    parser.add_argument("destination", metavar="DST", type=Path, help="adapter directory to write")
    parser.add_argument("--base", help="default: the one that adapter_config.json names")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    options = parser.parse_args(arguments)

    # Only now what takes seconds to import.
    import jax

    from jaxclf.convert import peft_import

    jax.config.update("jax_platforms", "cpu")  # nothing here computes
    peft_import.convert(
        options.source, options.destination, options.base, overwrite=options.overwrite
    )
    print(f"wrote {options.destination}")


if __name__ == "__main__":
    errors.run(main)
