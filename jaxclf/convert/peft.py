"""LoRA adapters in the files of the `peft` library: their tensors and settings as ours, and back.

Beside a module NAME of transformers' model, in one layer, stand

    base_model.model.NAME.lora_A.weight [R, D]        of our stacked factors: a, transposed
    base_model.model.NAME.lora_B.weight [F, R]        b, transposed
    base_model.model.NAME.lora_magnitude_vector [F]   magnitude (DoRA)
    base_model.model.NAME.weight, .bias               a saved leaf of the base (`modules_to_save`)

Experts are parameters `[E …]` of a module (`target_parameters`). Their factors lie in one pair:
lora_A [E·R, D], expert after expert, and lora_B [F, R·E], whose columns the experts take in turn.
Where two parameters of a module have factors, those of the first stand below `NAME.base_layer`.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxclf.adapters.lora import ALL_LINEAR, Place, Spec
from jaxclf.config.rules import is_pattern
from jaxclf.convert import attributes
from jaxclf.convert.attributes import is_number, is_size
from jaxclf.convert.mapping import Family, Tensor, TensorRow
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.heads import HeadKind

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FUSED, DOWN = "gate_up_proj", "down_proj"  # parameters of experts
LABELS = "labels"  # in the metadata of the weights: peft has no place for a head's names

# peft's name for what a model with such a head does.
TASK_TYPES: dict[HeadKind, str] = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
GENERATION, TEXT_TO_TEXT, HIDDEN_STATES = "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"

# Tensors ------------------------------------------------------------------------------------------


def layout(
    model: Iterable[Tensor], places: Mapping[str, Place], dora: bool, saved: Collection[str]
) -> list[Tensor]:
    """The tensors of an adapter's file, from those of its model.

    `saved`: paths of the leaves that are trained themselves. A tensor's `ours` is its path in
    `lora.Adapters`, its `layer` an index there: of the chosen layers.
    """
    found, model = [], list(model)
    with_factors = {tensor.name for tensor in model if _index(tensor, places) is not None}
    for tensor in model:
        if tensor.ours in saved:
            name, path = PREFIX + tensor.name, f"saved/{tensor.ours}"
            found.append(dataclasses.replace(tensor, name=name, ours=path))
        path = tensor.ours.removesuffix("/kernel")
        if (index := _index(tensor, places)) is None:
            continue
        place = places[path]
        number = None if place.layers is None else index
        rank, path = place.ranks[index], f"factors/{path}"
        if is_experts(tensor):
            found += _of_experts(tensor, path, number, rank, with_factors)
            continue
        size_out, size_in = tensor.shape
        name = PREFIX + module_of(tensor)
        # Of kernels that share a tensor, one factor is theirs together, the other in parts.
        cut = tensor.slices
        found += [
            Tensor(f"{name}.lora_A.weight", (rank, size_in), f"{path}/a", number, True),
            Tensor(f"{name}.lora_B.weight", (size_out, rank), f"{path}/b", number, True, cut),
        ]
        if dora:
            magnitude = f"{name}.lora_magnitude_vector"
            path = f"{path}/magnitude"
            found.append(Tensor(magnitude, (size_out,), path, number, False, cut))
    return found


def _index(tensor: Tensor, places: Mapping[str, Place]) -> int | None:
    """Which of its place's layers a tensor is of; None: it has no factors."""
    place = places.get(tensor.ours.removesuffix("/kernel"))
    if place is None or not is_kernel(tensor):
        return None
    if place.layers is None:
        return 0
    return place.layers.index(tensor.layer) if tensor.layer in place.layers else None


def _of_experts(
    tensor: Tensor, path: str, index: int | None, rank: int, with_factors: Collection[str]
) -> Iterator[Tensor]:
    """The parts of experts' factors, of each its own."""
    count, size_in, size_out = tensor.shape
    name, _, parameter = (PREFIX + tensor.name).rpartition(".")
    if parameter == FUSED and f"{module_of(tensor).removesuffix(FUSED)}{DOWN}" in with_factors:
        name += ".base_layer"
    columns = tensor.slices[2] if len(tensor.slices) > 2 else slice(None)
    for expert in range(count):
        rows = (slice(expert * rank, (expert + 1) * rank),)
        turns = (columns, slice(expert, expert + rank * count, count))
        options = {"layer": index, "transpose": True, "expert": expert}
        a, b = (rank, size_in), (size_out, rank)
        yield Tensor(f"{name}.lora_A.weight", a, f"{path}/a", slices=rows, **options)
        yield Tensor(f"{name}.lora_B.weight", b, f"{path}/b", slices=turns, **options)


