"""The paths that `gpu_matrix.py` compiles: what the library jits, from training to ensembles.

A path is a model, how it is tuned, how its texts lie in rows, and what is done with them. It gives
programs, each a function and the shapes of its arguments on the mesh in use, and is told what each
program gives, since scoring goes on from what prompts became.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from gpu_inputs import (
    ENCODERS,
    HEADS,
    INTENT,
    LLAMA,
    ROWS,
    SCORE,
    SLOTS,
    T5,
    TOKENS,
    TOPICS,
    Setup,
    generative,
    placed,
    prefix_batch,
    prompt_batch,
    prompts,
    recipe,
    score_batch,
    texts,
    tokenizer,
    train_batch,
    with_heads,
)

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Adapters, Spec
from jaxclf.classifiers.heads import HeadClassifier
from jaxclf.core.types import Tree
from jaxclf.data import batching, prefixes
from jaxclf.decoding import label_choice, label_decoder
from jaxclf.distributed import sharding
from jaxclf.ensemble import attens, features, fitting
from jaxclf.ensemble.attens import Combiner, Pooling
from jaxclf.ensemble.classifier import EnsembleClassifier
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.registry import Model, ModelConfig
from jaxclf.training import optim
from jaxclf.training.losses import Term
from jaxclf.training.train_step import init_state, make_train_step

# A jitted function, its arguments' shapes, and its arguments that are static.
Program = tuple[Any, tuple[Any, ...]]
# Programs one after the other; each `yield` gives the shapes of what the program gives.
Programs = Generator[Program, Any, None]

MESHES: dict[str, dict[str, int]] = {
    "1 GPU": {},
    "fsdp=8": {"fsdp": 8},
    "fsdp=4,tensor=2": {"fsdp": 4, "tensor": 2},
    "fsdp=4,sequence=2": {"fsdp": 4, "sequence": 2},
    "data=2,fsdp=2,tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
    "2 nodes: data=2,fsdp=4,tensor=2": {"data": 2, "fsdp": 4, "tensor": 2},
}

TUNINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"tune": "lora", "lora.target_modules": "all-linear", "lora.dropout": 0.05},
    "DoRA": {"tune": "dora", "lora.target_modules": "all-linear", "lora.dropout": 0.05},
    "prefix": {"tune": "prefix", "model.num_virtual_tokens": 16},
}
TUNINGS["QLoRA nf4"] = TUNINGS["LoRA"] | {"model.quantize": "nf4"}
TUNINGS["QLoRA int8"] = TUNINGS["LoRA"] | {"model.quantize": "int8"}

# How texts lie in rows: (packed, lengths of the prefixes that prompts share).
LAYOUTS: dict[str, tuple[bool, tuple[int, ...]]] = {
    "packed": (True, ()),
    "padded": (False, ()),
    "padded, 1 shared prefix": (False, (800,)),
    "packed, 3 shared prefixes": (True, (400, 300, 250)),
}
ONE_PREFIX, THREE_PREFIXES = list(LAYOUTS)[2:]


@dataclasses.dataclass(frozen=True)
class Path:
    """One row of the table.

    `tokens`: of its rows; `heads`: of the model's attention. `short`: the short form has it.
    """

    model: str
    tuning: str
    layout: str
    task: str
    programs: Callable[[], Programs]
    tokens: int = TOKENS
    short: bool = True
    heads: int = 4

    @property
    def name(self) -> str:
        return " | ".join((self.model, self.tuning, self.layout, self.task))

    @property
    def least(self) -> int:
        """The least size of a dimension that counts tokens, see `compiled_text.squares`."""
        return self.tokens // 2

    @property
    def pairs(self) -> int:
        """Of tokens, in all rows and heads."""
        return ROWS * self.heads * self.tokens**2


def all_paths() -> list[Path]:
    return [*_decoders(), *_encoders_with_decoders(), *_encoders(), *_ensembles()]


# Rows of the table --------------------------------------------------------------------------------


def _decoders() -> Iterator[Path]:
    for tuned in ("full", "LoRA", "QLoRA nf4", "prefix"):
        for layout in LAYOUTS:
            short = (tuned == "full") or layout == ONE_PREFIX
            yield _training("Llama", LLAMA, tuned, layout, short=short)
    yield _training("Llama", LLAMA, "DoRA", ONE_PREFIX)
    yield _training("Llama", LLAMA, "QLoRA int8", "packed")
    for layout in ("packed", THREE_PREFIXES):
        yield _training("Llama", LLAMA, "full", layout, accumulate=2)
    fields = {"model.unroll": LLAMA.num_layers}
    yield _training("Llama, layers one by one", LLAMA, "full", ONE_PREFIX, fields=fields)
    dropping = dataclasses.replace(LLAMA, dropout=0.1)
    yield _training("Llama with dropout", dropping, "full", "packed", short=False)
    yield _training("Llama, 2,047 tokens", LLAMA, "full", "packed", tokens=TOKENS - 1)
    # Heads as wide as Llama 3's; a row has more tokens than all heads together are wide.
    wide = dataclasses.replace(LLAMA, num_heads=8, head_dim=128)
    yield _training("Llama, 8 heads of 128", wide, "full", ONE_PREFIX, tokens=2 * TOKENS)
    alone = dataclasses.replace(LLAMA, num_kv_heads=1)
    for layout in ("packed", ONE_PREFIX):
        yield _training("Llama, 1 key head", alone, "full", layout)

    for tuned in ("full", "LoRA", "QLoRA nf4", "prefix"):
        yield _greedy("Llama", LLAMA, tuned, "padded", short=tuned == "full")
    yield _greedy("Llama, 1 key head", alone, "full", "padded")
    yield _greedy("Llama, 8 heads of 128", wide, "full", "padded", tokens=2 * TOKENS, short=False)
    for tuned, layout in (("full", ONE_PREFIX), ("LoRA", THREE_PREFIXES), ("prefix", ONE_PREFIX)):
        yield _greedy("Llama", LLAMA, tuned, layout)
    for layout in ("padded", ONE_PREFIX):
        yield _answers("Llama", LLAMA, "full", layout, "constrained")
        yield _answers("Llama", LLAMA, "full", layout, "score")
    yield _answers("Llama", LLAMA, "QLoRA nf4", THREE_PREFIXES, "score", short=False)


def _encoders_with_decoders() -> Iterator[Path]:
    for tuned in ("full", "LoRA", "QLoRA nf4", "prefix"):
        for layout in ("packed", "padded"):
            short = (tuned, layout) in (
                ("full", "packed"),
                ("LoRA", "padded"),
                ("prefix", "packed"),
            )
            yield _training("T5", T5, tuned, layout, short=short)
    yield _training("T5", T5, "full", "packed", accumulate=2, short=False)
    whole = dataclasses.replace(T5, dropout=0.0)
    yield _training("T5 without dropout", whole, "full", "packed")
    for tuned in ("full", "LoRA", "prefix"):
        yield _greedy("T5", T5, tuned, "padded", short=tuned == "full")
    yield _answers("T5", T5, "full", "padded", "constrained", short=False)
    yield _answers("T5", T5, "full", "padded", "score")


def _encoders() -> Iterator[Path]:
    quiet = {"model.dropout": 0.0}
    bert = ENCODERS["BERT"]
    for tuned in ("full", "LoRA", "QLoRA nf4", "prefix"):
        for layout in ("packed", "padded"):
            short = (tuned == "full") or layout == "padded"
            yield _training("BERT", bert, tuned, layout, HEADS, short=short)
    yield _training("BERT", bert, "full", "packed", HEADS, accumulate=2, short=False)
    for layout in ("packed", "padded"):
        yield _training("BERT without dropout", bert, "full", layout, HEADS, fields=quiet)
    unrolled = {"model.unroll": bert.num_layers}
    name = "BERT, layers one by one"
    yield _training(name, bert, "full", "padded", (INTENT,), fields=unrolled)
    for tasks in ((INTENT,), (SLOTS,), (TOPICS, SCORE)):
        name = f"BERT, {' and '.join(task.kind for task in tasks)}"
        yield _training(name, bert, "full", "packed", tasks, fields=quiet, short=False)
    for name, dimensions in list(ENCODERS.items())[1:]:
        yield _training(name, dimensions, "full", "packed", HEADS)
        yield _training(name, dimensions, "LoRA", "padded", HEADS, fields=quiet, short=False)
    for name, dimensions in ENCODERS.items():
        yield _labelling(name, dimensions, "full", short=name == "BERT")
    for tuned in ("LoRA", "QLoRA nf4", "prefix"):
        yield _labelling("BERT", bert, tuned, short=tuned == "LoRA")


def _ensembles() -> Iterator[Path]:
    for name in ("BERT", "RoBERTa", "MiniLM"):
        yield _features(name, ENCODERS[name], short=name == "BERT")
    yield _features("Llama", LLAMA)
    yield _ensemble("BERT", ENCODERS["BERT"])
    yield _ensemble("Llama", LLAMA, short=False)
    yield _combining("BERT", ENCODERS["BERT"])


# Programs -----------------------------------------------------------------------------------------


def _training(
    name: str,
    dimensions: ModelConfig,
    tuned: str,
    layout: str,
    tasks: Sequence[Any] = HEADS,
    *,
    accumulate: int = 1,
    fields: dict[str, Any] | None = None,
    tokens: int = TOKENS,
    short: bool = True,
) -> Path:
    """The train step of a run, with the batch that its loader would give."""
    packed, lengths = LAYOUTS[layout]

    def programs() -> Programs:
        setup = _setup(dimensions, tuned, tasks, fields)
        model, train = setup.model, setup.config.train
        count = ROWS * accumulate
        # Packed, four texts a row; they are drawn in turns, so that every batch is full.
        width, shared = tokens // 4 if packed else tokens, prefixes.SharedPrefixes()
        if model.is_encoder:
            examples: Any = texts(4 * count, width, tasks)
        else:
            examples, shared = prompts(4 * count, width, lengths, model.reads_apart)
        batch = train_batch(
            examples,
            pack_into=tokens if packed else 0,
            shared=shared,
            accumulate=accumulate,
        )
        assert batch.tokens.shape == (accumulate, ROWS, tokens), batch.tokens.shape
        step = make_train_step(
            model,
            setup.tuning,
            setup.optimizer,
            optim.schedule(train),
            setup.objective(tasks),
            may_skip=train.max_skipped > 0,
            prng=train.prng,
        )
        trained, frozen = setup.parameters
        start = functools.partial(init_state, optimizer=setup.optimizer)
        state = jax.eval_shape(lambda tree, key: start(tree, key=key), trained, _key())
        state, frozen = sharding.abstract(state), sharding.abstract(frozen)
        results = sharding.shardings(state), sharding.whole()
        function = jax.jit(step, donate_argnums=0, out_shardings=results)
        yield function, (state, frozen, batch)

    task = "train" if accumulate == 1 else f"train, {accumulate} micro-batches"
    return Path(name, tuned, layout, task, programs, tokens, short, dimensions.num_heads)


def _greedy(
    name: str,
    dimensions: ModelConfig,
    tuned: str,
    layout: str,
    *,
    tokens: int = TOKENS,
    short: bool = True,
) -> Path:
    """Free answers, after the prefixes are computed where prompts share some."""
    _, lengths = LAYOUTS[layout]

    def programs() -> Programs:
        setup = _setup(dimensions, tuned)
        classifier = generative(setup.model, "free")
        examples, shared = prompts(ROWS, tokens, lengths, setup.model.reads_apart)
        prefix = None
        if shared:
            prefix = yield _labels(setup, classifier.compute_prefix, prefix_batch(shared))
        yield _labels(setup, classifier.greedy, prompt_batch(examples, shared), prefix)

    return Path(name, tuned, layout, "greedy", programs, tokens, short, dimensions.num_heads)


def _answers(
    name: str,
    dimensions: ModelConfig,
    tuned: str,
    layout: str,
    mode: Any,
    *,
    short: bool = True,
) -> Path:
    """Answers made of labels alone, as `Answerer` computes them for an intent and slots."""
    _, lengths = LAYOUTS[layout]
    words = 6

    def programs() -> Programs:
        setup = _setup(dimensions, tuned)
        classifier = generative(setup.model, mode)
        answerer = classifier.answerer
        assert answerer is not None
        examples, shared = prompts(ROWS, TOKENS - 16, lengths, setup.model.reads_apart)
        prefix = None
        if shared:
            prefix = yield _labels(setup, classifier.compute_prefix, prefix_batch(shared))
        batch = prompt_batch(answerer.followed(examples), shared)
        intent, slots = answerer.layout.fields
        rows = label_decoder._Rows(answerer, [words] * ROWS, ROWS)
        plan = rows.plan((intent, slots))
        spare = batching.bucket(label_choice.room(answerer.forest, plan))
        if mode == "constrained":
            whole = functools.partial(answerer._constrained, spare=spare)
            yield _labels(setup, whole, batch, prefix, placed(plan))
            return
        begin = functools.partial(answerer._begin, spare=spare)
        read = yield _labels(setup, begin, batch, prefix)
        ranker = answerer.rankers[INTENT.name]
        yield _labels(setup, ranker._first, read)
        nodes = np.zeros((ROWS, ranker.trie.inner - 1), np.int32)
        yield _labels(setup, ranker._some, read, None, _shape(nodes))
        # Chosen nodes of chosen rows, as a bounded search reads them.
        some = _shape(np.zeros(4, np.int32)), _shape(np.zeros((4, 2), np.int32))
        yield _labels(setup, ranker._some, read, *some)
        longest = max(map(len, intent.pieces))
        best = np.zeros((ROWS, longest), np.int32), np.zeros(ROWS, np.int32)
        read = yield _labels(setup, answerer._advance, read, *placed(best))
        likeliest = functools.partial(answerer._likeliest, go_on=False)
        yield _labels(setup, likeliest, read, placed(rows.plan((slots,))))

    return Path(name, tuned, layout, mode, programs, TOKENS, short, dimensions.num_heads)


def _labelling(name: str, dimensions: ModelConfig, tuned: str, *, short: bool = True) -> Path:
    """The scores of an encoder's heads."""

    def programs() -> Programs:
        setup = _setup(dimensions, tuned, HEADS)
        classifier = HeadClassifier(setup.model, tokenizer(), recipe(HEADS, False))
        yield _labels(setup, classifier.scores, score_batch(texts(ROWS, TOKENS, HEADS)))

    return Path(name, tuned, "padded", "predict", programs, TOKENS, short, dimensions.num_heads)


