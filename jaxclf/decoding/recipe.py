"""What a run was asked: tasks, prompt and lengths, kept beside its parameters."""

import dataclasses
import json
import random
from pathlib import Path

from jaxclf.core.errors import ArtifactError
from jaxclf.core.files import write_json
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

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read what `save` wrote; raises ArtifactError when it is missing or not one of ours."""
        try:
            fields = json.loads(path.read_text())
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
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} is missing: predictions need the prompt and labels that a run was "
                "trained with; give a run directory made by jaxclf.train"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a recipe of ours: {error!r}") from error