def refuse_parts(model: Iterable[Tensor], places: Mapping[str, Place], source: object) -> None:
    """Raise InputError where adapters of several kernels would lie in one tensor of the model."""
    model = list(model)
    counts = collections.Counter(tensor.name for tensor in model)
    for tensor in model:
        if counts[tensor.name] > 1 and tensor.ours.removesuffix("/kernel") in places:
            raise InputError(
                f"{source} has adapters of {tensor.ours}, which is a part of {tensor.name}: peft "
                "has one pair of factors for all of it. Export the merged model instead: "
                "jaxclf.convert.to_hf --merge"
            )


def refuse_parameters(model: Iterable[Tensor], settings: Mapping[str, Any], source: object) -> None:
    """Raise InputError where `target_parameters` name other parameters than experts'."""
    names = [tensor.name for tensor in model if is_experts(tensor)]
    given = settings["target_parameters"]
    others = [each for each in given if not any(_is_named(name, [each]) for name in names)]
    if others:
        known = sorted({name.rpartition(".")[2] for name in names}) or "none of this model"
        attributes.refuse([f"target_parameters={others!r} (only {known})"], source)


def module_of(tensor: Tensor) -> str:
    """The name of the module that a tensor of the model belongs to, or of experts' parameter."""
    return tensor.name if is_experts(tensor) else tensor.name.rpartition(".")[0]


def table(family: Family, config: Any) -> Sequence[TensorRow]:
    """The model's tensors by the names that peft knows: those of transformers' parameters."""
    return (family.parameters or family.rows)(config)


def without(prefix: str, model: Iterable[Tensor]) -> list[Tensor]:
    """The tensors of a bare model, whose names lack what stands before them in one with a head."""
    return [dataclasses.replace(tensor, name=tensor.name.removeprefix(prefix)) for tensor in model]


def is_kernel(tensor: Tensor) -> bool:
    return tensor.ours.endswith("/kernel")


def is_experts(tensor: Tensor) -> bool:
    """Whether it is a parameter that holds the kernels of all experts."""
    return is_kernel(tensor) and len(tensor.shape) == 3


# Reading settings ---------------------------------------------------------------------------------

_DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": ALL_LINEAR,
    "target_parameters": (),
    "exclude_modules": (),
    "layers_to_transform": (),
    "modules_to_save": (),
    "task_type": None,
    "base_model_name_or_path": None,
    "revision": None,
}

# Where an adapter started, and what names things. A `layers_pattern` names the list of layers, of
# which our families have one.
_HARMLESS = {"auto_mapping", "eva_config", "inference_mode", "layers_pattern", "peft_version"}

