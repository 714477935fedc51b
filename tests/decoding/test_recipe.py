"""What a run was asked: how answers are read, and what an evaluation may change of that."""

import pytest

from jaxclf.config import defaults
from jaxclf.core.errors import ArtifactError, InputError
from jaxclf.data.tasks import Record, Task
from jaxclf.decoding.recipe import Recipe
from jaxclf.prompts.builder import Piece, Prompt

TOPIC = Task("topic", "class", tuple("abcdefghijklmnop"))
PROMPT = Prompt((Piece("Text: ", False),), (Piece("\nLabel:", False),))
RECIPE = Recipe((TOPIC,), PROMPT, "names", max_length=32, max_new_tokens=7, fallback="random")
RECORDS = [Record(str(number), f"text {number}", {}) for number in range(40)]


def drawn(recipe: Recipe, records: list[Record]) -> dict[str, object]:
    """The label that each record, by its id, gets where the answer was none."""
    return {each.id: recipe.read(each, "no label").predicted["topic"] for each in records}


def test_a_random_label_belongs_to_its_record_and_the_seed():
    found = drawn(RECIPE, RECORDS)
    assert len({*found.values()}) > 8
    assert drawn(RECIPE, RECORDS[::-1]) == found
    assert drawn(RECIPE, RECORDS[7:9]) == {each.id: found[each.id] for each in RECORDS[7:9]}
    other = Recipe(**{**RECIPE.__dict__, "seed": 1})
    assert sum(drawn(other, RECORDS)[name] != label for name, label in found.items()) > 20


def config(**fields):
    made = defaults.default().unlock()
    for name, value in fields.items():
        made.eval[name] = value
    return made


def test_an_evaluation_reads_answers_as_its_config_says():
    before = config(fallback="random")
    found = RECIPE.under(config(fallback="nearest", first_line=True), before)
    assert (found.fallback, found.first_line, found.max_new_tokens) == ("nearest", True, 7)
    assert RECIPE.under(config(max_new_tokens=3), before).max_new_tokens == 3
    assert RECIPE.under(config(), before).learned == RECIPE.learned
    with pytest.raises(InputError, match="the run's is 5"):
        RECIPE.under(config(), config(max_new_tokens=5))


def test_a_recipe_comes_back_as_it_was(tmp_path):
    RECIPE.save(tmp_path / "task.json")
    assert Recipe.load(tmp_path / "task.json") == RECIPE
    assert (tmp_path / "task.json").read_text() == RECIPE.to_text()
    with pytest.raises(ArtifactError, match="missing"):
        Recipe.load(tmp_path / "none.json")
