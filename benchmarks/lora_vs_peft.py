"""Training speed of LoRA on a Llama: here, and in peft with PyTorch.

    pip install -e '.[test]'
    JAXCLF_DATA_ROOT=DATA python benchmarks/lora_vs_peft.py --batch 8
    JAXCLF_DATA_ROOT=DATA python benchmarks/lora_vs_peft.py --prompts news --batch 8
    JAXCLF_DATA_ROOT=DATA python benchmarks/lora_vs_peft.py --model llama3_8b --chip h100

A random Llama (without --model of 40 M parameters), rank 8 on every query and value or with --full
all parameters, AdamW, all cores in float32 or, where there is one, a GPU in bfloat16. The prompts
are those of MASSIVE intents with all labels listed (Listing 7), or those of 20 Newsgroups with five
fixed examples (Listing 3). The same examples in the same batches of like lengths on all sides,
which take turns in processes of their own: `peft` reads whole prompts, padded, as `padded` does
here (with --padded); `shared` computes what the prompts of a batch have in common once. peft
computes logits at every position, as the model of transformers does; jaxclf where a label is.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import turns

from jaxclf.adapters import tuning
from jaxclf.config import defaults
from jaxclf.core import cache
from jaxclf.core.allocator import keep_freed_memory
from jaxclf.data import datasets, loader, prefixes
from jaxclf.data.batching import ANSWER
from jaxclf.data.prefixes import NONE
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.models import registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.planning.hardware import CHIPS
from jaxclf.prompts.examples import tokenize
from jaxclf.prompts.source import prompt_source
from jaxclf.training import losses, optim
from jaxclf.training.train_step import init_state, make_train_step

DIMENSIONS = DecoderConfig(
    vocab_size=16_384,
    hidden_size=512,
    intermediate_size=1408,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    max_position=4096,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What all sides train, and on what."""

    prompts: str
    batch: int
    model: str = ""  # of the zoo
    layers: int = 0
    full: bool = False

    @property
    def dimensions(self) -> DecoderConfig:
        found = registry.find(self.model) if self.model else DIMENSIONS
        assert isinstance(found, DecoderConfig)
        return dataclasses.replace(found, num_layers=self.layers or found.num_layers)


def configuration(case: Case):
    config = defaults.default()
    config.data.name, config.data.task = {
        "intents": ("massive", "intent"),
        "news": ("20ng", "20class"),
    }[case.prompts]
    config.prompt.shots = {"intents": 0, "news": 5}[case.prompts]
    # With this many a label takes as many tokens as in a released vocabulary of 32,000.
    config.tokenizer.vocab_size = 2560
    config.tune = "full" if case.full else "lora"
    config.lora.target_modules = "q,v"
    on_gpu = jax.default_backend() == "gpu"
    config.model.param_dtype = "bfloat16" if on_gpu else "float32"
    config.model.gradient_checkpointing = (
        on_gpu  # as there: activations of 32 layers do not fit otherwise
    )
    config.model.unroll = 1 if on_gpu else case.dimensions.num_layers
    config.train.learning_rate = 1e-4
    config.train.max_grad_norm = 0.0
    return config


@functools.cache
def prompts(case: Case):
    """The examples that all sides learn from."""
    config = configuration(case)
    dataset = datasets.load(config.data)
    prompt, source = prompt_source(config, dataset)
    records = dataset.splits["train"][:2000]
    pieces = [piece.text for piece in (*prompt.before, *prompt.after)]
    texts = [*pieces, *(record.text for record in dataset.splits["train"])]
    tokenizer = Tokenizer.train(texts, config.tokenizer.vocab_size)
    length = {"intents": 2048, "news": 4096}[case.prompts]
    return tokenize(records, dataset.tasks, source, tokenizer, "names", length)


def batches(case: Case, shares: bool):
    """Endless batches, the same of both kinds: prefixes shared or repeated."""
    examples = prompts(case)
    shared = prefixes.find(examples, case.batch) if shares else NONE
    return loader.train_batches(
        examples, batch_size=case.batch, seed=0, like_lengths=True, shared=shared
    )


def ours(case: Case, shares: bool) -> turns.Arm:
    # Both as jaxclf.train does.
    keep_freed_memory()
    cache.keep_programs()
    config = configuration(case)
    model = create_model(config, case.dimensions)
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

    return run, batches(case, shares)


def theirs(case: Case) -> turns.Arm:
    import peft
    import torch
    import transformers

    config = case.dimensions
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = transformers.LlamaForCausalLM(
        transformers.DecoderConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position,
            pad_token_id=None,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        )
    ).to(device)
    if device.type == "cuda":
        base.gradient_checkpointing_enable({"use_reentrant": False})
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = base.train() if case.full else peft.get_peft_model(base, settings).train()
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
                input_ids=torch.from_numpy(tokens).long().to(device),
                attention_mask=torch.from_numpy(mask).long().to(device),
                labels=torch.from_numpy(labels).long().to(device),
            ).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            count += len(batch.tokens)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count

    return run, batches(case, False)


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="examples a step")
    parser.add_argument("--prompts", choices=("intents", "news"), default="intents")
    parser.add_argument("--padded", action="store_true", help="also whole prompts here")
    parser.add_argument("--model", default="", help="its dimensions, by the zoo's name")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the model's own")
    parser.add_argument("--full", action="store_true", help="train all parameters, not LoRA")
    parser.add_argument("--chip", choices=CHIPS, help="print shares of its peak in bfloat16")
    options = parser.parse_args()
    case = Case(options.prompts, options.batch, options.model, options.layers, options.full)
    first = prompts(case)[0]
    rest = np.mean([len(each.text) + len(each.label) for each in prompts(case)])
    print(f"{len(first.prefix)} tokens shared, {rest:.0f} of an example's own")
    arms: dict[str, Callable[[], turns.Arm]] = {
        "peft": functools.partial(theirs, case),
        "shared": functools.partial(ours, case, True),
    }
    if options.padded:
        arms["padded"] = functools.partial(ours, case, False)
    medians = turns.measure(arms, options)
    for name in list(arms)[1:]:
        print(f"{name} / peft {medians[name] / medians['peft']:.2f}")
    if options.chip:
        for name, speed in medians.items():
            tokens = rest + len(first.prefix) / (case.batch if name == "shared" else 1)
            share = speed * tokens * flops_a_token(case) / CHIPS[options.chip].flops
            print(f"{name} computes {tokens:.0f} tokens an example: {share:.1%} of the chip's peak")


def flops_a_token(case: Case) -> float:
    """Of the layers' kernels forward and backward; what is computed again does not count."""
    layers = registry.create(case.dimensions).abstract["layers"]
    size = sum(leaf.size for leaf in jax.tree.leaves(layers))
    return (6 if case.full else 4) * size


if __name__ == "__main__":
    main()
