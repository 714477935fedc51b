"""What a frozen base and its adapters see in texts, computed once and kept on disk.

For every text one vector of the base and one of each adapter, float32, from a single pass that is
vmapped over the stacked adapters. Each lies in a file of its own, a NumPy array `[records, D]` read
through memory mapping, so that any choice of adapters is a choice of files:

    FOLDER/base.npy  FOLDER/cola.npy …  and beside each NAME.json with its key

The key holds the fingerprints of base and adapters, a hash of the token ids (hence of tokenizer and
data) and the pooling; the checksum of the content stands beside it. A file of another key, or
damaged, is computed again; one whose pass was cut off goes on where it stood.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Adapters
from jaxclf.core.errors import InputError
from jaxclf.core.files import write_json
from jaxclf.core.types import Array, Float, Params
from jaxclf.data import loader
from jaxclf.data.batching import Batch, PromptBatch
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.examples import Tokens
from jaxclf.data.loader import Examples
from jaxclf.distributed import sharding
from jaxclf.ensemble import attens
from jaxclf.ensemble.attens import Pooling
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.registry import Model, ModelConfig

BASE = "base"
_SAVE_EVERY = 32  # batches


@dataclasses.dataclass(frozen=True)
class AdaptedBase:
    """The frozen parts: a base and named adapters of it, each with its fingerprint."""

    model: Model
    params: Params
    fingerprint: str
    adapters: Mapping[str, Adapters]
    fingerprints: Mapping[str, str]


def make_pass(
    model: Model, pooling: Pooling
) -> Callable[[Params, Sequence[Adapters], Any], Float[Array, "A1 B D"]]:
    """A function (base, stacks of adapters, batch) → the vectors: base first, then adapters.

    A stack are adapters of one spec, as `grouped` makes them.
    """

    def one(params: Params, batch: Batch | PromptBatch) -> Float[Array, "B D"]:
        types = (batch.types,) if isinstance(batch, Batch) and model.is_encoder else ()
        hidden = model.bind(params).hidden(batch.tokens, batch.positions, batch.segment_ids, *types)
        return attens.pool(hidden, jnp.asarray(batch.segment_ids) > 0, pooling)

    def compute(params: Params, stacks: Sequence[Adapters], batch: Any):
        found = [one(params, batch)[None]]
        for stack in stacks:
            found.append(jax.vmap(lambda each: one(lora.bind(params, each), batch))(stack))
        return sharding.everywhere(jnp.concatenate(found))

    return compute


def body(adapters: Adapters) -> Adapters:
    """The adapters without the heads that were trained along, which nothing here reads."""
    saved = {name: node for name, node in adapters.saved.items() if name not in ("heads", "pooler")}
    return Adapters(adapters.factors, saved, dataclasses.replace(adapters.spec, saved=()))


def grouped(adapters: Mapping[str, Adapters]) -> tuple[list[str], list[Adapters]]:
    """Names in the order of the pass, and one stack for all adapters of one spec and shape."""
    groups: dict[Any, list[str]] = {}
    bare = {name: body(each) for name, each in adapters.items()}
    for name, each in bare.items():
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(each))
        groups.setdefault((each.spec, shapes), []).append(name)
    stacks = [lora.stack([bare[name] for name in names]) for names in groups.values()]
    return [name for names in groups.values() for name in names], stacks


def batches(
    examples: Examples, batch_size: int, pooling: Pooling, done: int = 0
) -> Iterator[tuple[list[int], Batch | PromptBatch]]:
    """Every example once, by length, as (indices, batch), but for so many as are `done`."""
    encoded = [each for each in examples if isinstance(each, Encoded)]
    prompts = [each for each in examples if isinstance(each, Tokens)]
    assert not (encoded and prompts), "one model reads all texts in one form"
    yield from loader.prompt_batches(prompts, batch_size, done=done)
    for indices, batch in loader.score_batches(encoded, batch_size, done):
        yield indices, _padded(batch, pooling.padding) if pooling.padding else batch


def need(folder: Path, examples: Examples, names: Sequence[str], size: int) -> int:
    """Bytes on disk that the vectors of these examples will take, beyond what is there."""
    each = len(examples) * size * 4
    return sum(each for name in names if not (folder / f"{name}.npy").is_file())


def load(
    folder: Path,
    seen: AdaptedBase,
    examples: Examples,
    batch_size: int,
    pooling: Pooling,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Float[np.ndarray, "records D"]]:
    """The vectors by name, "base" and every adapter's, in the order of the examples.

    What is not on disk is computed. `progress` is told how many examples are done, once each, and
    may raise to stop: what was done till then is kept, for passes of any batch size.
    """
    check_length(seen.model.config, examples, pooling)
    folder.mkdir(parents=True, exist_ok=True)
    shape, inputs = (len(examples), seen.model.config.hidden_size), _hash(examples)
    order = hashlib.sha256(np.array(loader.by_length(examples), np.int64).tobytes()).hexdigest()
    files = {
        name: _File(folder / f"{name}.npy", _key(name, seen, inputs, pooling), shape, order)
        for name in (BASE, *seen.adapters)
    }
    missing = [name for name, file in files.items() if not file.is_whole()]
    if missing:
        done = min(files[name].done for name in missing)
        wanted = {name: seen.adapters[name] for name in missing if name != BASE}
        _fill(
            {name: files[name] for name in missing},
            done,
            seen,
            wanted,
            examples,
            batch_size,
            pooling,
            progress,
        )
    else:
        progress(len(examples))
    return {name: np.load(file.path, mmap_mode="r") for name, file in files.items()}


def _fill(
    files, done: int, seen: AdaptedBase, wanted, examples, batch_size, pooling, progress
) -> None:
    """Compute from the example number `done` of the order on, marking how far it came."""
    names, stacks = grouped(wanted)
    compute = jax.jit(make_pass(seen.model, pooling))
    arrays = {name: file.open(done) for name, file in files.items()}
    if done:
        progress(done)
    saved = done

    def save() -> None:
        nonlocal saved
        for name, file in files.items():
            arrays[name].flush()
            file.mark_done(done)
        saved = done

    try:
        for number, (indices, batch) in enumerate(batches(examples, batch_size, pooling, done)):
            found = np.asarray(compute(seen.params, stacks, sharding.put_batch(batch)))
            for name, values in zip((BASE, *names), found, strict=True):
                if name in arrays:
                    arrays[name][indices] = values[: len(indices)]
            done += len(indices)
            if (number + 1) % _SAVE_EVERY == 0:
                save()
            progress(len(indices))
    finally:
        if done > saved:
            save()
    for file in files.values():
        file.mark({"sha256": file.checksum()})


class _File:
    """One array on disk and the line beside it that says what it is and how much of it is there.

    `order`: a hash of the order in which its rows are computed.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], shape: tuple[int, int], order: str):
        self.path, self.key, self.shape = path, {**key, "shape": list(shape)}, shape
        self.order = order
        self.note = path.with_suffix(".json")

    def _state(self) -> dict[str, Any]:
        """The note, where it is of this key; {} otherwise."""
        try:
            found = json.loads(self.note.read_text("utf-8"))
            return found if found["key"] == self.key else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def is_whole(self) -> bool:
        """Whether all of it is there, byte for byte as it was written."""
        return "sha256" in (state := self._state()) and state["sha256"] == self.checksum()

    @property
    def done(self) -> int:
        """Rows that are there already, the first ones of the order; 0 where nothing is sure."""
        state = self._state()
        is_ours = state.get("order") == self.order and self._array() is not None
        return min(int(state["done"]), self.shape[0]) if is_ours else 0

    def _array(self) -> np.ndarray | None:
        try:
            array = np.load(self.path, mmap_mode="r+")
        except (OSError, ValueError):
            return None
        return array if array.shape == self.shape and array.dtype == np.float32 else None

    def open(self, done: int) -> np.ndarray:
        """To be written: what is there if `done` rows of it stay, else a new array."""
        if done and (array := self._array()) is not None:
            return array
        self.note.unlink(missing_ok=True)
        return np.lib.format.open_memmap(self.path, "w+", np.float32, self.shape)

    def mark_done(self, done: int) -> None:
        self.mark({"done": done, "order": self.order})

    def mark(self, state: Mapping[str, Any]) -> None:
        write_json(self.note, {"key": self.key, **state})

    def checksum(self) -> str:
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""


