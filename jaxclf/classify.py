"""A classifier ready to label texts: model, parameters, tokenizer, tasks and prompt together."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxclf import config as configs
from jaxclf import decode, labels
from jaxclf.checkpoints import ModelSource, Which, load_params, read_model, resolve
from jaxclf.data import loader, prompts
from jaxclf.data.datasets import Dataset
from jaxclf.data.prompts import Piece, Prompt
from jaxclf.data.tasks import Record, Task, words
from jaxclf.data.tokenize import Tokenizer, Tokens, tokenize
from jaxclf.errors import ArtifactError, InputError
from jaxclf.labels import Fallback, Prediction, SlotFormat
from jaxclf.models import zoo
from jaxclf.models.llama import LlamaConfig
from jaxclf.models.zoo import Model
from jaxclf.shapes import Params

PromptSource = Prompt | Callable[[int, Record], Prompt]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that turns a text into a prompt and an output into labels; a run's `task.json`.

    `max_new_tokens` counts the longest answer with its end of sequence.
    """

    tasks: tuple[Task, ...]
    prompt: Prompt
    slot_format: SlotFormat
    max_length: int
    max_new_tokens: int
    fallback: Fallback = "none"
    seed: int = 0

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read what `save` wrote; raises ArtifactError when it is missing or not one of ours."""
        try:
            fields = json.loads(path.read_text())
            fields["tasks"] = tuple(
                Task(task["name"], task["kind"], tuple(task["labels"])) for task in fields["tasks"]
            )
            before, after = (
                tuple(Piece(**piece) for piece in fields["prompt"][side])
                for side in ("before", "after")
            )
            fields["prompt"] = Prompt(before, after, fields["prompt"]["lead"])
            return cls(**fields)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} is missing: predictions need the prompt and labels that a run was "
                "trained with; give a run directory made by jaxclf.train"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a recipe of ours: {error!r}") from error


def prompt_source(config: ConfigDict, dataset: Dataset) -> tuple[Prompt, PromptSource]:
    """The run's fixed prompt, and what training and evaluation use: it, or fresh examples."""
    fields, train_records = config.prompt, dataset.splits["train"]

    def build(index: int | None = None, record: Record | None = None) -> Prompt:
        exclude = record.id if record else None
        shots = prompts.draw_shots(train_records, fields.shots, config.seed, index, exclude)
        return prompts.build(fields, dataset.domain, dataset.tasks, shots)

    fixed = build()
    return fixed, build if fields.fresh_shots and fields.shots else fixed


def create_model(config: ConfigDict, dimensions: LlamaConfig) -> Model:
    """The model in the config's dtypes; `auto` computes in float32 on CPU, else in bfloat16."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return zoo.create(
        dimensions,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.remat,
    )


class Classifier:
    """Labels texts by greedy generation. Compiled programs are kept, one per prompt shape."""

    def __init__(self, model: Model, tokenizer: Tokenizer, recipe: Recipe):
        self.model, self.tokenizer, self.recipe = model, tokenizer, recipe
        self.greedy = jax.jit(decode.make_greedy(model, recipe.max_new_tokens, tokenizer.eos_id))

    def tokens(self, records: Sequence[Record], prompt: PromptSource | None = None) -> list[Tokens]:
        """Prompts without answers, with room left for the longest answer."""
        recipe = self.recipe
        return tokenize(
            [dataclasses.replace(record, labels={}) for record in records],
            recipe.tasks,
            prompt or recipe.prompt,
            self.tokenizer,
            recipe.slot_format,
            recipe.max_length,
            reserve=recipe.max_new_tokens,
        )

    def outputs(
        self, params: Params, examples: Sequence[Tokens], batch_size: int
    ) -> Iterator[list[tuple[int, str, bool]]]:
        """Batches of (index, generated text, ended), each index once, likest lengths together.

        `ended` is False where the limit of new tokens cut the output.
        """
        eos_id = self.tokenizer.eos_id
        for indices, prompt in loader.prompt_batches(examples, batch_size):
            generated = np.asarray(self.greedy(params, jax.device_put(prompt)))
            rows = []
            for index, ids in zip(indices, generated, strict=False):
                ended = eos_id in ids
                ids = ids[: int(np.argmax(ids == eos_id))] if ended else ids
                rows.append((index, self.tokenizer.decode(ids.tolist()), ended))
            yield rows

    def predict(
        self,
        params: Params,
        records: Sequence[Record],
        batch_size: int,
        *,
        prompt: PromptSource | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[Prediction]:
        """One prediction a record, in the records' order; raises if any were left out."""
        predictions: dict[int, Prediction] = {}
        for rows in self.outputs(params, self.tokens(records, prompt), batch_size):
            for index, text, _ in rows:
                predictions[index] = self.read(records[index], text)
            progress(len(rows))
        if sorted(predictions) != list(range(len(records))):
            raise RuntimeError(f"{len(predictions)} of {len(records)} records were scored")
        return [predictions[index] for index in range(len(records))]

    def read(self, record: Record, output: str) -> Prediction:
        """The labels in one output; an unparsed one is None unless a fallback is named."""
        recipe = self.recipe
        parsed = labels.parse(
            output,
            recipe.tasks,
            len(words(record.text)),
            slot_format=recipe.slot_format,
            fallback=recipe.fallback,
            # A record's own generator: a resumed or re-ordered run draws the same label.
            rng=random.Random(f"{recipe.seed}/{record.id}"),
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


@dataclasses.dataclass(frozen=True)
class Opened:
    """A trained run, ready to label."""

    classifier: Classifier
    params: Params
    config: ConfigDict
    source: ModelSource


def which(text: str) -> Which:
    """Read `best`, `last` or a step's number; raises InputError."""
    if text in ("best", "last"):
        return text
    if text.isdecimal():
        return int(text)
    raise InputError(f"--step {text}: expected best, last or the number of a step")


def open_run(path: Path, step: Which = "best", overrides: Sequence[str] = ()) -> Opened:
    """Load what a run saved: a run directory, or a step directory of one.

    `overrides` (`data.root=…`) change the run's config. Raises ArtifactError where a part is
    missing, damaged or does not fit, InputError where the path holds no run.
    """
    source = resolve(path, step)
    if source.run_dir is None:
        raise InputError(
            f"{path} is a converted model without a prompt or labels; give a run directory made by "
            "jaxclf.train"
        )
    config = configs.read(source.run_dir / "config.json")
    with config.unlocked():
        configs.override(config, overrides)
    recipe = Recipe.load(source.run_dir / "task.json")
    dimensions, _ = read_model(source.model_json)
    model = create_model(config, dimensions)
    classifier = Classifier(model, Tokenizer.load(source.tokenizer_dir), recipe)
    return Opened(classifier, load_params(source, model.abstract), config, source)
