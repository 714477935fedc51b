"""What a run was asked: tasks, prompt and lengths, kept beside its parameters."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxclf.core import files
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Record, SlotFormat, Task, words
from jaxclf.decoding import parsing
from jaxclf.decoding.parsing import Fallback
from jaxclf.prompts.builder import Piece, Prompt


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that turns a text into a model's input and its output into labels; a run's `task.json`.

    `prompt` is None and `max_new_tokens` 0 for an encoder; otherwise these count the longest answer
    with its end of sequence, and the thoughts before it where there are some.
    """

    tasks: tuple[Task, ...]
    prompt: Prompt | None
    slot_format: SlotFormat
    max_length: int
    max_new_tokens: int
    fallback: Fallback = "none"
    seed: int = 0
    first_line: bool = False  # a class is read from an output's first line alone

    def read(self, record: Record, output: str) -> Prediction:
        """The labels in one output; an unparsed one is None unless a fallback is named."""
        assert self.prompt is not None, "a run of a decoder has a prompt"
        parsed = parsing.parse(
            output,
            self.tasks,
            len(words(record.text)),
            slot_format=self.slot_format,
            fallback=self.fallback,
            # A record's own generator: a resumed or re-ordered run draws the same label.
            rng=random.Random(f"{self.seed}/{record.id}"),
            first_line=self.first_line,
            lettered=self.prompt.lettered,
            cue=self.prompt.cue,
        )
        return Prediction(
            id=record.id,
            text=record.text,
            gold=dict(record.labels),
            predicted=dict(parsed.values),
            raw=output,
            unknown_slots=parsed.unknown_slots,
            guessed=parsed.guessed,
        )

    @property
    def learned(self) -> tuple[Any, ...]:
        """What a run learned to answer, beside which an evaluation chooses how to read answers."""
        return self.tasks, self.prompt, self.slot_format, self.max_length, self.seed

    def under(self, config: ConfigDict, before: ConfigDict) -> "Recipe":
        """The recipe with answers read as `config.eval` says.

        `before`: the config that this recipe was made under. Raises InputError where the length of
        answers would have to be measured on the data.
        """
        if self.prompt is None:
            return self
        reads = config.eval
        found = dataclasses.replace(self, fallback=reads.fallback, first_line=reads.first_line)
        if reads.max_new_tokens == before.eval.max_new_tokens:
            return found
        if not reads.max_new_tokens:
            raise InputError(
                "eval.max_new_tokens is 0, which takes the length from the data; the run's is "
                f"{before.eval.max_new_tokens}. Give a number, or leave it out"
            )
        thoughts = config.prompt.chain_of_thought_tokens if self.prompt.cue else 0
        return dataclasses.replace(found, max_new_tokens=reads.max_new_tokens + thoughts)

    def to_text(self) -> str:
        """What `load` reads, as JSON."""
        return files.json_text(dataclasses.asdict(self))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        files.write_text(path, self.to_text())

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read what `save` wrote; raises ArtifactError when it is missing or not one of ours."""
        try:
            return cls.parse(json.loads(path.read_text("utf-8")), path)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} is missing: predictions need the prompt and labels that a run was "
                "trained with; give a run directory made by jaxclf.train"
            ) from error
        except ValueError as error:
            raise ArtifactError(f"{path} is not a recipe of ours: {error!r}") from error

    @classmethod
    def parse(cls, fields: Any, source: object) -> "Recipe":
        """A recipe from the JSON of its fields; raises ArtifactError, naming the `source`."""
        try:
            fields = dict(fields)
            fields["tasks"] = tuple(
                Task(**task | {"labels": tuple(task["labels"])}) for task in fields["tasks"]
            )
            if fields["prompt"] is not None:
                before, after = (
                    tuple(Piece(**piece) for piece in fields["prompt"][side])
                    for side in ("before", "after")
                )
                fields["prompt"] = Prompt(**fields["prompt"] | {"before": before, "after": after})
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{source} is not a recipe of ours: {error!r}") from error