def _key(name: str, seen: AdaptedBase, inputs: str, pooling: Pooling) -> dict[str, Any]:
    return {
        "base": seen.fingerprint,
        "adapters": "" if name == BASE else seen.fingerprints[name],
        "inputs": inputs,
        "pooling": dataclasses.asdict(pooling),
    }


def _hash(examples: Examples) -> str:
    """SHA-256 over what the model reads of every example, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        if isinstance(example, Encoded):
            arrays = (example.tokens, example.types)
        else:
            arrays = (np.concatenate([example.prefix, example.text]),)
        for array in arrays:
            digest.update(len(array).to_bytes(4, "little") + np.asarray(array, np.int32).tobytes())
    return digest.hexdigest()


def check_length(config: ModelConfig, examples: Examples, pooling: Pooling) -> None:
    """Raise InputError where a text or the padding is longer than can be.

    An encoder has no vectors for tokens beyond its positions: what it makes of them is no number.
    """
    longest = max((len(each.tokens) for each in examples if isinstance(each, Encoded)), default=0)
    check_positions(config, "attens.padding", pooling.padding)
    check_positions(config, "train.max_length", longest)
    if 0 < pooling.padding < longest:
        raise InputError(
            f"attens.padding is {pooling.padding}; a text has {longest:,} tokens. Raise it, or "
            "lower train.max_length, which cuts texts"
        )


def check_positions(config: ModelConfig, field: str, length: int) -> None:
    """Raise InputError where texts of this length go beyond the positions of an encoder."""
    if isinstance(config, EncoderConfig) and length > config.max_position:
        raise InputError(
            f"{field} lets texts have {length:,} tokens; the model has positions for "
            f"{config.max_position:,}. Set {field} to {config.max_position} at most"
        )


def _padded(batch: Batch, width: int) -> Batch:
    """All rows filled up to `width` tokens, whose positions go on as in transformers."""

    def filled(array: Any) -> Any:
        return np.pad(array[:, :width], ((0, 0), (0, max(0, width - array.shape[1]))))

    positions = np.broadcast_to(np.arange(width, dtype=np.int32), (len(batch.tokens), width))
    types = None if batch.types is None else filled(batch.types)
    return Batch(filled(batch.tokens), filled(batch.segment_ids), positions, types, {})
