"""The script that compares how configs load now and at an earlier revision."""

import json

import pytest

from benchmarks.compare_configs import differences, variants
from jaxclf.config import defaults, schema
from jaxclf.config.renames import RENAMED


def run(**changes) -> dict:
    found = json.loads(json.dumps(dict(schema.leaves(defaults.default()))))
    return found | {name.replace("__", "."): value for name, value in changes.items()}


def before(**changes) -> dict:
    old = {new: name for name, new in RENAMED.items()}
    return {old.get(name, name): value for name, value in run(**changes).items()}


def test_words_that_exclude_each_other_are_not_combined():
    assert list(variants(["smoke", "lora", "qlora", "task=a", "task=b"])) == [
        ",".join(filter(None, (smoke, tune, task)))
        for smoke in ("", "smoke")
        for tune in ("", "lora", "qlora")
        for task in ("", "task=a", "task=b")
    ]


def test_renamed_fields_are_no_difference():
    assert differences({"a.py:": before()}, {"a.py:": run()}) == {}
    assert differences({"a.py:": "no word"}, {"a.py:": "no such word"}) == {}
    new = run()
    del new["seed"]  # as though it were a field that came since
    assert differences({"a.py:": new}, {"a.py:": run()}) == {}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (before(train__steps=2), run(), "train.steps: 2 before, 1000 now"),
        (before(lora__alpha=16), run(), "lora.alpha: 16 before, 16.0 now"),
        (before(train__max_grad_norm=0.0), run(), "train.max_grad_norm: 0.0 before, 1.0 now"),
        (before(mine=1), run(), "mine: 1 before, 'absent' now"),
        (before(), "no file", "now"),
        ("no file", run(), "before"),
    ],
)
def test_differences_are_named(old, new, words):
    assert words in differences({"a.py:": old}, {"a.py:": new})["a.py:"]


def test_configs_of_one_side_alone_are_named():
    assert "no such config" in differences({"a.py:": run()}, {})["a.py:"]
