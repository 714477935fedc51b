"""hf_import and hf_export, and their commands, on tiny random transformers models."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxclf.checkpoint import model_dir, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.convert import decoders, files, from_hf, hf_export, hf_import, mapping, to_hf
from jaxclf.core import errors, tree
from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.models import registry
from jaxclf.models.decoder import DecoderConfig
from jaxclf.models.layers import RopeScaling
from tests.parity import helpers

CONFIG = DecoderConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,  # not hidden_size / num_heads
    rope_theta=1234.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64),
    rms_norm_eps=3e-4,
    max_position=128,
)


def quiet(_line):
    pass


def convert(source, destination, dtype="keep", **options):
    hf_import.convert(source, destination, dtype, progress=quiet, **options)


def export(source, destination, **options):
    hf_export.export(source, destination, progress=quiet, **options)


def tensors(directory):
    """Every tensor of a Hugging Face directory: name → dtype, shape, bytes."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, array in safetensors.numpy.load_file(path).items():
            found[name] = (array.dtype.name, array.shape, array.tobytes())
    return found


def write_source(directory, config=CONFIG, seed=0):
    """A Hugging Face directory of random values, without torch."""
    random = np.random.default_rng(seed)
    leaves = tree.flatten(registry.create(config).abstract)
    values = {
        tensor.name: random.standard_normal(tensor.shape, np.float32)
        for tensor in mapping.expand(
            decoders.rows(config), {path: leaf.shape for path, leaf in leaves.items()}
        )
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(decoders.write_config(config)))
    rewrite(directory, values)
    return values


def rewrite(directory, values):
    safetensors.numpy.save_file(values, directory / "model.safetensors", {"format": "pt"})


# With transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kv_heads", "tied", "dtype", "shard"),
    [
        (4, False, "float32", "5GB"),
        (2, False, "bfloat16", "4KB"),
        (1, True, "float32", "4KB"),
        (2, True, "bfloat16", "5GB"),
    ],
    ids=["mha", "gqa-bf16-sharded", "mqa-tied-sharded", "tied-bf16"],
)
def test_a_transformers_model_survives_the_round_trip(tmp_path, kv_heads, tied, dtype, shard):
    torch = pytest.importorskip("torch")
    import transformers

    config = dataclasses.replace(CONFIG, num_kv_heads=kv_heads, tie_embeddings=tied)
    model = helpers.hf_llama(config, seed=kv_heads).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "hf", max_shard_size=shard)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (shard == "4KB")

    convert(tmp_path / "hf", tmp_path / "ours")
    assert model_dir.read_model(tmp_path / "ours" / "model.json") == (config, dtype)
    shard_bytes = 4000 if shard == "4KB" else 10**9
    export(tmp_path / "ours", tmp_path / "back", max_shard_bytes=shard_bytes)
    assert (tmp_path / "back" / "model.safetensors.index.json").exists() == (shard == "4KB")
    assert tensors(tmp_path / "back") == tensors(tmp_path / "hf")

    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert not any(info.values()), info
    assert loaded.dtype == original.dtype == getattr(torch, dtype)
    ids = torch.arange(30)[None]
    assert torch.equal(loaded(ids).logits, original(ids).logits)


def test_every_tensor_lands_where_the_model_reads_it(tmp_path):
    pytest.importorskip("torch")
    model = helpers.hf_llama(CONFIG, seed=1)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours")
    expected = helpers.llama_tree(helpers.hf_tensors(model), CONFIG.num_layers)
    loaded = model_dir.load_params(tmp_path / "ours", registry.create(CONFIG).abstract)
    assert tree_store.describe(loaded) == tree_store.describe(expected)


