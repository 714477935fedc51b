"""AttEns (Beiranvand et al. 2025) on ELECTRA-base: adapters of nine GLUE tasks, combined.

    python -m jaxclf.train --config configs/attens_electra_base.py \\
        --workdir runs/attens_electra_base

Variants, after the file's name and separated by commas: `:task=rte` (default) or another GLUE
task, `stsb`, `imdb`, `ag_news`, `trec`; `:k=3|5|7|9|sweep` modules; `:smoke`. Several targets in
one run: `--config.attens.targets="('glue/rte','glue/mrpc')"`.
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    config, chosen = families.attens(
        argument, model="electra_base", checkpoint="google/electra-base-discriminator"
    )
    return families.finish_attens(config, chosen)
