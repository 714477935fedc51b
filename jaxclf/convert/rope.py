"""Rotary positions in config.json: θ, scaling and share, in the names of transformers 4 and 5."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxclf.convert.attributes import is_number, refuse
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.decoder_config import DecoderConfig
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.layers import RopeScaling

ATTRIBUTES = {"rope_theta", "rope_scaling", "rope_parameters"}

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
}
_YARN = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_position",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
_LONG = ("short_factor", "long_factor")
# rope_type → what must be there, and what may be.
_KNOWN: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({*_LLAMA3}, set()),
    "yarn": ({"factor"}, {*_YARN, "truncate", "mscale", "mscale_all_dim"}),
    "longrope": (
        {*_LONG},
        {"factor", "attention_factor", "original_max_position_embeddings"},
    ),
}


class Rotation(NamedTuple):
    """θ and scaling of all layers, share of a head that is rotated, θ of windows (0: the same)."""

    theta: float
    scaling: RopeScaling | None
    share: float
    local_theta: float


def read(values: Mapping[str, Any], family: str, source: object) -> Rotation:
    """From `rope_parameters` (transformers 5) or `rope_theta`, `rope_scaling` (4).

    `values`: with transformers' defaults. Raises InputError for what we do not compute and for
    values that contradict each other, ArtifactError for missing or impossible ones.
    """
    parameters = values.get("rope_parameters", {})
    if not parameters and not values.get("rope_scaling"):
        parameters = _SCALINGS.get(family, parameters)
    local_theta = values.get("rope_local_base_freq", 0.0)
    if family in _LOCAL_THETAS:
        local_theta = local_theta or _LOCAL_THETAS[family]
        if isinstance(parameters, dict) and "full_attention" in parameters:
            local = parameters.get("sliding_attention", {})
            parameters = parameters["full_attention"]
            if not isinstance(local, dict) or local.get("rope_type", "default") != "default":
                raise InputError(f"{source}: rope_parameters of sliding_attention: {local!r}")
            local_theta = local.get("rope_theta", local_theta)
    places = [
        {"rope_theta": values.get("rope_theta")},
        {"partial_rotary_factor": values.get("partial_rotary_factor")},
        values.get("rope_scaling", {}),
        parameters,
    ]
    if not all(isinstance(place, dict) for place in places):
        raise ArtifactError(f"{source}: rope_scaling and rope_parameters must be JSON objects")
    found: dict[str, Any] = {}
    for place in places:
        for name, value in place.items():
            name = "rope_type" if name == "type" else name  # the name before transformers 4.43
            if value is not None and found.setdefault(name, value) != value:
                raise InputError(f"{source}: {name} is both {found[name]!r} and {value!r}")
    theta = found.pop("rope_theta", _THETAS.get(family, 10_000.0))
    share = found.pop("partial_rotary_factor", 1.0)
    kind = str(found.pop("rope_type", "default"))
    kind = "longrope" if kind == "su" else kind  # its name in Phi-3's first files
    if kind not in _KNOWN:
        refuse([f"rope_type={kind!r} (only {', '.join(_KNOWN)})"], source)
    needed, allowed = _KNOWN[kind]
    if kind == "default":  # which files of a family with longrope say nothing else by
        found.pop("original_max_position_embeddings", None)
    if share != 1 and family not in _PARTIAL:
        refuse([f"partial_rotary_factor={share!r} (only 1)"], source)
    unknown = found.keys() - needed - allowed
    refuse([f"{name}={found[name]!r} of rope_type {kind!r}" for name in sorted(unknown)], source)
    wrong = [
        name for name in needed - {*_LONG} if not is_number(found.get(name)) or not found[name]
    ]
    numbers = {"rope_theta": theta, "partial_rotary_factor": share}
    wrong += [name for name, value in numbers.items() if not is_number(value) or not value]
    if wrong or share > 1 or not is_number(local_theta):
        raise ArtifactError(
            f"{source}: rope values missing or impossible: {found}, rope_theta={theta!r}, "
            f"partial_rotary_factor={share!r}"
        )
    scaling = _scaling(kind, found, values, share, source)
    return Rotation(float(theta), scaling, float(share), float(local_theta))


# Families that may rotate a part of each head.
_PARTIAL = {"phi3"}
# transformers' θ for files that say none.
_THETAS = {
    "smollm3": 2_000_000.0,
    "gpt_oss": 150_000.0,
    "llama4_text": 500_000.0,
    "gemma3_text": 1_000_000.0,
    "modernbert": 160_000.0,
    "nomic_bert": 1000.0,
}
# The same of scaling.
_SCALINGS: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
}
# θ of windows, in families that have another one there.
_LOCAL_THETAS = {"gemma3_text": 10_000.0, "modernbert": 10_000.0}


def _scaling(
    kind: str, found: dict[str, Any], values: Mapping[str, Any], share: float, source: object
) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(found["factor"], kind="linear")
    if kind == "llama3":
        if found["low_freq_factor"] > found["high_freq_factor"]:
            raise ArtifactError(
                f"{source}: low_freq_factor must not be above high_freq_factor: {found}"
            )
        return RopeScaling(**{ours: found[name] for name, ours in _LLAMA3.items()})
    longest = values["max_position_embeddings"]
    original = found.get("original_max_position_embeddings")
    original = original or values.get("original_max_position_embeddings") or longest
    if kind == "yarn":
        factor, scale = found["factor"], found.get("attention_factor")
        if scale is None:
            above, below = found.get("mscale"), found.get("mscale_all_dim")
            scale = _mscale(factor, 1.0)
            if above and below:
                scale = _mscale(factor, above) / _mscale(factor, below)
        return RopeScaling(
            factor=factor,
            original_max_position=original,
            kind="yarn",
            beta_fast=found.get("beta_fast") or 32.0,
            beta_slow=found.get("beta_slow") or 1.0,
            truncate=bool(found.get("truncate", True)),
            attention_factor=scale,
        )
    pairs = int(values["head_dim"] * share) // 2
    for name in _LONG:
        given = found.get(name)
        if not isinstance(given, list) or len(given) != pairs or not all(map(is_number, given)):
            raise ArtifactError(f"{source}: {name} must have {pairs} numbers, one for each pair")
    factor = longest / original
    scale = found.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeScaling(
        factor=factor,
        original_max_position=original,
        kind="longrope",
        attention_factor=scale,
        short_factor=tuple(map(float, found["short_factor"])),
        long_factor=tuple(map(float, found["long_factor"])),
    )


def _mscale(factor: float, scale: float) -> float:
    """Source: Peng et al. 2023, equation 22."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def written(config: DecoderConfig | EncoderConfig) -> dict[str, Any]:
    """The same for a config.json, in the names of transformers 5 and 4."""
    scaling = config.rope_scaling
    found: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        found["rope_type"] = scaling.kind
        if scaling.kind == "linear":
            found |= {"factor": scaling.factor}
        elif scaling.kind == "llama3":
            found |= {name: getattr(scaling, ours) for name, ours in _LLAMA3.items()}
        elif scaling.kind == "yarn":
            found |= {name: getattr(scaling, ours) for name, ours in _YARN.items()}
            found["truncate"] = scaling.truncate
        else:
            found |= {name: list(getattr(scaling, name)) for name in _LONG}
            found |= {
                "attention_factor": scaling.attention_factor,
                "original_max_position_embeddings": scaling.original_max_position,
            }
    old: dict[str, Any] = {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else dict(found),
    }
    if scaling is not None and scaling.kind == "longrope":
        old["original_max_position_embeddings"] = scaling.original_max_position
    if isinstance(config, DecoderConfig) and config.rotary_share != 1:
        found["partial_rotary_factor"] = old["partial_rotary_factor"] = config.rotary_share
    new = {"rope_theta": config.rope_theta} | found
    if config.local_rope_theta:
        local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
        return {"rope_parameters": {"full_attention": new, "sliding_attention": local}}
    return {"rope_parameters": new, **old}
