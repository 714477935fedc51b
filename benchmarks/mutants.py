"""Would the tests notice? Small changes of the package, one at a time, against the tests of each.

    pip install coverage
    python benchmarks/mutants.py trace --scratch /tmp/mutants
    python benchmarks/mutants.py run --scratch /tmp/mutants --seed 0 --count 200

`trace` runs the suite once and keeps which tests run which line, also in processes that they start
or fork, and how long each takes; arguments of pytest may follow a `--`. `run` samples places of the
package, changes one (a comparison, an operator, a condition, a number, a call left out), and runs
the tests that reach it, the quickest first, then all of the module's own, in processes forked from
one that has imported what takes long. A change is killed by a failed test or by a process that does
not end in time. A stopped run goes on where it stood; the survivors are listed at the end.
"""

import argparse
import ast
import contextlib
import copy
import gc
import inspect
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_PLAIN = ("-p", "no:cacheprovider", "-p", "no:cov")  # pytest's, which leaves nothing behind
MESSAGES = ("say", "print", "warn")  # calls whose arguments are read by people alone
# What the traced processes import at their start: coverage measures them by the file that
# COVERAGE_PROCESS_START names, and their lines are those of the test that started them.
FOLLOWED = """
import os
from coverage import Coverage

def follow(test=None):
    if measured := Coverage.current():
        measured.switch_context(test or os.environ.get("PYTEST_CURRENT_TEST", ""))

follow()
os.register_at_fork(after_in_child=follow)
"""
# The same in pytest's own processes.
PLUGIN = """
import pytest
from sitecustomize import follow

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    follow(item.nodeid)
    return (yield)
"""


@dataclass(frozen=True)
class Mutant:
    """`file`, from the package's root, with the text from `start` to `end` replaced by `new`."""

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str

    @property
    def name(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}:{self.line}: {old[:90]} → {new[:90]}"


def mutants(file: Path) -> Iterator[Mutant]:
    """All changes of a file that are tried: of what it computes, not of its texts and types."""
    text = file.read_text("utf-8")
    begins = [0]
    for line in text.encode().splitlines(keepends=True):
        begins.append(begins[-1] + len(line))

    def change(node: ast.expr | ast.stmt, new: str) -> Mutant:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = begins[node.lineno - 1] + node.col_offset
        end = begins[node.end_lineno - 1] + node.end_col_offset
        old = text.encode()[start:end].decode()
        name = str(file.relative_to(ROOT))
        return Mutant(name, node.lineno, start, end, old, new)

    for node in _computing(ast.parse(text)):
        for new in _changed(node):
            yield change(node, f"({new})" if isinstance(node, ast.expr) else new)


def _computing(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: no annotations, decorators, docstrings or types for checkers."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, ast.AnnAssign) and node.value is None:
                continue
            yield node
            if not _is_message(node):
                yield from _computing(node)


def _is_message(node: ast.AST) -> bool:
    """Whether what stands in it is a text for people: an error, a line of a log."""
    if isinstance(node, ast.Call):
        called = node.func
        name = getattr(called, "attr", getattr(called, "id", ""))
        return name in MESSAGES
    return isinstance(node, ast.Raise)


def _changed(node: ast.AST) -> Iterator[str]:
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[operator]) if type(operator) in SWAPPED:
            new.ops = [SWAPPED[type(operator)]()]
            yield ast.unparse(new)
        case ast.BinOp(op=operator) if type(operator) in SWAPPED and not _of_texts(new):
            new.op = SWAPPED[type(operator)]()
            yield ast.unparse(new)
        case ast.BoolOp(op=operator):
            new.op = SWAPPED[type(operator)]()
            yield ast.unparse(new)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield ast.unparse(operand)
        case ast.IfExp():
            new.body, new.orelse = new.orelse, new.body
            yield ast.unparse(new)
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
        case ast.Constant(value=float(value)):
            yield str(value * 2 if value else 1.0)
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield "pass"
        case ast.Continue():
            yield "break"


