"""A decoder of 2.9 M parameters learns MASSIVE from scratch, in half an hour on a laptop.

    python -m jaxclf.train --config configs/tiny_llama_massive.py --workdir runs/tiny_llama_massive

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:no_tuning` (for jaxclf.prompt), `:smoke` (four steps of a tiny model).
"""

from configs import common


def get_config(argument: str = ""):
    chosen = common.parse(argument, ("both", "intent", "slots"), shots=False, adapters=False)
    config = common.default()
    config.data.name = "massive"
    config.data.task = chosen.task
    # A model that starts from nothing cannot use instructions or a list of labels.
    config.prompt.template = "plain"
    config.tokenizer.vocab_size = 6144  # every word that occurs twice is one token
    config.model.name = "llama_2m"
    config.model.remat = False  # its activations are small
    config.model.dropout = 0.1
    config.train.steps = 3_200
    config.train.pack = True
    # Rows as short as they can be: attention within a row grows with its square.
    config.train.max_length = 128
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.weight_decay = 0.1
    config.train.b2 = 0.98
    config.train.eval_every = 800
    config.train.checkpoint_every = 800
    config.eval.batch_size = 64
    config.eval.limit = 500
    return common.finish(config, chosen)