def _features(name: str, dimensions: ModelConfig, *, short: bool = True) -> Path:
    """What a base and three adapters see, in one pass."""

    def programs() -> Programs:
        setup = _setup(dimensions, "full", ())
        compute = jax.jit(features.make_pass(setup.model, _pooling(setup.model)))
        base, stack = _base_and_modules(setup.model)
        yield compute, (base, [stack], _inputs(setup.model))

    return Path(
        name, "3 LoRAs", "padded", "features", programs, TOKENS, short, dimensions.num_heads
    )


def _ensemble(name: str, dimensions: ModelConfig, *, short: bool = True) -> Path:
    """The scores of combiners over what a base and three adapters see."""

    def programs() -> Programs:
        setup = _setup(dimensions, "full", ())
        model = setup.model
        combiner = Combiner(model.config.hidden_size, len(INTENT.labels))
        asked = recipe((INTENT,), not model.is_encoder)
        chosen = {INTENT.name: (combiner, (1, 2, 3))}
        classifier = EnsembleClassifier(model, tokenizer(), asked, _pooling(model), chosen)
        own = jax.eval_shape(functools.partial(attens.init, combiner), _key())
        base, stack = _base_and_modules(model)
        params = {"base": base, "modules": [stack], "combiners": {INTENT.name: _everywhere(own)}}
        yield classifier.scores, (params, _inputs(model))

    return Path(
        name, "3 LoRAs", "padded", "ensemble", programs, TOKENS, short, dimensions.num_heads
    )


