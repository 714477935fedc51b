"""Training speed of LoRA on a small Llama: here, and in peft with PyTorch.

    pip install -e '.[test]'
    JAXCLF_DATA_ROOT=DATA python benchmarks/lora_vs_peft.py --batch 8
    JAXCLF_DATA_ROOT=DATA python benchmarks/lora_vs_peft.py --prompts news --batch 8

A random Llama of 40 M parameters, rank 8 on every query and value, AdamW, float32, all cores. The
prompts are those of MASSIVE intents with all labels listed (Listing 7), or those of 20 Newsgroups
with five fixed examples (Listing 3). The same examples in the same batches on all sides, which take
turns in processes of their own: `peft` reads whole prompts, padded, as `padded` does here (with
--padded); `shared` computes what the prompts of a batch have in common once. peft computes logits
at every position, as the model of transformers does; jaxclf where a label is.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
import turns

from configs import common
from jaxclf import losses, optim, tuning
from jaxclf.allocator import keep_freed_memory
from jaxclf.classify import create_model, prompt_source
from jaxclf.data import datasets, pack, prefixes
from jaxclf.data.pack import ANSWER
from jaxclf.data.prefixes import Shared
from jaxclf.data.tokenize import Tokenizer, tokenize
from jaxclf.models.llama import LlamaConfig
from jaxclf.steps import init_state, make_train_step

DIMENSIONS = LlamaConfig(
    vocab_size=16_384,
    hidden_size=512,
    intermediate_size=1408,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    max_position=4096,
)


def configuration(kind: str):
    config = common.default()
    config.data.name, config.data.task = {
        "intents": ("massive", "intent"),
        "news": ("20ng", "20class"),
    }[kind]
    config.prompt.shots = {"intents": 0, "news": 5}[kind]
    # With this many a label takes as many tokens as in a released vocabulary of 32,000.
    config.tokenizer.vocab_size = 2560
    config.tune = "lora"
    config.lora.targets = "q,v"
    config.model.remat = False
    config.model.unroll = DIMENSIONS.num_layers
    config.train.learning_rate = 1e-4
    config.train.clip_norm = 0.0
    return config


@functools.cache
def prompts(kind: str):
    """The examples that all sides learn from."""
    config = configuration(kind)
    dataset = datasets.load(config.data)
    prompt, source = prompt_source(config, dataset)
    records = dataset.splits["train"][:2000]
    pieces = [piece.text for piece in (*prompt.before, *prompt.after)]
    texts = [*pieces, *(record.text for record in dataset.splits["train"])]
    tokenizer = Tokenizer.train(texts, config.tokenizer.vocab_size)
    length = {"intents": 2048, "news": 4096}[kind]
    return tokenize(records, dataset.tasks, source, tokenizer, "names", length)


def batches(kind: str, size: int, shares: bool):
    """Endless batches in the order of the data, prefixes shared or repeated."""
    examples = prompts(kind)
    shared = prefixes.find(examples, size) if shares else Shared()
    for start in itertools.count(0, size):
        rows = [examples[(start + i) % len(examples)] for i in range(size)]
        yield pack.padded([pack.row(example, shared) for example in rows], shared)


def ours(kind: str, size: int, shares: bool) -> turns.Arm:
    keep_freed_memory()  # as jaxclf.train does
    config = configuration(kind)
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

    return run, batches(kind, size, shares)


def theirs(kind: str, size: int) -> turns.Arm:
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
            # As short as the longest: transformers compiles nothing.
            width = int(batch.segment_ids.sum(axis=1).max())
            tokens = np.pad(batch.tokens[:, :width], ((0, 0), (0, 1)))
            labels = np.full(tokens.shape, -100)
            for row, (places, ids, mask) in enumerate(zip(*targets, strict=True)):
                # transformers shifts: the label of place p is the token at p + 1.
                labels[row, places[mask] + 1] = ids[mask]
                tokens[row, places[mask] + 1] = ids[mask]
            mask = np.pad(batch.segment_ids[:, :width], ((0, 0), (0, 1)))
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

    return run, batches(kind, size, False)


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="examples a step")
    parser.add_argument("--prompts", choices=("intents", "news"), default="intents")
    parser.add_argument("--padded", action="store_true", help="also whole prompts here")
    options = parser.parse_args()
    case = options.prompts, options.batch
    lengths = [len(each.prefix) for each in prompts(options.prompts)]
    rest = [len(each.text) + len(each.label) for each in prompts(options.prompts)]
    print(f"{lengths[0]} tokens shared, {np.mean(rest):.0f} of an example's own")
    arms: dict[str, Callable[[], turns.Arm]] = {
        "peft": functools.partial(theirs, *case),
        "shared": functools.partial(ours, *case, True),
    }
    if options.padded:
        arms["padded"] = functools.partial(ours, *case, False)
    medians = turns.measure(arms, options)
    for name in list(arms)[1:]:
        print(f"{name} / peft {medians[name] / medians['peft']:.2f}")


if __name__ == "__main__":
    main()
