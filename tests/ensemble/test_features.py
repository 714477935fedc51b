"""Features of base and adapters: one pass equals single ones, and the files on disk are exact."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxclf.adapters import lora
from jaxclf.adapters.lora import Spec
from jaxclf.core.errors import InputError
from jaxclf.data import loader
from jaxclf.data.encoder_inputs import Encoded
from jaxclf.ensemble import attens, features
from jaxclf.ensemble.attens import Combiner, Pooling
from jaxclf.ensemble.features import AdaptedBase
from jaxclf.models import registry
from jaxclf.training.losses import Term, place_losses
from tests.tiny import CONFIG, random_params
from tests.tiny import examples as prompts
from tests.tiny_adapters import random_adapters
from tests.tiny_encoders import ENCODERS, with_heads

SPEC = Spec(targets=("q", "k", "v"), rank=2, alpha=8.0, dropout=0.5)
MEAN = Pooling()


def seen_of(config, specs=(SPEC, SPEC, SPEC)):
    model = registry.create(config)
    params = random_params(model)
    names = ("cola", "rte", "sst2", "wnli")[: len(specs)]
    adapters = {
        name: random_adapters(params, spec, seed)
        for seed, (name, spec) in enumerate(zip(names, specs, strict=True))
    }
    return AdaptedBase(
        model, params, "base", adapters, {name: f"print of {name}" for name in names}
    )


def texts(count=7, seed=0):
    """Texts of three lengths: each is a program of its own where a text runs alone."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        length = (2, 17, 9)[index % 3]
        tokens, types = random.integers(4, 61, length), random.integers(0, 2, length)
        found.append(
            Encoded(str(index), tokens.astype(np.int32), types.astype(np.int32), {}, (), 0)
        )
    return found


def hidden_of(seen):
    """(parameters, tokens, positions, segments …) → hidden states, compiled once a length."""
    return jax.jit(lambda params, *arguments: seen.model.bind(params).hidden(*arguments))


def one_by_one(seen, examples, hidden, adapters=None):
    """The mean over tokens of each text, run alone through base or bound model."""
    params = seen.params if adapters is None else lora.bind(seen.params, features.body(adapters))
    rows = []
    for each in examples:
        tokens = each.tokens[None]
        arguments = (tokens, np.arange(tokens.shape[1])[None], np.ones_like(tokens))
        rows.append(hidden(params, *arguments, each.types[None])[0].mean(0))
    return np.stack(rows)


def check(seen, examples, found):
    hidden = hidden_of(seen)
    np.testing.assert_allclose(found["base"], one_by_one(seen, examples, hidden), atol=1e-5)
    for name, adapters in seen.adapters.items():
        wanted = one_by_one(seen, examples, hidden, adapters)
        assert np.abs(wanted - found["base"]).max() > 1e-3
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_one_pass_equals_single_runs_of_every_module(family, tmp_path):
    seen, examples = seen_of(ENCODERS[family]), texts()
    check(seen, examples, features.load(tmp_path, seen, examples, 3, MEAN))


def test_modules_of_different_ranks_and_with_heads_of_their_own(tmp_path):
    """Adapters from elsewhere; heads are of other sizes and are left out."""
    seen = seen_of(ENCODERS["bert"], (SPEC, SPEC))
    other = registry.create(with_heads("bert", "sequence"))
    spec = dataclasses.replace(SPEC, rank=3, targets=("q",), saved=("heads/.*", "pooler/.*"))
    own = random_adapters(random_params(other), spec, seed=5)
    seen.adapters["own"], seen.fingerprints["own"] = own, "print of own"
    check(seen, texts(), features.load(tmp_path, seen, texts(), 4, MEAN))


