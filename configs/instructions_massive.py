"""What an instruction is worth to a tuned model: Llama 3 8B on MASSIVE, prompted with and without.

    python -m jaxclf.train --config configs/instructions_massive.py \\
        --workdir runs/instructions_massive
    python -m jaxclf.train --config configs/instructions_massive.py:without --workdir runs/without
    python -m jaxclf.compare runs/without runs/instructions_massive

Model, data and training are the same; `with` prompts say what to do and list the labels (as in
Zhao et al. 2025), `without` ones hold the text and the answer's cue alone, in training and after.
With few labels, where it should matter most: `--config.data.train_examples=200`, or jaxclf.curve.

Variants, after the file's name and separated by commas (the first is the default):
`:with|without`, `:zero_shot|five_shot`, `:task=both|intent|slots`, `:lora|qlora` (adapters alone),
`:smoke` (a tiny random model).
"""

from jaxclf.config import families


def get_config(argument: str = ""):
    return families.zhao2025(
        argument,
        data="massive",
        model="llama3_8b",
        checkpoint="meta-llama/Meta-Llama-3-8B",
        wrapper="llama3",
        steps=4_000,
        instructions=True,
    )
