"""Training speed of LoRA on a small Llama: here, and in peft with PyTorch.

    pip install -e '.[test]'
    JAXCLF_DATA_ROOT=DATA python benchmarks/lora_vs_peft.py

A random Llama of 20 M parameters, rank 8 on every query and value, AdamW, float32, all cores. The
prompts are those of MASSIVE intents with all labels listed (Listing 7), batches of 8 padded to a
bucket: the very same arrays on both sides, which take turns in processes of their own. peft
computes logits at every position, as the model of transformers does; jaxclf where the label is.
"""

import itertools
from collections.abc import Callable

import jax
import numpy as np
import turns

from configs import common
from jaxclf import losses, optim, tuning
from jaxclf.allocator import keep_freed_memory
from jaxclf.classify import create_model, prompt_source
from jaxclf.data import datasets, pack
from jaxclf.data.pack import ANSWER
from jaxclf.data.tokenize import Tokenizer, tokenize
from jaxclf.models.llama import LlamaConfig
from jaxclf.steps import init_state, make_train_step

BATCH = 8
DIMENSIONS = LlamaConfig(
    vocab_size=8192,
    hidden_size=384,
    intermediate_size=1024,
    num_layers=6,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
)


def configuration():
    config = common.default()
    config.data.name = "massive"
    config.data.task = "intent"
    config.tokenizer.vocab_size = DIMENSIONS.vocab_size
    config.tune = "lora"
    config.lora.targets = "q,v"
    config.model.remat = False
    config.model.unroll = DIMENSIONS.num_layers
    config.train.learning_rate = 1e-4
    config.train.clip_norm = 0.0
    return config


def prompts():
    """Endless padded batches, and how many tokens a row has."""
    config = configuration()
    dataset = datasets.load(config.data)
    prompt, source = prompt_source(config, dataset)
    records = dataset.splits["train"]
    pieces = [piece.text for piece in (*prompt.before, *prompt.after)]
    tokenizer = Tokenizer.train(
        [*pieces, *(record.text for record in records)], DIMENSIONS.vocab_size
    )
    examples = tokenize(records[:2000], dataset.tasks, source, tokenizer, "names", 2048)
    for start in itertools.count(0, BATCH):
        rows = [examples[(start + i) % len(examples)] for i in range(BATCH)]
        yield pack.padded([pack.row(example) for example in rows])


def ours() -> turns.Arm:
    keep_freed_memory()  # as jaxclf.train does
    config = configuration()
    model = create_model(config, DIMENSIONS)
    tuned = tuning.choose(config, model.abstract)
    params = jax.jit(model.init)(jax.random.key(0))
    trained, frozen = tuned.start(params, jax.random.key(0))
    optimizer = optim.optimizer(config.train)
    state = init_state(trained, optimizer, jax.random.key(0))
    step = make_train_step(
        model, tuned, optimizer, optim.schedule(config.train), losses.GENERATION, may_skip=False
    )
    step = jax.jit(step, donate_argnums=0)

    def run(batches) -> int:
        nonlocal state
        count = 0
        for batch in batches:
            device_batch = jax.device_put(jax.tree.map(lambda rows: rows[None], batch))
            state, _ = step(state, frozen, device_batch)
            count += len(batch.tokens)
        jax.block_until_ready(state)
        return count

    return run, prompts()


def theirs() -> turns.Arm:
    import peft
    import torch
    import transformers

    config = DIMENSIONS
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position,
            pad_token_id=None,
        )
    )
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, settings).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.0)

    def run(batches) -> int:
        count = 0
        for batch in batches:
            targets = batch.targets[ANSWER]
            tokens = np.concatenate([batch.tokens, np.zeros((BATCH, 1), np.int32)], axis=1)
            labels = np.full(tokens.shape, -100)
            for row, (places, ids, mask) in enumerate(zip(*targets, strict=True)):
                # transformers shifts: the label of place p is the token at p + 1.
                labels[row, places[mask] + 1] = ids[mask]
                tokens[row, places[mask] + 1] = ids[mask]
            mask = np.pad(batch.segment_ids, ((0, 0), (0, 1)))
            loss = model(
                input_ids=torch.from_numpy(tokens).long(),
                attention_mask=torch.from_numpy(mask).long(),
                labels=torch.from_numpy(labels).long(),
            ).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            count += len(batch.tokens)
        return count

    return run, prompts()


ARMS: dict[str, Callable[[], turns.Arm]] = {"peft": theirs, "jaxclf": ours}


def main() -> None:
    medians = turns.measure(__doc__, ARMS)
    print(f"jaxclf / peft {medians['jaxclf'] / medians['peft']:.2f}")


if __name__ == "__main__":
    main()
