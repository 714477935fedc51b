"""The modules of an attention ensemble: adapters of several tasks on one frozen base.

Each is a run of its own in `attens.adapters`/NAME, or WORKDIR/adapters/NAME, trained where it is
missing; or a directory of the peft library in its place.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxclf.checkpoint import model_files, tree_store
from jaxclf.checkpoint.model_dir import (
    ModelSource,
    adapters_text,
    check_base,
    load_adapters,
    read_adapters,
    read_model,
    relative,
    resolve,
    write_base,
)
from jaxclf.classifiers import transfer
from jaxclf.core import streams
from jaxclf.core.errors import InputError
from jaxclf.data import datasets
from jaxclf.data.datasets import Dataset
from jaxclf.data.tasks import has_gold
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.distributed import sharding
from jaxclf.ensemble import features
from jaxclf.ensemble.attens import Pooling
from jaxclf.ensemble.features import AdaptedBase
from jaxclf.models import registry
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.from_config import create_model
from jaxclf.models.registry import ModelConfig
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
        _check(config, self.dimensions)
        self.pooling = Pooling(fields.tokens, fields.padding)
        self.tokenizer = Tokenizer.load(base.tokenizer_dir)

    def missing(self, targets: Sequence[str]) -> dict[str, ConfigDict]:
        """The settings of each wanted module that has no run yet; with baselines, of targets too.

        Raises InputError where the data of one are not good.
        """
        extra = targets if self.config.attens.baselines else ()
        names = dict.fromkeys((*self.wanted(targets), *extra))
        found = (_PEFT_FILE, "report.json")
        return {
            name: self.config_of(name)
            for name in names
            if not any((self.folder / short(name) / file).is_file() for file in found)
        }

    def train(self, missing: Mapping[str, ConfigDict]) -> None:
        """The runs of these modules, one after the other."""
        for number, (name, config) in enumerate(missing.items()):
            print(f"adapter {number + 1} of {len(missing)}: {short(name)}", flush=True)
            train(config, self.folder / short(name), self.base)

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
                config.model.name = ""
                config.model.checkpoint = self._own(self.folder / short(name))
        return config.lock()

    def open(self, names: Sequence[str]) -> AdaptedBase:
        """The base and these modules; raises ArtifactError where a module has another base."""
        dimensions = self.dimensions
        if isinstance(dimensions, EncoderConfig):
            dimensions = dimensions.with_heads(())
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

    def _own(self, folder: Path) -> str:
        """The run's own base, as a folder beside it names that."""
        return relative(self.base.model_json.parent, folder.absolute())

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
                if not self.config.model.checkpoint:
                    info = read_adapters(converted / "adapters.json")
                    info = dataclasses.replace(info, checkpoint=self._own(converted))
                    model_files.replace(converted, {"adapters.json": adapters_text(info)})
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


def _check(config: ConfigDict, dimensions: ModelConfig) -> None:
    """Raise InputError where a model of these dimensions is no base for what the config asks."""
    fields, name = config.attens, config.model.name or "the model"
    if isinstance(dimensions, T5Config):
        raise InputError(
            f"{name} has an encoder and a decoder; an ensemble combines what one stack of layers "
            "sees. Choose a Llama or an encoder"
        )
    if dimensions.hidden_size % fields.heads:
        raise InputError(
            f"attens.heads is {fields.heads}; expected a divisor of the model's size, which is "
            f"{dimensions.hidden_size}"
        )
    if fields.padding and not isinstance(dimensions, EncoderConfig):
        raise InputError(
            f"attens.padding is {fields.padding}, which is for encoders; {name} is a decoder. Set "
            "it to 0"
        )
    features.check_positions(dimensions, "attens.padding", fields.padding)
    features.check_positions(dimensions, "train.max_length", config.train.max_length)


def own_base(config: ConfigDict, workdir: Path) -> ModelSource:
    """A random base with a tokenizer trained on all texts, which the run keeps."""
    _check(config, registry.find(config.model.name))
    own = workdir / "base"
    if not own.is_dir():
        texts: list[str] = []
        for name in (*config.attens.modules, *(config.attens.targets or (config.data.name,))):
            train_split = load_data(config, name).splits["train"]
            texts += [text for each in train_split for text in (each.text, each.pair) if text]
        tokenizer = Tokenizer.train(texts, config.tokenizer.vocab_size)
        model = create_model(
            config, with_vocabulary(registry.find(config.model.name), tokenizer, None)
        )
        params = sharding.born(model.init, streams.key(config.seed, streams.INITIALIZATION))
        fields = config.model
        write_base(own, params, model.config, fields.param_dtype, fields.quantize, tokenizer)
    return resolve(own)


def _seed(config: ConfigDict, name: str) -> int:
    """A module's own: two of the same texts (MNLI's) are two modules by their seeds alone."""
    return streams.number(config.seed, "module", name)


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
