"""Adapters made by the peft library compute and train here as there, and ours there as here."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Spec
from jaxclf.checkpoint import model_dir
from jaxclf.convert import peft_export, peft_import
from jaxclf.data import batching
from jaxclf.data.batching import ANSWER, Batch, Targets
from jaxclf.models import registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.training import losses
from jaxclf.training.losses import Objective, Term
from tests import tiny
from tests.parity import helpers
from tests.parity.helpers import assert_close
from tests.tiny_adapters import load, random_adapters, write_adapters
from tests.tiny_encoders import inputs, with_heads

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", None: "CAUSAL_LM"}
LLAMA_TOKENS = np.random.default_rng(3).integers(0, tiny.CONFIG.vocab_size, (4, 11))


def start(family: str, head: str | None, no_dropout: bool = False):
    """(our config, transformers' model, its tensors as our tree)."""
    if head is None:
        hf = helpers.hf_llama(tiny.CONFIG, seed=1)
        return tiny.CONFIG, hf, helpers.llama_tree(helpers.hf_tensors(hf), tiny.CONFIG.num_layers)
    config = with_heads(family, head)
    if no_dropout:
        config = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0, head_dropout=0.0)
    hf = helpers.hf_encoder(config, seed=1)
    return config, hf, helpers.encoder_tree(helpers.hf_tensors(hf), config)