def _of_texts(node: ast.BinOp) -> bool:
    """Whether it joins texts or paths, or types: what fails at once tells nothing of the tests."""
    sides = (node.left, node.right)
    texts = any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )
    nothing = any(isinstance(side, ast.Constant) and side.value is None for side in sides)
    return texts or (nothing and isinstance(node.op, ast.BitOr))


def trace(scratch: Path, workers: int, more: list[str]) -> int:
    """Run the suite and keep the lines and seconds of each test; the exit code."""
    tree = _copy(scratch / "traced")
    parts = scratch / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    settings = parts / "coveragerc"
    settings.write_text(
        f"[run]\nsource_pkgs = jaxclf\nparallel = true\ndata_file = {parts / 'coverage'}\n"
        "core = ctrace\npatch = fork, _exit\ndisable_warnings = module-not-imported\n"
    )
    (parts / "sitecustomize.py").write_text(FOLLOWED)
    (parts / "followed.py").write_text(PLUGIN)
    arguments = ["-q", f"-n{workers}", "-pfollowed", "-pno:cov", *more]
    arguments += [f"--junitxml={scratch / 'tests.xml'}", "-o", "junit_family=xunit1"]
    environment = _environment(tree, scratch) | {"COVERAGE_PROCESS_START": str(settings)}
    environment["PYTHONPATH"] += f"{os.pathsep}{parts}"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=tree, env=environment, check=False
    ).returncode
    from coverage import Coverage

    whole = Coverage(data_file=scratch / "coverage")
    whole.combine([str(parts)])
    whole.save()
    return ended


class Traces:
    """Which tests reach a line, the quickest first."""

    def __init__(self, scratch: Path, limit: float):
        self.limit = limit
        self.seconds: dict[str, float] = {}
        for case in ElementTree.parse(scratch / "tests.xml").iter("testcase"):
            if not {child.tag for child in case} & {"failure", "error", "skipped"}:
                name = f"{case.get('file')}::"
                inner = (case.get("classname") or "").split(".")
                within = [part for part in inner if part.startswith("Test")]
                name += "::".join([*within, case.get("name") or ""])
                self.seconds[name] = float(case.get("time") or 0)
        from coverage.numbits import numbits_to_nums

        self.lines: dict[tuple[str, int], set[str]] = {}
        self.files: dict[str, set[str]] = {}
        with sqlite3.connect(scratch / "coverage") as database:
            found = database.execute(
                "select path, context, numbits from line_bits"
                " join file on file.id = file_id join context on context.id = context_id"
            )
            for path, context, numbits in found:
                test = re.sub(r" \((setup|call|teardown)\)$", "", context)
                if test in self.seconds:
                    name = path[path.rindex("/jaxclf/") + 1 :]
                    self.files.setdefault(name, set()).add(test)
                    for line in numbits_to_nums(numbits):
                        self.lines.setdefault((name, line), set()).add(test)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests to run: those that reach the line, then all in the files named as the module.

        Of both as many as take about `limit`, the quickest first, those of the module before the
        others. Where no test reaches the line (it runs once, at import, or in a process that was
        killed), those that reach the file, and those of the package's folder.
        """
        reach = self.lines.get((mutant.file, mutant.line), set())
        folder = "tests/" + "".join(f"{part}/" for part in mutant.file.split("/")[1:-1])
        own = {test for test in self.seconds if _is_of(test, folder, Path(mutant.file).stem)}
        if not reach:
            reach = self.files.get(mutant.file, set())
            reach = reach | {test for test in self.seconds if test.startswith(folder)}
        chosen = self._quickest(reach & own) + self._quickest(reach - own)
        return self._within(chosen) + self._within(self._quickest(own - reach))

    def _quickest(self, tests: set[str]) -> list[str]:
        return sorted(tests, key=lambda test: (self.seconds[test], test))

    def _within(self, tests: list[str]) -> list[str]:
        chosen, total = [], 0.0
        for test in tests:
            total += self.seconds[test] + 0.05
            if chosen and total > self.limit:
                break
            chosen.append(test)
        return chosen


class Names:
    """Without a trace: the tests in files named as the module, then in those that import it."""

    def __init__(self) -> None:
        files = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/**/test_*.py"))
        self.imports = {file: _imported(ROOT / file) for file in files}

    def tests(self, mutant: Mutant) -> list[str]:
        """Its own files first, then those of the same folder, those that import least first."""
        path = Path(mutant.file).with_suffix("")
        folder = "tests/" + "".join(f"{part}/" for part in path.parts[1:-1])
        module = ".".join(path.parent.parts if path.name == "__init__" else path.parts)
        own = [file for file in self.imports if _is_of(file, folder, path.name)]
        others = [file for file, names in self.imports.items() if module in names]
        if not own and not others:
            others = [file for file in self.imports if file.startswith(folder)]
        others.sort(key=lambda file: (not file.startswith(folder), len(self.imports[file])))
        return ["-mnot slow", *dict.fromkeys([*own, *others])]


def _imported(file: Path) -> set[str]:
    """`from jaxclf.core import locks` imports jaxclf.core and jaxclf.core.locks."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _is_of(test: str, folder: str, module: str) -> bool:
    """`tests/data/test_readers.py::test_x` is of `readers` in `tests/data/`; test_readers_y too."""
    name = test.partition("::")[0].removeprefix(folder)
    return name == f"test_{module}.py" or name.startswith(f"test_{module}_")


