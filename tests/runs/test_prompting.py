"""Prompts without training: what is asked, what is read, and how far the figures spread."""

import json
from pathlib import Path

import pytest

from jaxclf.checkpoint.model_dir import find_model
from jaxclf.config import loading
from jaxclf.core.errors import InputError
from jaxclf.data import datasets
from jaxclf.decoding.recipe import Recipe
from jaxclf.prompts.template import letters
from jaxclf.report import read_predictions
from jaxclf.runs import prompting
from jaxclf.runs.prompting import PromptedModel, Variant
from jaxclf.runs.setup import prepare
from jaxclf.runs.training import train

ROOT = Path(__file__).parents[2]


def tiny(*overrides: str):
    """No tuning of a tiny random model on 24 built-in utterances."""
    return loading.load(
        str(ROOT / "configs/quickstart.py:no_tuning,smoke,task=intent"),
        ["eval.max_new_tokens=4", *overrides],
    )


class Scripted:
    """Answers by a function of (number of the call, number of the record, record)."""

    def __init__(self, config, prompt, tasks, say):
        self.recipe = Recipe(tasks, prompt, "names", 64, 4, first_line=config.eval.first_line)
        self.say, self.prompts = say, []

    def facts(self):
        return {}

    def predict(self, records, batch_size, *, prompt=None, progress=lambda count: None):
        self.prompts.append(prompt)
        progress(len(records))
        call = len(self.prompts) - 1
        return [
            self.recipe.read(record, self.say(call, number, record))
            for number, record in enumerate(records)
        ]


def scripted(say, made):
    def opened(config, workdir):
        dataset = datasets.load(config.data)

        def classifier(styled, prompt):
            made.append((styled.prompt.template, Scripted(styled, prompt, dataset.tasks, say)))
            return made[-1][1]

        return PromptedModel(dataset, classifier, model={"name": "scripted"})

    return opened


def right_for(*counts):
    """Right for so many of the first records in each call, unparsed for the others."""
    return lambda call, number, record: (
        record.labels["intent"] + "\nText: more" if number < counts[call] else "hm"
    )


def test_a_random_model_is_evaluated_like_a_trained_one(tmp_path):
    prompting.run(tiny("eval.decoding=constrained"), tmp_path, prompting.decoder(find_model))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"config", "data", "model", "train", "eval", "versions"} <= set(report)
    assert report["model"]["trained_parameters"] == 0 < report["model"]["parameters"]
    assert report["decoding"] == {"mode": "constrained"}
    accuracy = report["eval"]["intent"]["accuracy"]
    assert report["eval"]["intent"]["unparsed"] == 0
    assert report["spread"]["intent"]["accuracy"] == {
        **dict.fromkeys(("mean", "min", "max"), accuracy),
        "std": 0.0,
        "values": [accuracy],
    }
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 24
    assert Recipe.load(tmp_path / "task.json").prompt is not None
    assert "Ways of asking" not in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match="another config"):
        prompting.run(tiny("prompt.shots=1"), tmp_path, prompting.decoder(find_model))


def test_every_way_of_asking_is_put_to_the_same_texts(tmp_path, capsys):
    fields = ("prompt.styles=('plain','labels')", "prompt.shots=2", "prompt.seeds=2")
    config = tiny(*fields, "prompt.orders=2")
    made = []
    prompting.run(config, tmp_path, scripted(right_for(24, 12, 6, 0), made))
    assert [template for template, _ in made] == ["plain", "labels"]
    asked = [answers.prompts for _, answers in made]
    assert [len({each.render("") for each in prompts}) for prompts in asked] == [4, 4]
    # The same examples in both styles: of each set the same texts, in two orders.
    pieces = [[piece.text for piece in each.before if piece.is_data] for each in asked[0]]
    assert sorted(pieces[0]) == sorted(pieces[1]) != sorted(pieces[2]) == sorted(pieces[3])
    report = json.loads((tmp_path / "report.json").read_text())
    ways = [(way["style"], way["draw"], way["order"]) for way in report["variants"]]
    assert ways == [(s, d, o) for s in ("plain", "labels") for d in (0, 1) for o in (0, 1)]
    spread = report["spread"]["intent"]["accuracy"]
    assert spread["values"] == [1.0, 0.5, 0.25, 0.0] * 2
    assert (spread["mean"], spread["min"], spread["max"]) == (0.4375, 0.0, 1.0)
    assert spread["std"] == pytest.approx(0.15625**0.5)
    # The first way's answers stand in predictions.jsonl and in eval.
    assert report["eval"]["intent"]["accuracy"] == 1.0
    assert not any(each.unparsed for each in read_predictions(tmp_path / "predictions.jsonl"))
    page = (tmp_path / "report.html").read_text()
    assert "Ways of asking" in page
    assert "43.75 % ± 39.53 %" in capsys.readouterr().out


