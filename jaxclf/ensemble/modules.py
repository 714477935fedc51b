"""The modules of an attention ensemble: adapters of several tasks on one frozen base.

Each is a run of its own in `attens.adapters`/NAME, or WORKDIR/adapters/NAME, trained where it is
missing; or a directory of the peft library in its place.
"""

import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxclf.checkpoint import tree_store
from jaxclf.checkpoint.model_dir import (
    ModelSource,
    check_base,
    load_adapters,
    read_model,
    resolve,
    write_base,
)
from jaxclf.classifiers import transfer
from jaxclf.core.errors import InputError
from jaxclf.data import datasets
from jaxclf.data.datasets import Dataset
from jaxclf.data.tasks import has_gold
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.distributed import sharding
from jaxclf.ensemble.attens import Pooling
from jaxclf.ensemble.features import AdaptedBase
from jaxclf.models import registry
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.models.t5 import T5Config
from jaxclf.runs.setup import with_vocabulary
from jaxclf.runs.training import train

FromPeft = Callable[[Path, Path, str], None]  # (peft directory, new directory, base)

_PEFT_FILE = "adapter_config.json"


def short(name: str) -> str:
    """`"glue/rte" → "rte"`."""
    return name.rpartition("/")[2]


class Modules:
    """What a config names, on one base; raises InputError where it cannot be combined.

    `base`: a model directory, run or converted checkpoint. `from_peft` converts adapters of peft.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        base: ModelSource,
        from_peft: FromPeft | None = None,
    ):
        self.config, self.workdir, self.base, self.from_peft = config, workdir, base, from_peft
        fields = config.attens
        self.folder = Path(fields.adapters) if fields.adapters else workdir / "adapters"
        self.names = tuple(fields.modules)
        if len({*map(short, self.names)}) < len(self.names):
            raise InputError(f"attens.modules names a module twice: {', '.join(self.names)}")
        for k in (fields.k, *fields.sweep):
            if k > len(self.names):
                raise InputError(
                    f"attens.k or attens.sweep asks for {k} modules; attens.modules names "
                    f"{len(self.names)}"
                )
        self.dimensions, _ = read_model(base.model_json)
        if isinstance(self.dimensions, T5Config):
            raise InputError(
                f"{config.model.name or 'the model'} has an encoder and a decoder; an ensemble "
                "combines what one stack of layers sees. Choose a Llama or an encoder"
            )
        if self.dimensions.hidden_size % fields.heads:
            raise InputError(
                f"attens.heads is {fields.heads}; expected a divisor of the model's size, which is "
                f"{self.dimensions.hidden_size}"
            )
        self.pooling = Pooling(fields.tokens, fields.padding)
        self.tokenizer = Tokenizer.load(base.tokenizer_dir)

    def train_missing(self, targets: Sequence[str]) -> None:
        """A run for every wanted module that has none; with baselines, for targets as well."""
        extra = targets if self.config.attens.baselines else ()
        names = list(dict.fromkeys((*self.wanted(targets), *extra)))
        for number, name in enumerate(names):
            folder = self.folder / short(name)
            if (folder / _PEFT_FILE).is_file() or (folder / "report.json").is_file():
                continue
            print(f"adapter {number + 1} of {len(names)}: {short(name)}", flush=True)
            train(self.config_of(name), folder, self.base)

    def config_of(self, name: str) -> ConfigDict:
        """The settings of a module's own run, which nothing of the combiner's changes."""
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            del config["attens"]
            config.data.name, config.data.task = name, "both"
            config.seed = _seed(config, name)
            dataset = datasets.load(config.data, config.seed)
            config.eval.split = scored_split(dataset, config.eval.split)
            if not config.model.checkpoint:
                # The zoo's dimensions with a vocabulary of the run's own.
                config.model.name, config.model.checkpoint = "", str(self.base.model_json.parent)
        return config.lock()

    def open(self, names: Sequence[str]) -> AdaptedBase:
        """The base and these modules; raises ArtifactError where a module has another base."""
        dimensions = self.dimensions
        if isinstance(dimensions, EncoderConfig):
            dimensions = dataclasses.replace(dimensions, heads=(), pooler=False)
        model = create_model(self.config, dimensions)
        plan = transfer.plan(model, self.base, "new")
        params = transfer.load(model, self.base, plan, jax.random.key(0))
        found, fingerprints = {}, {}
        for name in map(short, names):
            source = self._find(name)
            assert source.adapters is not None
            check_base(source.adapters, self.base, self.folder / name)
            own, _ = read_model(source.model_json)
            found[name] = load_adapters(source, create_model(self.config, own).abstract)
            spec = json.dumps(dataclasses.asdict(source.adapters.spec), sort_keys=True)
            fingerprints[name] = f"{tree_store.fingerprint(source.manifest)} {spec}"
        return AdaptedBase(
            model, params, tree_store.fingerprint(self.base.manifest), found, fingerprints
        )

    def _find(self, name: str) -> ModelSource:
        """The last checkpoint of a module's run, or a peft directory converted."""
        folder = self.folder / name
        if (folder / _PEFT_FILE).is_file():
            converted = self.workdir / "converted" / name
            if not converted.is_dir():
                if self.from_peft is None:
                    raise InputError(
                        f"{folder} is a directory of peft; convert it with python -m "
                        "jaxclf.convert.from_peft first"
                    )
                self.from_peft(folder, converted, str(self.base.model_json.parent))
            folder = converted
        source = resolve(folder, "last")
        if source.adapters is None:
            raise InputError(
                f"{folder} holds a whole model; attens.adapters expects adapters, such as those of "
                "a run with tune=lora"
            )
        return source

    def wanted(self, targets: Sequence[str]) -> list[str]:
        """The modules that are combined for any of the targets, as listed."""
        ks = (self.config.attens.k, *self.config.attens.sweep)
        kept = {name for target in targets for k in ks for name in self.chosen(target, k)}
        return [name for name in self.names if short(name) in kept]

    def chosen(self, target: str, k: int) -> list[str]:
        """The k modules combined for a target, as listed: its own first, then the others in order.

        0: all of them.
        """
        ordered = sorted(self.names, key=lambda name: name != target)
        kept = ordered[: k or len(ordered)]
        return [short(name) for name in self.names if name in kept]


