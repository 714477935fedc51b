"""The prompts of a run: one for all texts, or one with examples of its own for each."""

from ml_collections import ConfigDict

from jaxclf.data.datasets import Dataset
from jaxclf.data.tasks import Record
from jaxclf.prompts import builder, few_shot
from jaxclf.prompts.builder import Prompt, PromptSource


def prompt_source(
    config: ConfigDict, dataset: Dataset, draw: int = 0, order: int = 0
) -> tuple[Prompt, PromptSource]:
    """The run's fixed prompt, and what training and evaluation use: it, or one for each text.

    `draw`, `order`: of the examples, see `few_shot.chooser`.
    """
    fields = config.prompt
    choose = few_shot.chooser(
        fields, dataset.splits["train"], dataset.tasks, config.seed, draw, order
    )

    def build(index: int | None = None, record: Record | None = None) -> Prompt:
        return builder.build(fields, dataset.domain, dataset.tasks, choose(index, record))

    fixed = build()
    of_its_own = fields.fresh_shots or fields.get("choose") == "similar"
    return fixed, build if fields.shots and of_its_own else fixed
