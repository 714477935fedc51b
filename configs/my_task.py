"""Your own classification task from jsonl, csv or parquet. Copy this file, or override its fields:

    python -m jaxclf.train --config configs/my_task.py --workdir runs/my_task \\
        --config.data.train=train.csv --config.data.dev=dev.csv --config.data.test=test.csv

One record a line or row, with its text and its label in a column each:

    {"text": "the parcel came two weeks late", "label": "delivery"}

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:task=label|slots|both`, `:lora|qlora` (adapters alone),
`:no_tuning` (for jaxclf.prompt), `:smoke` (four steps of a tiny model).
"""

from jaxclf.config import defaults


def get_config(argument: str = ""):
    chosen = defaults.parse(argument, ("label", "slots", "both"))
    config = defaults.default()
    config.data.name = "file"
    config.data.task = chosen.task
    config.data.train = "train.jsonl"
    config.data.dev = "dev.jsonl"
    config.data.test = "test.jsonl"
    config.data.text = "text"
    config.data.label = "label"
    # A list with one BIO tag per word, such as ["O", "B-time", "I-time"].
    config.data.slots = "" if chosen.task == "label" else "slots"
    config.prompt.shots = chosen.shots
    # With a released model: checkpoint = "meta-llama/Meta-Llama-3-8B", name = "llama3_8b",
    # learning_rate = 1e-6 and the listing template.
    config.prompt.template = "plain"
    config.train.batch_size = 32
    config.train.schedule = "cosine"
    return defaults.finish(config, chosen, learning_rate=1e-3)
