"""What all families share in reading config.json: what is harmless, refused or impossible there."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeGuard

from jaxclf.core.errors import ArtifactError, InputError

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
            f"{name}={theirs[name]!r}" + (f" (only {fixed[name]!r})" if name in fixed else "")
            for name in sorted(theirs)
            if name not in known and (name not in fixed or theirs[name] != fixed[name])
        ],
        source,
    )


def check_numbers(
    values: Mapping[str, Any], sizes: Iterable[str], others: Iterable[str], source: object
) -> None:
    """Raise ArtifactError naming every size that is no positive integer, every other no number."""
    wrong = [name for name in sizes if not is_size(values.get(name))]
    wrong += [name for name in others if not isinstance(values.get(name), int | float)]
    if wrong:
        shown = ", ".join(f"{name}={values.get(name)!r}" for name in wrong)
        raise ArtifactError(f"{source}: missing or impossible: {shown}")


def is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def labels(theirs: Mapping[str, Any], source: object) -> tuple[str, ...]:
    """The names of a head's scores in their order; raises ArtifactError where they are no list.

    Files without names stand for `num_labels` of them, and without that, as in transformers, two.
    """
    names = theirs.get("id2label")
    if names is None:
        count = theirs.get("num_labels", 2)
        if not is_size(count):
            raise ArtifactError(f"{source}: missing or impossible: num_labels={count!r}")
        return default_labels(count)
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
        raise ArtifactError(f"{source}: id2label does not name 0, 1, 2 …: {names!r}")
    return tuple(str(names[str(index)]) for index in range(len(names)))


def default_labels(count: int) -> tuple[str, ...]:
    """transformers' names for scores that nobody named."""
    return tuple(f"LABEL_{index}" for index in range(count))
