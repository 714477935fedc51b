"""A decoder of under 10 M parameters learns MASSIVE from scratch, in half an hour on a laptop.

    python -m jaxclf.train --config configs/tiny_llama_massive.py --workdir runs/tiny_llama_massive

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:smoke` (four steps of a tiny model).
"""

from configs import common


def get_config(argument: str = ""):
    chosen = common.parse(argument, ("both", "intent", "slots"), shots=False)
    config = common.default()
    config.data.name = "massive"
    config.data.task = chosen.task
    # A model that starts from nothing cannot use instructions or a list of labels.
    config.prompt.template = "plain"
    config.tokenizer.vocab_size = 4096
    config.model.name = "llama_10m"
    config.train.steps = 4_000
    config.train.batch_size = 32
    config.train.max_length = 256
    config.train.schedule = "cosine"
    config.train.warmup_steps = 200
    config.train.eval_every = 1_000
    if chosen.smoke:
        common.smoke(config)
    return config
