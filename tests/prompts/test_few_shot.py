"""Which training records become the examples of a prompt, and in which order."""

import pytest

from jaxclf.config.defaults import default
from jaxclf.core.errors import InputError
from jaxclf.data.tasks import Record, Task
from jaxclf.prompts import few_shot, source

TOPIC = Task("topic", "class", ("a", "b", "c"))
SLOTS = [Record("s", "now", {"slots": ("B-time",)})]
NEWS = [Record(f"n{i}", f"news number {i}", {"topic": "ab"[i % 2]}) for i in range(8)]


def test_shots_are_the_same_by_seed() -> None:
    first = few_shot.by_seed(NEWS, 5, seed=1)
    assert first == few_shot.by_seed(NEWS, 5, seed=1)
    assert len({shot.id for shot in first}) == 5
    assert first != few_shot.by_seed(NEWS, 5, seed=2)
    assert few_shot.by_seed(NEWS, 0, seed=1) == []


def test_fresh_shots_differ_by_example_and_leave_it_out() -> None:
    drawn = [
        few_shot.by_seed(NEWS, 5, seed=1, index=i, exclude_id=record.id)
        for i, record in enumerate(NEWS)
    ]
    for record, found in zip(NEWS, drawn, strict=True):
        assert len({shot.id for shot in found} - {record.id}) == 5
    assert len({tuple(shot.id for shot in found) for found in drawn}) > 4
    assert drawn[3] == few_shot.by_seed(NEWS, 5, seed=1, index=3, exclude_id=NEWS[3].id)
    assert few_shot.by_seed(NEWS, 5, 1, index=0) != few_shot.by_seed(NEWS, 5, 1)


def test_too_few_training_records_for_the_shots() -> None:
    assert len(few_shot.by_seed(NEWS, 8, seed=0, exclude_id="of another split")) == 8
    with pytest.raises(InputError, match=r"prompt\.shots is 8; the training split has 7 usable"):
        few_shot.by_seed(NEWS, 8, seed=0, index=0, exclude_id="n0")
    with pytest.raises(InputError, match=r"prompt\.shots is 9"):
        few_shot.by_seed(NEWS, 9, seed=0)


def choose(count, records=NEWS, tasks=(TOPIC,), seed=0, draw=0, order=0, **fields):
    prompt = default().prompt
    prompt.update(shots=count, **fields)
    return few_shot.chooser(prompt, records, tasks, seed, draw, order)


def ids(found):
    return [record.id for record in found]


def test_sets_and_orders_of_a_run():
    first = choose(4)()
    assert first == few_shot.by_seed(NEWS, 4, seed=0) == choose(4)()
    others = [ids(choose(4, draw=draw)()) for draw in range(4)]
    assert len({tuple(sorted(each)) for each in others}) > 1
    orders = [ids(choose(3, order=order)()) for order in range(6)]
    assert len({tuple(each) for each in orders}) == 6
    assert {tuple(sorted(each)) for each in orders} == {tuple(sorted(orders[0]))}
    assert orders[0] == ids(choose(3)())


def test_balanced_takes_every_class_in_turn():
    # 30 of a, 3 of b, 1 of c
    records = [Record(f"r{i}", "x", {"topic": "a" * (i > 3) or "bbbc"[i]}) for i in range(34)]
    topics = [record.labels["topic"] for record in choose(3, records, choose="balanced")()]
    assert sorted(topics) == ["a", "b", "c"]
    topics = [record.labels["topic"] for record in choose(9, records, choose="balanced")()]
    assert sorted(topics) == [*"aaaaabbbc"]
    fresh = choose(5, records, choose="balanced", fresh_shots=True)
    found = [ids(fresh(index, record)) for index, record in enumerate(records[:6])]
    assert all(record.id not in each for record, each in zip(records, found, strict=False))
    assert all(len(set(each)) == 5 for each in found)
    assert len({tuple(each) for each in found}) > 3
    with pytest.raises(InputError, match="no classes to balance by.*'similar'"):
        choose(1, choose="balanced", tasks=(Task("slots", "slots", ("time",)),), records=SLOTS)


def test_similar_takes_the_nearest_texts_and_the_nearest_last():
    texts = ["wake me at five", "wake me at six", "play some jazz", "wake up", "jazz now"]
    records = [Record(str(i), text, {"topic": "a"}) for i, text in enumerate(texts)]
    similar = choose(2, records, choose="similar")
    assert ids(similar(0, Record("x", "play jazz", {}))) == ["4", "2"]
    assert ids(similar(0, records[0])) == ["3", "1"]  # never itself
    assert ids(similar(0, Record("x", "", {}))) == ["1", "0"]
    assert len(similar()) == 2  # without a text, by seed


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"shots": 0}, False),
        ({"shots": 2}, False),
        ({"shots": 2, "choose": "balanced"}, False),
        ({"shots": 2, "fresh_shots": True}, True),
        ({"shots": 2, "choose": "similar"}, True),
        ({"shots": 0, "fresh_shots": True}, False),  # no examples, so that none differ
        ({"shots": 0, "choose": "similar"}, False),
    ],
)
def test_a_text_has_a_prompt_of_its_own_where_its_examples_are(fields, own):
    config = default()
    with config.unlocked():
        config.prompt.update(**fields)
    assert source.has_own_prompts(config) == own


def test_too_few_examples_are_told_before_the_first_text():
    with pytest.raises(InputError, match=r"prompt\.shots is 9; .* has 8 usable"):
        choose(9, choose="similar")


def test_only_records_with_gold_are_examples():
    records = [*NEWS[:2], Record("hidden", "x", {"topic": None})]
    assert sorted(ids(choose(2, records)())) == ["n0", "n1"]
    for way in ("seed", "balanced", "similar"):
        with pytest.raises(InputError, match=r"prompt\.shots is 3; .* has 2 usable"):
            choose(3, records, choose=way)()
