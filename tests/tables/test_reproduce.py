"""The papers' tables and ours: what they hold, which runs fill them, what becomes of failures."""

import csv
import dataclasses
import gzip
import json
import os
import signal
from unittest.mock import Mock

import pytest

from jaxclf import report, reproduce
from jaxclf.config import defaults
from jaxclf.core.errors import ArtifactError, InputError, NonFiniteError, Preempted
from jaxclf.data import datasets
from jaxclf.data.predictions import Prediction
from jaxclf.data.tasks import Task
from jaxclf.report import tables as shown
from jaxclf.tables import costs, definitions, results, runs
from jaxclf.tables import published as published_tables
from jaxclf.tables.runs import TableRun, attempt, carry_out, finished

ZHAO3 = definitions.find("zhao3")
ROW = "llama3-8b-zero-shot-tuned"


# What the tables hold -----------------------------------------------------------------------------


def published(table, row, column):
    (cell,) = table.select(row, column).cells
    return cell.published


def test_published_figures_stand_where_the_papers_have_them():
    assert published(ZHAO3, ROW, "20class-dual") == pytest.approx(0.916)
    assert published(ZHAO3, "llama3-70b-five-shot-tuned", "slots-one") == pytest.approx(0.868)
    assert published(ZHAO3, "roberta-base", "intent-dual") == pytest.approx(0.889)
    assert published(ZHAO3, "llama2-70b-five-shot-no-tuning", "intent-one") == pytest.approx(0.627)
    assert published(ZHAO3, "gpt4-zero-shot", "7class-one") == pytest.approx(0.885)
    attens2, attens3 = definitions.find("attens2"), definitions.find("attens3")
    assert published(attens2, "distilbert-attens", "wnli") == 0.6447
    assert published(attens2, "electra-base-ft-lora", "mnli-mm") == 0.8647
    assert published(attens2, "bert-base-model", "cola") == 0.0950
    assert published(attens3, "bert-base-model", "stsb") == -0.0608
    assert published(attens3, "bert-base-ft-lora", "imdb") == 0.8789
    assert published(attens3, "bert-base-ft-lora", "trec") is None
    assert {cell.published for cell in definitions.find("attens_k").cells} == {None}


def test_no_published_figure_moves_unseen():
    """Sums of the figures as they were read off the papers."""
    sums = {"zhao3": 106.232, "attens2": 89.5621, "attens3": 7.3964}
    for name, expected in sums.items():
        figures = [cell.published or 0 for cell in definitions.find(name).cells]
        assert sum(figures) == pytest.approx(expected, abs=1e-6)


def test_what_goes_wrong_in_a_run_is_in_its_log_too(tmp_path, capfd):
    with runs._logged(tmp_path / "log.txt"):
        os.write(1, b"result\n")
        os.write(2, b"of a library\n")
    os.write(2, b"afterwards\n")
    assert (tmp_path / "log.txt").read_text() == "result\nof a library\n"
    assert capfd.readouterr() == ("", "afterwards\n")


def test_what_rows_need_is_listed_with_the_reason_where_it_is_not_known():
    known = costs.Line(("row-a", "row-b"), "a.py:variant", 3 * 2**30, 1.234)
    unknown = costs.Line(("row-c",), "c.py", note="its server has the model")
    shown_ = costs.listed([known, unknown])
    words = [line.split() for line in shown_.splitlines()]
    assert ["row-a", "a.py:variant", "3.0", "1.23"] in words
    assert ["row-b"] in words
    assert ["row-c", "c.py", "-", "-"] in words
    assert ["its", "server", "has", "the", "model"] in words


def test_every_row_of_the_papers_is_there():
    assert (len(ZHAO3.rows), len(ZHAO3.columns), len(ZHAO3.runs)) == (24, 8, 144)
    attens2 = definitions.find("attens2")
    assert (len(attens2.rows), len(attens2.columns), len(attens2.runs)) == (16, 9, 36)
    assert (len(definitions.find("attens3").cells), len(definitions.find("attens_k").cells)) == (
        16,
        144,
    )


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", definitions.NAMES)
def test_every_run_has_a_config_that_asks_what_the_column_says(name, smoke, tmp_path):
    table = definitions.find(name, smoke)
    rows = {cell.run: cell.row for cell in table.cells}
    for run in table.runs:
        config = TableRun(run, 3, tmp_path).load()
        row = rows[run]
        assert config.seed == 3
        if run.group:
            assert len(config.attens.modules) == 9
            assert config.attens.sweep == ((3, 5, 7) if name == "attens_k" else ())
            assert config.attens.adapters == str(tmp_path / f"{run.group}-seed3/adapters")
            continue
        columns = {cell.column for cell in table.cells if cell.run == run}
        assert config.data.task == ("both" if len(columns) == 2 else run.name.rpartition("-")[2])
        assert config.prompt.shots == (5 if "five-shot" in row else 0)
        prompted = "no-tuning" in row or row.startswith("gpt")
        assert (config.tune == "none") == prompted
        assert bool(config.api.model) == row.startswith("gpt")
        if name == "laptop":
            assert (config.model.output == "head") == (row == "head")
            assert (config.prompt.template == "plain") == ("text-alone" in row)
            for tune in ("lora", "prefix"):
                assert (config.tune == tune) == row.endswith(tune)
            assert (config.model.quantize == "nf4") == row.endswith("qlora")


