"""Models with fewer layers than they have by name or in their checkpoint."""

import dataclasses

import pytest

from jaxclf.core.errors import InputError
from jaxclf.models import registry
from jaxclf.models.cutting import evenly_spaced, with_layers
from tests.tiny import ATTRIBUTES, CONFIG


@pytest.mark.parametrize(
    ("count", "kept", "expected"),
    [
        (12, 6, (0, 2, 4, 7, 9, 11)),  # DistilBERT's of BERT
        (6, 4, (0, 2, 3, 5)),
        (6, 2, (0, 5)),
        (6, 1, (0,)),
        (3, 3, (0, 1, 2)),
    ],
)
def test_layers_from_the_first_to_the_last(count, kept, expected):
    assert evenly_spaced(count, kept) == expected


@pytest.mark.parametrize("count", range(1, 30))
def test_no_layer_is_taken_twice(count):
    for kept in range(1, count + 1):
        places = evenly_spaced(count, kept)
        assert len({*places}) == kept
        assert places == tuple(sorted(places))


def test_what_each_layer_has_of_its_own_goes_with_it():
    whole = dataclasses.replace(CONFIG, **ATTRIBUTES)
    found = with_layers(whole, 2)
    assert found.num_layers == 2
    assert found.layer_types == (whole.layer_types[0], whole.layer_types[3])
    assert found.rotary_layers == (whole.rotary_layers[0], whole.rotary_layers[3])
    assert with_layers(whole, 0) == whole
    registry.create(found)


def test_more_layers_than_there_are_and_two_stacks_are_refused():
    with pytest.raises(InputError, match="model.layers is 4; the model has 3 layers"):
        with_layers(CONFIG, 4)
    with pytest.raises(InputError, match="two stacks"):
        with_layers(registry.find("flan_t5_small"), 1)
