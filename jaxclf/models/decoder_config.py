"""The attributes that decoders differ in: dimensions, positions, who sees whom, norms, experts."""

import dataclasses
from typing import Literal, NamedTuple

from jaxclf.models.heads import LAST, HeadConfig, HeadStyle
from jaxclf.models.layers import Gate, RopeScaling
from jaxclf.models.masks import EVERYTHING, Sight

# What transformers calls those that differ in attributes alone.
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("smollm3", "olmo2", "granite", "mixtral", "qwen3_moe", "gpt_oss", "llama4_text"),
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Dimensions and constants of one decoder; the defaults are Llama's.

    family: what transformers calls it, for what is read and written in its layout alone.

    Positions: rotary_share: of a head's elements, how many are rotated, from the first on.
    rotary_interleaved: in pairs of neighbours. rotary_layers: whether each layer rotates at all;
    (): all do. local_rope_theta: of layers with a window, without scaling; 0: that of all.
    temperature_scale, temperature_floor: of layers that do not rotate, see `layers.temperature`.

    Who sees whom: layer_types: of each layer `full`, `window` (the last `window` tokens) or `chunk`
    (tokens of the same `chunk` positions); (): all are full.

    Attention: attention_scale: what scores are multiplied by; 0: 1/sqrt(head_dim). attention_cap:
    see `attend`. query_norm: of queries and keys: `head`: RMSNorm of each head, `whole`: of all
    heads together, `l2`: the same as `head` without a scale, after rotation, where there is one.

    Norms: `before` attention and feed-forward, `after` them, ahead of the residual, or `both`.
    norm_offset: scales are stored around 0.

    Scales: embed_scale of embeddings, residual_scale of what is added to the residual, logit_scale
    of logits, which logit_cap bounds as attention_cap does scores.

    dropout: of embeddings and of what each layer adds; the released models have none. prefix:
    trained keys and values before every layer's own.

    swiglu_limit, swiglu_alpha: of feed-forward's gate, see `layers.Gate`; 0: it has the activation.

    experts: in the place of one feed-forward (0); each has `expert_size`, a token
    `experts_per_token` of them, whose weights are a softmax that sums to 1 over these where
    `normalised_experts` and over all else, or by `routing` each one's sigmoid. weighted_inputs:
    weights are of what experts read. `mlp_bias` is of their router too. shared_expert_size: of one
    that every token has beside them; 0: there is none. expert_layers: whether each layer has
    experts, or one feed-forward of intermediate_size; (): all do.

    heads: what it scores texts by; such a model does not generate. head_dropout: before them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    max_position: int = 2048
    tie_embeddings: bool = False
    initializer_std: float = 0.02
    dropout: float = 0.0
    prefix: int = 0
    family: str = "llama"
    rotary_share: float = 1.0
    rotary_interleaved: bool = False
    rotary_layers: tuple[bool, ...] = ()
    local_rope_theta: float = 0.0
    temperature_floor: float = 0.0
    temperature_scale: float = 0.0
    layer_types: tuple[Literal["full", "window", "chunk"], ...] = ()
    window: int | None = None
    chunk: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    query_norm: Literal["none", "head", "whole", "l2"] = "none"
    attention_scale: float = 0.0
    attention_cap: float = 0.0
    sinks: bool = False
    norms: Literal["before", "after", "both"] = "before"
    norm_offset: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    swiglu_limit: float = 0.0
    swiglu_alpha: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    normalised_experts: bool = True
    routing: Literal["softmax", "sigmoid"] = "softmax"
    weighted_inputs: bool = False
    shared_expert_size: int = 0
    expert_layers: tuple[bool, ...] = ()
    heads: tuple[HeadConfig, ...] = ()
    head_dropout: float = 0.0

    @property
    def head(self) -> HeadStyle:
        return LAST

    @property
    def gate(self) -> Gate:
        """Of feed-forward, be it one or that of experts."""
        return Gate(self.activation, self.swiglu_limit, self.swiglu_alpha)

    @property
    def order(self) -> tuple[Literal["sparse", "dense"], ...]:
        """The stack that each layer is of, where some have experts and others have none."""
        return tuple("sparse" if each else "dense" for each in self.expert_layers)

    def with_heads(self, found: tuple[HeadConfig, ...]) -> "DecoderConfig":
        """The same with these heads, in the place of logits of tokens."""
        return dataclasses.replace(self, heads=found)

    @property
    def kinds(self) -> tuple["LayerKind", ...]:
        """What each layer sees and how it rotates; (): all alike."""
        types = self.layer_types or ("full",) * self.num_layers
        rotates = self.rotary_layers or (True,) * self.num_layers
        found = tuple(
            LayerKind(
                Sight(
                    self.window if name == "window" else None,
                    self.chunk if name == "chunk" else None,
                ),
                "none" if not turns else "local" if is_local else "global",
            )
            for name, turns in zip(types, rotates, strict=True)
            for is_local in [name == "window" and self.local_rope_theta > 0]
        )
        return found if any(kind != ALIKE for kind in found) else ()


class LayerKind(NamedTuple):
    """How far a layer's queries see, and which rotary positions it has."""

    sight: Sight
    rope: Literal["global", "local", "none"]


ALIKE = LayerKind(EVERYTHING, "global")
