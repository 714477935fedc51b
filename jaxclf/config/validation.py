"""Whether a config can be meant: field by field, and where fields contradict each other."""

import math
from typing import Any

from ml_collections import ConfigDict

from jaxclf.config import renames
from jaxclf.config.rules import Rule, one_of
from jaxclf.config.schema import FIELDS, leaves, tasks_of
from jaxclf.core.errors import InputError
from jaxclf.core.suggest import did_you_mean


def validate(config: ConfigDict) -> None:
    """Raise InputError naming the first field whose value cannot be meant."""
    found = dict(leaves(config))
    for name in FIELDS:
        if name not in found:
            raise InputError(
                f"the config has no field {name}. Start from default() of jaxclf.config.defaults"
            )
        check(name, found[name])
    for name, value in found.items():
        if renamed := renames.answer(name):
            raise InputError(renamed)
        if not _is_plain(value):
            raise InputError(
                f"{name} is {value!r}; expected true, false, a number, text or a tuple of these"
            )
    _check_data(config.data)
    _check_tuning(config)
    _check_prompt(config.prompt, config.eval.decoding)
    _check_batches(config.train)
    _check_api(config)
    _check_distil(config)


def check(name: str, value: Any) -> None:
    """Raise InputError where the field of this name cannot have this value."""
    field = FIELDS[name]
    if field.secret and not field.rule.holds(value):
        raise InputError(f"{name} is not {field.rule.expected}")
    _check(name, value, field.rule)


def _check(name: str, value: Any, rule: Rule) -> None:
    if not rule.holds(value):
        hint = did_you_mean(value, rule.choices) if isinstance(value, str) else ""
        raise InputError(f"{name} is {value!r}; expected {rule.expected}{hint}")


def _check_data(data: ConfigDict) -> None:
    _check("data.task", data.task, one_of(*tasks_of(data.name), "both"))
    if data.name == "file" and not data.train:
        raise InputError(
            "data.train is empty; expected a file (jsonl, csv, parquet, xlsx …), a folder or a zip"
        )


def _check_tuning(config: ConfigDict) -> None:
    if config.tune != "full" and config.train.trained != "all":
        raise InputError(
            f"train.trained is {config.train.trained!r}, which chooses among the model's own "
            f"parameters; tune={config.tune!r} trains others. Set tune='full', or "
            "train.trained='all'"
        )
    if config.tune == "full" and config.model.quantize != "none":
        raise InputError(
            f"model.quantize is {config.model.quantize!r}: a quantised model is frozen. Set tune "
            "to 'lora' or another that trains adapters"
        )
    if config.model.layers and config.attens.modules:
        raise InputError(
            f"model.layers is {config.model.layers}, which an ensemble's base does not know: its "
            "adapters belong to all layers. Set it to 0"
        )
    if (config.tune == "prefix") != (config.model.num_virtual_tokens > 0):
        raise InputError(
            f"model.num_virtual_tokens is {config.model.num_virtual_tokens} and tune is "
            f"{config.tune!r}; tune='prefix' needs some, such as 16, and nothing else does"
        )


def _check_batches(train: ConfigDict) -> None:
    if train.batch_size % train.gradient_accumulation_steps:
        raise InputError(
            f"train.batch_size is {train.batch_size:,}; expected a multiple of "
            f"train.gradient_accumulation_steps, which is {train.gradient_accumulation_steps:,}"
        )
    if train.pack and train.group_by_length:
        raise InputError(
            "train.pack and train.group_by_length exclude each other: packed rows are all full"
        )
    if train.patience and not train.eval_steps:
        raise InputError(
            f"train.patience is {train.patience}, so many evaluations, but train.eval_steps is 0: "
            "there is one, at the end. Set train.eval_steps, such as a tenth of train.steps"
        )
    if 0 < train.row_length < train.max_length:
        raise InputError(
            f"train.row_length is {train.row_length:,}; expected 0 or at least train.max_length, "
            f"which is {train.max_length:,}"
        )


def _check_distil(config: ConfigDict) -> None:
    distil = config.distil
    if distil.unlabelled and not distil.teacher:
        raise InputError(
            f"distil.unlabelled is {distil.unlabelled!r}, but nobody says what these texts are: "
            "distil.teacher is empty. Name a trained run, or leave both empty"
        )
    if distil.teacher and config.attens.modules:
        raise InputError(
            "distil.teacher is for models with heads; an ensemble of adapters (attens.modules) "
            "learns from labels alone. Leave one of them empty"
        )
    if distil.teacher and not all(map(str.strip, distil.teacher.split(","))):
        raise InputError(
            f"distil.teacher is {distil.teacher!r}; expected one run, or several with single "
            "commas between them"
        )


def _check_api(config: ConfigDict) -> None:
    api = config.api
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


def _check_prompt(prompt: ConfigDict, decoding: str) -> None:
    """Raise InputError where a style lacks what it needs, or there are too few to compare."""
    styles = () if prompt.file else prompt.styles or (prompt.template,)
    if "definitions" in styles and not prompt.definitions:
        raise InputError(
            "prompt.definitions is empty; template 'definitions' expects a JSON file "
            '{"label": "what it means"}. Name it, or choose template \'labels\''
        )
    if prompt.chain_of_thought and decoding != "free":
        raise InputError(
            f"prompt.chain_of_thought needs eval.decoding='free'; it is {decoding!r}, which leaves "
            "no room for thoughts. Set one of them otherwise"
        )
    if prompt.chain_of_thought and {"plain", "cloze"} & set(styles):
        raise InputError(
            "prompt.chain_of_thought is an instruction, which templates 'plain' and 'cloze' have "
            "none of. Choose listing, labels, definitions or choice"
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


def _is_plain(value: Any) -> bool:
    """What JSON gives back unchanged; `type` and not isinstance, so that NumPy's are refused."""
    if type(value) is tuple:
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)