def run(scratch: Path, seed: int, count: int, workers: int, seconds: float) -> int:
    """Try `count` changes; 0 where at least nine of ten are killed."""
    places = [mutant for file in sorted(ROOT.glob("jaxclf/**/*.py")) for mutant in mutants(file)]
    sample = random.Random(seed).sample(places, count)
    output = scratch / f"mutants-{seed}.jsonl"
    lines = output.read_text("utf-8").splitlines() if output.is_file() else []
    known = {found["name"]: found for found in map(json.loads, lines)}
    left = [mutant for mutant in sample if mutant.name not in known]
    print(f"{len(places):,} places, {count} sampled, {len(left)} to try", flush=True)
    select = Traces(scratch, seconds) if (scratch / "tests.xml").is_file() else Names()
    with get_context("spawn").Pool(workers, _prepare, (scratch,)) as pool:
        tasks = [(mutant, select.tests(mutant), seconds) for mutant in left]
        for found in pool.imap_unordered(_try, tasks):
            known[found["name"]] = found
            with output.open("a", encoding="utf-8") as file:
                print(json.dumps(found, ensure_ascii=False), file=file)
            print(f"{found['verdict']:9} {found['seconds']:4.0f} s  {found['name']}", flush=True)
    results = [known[mutant.name] for mutant in sample]
    survivors = [found for found in results if found["verdict"] == "survived"]
    killed = len(results) - len(survivors)
    print(f"\n{killed} of {len(results)} killed: {killed / len(results):.1%}. Survivors:")
    for found in sorted(survivors, key=lambda found: found["name"]):
        print(f"- {found['name']}{'' if found['whole'] else '  (not all tests: no time)'}")
    return int(killed < 0.9 * len(results))


_tree = Path()
_UNFIT, _LATE = 90, 91  # exit codes: cannot be swapped; not all tests were run


def _prepare(scratch: Path) -> None:
    """A worker's own copy of the tree, and all of it imported, which its children find done."""
    global _tree
    _tree = _copy(scratch / f"worker-{os.getpid()}")
    os.environ.update(_environment(_tree, scratch))
    os.chdir(_tree)
    sys.path[:] = [str(_tree), *(path for path in sys.path if path != str(ROOT))]
    import pytest

    with (_tree / "collected.log").open("w") as log, contextlib.redirect_stdout(log):
        pytest.main(["--collect-only", "-q", *_PLAIN, "--ignore=tests/test_faults.py"])


