"""Labels of a decoder: prompts in, answers out, labels read from the answers or chosen in them."""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxclf.classifiers.base import LocalClassifier, Progress
from jaxclf.core.finite import not_finite
from jaxclf.core.types import Params
from jaxclf.data import batching, loader, prefixes
from jaxclf.data.examples import Tokens
from jaxclf.data.predictions import Prediction
from jaxclf.data.prefixes import SharedPrefixes
from jaxclf.data.shape_budget import Budget
from jaxclf.data.tasks import Record, words
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding import decode
from jaxclf.decoding.label_decoder import Decoding, LabelAnswer, LabelDecoder, Prompts
from jaxclf.decoding.label_scores import CONTENT_FREE
from jaxclf.decoding.recipe import Recipe
from jaxclf.distributed import sharding
from jaxclf.models.registry import Model
from jaxclf.prompts.builder import Prompt, PromptSource
from jaxclf.prompts.examples import tokenize


class GenerativeClassifier(LocalClassifier):
    """Labels texts by greedy generation, free or among the labels, or by the labels' probabilities.

    Compiled programs are kept, one per prompt shape, and so is what was computed of the prefixes
    that the last prompts shared, as long as the parameters are the same; these are not kept.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        recipe: Recipe,
        decoding: Decoding | None = None,
    ):
        super().__init__(model, tokenizer, recipe)
        self.decoding = decoding or Decoding()
        self.greedy = jax.jit(decode.make_greedy(model, recipe.max_new_tokens, tokenizer.eos_id))
        self.answerer = None
        if self.decoding.mode != "free":
            self.answerer = LabelDecoder(model, tokenizer, recipe, self.decoding)
        self.unread = 0.0  # the most probability that `predict` left unread of any text
        self.compute_prefix = jax.jit(decode.make_prefix(model))
        self.budget = Budget()
        self._computed: tuple[list[weakref.ref], bytes, decode.ComputedPrefix] | None = None

    def prefix(self, params: Params, shared: SharedPrefixes) -> decode.ComputedPrefix | None:
        """The shared prefixes computed with these parameters, once for calls that follow."""
        if not shared:
            return None
        row = batching.prefix_row(shared)
        name = row.tokens.tobytes() + row.segment_ids.tobytes()
        leaves = jax.tree.leaves(params)
        if self._computed is not None:
            of, named, computed = self._computed
            known = len(of) == len(leaves) and all(
                each() is leaf for each, leaf in zip(of, leaves, strict=True)
            )
            if known and named == name:
                return computed
        computed = self.compute_prefix(params, sharding.put_batch(row))
        self._computed = [*map(weakref.ref, leaves)], name, computed
        return computed

    def tokens(self, records: Sequence[Record], prompt: PromptSource | None = None) -> list[Tokens]:
        """Prompts without answers, with room left for the longest answer."""
        recipe = self.recipe
        prompt = prompt or recipe.prompt
        assert prompt is not None, "a run of a decoder has a prompt"
        return tokenize(
            [dataclasses.replace(record, labels={}) for record in records],
            recipe.tasks,
            prompt,
            self.tokenizer,
            recipe.slot_format,
            recipe.max_length,
            reserve=recipe.max_new_tokens,
            apart=self.model.reads_apart,
        )

    def prompts(
        self, params: Params, examples: Sequence[Tokens], batch_size: int
    ) -> Iterator[Prompts]:
        """Batches of prompts, each example once, likest lengths together; see `Prompts`."""
        batch_size = sharding.divisible(batch_size)
        shared = prefixes.find(examples, min(batch_size, len(examples)))
        prefix = self.prefix(params, shared)
        for indices, prompt in loader.prompt_batches(examples, batch_size, shared):
            yield indices, sharding.put_batch(self.budget.fit(prompt)), prefix

    def outputs(
        self, params: Params, examples: Sequence[Tokens], batch_size: int
    ) -> Iterator[list[tuple[int, str, bool]]]:
        """Batches of (index, generated text, ended), each index once.

        `ended` is False where the limit of new tokens cut the output. Raises NonFiniteError where
        the model's scores are NaN or infinite.
        """
        eos_id = self.tokenizer.eos_id
        for indices, prompt, prefix in self.prompts(params, examples, batch_size):
            generated = np.asarray(self.greedy(params, prompt, prefix))
            rows = []
            for index, ids in zip(indices, generated, strict=False):
                if (ids < 0).any():
                    raise not_finite(f"record {examples[index].id!r}")
                ended = eos_id in ids
                ids = ids[: int(np.argmax(ids == eos_id))] if ended else ids
                rows.append((index, self.tokenizer.decode(ids.tolist()), ended))
            yield rows

    def _labelled(
        self,
        records: Sequence[Record],
        batch_size: int,
        prompt: PromptSource | None,
        progress: Progress,
    ) -> dict[int, Prediction]:
        examples = self.tokens(records, prompt)
        predictions: dict[int, Prediction] = {}
        self.unread = 0.0
        if self.answerer is None:
            for rows in self.outputs(self.params, examples, batch_size):
                for index, text, _ in rows:
                    read = self.recipe.read(records[index], text)
                    predictions[index] = dataclasses.replace(read, cut=examples[index].cut)
                progress(len(rows))
        else:
            counts = [len(words(record.text)) for record in records]
            free = self.content_free(prompt)
            batches = self.prompts(self.params, self.answerer.followed(examples), batch_size)
            for found in self.answerer.answers(self.params, batches, counts, free):
                for answer in found:
                    chosen = self.chosen(records[answer.index], answer)
                    cut = examples[answer.index].cut
                    predictions[answer.index] = dataclasses.replace(chosen, cut=cut)
                progress(len(found))
        return predictions

    def content_free(self, prompt: PromptSource | None = None) -> Tokens | None:
        """The prompt without a text that probabilities are divided by, if they are.

        It is the recipe's where each text has a prompt of its own.
        """
        text = CONTENT_FREE.get(self.decoding.normalise)
        fixed = prompt if isinstance(prompt, Prompt) else self.recipe.prompt
        return None if text is None else self.tokens([Record("", text, {})], fixed)[0]

    def facts(self) -> dict[str, Any]:
        """How labels came out, for the report; `unread`: see `Ranked`, the most of any text."""
        if self.decoding.mode != "score":
            return {"mode": self.decoding.mode}
        return dataclasses.asdict(self.decoding) | {"unread": self.unread}

    @property
    def scoring(self) -> dict[str, Any] | None:
        return self.decoding.scoring

    def chosen(self, record: Record, answer: LabelAnswer) -> Prediction:
        """The prediction that an answer made of labels is."""
        assert self.answerer is not None
        self.unread = max(self.unread, answer.unread)
        return Prediction(
            id=record.id,
            text=record.text,
            gold=dict(record.labels),
            predicted=answer.labels,
            raw=self.answerer.layout.text(answer.labels),
            scores=answer.scores,
        )
