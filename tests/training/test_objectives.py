"""What the loss of heads weighs: tasks, and classes by their counts."""

import numpy as np
import pytest

from jaxclf.config.defaults import default
from jaxclf.core.errors import InputError
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.data.tasks import Task
from jaxclf.training import objectives

TOPIC = Task("topic", "class", ("a", "b", "c", "d"))
# Of six texts four are a, one is b, one is c; none is d.
LABELS = (0, 0, 0, 0, 1, 2)
NOTHING = np.zeros(1, np.int32)


def weights(**fields) -> tuple[float, ...]:
    """The weights of TOPIC's classes with these fields of the loss."""
    config = default()
    with config.unlocked():
        config.loss.update(**fields)
    examples = [
        Encoded(str(n), NOTHING, NOTHING, {"topic": (NOTHING, np.array([label], np.int32))}, (), 0)
        for n, label in enumerate(LABELS)
    ]
    objective = objectives.head_objective(config.loss, [TOPIC], examples, "names")
    return objective.terms["topic"].class_weights


def test_classes_weigh_the_same_unless_said():
    assert weights() == ()


def test_balanced_classes_weigh_the_same_in_sum():
    """As scikit-learn has it: texts / (classes · texts of the class)."""
    found = weights(balanced=True)
    assert found == pytest.approx((6 / 16, 6 / 4, 6 / 4, 1))  # d does not occur
    assert found[0] * 4 == pytest.approx(found[1])


def test_a_weight_that_is_given_is_a_factor():
    assert weights(class_weights=(("c", 3.0),)) == (1, 1, 3, 1)
    both = weights(balanced=True, class_weights=(("b", 0.5), ("d", 2.0)))
    assert both == pytest.approx((0.375, 0.75, 1.5, 2))
    assert weights(class_weights=(("c", 1.0),)) == ()
    with pytest.raises(InputError, match="'e', which is no label"):
        weights(class_weights=(("e", 2.0),))
