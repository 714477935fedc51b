"""Convert a Hugging Face checkpoint into a model directory.

jaxclf convert from-hf meta-llama/Llama-3.2-1B models/llama-1b

SRC: a directory with config.json and safetensors, a hub id (OWNER/NAME), or package:NAME/FOLDER, a
directory of an installed Python package.
"""

from pathlib import Path

from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("convert from-hf", __doc__)
    parser.add_argument("source", metavar="SRC", help="Hugging Face directory or hub id")
    parser.add_argument("destination", metavar="DST", type=Path, help="model directory to write")
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "keep"], default="keep")
    parser.add_argument(
        "--quantise",
        choices=["none", "int8", "int4", "nf4"],
        default="none",
        help="of the kernels, for a frozen base (model.quantize)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    options = parser.parse_args(arguments)

    # Only now what takes seconds to import.
    import jax

    from jaxclf.convert import hf_import

    jax.config.update("jax_platforms", "cpu")  # nothing here computes
    hf_import.convert(
        hf_import.locate(options.source),
        options.destination,
        options.dtype,
        options.quantise,
        overwrite=options.overwrite,
    )
    print(f"wrote {options.destination}")


if __name__ == "__main__":
    errors.run(main)
