"""Run checkpoints: what is kept, found and restored, and what a killed or damaged run leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclf.checkpoint import checkpoints, model_dir, tree_store
from jaxclf.checkpoint.checkpoints import Checkpoints
from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.core.tree import flatten
from jaxclf.models import registry
from jaxclf.models.layers import RopeScaling


def make(value=1.0):
    params = {
        "embed": {"embedding": jnp.linspace(-value, value, 12).reshape(6, 2)},
        "layers": {"attention": {"q": {"kernel": jnp.full((2, 2, 3), value, jnp.bfloat16)}}},
    }
    state = {
        "optimizer": optax.adamw(1e-3).init(params),
        "key": jax.random.key(int(value)),
        "step": jnp.int32(value),
    }
    return params, state


def save(run, scores, **options):
    """Save steps 1, 2, … with these scores (None: not evaluated)."""
    with Checkpoints(run, **options) as saved:
        for step, score in enumerate(scores, start=1):
            metrics = {} if score is None else {"score": score}
            saved.save(step, *make(float(step)), {"at": step}, metrics)


def kept(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def same(one, other):
    return tree_store.describe(one) == tree_store.describe(other) and jax.tree.structure(
        one
    ) == jax.tree.structure(other)


@pytest.mark.parametrize("iterator_state", [b"\x00\xff", {"at": [1, None, "é"]}, None, 3])
def test_all_parts_come_back_bit_for_bit(tmp_path, iterator_state):
    params, state = make(3.0)
    with Checkpoints(tmp_path) as saved:
        saved.save(3, params, state, iterator_state, {"score": 0.1, "intent.accuracy": 0.3})
        restored = saved.restore("last", params, jax.eval_shape(lambda: state))
        assert same(restored.params, params)
        assert same(restored.state, state)
        assert same(saved.restore_params(3, params), params)
    assert restored.iterator_state == iterator_state
    assert restored.metrics == {"score": 0.1, "intent.accuracy": 0.3}


def test_donating_the_arrays_after_save_does_not_change_what_is_saved(tmp_path):
    params = {"w": jnp.arange(500_000.0)}
    step = jax.jit(lambda tree: jax.tree.map(lambda x: -x - 1, tree), donate_argnums=0)
    expected = tree_store.describe(params)
    with Checkpoints(tmp_path) as saved:
        saved.save(1, params, {"n": jnp.int32(1)}, None, {})
        for _ in range(5):
            params = step(params)
        restored = saved.restore_params(1, params)
    assert tree_store.describe(restored) == expected


@pytest.mark.parametrize(
    ("scores", "keep", "expected", "best"),
    [
        ([0.1, 0.9, 0.5, 0.3], 1, [2, 4], 2),
        ([0.1, 0.9, 0.5, 0.3], 3, [2, 3, 4], 2),
        ([0.5, 0.5, 0.5], 1, [3], 3),  # of equals the latest
        ([0.2, None, float("nan"), None], 2, [1, 3, 4], 1),
        ([None, None, None], 2, [2, 3], 3),  # without scores the last is as good as any
    ],
)
def test_the_last_n_and_the_best_stay(tmp_path, scores, keep, expected, best):
    save(tmp_path, scores, keep=keep)
    assert kept(tmp_path) == expected
    with Checkpoints(tmp_path, keep=keep) as saved:
        assert saved.best_step() == best
        assert saved.latest_step() == len(scores)


def test_the_best_survives_a_restart(tmp_path):
    save(tmp_path, [0.9, 0.1])
    with Checkpoints(tmp_path) as saved:
        for step in (3, 4):
            saved.save(step, *make(step), None, {"score": 0.5})
    assert kept(tmp_path) == [1, 4]


def test_the_best_metric_is_the_named_one(tmp_path):
    with Checkpoints(tmp_path, best_metric="slots.f1") as saved:
        for step, f1 in enumerate([0.3, 0.8, 0.4], start=1):
            saved.save(step, *make(), None, {"score": step, "slots.f1": f1})
        saved.wait()
        assert saved.best_step() == 2


def test_of_an_error_the_smallest_is_best(tmp_path):
    with Checkpoints(tmp_path, best_metric="mse", greater_is_better=False) as saved:
        for step, error in enumerate([0.3, 0.1, 0.4], start=1):
            saved.save(step, *make(), None, {"mse": error})
        saved.wait()
        assert saved.best_step() == 2
    assert kept(tmp_path) == [2, 3]


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, *make(1.0), None, {})
        saved.save(1, *make(2.0), None, {})
        assert same(saved.restore_params(1, make()[0]), make(1.0)[0])


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_a_new_run_has_no_step(tmp_path):
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step() is None
        assert saved.best_step() is None


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path):
    save(tmp_path, [0.5])
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "params").mkdir(parents=True)
    write_model(tmp_path)
    assert model_dir.resolve(tmp_path, "last").step == 1
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step() == 1
        saved.save(2, *make(2.0), None, {})
        saved.wait()
        assert saved.latest_step() == 2
    assert not half.exists()


def test_a_half_deleted_checkpoint_does_not_matter(tmp_path):
    save(tmp_path, [0.9, 0.1, 0.2], keep=2)
    (tmp_path / "checkpoints" / "2" / "meta" / "meta.json").unlink()
    with Checkpoints(tmp_path) as saved:
        assert (saved.best_step(), saved.latest_step()) == (1, 3)
        saved.save(4, *make(), None, {})
    assert kept(tmp_path) == [1, 4]


KILLED = """
import sys, jax.numpy as jnp
from jaxclf.checkpoint.checkpoints import Checkpoints
saved = Checkpoints(sys.argv[1])
for step in range(1, 1000):
    saved.save(step, {"w": jnp.full(100_000, step)}, {"n": jnp.int32(step)}, step, {})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path):
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 4:  # its files are being written now
                process.send_signal(signal.SIGKILL)
                break
    with Checkpoints(tmp_path) as saved:
        step = saved.latest_step()
        assert step in (3, 4)
        restored = saved.restore("last", {"w": jnp.zeros(100_000, int)}, {"n": jnp.int32(0)})
    assert np.all(restored.params["w"] == step)
    assert (restored.state["n"], restored.iterator_state) == (step, step)


