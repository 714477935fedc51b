"""Damaged and hostile files of Hugging Face models, fed to the readers that convert them.

    python -m benchmarks.faults.model_files --count 3000 --seed 0

Each case takes a tiny folder (a Llama in two files, a BERT with a head, a T5, an adapter of peft),
changes one of its files (bits, cuts, JSON values of every wrong kind, headers that lie) and
converts it. A case is fine if it is refused with an error of ours and leaves nothing behind, or
converted to exactly what the files say, read a second way here. Everything else is printed, with
the command that repeats it: `silent` (other arrays than the file's), `traceback`, `hang`, `crash`
(the process died), `left` (files of a failed conversion).
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

SECONDS = 20  # of computing; more is a hang
_WAIT = 120  # by the clock, on a machine that does other things too
_ROOM = 8 * 2**30  # bytes of address space that a case may take beyond what is taken before
FINE = ("refused", "equal", "as the file says")

# Tiny folders ----------------------------------------------------------------------------------

FOLDERS = ("llama", "bert", "t5", "adapter", "phi3", "gemma3_text")
_TEXTS = ["wake me at five", "play some jazz", "what is the weather like", "lights off"] * 3


def write_folders(root: Path) -> None:
    """Write a folder for each of `FOLDERS`, and NAME-converted/ of each; BERT is the base."""
    from jaxclf.data.tokenizer import Tokenizer
    from jaxclf.models.decoder import DecoderConfig
    from jaxclf.models.encoder import EncoderConfig
    from jaxclf.models.heads import STYLES, HeadConfig
    from jaxclf.models.layers import RopeScaling
    from jaxclf.models.t5 import T5Config

    size: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24}
    size |= {"num_layers": 2, "num_heads": 2}
    configs = {
        "llama": DecoderConfig(**size, num_kv_heads=1, head_dim=8, tie_embeddings=True),
        "phi3": DecoderConfig(
            **size,
            num_kv_heads=1,
            head_dim=8,
            family="phi3",
            rope_scaling=RopeScaling(
                kind="longrope",
                factor=4.0,
                original_max_position=512,
                short_factor=(1.0,) * 4,
                long_factor=(2.0,) * 4,
            ),
        ),
        "gemma3_text": DecoderConfig(
            **size,
            num_kv_heads=1,
            head_dim=8,
            family="gemma3_text",
            tie_embeddings=True,
            layer_types=("window", "full"),
            window=4,
            local_rope_theta=99.0,
            norms="both",
            norm_offset=True,
            query_norm="head",
            activation="gelu_tanh",
        ),
        "bert": EncoderConfig(
            **size,
            family="bert",
            embedding_size=16,
            max_position=32,
            head=STYLES["bert"],
        ).with_heads((HeadConfig("sequence", "sequence", 3),)),
        "t5": T5Config(**size, num_decoder_layers=2, head_dim=8),
    }
    tokenizer = Tokenizer.train(_TEXTS, 280)
    for name, config in configs.items():
        _write_model(root / name, config)
        tokenizer.save(root / name)
        (root / name / "generation_config.json").write_text('{"eos_token_id": 1}', "utf-8")
    _write_adapter(root / "adapter")
    for name in (*configs, "adapter"):
        _convert(name, root / name, root / f"{name}-converted", root)


def _write_model(directory: Path, config: Any) -> None:
    from jaxclf.convert import files, hf_import, mapping
    from jaxclf.core import tree
    from jaxclf.models import registry

    family = hf_import.FAMILIES[config.family]
    leaves = tree.flatten(registry.create(config).abstract)
    tensors = mapping.expand(family.rows(config), {p: leaf.shape for p, leaf in leaves.items()})
    values = np.random.default_rng(0)
    directory.mkdir()
    theirs = family.write_config(config, ["no", "maybe", "yes"])
    (directory / "config.json").write_text(json.dumps(theirs, indent=1), "utf-8")
    files.write_weights(
        directory,
        {name: (shape, "float32") for name, shape in mapping.whole_shapes(tensors).items()},
        lambda name: [
            values.standard_normal(tensor.shape, np.float32)
            for tensor in tensors
            if tensor.name == name
        ],
        20_000 if config.family == "llama" else 10**9,
    )


def _write_adapter(directory: Path) -> None:
    import safetensors.numpy

    values = np.random.default_rng(1)
    shapes = {"classifier.weight": (3, 16), "classifier.bias": (3,)}
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}.attention.self.query"
        shapes |= {f"{name}.lora_A.weight": (2, 16), f"{name}.lora_B.weight": (16, 2)}
    directory.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "base",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "target_modules": ["query"],
        "rank_pattern": {},
        "modules_to_save": ["classifier"],
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings, indent=1), "utf-8")
    safetensors.numpy.save_file(
        {
            f"base_model.model.{name}": values.standard_normal(shape, np.float32)
            for name, shape in shapes.items()
        },
        directory / "adapter_model.safetensors",
    )


# Changes -----------------------------------------------------------------------------------------


def _nested(draw: random.Random) -> Any:
    """Deeper than any parser goes; a text, since no writer goes there either."""
    return _Raw("[" * 100_000 + "]" * 100_000 if draw.random() < 0.5 else '{"a":' * 50_000)


class _Raw(str):
    """JSON to be put in as it is."""


_VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda draw: None,
    lambda draw: draw.choice([True, False]),
    lambda draw: draw.choice([0, 1, -1, 2, 3, 7, 17]),
    lambda draw: draw.choice([10**6, 10**9, 2**31, 2**32 + 1, 2**63, 2**64, 10**30]),
    lambda draw: draw.choice([0.5, -0.0, 1e-300, 1e308, 1.5e9]),
    lambda draw: _Raw(draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])),
    lambda draw: draw.choice(["", "x", "0", "LABEL_0", "../../etc/passwd", "\ud800", "é" * 99]),
    lambda draw: "x" * 10**6,
    lambda draw: draw.choice([[], {}, [[]], [None], {"": ""}, [1, "a"], {"0": 1}]),
    lambda draw: list(range(draw.choice([1, 5, 5000]))),
    _nested,
)


def _places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The paths of all values within a JSON value, its own first; of long lists the first ten."""
    yield at
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value[:10]) if isinstance(value, list) else items
    for key, inner in list(items)[:200]:
        yield from _places(inner, (*at, key))