# Attributes that would change the computation, with the one value under which they do not.
_FIXED = {
    "peft_type": "LORA",
    "bias": "none",
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
# The other starts change the base as well.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def read_settings(theirs: Any, source: object) -> dict[str, Any]:
    """The content of an adapter_config.json with peft's values for what it leaves out.

    Raises InputError naming every attribute that we do not honour, ArtifactError for an impossible
    value.
    """
    if not isinstance(theirs, dict):
        raise ArtifactError(f"{source}: must be a JSON object")
    values = _DEFAULTS | {name: value for name, value in theirs.items() if value is not None}
    known = {*_DEFAULTS, *_HARMLESS, "init_lora_weights"}
    # Attributes of a newer peft are off where they are false, empty or null.
    given = {name: value for name, value in theirs.items() if value}
    attributes.refuse_unknown({"peft_type": None, **given}, known, _FIXED, source)
    if (start := values.get("init_lora_weights", True)) not in _STARTS:
        attributes.refuse([f"init_lora_weights={start!r} (only {_STARTS})"], source)
    task_types = (None, *TASK_TYPES.values(), GENERATION, TEXT_TO_TEXT, HIDDEN_STATES)
    if values["task_type"] not in task_types:
        attributes.refuse([f"task_type={values['task_type']!r} (only {task_types})"], source)
    if isinstance(values["layers_to_transform"], int):
        values["layers_to_transform"] = [values["layers_to_transform"]]

    attributes.check_numbers(values, ["r"], ["lora_alpha", "lora_dropout"], source)
    checks = {
        "rank_pattern": _are_patterns(values["rank_pattern"], is_size),
        "alpha_pattern": _are_patterns(values["alpha_pattern"], is_number),
        "target_modules": _choose_modules(values["target_modules"]),
        "target_parameters": _are_all(values["target_parameters"], str),
        "exclude_modules": _choose_modules(values["exclude_modules"]),
        "layers_to_transform": _are_all(values["layers_to_transform"], int),
        "modules_to_save": _are_all(values["modules_to_save"], str),
        "use_dora": isinstance(values["use_dora"], bool),
        "use_rslora": isinstance(values["use_rslora"], bool),
    }
    if wrong := [name for name, is_right in checks.items() if not is_right]:
        raise ArtifactError(f"{source}: impossible: {attributes.shown(values, wrong)}")
    return values


def _are_all(values: Any, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def _are_patterns(values: Any, is_right: Callable[[Any], bool]) -> bool:
    if not isinstance(values, dict):
        return False
    return all(map(is_pattern, values)) and all(map(is_right, values.values()))


def _choose_modules(value: Any) -> bool:
    return is_pattern(value) if isinstance(value, str) else _are_all(value, str)


def read_places(
    model: Iterable[Tensor], settings: Mapping[str, Any], found: Collection[str]
) -> dict[str, Place]:
    """Path of our module → its place, for the modules that have factors by the settings.

    `model`: the tensors that may have factors. `found`: the names of the file; they tell where the
    settings say "all-linear", of which peft takes away some.
    """
    chosen: dict[str, list[tuple[int | None, int, float]]] = {}
    for tensor in filter(is_kernel, model):
        name = module_of(tensor)
        if is_experts(tensor):
            is_target = _is_named(name, settings["target_parameters"])
        elif settings["target_modules"] == ALL_LINEAR:
            is_target = f"{PREFIX}{name}.lora_A.weight" in found
        else:
            is_target = _is_target(name, settings)
        if is_target:
            rank = _by_pattern(settings["rank_pattern"], name, settings["r"])
            alpha = _by_pattern(settings["alpha_pattern"], name, settings["lora_alpha"])
            path = tensor.ours.removesuffix("/kernel")
            chosen.setdefault(path, []).append((tensor.layer, rank, float(alpha)))
    places = {}
    for path, of_layers in chosen.items():
        layers, ranks, alphas = zip(*of_layers, strict=True)
        places[path] = Place(None if layers == (None,) else layers, ranks, alphas)
    return places


def is_saved(tensor: Tensor, settings: Mapping[str, Any]) -> bool:
    """Whether a tensor of the model belongs to one of `modules_to_save`, by the ends of names."""
    return _is_within(tensor, settings["modules_to_save"])


def _is_within(tensor: Tensor, modules: Iterable[str]) -> bool:
    return any(f"{module}." in tensor.name for module in modules)


def _is_target(name: str, settings: Mapping[str, Any]) -> bool:
    targets, layers = settings["target_modules"], settings["layers_to_transform"]
    if not _is_named(name, targets) or _is_named(name, settings["exclude_modules"]):
        return False
    if not layers or isinstance(targets, str):
        return True
    number = re.search(r"\.(\d+)\.", name)
    return number is not None and int(number[1]) in layers


def _is_named(name: str, modules: str | Sequence[str]) -> bool:
    """By a regular expression of the whole name, or a list of names' ends."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(f".{name}".endswith(f".{module}") for module in modules)


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that matches an end of the name."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default


# From places to our spec --------------------------------------------------------------------------


def make_spec(
    places: Mapping[str, Place],
    depths: Mapping[str, int | None],
    experts: Collection[str],
    saved: Iterable[str],
    settings: Mapping[str, Any],
) -> Spec:
    """The shortest spec that chooses exactly these places and saved leaves.

    `depths`: every module of the model that can have factors, with its number of layers. `experts`:
    which of these are experts.
    """
    layered = {path: place.layers for path, place in places.items() if place.layers is not None}
    alike = {path for path, chosen in layered.items() if len(chosen) == depths[path]}
    layers: tuple[int, ...] = ()
    if not alike and len(set(layered.values())) == 1:  # said once, for all modules
        alike, layers = set(layered), next(iter(layered.values()))
    targets = {
        path: _pattern(path, None if path in alike else place.layers, depths)
        for path, place in places.items()
    }
    linear = {path for path, depth in depths.items() if depth is not None} - {*experts}
    if alike - {*experts} == linear:
        outside = {path: target for path, target in targets.items() if path not in linear}
        targets = {"layers": ALL_LINEAR, **outside}

    ranks = [rank for place in places.values() for rank in place.ranks]
    alphas = [alpha for place in places.values() for alpha in place.alphas]
    rank = _most_common(ranks, settings["r"])
    alpha = _most_common(alphas, float(settings["lora_alpha"]))
    return Spec(
        kind="dora" if settings["use_dora"] else "lora",
        targets=tuple(targets.values()),
        layers=layers,
        rank=rank,
        alpha=alpha,
        rank_pattern=_exceptions(places, lambda place: place.ranks, rank, depths),
        alpha_pattern=_exceptions(places, lambda place: place.alphas, alpha, depths),
        dropout=float(settings["lora_dropout"]),
        rslora=bool(settings["use_rslora"]),
        saved=tuple(map(re.escape, saved)),
    )


def _most_common(values: Iterable[Any], preferred: Any) -> Any:
    counts = collections.Counter(values)
    return max(counts, key=lambda value: (counts[value], value == preferred))


def _exceptions(
    places: Mapping[str, Place],
    values: Callable[[Place], tuple],
    default: Any,
    depths: Mapping[str, int | None],
) -> tuple[tuple[str, Any], ...]:
    """(pattern, value) for all modules and layers whose value is not the default."""
    pairs = []
    for path, place in places.items():
        by_value: dict[Any, list[int]] = {}
        for layer, value in zip(place.layers or (0,), values(place), strict=True):
            by_value.setdefault(value, []).append(layer)
        for value, layers in by_value.items():
            if value != default:
                pairs.append(
                    (_pattern(path, None if len(by_value) == 1 else layers, depths), value)
                )
    return tuple(pairs)


def _pattern(path: str, layers: Sequence[int] | None, modules: Iterable[str]) -> str:
    """A pattern of a spec for one module, in these layers or in all that it has."""
    *_, last = path.split("/")
    if layers is None and sum(other.split("/")[-1] == last for other in modules) == 1:
        return last
    if not path.startswith("layers/"):
        return re.escape(path)
    numbers = r"\d+" if layers is None else "|".join(map(str, layers))
    numbers = f"({numbers})" if "|" in numbers else numbers
    return f"layers/{numbers}/{re.escape(path.removeprefix('layers/'))}"


# Writing settings ---------------------------------------------------------------------------------


def write_settings(
    spec: Spec,
    places: Mapping[str, Place],
    saved: Collection[str],
    model: Sequence[Tensor],
    rows: Sequence[TensorRow],
    task_type: str | None,
    base: str | None,
) -> dict[str, Any]:
    """The content of an adapter_config.json for adapters on a model of these tensors.

    `rows`: the whole table, for the names of modules that this model lacks and transformers' may
    have. Raises InputError for what peft has no settings for.
    """
    if not places:
        raise InputError("the run trained no factors; an adapter of peft needs some")
    ranks: dict[int, set[str]] = {}
    alphas: dict[float, set[str]] = {}
    parameters: set[str] = set()
    for tensor in model:
        if (index := _index(tensor, places)) is not None:
            place = places[tensor.ours.removesuffix("/kernel")]
            parameters |= {module_of(tensor)} if is_experts(tensor) else set()
            ranks.setdefault(place.ranks[index], set()).add(module_of(tensor))
            alphas.setdefault(place.alphas[index], set()).add(module_of(tensor))
    names = {row.theirs.rpartition(".")[0] for row in rows if "{layer}" not in row.theirs}
    names |= set(map(module_of, model))

    def patterns(groups: Mapping[Any, set[str]], default: float) -> dict[str, Any]:
        return {
            name: _whole(value)
            for value, modules in groups.items()
            if value != default
            for name in _short_names(modules, names)
        }

    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": _whole(spec.alpha),
        "rank_pattern": patterns(ranks, spec.rank),
        "alpha_pattern": patterns(alphas, spec.alpha),
        "use_rslora": spec.rslora,
        "use_dora": spec.kind == "dora",
        "lora_dropout": spec.dropout,
        "target_modules": _short_names(set().union(*ranks.values()) - parameters, names),
        "target_parameters": _short_names(parameters, names) or None,
        "modules_to_save": _modules_to_save(model, places, saved) or None,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _whole(value: float) -> float:
    """peft declares alpha as an integer, and takes any number."""
    return int(value) if value == int(value) else value


def _short_names(chosen: Collection[str], modules: Collection[str]) -> list[str]:
    """Modules by their last name where all modules of that name are chosen, else in full."""
    last = {name: name.rpartition(".")[2] for name in {*chosen, *modules}}
    ambiguous = {last[name] for name in modules if name not in chosen}
    return sorted({name if last[name] in ambiguous else last[name] for name in chosen})


def _modules_to_save(
    model: Sequence[Tensor], places: Mapping[str, Place], saved: Collection[str]
) -> list[str]:
    """The modules whose tensors are all saved; a head is saved as a whole."""
    modules = {
        tensor.name.partition(".")[0] if tensor.ours.startswith("heads/") else module_of(tensor)
        for tensor in model
        if tensor.ours in saved
    }
    within = [tensor for tensor in model if _is_within(tensor, modules)]
    if others := [tensor.name for tensor in within if tensor.ours not in saved]:
        raise InputError(
            f"peft saves whole modules; beside what was trained it would save {', '.join(others)}. "
            "Export the merged model: python -m jaxclf.convert.to_hf --merge"
        )
    if both := [t.name for t in within if t.ours.removesuffix("/kernel") in places]:
        raise InputError(f"peft cannot both save a module and give it factors: {', '.join(both)}")
    return sorted(modules)


def check_tied(config: Any, saved: Collection[str], source: object) -> None:
    """Raise InputError where a saved embedding is the unembedding too: peft unties them."""
    if getattr(config, "tie_embeddings", False) and "embed/embedding" in saved:
        attributes.refuse(
            ["a trained embedding of a model that ties its unembedding to it"], source
        )
