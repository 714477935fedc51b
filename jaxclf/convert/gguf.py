"""GGUF files as checkpoints: configuration, tensors and tokenizer of one file (llama.cpp's format).

Tensors are dequantised one at a time. Needs the package `gguf`: pip install 'jaxclf[gguf]'. Names
and layouts: the package's own tables; rows of rotary heads lie in pairs there, in transformers in
halves.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclf.convert.mapping import TensorRow
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.core.files import write_json

EXTRA = "pip install 'jaxclf[gguf]'"

# general.architecture → transformers' model_type, and whether rows of q and k are in pairs.
_KINDS = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False)}
_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
# What would change the computation, with the values that do not.
_FIXED = {"rope.scaling.type": ("none",), "attention.causal": (True,), "attention.scale": ()}
_IGNORED = ("rope_freqs.weight",)

# tokenizer.ggml.pre → how texts are split before pairs of bytes are merged, as in the released
# tokenizer.json of these models.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % ""}
_DIGITS = ("smollm",)
_BYTES = ("gpt-2", "gpt2", "default")
_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type


class GgufWeights:
    """The tensors of a GGUF file under transformers' names, as `files.Weights` has them.

    `rows`: the table of the model's family. Raises ArtifactError where the file is corrupt.
    """

    def __init__(self, reader: Any, rows: Sequence[TensorRow], theirs: Mapping[str, Any]):
        import gguf

        self._heads = theirs["num_attention_heads"], theirs["num_key_value_heads"]
        self._paired = _KINDS[_value(reader, "general.architecture")][1]
        stored = {tensor.name: tensor for tensor in reader.tensors}
        names = gguf.get_tensor_name_map(_arch(reader), theirs["num_hidden_layers"])
        self._places: dict[str, Any] = {}
        for row in rows:
            layers = range(theirs["num_hidden_layers"]) if "{layer}" in row.theirs else [None]
            for layer in layers:
                name = row.theirs.format(layer=layer)
                base, _, ending = name.rpartition(".")
                own = f"{names.get_name(base)}.{ending}"
                if own in stored:
                    self._places[name] = stored.pop(own)
        # Those without a place keep their own names, to be told as unused.
        self._places |= {name: stored[name] for name in stored if name not in _IGNORED}
        self.shapes = {n: tuple(map(int, t.shape[::-1])) for n, t in self._places.items()}
        self.dtypes = dict.fromkeys(self._places, "float32")
        self.metadata: dict[str, str] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        import gguf

        tensor = self._places[name]
        try:
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"{name} is {tensor.tensor_type.name}, which cannot be dequantised ({error})"
            ) from error
        found = np.asarray(found, np.float32).reshape(self.shapes[name])
        if self._paired and ".self_attn." in name and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = self._heads[name.split(".")[-2] == "k_proj"]
            pairs = found.reshape(heads, -1, 2, *found.shape[1:])
            found = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(found.shape)
        return found


@functools.lru_cache(maxsize=2)
def open_file(path: Path) -> Any:
    """The file's reader; raises InputError without the package, ArtifactError for no GGUF."""
    try:
        import gguf
    except ImportError as error:
        raise InputError(f"{path}: reading GGUF needs the package gguf: {EXTRA}") from error
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # what a damaged file makes of it is any of them
        raise ArtifactError(f"{path}: no GGUF file, or corrupt ({error})") from error


def read_config(reader: Any, source: object) -> dict[str, Any]:
    """What transformers' config.json of the model says.

    Raises InputError for an architecture or attribute that is not read.
    """
    kind = _value(reader, "general.architecture")
    if kind not in _KINDS:
        raise InputError(
            f"{source}: general.architecture is {kind!r}; read are {', '.join(_KINDS)}. Take the "
            "checkpoint in transformers' layout"
        )
    for name, allowed in _FIXED.items():
        value = _value(reader, f"{kind}.{name}")
        if value is not None and value not in allowed:
            raise InputError(f"{source}: {kind}.{name}={value!r} is not read from GGUF files")
    names = {tensor.name for tensor in reader.tensors}
    found = {"model_type": _KINDS[kind][0], "tie_word_embeddings": "output.weight" not in names}
    for name, theirs in _FIELDS.items():
        value = _value(reader, f"{kind}.{name}")
        if value is not None:
            found[theirs] = value
    tokens = _value(reader, "tokenizer.ggml.tokens")
    if tokens is not None:
        found.setdefault("vocab_size", len(tokens))
    if "rope_freqs.weight" in names:
        found["rope_scaling"] = _llama3_scaling(reader, found, source)
    return found


def _llama3_scaling(reader: Any, config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Llama 3.1's or 3.2's scaling, of which the file has the divisor of each pair alone."""
    from jaxclf.models import layers

    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    divisors = np.asarray(tensor.data, np.float32).ravel()
    size = 2 * len(divisors)
    plain = layers.rope_frequencies(size, config["rope_theta"])
    for factor in (8.0, 32.0):
        scaling = layers.RopeScaling(factor)
        own = plain / layers.rope_frequencies(size, config["rope_theta"], scaling)
        if np.allclose(own, divisors, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position,
            }
    raise InputError(f"{source}: rope_freqs.weight is not the scaling of Llama 3.1 or 3.2")


def write_tokenizer(
    reader: Any, destination: Path, source: object, progress: Callable[[str], None]
) -> None:
    """The file's tokenizer as one of transformers; where it is not read, that is said."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    kind, pre = (_value(reader, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if pre in _SPLITS:
        split = pre_tokenizers.Split(tokenizers.Regex(_SPLITS[pre]), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif pre in _DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), *steps]
    elif pre not in _BYTES:
        kind = f"{kind} ({pre})"
    if kind != "gpt2":
        progress(f"{source}: set tokenizer.path: tokenizers of kind {kind} are not read from GGUF")
        return
    tokens = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    made = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)  # pyright: ignore
    made.decoder = decoders.ByteLevel()  # pyright: ignore
    kinds = _value(reader, "tokenizer.ggml.token_type") or []
    for token, number in zip(tokens, kinds, strict=False):
        if number in (_CONTROL, _USER_DEFINED):
            made.add_tokens([AddedToken(token, normalized=False, special=number == _CONTROL)])
    destination.mkdir()
    made.save(str(destination / "tokenizer.json"))
    ids = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    special = {
        f"{ours}_token": tokens[index]
        for ours, theirs in ids.items()
        if (index := _value(reader, f"tokenizer.ggml.{theirs}_token_id")) is not None
    }
    template = _value(reader, "tokenizer.chat_template")
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if _value(reader, "tokenizer.ggml.add_bos_token"):
        fields["add_bos_token"] = True
    write_json(
        destination / "tokenizer_config.json",
        fields | ({"chat_template": template} if template else {}),
    )


def _arch(reader: Any) -> Any:
    import gguf

    name = _value(reader, "general.architecture")
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _value(reader: Any, name: str) -> Any:
    """A field's content, None where there is none; 1e-05 and not what float32 makes of it."""
    field = reader.fields.get(name)
    value = None if field is None else field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value
