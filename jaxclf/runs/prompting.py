"""What a model answers without training: one or more prompts, each to the same texts, and a report.

    variants(config)   →  style labels, examples 0, order 0
                          style labels, examples 0, order 1 …

The first variant's predictions and figures stand where those of a tuned run stand; `spread` in
report.json has those of all, since the answers of a model that is not tuned depend on how it is
asked as much as on what.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxclf import report
from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.model_dir import FindModel
from jaxclf.classifiers import transfer
from jaxclf.classifiers.base import Classifier
from jaxclf.classifiers.opening import make_classifier
from jaxclf.core import locks, logs, streams
from jaxclf.core.errors import InputError
from jaxclf.data import datasets
from jaxclf.data.datasets import Dataset
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.metrics import metrics
from jaxclf.prompts.builder import Prompt
from jaxclf.prompts.source import prompt_source
from jaxclf.remote.chat import Account, ChatClassifier
from jaxclf.runs import claims, facts
from jaxclf.runs.setup import prepare, recipe_of


@dataclass(frozen=True)
class PromptedModel:
    """A model that can be asked about a data set.

    classifier: makes, for a config that names one style and the fixed prompt of it, what answers
    prompts of that style. model: the report's part of that name. account: what a server is asked,
    where one answers. checkpoint: the fingerprint of the parameters, where they are ours. claim:
    makes a folder that of the run of a config. tokenizer: of a model of ours.
    """

    dataset: Dataset
    classifier: Callable[[ConfigDict, Prompt], Classifier]
    model: Mapping[str, Any] = field(default_factory=dict)
    account: Account | None = None
    checkpoint: str = ""
    claim: Callable[[Path, ConfigDict], None] = lambda workdir, config: None
    tokenizer: Tokenizer | None = None


Open = Callable[[ConfigDict, Path], PromptedModel]


@dataclass(frozen=True)
class Variant:
    """One way of asking: the template, the number of the set of examples, that of their order."""

    style: str
    draw: int = 0
    order: int = 0

    def __str__(self) -> str:
        return f"{self.style}, examples {self.draw}, order {self.order}"


def variants(config: ConfigDict) -> list[Variant]:
    """All ways of asking that the config compares, one style after the other."""
    prompt = config.prompt
    style = "file" if prompt.file else prompt.template
    ways = itertools.product(prompt.styles or (style,), range(prompt.seeds), range(prompt.orders))
    return [Variant(*way) for way in ways]


def decoder(find: FindModel) -> Open:
    """Opens the decoder that a config names; `find(checkpoint, quantise)` gives its checkpoint."""

    def opened(config: ConfigDict, workdir: Path) -> PromptedModel:
        base = None
        if config.model.checkpoint:
            base = find(config.model.checkpoint, config.model.quantize)
        setup = prepare(config, workdir, base)
        plan = transfer.plan(setup.model, base, config.model.heads, setup.recipe)
        start = streams.key(config.seed, streams.INITIALIZATION)
        params = transfer.load(setup.model, base, plan, start)

        def classifier(styled: ConfigDict, prompt: Prompt) -> Classifier:
            recipe = recipe_of(styled, setup.dataset, prompt, setup.tokenizer)
            made = make_classifier(setup.model, setup.tokenizer, recipe, styled)
            return made.with_params(params)

        manifest = tree_store.describe(params) if base is None else base.manifest
        return PromptedModel(
            setup.dataset,
            classifier,
            facts.model_facts(config, setup, plan, 0),
            checkpoint=tree_store.fingerprint(manifest),
            claim=partial(claims.claim_for, setup=setup),
            tokenizer=setup.tokenizer,
        )

    return opened


def served(config: ConfigDict, workdir: Path) -> PromptedModel:
    """Opens the model that `config.api` names; its server is asked nothing yet."""
    dataset, account = datasets.load(config.data, config.seed), Account(config.api, workdir)

    def classifier(styled: ConfigDict, prompt: Prompt) -> Classifier:
        return ChatClassifier(recipe_of(styled, dataset, prompt, None), account)

    def claim(workdir: Path, unstyled: ConfigDict) -> None:
        account.endpoint.key()
        recipe = recipe_of(config, dataset, prompt_source(config, dataset)[0], None)
        claims.claim(workdir, unstyled, dataset.fingerprints, recipe)

    model = {"name": config.api.model, "family": "server"}
    return PromptedModel(dataset, classifier, model=model, account=account, claim=claim)


@locks.holds_folder("workdir")
def run(
    config: ConfigDict, workdir: Path, open_model: Open, dry_run: bool = False
) -> dict[str, Any]:
    """Ask every variant of the prompt about `eval.split` and write the report into `workdir`.

    `dry_run`: only print what a server would be asked, and return nothing.
    Raises InputError for a config that trains, a split that is not there, or a workdir of another
    run; besides, what `open_model` raises.
    """
    if config.tune != "none":
        raise InputError(
            f"tune is {config.tune!r}; a prompted model is not tuned. Use the variant no_tuning "
            "(NAME.py:no_tuning), or python -m jaxclf.train"
        )
    with sharding.use(config.mesh):
        claims.check(workdir, config)
        ways = variants(config)
        asked = open_model(_styled(config, ways[0].style), workdir)
        tasks = asked.dataset.tasks
        split = config.eval.split  # no other one: answers may cost money
        records = asked.dataset.splits.get(split, [])
        if not records:
            raise InputError(
                f"data set {asked.dataset.name} has no split {split!r}; it has "
                f"{', '.join(asked.dataset.splits)}"
            )
        facts.say_data(config, asked.dataset)
        if asked.account is not None:
            _announce(config, asked, records)
        if dry_run:
            return {}
        asked.claim(workdir, config)
        answered = [
            each
            for style, ways in itertools.groupby(ways, lambda way: way.style)
            for each in _ask(_styled(config, style), asked, records, list(ways))
        ]
    first = answered[0]
    train = {"steps": 0} | ({} if asked.account else {"device": facts.device()})
    data = facts.data_facts(asked.dataset, split=split, predictions=first.predictions)
    result = facts.describe(config, data, asked.model, train)
    result |= facts.scores(config, first.recipe, first.predictions, split)
    result |= {**first.facts, **facts.cost(first.seconds, len(records))}
    others = [
        metrics.compute(each.predictions, tasks, config.prompt.slots) for each in answered[1:]
    ]
    result["spread"] = spread([result["eval"], *others])
    result["variants"] = [asdict(each.variant) | {"seconds": each.seconds} for each in answered]
    if asked.account is not None:
        result["api"] = asked.account.facts()
    facts.publish(workdir, result, first.predictions, tasks, checkpoint=asked.checkpoint)
    return result


def _announce(config: ConfigDict, asked: PromptedModel, records: Sequence[Record]) -> None:
    """Say what all variants together take, before the first is asked."""
    assert asked.account is not None
    questions = {}
    for variant in variants(config):
        styled = _styled(config, variant.style)
        drawn = variant.draw, variant.order
        fixed, prompt = prompt_source(styled, asked.dataset, asked.tokenizer, *drawn)
        classifier = asked.classifier(styled, fixed)
        assert isinstance(classifier, ChatClassifier)
        questions |= classifier.questions(records, prompt)
    asked.account.announce(questions)


@dataclass(frozen=True)
class _Answered:
    """A variant's answers, and what the report says of how they came about."""

    variant: Variant
    recipe: Recipe
    predictions: list[Prediction]
    facts: Mapping[str, Any]
    seconds: float