def damage(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("item", "leaf"),
    [
        ("params", "embed/embedding"),
        ("params", "layers/attention/q/kernel"),
        ("state", "optimizer/0/mu/layers/attention/q/kernel"),
        ("state", "optimizer/0/count"),
        ("state", "key"),
        ("state", "step"),
    ],
)
def test_a_flipped_bit_is_named_at_restore(tmp_path, item, leaf):
    save(tmp_path, [0.5])
    chunks = tmp_path / "checkpoints" / "1" / item / leaf.replace("/", ".") / "c"
    damage(chunks if chunks.is_file() else next(p for p in chunks.rglob("*") if p.is_file()))
    with Checkpoints(tmp_path) as saved, pytest.raises(ArtifactError) as caught:
        saved.restore("last", *make())
    assert caught.value.exit_code == 3
    assert f"1/{item}: corrupt:\n  {leaf}: " in str(caught.value)


def test_a_flipped_bit_in_the_iterator_state_is_found(tmp_path):
    save(tmp_path, [0.5])
    meta = tmp_path / "checkpoints" / "1" / "meta" / "meta.json"
    text = meta.read_text()
    meta.write_text(text.replace('"at": 1', '"at": 3'))
    assert meta.read_text() != text
    with pytest.raises(ArtifactError, match=r"meta\.json: corrupt \(its checksum differs"):
        model_dir.resolve(tmp_path)


def test_a_state_of_another_optimizer_is_refused(tmp_path):
    save(tmp_path, [0.5])
    params, state = make()
    state["optimizer"] = optax.sgd(1e-3, momentum=0.9).init(params)
    with Checkpoints(tmp_path) as saved, pytest.raises(ArtifactError, match="does not fit") as e:
        saved.restore("last", params, state)
    assert "optimizer/0/trace/embed/embedding: missing" in str(e.value)
    assert "optimizer/0/nu/embed/embedding: unexpected" in str(e.value)