def test_one_run_fills_all_that_it_measures():
    runs = [cell.run for cell in ZHAO3.select(ROW, "").cells]
    assert runs[2] == runs[3]
    assert len(set(runs)) == 6
    methods = [cell.run for cell in definitions.find("attens2").select("bert-base", "rte").cells]
    assert len(methods) == 4
    assert len(set(methods)) == 1


def test_a_run_has_the_seeds_of_its_row_unless_told_otherwise(monkeypatch, tmp_path):
    jobs = []
    monkeypatch.setattr(reproduce, "_run", lambda table, found, *_: jobs.extend(found))
    words = ["laptop", "--rows", "head,minilm", "--columns", "intent-dual", f"--workdir={tmp_path}"]
    for seeds in ([], ["--seeds", "2"]):
        reproduce.main([*words, *seeds])
    found = [(job.run.name, job.seed) for job in jobs]
    assert found == [
        *[("head-intent", 0), *(("minilm-intent", seed) for seed in range(3))],
        *[(f"{row}-intent", seed) for row in ("head", "minilm") for seed in range(2)],
    ]


def test_rows_and_columns_are_chosen_by_parts_of_their_names():
    assert [*ZHAO3.select(ROW).rows] == [ROW]
    assert [*ZHAO3.select("llama3-8b").rows] == [row for row in ZHAO3.rows if "llama3-8b" in row]
    assert [*ZHAO3.select("GPT-4o, roberta-base").rows] == [
        *("roberta-base", "gpt4o-five-shot", "gpt4o-zero-shot")
    ]
    assert [*ZHAO3.select("", "20class").columns] == ["20class-dual", "20class-one"]
    # A whole name means nothing else: mnli is not mnli-mm.
    assert [*definitions.find("attens2").select("", "mnli").columns] == ["mnli"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zhao4"], r"table 'zhao4' is not known; possible: zhao3, .* Did you mean 'zhao3'"),
        (["zhao3", "--rows", "llama4"], "--rows llama4: nothing is called so; there are roberta-b"),
        (["attens3", "--columns", "stbs"], "--columns stbs: .* trec. Did you mean 'stsb'"),
        (["zhao3"], "--workdir DIR: name the folder"),
        (["zhao3", "--workdir", "x", "--seeds", "0"], "--seeds and --jobs: expected 1 or more"),
        (["zhao3", "--workdir", "x", "--config.seed=1"], "--config.seed: the seeds are 0 to N - 1"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, message):
    with pytest.raises(InputError, match=message):
        reproduce.main(arguments)


# Runs ---------------------------------------------------------------------------------------------

TASKS = (Task("7class", "class", ("comp", "rec")), Task("slots", "slots", ("time", "place")))


def write_report(job, config, right=3, count=4, **parts):
    """What a run leaves: `count` texts, of which the first `right` have their class and slots.

    `parts`: of the report, beside or in place of those here.
    """
    predictions = [
        Prediction(
            id=str(number),
            text="at five",
            gold={"7class": "rec", "slots": ("O", "B-time")},
            predicted={
                "7class": "rec" if number < right else "comp",
                "slots": ("Other", "time" if number < right else "Other"),
            },
            raw="",
        )
        for number in range(count)
    ]
    accuracy = {"accuracy": right / count, "support": count}
    found = {
        "config": config.to_dict(),
        "data": {"tasks": report.describe_tasks(TASKS)},
        "model": {},
        "train": {},
        "eval": {
            "7class": accuracy,
            "20class": {"accuracy": 0.5, "support": 4},
            "slots": {"slot_f1": 2 * right / (right + 4), "support": 4},
        },
        "versions": {},
        **parts,
    }
    tasks = TASKS
    if job.run.group:  # an ensemble's, with one of the methods
        methods = {"AttEns": {"matthews": 0.5, "support": 103}}
        found["attens"] = {"cola": {"methods": methods, "by_k": {}}}
        found["eval"] = {"cola": methods["AttEns"]}
        tasks, predictions = (Task("cola", "class", ("0", "1"), metric="matthews"),), []
    job.folder.mkdir(parents=True, exist_ok=True)
    report.write(job.folder, found, predictions, tasks, [])


def jobs_of(table, workdir, seeds=1, overrides=()):
    return [
        TableRun(run, seed, workdir, tuple(overrides))
        for run in table.runs
        for seed in range(seeds)
    ]


def silent(line):
    pass


def run(jobs, execute, **options):
    return carry_out(jobs, execute, workers=0, say=silent, **options)


def test_a_run_that_fails_is_noted_and_the_others_go_on(tmp_path):
    table = ZHAO3.select(ROW, "20class,7class")
    failures = {
        "20class": InputError("no weights:\n meta-llama/Meta-Llama-3-8B"),
        "7class": ZeroDivisionError("by zero"),
    }

    def execute(job, config):
        if job.run.name.endswith("both"):
            write_report(job, config)
        else:
            raise failures[job.run.name.rpartition("-")[2]]

    jobs = jobs_of(table, tmp_path)
    failed = run(jobs, execute)
    filled = results.filled(table, jobs, failed)
    assert filled.at(ROW, "7class-one").ours == 0.75
    assert filled.at(ROW, "20class-one").ours == 0.5
    first, second = (filled.at(ROW, f"{name}-dual") for name in ("20class", "7class"))
    assert first.ours is second.ours is None
    assert first.difference is None
    assert first.published == pytest.approx(0.916)
    assert first.reason == "no weights: meta-llama/Meta-Llama-3-8B"
    assert second.reason.startswith("failed: ZeroDivisionError: by zero (")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "does not fit: memory ran out"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), "does not fit: memory ran out"),
        (NonFiniteError("step 3: loss nan"), "step 3: loss nan"),
        (FileNotFoundError("no such file"), "no such file"),
        (None, "ended without a report of this config"),
    ],
)
def test_reasons(error, reason, tmp_path):
    def execute(job, config):
        if error:
            raise error

    (job,) = jobs_of(ZHAO3.select("roberta-base", "intent-dual"), tmp_path)
    assert attempt(job, execute).startswith(reason)


