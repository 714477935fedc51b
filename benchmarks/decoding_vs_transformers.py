"""Answers of a tuned decoder: here in three modes, and by transformers with the same weights.

    pip install -e '.[test]'
    python -m jaxclf.train … --workdir RUN        # any run of a decoder, see benchmarks/README.md
    JAXCLF_DATA_ROOT=DATA python benchmarks/decoding_vs_transformers.py --run RUN
    JAXCLF_DATA_ROOT=DATA python benchmarks/decoding_vs_transformers.py --run RUN --labels --steps 1

The run's test texts in batches, all cores in float32, or a GPU in bfloat16; the sides take
turns in processes of their own. `generate` is that of transformers: left padding, key/value cache,
texts of like length together, greedy, as many new tokens at most as here. With --labels: the
probability of every label, here by one exact pass over the trie of labels, there by a forward pass
over prompt and label for each, all labels of a text in a batch, with logits where a label is; "same
to" is the largest difference between the probabilities.
"""

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import turns

from jaxclf.classifiers.generative import GenerativeClassifier
from jaxclf.classifiers.opening import Opened, open_run
from jaxclf.core import cache
from jaxclf.core.allocator import keep_freed_memory
from jaxclf.data import datasets
from jaxclf.data.tasks import Record
from jaxclf.decoding import answer_layout


def opened(run: Path, mode: str = "free") -> tuple[Opened, GenerativeClassifier]:
    exact = ["eval.score_bound=0"] if mode == "labels" else []
    mode = "score" if mode == "labels" else mode
    found = open_run(run, overrides=[f"eval.decoding={mode}", *exact])
    assert isinstance(found.classifier, GenerativeClassifier)
    return found, found.classifier


def texts(found: Opened, size: int) -> Iterator[list[Record]]:
    """Endless batches of the test split."""
    records = datasets.load(found.config.data).splits["test"]
    endless = itertools.cycle(records)
    while True:
        yield list(itertools.islice(endless, size))


def ours(run: Path, size: int, mode: str) -> turns.Arm:
    # Both as jaxclf.train does.
    keep_freed_memory()
    cache.keep_programs()
    found, classifier = opened(run, mode)

    def label(batches: Iterator[list[Record]]) -> int:
        records = list(itertools.chain.from_iterable(batches))
        return len(classifier.predict(records, size))

    return label, texts(found, size)


def converted(run: Path) -> Any:
    """The run's model in transformers: on a GPU where there is one, in bfloat16."""
    import torch
    import transformers

    from jaxclf.convert import to_hf

    with tempfile.TemporaryDirectory() as folder:
        to_hf.main([str(run), f"{folder}/model"])
        model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model").eval()
    on_gpu = torch.cuda.is_available()
    return model.to("cuda" if on_gpu else "cpu", torch.bfloat16 if on_gpu else torch.float32)


def generate(run: Path, size: int) -> turns.Arm:
    import torch

    found, classifier = opened(run)
    model, tokenizer = converted(run), classifier.tokenizer

    def label(batches: Iterator[list[Record]]) -> int:
        examples = classifier.tokens(list(itertools.chain.from_iterable(batches)))
        prompts = [np.concatenate([each.prefix, each.text]) for each in examples]
        prompts.sort(key=len)
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            width = max(map(len, batch))
            tokens, mask = (np.zeros((len(batch), width), np.int64) for _ in range(2))
            for row, ids in enumerate(batch):
                tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = ids, 1
            with torch.inference_mode():
                made = model.generate(
                    torch.from_numpy(tokens).to(model.device),
                    attention_mask=torch.from_numpy(mask).to(model.device),
                    max_new_tokens=classifier.recipe.max_new_tokens,
                    do_sample=False,
                    eos_token_id=tokenizer.eos_id,
                    pad_token_id=tokenizer.pad_id,
                )
            for ids in made[:, width:].cpu().numpy():
                tokenizer.decode(
                    ids[: list(ids).index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
                )
        return len(prompts)

    return label, texts(found, size)


def labels_apart(run: Path, size: int) -> turns.Arm:
    found, classifier = opened(run)
    model = converted(run)

    def label(batches: Iterator[list[Record]]) -> int:
        records = list(itertools.islice(itertools.chain.from_iterable(batches), 2))
        apart(model, classifier, records)
        return len(records)

    return label, texts(found, size)


def apart(model: Any, classifier: GenerativeClassifier, records: Sequence[Record]) -> np.ndarray:
    """log p of every label of each text `[texts, C]`, by a forward pass over each label."""
    import torch

    recipe, tokenizer = classifier.recipe, classifier.tokenizer
    assert recipe.prompt is not None
    layout = answer_layout.layout(recipe.tasks, tokenizer, recipe.slot_format, recipe.prompt.lead)
    (field,) = layout.fields
    # A label that begins another ends with the end of sequence.
    pieces = [
        (*ids, tokenizer.eos_id)
        if any(other[: len(ids)] == ids and other != ids for other in field.scored)
        else ids
        for ids in field.scored
    ]
    rows = []
    for example in classifier.tokens(records):
        prompt = np.concatenate([example.prefix, example.text, np.array(layout.lead, np.int32)])
        longest = max(map(len, pieces))
        tokens = np.zeros((len(pieces), len(prompt) + longest), np.int64)
        tokens[:, : len(prompt)] = prompt
        for row, ids in enumerate(pieces):
            tokens[row, len(prompt) : len(prompt) + len(ids)] = ids
        with torch.inference_mode():
            ids = torch.from_numpy(tokens).to(model.device)
            logits = model(ids, logits_to_keep=longest + 1).logits[:, :-1].float()
            log_p = torch.log_softmax(logits, dim=-1).cpu().numpy()
        rows.append(
            [
                sum(log_p[row, i, token] for i, token in enumerate(ids))
                for row, ids in enumerate(pieces)
            ]
        )
    return np.array(rows)


def same(run: Path, size: int, count: int = 4) -> float:
    """The largest difference of label probabilities between both sides."""
    found, classifier = opened(run, "labels")
    records = next(texts(found, size))[:count]
    expected = apart(converted(run), classifier, records)
    expected = expected - np.logaddexp.reduce(expected, axis=1, keepdims=True)
    (task,) = classifier.recipe.tasks
    predictions = classifier.predict(records, size)
    scores = [
        [(each.scores or {})[task.name][name] for name in task.labels] for each in predictions
    ]
    return float(np.max(np.abs(np.exp(expected) - np.array(scores))))


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR")
    parser.add_argument("--modes", default="free,constrained,score", metavar="MODE,…")
    parser.add_argument("--labels", action="store_true", help="score all labels, both sides")
    parser.add_argument("--batch", type=int, default=32, help="texts a batch")
    options = parser.parse_args()
    case = options.run, options.batch
    arms: dict[str, Callable[[], turns.Arm]]
    if options.labels:
        first = "each label apart"
        arms = {
            first: functools.partial(labels_apart, *case),
            "exact score": functools.partial(ours, *case, "labels"),
        }
        print(f"same to {same(*case):.1e}")
    else:
        first = "generate"
        arms = {first: functools.partial(generate, *case)}
        arms |= {mode: functools.partial(ours, *case, mode) for mode in options.modes.split(",")}
    medians = turns.measure(arms, options)
    for name in list(arms)[1:]:
        print(f"{name} / {first} {medians[name] / medians[first]:.2f}")


if __name__ == "__main__":
    main()