def _styled(config: ConfigDict, style: str) -> ConfigDict:
    """The config of this style alone."""
    styled = config.copy_and_resolve_references()
    if style != "file":
        styled.prompt.template = style
    return styled


def _ask(
    config: ConfigDict, asked: PromptedModel, records: Sequence[Record], ways: Sequence[Variant]
) -> Iterator[_Answered]:
    """The answers to variants of one style, in their order."""
    classifier = None
    for variant in ways:
        start = time.monotonic()
        drawn = variant.draw, variant.order
        fixed, prompt = prompt_source(config, asked.dataset, asked.tokenizer, *drawn)
        classifier = classifier or asked.classifier(config, fixed)
        with logs.count(f"evaluation of {variant}", len(records)) as advance:
            predictions = classifier.predict(
                records, config.eval.batch_size, prompt=prompt, progress=advance
            )
        seconds = round(time.monotonic() - start, 3)
        yield _Answered(
            variant, classifier.recipe, predictions, report.decoding(classifier.facts()), seconds
        )


def spread(
    figures: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Task → metric → mean, std (of a sample; 0 of one), min, max and the values by variant."""

    def over(values: Sequence[float]) -> dict[str, Any]:
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        mean = float(np.mean(values))
        return {"mean": mean, "std": std, "min": min(values), "max": max(values), "values": values}

    return {
        task: {name: over([each[task][name] for each in figures]) for name in values}
        for task, values in figures[0].items()
    }