def test_a_save_that_fails_is_told(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.directory.rmdir()
    saved.directory.write_text("in the way")

    def save_and_wait():  # which of the two raises is orbax's affair
        saved.save(1, *make(), None, {})
        saved.wait()

    with pytest.raises(StorageError, match="saved"):
        save_and_wait()


# Finding a model ----------------------------------------------------------------------------------


def write_model(directory, name="llama_smoke"):
    model_dir.write_model(directory / "model.json", registry.CONFIGS[name], "float32")


def write_model_directory(directory, params):
    with tree_store.TreeWriter(directory / "params") as writer:
        for path, leaf in flatten(params).items():
            writer.write(path, leaf.shape, leaf.dtype.name, [np.asarray(leaf)])
    manifest = tree_store.manifest_to_json(writer.manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    write_model(directory)


def test_a_run_directory_resolves_to_the_step_asked_for(tmp_path):
    save(tmp_path, [0.1, 0.9, 0.5], keep=3)
    write_model(tmp_path)
    for asked, found in (("best", 2), ("last", 3), (1, 1)):
        source = model_dir.resolve(tmp_path, asked)
        assert (source.step, source.run_dir) == (found, tmp_path)
        assert source.model_json == tmp_path / "model.json"
        assert source.tokenizer_dir == tmp_path / "tokenizer"
        params = make(float(found))[0]
        assert same(model_dir.load_params(source, params), params)


def test_a_step_directory_resolves_to_itself(tmp_path):
    save(tmp_path, [0.9, 0.5], keep=2)
    write_model(tmp_path)
    source = model_dir.resolve(tmp_path / "checkpoints" / "2")
    assert (source.step, source.run_dir) == (2, tmp_path)


def test_a_model_directory_resolves_to_itself(tmp_path):
    params = make()[0]
    write_model_directory(tmp_path, params)
    source = model_dir.resolve(tmp_path)
    assert (source.step, source.run_dir) == (None, None)
    assert same(model_dir.load_params(tmp_path, params), params)


def test_parameters_load_in_the_dtype_asked_for(tmp_path):
    params = make()[0]
    write_model_directory(tmp_path, params)
    loaded = model_dir.load_params(tmp_path, params, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}


def test_a_step_that_is_not_there_is_an_error(tmp_path):
    save(tmp_path, [0.5, 0.6])
    with pytest.raises(ArtifactError, match=r"no checkpoint of step 7; there are \[2\]"):
        model_dir.resolve(tmp_path, 7)


@pytest.mark.parametrize("name", ["", "absent", "checkpoints"])
def test_where_nothing_is_the_error_says_what_was_expected(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir(exist_ok=name in ("", "checkpoints"))
    with pytest.raises(ArtifactError, match="no (complete )?checkpoint"):
        model_dir.resolve(tmp_path / name)


def test_model_json_keeps_every_dimension(tmp_path):
    path = tmp_path / "model.json"
    for name in ("llama2_7b", "llama3.1_8b", "llama3.2_1b"):
        model_dir.write_model(path, registry.CONFIGS[name], "bfloat16")
        assert model_dir.read_model(path) == (registry.CONFIGS[name], "bfloat16")
    assert isinstance(model_dir.read_model(path)[0].rope_scaling, RopeScaling)


@pytest.mark.parametrize(
    "change",
    [{"family": "bart"}, {"sliding_window": 4}, {"rope_scaling": {"stretch": 2}}, {"dtype": None}],
)
def test_a_model_json_of_another_version_is_refused(tmp_path, change):
    path = tmp_path / "model.json"
    write_model(tmp_path)
    fields = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: v for name, v in fields.items() if v is not None}))
    with pytest.raises(ArtifactError, match="describes no model"):
        model_dir.read_model(path)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        model_dir.read_model(path)


def test_a_step_that_was_saved_only_to_stop_goes_with_the_next(tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        for step in (2, 4):
            saved.save(step, *make(step), None, {})
        saved.save(5, *make(5.0), None, {}, scheduled=False)
        saved.wait()
        assert kept(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path, keep=2) as saved:
        assert saved.latest_step() == 5
        saved.save(6, *make(6.0), None, {})
    assert kept(tmp_path) == [4, 6]


def test_a_score_that_comes_later_makes_the_same_checkpoints(tmp_path):
    """The files as well: of steps 1 to 3 the second is the best, and was not when it was saved."""
    scores = [0.3, 0.9, 0.5]
    save(tmp_path / "whole", scores)
    for number, score in enumerate(scores, start=1):
        with Checkpoints(tmp_path / "late") as saved:
            saved.save(number, *make(float(number)), {"at": number}, {})
        with Checkpoints(tmp_path / "late") as saved:
            assert saved.metrics("last") == {}
            saved.evaluated(number, {"score": score})
            assert saved.metrics("last") == {"score": score}
    assert kept(tmp_path / "late") == kept(tmp_path / "whole") == [2, 3]
    for step in ("2", "3"):
        texts = [
            (tmp_path / run / "checkpoints" / step / "meta/meta.json").read_text()
            for run in ("whole", "late")
        ]
        assert texts[0] == texts[1]


def test_a_damaged_step_is_not_sealed_anew_by_its_score(tmp_path):
    save(tmp_path, [None])
    path = tmp_path / "checkpoints/1/meta/meta.json"
    with Checkpoints(tmp_path) as saved:
        damaged = path.read_text().replace('"step": 1', '"step": 7')
        path.write_text(damaged)
        with pytest.raises(ArtifactError, match="its checksum differs"):
            saved.evaluated(1, {"score": 0.5})
    assert path.read_text() == damaged


SAVES = """
import resource, sys
import jax.numpy as jnp
from jaxclf.checkpoint.checkpoints import Checkpoints
def main(arguments):
    params = {str(number): jnp.ones(40_000) for number in range(12)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))  # as if the disk were full
    with Checkpoints(WORKDIR) as saved:
        saved.save(1, params, {"n": jnp.int32(1)}, None, {})
        saved.wait()
from jaxclf.core import errors
errors.run(main)
"""


def test_a_save_that_fails_ends_the_process_with_one_line(tmp_path):
    program = SAVES.replace("WORKDIR", repr(str(tmp_path)))
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert found.returncode == 4
    assert "error: " in found.stderr
    assert "was not saved" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_save_that_hangs_is_not_waited_for_without_limit(tmp_path, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(checkpoints, "LONGEST_SAVE", 0.1)
    saved = Checkpoints(tmp_path)
    monkeypatch.setattr(saved._manager, "wait_until_finished", never.wait)
    with pytest.raises(StorageError, match=r"was not saved within 0 s"):
        saved.wait()
    saved.close()  # nor for a second time
    never.set()
