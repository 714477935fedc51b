"""AttEns (Beiranvand et al. 2025) on DistilBERT: adapters of nine GLUE tasks, combined.

    python -m jaxclf.train --config configs/attens_distilbert.py --workdir runs/attens_distilbert

Variants, after the file's name and separated by commas: `:task=rte` (default) or another GLUE
task, `stsb`, `imdb`, `ag_news`, `trec`; `:k=3|5|7|9|sweep` modules; `:smoke`. Several targets in
one run: `--config.attens.targets="('glue/rte','glue/mrpc')"`.
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    config, chosen = families.attens(
        argument, model="distilbert", checkpoint="distilbert/distilbert-base-uncased"
    )
    return families.finish_attens(config, chosen)
