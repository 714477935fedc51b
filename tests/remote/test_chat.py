"""Asking a real server in another process: nothing is lost, nothing is asked twice."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxclf import prompt
from jaxclf.config import defaults, validation
from jaxclf.core.errors import ArtifactError, InputError, StorageError
from jaxclf.data.tasks import Record, Task
from jaxclf.decoding.recipe import Recipe
from jaxclf.prompts import answer_length, builder
from jaxclf.remote import answer_log, endpoint
from jaxclf.remote.answer_log import Answer, Ledger
from jaxclf.remote.chat import Account, ChatClassifier
from tests import chat_server

INTENT = Task("intent", "class", ("alarm_set", "play_music", "weather_query"))
SLOTS = Task("slots", "slots", ("time", "artist"))
KEY = "sk-test-0123456789"


@pytest.fixture(scope="module")
def server():
    with chat_server.started() as running:
        yield running


@pytest.fixture(scope="module")
def guarded():
    """A server that lets only one key in, and takes a while."""
    with chat_server.started("--key", KEY, "--delay", "0.05") as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(base_url, **settings):
    found = defaults.default()
    found.tune = "none"
    found.api.update({"model": "m", "base_url": base_url, "timeout": 30, **settings})
    validation.validate(found)
    return found


def classifier(base_url, workdir, tasks=(INTENT,), **settings):
    found = config(base_url, **settings)
    asked = builder.build(found.prompt, "Utter", tasks)
    recipe = Recipe(tasks, asked, "names", 1024, answer_length.in_characters(tasks, [], "names"))
    return ChatClassifier(recipe, Account(found.api, workdir))


def records(*texts):
    gold = {"intent": "alarm_set"}
    return [Record(str(number), text, gold) for number, text in enumerate(texts)]


def ask(asking, *texts):
    return asking.predict(records(*texts), 1)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "answers.jsonl").read_text().splitlines()]


def test_whatever_goes_wrong_on_the_way_each_text_gets_its_own_answer(server, tmp_path):
    passing = ("429", "500", "drop", "half", "malformed", "html", "empty")
    faulty = [f"one fault:{name}" for name in passing]
    texts = [*faulty, "two fault:garbage", "three", "four", "three"]
    first = classifier(server.base_url, tmp_path)
    told = []
    found = first.predict(records(*texts), 1, progress=told.append)
    assert [prediction.text for prediction in found] == texts
    expected = [chat_server.label(first.recipe.prompt.render(text)) for text in texts]
    expected[7] = "no label at all"
    assert [prediction.raw for prediction in found] == expected
    assert found[7].unparsed == ["intent"]
    assert sum(told) == len(texts)
    counts = server.counts()
    assert [counts[text] for text in texts] == [2] * 7 + [1] * 4

    facts = first.account.facts()
    assert (facts["answers"], facts["requests"], facts["retries"]) == (10, 17, 7)
    assert facts["served"] == "m-0000"
    assert facts["prompt_tokens"] == sum(line["prompt_tokens"] for line in lines(tmp_path)) > 0
    assert facts["cost"] is None

    again = classifier(server.base_url, tmp_path)
    assert ask(again, *texts) == found
    assert server.counts() == counts
    assert again.account.facts() == facts | {"requests": 0, "retries": 0}


def test_an_answer_that_takes_too_long_is_asked_for_again(server, tmp_path):
    asking = classifier(server.base_url, tmp_path, timeout=chat_server.SLOW / 2)
    (found,) = ask(asking, "fault:slow")
    assert found.raw == chat_server.label(asking.recipe.prompt.render("fault:slow"))
    assert asking.account.facts()["answers"] == 1
    assert asking.account.facts()["retries"] >= 1  # more on a machine that is busy


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("400", "api.max_characters"),
        ("401", "environment variable OPENAI_API_KEY"),
        ("404", "api.base_url"),
        ("quota", "no credit"),
    ],
)
def test_what_is_refused_is_told_at_once(server, tmp_path, monkeypatch, fault, remedy):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(InputError, match=remedy) as raised:
        ask(classifier(server.base_url, tmp_path), f"refuse fault:{fault}*")
    assert KEY[:8] not in str(raised.value)
    assert server.counts()[f"refuse fault:{fault}*"] == 1


def test_a_server_that_stays_broken_costs_no_answer_that_came(server, tmp_path):
    texts = [*(f"before {number}" for number in range(5)), "fault:500*"]
    after = [f"after {number}" for number in range(50)]
    with pytest.raises(StorageError, match=r"after 3 attempts.*500.*goes on"):
        ask(
            classifier(server.base_url, tmp_path, concurrency=2, retries=2),
            *[*texts, *after],
        )
    came = len(lines(tmp_path))
    assert 5 <= came < 50
    assert server.counts()["fault:500*"] == 3
    ask(classifier(server.base_url, tmp_path), *texts[:5], *after)
    counts = server.counts()
    assert {counts[text] for text in [*texts[:5], *after]} == {1}


def test_a_wait_of_hours_is_not_waited(server, tmp_path):
    with pytest.raises(StorageError, match="after 1 attempts.*7,200 s"):
        ask(classifier(server.base_url, tmp_path), "fault:long*")


def test_no_more_requests_at_once_than_asked_for(guarded, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(classifier(guarded.base_url, tmp_path, concurrency=3), *map(str, range(9)))
    assert guarded.peak() == 3
    assert not holding_key(tmp_path)


def holding_key(folder):
    return [path for path in folder.rglob("*") if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("fault", ["drip", "dripbody"])
def test_an_answer_that_never_ends_is_given_up_when_its_time_is_over(server, tmp_path, fault):
    with pytest.raises(StorageError, match=r"no whole answer within 1 s"):
        ask(classifier(server.base_url, tmp_path, timeout=1.0, retries=0), f"fault:{fault}*")


def test_an_answer_without_end_is_not_kept_in_memory(server, tmp_path):
    with pytest.raises(StorageError, match=r"an answer of more than 16,777,216 bytes"):
        ask(classifier(server.base_url, tmp_path, timeout=600.0), "fault:huge*")


def test_neither_key_nor_text_follows_a_redirect(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(InputError, match=r"307, a redirect to http://localhost:.* api\.base_url"):
        ask(classifier(server.base_url, tmp_path), "fault:redirect")
    assert server.counts()["fault:redirect"] == 1


def test_a_run_ends_when_its_answers_come_to_the_most_it_may_cost(server, tmp_path):
    texts = [f"capped {number} fault:costly" for number in range(20)]
    prices = {"input_price": 1.0, "max_cost": 3.5}  # each answer costs 1
    with pytest.raises(InputError, match=r"cost 3\.00, .*beyond api\.max_cost, 3\.50"):
        ask(classifier(server.base_url, tmp_path, concurrency=8, **prices), *texts)
    assert len(lines(tmp_path)) == 3
    assert sum(text.startswith("capped") for text in server.counts()) == 3
    with pytest.raises(InputError, match=r"max_cost"):  # the cap is of the run, not of a process
        ask(classifier(server.base_url, tmp_path, **prices | {"max_cost": 2.5}), *texts)
    assert sum(text.startswith("capped") for text in server.counts()) == 3
    ask(classifier(server.base_url, tmp_path, **prices | {"max_cost": 2.5}), *texts[:1])
    ask(classifier(server.base_url, tmp_path, **prices | {"max_cost": 30.0}), *texts)
    assert {server.counts()[text] for text in texts} == {1}


def test_where_no_tokens_are_told_the_estimate_counts(server, tmp_path):
    texts = [f"free {number} fault:nousage" for number in range(9)]
    asking = classifier(server.base_url, tmp_path, input_price=1.0, max_cost=1.0)
    assert len(ask(asking, *texts)) == 9
    assert asking.account.facts()["prompt_tokens"] == 0


CLIENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs tests behind
from jaxclf.core import errors
from tests.remote.test_chat import ask, classifier
from pathlib import Path
def main(arguments):
    asking = classifier(sys.argv[1], Path(sys.argv[2]), concurrency=4)
    ask(asking, *map("kill {}".format, range(int(sys.argv[3]))))
errors.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_when_the_run_is_stopped_is_stored(tmp_path, number):
    texts = [f"kill {number}" for number in range(200)]  # 20 seconds, also on a busy machine
    with chat_server.started("--delay", "0.4") as slow:
        command = [sys.executable, "-c", CLIENT, slow.base_url, str(tmp_path), str(len(texts))]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as client:
            while sum(slow.counts().values()) < 6:
                assert client.poll() is None
                time.sleep(0.01)
            client.send_signal(number)
        assert client.returncode == (75 if number == signal.SIGTERM else 130)
        asked = sum(slow.counts().values())
        assert len(lines(tmp_path)) == asked < len(texts)
        ask(classifier(slow.base_url, tmp_path, concurrency=40), *texts)
        assert {*slow.counts().values()} == {1}


def test_a_killed_client_goes_on_where_it_was(guarded, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    command = [sys.executable, "-c", CLIENT, guarded.base_url, str(tmp_path), "40"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as client:
        path = tmp_path / "answers.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") < 6:
            assert client.poll() is None
            time.sleep(0.01)
        client.send_signal(signal.SIGKILL)
    with path.open("ab") as file:  # a line of which only a part reached the disk
        file.write(b'{"key": "0123')
    stored = path.read_bytes().count(b"\n")
    assert stored < 40
    resumed = classifier(guarded.base_url, tmp_path)
    found = ask(resumed, *(f"kill {number}" for number in range(40)))
    assert not any(prediction.unparsed for prediction in found)
    assert resumed.account.facts()["requests"] == 40 - stored
    assert len({line["key"] for line in lines(tmp_path)}) == len(lines(tmp_path)) == 40


def test_model_server_and_settings_are_part_of_what_was_asked(tmp_path):
    url = "http://127.0.0.1:9/v1"
    plain, other = classifier(url, tmp_path), classifier(url, tmp_path, model="other")
    elsewhere = classifier("http://127.0.0.1:8/v1", tmp_path)
    longer = classifier(url, tmp_path)
    longer.recipe = dataclasses.replace(longer.recipe, max_new_tokens=99)
    keys = [
        asking.questions(records(text))[0][0]
        for asking in (plain, other, elsewhere, longer)
        for text in ("same", "another")
    ]
    assert len(set(keys)) == 8
    assert classifier(url, tmp_path).questions(records("same"))[0][0] == keys[0]


def test_what_it_would_cost_is_told_before_anything_is_sent(server, tmp_path, capsys):
    asking = classifier(server.base_url, tmp_path, input_price=2.0, output_price=8.0)
    questions = dict(asking.questions(records("dear one", "dear two", "dear one")))
    estimate = asking.account.announce(questions)
    characters = sum(len(asked["messages"][0]["content"]) for asked in questions.values())
    assert (estimate.requests, estimate.stored) == (2, 0)
    assert estimate.prompt_tokens == pytest.approx(characters / 4, abs=2)
    cost = (estimate.prompt_tokens * 2 + estimate.completion_tokens * 8) / 1e6
    assert estimate.cost == pytest.approx(cost)
    assert "2 requests to send, 0 answers stored" in capsys.readouterr().out

    prices = {"input_price": 2.0, "output_price": 8.0}
    with pytest.raises(InputError, match=r"api\.max_cost is"):
        ask(classifier(server.base_url, tmp_path, max_cost=cost / 2, **prices), "dear one", "two")
    assert "dear one" not in server.counts()
    ask(classifier(server.base_url, tmp_path, max_cost=cost * 2, **prices), "dear one")
    assert asking.account.announce(questions).stored == 1


def test_long_texts_are_cut_if_asked_for(server, tmp_path):
    asking = classifier(server.base_url, tmp_path, max_characters=10)
    (prediction,) = ask(asking, "0123456789 and more")
    assert prediction.text == "0123456789 and more"
    assert server.counts()["0123456789"] == 1
    assert asking.account.facts()["cut_texts"] == 1


def test_both_tasks_have_a_system_part(server, tmp_path):
    asking = classifier(server.base_url, tmp_path, (INTENT, SLOTS))
    asked = asking.recipe.prompt
    system, user = asked.messages("wake me")
    assert (system["role"], user["role"]) == ("system", "user")
    assert system["content"].endswith('{"task1": "task1_label", "task2": "task2_label"}')
    assert user["content"].startswith("task1: ")
    assert f"{system['content']}\n{user['content']}" == asked.render("wake me")
    (prediction,) = ask(asking, "wake me")
    assert prediction.predicted["slots"] == ("Other", "Other")
    assert not prediction.unparsed
    assert asking.recipe == _reloaded(asking.recipe, tmp_path)


def _reloaded(recipe, tmp_path):
    recipe.save(tmp_path / "task.json")
    return Recipe.load(tmp_path / "task.json")


def test_no_text_is_too_odd_to_send(server, tmp_path):
    ask(classifier(server.base_url, tmp_path), "half a smile \ud83d", "\x00", "")


def test_the_command_from_dry_run_to_report(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    settings = "api.model=m api.timeout=5 api.input_price=1 data.limit=12 prompt.template=listing"
    settings += f" prompt.shots=2 prompt.orders=2 api.base_url={server.base_url}"
    configs = Path(__file__).parents[2] / "configs"
    command = ["--config", f"{configs}/quickstart.py:no_tuning,task=intent", "--workdir"]
    command += [str(tmp_path), *(f"--config.{setting}" for setting in settings.split())]
    prompt.main([*command, "--dry-run"])
    assert "24 requests to send" in capsys.readouterr().out
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "answers.jsonl").exists()

    prompt.main(command)
    assert capsys.readouterr().out.count("requests to send") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["api"]["requests"] == report["api"]["answers"] == 24
    assert report["api"]["cost"] == pytest.approx(report["api"]["prompt_tokens"] / 1e6)
    assert (report["model"]["name"], report["eval"]["intent"]["unparsed"]) == ("m", 0)
    assert len(report["variants"]) == 2
    assert not holding_key(tmp_path)

    with pytest.raises(InputError, match="tune is 'full'"):
        prompt.main([word.replace("no_tuning,", "") for word in command])
    with pytest.raises(InputError, match="api.model is empty"):
        prompt.main([*command[:4], "--dry-run"])


def test_without_key_or_library(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        ask(classifier("", tmp_path), "x")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\N{CYRILLIC SMALL LETTER A}")
    with pytest.raises(InputError, match="no key has"):
        ask(classifier("", tmp_path), "x")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'jaxclf\[api\]'"):
        ask(classifier("http://127.0.0.1:9/v1", tmp_path), "x")


def test_a_key_in_the_config_is_refused_and_not_repeated():
    with pytest.raises(InputError, match=r"api\.key_env is not the name") as raised:
        config("", key_env=KEY)
    assert KEY not in str(raised.value)
    with pytest.raises(InputError, match="without a key or password"):
        config("https://me:secret@host/v1")
    with pytest.raises(InputError, match="no price is known"):
        config("", max_cost=1.0)


def test_one_process_at_a_time_and_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    with Ledger(path) as answers:
        answers.add("a", Answer("one", "stop", 1, 1))
        with pytest.raises(InputError, match="another process"), Ledger(path):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full)
            with pytest.raises(OSError, match="No space"):
                answers.add("b", Answer("two", "stop", 1, 1))
        answers.add("c", Answer("three", "stop", 1, 1))
    with Ledger(path) as answers:
        assert ("a" in answers, "b" in answers, answers["c"].text) == (True, False, "three")


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: "{}",
        lambda line: "7",
        lambda line: "[" * 100_000,
        lambda line: line.replace("one", "two"),
        lambda line: line.replace('"prompt_tokens": 1', '"prompt_tokens": "1"'),
        lambda line: line.replace('"text"', '"test"'),
        lambda line: line.replace('"checksum"', '"checks"'),
        lambda line: resealed(line, text=7),
        lambda line: resealed(line, completion_tokens=-1),
        lambda line: resealed(line, more=1),
    ],
)
def test_a_damaged_answer_is_told_with_its_line(tmp_path, damage):
    path = tmp_path / "answers.jsonl"
    with Ledger(path) as answers:
        answers.add("a", Answer("good", "stop", 1, 1))
        answers.add("b", Answer("one", "stop", 1, 1))
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{damage(second)}\n{first}\n")
    with pytest.raises(ArtifactError, match=r"answers\.jsonl:2: not an answer"), Ledger(path):
        pass


def resealed(line, **fields):
    """A line with other fields under a checksum that is right."""
    row = {name: value for name, value in json.loads(line).items() if name != "checksum"} | fields
    return json.dumps(row | {"checksum": answer_log.fingerprint(**row)[:16]})


def test_a_line_that_a_kill_cut_off_is_told(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    with Ledger(path) as answers:
        answers.add("a", Answer("one", "stop", 1, 1))
        answers.add("b", Answer("two", "stop", 1, 1))
    path.write_bytes(path.read_bytes()[:-3])
    with Ledger(path) as answers:
        assert ("a" in answers, "b" in answers) == (True, False)
    assert "answers.jsonl: the last line is not whole" in capsys.readouterr().out
    with Ledger(path):
        assert not capsys.readouterr().out


def _full(descriptor):
    raise OSError(28, "No space left on device")
