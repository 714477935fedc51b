"""A T5 that scores labels by heads: trained, opened, exported and scored as any classifier."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxclf import opening
from jaxclf.checkpoint.model_dir import read_model, resolve
from jaxclf.classifiers.opening import open_run
from jaxclf.convert import hf_export, hf_import, peft_export, peft_import
from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Record
from jaxclf.data.tokenizer import Tokenizer
from jaxclf.evaluate import run as evaluate
from jaxclf.models import registry
from jaxclf.models.heads import HeadConfig
from jaxclf.models.zoo import CONFIGS
from jaxclf.runs import training
from jaxclf.runs.setup import prepare
from jaxclf.runs.training import train
from tests.runs import test_decoder_heads
from tests.runs.test_decoder_heads import TEXTS


def config(*overrides: str):
    return test_decoder_heads.config("model.name=t5_smoke", *overrides)


def records() -> list[Record]:
    return [Record(str(index), text, {}) for index, text in enumerate(TEXTS)]


def intents(classifier, tempered: bool = False) -> np.ndarray:
    found = classifier.predict(records(), 4, tempered=tempered)
    return np.array([[*each.scores["intent"].values()] for each in found])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCLF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Of both tasks, in packed rows."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config("train.pack=true", "train.row_length=128"), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    """LoRA and a head of intents beside a base that is read from files of transformers."""
    folder = tmp_path_factory.mktemp("adapted")
    train(config("model.output=generate", "train.steps=1", "eval.limit=1"), folder / "wrote")
    hf_export.export(folder / "wrote", folder / "base", progress=lambda line: None)
    fields = config(
        "model.name=",
        f"model.checkpoint={folder / 'base'}",
        "data.task=intent",
        "tune=lora",
        "lora.target_modules=q,v",
        "train.steps=4",
    )
    train(fields, folder / "run", hf_import.resolve(str(folder / "base")))
    return folder


def test_a_run_learns_by_heads_alone(run):
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert report["model"]["output"] == "head"
    assert {head["name"] for head in report["model"]["dimensions"]["heads"]} == {"intent", "slots"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert evaluate(run)["eval"] == report["eval"]


def test_a_text_is_scored_alone_as_among_others(run):
    classifier = open_run(run).classifier
    alone = [classifier.predict([record], 1)[0] for record in records()]
    together = classifier.predict(records(), 4)
    for one, other in zip(alone, together, strict=True):
        assert one.predicted == other.predicted
        values = zip(one.scores["intent"].values(), other.scores["intent"].values(), strict=True)
        assert all(a == pytest.approx(b, abs=1e-6) for a, b in values)


@pytest.mark.slow
def test_a_run_that_lost_its_last_steps_makes_the_same_ones_again(tmp_path):
    fields = config("data.task=intent", "train.steps=4", "train.save_steps=2", "train.keep=2")
    train(fields, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken/checkpoints/4")
    train(fields, tmp_path / "broken")
    found = [resolve(tmp_path / name, "last").manifest for name in ("whole", "broken")]
    assert found[0] == found[1]


@pytest.mark.parametrize("task", ["intent", "slots"])
def test_an_export_is_the_same_in_transformers_and_here(run, task, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    hf_export.export(run, tmp_path / "hf", task=task, progress=lambda line: None)
    kind = {"intent": "Sequence", "slots": "Token"}[task]
    model, info = getattr(transformers, f"T5For{kind}Classification").from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    own = open_run(run).classifier.predict(records(), 4, tempered=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    opened = opening.open_source(str(tmp_path / "hf")).classifier
    again = opened.predict(records(), 4, tempered=False)
    for text, mine, other in zip(TEXTS, own, again, strict=True):
        assert other.predicted[task] == mine.predicted[task]
        with torch.no_grad():
            encoded = tokenizer(text, return_tensors="pt")
            asked = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            shares = model(**asked).logits[0].softmax(-1).numpy()
        if task == "intent":
            np.testing.assert_allclose([*mine.scores["intent"].values()], shares, atol=1e-5)
        else:  # a word has the label of its first token
            begins = [found.start() for found in re.finditer(r"\S+", text)]
            firsts = [encoded.char_to_token(0, begin) for begin in begins]
            names = [model.config.id2label[int(shares[index].argmax())] for index in firsts]
            assert [*mine.predicted["slots"]] == names


def test_a_classifier_that_somebody_else_made_is_opened_scored_and_tuned(run, tmp_path):
    hf_export.export(run, tmp_path / "hf", task="intent", progress=lambda line: None)
    (tmp_path / "hf" / "jaxclf.json").unlink()
    found = opening.open_source(str(tmp_path / "hf")).classifier.predict(records(), 4)
    labels = [each.predicted["label"] for each in found]
    names = list(found[0].scores["label"])
    rows = [*zip(TEXTS, labels, strict=True), *(("any", name) for name in names)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": t, "label": name}) + "\n" for t, name in rows))
    overrides = {"data.name": "file", "data.task": "label"}
    overrides |= dict.fromkeys(("data.train", "data.test"), str(data))
    report = evaluate(str(tmp_path / "hf"), split="test", overrides=overrides)
    expected = (len(TEXTS) + 1) / len(rows)  # one of "any" is what it says of all of them
    assert report["eval"]["label"]["accuracy"] == pytest.approx(expected)
    # Tuned further, as the checkpoint has it, its head and the order of its labels are kept.
    fields = [f"{name}={value}" for name, value in overrides.items()]
    fields += ["model.name=", f"model.checkpoint={tmp_path / 'hf'}", "model.output=auto"]
    tuned = config(*fields, "train.steps=1", "train.learning_rate=0.0", "data.pair=")
    train(tuned, tmp_path / "tuned", hf_import.resolve(str(tmp_path / "hf")))
    report = json.loads((tmp_path / "tuned/report.json").read_text("utf-8"))
    assert report["model"]["new_parameters"] == []
    again = open_run(tmp_path / "tuned").classifier.predict(records(), 4)
    assert [each.predicted["label"] for each in again] == labels


def test_adapters_go_to_peft_and_back(adapted, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    report = json.loads((adapted / "run/report.json").read_text("utf-8"))
    assert {name.split("/")[1] for name in report["model"]["new_parameters"]} == {"intent"}
    peft_export.export(adapted / "run", tmp_path / "peft")
    settings = json.loads((tmp_path / "peft/adapter_config.json").read_text("utf-8"))
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["modules_to_save"] == ["classification_head"]
    expected = intents(opening.open_source(adapted / "run").classifier)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        adapted / "base", num_labels=expected.shape[1]
    )
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapted / "base")
    with torch.no_grad():
        found = [
            model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits
            for text in TEXTS
        ]
        shares = torch.cat(found).softmax(-1).numpy()
    np.testing.assert_allclose(shares, expected, atol=1e-5)

    # What peft writes itself comes back as it was.
    model.save_pretrained(tmp_path / "theirs")
    peft_import.convert(tmp_path / "theirs", tmp_path / "ours", str(adapted / "base"))
    dimensions, _ = read_model(tmp_path / "ours/model.json")
    assert [head.kind for head in dimensions.heads] == ["sequence"]
    own, back = resolve(adapted / "run"), resolve(tmp_path / "ours")
    hashes = [
        {path.replace("/intent/", "/sequence/"): leaf.sha256 for path, leaf in each.items()}
        for each in (own.manifest, back.manifest)
    ]
    assert hashes[0] == hashes[1]


def test_merged_adapters_are_a_model_of_transformers(adapted, tmp_path):
    pytest.importorskip("torch")
    import transformers

    hf_export.export(adapted / "run", tmp_path / "hf", merge=True, progress=lambda line: None)
    classify = transformers.pipeline("text-classification", str(tmp_path / "hf"))
    expected = intents(opening.open_source(adapted / "run").classifier)
    for found, shares in zip(classify(TEXTS), expected, strict=True):
        assert found["score"] == pytest.approx(max(shares), abs=1e-4)


def test_what_heads_read_is_all_that_is_kept_of_a_base(adapted, tmp_path):
    """Slots need no decoder; in 4 bits; and neither writes, nor scores whole texts, afterwards."""
    base = f"model.checkpoint={adapted / 'base'}"
    fields = ["model.name=", base, "data.task=slots", "tune=lora", "model.quantize=nf4"]
    quantised = hf_import.resolve(str(adapted / "base"), "nf4")
    train(config(*fields, "train.steps=2"), tmp_path / "run", quantised)
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))
    unused = {name.split("/")[1] for name in report["model"]["unused_tensors"] if "/" in name}
    assert "decoder" in unused
    found = opening.open_source(tmp_path / "run").classifier.predict(records(), 4)
    assert all(len(each.predicted["slots"]) == len(each.text.split()) for each in found)

    words = dataclasses.replace(CONFIGS["t5_smoke"], heads=(HeadConfig("slots", "token", 3),))
    with pytest.raises(InputError, match="has no decoder"):
        words.with_heads((HeadConfig("intent", "sequence", 3),))
    with pytest.raises(InputError, match="heads in the place of what writes"):
        registry.has_heads("generate", words)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multilabel", "regression", "class"])
def test_labels_of_every_kind_and_pairs_of_texts(kind, tmp_path):
    labels = {"multilabel": [["a", "b"], []], "regression": [0.5, 2], "class": ["a", "b"]}[kind]
    rows = [
        {"text": TEXTS[number % 4], "pair": TEXTS[number % 3], "label": labels[number % 2]}
        for number in range(12)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    fields = ["data.name=file", "data.task=label", f"data.kind={kind}", "data.pair=pair"]
    fields += [f"data.{split}={data}" for split in ("train", "dev", "test")]
    fields += ["train.steps=30", "train.vocabulary=used", "tokenizer.vocab_size=300"]
    report = train(config(*fields, "train.pack=true"), tmp_path / "run")
    found = report["eval"]["label"]
    assert found[{"multilabel": "exact_match", "regression": "pearson"}.get(kind, "accuracy")] > 0.9
    record = Record("0", TEXTS[0], {}, TEXTS[1])
    classifier = open_run(tmp_path / "run").classifier
    alone = Record("0", TEXTS[0], {}, "")
    scores = [classifier.predict([each], 1)[0].scores for each in (record, alone)]
    assert scores[0] != scores[1]


def test_a_tokenizer_that_does_not_end_texts_is_refused(run, tmp_path):
    tokenizer = Tokenizer.load(run / "tokenizer")
    tokenizer.check_end(tokenizer.eos_id)
    with pytest.raises(InputError, match="does not end a text with id 77"):
        tokenizer.check_end(77)


def test_what_its_decoder_reads_first_trains_with_the_tokens_of_the_texts(tmp_path):
    fields = config("train.vocabulary=used")
    setup = prepare(fields, tmp_path, None)
    (rows,) = training._tuning(fields, setup).partition.rows.values()
    assert setup.model.config.start_id in rows
    assert len(rows) < setup.model.config.vocab_size
