"""What all families share in reading config.json: what is harmless, refused or impossible there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.models.heads import HeadConfig, HeadKind

# Attributes that name things, or steer text generation, training or output formats elsewhere.
HARMLESS = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation
    bad_words_ids begin_suppress_tokens bos_token_id cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label label2id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version
    use_bfloat16 use_cache use_return_dict
    """.split()
)

# Attributes that would change the computation, with the one value under which they do not.
FIXED: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "chunk_size_feed_forward": 0,
}

# How many scores a head has: now, and in files of old transformers.
_COUNTS = ("num_labels", "_num_labels")
# Far above any head that was trained; a config.json that says more is damaged.
MAX_LABELS = 1_000_000


def refuse(attributes: Collection[str], source: object) -> None:
    """Raise InputError where there are any."""
    if attributes:
        raise InputError(
            f"{source}: not supported, and the model would compute something else without it: "
            + ", ".join(attributes)
        )


def refuse_unknown(
    theirs: Mapping[str, Any], known: Collection[str], fixed: Mapping[str, Any], source: object
) -> None:
    """Raise InputError naming every attribute that is neither known nor at its fixed value."""
    refuse(
        [
            f"{name}={_short(theirs[name])}" + (f" (only {fixed[name]!r})" if name in fixed else "")
            for name in sorted(theirs)
            if name not in known and (name not in fixed or theirs[name] != fixed[name])
        ],
        source,
    )


def check_numbers(
    values: Mapping[str, Any], sizes: Iterable[str], others: Iterable[str], source: object
) -> None:
    """Raise ArtifactError naming every size that is no positive integer, every other no number.

    The others are finite and not negative, and rates of dropout below 1.
    """
    wrong = [name for name in sizes if not is_size(values.get(name))]
    wrong += [
        name
        for name in others
        if not is_number(values.get(name)) or ("drop" in name and values[name] >= 1)
    ]
    if wrong:
        raise ArtifactError(f"{source}: missing or impossible: {shown(values, wrong)}")


def is_size(value: Any) -> TypeGuard[int]:
    """A positive integer that an array's dimension can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def is_number(value: Any) -> TypeGuard[float]:
    """A finite number that is not negative; true and false are numbers too."""
    return isinstance(value, int | float) and 0 <= value < 1e38


def shown(values: Mapping[str, Any], names: Iterable[str]) -> str:
    """`name=value` of some attributes, for a message."""
    return ", ".join(f"{name}={_short(values.get(name))}" for name in names)


def labels(theirs: Mapping[str, Any], source: object) -> tuple[str, ...]:
    """The names of a head's scores in their order.

    Files without names stand for `num_labels` of them, and without that, as in transformers, two.
    Raises ArtifactError where the names are no list, two scores share one, or the file contradicts
    itself.
    """
    names, numbers = theirs.get("id2label"), theirs.get("label2id")
    count = next((theirs[key] for key in _COUNTS if theirs.get(key) is not None), None)
    if count is not None and (not is_size(count) or count > MAX_LABELS):
        raise ArtifactError(
            f"{source}: missing or impossible: num_labels={count!r} (1 to {MAX_LABELS:,})"
        )
    if names is None:
        return default_labels(2 if count is None else count)
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
        raise ArtifactError(f"{source}: id2label does not name 0, 1, 2 …: {_short(names)}")
    found = tuple(names[str(index)] for index in range(len(names)))
    if wrong := [name for name in found if not isinstance(name, str | int) or name is True]:
        raise ArtifactError(f"{source}: id2label has {_short(wrong[0])} where a name is expected")
    found = tuple(map(str, found))
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ArtifactError(f"{source}: id2label names two scores {twice!r}; give each its own")
    if count not in (None, len(found)):
        raise ArtifactError(
            f"{source}: num_labels is {count}, and id2label names {len(found)}. Correct the wrong "
            "one"
        )
    inverse = {name: index for index, name in enumerate(found)}
    # What transformers writes where only id2label was set says nothing.
    given = isinstance(numbers, dict) and numbers.keys() - default_labels(len(numbers))
    if numbers != inverse and (given or not isinstance(numbers, dict | None)):
        raise ArtifactError(
            f"{source}: label2id contradicts id2label: {_short(numbers)} beside {_short(names)}. "
            "Correct the wrong one, or remove label2id"
        )
    return found


def layer_types(
    values: Mapping[str, Any], known: Collection[str], source: object
) -> list[str] | None:
    """The kinds of layers that a file gives, one of the known for each; None: it gives none."""
    given, count = values.get("layer_types"), values["num_hidden_layers"]
    if given is not None and (
        not isinstance(given, list) or len(given) != count or not {*map(str, given)} <= {*known}
    ):
        raise ArtifactError(
            f"{source}: layer_types must give each of {count:,} layers one of {', '.join(known)}: "
            f"{shown(values, ['layer_types'])}"
        )
    return given


ARCHITECTURES: dict[str, HeadKind] = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}


def heads(theirs: Mapping[str, Any], title: str, source: object) -> tuple[HeadConfig, ...]:
    """The head that transformers' classes of this name have, as the file says; ()."""
    architectures = theirs.get("architectures", ())
    if not isinstance(architectures, list | tuple):
        raise ArtifactError(f"{source}: architectures is no list: {architectures!r}")
    for ending, kind in ARCHITECTURES.items():
        if title + ending in architectures:
            return (HeadConfig(kind, kind, len(labels(theirs, source))),)
    return ()


def written_head(title: str, kind: HeadKind, names: Sequence[str]) -> dict[str, Any]:
    """Attributes of a model with a head of that kind, whose scores have these names."""
    ending = next(ending for ending, each in ARCHITECTURES.items() if each == kind)
    return {
        "architectures": [title + ending],
        "id2label": {str(index): label for index, label in enumerate(names)},
        "label2id": {label: index for index, label in enumerate(names)},
    }


def default_labels(count: int) -> tuple[str, ...]:
    """transformers' names for scores that nobody named."""
    return tuple(f"LABEL_{index}" for index in range(count))


def _short(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
