"""Fields that have another name now: who uses the old one is told, and old runs are read."""

import json

import pytest
from ml_collections import ConfigDict

from jaxclf.config import defaults, loading, renames, schema, validation
from jaxclf.core.errors import InputError
from tests.config.test_loading import write_config


def old_fields() -> dict:
    """Today's defaults as JSON under the names that fields had before."""
    fields = json.loads(json.dumps(defaults.default().to_dict()))
    for old, new in renames.RENAMED.items():
        group = old.partition(".")[0]
        fields[group][old.partition(".")[2]] = fields[group].pop(new.partition(".")[2])
    return fields


def test_new_names_are_fields_and_old_ones_are_not():
    assert {*renames.RENAMED.values()} <= {*schema.FIELDS}
    assert not {*renames.RENAMED} & {*schema.FIELDS}
    assert len({*renames.RENAMED.values()}) == len(renames.RENAMED)
    for old, new in renames.RENAMED.items():  # a field stays in its group
        assert old.partition(".")[0] == new.partition(".")[0]


@pytest.mark.parametrize("old", renames.RENAMED)
def test_an_override_of_an_old_name_is_answered_with_the_new(tmp_path, old):
    path = write_config(tmp_path, "pass")
    with pytest.raises(InputError) as caught:
        loading.load(path, [f"--config.{old}=1"])
    assert str(caught.value) == f"--config.{old}: {old} is {renames.RENAMED[old]} now"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.train.accumulate = 2", "train.accumulate is train.gradient_accumulation_steps"),
        ("seed = 1\nconfig.train.clip_norm = 0.0", "train.clip_norm is train.max_grad_norm now"),
        ("steps = config.train.eval_every // 2", "train.eval_every is train.eval_steps now"),
        ("fields = config.lora\nfields.targets = 'q'", "lora.targets is lora.target_modules now"),
        ("config.lora['saved'] = ''", "lora.saved is lora.modules_to_save now"),
        ("config.eval.update(normalise='pmi')", "eval.normalise is eval.normalize now"),
        ("with config.unlocked(): config.model.prefix = 3", "model.num_virtual_tokens now"),
    ],
)
def test_a_config_file_with_an_old_name_is_answered_with_the_new(tmp_path, body, message):
    with pytest.raises(InputError) as caught:
        loading.load(write_config(tmp_path, body))
    assert message in str(caught.value)
    if "unlocked" not in body:
        line = 4 + len(body.splitlines())
        assert str(caught.value).startswith(f"{tmp_path}/mine.py:{line}: ")


def test_a_name_that_is_old_in_another_group_is_not_taken_for_it(tmp_path):
    with pytest.raises(InputError) as caught:
        loading.load(write_config(tmp_path, "config.train.targets = 'q'"))
    assert 'Key "targets" does not exist' in str(caught.value)
    assert loading.load(write_config(tmp_path, "config.attens.targets = ('imdb',)"))


def test_a_run_written_under_the_old_names_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old_fields()))
    found = loading.read(path)
    assert found == defaults.default()
    validation.validate(found)
    part = {"seed": 3, "lora": {"targets": "q"}, "mine": {"targets": "q"}}  # an older run's
    path.write_text(json.dumps(part))
    assert (
        loading.read(path)
        == ConfigDict({"seed": 3, "lora": {"target_modules": "q"}, "mine": {"targets": "q"}}).lock()
    )


def test_mapping_leaves_what_it_was_given_alone():
    fields = old_fields()
    before = json.dumps(fields)
    once = renames.current(fields)
    assert json.dumps(fields) == before
    assert renames.current(once) == once
    assert renames.current({"train": 5, "lora": "x"}) == {"train": 5, "lora": "x"}
