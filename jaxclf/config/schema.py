"""What the fields of a config may hold, and the nearest name to a mistyped one."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_collections

from jaxclf.core.errors import InputError

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli-mm", "qnli", "rte", "wnli")
# What `data.task` may name besides "both", for every value of `data.name`.
TASKS = {
    "builtin": ("intent", "slots"),
    "massive": ("intent", "slots"),
    "20ng": ("7class", "20class"),
    "file": ("label", "slots"),
    "imdb": ("imdb",),
    "ag_news": ("ag_news",),
    "trec": ("coarse", "fine"),
    **{f"glue/{name}": (name,) for name in GLUE},
}
# What `prompt.template` may name.
TEMPLATES = ("listing", "plain", "labels", "definitions", "choice", "cloze")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field's value has to be: in words, as a test, and by name if it is one of few."""

    expected: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


def one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names, names)


def whole(minimum: int) -> Rule:
    return Rule(
        f"a whole number of at least {minimum}",
        lambda value: type(value) is int and value >= minimum,
    )


def real(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """A finite number in [low, high), or in (low, high) if `above`."""
    words = f"a number {'above' if above else 'of at least'} {low:g}"
    words += f" and below {high:g}" if high < math.inf else ""
    return Rule(
        words,
        lambda value: (
            type(value) in (int, float)
            and (low < value if above else low <= value)
            and value < high
        ),
    )


def _is_trained(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    if value.startswith("last:"):
        return re.fullmatch(r"last:[1-9][0-9]*", value) is not None
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def _are_pairs(values: Any, second: Rule) -> bool:
    return type(values) is tuple and all(
        type(pair) is tuple
        and len(pair) == 2
        and isinstance(pair[0], str)
        and second.holds(pair[1])
        for pair in values
    )


def _are_patterns(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        for pattern in value.split(","):
            re.compile(pattern)
    except re.error:
        return False
    return True


def _are_layers(values: Any) -> bool:
    return type(values) is tuple and all(map(whole(0).holds, values))


def _are_names(values: Any) -> bool:
    return type(values) is tuple and all(type(name) is str and name for name in values)


def _are_templates(values: Any) -> bool:
    return type(values) is tuple and len(set(values)) == len(values) and set(values) <= {*TEMPLATES}


def _are_weights(values: Any) -> bool:
    weight = real(0, above=True)
    return type(values) is tuple and all(map(weight.holds, values))


_SIZE = Rule(
    "-1 (the devices that the other axes leave) or a whole number of at least 1",
    lambda value: value == -1 or whole(1).holds(value),
)

RULES: dict[str, Rule] = {
    "seed": whole(0),
    "data.name": one_of(*TASKS),
    "data.on_defect": one_of("fail", "skip"),
    "data.limit": whole(0),
    "data.train_limit": whole(0),
    "data.train_examples": whole(0),
    "data.dev_fraction": real(0, 1),
    "data.kind": one_of("class", "multilabel", "regression"),
    "prompt.template": one_of(*TEMPLATES),
    "prompt.wrapper": one_of("none", "llama2", "llama3"),
    "prompt.shots": whole(0),
    "prompt.choose": one_of("seed", "balanced", "similar"),
    "prompt.styles": Rule("templates such as ('listing', 'labels')", _are_templates),
    "prompt.seeds": whole(1),
    "prompt.orders": whole(1),
    "prompt.think_tokens": whole(1),
    "prompt.slots": one_of("names", "bio"),
    # Byte-level: one entry per byte and some for the special tokens.
    "tokenizer.vocab_size": whole(260),
    "model.dtype": one_of("auto", "float32", "bfloat16"),
    "model.param_dtype": one_of("float32", "bfloat16"),
    "model.dropout": Rule(
        "-1 (the model's own) or a number of at least 0 and below 1",
        lambda value: value == -1 or real(0, 1).holds(value),
    ),
    "model.heads": one_of("keep", "new"),
    "loss.label_smoothing": real(0, 1),
    "model.quantise": one_of("none", "int8", "int4", "nf4"),
    "model.prefix": whole(0),
    "model.attention": one_of("auto", "plain", "cudnn", "splash"),
    **{f"mesh.{axis}": _SIZE for axis in ("data", "fsdp", "tensor", "sequence")},
    "model.unroll": whole(1),
    "tune": one_of("full", "lora", "dora", "lora_fa", "bitfit", "prefix", "head", "none"),
    "lora.targets": Rule("names or patterns such as q,v or all-linear", _are_patterns),
    "lora.layers": Rule("numbers of layers such as (0, 1)", _are_layers),
    "lora.rank": whole(1),
    "lora.alpha": real(0, above=True),
    "lora.rank_pattern": Rule(
        'pairs such as (("layers/0/.*", 4),)', lambda value: _are_pairs(value, whole(1))
    ),
    "lora.alpha_pattern": Rule(
        'pairs such as (("q", 8.0),)', lambda value: _are_pairs(value, real(0, above=True))
    ),
    "lora.dropout": real(0, 1),
    "lora.saved": Rule("path patterns such as heads/.*,pooler/.*", _are_patterns),
    "lora.b_rate": real(0, above=True),
    "loss.class_weights": Rule(
        'pairs such as (("spam", 3.0), ("ham", 1.0))', lambda value: _are_pairs(value, real(0))
    ),
    "loss.task_weights": Rule("positive numbers, one a task", _are_weights),
    "train.steps": whole(0),
    "train.epochs": real(0),
    "train.batch_size": whole(1),
    "train.max_length": whole(1),
    "train.row_length": whole(0),
    "train.accumulate": whole(1),
    "train.max_shapes": whole(1),
    "train.learning_rate": real(0),
    "train.schedule": one_of("constant", "linear", "cosine"),
    "train.vocabulary": one_of("all", "used"),
    "train.prng": one_of("threefry2x32", "rbg"),
    "train.warmup_steps": whole(0),
    "train.weight_decay": real(0),
    "train.b1": real(0, 1),
    "train.b2": real(0, 1),
    "train.eps": real(0, above=True),
    "train.clip_norm": real(0),
    "train.trained": Rule("all, last:N, biases, norms or a regular expression", _is_trained),
    "train.max_skipped": whole(0),
    "train.log_every": whole(1),
    "train.eval_every": whole(0),
    "train.checkpoint_every": whole(0),
    "train.keep": whole(1),
    "attens.modules": Rule("names of data sets such as ('glue/rte',)", _are_names),
    "attens.targets": Rule("names of data sets such as ('glue/rte',)", _are_names),
    "attens.k": whole(0),
    "attens.sweep": Rule("numbers of modules such as (3, 5)", _are_layers),
    "attens.tokens": one_of("mean", "max", "min", "last"),
    "attens.padding": whole(0),
    "attens.over": one_of("mean", "max", "min"),
    "attens.combine": one_of("sum", "mean", "product", "concat", "max", "min"),
    "attens.norms": one_of("own", "shared"),
    "attens.across": one_of("modules", "batch"),
    "attens.heads": whole(1),
    "attens.epochs": whole(0),
    "attens.batch_size": whole(1),
    "attens.learning_rate": real(0),
    "attens.schedule": one_of("constant", "linear", "cosine"),
    "attens.weight_decay": real(0),
    "api.base_url": Rule(
        "an address such as http://localhost:8000/v1, without a key or password in it",
        lambda value: value == "" or re.fullmatch(r"https?://[^\s@?#]+", str(value)) is not None,
    ),
    "api.concurrency": whole(1),
    "api.timeout": real(0, above=True),
    "api.retries": whole(0),
    "api.max_characters": whole(0),
    "api.input_price": real(0),
    "api.output_price": real(0),
    "api.max_cost": real(0),
    "eval.batch_size": whole(1),
    "eval.split": one_of("train", "dev", "heldout", "test"),
    "eval.limit": whole(0),
    "eval.fallback": one_of("none", "first", "nearest", "random"),
    "eval.max_new_tokens": whole(0),
    "eval.temperature": one_of("none", "dev"),
    "eval.wanted_accuracy": real(0, 1),
    "eval.decoding": one_of("free", "constrained", "score"),
    "eval.score_bound": real(0, 1),
    "eval.normalise": one_of("none", "length", "pmi", "contextual"),
}


def validate(config: ml_collections.ConfigDict) -> None:
    """Raise InputError naming the first field whose value cannot be meant."""
    fields = dict(leaves(config))
    for name, rule in RULES.items():
        if name not in fields:
            raise InputError(
                f"the config has no field {name}. Start from default() of jaxclf/config/defaults.py"
            )
        _check(name, fields[name], rule)
    for name, value in fields.items():
        if not _is_plain(value):
            raise InputError(
                f"{name} is {value!r}; expected true, false, a number, text or a tuple of these"
            )
    data, train = config.data, config.train
    _check("data.task", data.task, one_of(*TASKS[data.name], "both"))
    if data.name == "file" and not data.train:
        raise InputError("data.train is empty; expected a jsonl, csv or parquet file")
    if data.name == "file" and data.task != "label" and not data.slots:
        raise InputError(
            f"data.slots is empty, but data.task is {data.task!r}; expected the column that holds "
            "the slots. Name it, or set data.task to 'label'"
        )
    if config.tune != "full" and train.trained != "all":
        raise InputError(
            f"train.trained is {train.trained!r}, which chooses among the model's own parameters; "
            f"tune={config.tune!r} trains others. Set tune='full', or train.trained='all'"
        )
    if config.tune == "full" and config.model.quantise != "none":
        raise InputError(
            f"model.quantise is {config.model.quantise!r}: a quantised model is frozen. Set tune "
            "to 'lora' or another that trains adapters"
        )
    if (config.tune == "prefix") != (config.model.prefix > 0):
        raise InputError(
            f"model.prefix is {config.model.prefix} and tune is {config.tune!r}; tune='prefix' "
            "needs some, such as 16, and nothing else does"
        )
    _check_prompt(config.prompt, config.eval.decoding)
    if train.batch_size % train.accumulate:
        raise InputError(
            f"train.batch_size is {train.batch_size:,}; expected a multiple of train.accumulate, "
            f"which is {train.accumulate:,}"
        )
    if train.pack and train.bucket:
        raise InputError("train.pack and train.bucket exclude each other: packed rows are all full")
    if 0 < train.row_length < train.max_length:
        raise InputError(
            f"train.row_length is {train.row_length:,}; expected 0 or at least train.max_length, "
            f"which is {train.max_length:,}"
        )
    _check_api(config)


def _check_api(config: ml_collections.ConfigDict) -> None:
    api = config.api
    if re.fullmatch(r"[A-Z][A-Z0-9_]*", str(api.key_env)) is None:
        # Perhaps it is the key itself, which nobody should see.
        raise InputError(
            "api.key_env is no name of an environment variable in capitals, such as "
            "OPENAI_API_KEY. The key itself belongs there, never into a config"
        )
    if api.model and config.tune != "none":
        raise InputError(
            f"tune is {config.tune!r}, but a server's model (api.model) cannot be tuned. Use the "
            "variant no_tuning (NAME.py:no_tuning), or leave api.model empty"
        )
    if api.model and config.prompt.wrapper != "none":
        raise InputError(
            f"prompt.wrapper is {config.prompt.wrapper!r}; a server adds the chat tokens of its "
            "model (api.model) by itself. Set it to 'none'"
        )
    if api.model and config.eval.decoding != "free":
        raise InputError(
            f"eval.decoding is {config.eval.decoding!r}, which api.model cannot: its server says "
            "no more than what it answers. Set it to 'free'"
        )
    if api.max_cost and not (api.input_price or api.output_price):
        raise InputError(
            f"api.max_cost is {api.max_cost:g}, but no price is known. Set api.input_price and "
            "api.output_price, per million tokens"
        )


def _check_prompt(prompt: Any, decoding: str) -> None:
    """Raise InputError where a style lacks what it needs, or there are too few to compare."""
    styles = () if prompt.file else prompt.styles or (prompt.template,)
    if "definitions" in styles and not prompt.definitions:
        raise InputError(
            "prompt.definitions is empty; template 'definitions' expects a JSON file "
            '{"label": "what it means"}. Name it, or choose template \'labels\''
        )
    if prompt.think and decoding != "free":
        raise InputError(
            f"prompt.think needs eval.decoding='free'; it is {decoding!r}, which leaves no room "
            "for thoughts. Set one of them otherwise"
        )
    if prompt.think and {"plain", "cloze"} & set(styles):
        raise InputError(
            "prompt.think is an instruction, which templates 'plain' and 'cloze' have none of. "
            "Choose listing, labels, definitions or choice"
        )
    if prompt.seeds > 1 and (not prompt.shots or prompt.choose == "similar"):
        raise InputError(
            f"prompt.seeds is {prompt.seeds}, so many sets of examples; with prompt.shots="
            f"{prompt.shots} and prompt.choose={prompt.choose!r} there is one. Set it to 1"
        )
    if prompt.orders > math.factorial(min(prompt.shots, 20)):
        raise InputError(
            f"prompt.orders is {prompt.orders:,}; {prompt.shots} examples have "
            f"{math.factorial(prompt.shots):,} orders. Raise prompt.shots or lower prompt.orders"
        )
    if prompt.file and prompt.styles:
        raise InputError(
            "prompt.file takes the place of every template, so that prompt.styles would compare "
            "it with itself. Set one of them"
        )


def check(name: str, value: Any) -> None:
    """Raise InputError where the field of this name cannot have this value."""
    _check(name, value, RULES[name])


def _check(name: str, value: Any, rule: Rule) -> None:
    if not rule.holds(value):
        hint = did_you_mean(value, rule.names) if isinstance(value, str) else ""
        raise InputError(f"{name} is {value!r}; expected {rule.expected}{hint}")


def _is_plain(value: Any) -> bool:
    """What JSON gives back unchanged; `type` and not isinstance, so that NumPy's are refused."""
    if type(value) is tuple:
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field below the groups as (`train.steps`, value)."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def did_you_mean(name: str, possible: Iterable[str]) -> str:
    """Ends a sentence with `. Did you mean 'x'?`, or with nothing if no possible name is near."""
    near = nearest(name, possible)
    return f". Did you mean {near!r}?" if near else ""


def nearest(name: str, possible: Iterable[str]) -> str | None:
    """The possible name most like this one, or None if none is."""
    return next(iter(difflib.get_close_matches(name, list(possible), n=1)), None)
