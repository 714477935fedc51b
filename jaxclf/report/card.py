"""The model card: README.md of an exported model."""

from collections.abc import Mapping
from typing import Any

from jaxclf.data.datasets import NO_SPLIT
from jaxclf.report.names import COUNTS, metric_name, show

# Their names on the hub.
_HUB_DATASETS = {"massive": "AmazonScience/massive"}
_HUB_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "slot_f1": "seqeval",
    "exact_match": "exact_match",
}


# What the model is.
_DECODER = "A language model that classifies by generating the label."
_HEADED = "A language model with a classification head for each task."

# How labels come out of a decoder, by `eval.decoding`.
_DECODING = {
    "free": "the answer is generated greedily and the labels are read from it",
    "constrained": "the likeliest label is generated greedily among the labels alone",
    "score": "the likeliest label wins, by the probability of its tokens",
}
_NORMALIZE = {
    "none": "",
    "length": ", by the mean of log p over its tokens (`eval.normalize=length`)",
    "pmi": ", divided by its probability after an empty text (`eval.normalize=pmi`)",
    "contextual": ', divided by its probability after the text "N/A" (`eval.normalize=contextual`)',
}
_FALLBACK = {
    "none": "is no label, and counts as wrong",
    "first": "stands for the first label",
    "nearest": "stands for the label that is spelled most like it",
    "random": "stands for a label drawn at random",
}


def model_card(report: Mapping[str, Any], library: str = "transformers") -> str:
    """Markdown with the hub's YAML front matter: base, data, figures and how to use the model.

    `library`: "transformers", or "peft" for adapters alone, which these do not open by themselves.
    """
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
    scored = "No split was scored" if split == NO_SPLIT else f"On the {split} split"
    front = _front_matter(report, library, data_name, model_name, base, split)
    kind = _HEADED if _has_heads(model) else _DECODER
    return f"""---
{front.strip()}
---

# {model_name} for {data_name}

{kind} {start} with jaxclf{amount}
of {data_name} in {train.get("steps", "unknown")} steps. What it answers:

{answers}

## Figures

{scored}; an output outside the label set counts as wrong.

| task | metric | value |
|---|---|---:|
{figures}

## Use

{_use(report, library)}"""


def _use(report: Mapping[str, Any], library: str) -> str:
    """How to get the labels, and what belongs to them beside the weights."""
    parts = [_RUN] if library == "peft" else [_LOADED, _RUN]
    if not _has_heads(report["model"]):
        parts.append(_decoding(report))
    elif library != "peft":
        parts += _pipelines(report)
    temperatures = {
        task: figures["temperature"]
        for task, figures in report.get("calibration", {}).items()
        if figures.get("temperature") is not None
    }
    if temperatures:
        listed = ", ".join(f"{value:.4f} for `{task}`" for task, value in temperatures.items())
        scores = "scores (logits)" if _has_heads(report["model"]) else "labels' log p"
        parts.append(
            f"Temperature: {listed}, fitted on dev. A probability is the softmax of the {scores} "
            "divided by it. jaxclf divides by itself; elsewhere do so first. It changes no "
            "label, only how sure the model is.\n"
        )
    return "\n".join(parts)


_LOADED = """With jaxclf, which decodes and tempers as the run did (DIRECTORY is this one):

```python
import jaxclf

jaxclf.load(DIRECTORY).predict(["a text"])
```
"""
_RUN = """From the run's directory:

```
python -m jaxclf.predict --checkpoint RUN_DIRECTORY --input texts.jsonl --output labels.jsonl
```
"""


def _pipelines(report: Mapping[str, Any]) -> list[str]:
    """transformers' pipelines for the kinds of the tasks, of which an export has one."""
    tasks = report["data"].get("tasks", {}).values()
    length = report["config"]["train"].get("max_length")
    parts = ["With transformers, one task an export:\n"]
    if any(task["kind"] != "slots" for task in tasks):
        parts.append(
            """```python
import transformers

classify = transformers.pipeline("text-classification", DIRECTORY)
classify(["a text"], truncation=True)
```
"""
        )
    if any(task["kind"] == "slots" for task in tasks):
        parts.append(
            """```python
import transformers

tag = transformers.pipeline("token-classification", DIRECTORY, ignore_labels=[])
tag("a text")  # of a word that is cut into several tokens the first one counts
```
"""
        )
    if length:
        parts.append(f"Longer texts are cut at {length:,} tokens, special ones included.\n")
    if any(task["kind"] == "class" and len(task["labels"]) == 1 for task in tasks):
        parts.append(
            "A task of a single class has nothing to choose: its probability is 1, whatever score "
            "a pipeline shows.\n"
        )
    return parts


def _decoding(report: Mapping[str, Any]) -> str:
    """How labels come out of a decoder, for who asks it without jaxclf."""
    fields = report["config"].get("eval", {})
    mode, fallback = fields.get("decoding", "free"), fields.get("fallback", "none")
    text = (
        "The model answers only the prompt it was trained with, which stands in `jaxclf.json`; "
        "another wording gives other figures.\n\n"
        f"Decoding (`eval.decoding={mode}`): {_DECODING[mode]}"
    )
    if mode == "score":
        text += _NORMALIZE[fields.get("normalize", "none")]
    if mode == "free":
        line = "from its first line alone" if fields.get("first_line") else "from all of it"
        text += f", {line}. An answer without one (`eval.fallback={fallback}`) "
        text += _FALLBACK[fallback]
    return text + ".\n"


def _has_heads(model: Mapping[str, Any]) -> bool:
    """Reports from before `output` were of Llama, T5 and encoders."""
    return model.get("output", "generate" if model.get("family") in _WROTE else "head") == "head"


_WROTE = (None, "llama", "t5", "server")


def _front_matter(
    report: Mapping[str, Any],
    library: str,
    data_name: str,
    model_name: str,
    base: str,
    split: str,
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
        library_name=library,
        metrics=sorted(
            {_HUB_METRICS[each.metric_type] for each in results if each.metric_type in _HUB_METRICS}
        ),
        model_name=f"{model_name}-{data_name}",
        pipeline_tag="text-classification" if _has_heads(report["model"]) else "text-generation",
        tags=["text-classification", "jaxclf"],
        eval_results=results or None,
    )
    return card.to_yaml()


def _is_hub_id(base: str) -> bool:
    """A folder on the trainer's disk, or in a package, is no model of the hub."""
    return base.count("/") == 1 and ":" not in base and not base.startswith((".", "/", "~"))