def _dump(value: Any) -> str:
    """JSON with what is `_Raw` in it put in as it is."""
    raw: list[str] = []

    def strip(inner: Any) -> Any:
        if isinstance(inner, _Raw):
            raw.append(inner)
            return f"\0{len(raw) - 1}\0"
        if isinstance(inner, dict):
            return {key: strip(each) for key, each in inner.items()}
        return [strip(each) for each in inner] if isinstance(inner, list) else inner

    text = json.dumps(strip(value))
    for index, each in enumerate(raw):
        text = text.replace(f'"\\u0000{index}\\u0000"', each)
    return text


def change_json(text: str, draw: random.Random) -> tuple[str, str]:
    """The text with one value changed, removed, renamed, added or said twice, and what was done."""
    value = json.loads(text)
    at = draw.choice(list(_places(value)))
    if not at:
        new = draw.choice(_VALUES)(draw)
        return _dump(new), f"all is {str(new)[:40]!r}"
    holder = value
    for key in at[:-1]:
        holder = holder[key]
    last, kind = at[-1], draw.random()
    if kind < 0.15:
        del holder[last]
        return _dump(value), f"{at} removed"
    if kind < 0.25 and isinstance(holder, dict):
        name = draw.choice(["x", "", str(last).upper(), str(last) + "_", "num_labels", "revision"])
        holder[name] = holder[last] if draw.random() < 0.5 else holder.pop(last)
        return _dump(value), f"{at} renamed {name!r}"
    old = holder[last]
    new = draw.choice(_VALUES)(draw)
    if isinstance(old, int | float) and not isinstance(old, bool) and draw.random() < 0.4:
        new = draw.choice([old + 1, old - 1, old * 2, -old, float(old), str(old)])
    holder[last] = new
    return _dump(value), f"{at} is {str(new)[:40]!r}, was {str(old)[:40]!r}"


