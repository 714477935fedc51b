"""What a report says of scores and data, whoever writes it."""

import pytest

from jaxclf.config.defaults import default
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
from jaxclf.decoding.recipe import Recipe
from jaxclf.runs import facts

TASK = Task("topic", "class", ("a", "b"))
# The surer the more often right: .9 and .8 are, .6 is not.
SCORED = [
    Prediction(
        str(n), "", {"topic": gold}, {"topic": "a"}, scores={"topic": {"a": sure, "b": 1 - sure}}
    )
    for n, (sure, gold) in enumerate([(0.9, "a"), (0.8, "a"), (0.6, "b")])
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (1.0, {"wanted": 1.0, "threshold": 0.8, "coverage": 2 / 3, "accuracy": 1.0}),
        (0.5, {"wanted": 0.5, "threshold": 0.6, "coverage": 1.0, "accuracy": 2 / 3}),
        (0.0, None),
        (None, None),  # a run from before the field answers always
    ],
)
def test_the_target_accuracy_is_the_configs(target, expected):
    config = default()
    with config.unlocked():
        if target is None:
            del config.eval.target_accuracy
        else:
            config.eval.target_accuracy = target
    found = facts.scores(config, Recipe((TASK,), None, "names", 16, 0), SCORED, "dev")
    abstention = found["calibration"]["topic"]["abstention"]
    assert abstention == (expected and pytest.approx(expected))
    assert found["eval_split"] == "dev"
    assert found["eval"]["topic"]["accuracy"] == pytest.approx(2 / 3)
    assert found["calibration"]["topic"]["temperature"] is None
