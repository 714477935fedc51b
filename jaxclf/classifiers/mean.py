"""Several classifiers of the same labels as one, by the mean of their probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclf.classifiers.base import LocalClassifier, Progress
from jaxclf.classifiers.heads import label_of
from jaxclf.core.errors import InputError
from jaxclf.data import label_probabilities
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Label, Record, Task, head_labels
from jaxclf.prompts.builder import PromptSource


class MeanClassifier(LocalClassifier):
    """Labels texts by the mean of what its members say of them, such as runs of several seeds.

    Probabilities are the members' own, before any temperature. Slots that a decoder wrote count as
    votes. `names`: what errors call the members. Raises InputError where they have other labels.
    """

    def __init__(self, members: Sequence[LocalClassifier], names: Sequence[str]):
        first = members[0]
        super().__init__(first.model, first.tokenizer, first.recipe)
        self.members, self.names = members, names
        for name, each in zip(names, members, strict=True):
            asked = [(found.tasks, found.slot_format) for found in (first.recipe, each.recipe)]
            if asked[0] != asked[1]:
                raise InputError(
                    f"{name} has other tasks or labels than {names[0]}; a mean is of classifiers "
                    "with the same"
                )

    def facts(self) -> dict[str, Any]:
        """How labels came out of the first; all are asked in the same way."""
        return self.members[0].facts()

    def _labelled(
        self,
        records: Sequence[Record],
        batch_size: int,
        prompt: PromptSource | None,
        progress: Progress,
    ) -> dict[int, Prediction]:
        told = 0

        def share(count: int) -> None:
            """Tell of a text when all members have labelled as many."""
            nonlocal told
            before, told = told // len(self.members), told + count
            progress(told // len(self.members) - before)

        of_members = [
            each.predict(records, batch_size, prompt=prompt, progress=share, tempered=False)
            for each in self.members
        ]
        return {
            index: self.joined(record, [each[index] for each in of_members])
            for index, record in enumerate(records)
        }

    def joined(self, record: Record, found: Sequence[Prediction]) -> Prediction:
        """One prediction of those of all members."""
        predicted: dict[str, Label] = {}
        scores, of_words = {}, {}
        slot_format = self.recipe.slot_format
        for task in self.recipe.tasks:
            names = head_labels(task, slot_format)
            each = [label_probabilities.of_prediction(one, task, slot_format) for one in found]
            p = label_probabilities.mean(task, [one for one in each if one is not None])
            assert p is not None, "classifiers that score have an answer to each text"
            if task.kind == "slots":
                predicted[task.name] = tuple(names[best] for best in np.argmax(p, axis=1))
                of_words[task.name] = p.astype(np.float32)
                continue
            self._check_scores(task, found)
            predicted[task.name] = label_of(task, names, p[0], record)
            scores[task.name] = dict(zip(names or ("value",), p[0].tolist(), strict=True))
        return Prediction(
            record.id,
            record.text,
            dict(record.labels),
            predicted,
            scores=scores or None,
            cut=max(one.cut for one in found),
            slot_scores=of_words or None,
        )

    def _check_scores(self, task: Task, found: Sequence[Prediction]) -> None:
        for name, one in zip(self.names, found, strict=True):
            if task.name not in (one.scores or {}):
                raise InputError(
                    f"{name} writes its answers, which have no probabilities to take the mean of. "
                    "Set eval.decoding to 'score', which reads them for every label"
                )