def test_the_last_token_of_a_decoder(tmp_path):
    seen = seen_of(CONFIG)
    examples = prompts([(3, 4, 0), (2, 1, 0), (3, 7, 0), (1, 2, 0), (5, 5, 0)])
    found = features.load(tmp_path, seen, examples, 2, Pooling("last"))
    hidden = hidden_of(seen)
    for name, adapters in (("base", None), *seen.adapters.items()):
        params = seen.params if adapters is None else lora.bind(seen.params, adapters)
        for row, each in enumerate(examples):
            tokens = np.concatenate([each.prefix, each.text])[None]
            positions = np.arange(tokens.shape[1])[None]
            wanted = hidden(params, tokens, positions, np.ones_like(tokens))[0, -1]
            np.testing.assert_allclose(found[name][row], wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_padding_counts_as_in_the_released_program(family, tmp_path):
    """What the mean takes in beyond the texts is what transformers computes there."""
    torch = pytest.importorskip("torch")
    from tests.parity import helpers

    config = dataclasses.replace(ENCODERS[family], heads=(), pooler=False)
    hf = helpers.hf_encoder(config, 1, "Model").eval()
    model = registry.create(config)
    params = helpers.encoder_tree(helpers.hf_tensors(hf), config)
    seen = AdaptedBase(model, params, "base", {}, {})
    examples = texts()
    found = features.load(tmp_path, seen, examples, 3, Pooling(padding=19))["base"]
    for row, each in enumerate(examples):
        tokens, types, mask = np.zeros((3, 1, 19), np.int64)
        count = len(each.tokens)
        tokens[0, :count], types[0, :count], mask[0, :count] = each.tokens, each.types, 1
        given = {"token_type_ids": torch.tensor(types)} if config.type_vocab_size else {}
        with torch.no_grad():
            hidden = hf(torch.tensor(tokens), attention_mask=torch.tensor(mask), **given)
        np.testing.assert_allclose(found[row], hidden[0][0].mean(0), atol=1e-5)


def counted(monkeypatch):
    """Counts the batches that are computed."""
    calls = []
    make = features.make_pass

    def spy(*arguments):
        function = make(*arguments)

        def run(*inputs):
            jax.debug.callback(lambda: calls.append(1))
            return function(*inputs)

        return run

    monkeypatch.setattr(features, "make_pass", spy)
    return calls


def test_what_is_on_disk_is_not_computed_again(tmp_path, monkeypatch):
    seen, examples = seen_of(ENCODERS["bert"]), texts()
    first = features.load(tmp_path, seen, examples, 3, MEAN)
    calls, told = counted(monkeypatch), []
    again = features.load(tmp_path, seen, examples, 3, MEAN, told.append)
    assert calls == []
    assert sum(told) == len(examples)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


CHANGES = {
    "other weights of the base": lambda s, e, p: (dataclasses.replace(s, fingerprint="x"), e, p),
    "another adapter": lambda s, e, p: (
        dataclasses.replace(s, fingerprints={**s.fingerprints, "rte": "x"}),
        e,
        p,
    ),
    "other texts": lambda s, e, p: (s, [*e[:-1], texts(1, seed=9)[0]], p),
    "another pooling": lambda s, e, p: (s, e, Pooling("max")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_stale_files_are_computed_again(change, tmp_path):
    seen, examples = seen_of(ENCODERS["bert"]), texts()
    before = features.load(tmp_path, seen, examples, 3, MEAN)
    before = {name: np.array(values) for name, values in before.items()}
    stamps = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    now = CHANGES[change](seen, examples, MEAN)
    features.load(tmp_path, now[0], now[1], 3, now[2])
    changed = {name for name, text in stamps.items() if (tmp_path / name).read_text() != text}
    assert changed == ({"rte.json"} if change == "another adapter" else set(stamps))


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "no note", "broken note"])
def test_damaged_files_are_found_and_computed_again(damage, tmp_path):
    seen, examples = seen_of(ENCODERS["bert"]), texts()
    before = {n: np.array(v) for n, v in features.load(tmp_path, seen, examples, 3, MEAN).items()}
    path, note = tmp_path / "rte.npy", tmp_path / "rte.json"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-7] ^= 1
        path.write_bytes(content)
    elif damage == "gone":
        path.unlink()
    elif damage == "no note":
        note.unlink()
    else:
        note.write_text("{")
    after = features.load(tmp_path, seen, examples, 3, MEAN)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, atol=1e-6)


def cut(folder, seen, examples, batch_size, batches):
    """A pass that is stopped after so many batches."""
    done = []

    def stop(count):
        done.append(count)
        if len(done) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features.load(folder, seen, examples, batch_size, MEAN, stop)