def own_base(config: ConfigDict, workdir: Path) -> ModelSource:
    """A random base with a tokenizer trained on all texts, which the run keeps."""
    own = workdir / "base"
    if not (own / "tokenizer").is_dir():
        shutil.rmtree(own, ignore_errors=True)
        texts: list[str] = []
        for name in (*config.attens.modules, *(config.attens.targets or (config.data.name,))):
            train_split = load_data(config, name).splits["train"]
            texts += [text for each in train_split for text in (each.text, each.pair) if text]
        tokenizer = Tokenizer.train(texts, config.tokenizer.vocab_size)
        model = create_model(
            config, with_vocabulary(registry.find(config.model.name), tokenizer, None)
        )
        params = sharding.born(model.init, jax.random.key(config.seed))
        write_base(own, params, model.config, config.model.param_dtype, config.model.quantize)
        tokenizer.save(own / "tokenizer.partial")
        (own / "tokenizer.partial").rename(own / "tokenizer")
    return resolve(own)


def _seed(config: ConfigDict, name: str) -> int:
    """A module's own: two of the same texts (MNLI's) are two modules by their seeds alone."""
    return 1_000 * config.seed + zlib.crc32(name.encode()) % 1_000


def load_data(config: ConfigDict, name: str) -> Dataset:
    """A data set under the run's settings of data; `data.task` is of `data.name` alone.

    Of few labels (`data.train_examples`) they are those that the module of that name has seen.
    """
    fields = config.data.copy_and_resolve_references()
    with fields.unlocked():
        if name != fields.name:
            fields.name, fields.task = name, "both"
    return datasets.load(fields, _seed(config, name))


def scored_split(dataset: Dataset, wanted: str) -> str:
    """The wanted split where it has labels, else dev, the held-out or the test split.

    Raises InputError where none has.
    """
    for split in (wanted, "dev", "heldout", "test"):
        if any(has_gold(record, dataset.tasks) for record in dataset.splits.get(split, ())):
            return split
    raise InputError(f"data set {dataset.name} has no split with labels to score")