def _try(task: tuple[Mutant, list[str], float]) -> dict:
    """The change's verdict, by functions swapped in what is imported, else by a new process."""
    mutant, tests, seconds = task
    begun = time.monotonic()
    file = _tree / mutant.file
    whole = file.read_bytes()
    assert whole[mutant.start : mutant.end].decode() == mutant.old
    changed = whole[: mutant.start] + mutant.new.encode() + whole[mutant.end :]
    file.write_bytes(changed)
    try:
        code = _code_of(lambda: _run_swapped(file, whole, changed, tests, seconds), seconds)
        if code == _UNFIT:
            code = _code_of(lambda: _run_anew(tests, seconds), seconds)
    finally:
        file.write_bytes(whole)
    return asdict(mutant) | {
        "name": mutant.name,
        "verdict": "survived" if code in (0, _LATE) else "timeout" if code is None else "killed",
        "whole": code != _LATE,
        "by": re.findall(r"^(?:FAILED|ERROR) (\S+)", _log().read_text("utf-8", "replace"), re.M),
        "tests": len(tests),
        "seconds": round(time.monotonic() - begun, 1),
    }


def _log() -> Path:
    return _tree.with_suffix(".log")


def _code_of(program: Callable[[], object], seconds: float) -> int | None:
    """The exit code of a forked process; None where it does not end."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        log = os.open(_log(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        program()
        os._exit(1)
    end = time.monotonic() + 10 * seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    _end(child)
    os.waitpid(child, 0)
    return None


def _run_swapped(file: Path, whole: bytes, changed: bytes, tests: list[str], seconds: float):
    module = ".".join(file.relative_to(_tree).with_suffix("").parts).removesuffix(".__init__")
    if module not in sys.modules or not _swap(sys.modules[module], file, whole, changed):
        os._exit(_UNFIT)
    run_tests(tests, seconds, ["-o", "addopts=--strict-markers"])  # the package is imported already


def _run_anew(tests: list[str], seconds: float):
    program = f"from benchmarks.mutants import run_tests; run_tests({tests!r}, {seconds})"
    os.execv(sys.executable, [sys.executable, "-c", program])


def run_tests(tests: list[str], seconds: float, more: Sequence[str] = ()) -> NoReturn:
    """End with pytest's exit code, 0 also where nothing is to be run, or _LATE."""
    import pytest

    class Deadline:
        end, late = time.monotonic() + seconds, False

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item):
            if time.monotonic() > self.end:
                self.late = True
                item.session.shouldstop = "no time left"
            return (yield)

    if not any("test" in each for each in tests):
        os._exit(0)
    deadline = Deadline()
    code = pytest.main(["-x", "-q", *_PLAIN, *more, *tests], [deadline])
    done = code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    late = deadline.late and code in (pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED)
    os._exit(_LATE if late else 0 if done else int(code))


def _swap(module: ModuleType, file: Path, whole: bytes, changed: bytes) -> bool:
    """Give the module's functions their changed code; False where the change is outside of them."""
    loader: Any = module.__spec__ and module.__spec__.loader
    old, new = (list(_codes(loader.source_to_code(text, str(file)))) for text in (whole, changed))
    if len(old) != len(new):
        return False
    swapped = {}
    for before, after in zip(old, new, strict=True):
        if not before.co_flags & inspect.CO_NEWLOCALS:  # a module's or a class's own lines
            if _own(before) != _own(after):
                return False
        elif before != after:
            swapped[before] = after
    functions = [each for each in gc.get_objects() if isinstance(each, FunctionType)]
    functions = [each for each in functions if each.__code__ in swapped]
    try:
        for function in functions:
            function.__code__ = swapped[function.__code__]
    except ValueError:  # it closes over other names
        return False
    return bool(functions)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _own(code: CodeType) -> tuple:
    return code.co_code, code.co_names, [c for c in code.co_consts if not isinstance(c, CodeType)]


def _end(group: int) -> None:
    """What the tests left running goes too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 9)


def _environment(tree: Path, scratch: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
    }


def _copy(folder: Path) -> Path:
    """The tree as git has it, changes included."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return folder


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["trace", "run"])
    parser.add_argument("--scratch", type=Path, required=True, help="kept between the two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="changes to try")
    parser.add_argument("--seconds", type=float, default=300, help="of tests for a change (300)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    words, more = sys.argv[1:], []
    if "--" in words:
        words, more = words[: words.index("--")], words[words.index("--") + 1 :]
    options = parser.parse_args(words)
    options.scratch = options.scratch.resolve()
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.what == "trace":
        return trace(options.scratch, options.workers, more)
    return run(options.scratch, options.seed, options.count, options.workers, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
