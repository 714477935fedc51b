"""Fields that have another name now, as `peft` and `transformers` have it where they mean the same.

Runs written before are read by it, and who uses an old name is told the new one.
"""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "lora.targets": "lora.target_modules",
    "lora.layers": "lora.layers_to_transform",
    "lora.saved": "lora.modules_to_save",
    "lora.rslora": "lora.use_rslora",
    "lora.b_rate": "lora.loraplus_lr_ratio",
    "model.remat": "model.gradient_checkpointing",
    "model.quantise": "model.quantize",
    "model.prefix": "model.num_virtual_tokens",
    "prompt.think": "prompt.chain_of_thought",
    "prompt.think_tokens": "prompt.chain_of_thought_tokens",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.clip_norm": "train.max_grad_norm",
    "train.bucket": "train.group_by_length",
    "train.b1": "train.adam_beta1",
    "train.b2": "train.adam_beta2",
    "train.eps": "train.adam_epsilon",
    "train.eval_every": "train.eval_steps",
    "train.checkpoint_every": "train.save_steps",
    "train.log_every": "train.logging_steps",
    "train.best_metric": "train.metric_for_best_model",
    "eval.wanted_accuracy": "eval.target_accuracy",
    "eval.normalise": "eval.normalize",
}


def current(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields of any age under the names that they have today, the given ones unchanged."""
    found = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()
    }
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        if isinstance(found.get(group), dict) and name in found[group]:
            found[group][new.removeprefix(f"{group}.")] = found[group].pop(name)
    return found


def answer(name: str) -> str:
    """What to tell who uses an old name, or nothing if it is none."""
    return f"{name} is {RENAMED[name]} now" if name in RENAMED else ""
