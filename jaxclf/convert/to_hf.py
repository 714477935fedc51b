"""Export a run or model directory as a Hugging Face checkpoint.

jaxclf convert to-hf runs/quickstart exported
"""

from pathlib import Path

from jaxclf.core import command, errors


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("convert to-hf", __doc__)
    parser.add_argument("source", metavar="SRC", help="run, step or model directory")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to write")
    parser.add_argument("--step", default="best", help="of a run: best (default), last or a number")
    parser.add_argument("--task", help="which head goes along, where there are several")
    parser.add_argument(
        "--card", type=Path, help="text of README.md; default: made from the run's report"
    )
    parser.add_argument(
        "--merge", action="store_true", help="of a run of adapters: them and their base as one"
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32", "keep"],
        default="keep",
        help="of merged parameters (default: the base's)",
    )
    parser.add_argument(
        "--check",
        type=int,
        default=256,
        metavar="N",
        help="with --merge: label N records of the run's evaluation split before and after, and "
        "count the labels that change (default: 256; 0: none)",
    )
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest file (default: 5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    options = parser.parse_args(arguments)

    # Only now what takes seconds to import.
    import jax

    from jaxclf.checkpoint.steps import read_step
    from jaxclf.convert import hf_export

    jax.config.update("jax_platforms", "cpu")  # nothing here is worth a device
    step = read_step(options.step)
    changes: list[str] = []
    if options.merge and options.check:
        changes = hf_export.check_merged(options.source, step, options.dtype, options.check)
        for line in changes:
            print(line)
    hf_export.export(
        options.source,
        options.destination,
        step=step,
        task=options.task,
        card=options.card.read_text("utf-8")
        if options.card
        else lambda source: hf_export.run_card(source, changes),
        merge=options.merge,
        dtype=options.dtype,
        max_shard_bytes=int(options.shard_gb * 10**9),
        overwrite=options.overwrite,
    )
    print(f"wrote {options.destination}")


if __name__ == "__main__":
    errors.run(main)
