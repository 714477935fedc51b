"""Your own classification task from files as you have them. Override its fields, or copy it:

    python -m jaxclf.train --config configs/my_task.py --workdir runs/my_task \\
        --config.data.train=train.csv

Without `data.dev` and `data.test` a tenth each is drawn from the training file. What the columns
are and how the file is written is found out and said; docs/how-to/data.md has the options.
`python -m jaxclf.inspect train.csv` shows it first.

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:task=auto|label|slots|both`, `:lora|qlora` (adapters alone),
`:no_tuning` (for jaxclf.prompt), `:smoke` (four steps of a tiny model).
"""

from jaxclf.config import defaults


def get_config(argument: str = ""):
    chosen = defaults.parse(argument, ("auto", "label", "slots", "both"))
    config = defaults.default()
    config.data.name = "file"
    config.data.task = chosen.task
    config.data.train = "train.csv"
    config.data.dev_fraction = 0.1
    config.data.test_fraction = 0.1
    config.prompt.shots = chosen.shots
    # With a released model: checkpoint = "meta-llama/Meta-Llama-3-8B", name = "llama3_8b",
    # learning_rate = 1e-6 and the listing template.
    config.prompt.template = "plain"
    config.train.batch_size = 32
    config.train.schedule = "cosine"
    return defaults.finish(config, chosen, learning_rate=1e-3)
