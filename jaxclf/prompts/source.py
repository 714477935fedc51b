"""The prompts of a run: one for all texts, or one with examples of its own for each."""

from ml_collections import ConfigDict

from jaxclf.data.datasets import Dataset
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.prompts import builder, few_shot
from jaxclf.prompts.builder import Prompt, PromptSource


def prompt_source(
    config: ConfigDict,
    dataset: Dataset,
    tokenizer: Tokenizer | None = None,
    draw: int = 0,
    order: int = 0,
) -> tuple[Prompt, PromptSource]:
    """The run's fixed prompt, and what training and evaluation use: it, or one for each text.

    `tokenizer`: its chat template is what prompt.wrapper=checkpoint takes. `draw`, `order`: of the
    examples, see `few_shot.chooser`.
    """
    render = None if tokenizer is None else tokenizer.render
    fields = config.prompt
    choose = few_shot.chooser(
        fields, dataset.splits["train"], dataset.tasks, config.seed, draw, order
    )

    def build(index: int | None = None, record: Record | None = None) -> Prompt:
        shots = choose(index, record)
        return builder.build(fields, dataset.domain, dataset.tasks, shots, render)

    fixed = build()
    return fixed, build if has_own_prompts(config) else fixed


def has_own_prompts(config: ConfigDict) -> bool:
    """Whether each text has a prompt of its own: with other examples than another's."""
    fields = config.prompt
    return bool(fields.shots and (fields.fresh_shots or fields.get("choose") == "similar"))
