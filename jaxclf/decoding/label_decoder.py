"""Answers of which only labels may be part: the likeliest, or the probabilities of all."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxclf.config import validation
from jaxclf.core.finite import not_finite
from jaxclf.core.types import Int, Params
from jaxclf.data import batching
from jaxclf.data.batching import PromptBatch
from jaxclf.data.examples import Tokens
from jaxclf.data.tasks import Label
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding import answer_layout as answers
from jaxclf.decoding import label_choice, trie
from jaxclf.decoding.answer_layout import Field
from jaxclf.decoding.decode import ComputedPrefix
from jaxclf.decoding.label_choice import Read
from jaxclf.decoding.label_scores import Normalise, Ranker, probabilities
from jaxclf.decoding.recipe import Recipe
from jaxclf.decoding.trie import Ids
from jaxclf.distributed import sharding
from jaxclf.models.registry import Model

Mode = Literal["free", "constrained", "score"]
# Tokens of a forced run that are fed at once: a longer one would be padding to all others.
_LONGEST_RUN = 4


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How labels come out of a decoder: the config's `eval.decoding` and what belongs to it."""

    mode: Mode = "free"
    score_bound: float = 1e-3
    normalise: Normalise = "none"

    @classmethod
    def of(cls, config: ConfigDict) -> "Decoding":
        """From a run's config, also from one that is older than these fields; raises InputError."""
        names = {"mode": "decoding", "score_bound": "score_bound", "normalise": "normalize"}
        found = {field: config.eval[name] for field, name in names.items() if name in config.eval}
        for field, value in found.items():
            validation.check(f"eval.{names[field]}", value)
        return cls(**found)

    @property
    def bound(self) -> float:
        """Of what may stay unread; what is divided by something may grow, so it is read whole."""
        return self.score_bound if self.normalise == "none" else 0.0

    @property
    def scoring(self) -> dict[str, Any] | None:
        """What probabilities depend on beside the parameters; None where there are none."""
        return dataclasses.asdict(self) if self.mode == "score" else None


# Numbers of examples; their prompts as a batch on the devices; the prefixes that these share.
Prompts = tuple[list[int], PromptBatch, ComputedPrefix | None]


class LabelAnswer(NamedTuple):
    """One example's labels (slots as they stand in the answer), and scores where there are any."""

    index: int
    labels: dict[str, Label]
    scores: dict[str, dict[str, float]] | None
    unread: float = 0.0


