"""Whether a folder holds the finished run of a config."""

import json

import pytest

from jaxclf import report
from jaxclf.config import defaults, loading
from jaxclf.config.renames import RENAMED
from jaxclf.core.errors import ArtifactError


def config(*overrides):
    found = defaults.default()
    loading.override(found, overrides)
    return found


def write(folder, fields):
    parts = {name: {} for name in ("data", "model", "train", "eval", "versions")}
    report.write(folder, {"config": fields, **parts}, [], (), [])


def test_a_report_written_under_earlier_names_of_fields_is_known(tmp_path):
    fields = json.loads(json.dumps(defaults.default().to_dict()))
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        fields[group][name] = fields[group].pop(new.partition(".")[2])
    write(tmp_path, fields)
    assert report.finished(config(), tmp_path)
    assert report.finished(config("train.logging_steps=3", "api.key_env=KEY"), tmp_path)
    assert not report.finished(config("train.max_grad_norm=0"), tmp_path)


def test_a_report_without_a_config_is_none_of_ours(tmp_path):
    write(tmp_path, {"a.b": 1})
    with pytest.raises(ArtifactError, match="not a report of ours"):
        report.finished(config(), tmp_path)