def _combining(name: str, dimensions: ModelConfig) -> Path:
    """Steps of a combiner on features that were computed before, in one process."""
    steps, rows, modules = 8, 16, 3

    def programs() -> Programs:
        combiner = Combiner(dimensions.hidden_size, len(INTENT.labels))
        head = fitting.combiner_head(combiner)
        setup = _setup(dimensions, "full", ())
        run = fitting.make_steps(head, Term(), setup.optimizer)
        params = jax.eval_shape(head.init, _key())
        seen = np.zeros((steps, rows, 1 + modules, dimensions.hidden_size), np.float32)
        labels, mask = np.zeros((steps, rows), np.int32), np.ones((steps, rows), bool)
        state = jax.eval_shape(setup.optimizer.init, params)
        yield run, _everywhere((params, state, (seen, labels, mask)))

    return Path(name, "full", "features", "combiner's steps", programs)


def _setup(
    dimensions: ModelConfig,
    tuned: str,
    tasks: Sequence[Any] = (),
    fields: dict[str, Any] | None = None,
) -> Setup:
    if isinstance(dimensions, EncoderConfig):
        dimensions = with_heads(dimensions, tasks)
    return Setup.of(dimensions, TUNINGS[tuned] | (fields or {}))


def _labels(setup: Setup, function: Any, *arguments: Any) -> Program:
    """A classifier's function of parameters, which are joined as those of a run are."""

    def joined(trained: Tree, frozen: Tree, *arguments: Any):
        return function(setup.tuning.join(trained, frozen), *arguments)

    trained, frozen = map(sharding.abstract, setup.parameters)
    return jax.jit(joined), (trained, frozen, *arguments)


def _key() -> Any:
    """The shape of a key: nothing can be computed on devices that are not here."""
    return jax.eval_shape(lambda: jax.random.key(0))


def _shape(array: np.ndarray) -> jax.ShapeDtypeStruct:
    """Of what a host hands over, without a sharding."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _everywhere(tree: Tree) -> Tree:
    """Shapes of arrays that every device has whole."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.whole()), tree
    )


def _base_and_modules(model: Model) -> tuple[Tree, Adapters]:
    """Shapes of a base, and of a stack of three adapters of it."""
    spec = Spec(targets=("q", "v", "up"), dropout=0.1)

    def stacked(params: Tree) -> Adapters:
        key = jax.random.key(0)
        return lora.stack([features.body(lora.init(params, spec, key)) for _ in range(3)])

    stack = jax.eval_shape(stacked, model.abstract)
    return sharding.abstract(model.abstract), sharding.abstract(stack)


def _pooling(model: Model) -> Pooling:
    return Pooling("mean" if model.is_encoder else "last")


def _inputs(model: Model) -> Any:
    if model.is_encoder:
        return score_batch(texts(ROWS, TOKENS, ()))
    return prompt_batch(prompts(ROWS, TOKENS)[0])
