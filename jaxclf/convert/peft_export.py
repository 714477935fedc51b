"""The adapters of a run, or an adapter directory of ours, become an adapter of peft's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxclf.adapters import lora
from jaxclf.checkpoint import model_dir
from jaxclf.checkpoint.model_dir import ModelSource
from jaxclf.checkpoint.steps import Which
from jaxclf.convert import files, hf_export, mapping, peft
from jaxclf.convert.hf_import import FAMILIES, TOKENIZER_FILES
from jaxclf.convert.mapping import Tensor
from jaxclf.convert.peft import GENERATION, HIDDEN_STATES, TASK_TYPES, TEXT_TO_TEXT
from jaxclf.core import tree
from jaxclf.core.errors import InputError
from jaxclf.models import registry
from jaxclf.models.encoder import EncoderConfig
from jaxclf.models.heads import HeadConfig
from jaxclf.models.registry import ModelConfig
from jaxclf.models.t5 import T5Config

# The class of transformers that opens the base.
_MODELS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}


def export(
    source: str | Path,
    destination: Path,
    *,
    step: Which = "best",
    task: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write `destination` from the adapters that `source` resolves to.

    `task`: which head goes along; needed where the model has several. LoRA-FA becomes plain LoRA:
    peft has no mark for it. Raises InputError for adapters that peft has no form for, ArtifactError
    where the source is corrupt or incomplete.
    """
    found = model_dir.resolve(source, step)
    if found.adapters is None:
        raise InputError(
            f"{source} holds a whole model; export it with python -m jaxclf.convert.to_hf"
        )
    spec = found.adapters.spec
    config, _ = model_dir.read_model(found.model_json)
    if config.prefix:
        raise InputError(f"{source} has a trained prefix, for which files of LoRA have no place")
    whole = registry.create(config).abstract
    trained = model_dir.load_adapters(found, whole)

    config, head = hf_export.with_one_head(config, task)
    family = FAMILIES[config.family]
    rows = peft.table(family, config)
    leaves = tree.flatten(registry.create(config).abstract)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    model = mapping.expand(rows, shapes)
    if head is None:
        model = peft.without(family.prefix, model)
    saved = [path for path in tree.flatten(trained.saved) if path in shapes]
    peft.check_tied(config, saved, source)
    places = {
        path: place
        for path, place in lora.places(whole, spec).items()
        if f"{path}/kernel" in shapes
    }
    peft.refuse_parts(model, places, source)
    kind = _kind(config, head)
    # For a task with a head peft saves that as a whole.
    is_whole = {path for path in shapes if path.startswith("heads/")} <= set(saved)
    task_type = kind if is_whole else None
    base = _base(model_dir.located(found.adapters.checkpoint, found.model_json.parent))
    settings = peft.write_settings(spec, places, saved, model, rows, task_type, base)
    arrays = {path: np.asarray(leaf) for path, leaf in tree.flatten(trained).items()}
    layout = peft.layout(model, places, spec.kind == "dora", saved)
    tensors = {
        name: np.empty(shape, np.float32) for name, shape in mapping.whole_shapes(layout).items()
    }
    for tensor in layout:
        tensors[tensor.name][tensor.slices] = _array(tensor, arrays)
    labels = hf_export.labels_of(found, head)[0] if head else ()
    metadata = {"format": "pt", peft.LABELS: json.dumps(labels, ensure_ascii=False)}
    with files.new_directory(destination, overwrite) as new:
        safetensors.numpy.save_file(tensors, new / peft.WEIGHTS, metadata)
        (new / peft.SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        files.copy_files(found.tokenizer_dir, new, TOKENIZER_FILES)
        (new / "README.md").write_text(_card(found, kind, labels, base or "BASE"), "utf-8")


def _array(tensor: Tensor, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """A part of the file; a rank narrower than its stack's is filled up with zeros there."""
    array = arrays[tensor.ours][tensor.place]
    array = array.T if tensor.transpose else array
    return array[tuple(map(slice, tensor.shape))]


def _kind(config: ModelConfig, head: HeadConfig | None) -> str:
    if head is not None:
        return TASK_TYPES[head.kind]
    if isinstance(config, T5Config):
        return TEXT_TO_TEXT
    return HIDDEN_STATES if isinstance(config, EncoderConfig) else GENERATION


def _base(checkpoint: str) -> str | None:
    """The base where transformers can open it: a Hugging Face directory or hub id."""
    is_ours = (Path(checkpoint) / "model.json").is_file()
    return None if is_ours or checkpoint.startswith("package:") else checkpoint or None


def _card(source: ModelSource, kind: str, labels: Sequence[str], base: str) -> str:
    """README.md: the card of the run's report, and how peft opens the adapter."""
    text = hf_export.run_card(source, library="peft")
    options = names = scores = ""
    if labels:
        options = f", num_labels={len(labels)}"
        listed = json.dumps(labels, ensure_ascii=False)
        names = f"base.config.id2label = dict(enumerate({listed}))\n"
        scores = f"\nIts scores stand for, in this order: {', '.join(labels)}.\n"
    return f"""{text}
## With peft

```python
base = transformers.{_MODELS[kind]}.from_pretrained("{base}"{options})
{names}model = peft.PeftModel.from_pretrained(base, DIRECTORY)
```
{scores}"""