def test_a_variant_that_does_not_exist_is_a_reason(tmp_path):
    (job,) = jobs_of(ZHAO3.select("roberta-base", "intent-dual"), tmp_path)
    broken = dataclasses.replace(job.run, config="roberta_base_massive.py:no_tuning")
    job = dataclasses.replace(job, run=broken)
    assert "config argument 'no_tuning' is not known" in run([job], write_report)[job]


def test_a_request_to_stop_stops_all(tmp_path):
    def execute(job, config):
        raise Preempted("stopped by SIGTERM; saved step 3 of 9")

    with pytest.raises(Preempted):
        run(jobs_of(ZHAO3.select("roberta-base", "intent-dual"), tmp_path), execute)


def test_finished_runs_are_read_and_others_go_on(tmp_path):
    table = ZHAO3.select(ROW, "7class")
    jobs, asked = jobs_of(table, tmp_path), []

    def execute(job, config):
        asked.append(job.run.name.rpartition("-")[2])
        write_report(job, config)

    assert run(jobs, execute) == {}
    assert asked == ["7class", "both"]
    (jobs[0].folder / "report.json").unlink()  # one that was stopped
    run(jobs, execute)
    assert asked == ["7class", "both", "7class"]
    # What moves no figure does not ask for a new run, what does does.
    run(jobs_of(table, tmp_path, overrides=["train.logging_steps=3", "mesh.tensor=2"]), execute)
    assert len(asked) == 3
    run(jobs_of(table, tmp_path, overrides=["eval.decoding=constrained"]), execute)
    assert len(asked) == 5


def test_an_altered_report_is_not_used(tmp_path):
    table = ZHAO3.select(ROW, "7class-dual")
    jobs = jobs_of(table, tmp_path)
    run(jobs, write_report)
    path = jobs[0].folder / "report.json"
    path.write_text(path.read_text().replace('"accuracy": 0.75', '"accuracy": 1.0'))
    with pytest.raises(ArtifactError, match="altered since it was written, in eval"):
        finished(jobs[0])
    failed = run(jobs, write_report)
    entry = results.filled(table, jobs, failed).at(ROW, "7class-dual")
    assert entry.ours is None
    assert "altered" in entry.reason


def dies_once(job, config):
    """Ends its own process over the first of two runs, as the system does where memory is short."""
    if job.run.name.endswith("-7class"):
        os.kill(os.getpid(), signal.SIGKILL)
    print("from the run itself")
    write_report(job, config)