def change_bytes(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Content with flipped, cut, doubled, zeroed or foreign bytes, and what was done."""
    at = draw.randrange(len(content) + 1)
    some = draw.choice([1, 1, 2, 8, 64, 1000])
    kind = draw.choice(
        ["flip", "flip", "cut", "remove", "double", "zero", "random", "empty", "half"]
    )
    if kind == "flip":
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 1, 5])):
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        return bytes(changed), kind
    insides = {
        "cut": content[:at],
        "remove": content[:at] + content[at + some :],
        "double": content[: at + some] + content[at:],
        "zero": content[:at] + bytes(len(content[at : at + some])) + content[at + some :],
        "random": content[:at] + draw.randbytes(some) + content[at + some :],
        "empty": b"",
        "half": content[: len(content) // 2],
    }
    return insides[kind], f"{kind} at {at}"


def change_header(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """safetensors whose header says something else, of the right length or not."""
    size = int.from_bytes(content[:8], "little")
    header, what = change_json(content[8 : 8 + size].decode(), draw)
    encoded = header.encode("utf-8", "surrogatepass")
    length = len(encoded)
    if draw.random() < 0.15:
        length = draw.choice([0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1])
        what += f", length {length}"
    return length.to_bytes(8, "little") + encoded + content[8 + size :], what


def change(directory: Path, draw: random.Random) -> str:
    """Change one file of a folder, and say how."""
    path = draw.choice(sorted(path for path in directory.iterdir() if path.is_file()))
    if draw.random() < 0.06:
        kind = draw.choice(["removed", "a link to nothing", "a folder", "a link to itself"])
        path.unlink()
        if kind == "a link to nothing":
            path.symlink_to(directory / "gone")
        elif kind == "a link to itself":
            path.symlink_to(path)
        elif kind == "a folder":
            path.mkdir()
        return f"{path.name}: {kind}"
    content = path.read_bytes()
    if path.suffix == ".safetensors" and draw.random() < 0.5:
        content, what = change_header(content, draw)
    elif path.suffix == ".json" and draw.random() < 0.8:
        text, what = change_json(content.decode(), draw)
        content = text.encode("utf-8", "surrogatepass")
    else:
        content, what = change_bytes(content, draw)
    path.write_bytes(content)
    return f"{path.name}: {what}"


# Cases -------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """`kind`: see above. `what`: was changed. `message`: of the error."""

    kind: str
    folder: str
    what: str
    message: str


class _SlowError(BaseException):
    """No handler of the code under test takes it for one of its own."""


def run_case(root: Path, seed: int, number: int) -> Outcome:
    """Change a copy of one of the folders in `root` and convert it."""
    from jaxclf.core.errors import JaxclfError

    draw = random.Random(f"{seed}/{number}")
    name = draw.choice(FOLDERS)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        source, destination = Path(scratch) / "theirs", Path(scratch) / "ours"
        shutil.copytree(root / name, source)
        what = change(source, draw)
        kind, message = "traceback", ""
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    _convert(name, source, destination, root)
                kind = _compare(name, source, destination, root)
            except (JaxclfError, OSError) as error:
                kind, message = "refused", f"{type(error).__name__}: {error}"
                if destination.exists() or len(os.listdir(scratch)) > 1:
                    kind = "left"
            except _SlowError:
                kind = "hang"
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                message = f"{type(error).__name__}: {error} at {place.filename}:{place.lineno}"
        return Outcome(kind, name, what, message)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """An alarm, and an error instead of a machine without memory."""

    def alarm(*_: Any) -> None:
        raise _SlowError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM, hard))
    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, _WAIT),
    )
    before = {number: signal.signal(number, alarm) for number, _, _ in timers}
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds, 1)  # again, where a callback swallows the first
    try:
        yield
    finally:
        for number, timer, _ in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _convert(name: str, source: Path, destination: Path, root: Path) -> None:
    from jaxclf.convert import hf_import, peft_import

    if name == "adapter":
        peft_import.convert(source, destination, str(root / "bert-converted"))
    else:
        hf_import.convert(source, destination, progress=lambda line: None)


def _compare(name: str, source: Path, destination: Path, root: Path) -> str:
    """Whether what was converted is what stands in the files, read a second way."""
    from jaxclf.checkpoint import model_dir, tree_store
    from jaxclf.convert import hf_import, mapping

    found = model_dir.resolve(destination)
    tree_store.verify(found.params_dir, found.manifest, finite=True)
    original = root / f"{name}-converted"
    if model_dir.resolve(original).manifest == found.manifest:
        same = (original / "model.json").read_bytes() == (destination / "model.json").read_bytes()
        return "equal" if same else "as the file says"
    stored = _tensors(source)
    if name == "adapter":
        ours = [
            tree_store.read(found.params_dir, path)[index].T
            for path in found.manifest
            if "/factors/" in f"/{path}"
            for index in range(found.manifest[path].shape[0])
        ]
        theirs = {array.tobytes() for array in stored.values()}
        return "as the file says" if {a.tobytes() for a in ours} <= theirs else "silent"
    config, _ = model_dir.read_model(found.model_json)
    family = hf_import.FAMILIES[config.family]
    shapes = {path: leaf.shape for path, leaf in found.manifest.items()}
    for tensor in mapping.expand(family.rows(config), shapes):
        values = tree_store.read(found.params_dir, tensor.ours, tensor.layer)
        values = values.T if tensor.transpose else values
        part = np.ascontiguousarray(stored[tensor.name][tensor.slices])
        if part.tobytes() != np.ascontiguousarray(values).tobytes():
            return "silent"
    return "as the file says"


def _tensors(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of all files by the format's own words, without its library."""
    import ml_dtypes

    kinds = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, each in json.loads(content[8:start]).items():
            if name != "__metadata__":
                first, last = (start + offset for offset in each["data_offsets"])
                array = np.frombuffer(content[first:last], kinds[each["dtype"]])
                found[name] = array.reshape(each["shape"])
    return found


def run_all(count: int, seed: int, first: int = 0) -> tuple[collections.Counter, list[str]]:
    """Cases `first` to `count` in processes that may die: counts by outcome, and the faults."""
    counts, faults = collections.Counter(), []
    with tempfile.TemporaryDirectory() as root:
        write_folders(Path(root))
        number = first
        while number < count:
            command = [sys.executable, "-m", "benchmarks.faults.model_files", "--count", str(count)]
            command += ["--seed", str(seed), "--first", str(number), "--worker", root]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
                assert worker.stdout is not None
                for line in worker.stdout:
                    outcome = Outcome(*json.loads(line))
                    _note(outcome, number, seed, counts, faults)
                    number += 1
            if number < count:
                _note(
                    Outcome("crash", "", f"exit {worker.returncode}", ""),
                    number,
                    seed,
                    counts,
                    faults,
                )
                number += 1
    return counts, faults


def _note(
    outcome: Outcome, number: int, seed: int, counts: collections.Counter, faults: list[str]
) -> None:
    counts[outcome.kind] += 1
    if outcome.kind not in FINE:
        faults.append(
            f"{outcome.kind}: {outcome.folder} {outcome.what}: {outcome.message[:300]}\n"
            f"  python -m benchmarks.faults.model_files --seed {seed} --first {number} "
            f"--count {number + 1}"
        )
        print(faults[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with os.fdopen(os.dup(1), "w") as outcomes:  # whatever a library prints goes elsewhere
            os.dup2(2, 1)
            for number in range(options.first, options.count):
                print(json.dumps(run_case(options.worker, options.seed, number)), file=outcomes)
                outcomes.flush()
        return
    counts, faults = run_all(options.count, options.seed, options.first)
    total = sum(counts.values())
    print(f"{total} cases: {', '.join(f'{n} {kind}' for kind, n in counts.most_common())}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
