"""A small Llama learns two tasks at once from the built-in utterances, in minutes on a laptop.

    python -m jaxclf.train --config configs/quickstart.py --workdir runs/quickstart

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:smoke` (four steps of a tiny model).
"""

from configs import common


def get_config(argument: str = ""):
    chosen = common.parse(argument, ("both", "intent", "slots"), shots=False)
    config = common.default()
    config.data.task = chosen.task
    # A model that starts from nothing cannot use instructions or a list of labels.
    config.prompt.template = "plain"
    config.train.batch_size = 32
    config.train.max_length = 256
    config.train.schedule = "cosine"
    config.train.warmup_steps = 50
    if chosen.smoke:
        common.smoke(config)
    return config