class LabelDecoder:
    """Chooses labels for prompts. Compiled programs are kept, one per prompt shape."""

    def __init__(self, model: Model, tokenizer: Tokenizer, recipe: Recipe, decoding: Decoding):
        assert recipe.prompt is not None, "a run of a decoder has a prompt"
        self.decoding, end = decoding, tokenizer.eos_id
        prompt = recipe.prompt
        self.layout = answers.layout(
            recipe.tasks, tokenizer, recipe.slot_format, prompt.lead, prompt.lettered
        )
        tries, places = [], {}  # (task, whether another word follows) → its place among tries
        for field in self.layout.fields:
            for is_inner, pieces in ((False, field.pieces), (True, field.inner)):
                if pieces:
                    places[field.task.name, is_inner] = len(tries)
                    tries.append(trie.join(trie.make(pieces, end), _LONGEST_RUN))
        self.forest, roots = trie.forest(tries)
        self.roots = {key: roots[place] for key, place in places.items()}
        self.rankers = {
            field.task.name: Ranker(model, field.scored, end)
            for field in self.layout.fields
            if decoding.mode == "score" and not field.inner
        }

        def begin(params: Params, prompt: PromptBatch, prefix: ComputedPrefix | None, spare: int):
            return label_choice.begin(model.bind(params), prompt, spare, prefix)

        def advance(params: Params, read: Read, tokens, count):
            return label_choice.advance(model.bind(params), read, tokens, count)

        def likeliest(params: Params, read: Read, plan, go_on: bool):
            module = model.bind(params)
            found, read = label_choice.likeliest(module, read, self.forest, plan, go_on)
            return sharding.everywhere(found), read

        def constrained(params: Params, prompt: PromptBatch, prefix, plan, spare: int):
            read = begin(params, prompt, prefix, spare)
            return likeliest(params, read, plan, False)[0]

        self._begin = jax.jit(begin, static_argnames="spare")
        self._advance = jax.jit(advance)
        self._likeliest = jax.jit(likeliest, static_argnames="go_on")
        self._constrained = jax.jit(constrained, static_argnames="spare")

    def followed(self, examples: Sequence[Tokens]) -> list[Tokens]:
        """Prompts with what every answer begins with."""
        return [_followed(example, self.layout.lead) for example in examples]

    def answers(
        self,
        params: Params,
        batches: Iterable[Prompts],
        word_counts: Sequence[int],
        content_free: Tokens | None = None,
    ) -> Iterator[list[LabelAnswer]]:
        """Batches of answers to prompts that are `followed`.

        `word_counts`: how many slots the answer of each example has. `content_free`: the prompt
        without a text that "pmi" and "contextual" divide by.
        """
        priors = _Priors(self, params, content_free)
        for indices, prompt, prefix in batches:
            counts = [word_counts[index] for index in indices]
            rows = _Rows(self, counts, len(prompt.tokens))
            if self.decoding.mode == "score":
                self.score(params, prompt, prefix, rows, priors)
            else:
                plan = rows.plan(self.layout.fields)
                spare = batching.bucket(label_choice.room(self.forest, plan))
                plan = sharding.put_batch(plan)
                rows.take(self._constrained(params, prompt, prefix, plan, spare=spare))
            yield rows.answers(indices)

    def score(
        self,
        params: Params,
        prompt: PromptBatch,
        prefix: ComputedPrefix | None,
        rows: "_Rows",
        priors: "_Priors",
    ) -> None:
        """Fields in their order, each after the best label of those before; slots by choice."""
        fields = self.layout.fields
        spare = 0
        plans = [rows.plan([field]) for field in fields]
        for field, plan in zip(fields, plans, strict=True):
            if field.inner:
                spare += label_choice.room(self.forest, plan)
            elif field is not fields[-1]:
                spare += max(map(len, field.pieces))
        spare = batching.bucket(spare) if spare else 0
        read = self._begin(params, prompt, prefix, spare=spare)
        for field, plan in zip(fields, plans, strict=True):
            if field.inner:
                plan = sharding.put_batch(plan)
                go_on = field is not fields[-1]
                chosen, read = self._likeliest(params, read, plan, go_on=go_on)
                rows.take(chosen, [field])
                continue
            ranker = self.rankers[field.task.name]
            ranked = ranker(params, read, rows.count, self.decoding.bound)
            prior = priors.of(field, rows.ids) if priors.example is not None else None
            p = probabilities(ranked.log_p, self.decoding.normalise, ranker.tokens, prior)
            rows.rank(field, p, ranked.unread)
            if field is not fields[-1]:
                pieces = trie.table(field.pieces, 0)
                length = np.array([len(piece) for piece in field.pieces], np.int32)
                best = rows.filled(p.argmax(axis=1))
                given = sharding.put_batch((pieces[best], length[best]))
                read = self._advance(params, read, *given)


