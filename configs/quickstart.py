"""A small Llama learns two tasks at once from the built-in utterances, in minutes on a laptop.

    python -m jaxclf.train --config configs/quickstart.py --workdir runs/quickstart

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:no_tuning` (for jaxclf.prompt), `:smoke` (four steps of a tiny model).
"""

from jaxclf.config import defaults


def get_config(argument: str = ""):
    chosen = defaults.parse(argument, ("both", "intent", "slots"), shots=False, adapters=False)
    config = defaults.default()
    config.data.task = chosen.task
    # A model that starts from nothing cannot use instructions or a list of labels.
    config.prompt.template = "plain"
    config.tokenizer.vocab_size = 1024
    config.model.gradient_checkpointing = False  # its activations are small
    config.train.steps = 300
    config.train.pack = True
    # Rows as short as they can be: attention within a row grows with its square.
    config.train.max_length = 128
    config.train.batch_size = 16
    config.train.learning_rate = 3e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 30
    config.train.weight_decay = 0.1
    config.train.adam_beta2 = 0.98
    config.train.save_steps = 150
    config.eval.batch_size = 64
    return defaults.finish(config, chosen)
