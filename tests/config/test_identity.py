"""What two configs of one run may differ in."""

import pytest

from jaxclf.config import defaults, loading, schema
from jaxclf.config.identity import changes, changes_of_steps

# Another value for each field that the rules would take, by the type of its default.
OTHER = {bool: lambda value: not value, tuple: lambda value: (*value, "x"), str: lambda value: "x"}


def changed(*overrides: str):
    config = defaults.default()
    loading.override(config, overrides)
    return config


@pytest.mark.parametrize("name", schema.FIELDS)
def test_what_a_field_affects_decides_who_may_change_it(name):
    field = schema.FIELDS[name]
    config = defaults.default()
    group, _, last = name.rpartition(".")
    other = OTHER.get(type(field.default), lambda value: value + 1)(field.default)
    with config.unlocked():
        (config[group] if group else config)[last] = other
    found = {name: (field.default, other)}
    assert changes(defaults.default(), config) == ({} if field.affects == "nothing" else found)
    continues = field.affects in ("nothing", "report")
    assert changes_of_steps(defaults.default(), config) == ({} if continues else found)


def test_fields_that_move_no_figure():
    assert {name for name, field in schema.FIELDS.items() if field.affects == "nothing"} == {
        *("api.base_url", "api.concurrency", "api.key_env", "api.max_cost", "api.retries"),
        *("api.timeout", "distil.folder", "mesh.data", "mesh.dcn_data", "mesh.fsdp"),
        *("mesh.sequence", "mesh.tensor"),
        *("model.attention", "train.keep", "train.logging_steps", "train.max_shapes"),
        "train.save_steps",
    }


def test_the_length_of_a_run_may_change_unless_the_schedule_depends_on_it():
    constant, longer = changed(), changed("train.steps=2000")
    assert changes_of_steps(constant, longer) == {}
    assert changes(constant, longer) == {"train.steps": (1000, 2000)}
    falling = changed("train.schedule=linear"), changed("train.schedule=linear", "train.epochs=2")
    assert changes_of_steps(*falling) == {"train.epochs": (0.0, 2.0)}


def test_the_steps_of_counted_epochs_are_no_difference_of_the_figures():
    asked = changed("train.epochs=2")
    assert changes(changed("train.epochs=2", "train.steps=77"), asked) == {}
    assert changes(changed("train.epochs=3", "train.steps=77"), asked) == {
        "train.epochs": (3.0, 2.0)
    }


def test_a_field_of_one_side_alone_is_a_difference():
    mine = defaults.default()
    with mine.unlocked():
        mine.mine = 3
        del mine.eval["split"]
    assert changes_of_steps(mine, defaults.default()) == {"mine": (3, None)}
    assert changes(mine, defaults.default()) == {"mine": (3, None), "eval.split": (None, "test")}
