"""Decoders of all families against transformers, in float32: converted, compared, exported."""

import copy
import json
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxclf.adapters import lora
from jaxclf.checkpoint.model_dir import load_adapters, load_params, read_model, resolve
from jaxclf.convert import hf_export, hf_import, mapping, peft_export, peft_import
from jaxclf.core import tree
from jaxclf.core.errors import InputError
from jaxclf.data.batching import PromptBatch
from jaxclf.decoding import decode
from jaxclf.models import registry

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE = {"rope_theta": 777.0, "rope_type": "default"}
WINDOW, LENGTH = 5, 24  # the text goes far past the window
LONG = {
    "rope_theta": 777.0,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [2.0, 3.0, 4.0],
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
}
YARN = {
    "rope_theta": 777.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 3.0,
    "beta_slow": 0.5,
}
LLAMA3 = {
    "rope_theta": 777.0,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
}
# Name → the class of its config and what differs from COMMON.
CASES = {
    "llama-biases-yarn": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ),
    "llama-linear": (
        "Llama",
        {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 3.0}, "hidden_act": "gelu"},
    ),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "rope_parameters": ROPE}),
    "qwen2": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
            "rope_parameters": ROPE,
        },
    ),
    "qwen3": ("Qwen3", {"rope_parameters": ROPE, "attention_bias": True, "head_dim": 10}),
    "gemma": ("Gemma", {"rope_parameters": ROPE}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            "rope_parameters": ROPE,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "num_hidden_layers": 7,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 5,
            "rope_parameters": {
                "full_attention": ROPE | {"rope_type": "linear", "factor": 3.0},
                "sliding_attention": {"rope_theta": 99.0, "rope_type": "default"},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "rope_parameters": ROPE}),
    "phi3-long": (
        "Phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 16},
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "rope_parameters": ROPE}),
    "olmo2": ("Olmo2", {"rope_parameters": ROPE}),
    "mixtral": (
        "Mixtral",
        {"sliding_window": WINDOW, "num_local_experts": 5, "rope_parameters": ROPE},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "norm_topk_prob": False,
            "rope_parameters": ROPE,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "num_hidden_layers": 5,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": WINDOW,
            "swiglu_limit": 0.6,
            "swiglu_alpha": 1.3,
            "rope_parameters": YARN | {"truncate": False},
        },
    ),
    "llama4": (
        "Llama4",
        {
            "num_hidden_layers": 5,
            "intermediate_size": 24,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "attention_chunk_size": 7,
            "floor_scale": 3,
            "attn_scale": 0.4,
            "rope_parameters": LLAMA3,
        },
    ),
    "llama4-dense": (
        "Llama4",
        {
            "num_hidden_layers": 5,
            "intermediate_size_mlp": 24,
            "interleave_moe_layer_step": 2,
            "num_local_experts": 3,
            "attention_chunk_size": 7,
            "rope_parameters": ROPE,
        },
    ),
    "llama4-plain": (
        "Llama4",
        {
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "attention_chunk_size": None,
            "no_rope_layers": [0, 1, 1],
            "num_local_experts": 4,
            "rope_parameters": ROPE,
        },
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.5,
            "rope_parameters": ROPE,
        },
    ),
}
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"  # parameters of experts
TOLERANCE = 1e-5  # of the largest value


