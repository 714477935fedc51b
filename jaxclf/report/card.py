"""The model card: README.md of an exported model."""

from collections.abc import Mapping
from typing import Any

from jaxclf.report.names import COUNTS, metric_name, show

# Their names on the hub.
_HUB_DATASETS = {"massive": "AmazonScience/massive"}
_HUB_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "slot_f1": "seqeval",
    "exact_match": "exact_match",
}


# What the model is, and what its user has to know.
_DECODER = (
    "A language model that classifies by generating the label.",
    "The model answers only the prompt it was trained with, which lies in that directory; another "
    "wording gives other figures.",
)
_ENCODER = (
    "An encoder with a classification head for each task.",
    "In transformers, AutoModelForSequenceClassification opens an exported head, or, for slots, "
    "AutoModelForTokenClassification.",
)


def model_card(report: Mapping[str, Any]) -> str:
    """Markdown with the hub's YAML front matter: base, data, figures and how to use the model."""
    data, model, train = report["data"], report["model"], report["train"]
    data_name, model_name = data.get("name", "own data"), model.get("name") or "model"
    base = model.get("checkpoint") or ""
    split = report.get("eval_split", "test")
    tasks = data.get("tasks", {})
    kinds = {
        "class": "one class out of",
        "slots": "a slot for every word, out of",
        "multilabel": "any of",
    }
    answers = "\n".join(
        f"- `{name}`: {kinds[task['kind']]} {len(task['labels'])}"
        if task["kind"] in kinds
        else f"- `{name}`: a number"
        for name, task in tasks.items()
    )
    figures = "\n".join(
        f"| {task} | {metric_name(name)} | {show(name, value)} |"
        for task, metrics in report["eval"].items()
        for name, value in metrics.items()
        if name not in COUNTS
    )
    start = f"Fine-tuned from `{base}`" if base else "Trained from scratch"
    records = data.get("records", {}).get("train")
    amount = f" on {records:,} records" if records else ""
    front = _front_matter(report, data_name, model_name, base, split)
    kind, caution = _ENCODER if _is_encoder(model) else _DECODER
    return f"""---
{front.strip()}
---

# {model_name} for {data_name}

{kind} {start} with jaxclf{amount}
of {data_name} in {train.get("steps", "unknown")} steps. What it answers:

{answers}

## Figures

On the {split} split; an output outside the label set counts as wrong.

| task | metric | value |
|---|---|---:|
{figures}

## Use

From the run's directory:

```
python -m jaxclf.predict --checkpoint RUN_DIRECTORY --input texts.jsonl --output labels.jsonl
```

{caution}
"""


def _is_encoder(model: Mapping[str, Any]) -> bool:
    return model.get("family", "llama") not in ("llama", "t5")


def _front_matter(
    report: Mapping[str, Any], data_name: str, model_name: str, base: str, split: str
) -> str:
    """The metadata block as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    tasks = report["data"].get("tasks", {})
    results = [
        EvalResult(
            task_type="token-classification"
            if tasks.get(task, {}).get("kind") == "slots"
            else "text-classification",
            task_name=task,
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_config=task,  # else figures of several tasks run into one
            dataset_split=split,
            metric_type=name,
            metric_name=metric_name(name),
            metric_value=round(value, 6),
        )
        for task, metrics in report["eval"].items()
        for name, value in metrics.items()
        if name not in COUNTS and value is not None
    ]
    card = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        datasets=[_HUB_DATASETS[data_name]] if data_name in _HUB_DATASETS else None,
        library_name="transformers",
        metrics=sorted(
            {_HUB_METRICS[each.metric_type] for each in results if each.metric_type in _HUB_METRICS}
        ),
        model_name=f"{model_name}-{data_name}",
        pipeline_tag="text-classification" if _is_encoder(report["model"]) else "text-generation",
        tags=["text-classification", "jaxclf"],
        eval_results=results or None,
    )
    return card.to_yaml()


def _is_hub_id(base: str) -> bool:
    """A folder on the trainer's disk, or in a package, is no model of the hub."""
    return base.count("/") == 1 and ":" not in base and not base.startswith((".", "/", "~"))