class _Rows:
    """What was chosen so far for each row of a batch, of which `size` are computed."""

    def __init__(self, answerer: LabelDecoder, word_counts: Sequence[int], size: int):
        self.answerer, self.word_counts, self.size = answerer, word_counts, size
        self.count = len(word_counts)
        self.labels: list[dict[str, Label]] = [{} for _ in word_counts]
        self.scores: list[dict[str, dict[str, float]]] = [{} for _ in word_counts]
        self.ids: list[Ids] = [()] * self.count
        self.unread = np.zeros(self.count)

    def filled(self, values: np.ndarray) -> np.ndarray:
        """Values of the rows, those of the last one repeated for rows that only fill the batch."""
        return values[np.minimum(np.arange(self.size), self.count - 1)]

    def plan(self, fields: Sequence[Field]) -> Int[np.ndarray, "B choices"]:
        """The roots of the tries that each row chooses from, see `label_choice.likeliest`."""
        roots = self.answerer.roots
        rows = []
        for words in self.word_counts:
            row: list[int] = []
            for field in fields:
                name = field.task.name
                if field.inner:
                    row += [roots[name, True]] * (words - 1)
                row.append(roots[name, False])
            rows.append(row)
        width = max(map(len, rows))
        if any(field.inner for field in fields):
            width = batching.bucket(width, 4)
        return self.filled(trie.table(rows, -1, width))

    def take(self, chosen: jax.Array, fields: Sequence[Field] | None = None) -> None:
        """Note what `label_choice.likeliest` chose; raises NonFiniteError where it could not."""
        fields = self.answerer.layout.fields if fields is None else fields
        rows = np.asarray(chosen)[: self.count]
        if (rows == label_choice.NOT_FINITE).any():
            raise not_finite("a prompt")
        for row, found in enumerate(rows.tolist()):
            for field in fields:
                last = max(0, self.word_counts[row] - 1) if field.inner else 0
                *words, word = found[: last + 1]
                found = found[last + 1 :]
                ids = (*(field.inner[item] for item in words), field.pieces[word])
                self.ids[row] = sum(ids, self.ids[row])
                names = tuple(field.names[item] for item in (*words, word))
                value = names[: self.word_counts[row]] if field.inner else names[0]
                self.labels[row][field.task.name] = value

    def rank(self, field: Field, p: np.ndarray, unread: np.ndarray) -> None:
        """Note probabilities `[rows, C]`, and the best label."""
        self.unread = np.maximum(self.unread, unread)
        for row, best in enumerate(p.argmax(axis=1).tolist()):
            name = field.task.name
            self.labels[row][name] = field.names[best]
            self.scores[row][name] = dict(zip(field.names, p[row].tolist(), strict=True))
            self.ids[row] += field.pieces[best]

    def answers(self, indices: Sequence[int]) -> list[LabelAnswer]:
        return [
            LabelAnswer(index, self.labels[row], self.scores[row] or None, float(self.unread[row]))
            for row, index in enumerate(indices)
        ]


class _Priors:
    """log p of labels after a prompt without a text, for each answer so far that there was."""

    def __init__(self, answerer: LabelDecoder, params: Params, example: Tokens | None):
        self.answerer, self.params = answerer, params
        self.example = example and _followed(example, answerer.layout.lead)
        self.known: dict[tuple[str, Ids], np.ndarray] = {}

    def of(self, field: Field, so_far: Sequence[Ids]) -> np.ndarray:
        """`[rows, C]` for rows with these answers before the field."""
        name = field.task.name
        for ids in dict.fromkeys(so_far):
            if (name, ids) not in self.known:
                assert self.example is not None
                prompt = batching.prompts([_followed(self.example, ids)], sharding.divisible(1))
                read = self.answerer._begin(self.params, sharding.put_batch(prompt), None, spare=0)
                ranked = self.answerer.rankers[name](self.params, read, 1)
                self.known[name, ids] = ranked.log_p[0]
        return np.stack([self.known[name, ids] for ids in so_far])


def _followed(example: Tokens, ids: Ids) -> Tokens:
    """The prompt with the beginning of an answer after it, or for the decoder that goes on."""
    if example.apart:
        label = np.concatenate([example.label, np.array(ids, np.int32)])
        return dataclasses.replace(example, label=label)
    text = np.concatenate([example.text, np.array(ids, np.int32)])
    return dataclasses.replace(example, text=text)