def test_a_process_that_is_killed_takes_no_other_run_along(tmp_path):
    table = ZHAO3.select(ROW, "7class")
    jobs, said = jobs_of(table, tmp_path), []
    failed = carry_out(jobs, dies_once, workers=1, keep=True, say=said.append)
    (reason,) = failed.values()
    assert reason.startswith("does not fit: the system ended it, for its memory (")
    assert finished(jobs[1]) is not None
    assert (jobs[1].folder / "log.txt").read_text() == "from the run itself\n"
    assert len(said) == 2


def test_a_process_of_many_runs_reads_a_data_set_once(monkeypatch):
    monkeypatch.setattr(datasets, "_kept", None)
    monkeypatch.setattr(datasets, "_builtin", calls := Mock(side_effect=datasets._builtin))
    fields = defaults.default().data
    first = datasets.load(fields)
    datasets.keep_records()
    for limit in (5, 0):
        fields.limit = limit
        again = datasets.load(fields)
        assert len(again.splits["train"]) == (limit or len(first.splits["train"]))
    assert again == first
    assert calls.call_count == 2


# Figures ------------------------------------------------------------------------------------------


def test_intervals_are_those_of_the_books():
    assert results.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert results.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert results.wilson(0.0, 0) == (None, None)
    assert results.fisher(0.5, 103) == pytest.approx((0.3393, 0.6324), abs=1e-4)
    assert results.fisher(1.0, 50) == (None, None)


def test_each_kind_of_figure_has_its_interval(tmp_path):
    table = ZHAO3.select(ROW, "7class-dual,slots-dual")
    jobs = jobs_of(table, tmp_path)
    run(jobs, write_report)
    filled = results.filled(table, jobs, {})
    accuracy, slots = (filled.at(ROW, column) for column in table.columns)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert slots.ours == pytest.approx(6 / 7)
    assert 0 < slots.low < slots.ours < slots.high <= 1
    assert slots.difference == pytest.approx(6 / 7 - 0.856)
    attens2 = definitions.find("attens2").select("bert-base-attens", "cola")
    jobs = jobs_of(attens2, tmp_path)
    run(jobs, write_report)
    entry = results.filled(attens2, jobs, {}).at("bert-base-attens", "cola")
    assert (entry.metric, entry.ours) == ("matthews", 0.5)
    assert (entry.low, entry.high) == pytest.approx((0.3393, 0.6324), abs=1e-4)


def test_a_method_that_the_run_did_not_measure_has_a_reason(tmp_path):
    table = definitions.find("attens2").select("bert-base-ft-lora", "cola")
    jobs = jobs_of(table, tmp_path)
    run(jobs, write_report)
    (entry,) = results.filled(table, jobs, {}).entries
    assert entry.ours is None
    assert entry.reason.endswith("has no attens.cola.methods.FT_LoRA.matthews")


def test_several_seeds_have_a_mean_and_a_spread(tmp_path):
    table = ZHAO3.select(ROW, "7class-dual")
    jobs = jobs_of(table, tmp_path, seeds=3)

    def execute(job, config):
        if job.seed == 2:
            raise InputError("no room")
        write_report(job, config, right=2 + job.seed)

    (entry,) = results.filled(table, jobs, run(jobs, execute)).entries
    assert (entry.ours, entry.seeds) == (0.625, 2)
    assert entry.deviation == pytest.approx(0.1768, abs=1e-4)
    assert entry.high - entry.ours == pytest.approx(12.706 * 0.125, rel=1e-3)  # Student's
    assert entry.reason == "seed 2: no room"
    assert [folder.rpartition("-")[2] for folder in entry.folders] == ["seed0", "seed1"]


# What is written ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    table = ZHAO3.select(f"{ROW},gpt4o", "7class-dual,7class-one")
    jobs = jobs_of(table, tmp_path_factory.mktemp("runs"))

    def execute(job, config):
        if "gpt" in job.run.name:
            raise InputError("no key | <b>")
        write_report(job, config)

    return results.filled(table, jobs, run(jobs, execute), ["A note"])


def test_csv_has_a_line_a_cell_in_the_papers_unit(filled):
    rows = [*csv.DictReader(shown.as_csv(filled).splitlines())]
    assert len(rows) == 6
    found = {(row["row"], row["column"]): row for row in rows}
    ours = found[ROW, "7class-dual"]
    assert (ours["ours"], ours["published"], ours["difference"]) == ("75", "96.3", "-21.3")
    assert (ours["low"], ours["high"]) == ("30.0642", "95.4413")
    assert (ours["scale"], ours["unit"], ours["seeds"]) == ("full", "per cent", "1")
    assert ours["runs"] == f"{ROW}-7class-seed0"
    theirs = found["gpt4o-zero-shot", "7class-one"]
    assert (theirs["ours"], theirs["difference"], theirs["published"]) == ("", "", "84.1")
    assert theirs["note"] == "no key | <b>"