def test_the_real_tiny_checkpoint_survives_the_round_trip(tmp_path, shared_root):
    source = shared_root / "weights" / "stories260k-hf"
    convert(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(source)
    before, after = (
        json.loads((directory / "config.json").read_text())
        for directory in (source, tmp_path / "back")
    )
    wrong = {k for k in before.keys() & after.keys() if before[k] != after[k]}
    assert not wrong


# Without ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_are_cast_on_request(tmp_path, dtype):
    values = write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours", dtype)
    assert model_dir.read_model(tmp_path / "ours" / "model.json")[1] == dtype
    read = tree_store.read(tmp_path / "ours" / "params", "layers/mlp/up/kernel", 1)
    expected = values["model.layers.1.mlp.up_proj.weight"].T.astype(dtype)
    assert read.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_a_run_is_exported_at_its_best_step(tmp_path):
    abstract = registry.create(CONFIG).abstract
    trees = [jax.tree.map(lambda leaf, v=v: jnp.full(leaf.shape, v), abstract) for v in (1.0, 2.0)]
    with Checkpoints(tmp_path / "run", keep=2) as saved:
        for step, (params, score) in enumerate(zip(trees, (0.9, 0.1), strict=True), start=1):
            saved.save(step, params, {"n": jnp.int32(step)}, None, {"score": score})
    model_dir.write_model(tmp_path / "run" / "model.json", CONFIG, "float32")

    for step, params in (("best", trees[0]), ("last", trees[1]), (2, trees[1])):
        export(tmp_path / "run", tmp_path / "hf", step=step, overwrite=True)
        embedding = tensors(tmp_path / "hf")["model.embed_tokens.weight"]
        assert embedding[2] == np.asarray(params["embed"]["embedding"]).tobytes()


def test_tokenizer_generation_config_and_card_travel_along(tmp_path):
    source = tmp_path / "hf"
    write_source(source)
    Tokenizer.train(["a b"], 262).save(source)
    (source / "tokenizer_config.json").unlink()
    (source / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    (source / "training_args.bin").write_text("not weights: beside safetensors it is no matter")
    convert(source, tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours" / "tokenizer").iterdir()] == ["tokenizer.json"]
    origin = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert origin == {"source": "hf", "unused": [], "labels": None}
    export(tmp_path / "ours", tmp_path / "back", card=lambda found: f"# {found.params_dir.name}")
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    limit = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert limit == {"model_max_length": CONFIG.max_position}
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == [3, 4]
    assert (tmp_path / "back" / "README.md").read_text() == "# params"


def test_missing_unused_and_wrong_shaped_tensors_are_listed(tmp_path):
    values = write_source(tmp_path / "hf")
    del values["model.norm.weight"]
    values["score.weight"] = np.zeros((2, 16), np.float32)
    values["model.layers.1.mlp.up_proj.weight"] = np.zeros((16, 24), np.float32)
    values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)  # harmless
    rewrite(tmp_path / "hf", values)
    with pytest.raises(ArtifactError) as caught:
        convert(tmp_path / "hf", tmp_path / "ours")
    assert str(caught.value).splitlines()[1:] == [
        "  missing: model.norm.weight (16,)",
        "  wrong shape: model.layers.1.mlp.up_proj.weight (16, 24), "
        "expected (24, 16) by config.json",
        "  unused: score.weight (2, 16)",
    ]
    assert not (tmp_path / "ours").exists()


def test_a_copy_of_the_tied_embedding_must_equal_it(tmp_path):
    values = write_source(tmp_path / "hf", dataclasses.replace(CONFIG, tie_embeddings=True))
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    rewrite(tmp_path / "hf", values)
    convert(tmp_path / "hf", tmp_path / "ours")
    values["lm_head.weight"] = values["lm_head.weight"] + 1
    rewrite(tmp_path / "hf", values)
    with pytest.raises(ArtifactError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        convert(tmp_path / "hf", tmp_path / "other")


def test_mixed_dtypes_of_one_leaf_need_a_choice(tmp_path):
    values = write_source(tmp_path / "hf")
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(tmp_path / "hf", values | {name: values[name].astype(np.float16)})
    with pytest.raises(InputError, match=r"float16, float32.*--dtype"):
        convert(tmp_path / "hf", tmp_path / "ours")
    convert(tmp_path / "hf", tmp_path / "ours", "float32")


def test_quantised_tensors_are_refused(tmp_path):
    values = write_source(tmp_path / "hf")
    rewrite(tmp_path / "hf", values | {"model.norm.weight": np.zeros(16, np.int8)})
    with pytest.raises(InputError, match=r"model\.norm\.weight is I8"):
        convert(tmp_path / "hf", tmp_path / "ours")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_the_remedy(tmp_path, name):
    write_source(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}.*save_pretrained"):
        convert(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-4], "corrupt"),
        (lambda data: b"\xff" * 8 + data[8:], "corrupt"),
        (lambda data: data.replace(b"model.norm", b"model.n\xffrm", 1), "corrupt"),
        (lambda data: b"", "corrupt"),
    ],
    ids=["truncated", "length", "header", "empty"],
)
def test_a_corrupt_file_is_an_artifact_error(tmp_path, damage, words):
    write_source(tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ArtifactError, match=f"model.safetensors: {words}") as caught:
        convert(tmp_path / "hf", tmp_path / "ours")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ({"weight_map": {"a": "model-1.safetensors"}}, ArtifactError),
        ({"weight_map": {"a": "../secret.safetensors"}}, InputError),
        ({"weight_map": {"a": "pytorch_model.bin"}}, InputError),
        ({"weights": {}}, ArtifactError),
        ([], ArtifactError),
    ],
)
def test_an_index_that_names_what_is_not_there_is_refused(tmp_path, index, error):
    write_source(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=r"model\.safetensors\.index\.json|missing"):
        files.Weights(tmp_path)