def test_similar_examples_are_of_each_text(tmp_path):
    made = []
    config = tiny("prompt.shots=2", "prompt.choose=similar")
    prompting.run(config, tmp_path, scripted(right_for(24), made))
    (prompt,) = made[0][1].prompts
    records = datasets.load(config.data).splits["test"][:2]
    first, second = (prompt(number, record).render("") for number, record in enumerate(records))
    assert first != second


def test_what_comes_before_the_cue_is_no_answer(tmp_path):
    def think(call, number, record):
        gold = record.labels["intent"]
        return f"{gold}\nLabel: {gold}\nmore" if number % 2 else f"{gold}\nso {gold}"

    made = []
    config = tiny("prompt.chain_of_thought=true", "prompt.template=labels", "eval.fallback=first")
    result = prompting.run(config, tmp_path, scripted(think, made))
    figures = result["eval"]["intent"]
    assert (figures["accuracy"], figures["unparsed"]) == (0.5, 12)


def test_thoughts_have_their_own_room(tmp_path):
    config = tiny(
        "prompt.chain_of_thought=true", "prompt.template=labels", "prompt.chain_of_thought_tokens=9"
    )
    asked = prompting.decoder(find_model)(config, tmp_path)
    asked.claim(tmp_path, config)
    prompt = asked.classifier(config, Recipe.load(tmp_path / "task.json").prompt).recipe
    assert prompt.max_new_tokens == 13


def test_variants_of_a_file_are_of_one_style(tmp_path):
    (tmp_path / "own.txt").write_text("$examples\n$text ->")
    config = tiny(f"prompt.file={tmp_path / 'own.txt'}", "prompt.shots=3", "prompt.seeds=2")
    assert prompting.variants(config) == [Variant("file"), Variant("file", 1)]


def test_training_and_prompting_keep_apart(tmp_path):
    with pytest.raises(InputError, match=r"tune is 'none'.*python -m jaxclf\.prompt"):
        train(tiny(), tmp_path)
    with pytest.raises(
        InputError, match=r"prompt\.chain_of_thought is True, which is for prompting"
    ):
        train(tiny("tune=full", "prompt.chain_of_thought=true", "prompt.template=labels"), tmp_path)
    with pytest.raises(InputError, match="tune is 'full'.*no_tuning"):
        prompting.run(tiny("tune=full"), tmp_path, prompting.decoder(find_model))
    config = tiny("model.name=encoder_smoke", "train.max_length=64")
    with pytest.raises(InputError, match="has heads, which know nothing without training"):
        prompting.run(config, tmp_path / "encoder", prompting.decoder(find_model))
    config = tiny("eval.split=heldout")
    with pytest.raises(InputError, match="has no split 'heldout'"):
        prompting.run(config, tmp_path / "split", scripted(right_for(24), []))


@pytest.mark.parametrize("words", ["no_tuning,lora", "qlora,no_tuning"])
def test_no_tuning_excludes_adapters(words):
    with pytest.raises(InputError, match="exclude each other"):
        loading.load(str(ROOT / f"configs/my_task.py:{words}"))


def test_a_style_and_its_examples_are_trained_on_too(tmp_path):
    fields = ["prompt.template=choice", "prompt.choose=similar", "prompt.shots=2", "data.limit=8"]
    fields.append("train.max_length=256")
    config = loading.load(str(ROOT / "configs/quickstart.py:smoke,task=intent"), fields)
    setup = prepare(config, tmp_path, None)
    (task,), records = setup.dataset.tasks, setup.dataset.splits["train"]
    for example, record in zip(setup.examples, records, strict=True):
        letter = letters(task)[record.labels["intent"]]
        assert setup.tokenizer.decode(example.label) == f" {letter}"
        assert record.text not in setup.tokenizer.decode(example.prefix)
    assert len({example.prefix.tobytes() for example in setup.examples}) > 1
    assert setup.recipe.prompt.lettered