def theirs(name: str, seed: int = 1):
    """A random model, with weights large enough that every part of it matters."""
    title, changes = CASES[name]
    torch.set_num_threads(1)
    config_class = {"Llama4": "Llama4Text"}.get(title, title)
    config = getattr(transformers, f"{config_class}Config")(**COMMON | changes)
    config._attn_implementation = "eager"
    causal = {"Gemma3Text": "Gemma3"}.get(title, title)
    model = getattr(transformers, f"{causal}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "norm" in path:
                middle = 0.0 if "Gemma" in title else 1.0
                weight.uniform_(middle - 0.5, middle + 0.5, generator=generator)
            elif weight.ndim == 1:
                weight.normal_(0.0, 0.3, generator=generator)
            else:
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A model of theirs, its directory, and ours: (model, parameters), converted."""
    folder = tmp_path_factory.mktemp(request.param)
    hf = theirs(request.param)
    hf.save_pretrained(folder / "theirs")
    hf_import.convert(folder / "theirs", folder / "ours", progress=lambda line: None)
    config, _ = read_model(folder / "ours/model.json")
    model = registry.create(config)
    return hf, folder, model, load_params(folder / "ours", model.abstract)


def texts(count: int = 2, length: int = LENGTH, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, COMMON["vocab_size"], (count, length))


def off(actual, expected) -> float:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def losses_and_logits(hf, model, params):
    """(loss, logits) of theirs and of ours, and for every tensor its gradient here and there."""
    tokens = texts()
    output = hf(input_ids=torch.tensor(tokens), labels=torch.tensor(tokens))
    output.loss.backward()
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)

    def loss(params):
        module = model.bind(params)
        logits = module.logits(module.hidden(tokens, positions, np.ones_like(tokens)))
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1
        )
        return -chosen.mean(), logits

    ours, gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    family = hf_import.FAMILIES[model.family]
    shapes = {path: leaf.shape for path, leaf in tree.flatten(model.abstract).items()}
    weights = saved_gradients(hf)
    flat, gradients = tree.flatten(gradient), []
    for part in mapping.expand(family.rows(model.config), shapes):
        own = flat[part.ours][part.place]
        own = own.T if part.transpose else own
        gradients.append((part, own, weights[part.name][part.slices]))
    return (output.loss.item(), output.logits.detach().numpy()), ours, gradients


def saved_gradients(hf):
    """Every gradient by the name that its tensor has in files."""
    other = copy.deepcopy(hf)
    with torch.no_grad():
        for weight, own in zip(other.parameters(), hf.parameters(), strict=True):
            weight.copy_(torch.zeros_like(own) if own.grad is None else own.grad)
    with tempfile.TemporaryDirectory() as folder:
        other.save_pretrained(folder)
        return safetensors.numpy.load_file(Path(folder) / "model.safetensors")


def greedy_answers(hf, model, params):
    """Ids that theirs and ours generate past every window."""
    # Where longrope would switch between two tokens, transformers reads all again; we do not.
    is_long = model.config.rope_scaling and model.config.rope_scaling.kind == "longrope"
    tokens, new = texts(length=18 if is_long else 9), 12
    expected = hf.generate(
        torch.tensor(tokens),
        attention_mask=torch.ones(tokens.shape, dtype=torch.int64),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )[:, tokens.shape[1] :]
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    prompt = PromptBatch(tokens, np.ones_like(tokens), positions)
    found = jax.jit(decode.make_greedy(model, new, eos_id=-7))(params, prompt)
    return expected.tolist(), np.asarray(found).tolist()


def test_logits_loss_and_every_gradient(pair):
    hf, _, model, params = pair
    (expected_loss, expected_logits), (loss, logits), gradients = losses_and_logits(
        hf, model, params
    )
    assert off(logits, expected_logits) < TOLERANCE
    assert float(loss) == pytest.approx(expected_loss, rel=TOLERANCE)
    for part, own, expected in gradients:
        assert np.abs(expected).max() > 1e-5, part
        assert off(own, expected) < 5 * TOLERANCE, part


def test_greedy_answers_go_past_the_window(pair):
    hf, _, model, params = pair
    expected, found = greedy_answers(hf, model, params)
    assert found == expected


def test_what_is_exported_is_what_was_read(pair, tmp_path):
    hf, folder, _, _ = pair
    hf_export.export(folder / "ours", tmp_path / "again", progress=lambda line: None)
    again, info = type(hf).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    for (name, old), new in zip(hf.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new), name
    config = json.loads((Path(tmp_path) / "again/config.json").read_text("utf-8"))
    assert config["model_type"] == hf.config.model_type
    again.config._attn_implementation = "eager"
    with torch.no_grad():
        tokens = torch.tensor(texts())
        assert torch.equal(hf(tokens).logits, again(tokens).logits)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phi3", {"target_modules": ["qkv_proj", "down_proj"]}),
        ("gemma3", {"target_modules": ["q_proj", "up_proj"]}),
        ("qwen2", {"target_modules": "all-linear"}),
        ("olmo2", {"target_modules": ["k_proj", "o_proj"]}),
        ("gpt_oss", {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj"]}),
        ("qwen3_moe", {"target_modules": [], "target_parameters": [GATE_UP, DOWN]}),
        (
            "mixtral",
            {
                "target_modules": ["q_proj"],
                "target_parameters": [DOWN],
                "rank_pattern": {"down_proj": 2},
            },
        ),
        (
            "gpt_oss",
            {
                "target_modules": [],
                "target_parameters": ["model.layers.1.mlp.experts.down_proj", "layers.3." + DOWN],
                "alpha_pattern": {"layers.3.mlp.experts.down_proj": 5},
                "use_rslora": True,
            },
        ),
    ],
)
def test_adapters_of_peft_are_read_and_written(name, options, tmp_path):
    peft = pytest.importorskip("peft")
    hf = theirs(name)
    hf.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(hf, peft.LoraConfig(r=3, **options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, weight in adapted.named_parameters():
            if "lora_B" in path:
                weight.normal_(0.0, 0.3, generator=generator)
        adapted.save_pretrained(tmp_path / "theirs")
        tokens = texts()
        expected = adapted(input_ids=torch.tensor(tokens)).logits.numpy()
    hf_import.convert(tmp_path / "base", tmp_path / "ours", progress=lambda line: None)
    peft_import.convert(tmp_path / "theirs", tmp_path / "adapters", str(tmp_path / "ours"))
    config, _ = read_model(tmp_path / "ours/model.json")
    model = registry.create(config)
    params = load_params(tmp_path / "ours", model.abstract)
    module = model.bind(lora.bind(params, load_adapters(resolve(tmp_path / "adapters"), params)))
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    found = module.logits(module.hidden(tokens, positions, np.ones_like(tokens)))
    assert off(found, expected) < TOLERANCE
    chosen = {*options["target_modules"], *options.get("target_parameters", ())}
    if parts := chosen & {"qkv_proj", "gate_up_proj", GATE_UP}:
        part = parts.pop().replace(".", r"\.")
        with pytest.raises(InputError, match=rf"a part of model\.layers\.0\..*{part}"):
            peft_export.export(tmp_path / "adapters", tmp_path / "back")
        return
    peft_export.export(tmp_path / "adapters", tmp_path / "back")
    again = peft.PeftModel.from_pretrained(theirs(name), tmp_path / "back").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=torch.tensor(tokens)).logits, torch.tensor(expected))


HEADED = {
    "llama-biases-yarn": ("Llama", ("sequence", "token")),
    "qwen3": ("Qwen3", ("sequence", "token")),
    "gemma3": ("Gemma3Text", ("sequence",)),
    "phi3": ("Phi3", ("token",)),
    "gpt_oss": ("GptOss", ("sequence", "token")),
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (_, kinds) in HEADED.items() for kind in kinds]
)
def test_heads_are_read_compared_and_written(name, kind, tmp_path):
    """Scores and gradients of texts in rows that are padded, and packed."""
    title, changes = CASES[name]
    options = COMMON | changes | {"num_labels": 4, "pad_token_id": 0}
    config = getattr(transformers, f"{title}Config")(**options)
    config._attn_implementation = "eager"
    made = getattr(transformers, f"{HEADED[name][0]}For{kind.title()}Classification")(config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    made.save_pretrained(tmp_path / "theirs")
    hf_import.convert(tmp_path / "theirs", tmp_path / "ours", progress=lambda line: None)
    dimensions, _ = read_model(tmp_path / "ours/model.json")
    model = registry.create(dimensions)
    assert "unembed" not in model.abstract
    params = load_params(tmp_path / "ours", model.abstract)
    lengths = (LENGTH, 9)
    tokens = np.maximum(texts(), 1)
    segments = (np.arange(LENGTH) < np.array(lengths)[:, None]).astype(np.int64)
    positions = np.arange(LENGTH) * segments
    expected = made(torch.tensor(tokens * segments), attention_mask=torch.tensor(segments)).logits
    expected.square().sum().backward()
    ends = np.array(lengths)[:, None] - 1
    at = ends if kind == "sequence" else np.broadcast_to(np.arange(LENGTH), segments.shape)

    def scores(params):
        module = model.bind(params)
        found = module.read(kind, module.hidden(tokens, positions, segments), segments, at)
        seen = segments[..., None] if kind == "token" else 1
        return jnp.sum(jnp.square(found) * seen), found

    if kind == "token":
        made.zero_grad()
        expected = made(
            torch.tensor(tokens * segments), attention_mask=torch.tensor(segments)
        ).logits
        (expected.square() * torch.tensor(segments)[..., None]).sum().backward()
    (_, found), gradient = jax.jit(jax.value_and_grad(scores, has_aux=True))(params)
    seen = segments > 0 if kind == "token" else slice(None)
    found = found if kind == "token" else found[:, 0]
    assert off(found[seen], expected.detach().numpy()[seen]) < TOLERANCE
    weights = {path: weight.grad for path, weight in made.named_parameters()}
    shapes = {path: leaf.shape for path, leaf in tree.flatten(model.abstract).items()}
    flat = tree.flatten(gradient)
    for part in mapping.expand(hf_import.FAMILIES[model.family].rows(dimensions), shapes):
        own = flat[part.ours] if part.layer is None else flat[part.ours][part.layer]
        own = own.T if part.transpose else own
        assert off(own, weights[part.name].numpy()[part.slices]) < 10 * TOLERANCE, part

    hf_export.export(tmp_path / "ours", tmp_path / "again", progress=lambda line: None)
    again, info = type(made).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    for (path, old), new in zip(made.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new), path


SEES_IMAGES = {
    "gemma3": (
        "Gemma3",
        {"num_hidden_layers": 7, "sliding_window": WINDOW},
        {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        {"mm_tokens_per_image": 4},
    ),
    "llama4": (
        "Llama4",
        {"num_local_experts": 3, "attention_chunk_size": 7, "floor_scale": 3},
        {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        {},
    ),
}


@pytest.mark.parametrize("name", SEES_IMAGES)
def test_the_texts_decoder_of_a_model_that_sees_images(name, tmp_path):
    """That of Gemma 3 4B and larger, of Llama 4; what sees images is left behind, and named."""
    torch.manual_seed(0)
    title, of_text, of_images, options = SEES_IMAGES[name]
    text = {key: value for key, value in COMMON.items() if not key.endswith("token_id")}
    if name == "llama4":
        text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 16)
    config = getattr(transformers, f"{title}Config")(
        text_config=text | of_text, vision_config=sizes | of_images, **options
    )
    config._attn_implementation = "eager"
    hf = getattr(transformers, f"{title}ForConditionalGeneration")(config).eval()
    hf.save_pretrained(tmp_path / "theirs")
    lines: list[str] = []
    hf_import.convert(tmp_path / "theirs", tmp_path / "ours", progress=lines.append)
    assert re.search("vision_(tower|model)", lines[0])
    dimensions, _ = read_model(tmp_path / "ours/model.json")
    model = registry.create(dimensions)
    params = load_params(tmp_path / "ours", model.abstract)
    tokens = np.minimum(texts(), 50)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    module = model.bind(params)
    found = module.logits(module.hidden(tokens, positions, np.ones_like(tokens)))
    with torch.no_grad():
        # Llama 4's own fails without images.
        decoder = hf.language_model if name == "llama4" else hf
        expected = decoder(input_ids=torch.tensor(tokens)).logits.numpy()
    assert off(found, expected) < TOLERANCE


def test_adapters_with_a_head_go_both_ways(tmp_path):
    peft = pytest.importorskip("peft")
    options = COMMON | CASES["qwen3"][1] | {"num_labels": 4, "pad_token_id": 0}
    made = transformers.Qwen3ForSequenceClassification(transformers.Qwen3Config(**options)).eval()
    made.save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(made, settings).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = np.maximum(texts(), 1)
    with torch.no_grad():
        for path, weight in adapted.named_parameters():
            if "lora_B" in path or "modules_to_save" in path:
                weight.normal_(0.0, 0.3, generator=generator)
        expected = adapted(input_ids=torch.tensor(tokens)).logits
    adapted.save_pretrained(tmp_path / "theirs")
    hf_import.convert(tmp_path / "base", tmp_path / "ours", progress=lambda line: None)
    peft_import.convert(tmp_path / "theirs", tmp_path / "adapters", str(tmp_path / "ours"))
    dimensions, _ = read_model(tmp_path / "adapters/model.json")
    model = registry.create(dimensions)
    params = load_params(tmp_path / "ours", model.abstract)
    module = model.bind(lora.bind(params, load_adapters(resolve(tmp_path / "adapters"), params)))
    positions, ones = np.broadcast_to(np.arange(LENGTH), tokens.shape), np.ones_like(tokens)
    last = np.full((len(tokens), 1), LENGTH - 1)
    found = module.read("sequence", module.hidden(tokens, positions, ones), ones, last)
    assert off(found[:, 0], expected.numpy()) < TOLERANCE
    peft_export.export(tmp_path / "adapters", tmp_path / "back")
    base = transformers.Qwen3ForSequenceClassification.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "back").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=torch.tensor(tokens)).logits, expected)