def test_a_pass_that_was_cut_off_goes_on_where_it_stood(tmp_path, monkeypatch):
    seen, examples = seen_of(ENCODERS["bert"]), texts(9)
    whole = features.load(tmp_path / "whole", seen, examples, 2, MEAN)
    cut(tmp_path / "cut", seen, examples, 2, 3)
    calls, told = counted(monkeypatch), []
    found = features.load(tmp_path / "cut", seen, examples, 2, MEAN, told.append)
    jax.effects_barrier()
    assert len(calls) == 2  # of five batches three were there
    assert sum(told) == 9
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_pass_that_was_killed_goes_on_from_what_is_marked(tmp_path, monkeypatch):
    seen, examples = seen_of(ENCODERS["bert"]), texts(9)
    whole = features.load(tmp_path / "whole", seen, examples, 2, MEAN)
    monkeypatch.setattr(features, "_SAVE_EVERY", 2)
    real, marks = features._File.mark_done, []

    def mark_twice(file, done):
        """So many files are marked once, and then no more."""
        marks.append(done)
        if len(marks) <= len(whole):
            real(file, done)

    with monkeypatch.context() as patch:
        patch.setattr(features._File, "mark_done", mark_twice)
        cut(tmp_path / "cut", seen, examples, 2, 3)
    calls = counted(monkeypatch)
    found = features.load(tmp_path / "cut", seen, examples, 2, MEAN)
    jax.effects_barrier()
    assert len(calls) == 3  # of five batches two are sure
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 4), (3, 2), (5, 1)])
def test_a_pass_goes_on_with_batches_of_another_size(before, after, tmp_path, monkeypatch):
    """What was done is kept by text: no row is left out, and none is done twice."""
    seen, examples = seen_of(ENCODERS["bert"]), texts(11)
    whole = features.load(tmp_path / "whole", seen, examples, after, MEAN)
    cut(tmp_path / "cut", seen, examples, before, 2)
    calls = counted(monkeypatch)
    found = features.load(tmp_path / "cut", seen, examples, after, MEAN)
    jax.effects_barrier()
    assert len(calls) == -(-(11 - 2 * before) // after)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_a_pass_in_another_order_begins_anew(tmp_path, monkeypatch):
    """What it left are the shortest texts; they are not the first of an order of another kind."""
    seen, examples = seen_of(ENCODERS["bert"]), texts(9)
    whole = features.load(tmp_path / "whole", seen, examples, 2, MEAN)
    cut(tmp_path / "cut", seen, examples, 2, 3)
    real = loader.by_length
    monkeypatch.setattr(loader, "by_length", lambda *arguments: real(*arguments)[::-1])
    found = features.load(tmp_path / "cut", seen, examples, 2, MEAN)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_texts_and_padding_beyond_the_positions_are_refused(tmp_path):
    config = dataclasses.replace(ENCODERS["bert"], max_position=19)
    seen = seen_of(config)
    long = max(len(each.tokens) for each in texts())
    for pooling, positions in ((Pooling(padding=20), 19), (MEAN, long - 1)):
        seen = seen_of(dataclasses.replace(config, max_position=positions))
        with pytest.raises(InputError, match=f"tokens; the model has positions for {positions}"):
            features.load(tmp_path / "new", seen, texts(), 3, pooling)
    assert not (tmp_path / "new").exists()


def test_disk_need_is_known_beforehand(tmp_path):
    seen, examples = seen_of(ENCODERS["bert"]), texts()
    names = ["base", *seen.adapters]
    wanted = features.need(tmp_path, examples, names, 24)
    assert wanted == 4 * len(examples) * 24 * 4
    features.load(tmp_path, seen, examples, 3, MEAN)
    files = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert files - wanted == 4 * 128  # NumPy's headers
    assert features.need(tmp_path, examples, names, 24) == 0


def test_texts_longer_than_the_padding_are_refused(tmp_path):
    seen = seen_of(ENCODERS["bert"])
    with pytest.raises(InputError, match=r"attens.padding is 3; a text has 1\d tokens"):
        features.load(tmp_path, seen, texts(), 3, Pooling(padding=3))


def test_losses_on_the_files_are_those_of_recomputation(tmp_path):
    seen, examples = seen_of(ENCODERS["bert"]), texts(9)
    combiner = Combiner(24, 3)
    params = attens.init(combiner, jax.random.key(0))
    labels = np.arange(9, dtype=np.int32)[:, None] % 3
    found = features.load(tmp_path, seen, examples, 4, MEAN)
    kept = np.stack([found[name] for name in ("base", *seen.adapters)], axis=1)
    alone = [None, *seen.adapters.values()]
    hidden = hidden_of(seen)
    again = np.stack([one_by_one(seen, examples, hidden, each) for each in alone], axis=1)
    first, second = (
        place_losses(Term(), attens.combine(combiner, params, rows)[0][:, None], labels)
        for rows in (kept, again)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_features_of_texts_that_differ_in_their_types_alone_are_not_taken_for_each_other(tmp_path):
    seen = seen_of(with_heads("bert"), specs=())
    (example,) = texts(1)
    other = dataclasses.replace(example, types=1 - example.types)
    first = np.array(features.load(tmp_path, seen, [example], 1, MEAN)["base"])
    second = np.array(features.load(tmp_path, seen, [other], 1, MEAN)["base"])
    assert not np.allclose(first, second)
    again = features.load(tmp_path, seen, [example], 1, MEAN)["base"]
    np.testing.assert_array_equal(again, first)
