"""Reading, overriding, checking and storing a config."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxclf.config import defaults, loading, schema, validation
from jaxclf.core.errors import ArtifactError, InputError

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.py")


def write_config(folder: Path, body: str) -> str:
    """A config file whose `get_config` runs `body` on the default config."""
    path = folder / "mine.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(
        "from jaxclf.config import defaults\n\n"
        "def get_config(argument=''):\n"
        "    config = defaults.default()\n"
        f"{lines}\n"
        "    return config\n"
    )
    return str(path)


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> str:
    """A config file that states nothing of its own."""
    return write_config(tmp_path_factory.mktemp("plain"), "pass")


def imported(errors: str) -> set[str]:
    """Top-level packages named in the output of `python -X importtime`."""
    lines = [line for line in errors.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


# -- overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.steps=12", 12),
        ("train.learning_rate=1e-5", 1e-5),
        ("train.learning_rate=1", 1.0),
        ("train.pack=true", True),
        ("train.pack=False", False),
        ("train.pack=1", True),
        ("data.root=a=b, c", "a=b, c"),
        ("model.checkpoint=", ""),
        ("--config.train.max_grad_norm=0", 0.0),
        ("seed=7", 7),
    ],
)
def test_an_override_takes_the_type_of_the_field(plain, text, value):
    loaded = loading.load(plain, [text])
    field = text.removeprefix("--config.").partition("=")[0]
    found = dict(schema.leaves(loaded))[field]
    assert (found, type(found)) == (value, type(value))


def test_an_override_reads_a_tuple():
    mine = ConfigDict({"shape": (1, 2)})
    loading.override(mine, ["shape=(3, 4, 5)"])
    assert mine.shape == (3, 4, 5)
    with pytest.raises(InputError, match=r"shape=3: expected a tuple, such as \(3, 4, 5\)"):
        loading.override(mine, ["shape=3"])


def test_the_last_override_of_a_field_counts(plain):
    assert loading.load(plain, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.step=5", "--config.train.step: no such field. Did you mean '--config.train.steps'"),
        ("trian.steps=5", "Did you mean '--config.train.steps'"),
        ("model.steps=5", "Did you mean '--config.train.steps'"),
        ("steps=5", "Did you mean '--config.train.steps'"),
        ("train.steps.x=5", "Did you mean '--config.train.steps'"),
        ("train.lr=5", "train.learning_rate"),
        ("train=5", "--config.train is a group of fields; set one of: train.adam_beta1"),
        ("train.steps=5.5", "--config.train.steps=5.5: expected a whole number, such as 1000"),
        ("train.steps=" + "9" * 5000, "expected a whole number"),
        ("train.steps=", "expected a whole number"),
        ("train.learning_rate=fast", "=fast: expected a number, such as 0.001"),
        ("train.pack=yes", "=yes: expected true or false, such as False"),
    ],
)
def test_a_wrong_override_names_value_expectation_and_nearest(plain, text, message):
    with pytest.raises(InputError) as caught:
        loading.load(plain, [text])
    assert message in str(caught.value)


# -- the command line


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train")
    loading.add_arguments(parser)
    return parser


def test_parse_separates_overrides_from_options():
    words = ["--config", "a.py:smoke", "--workdir=runs", "--config.train.max_grad_norm", "-1"]
    arguments = loading.parse(make_parser(), ["--config.seed=3", *words])
    assert (arguments.config, arguments.workdir) == ("a.py:smoke", "runs")
    assert arguments.overrides == ["--config.seed=3", "--config.train.max_grad_norm=-1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdri", "x"], "--workdri: no such option. Did you mean '--workdir'?"),
        (["--conf=a.py"], "--conf: no such option. Did you mean '--config'?"),
        (["--conifg.train.steps=5"], "Did you mean '--config.train.steps'?"),
        (["--config.train.steps"], "--config.train.steps: no value given"),
        (["--config.train.steps", "--workdir"], "--config.train.steps: no value given"),
    ],
)
def test_a_wrong_option_is_named(words, message):
    with pytest.raises(InputError) as caught:
        loading.parse(make_parser(), words)
    assert message in str(caught.value)


def test_help_tells_how_to_override(capsys):
    with pytest.raises(SystemExit) as caught:
        loading.parse(make_parser(), ["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--config FILE.py[:VARIANT,...]" in shown
    assert "--config.GROUP.FIELD=VALUE" in shown


# -- the file


def test_experiments_of_the_package_are_found_and_named_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loading.load("configs/quickstart.py:smoke")
    with pytest.raises(InputError, match="Did you mean 'configs/quickstart.py'"):
        loading.load("configs/quikstart.py")
    with pytest.raises(InputError, match="Configs in 'configs': attens_bert_base.py, "):
        loading.load("configs/zebra.py")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("configs/quikstart.py", "no such file. Did you mean 'configs/quickstart.py'?"),
        ("confgs/quickstart.py:smoke", "no such file. Did you mean 'configs/quickstart.py'?"),
        ("quickstart.py", "no such file. Did you mean 'configs/quickstart.py'?"),
        ("configs/quickstart", "expected FILE.py[:VARIANT,...]. Did you mean 'configs/quickst"),
        ("configs/zebra.py", "no such file. Configs in 'configs': attens_bert_base.py, "),
        ("jaxclf/config/defaults.py", "jaxclf/config/defaults.py: defines no get_config"),
        (
            "configs/quickstart.py:smoek",
            "'smoek' is not known; possible: smoke, no_tuning, ",
        ),
        ("configs/quickstart.py:smoek", "Did you mean 'smoke'?"),
        ("configs/quickstart.py:task=intents", "Did you mean 'task=intent'?"),
        ("configs/quickstart.py:task=both,task=slots", "'task=both' and 'task=slots' exclude"),
    ],
)
def test_a_wrong_file_or_variant_names_the_nearest(monkeypatch, argument, message):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError) as caught:
        loading.load(argument)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "mine.py:5: ZeroDivisionError: division by zero"),
        ("open('nowhere')", "mine.py:5: FileNotFoundError: [Errno 2] No such"),
        ("raise ValueError('two\\nlines')", "mine.py:5: two lines"),
        ("config.train.step = 5", 'mine.py:5: AttributeError: Key "step" does not exist'),
        ("config.train.step = 5", 'Did you mean "steps"'),
        ("config.train.steps = 'many'", "mine.py:5: TypeError: Could not override field 'steps'"),
        ("x = (", "mine.py:5: SyntaxError: '(' was never closed"),
        ("return 5", "get_config returned int; expected ml_collections.ConfigDict"),
        ("return type(config)()", "the config has no field seed. Start from default()"),
        ("config.train.learning_rate = float('nan')", "train.learning_rate is nan; expected a"),
        ("with config.unlocked(): config.mine = {1}", "mine is {1}; expected true, false, a"),
        ("import sys; sys.exit(0)", "mine.py:5: SystemExit: 0"),
        ("raise BaseException('odd')", "mine.py:5: BaseException: odd"),
        ("return get_config()", "RecursionError: maximum recursion depth"),
        ("with config.unlocked(): config.me = config", "a field is nested without end"),
        ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "mine.py:5: E:"),
        ("import sys; sys.path.clear(); return 5", "get_config returned int"),
        ("config.seed = 2**32", "expected a whole number from 0 to 4,294,967,295"),
        ("config.train.steps = 10**18", "train.steps is 1000000000000000000; expected a whole"),
    ],
)
def test_a_config_that_fails_is_named_with_its_line(tmp_path, body, message):
    with pytest.raises(InputError) as caught:
        loading.load(write_config(tmp_path, body))
    assert message in str(caught.value)
    assert "Other fields present" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variant_of_a_config_without_variants_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from jaxclf.config import defaults\nget_config = lambda: defaults.default()\n")
    assert loading.load(str(path)).seed == 0
    with pytest.raises(InputError, match="this config has no variants"):
        loading.load(f"{path}:smoke")


def test_the_loaded_config_is_locked_and_the_import_path_restored(tmp_path):
    before = list(sys.path)
    loaded = loading.load(write_config(tmp_path, "config.seed = 5"))
    assert loaded.seed == 5
    with pytest.raises(AttributeError):
        loaded.sede = 6
    assert sys.path == before


def test_an_edit_of_the_file_is_seen_at_once(tmp_path):
    assert loading.load(write_config(tmp_path, "config.seed = 5")).seed == 5
    assert loading.load(write_config(tmp_path, "config.seed = 6")).seed == 6
    assert not (tmp_path / "__pycache__").exists()


# -- values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.on_defect=skp"], "data.on_defect is 'skp'; expected one of fail, skip. Did you"),
        (["prompt.wrapper=lama3"], "Did you mean 'llama3'?"),
        (["prompt.slots=name"], "Did you mean 'names'?"),
        (["train.schedule=cosin"], "Did you mean 'cosine'?"),
        (["eval.fallback=neerest"], "Did you mean 'nearest'?"),
        (["eval.split=validation"], "expected one of train, dev, heldout, test"),
        (["model.dtype=bf16"], "expected one of auto, float32, bfloat16. Did you mean 'bfloat16'?"),
        (["data.name=masive"], "Did you mean 'massive'?"),
        (["data.task=intents"], "expected one of intent, slots, both. Did you mean 'intent'?"),
        (["data.name=20ng", "data.task=slots"], "expected one of 7class, 20class, both"),
        (["train.batch_size=0"], "train.batch_size is 0; expected a whole number of at least 1"),
        (["train.steps=-1"], "expected a whole number of at least 0"),
        (["train.learning_rate=inf"], "train.learning_rate is inf; expected a number of at least"),
        (["train.adam_beta1=1"], "expected a number of at least 0 and below 1"),
        (["train.adam_epsilon=0"], "expected a number above 0"),
        (["train.trained=last:0"], "expected all, last:N, biases, norms or a regular expression"),
        (["train.trained=lay(er"], "expected all, last:N, biases, norms or a regular expression"),
        (
            ["train.batch_size=8", "train.gradient_accumulation_steps=3"],
            "expected a multiple of train.gradient_accumulation_steps",
        ),
        (["train.row_length=10"], "train.row_length is 10; expected 0 or at least"),
        (["prompt.template=cloce"], "Did you mean 'cloze'?"),
        (["prompt.styles=('labels','lables')"], "expected templates such as"),
        (["prompt.template=definitions"], "prompt.definitions is empty"),
        (["prompt.styles=('labels','definitions')"], "prompt.definitions is empty"),
        (["prompt.seeds=2"], "prompt.shots=0 and prompt.choose='seed' there is one"),
        (["prompt.seeds=2", "prompt.shots=1", "prompt.choose=similar"], "there is one"),
        (["prompt.orders=3", "prompt.shots=2"], "2 examples have 2 orders"),
        (["prompt.styles=('labels',)", "prompt.file=x"], "compare it with itself"),
        (
            ["prompt.chain_of_thought=true", "eval.decoding=score"],
            "prompt.chain_of_thought needs eval.decoding='free'",
        ),
        (
            ["prompt.chain_of_thought=true", "prompt.template=cloze"],
            "prompt.chain_of_thought is an instruction",
        ),
        (["data.name=file", "data.task=label"], "data.train is empty; expected a file (jsonl"),
        (["data.name=file", "data.train=a.csv", "data.separator=;;"], "data.separator is ';;'"),
        (["data.name=hub:"], "data.name is 'hub:'; expected one of builtin, massive"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(plain, overrides, message):
    with pytest.raises(InputError) as caught:
        loading.load(plain, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=0"],
        [
            "prompt.styles=('labels','choice')",
            "prompt.shots=2",
            "prompt.orders=2",
            "prompt.seeds=9",
        ],
        ["train.trained=last:2"],
        ["train.trained=layers/attention/.*"],
        ["train.row_length=4096"],
        ["data.name=file", "data.train=a.csv", "data.task=label"],
    ],
)
def test_an_unusual_value_that_can_be_meant_is_taken(plain, overrides):
    loading.load(plain, overrides)


@pytest.mark.parametrize("name", schema.FIELDS)
def test_every_field_has_a_rule_which_its_default_keeps(name):
    field = schema.FIELDS[name]
    assert field.rule.holds(field.default)
    assert not field.rule.holds(None)
    assert not field.rule.holds({"of": "another type"})
    assert not field.rule.holds(([],))
    for choice in field.rule.choices:
        assert field.rule.holds(choice)
    assert field.meaning.endswith(".")
    with pytest.raises(InputError, match=rf"^{re.escape(name)} is (None|not the name)"):
        validation.check(name, None)


def test_the_defaults_are_those_of_the_schema():
    found = dict(schema.leaves(defaults.default()))
    assert found == {name: field.default for name, field in schema.FIELDS.items()}
    for name, value in found.items():
        assert type(value) is type(schema.FIELDS[name].default)


def test_a_secret_that_stands_in_the_wrong_place_is_not_repeated():
    with pytest.raises(InputError) as caught:
        validation.check("api.key_env", "sk-123")
    assert "sk-123" not in str(caught.value)
    assert "such as OPENAI_API_KEY" in str(caught.value)


# -- config.json

scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    # Half a surrogate pair: what a command line holds where its bytes are not UTF-8.
    st.text() | st.just("\udcff"),
)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}", fullmatch=True).filter(lambda name: not hasattr(dict, name)),
        scalars | st.lists(scalars).map(tuple) | st.tuples(st.tuples(scalars)),
    )
)
def test_json_gives_back_the_same_config(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "config.json"
    before = ConfigDict({"group": values})
    loading.write(before, path)
    after = loading.read(path)
    assert repr(after.to_dict()) == repr(ConfigDict({"group": values}).to_dict())
    assert {name: type(value) for name, value in schema.leaves(after)} == {
        name: type(value) for name, value in schema.leaves(before)
    }


def test_a_read_config_is_equal_and_locked(plain, tmp_path):
    loaded = loading.load(plain, ["train.learning_rate=1e-5"])
    loading.write(loaded, tmp_path / "config.json")
    after = loading.read(tmp_path / "config.json")
    assert after == loaded
    assert after.is_locked
    loading.validate(after)
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    "content", [b"", b'{"seed": 1', b"[1]", b'{"a.b": 1}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_config_json_is_an_artifact_error(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a config"):
        loading.read(path)


def test_a_missing_config_json_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        loading.read(tmp_path / "config.json")


# -- in a process of its own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/quickstart.py", "--config.train.step=5"], "'--config.train.steps'?"),
        (["--config=configs/quickstart.py:smoek"], "Did you mean 'smoke'?"),
        (["--config=configs/quikstart.py"], "Did you mean 'configs/quickstart.py'?"),
        (["--config=configs/quickstart.py", "--config.eval.fallback=frist"], "'first'?"),
        (["--config=configs/quickstart.py", "--wrokdir=x"], "Did you mean '--workdir'?"),
    ],
)
def test_a_typo_ends_training_with_code_2_before_anything_heavy_is_imported(
    tmp_path, words, message
):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jaxclf.train", *words, f"--workdir={workdir}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    packages = imported(done.stderr)
    assert "ml_collections" in packages
    assert not packages & {"jax", "flax", "transformers", "datasets", "numpy", "matplotlib"}
    assert not workdir.exists()


def test_a_config_is_found_and_finds_its_neighbours_from_any_folder(tmp_path):
    """Loaded by an absolute path, its own tree's `configs` is the one imported."""
    other = tmp_path / "copy" / "configs"
    other.mkdir(parents=True)
    text = Path(QUICKSTART).read_text()
    (other / "quickstart.py").write_text(
        text.replace("config.data.task", "config.seed = 41; config.data.task")
    )
    (other / "__init__.py").touch()
    (other / "mine.py").write_text(
        "from configs import quickstart\n\ndef get_config():\n    return quickstart.get_config()\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from jaxclf.config import loading; "
        "print(loading.load(sys.argv[1]).seed)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shipped = "configs/quickstart.py"  # of the package, where this folder has none
    for path, seed in ((QUICKSTART, "0"), (shipped, "0"), (str(other / "mine.py"), "41")):
        done = subprocess.run(
            [sys.executable, "-c", script, path],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.stdout.strip(), done.stderr) == (seed, "")