def test_markdown_and_html_show_ours_beside_the_published(filled):
    text = shown.markdown(filled)
    assert "| Llama3-8B zero-shot, tuned | **75.0** (30.1 to 95.4); 96.3, -21.3 | **75.0**" in text
    assert "| GPT-4o zero-shot | **\\[1]**; 73.3 | **\\[1]**; 84.1 |" in text
    assert "- \\[1] no key \\| \\<b>" in text
    assert "SMOKE" not in text
    page = shown.page(filled)
    assert "<b>75.0</b><br><small>30.1 to 95.4</small><br>96.3, -21.3" in page
    assert "[1] no key | &lt;b&gt;" in page
    assert "2 of 6 cells have a figure of ours" in page
    terminal = shown.terminal(filled)
    assert "[1] no key | <b>" in terminal
    assert "A note" in terminal


def test_a_smoke_table_says_that_it_is_none(filled):
    smoke = filled._replace(smoke=True)
    for text in (shown.markdown(smoke), shown.page(smoke), shown.terminal(smoke)):
        assert "SMOKE: tiny random models" in text
    assert ",smoke," in shown.as_csv(smoke)


def test_what_the_paper_does_not_have_is_not_made_up(tmp_path):
    table = definitions.find("attens3").select("ft-lora", "trec")
    filled = results.filled(table, jobs_of(table, tmp_path), {})
    (row,) = csv.DictReader(shown.as_csv(filled).splitlines())
    assert (row["published"], row["note"]) == ("not published here", "not finished")
    assert "not published" in shown.markdown(filled)
    assert published_tables.ATTENS3["FT_LoRA"][3] is None


# The command --------------------------------------------------------------------------------------


def test_list_says_what_each_row_takes(capsys):
    reproduce.main(["zhao3", "--list", "--rows", "roberta-base,llama3-8b-zero,gpt4-zero"])
    lines = capsys.readouterr().out.splitlines()
    (roberta,) = (line for line in lines if "roberta_base_20ng.py:task=20class|7class|both" in line)
    gib, hours = map(float, roberta.split()[-2:])
    assert 2 < gib < 20
    assert 0.01 < hours < 1
    (tuned,) = (line for line in lines if "llama3_8b_20ng.py:zero_shot,task=20class" in line)
    (prompted,) = (line for line in lines if "llama3_8b_20ng.py:zero_shot,no_tuning" in line)
    assert 120 < float(tuned.split()[-2]) < 250  # 8 B parameters with moments in float32
    assert 15 < float(prompted.split()[-2]) < 20  # as they are, in bfloat16
    assert float(tuned.split()[-1]) > float(prompted.split()[-1]) > 0
    assert any("asked of a server" in line for line in lines)
    assert "Estimates" in lines[-1]


def test_a_whole_command_with_a_stand_in(tmp_path, capsys, monkeypatch):
    """A closed model's row over small files: the server, a process for the run, the three files."""
    pytest.importorskip("openai")
    rows = [
        {"id": f"{split}{n}", "partition": split, "intent": ("play", "stop")[n % 2]}
        | {"utt": f"now {n}", "annot_utt": f"now [time : {n}]"}
        for split in ("train", "test")
        for n in range(4)
    ]
    (tmp_path / "massive").mkdir()
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "massive/en-US.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    for name in ("XLA_FLAGS", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back at the end
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    arguments = [
        *("zhao3", "--scale", "smoke", "--rows", "gpt4-zero-shot", "--columns", "intent-one"),
        *("--workdir", str(tmp_path / "out"), "--jobs", "1", "--config.data.check_counts=false"),
        f"--config.data.root={tmp_path}",
    ]
    reproduce.main(arguments)
    said = capsys.readouterr().out
    assert "a stand-in on this machine" in said
    (row,) = csv.DictReader((tmp_path / "out/zhao3.csv").open())
    assert 0 <= float(row["ours"]) <= 100
    assert (row["published"], row["scale"]) == ("76.9", "smoke")
    assert {path.suffix for path in (tmp_path / "out").glob("zhao3.*")} == {".csv", ".md", ".html"}
    reproduce.main(arguments)  # which reads what is there
    assert "1 of 1 runs were finished before" in capsys.readouterr().out