def test_a_corrupt_model_directory_is_not_exported(tmp_path):
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours")
    chunk = tmp_path / "ours" / "params" / "layers.mlp.up.kernel" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ArtifactError, match="layers/mlp/up/kernel: its checksum differs"):
        export(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_existing_destination_is_replaced_on_request_only(tmp_path):
    write_source(tmp_path / "hf")
    (tmp_path / "ours").mkdir()
    convert(tmp_path / "hf", tmp_path / "ours")  # an empty one is no loss
    with pytest.raises(InputError, match="--overwrite"):
        convert(tmp_path / "hf", tmp_path / "ours")
    convert(tmp_path / "hf", tmp_path / "ours", "bfloat16", overwrite=True)
    assert model_dir.read_model(tmp_path / "ours" / "model.json")[1] == "bfloat16"
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "ours"}


def test_the_cache_converts_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLF_CACHE", str(tmp_path / "cache"))
    write_source(tmp_path / "hf")
    lines = []
    first = hf_import.cached(str(tmp_path / "hf"), progress=lines.append)
    assert lines
    assert model_dir.resolve(first).params_dir == first / "params"
    assert hf_import.cached(str(tmp_path / "hf"), progress=pytest.fail) == first
    write_source(tmp_path / "hf", seed=1)
    os.utime(tmp_path / "hf" / "model.safetensors", (1, 1))  # however coarse the clock
    assert hf_import.cached(str(tmp_path / "hf"), progress=quiet) != first


def test_a_checkpoint_is_ours_or_hugging_faces(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLF_CACHE", str(tmp_path / "cache"))
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours")
    ours, theirs = (hf_import.resolve(str(tmp_path / name)) for name in ("ours", "hf"))
    assert ours.params_dir == tmp_path / "ours" / "params"
    assert theirs.manifest == ours.manifest


@pytest.mark.parametrize(
    ("source", "error"),
    [("./absent", InputError), ("/a/b/c", InputError), ("someone/no-such-model", StorageError)],
)
def test_a_source_that_is_nowhere_says_so(source, error):
    with pytest.raises(error, match="no such directory"):
        hf_import.locate(source)


def test_the_commands_end_with_the_exit_code_of_their_error(tmp_path, monkeypatch, capsys):
    # Threads of pytest's own workers would have a command end the process at once.
    monkeypatch.setattr(errors, "exit_at_once", sys.exit)

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            errors.run(command.main)
        return caught.value.code

    write_source(tmp_path / "hf")
    assert run(from_hf, tmp_path / "hf", tmp_path / "ours") == 0
    assert run(from_hf, tmp_path / "hf", tmp_path / "ours") == 2
    assert run(to_hf, tmp_path / "ours", tmp_path / "back", "--step", "last") == 0
    assert run(to_hf, tmp_path / "nothing", tmp_path / "other") == 3
    assert run(to_hf, tmp_path / "ours", tmp_path / "other", "--step", "first") == 2
    assert run(from_hf, "--help") == 0
    assert "Hugging Face directory or hub id" in capsys.readouterr().out


MEASURE = """
import re, sys
from pathlib import Path
from jaxclf.convert import hf_import, hf_export

def peak():
    # Not getrusage, whose peak begins with the parent's.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024

def both(root):
    hf_import.convert(root / "hf", root / "ours", progress=lambda line: None)
    hf_export.export(root / "ours", root / "back", progress=lambda line: None)

both(Path(sys.argv[1]))
before = peak()
both(Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_follows_the_largest_tensor_not_the_model(tmp_path):
    """260 MB of parameters in tensors of 4 MB; a stacked leaf has up to 75 MB."""
    large = dataclasses.replace(
        CONFIG, hidden_size=512, intermediate_size=2048, num_layers=18, num_heads=8, head_dim=64
    )
    small = dataclasses.replace(CONFIG, hidden_size=256, intermediate_size=512)
    for name, config in (("small", small), ("large", large)):
        (tmp_path / name).mkdir()
        write_source(tmp_path / name / "hf", config)
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    size = sum(file.stat().st_size for file in (tmp_path / "large" / "hf").glob("*.safetensors"))
    assert int(done.stdout) < size / 2**20 / 4