def adapt(hf, head: str | None, seed: int = 0, **settings):
    """peft's model with random factors, magnitudes and heads.

    They add about as much as the base has: beyond that float32 is no longer exact enough.
    """
    task_type = settings.pop("task_type", TASK_TYPES[head])
    model = peft.get_peft_model(hf, peft.LoraConfig(task_type=task_type, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                noise = 0.1 * torch.randn(weight.shape, generator=generator)
                is_factor = "lora_A" in name or "lora_B" in name
                weight.copy_(noise if is_factor else weight + noise)
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Where base models lie, each saved and converted once."""
    root = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCLF_CACHE", str(root / "cache"))
        yield root


def save(hf, directory):
    if not directory.exists():
        hf.save_pretrained(directory)
    return str(directory)


def exchange(model, base: str, tmp_path):
    """The adapter directory that we make of peft's model."""
    model.save_pretrained(tmp_path / "theirs")
    peft_import.convert(tmp_path / "theirs", tmp_path / "ours", base)
    return tmp_path / "ours"


@functools.cache
def compiled(config):
    model = registry.create(config)
    if isinstance(config, DecoderConfig):
        positions = np.tile(np.arange(LLAMA_TOKENS.shape[1]), (len(LLAMA_TOKENS), 1))

        def logits(params):
            module = model.bind(params)
            return module.logits(module.hidden(LLAMA_TOKENS, positions, np.ones_like(LLAMA_TOKENS)))

        return jax.jit(logits)
    tokens, positions, segment_ids, types = inputs()
    (head,) = config.heads

    def scores(params):
        module = model.bind(params)
        hidden = module.hidden(tokens, positions, segment_ids, types)
        return module.scores(head.name, hidden if head.kind == "token" else hidden[:, 0])

    return jax.jit(scores)


def ours(config, params):
    found = np.asarray(compiled(config)(params))
    if isinstance(config, DecoderConfig) or config.heads[0].kind == "sequence":
        return found
    return found[inputs()[2] > 0]


def theirs(model, config):
    model = model.eval()
    with torch.no_grad():
        if isinstance(config, DecoderConfig):
            return model(input_ids=torch.tensor(LLAMA_TOKENS)).logits.numpy()
        tokens, _, segment_ids, types = inputs()
        given = {"token_type_ids": torch.tensor(types)} if config.type_vocab_size else {}
        found = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(segment_ids), **given
        ).logits.numpy()
    return found if config.heads[0].kind == "sequence" else found[segment_ids > 0]


# What the peft library made -----------------------------------------------------------------------

THEIRS = {
    "bert": ("bert", "sequence", {"target_modules": ["query", "value"], "r": 3, "lora_alpha": 5}),
    "bert-pooler": (
        "bert",
        "sequence",
        {"target_modules": ["key", "intermediate.dense"], "modules_to_save": ["pooler"]},
    ),
    "bert-token-patterns": (
        "bert",
        "token",
        {
            "target_modules": ["query", "dense"],
            "rank_pattern": {"query": 5, r"layer\.1\.output\.dense": 2},
            "alpha_pattern": {r"layer\.[02]\.attention\.self\.query": 11},
            "exclude_modules": ["intermediate.dense"],
        },
    ),
    "roberta-dora-regex": (
        "roberta",
        "sequence",
        {"target_modules": r".*\.layer\.(0|2)\.attention\.self\.(query|key)", "use_dora": True},
    ),
    "roberta-own-head": (
        "roberta",
        "sequence",
        {"target_modules": ["dense"], "r": 2, "task_type": None},
    ),
    "distilbert-layers": (
        "distilbert",
        "sequence",
        {"target_modules": ["q_lin", "lin2"], "layers_to_transform": [0, 2], "r": 4},
    ),
    "electra-all": ("electra", "sequence", {"target_modules": "all-linear", "r": 2}),
    "electra-token-rslora": (
        "electra",
        "token",
        {"target_modules": ["query", "value"], "use_rslora": True, "r": 5, "lora_alpha": 3},
    ),
    "llama": ("llama", None, {"r": 3}),
    "llama-all": ("llama", None, {"target_modules": "all-linear", "r": 2}),
    "llama-patterns": (
        "llama",
        None,
        {
            "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"],
            "rank_pattern": {r"layers\.1\.self_attn\..*": 2, "down_proj": 4},
            "alpha_pattern": {"^model.layers.2.mlp.down_proj": 3.5},
            "use_rslora": True,
        },
    ),
    "llama-dora-layers": (
        "llama",
        None,
        {
            "target_modules": ["q_proj", "o_proj", "up_proj"],
            "use_dora": True,
            "layers_to_transform": 1,
            "modules_to_save": ["model.norm"],
        },
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_an_adapter_of_peft_gives_the_same_logits_here_and_goes_back(name, bases, tmp_path):
    family, head, settings = THEIRS[name]
    config, hf, base = start(family, head)
    base_directory = save(hf, bases / f"{family}-{head}")
    before = ours(config, base)
    model = adapt(hf, head, **settings)
    directory = exchange(model, base_directory, tmp_path)
    assert model_dir.read_model(directory / "model.json")[0] == config
    adapters = load(directory, base)
    expected = theirs(model, config)
    assert np.abs(expected - before).max() > 0.1
    assert_close(ours(config, lora.bind(base, adapters)), expected, name)

    peft_export.export(directory, tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "theirs")
    _, again, _ = start(family, head)
    reopened = peft.PeftModel.from_pretrained(again, tmp_path / "back")
    np.testing.assert_array_equal(theirs(reopened, config), expected)


def tensors(directory):
    loaded = safetensors.numpy.load_file(directory / "adapter_model.safetensors")
    return {
        name: (array.shape, array.tobytes())
        for name, array in loaded.items()
        if "base_layer"
        not in name  # the base's own unembedding, which peft adds where it has factors
    }


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("has_head", [False, True])
def test_the_base_may_have_no_head_or_another(family, has_head, bases, tmp_path):
    config, hf, base = start(family, "token")
    if has_head:
        other = save(start(family, "sequence")[1], bases / f"{family}-sequence")
    else:
        other = save(hf.base_model, bases / f"{family}-bare")
    model = adapt(hf, "token", target_modules=["query"])
    directory = exchange(model, other, tmp_path)
    assert model_dir.read_model(directory / "model.json")[0] == config
    found = ours(config, lora.bind(base, load(directory, base)))
    assert_close(found, theirs(model, config), family)


def test_a_bare_model_has_an_adapter_too(bases, tmp_path):
    config = with_heads("bert")
    hf = helpers.hf_encoder(config, seed=1)
    base = helpers.encoder_tree(helpers.hf_tensors(hf), config)
    base_directory = save(hf, bases / "bert-with-pooler")
    settings = {
        "target_modules": r"encoder\.layer\.\d\.output\.dense",
        "rank_pattern": {"^encoder.layer.1.output.dense": 3},
    }
    model = adapt(hf, None, task_type="FEATURE_EXTRACTION", **settings)
    directory = exchange(model, base_directory, tmp_path)
    tokens, positions, segment_ids, types = inputs()
    bound = lora.bind(base, load(directory, base))
    found = registry.create(config).bind(bound).hidden(tokens, positions, segment_ids, types)
    with torch.no_grad():
        expected = model.eval()(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(segment_ids),
            token_type_ids=torch.tensor(types),
        ).last_hidden_state.numpy()
    assert_close(found[segment_ids > 0], expected[segment_ids > 0], "hidden states")
    peft_export.export(directory, tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "theirs")
    assert peft.PeftConfig.from_pretrained(tmp_path / "back").task_type == "FEATURE_EXTRACTION"


# What we made -------------------------------------------------------------------------------------

_HEAD = ("heads/.*",)
OURS = {
    "bert": ("bert", "sequence", Spec(rank=3, alpha=5.0, saved=("heads/.*", "pooler/.*"))),
    "bert-token-lora-fa": ("bert", "token", Spec("lora_fa", ("all-linear",), rank=2, saved=_HEAD)),
    "roberta-dora": ("roberta", "sequence", Spec("dora", ("q", "up"), (2, 0), saved=_HEAD)),
    "distilbert": ("distilbert", "sequence", Spec(targets=("all-linear",), saved=_HEAD)),
    "electra": (
        "electra",
        "sequence",
        Spec(targets=("k", "project"), rslora=True, rank_pattern=(("project", 3),), saved=_HEAD),
    ),
    "electra-kept-head": ("electra", "sequence", Spec(targets=("down",), rank=4)),
    "llama-all": ("llama", None, Spec(targets=("all-linear", "unembed"), rank=2)),
    "llama-patterns": (
        "llama",
        None,
        Spec(
            targets=("q", "layers/1/mlp/.*"),
            rank=3,
            rank_pattern=(("layers/2/attention/q", 5), ("up", 1)),
            alpha_pattern=(("q", 2.5),),
            rslora=True,
        ),
    ),
    "llama-dora": (
        "llama",
        None,
        Spec("dora", ("v", "layers/(0|1)/mlp/down"), saved=("norm/scale",)),
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_our_adapter_gives_the_same_logits_in_peft(name, tmp_path, recwarn):
    family, head, spec = OURS[name]
    config, hf, base = start(family, head)
    adapters = random_adapters(base, spec)
    write_adapters(tmp_path / "ours", config, adapters)
    peft_export.export(tmp_path / "ours", tmp_path / "theirs")
    model = peft.PeftModel.from_pretrained(hf, tmp_path / "theirs")
    # All that peft's model has came from the file, and all of the file went into the model.
    model.save_pretrained(tmp_path / "again")
    assert tensors(tmp_path / "again") == tensors(tmp_path / "theirs")
    assert not [str(one.message) for one in recwarn if "adapter" in str(one.message)]
    expected = ours(config, lora.bind(base, adapters))
    assert np.abs(expected - ours(config, base)).max() > 0.1
    assert_close(theirs(model, config), expected, name)


# Training -----------------------------------------------------------------------------------------

STEPS, RATE, DECAY = 20, 1e-2, 0.1


def batches(head: str | None) -> list[Batch]:
    """Three batches, which take turns."""
    if head is None:
        sizes = [(2, 5, 2), (2, 8, 3), (2, 3, 4)]
        return [
            batching.padded([batching.row(one) for one in tiny.examples(sizes, seed)])
            for seed in (1, 2, 3)
        ]
    made = []
    for seed in (1, 2, 3):
        tokens, positions, segment_ids, types = inputs(seed=seed)
        labels = np.random.default_rng(seed).integers(0, 5, (len(tokens), 1)).astype(np.int32)
        first = np.zeros_like(labels)
        targets = {head: Targets(first, labels, np.ones_like(labels, bool))}
        made.append(Batch(tokens, segment_ids, positions, types, targets))
    return made


def our_losses(config, base, adapters, head: str | None) -> list[float]:
    model = registry.create(config)
    objective = losses.GENERATION
    if head is not None:
        objective = Objective(losses.head_scores, {head: Term()})
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    @jax.jit
    def step(adapters, state, batch):
        def loss(adapters):
            module = model.bind(lora.bind(base, adapters))
            return objective.sums(module, batch, objective.totals(batch)).loss

        value, gradient = jax.value_and_grad(loss)(adapters)
        updates, state = optimizer.update(gradient, state, adapters)
        return optax.apply_updates(adapters, updates), state, value

    state, found = optimizer.init(adapters), []
    made = batches(head)
    for index in range(STEPS):
        adapters, state, value = step(adapters, state, made[index % len(made)])
        found.append(float(value))
    return found


def their_losses(model, config, head: str | None) -> list[float]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
    made, found = batches(head), []
    model.train()
    for index in range(STEPS):
        batch = made[index % len(made)]
        loss = model(**arguments(batch, head)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def arguments(batch: Batch, head: str | None):
    given = {
        "input_ids": torch.tensor(batch.tokens),
        "attention_mask": torch.tensor(batch.segment_ids),
    }
    if head is not None:
        labels = torch.tensor(batch.targets[head].labels[:, 0]).long()
        return given | {"token_type_ids": torch.tensor(batch.types), "labels": labels}
    # transformers moves labels by one: what we predict at a place it has one further.
    positions, answers, mask = batch.targets[ANSWER]
    labels = np.full((len(batch.tokens), batch.tokens.shape[1] + 1), -100)
    rows = np.broadcast_to(np.arange(len(labels))[:, None], mask.shape)
    labels[rows[mask], positions[mask] + 1] = answers[mask]
    given = {name: torch.nn.functional.pad(value, (0, 1)) for name, value in given.items()}
    return given | {"labels": torch.tensor(labels)}


@pytest.mark.parametrize(
    ("family", "head", "settings"),
    [
        ("bert", "sequence", {"target_modules": ["query", "value"], "modules_to_save": ["pooler"]}),
        ("bert", "sequence", {"target_modules": ["key", "dense"], "use_dora": True}),
        ("llama", None, {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True}),
        ("llama", None, {"target_modules": "all-linear", "use_dora": True}),
    ],
    ids=["bert", "bert-dora", "llama", "llama-dora"],
)
def test_training_follows_peft(family, head, settings, bases, tmp_path):
    config, hf, base = start(family, head, no_dropout=True)
    base_directory = save(hf, bases / f"{family}-no-dropout")
    model = adapt(hf, head, r=3, lora_alpha=6, **settings)
    directory = exchange(model, base_directory, tmp_path)
    found = our_losses(config, base, load(directory, base), head)
    expected = their_losses(model, config, head)
    assert np.mean(expected[-3:]) < 0.8 * np.mean(expected[:3])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
