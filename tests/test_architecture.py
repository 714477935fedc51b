"""Who may import whom; that reading a config and asking for help stay cheap."""

import ast
import sys
from pathlib import Path

import pytest

from benchmarks import imports

REPOSITORY = Path(__file__).resolve().parent.parent
# Their imports are all paid before a typo in the config is reported.
CHEAP = {"jaxclf", "jaxclf.config", "jaxclf.core"}


def violations(root: Path) -> list[str]:
    """`file: what it must not do` for every import in the repository that breaks a rule."""
    found = imports.modules(root)
    lines = [f"{line}: goes up" for line in imports.upward(found)]
    lines += [f"{line}: goes in a circle" for line in imports.circles(found)]
    for path in sorted(
        path for top in ("jaxclf", "configs") for path in (root / top).rglob("*.py")
    ):
        module = imports.module_name(root, path)
        for name in sorted(set(imports.imports(root, path))):
            if reason := _refused(module, name):
                lines.append(f"{module} → {name}: {reason}")
    return lines


def _refused(module: str, name: str) -> str | None:
    top = name.partition(".")[0]
    if top in ("torch", "tests", "benchmarks"):
        return "only tests and benchmarks may"
    if module.startswith("configs"):
        allowed = top in {"ml_collections", "configs", *sys.stdlib_module_names}
        allowed |= name.startswith("jaxclf.config")
        return None if allowed else "configs import only jaxclf.config and each other"
    if top in ("configs", "conversion"):
        return "the package stands on its own"
    packages = {imports.package_of(each) for each in (module, name)}
    if top == "jaxclf" and packages == {"data", "models"}:
        return "data and models meet at Batch alone"
    return None


def test_imports_go_one_way():
    assert violations(REPOSITORY) == []


def test_what_reads_the_config_imports_nothing_heavy():
    found = imports.modules(REPOSITORY)
    # What the package itself names it imports only when used: see tests/test_api.py.
    reached, waiting = set(), ["jaxclf.config.loading", "jaxclf.config.defaults"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += found.get(module, ())
    allowed = {"jaxclf", "ml_collections", *sys.stdlib_module_names}
    for module in reached:
        path = REPOSITORY / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.is_file():
            tops = {name.partition(".")[0] for name in imports.imports(REPOSITORY, path)}
            assert tops <= allowed, module


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("jaxclf/data/batching.py", "from jaxclf.models import decoder", "goes up"),
        ("jaxclf/data/batching.py", "from ..models.decoder import Decoder", "meet at Batch"),
        ("jaxclf/models/decoder.py", "import jaxclf.data.batching", "meet at Batch"),
        ("jaxclf/training/losses.py", "from jaxclf.runs import training", "goes up"),
        ("jaxclf/runs/training.py", "def f():\n    from jaxclf.train import main", "goes up"),
        ("jaxclf/runs/training.py", "import conversion.from_hf", "stands on its own"),
        ("jaxclf/metrics/metrics.py", "import torch.nn", "only tests and benchmarks"),
        ("jaxclf/config/loading.py", "from configs import quickstart", "stands on its own"),
        ("jaxclf/core/errors.py", "from jaxclf.core import errors", None),
        ("jaxclf/train.py", "from jaxclf.runs import training", None),
        ("jaxclf/runs/training.py", "from jaxclf.models.decoder import Decoder", None),
        ("configs/mine.py", "import jax", "configs import only"),
        ("configs/mine.py", "from jaxclf.runs import training", "configs import only"),
        ("configs/mine.py", "from jaxclf.config import defaults", None),
    ],
)
def test_an_import_is_judged(tmp_path, file, source, reason):
    known = ("jaxclf/runs/training.py", "jaxclf/train.py", "jaxclf/models/decoder.py")
    for module in (*known, "jaxclf/data/batching.py", "jaxclf/config/defaults.py", file):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).touch()
    (tmp_path / file).write_text(source)
    found = violations(tmp_path)
    if reason is None:
        assert found == []
    else:
        assert any(reason in line for line in found)
        assert all(line.startswith(file.removesuffix(".py").replace("/", ".")) for line in found)


def test_modules_that_import_each_other_are_found(tmp_path):
    (tmp_path / "jaxclf" / "core").mkdir(parents=True)
    (tmp_path / "jaxclf" / "core" / "a.py").write_text("from jaxclf.core import b")
    (tmp_path / "jaxclf" / "core" / "b.py").write_text("def f():\n    import jaxclf.core.a")
    (line,) = violations(tmp_path)
    assert line == "jaxclf.core.a → jaxclf.core.b → jaxclf.core.a: goes in a circle"


def test_a_new_package_needs_a_layer(tmp_path):
    (tmp_path / "jaxclf" / "attic").mkdir(parents=True)
    (tmp_path / "jaxclf" / "attic" / "old.py").write_text("import jaxclf.core.errors")
    with pytest.raises(LookupError, match="jaxclf/attic has no layer yet"):
        violations(tmp_path)


def unnamed_encodings(path: Path) -> list[str]:
    """Where a file reads or writes text in whatever encoding the user's locale has."""
    found = []
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(call, ast.Call) or any(each.arg == "encoding" for each in call.keywords):
            continue
        name = ast.unparse(call.func).rpartition(".")[2]
        words = [each.value for each in call.args if isinstance(each, ast.Constant)]
        modes = [each for each in words if isinstance(each, str) and {*each} <= {*"rwaxbt+"}]
        if (
            (name == "read_text" and not call.args)
            # That of a module takes the path first.
            or (
                name == "write_text" and isinstance(call.func, ast.Attribute) and len(call.args) < 2
            )
            or (name == "open" and bool(modes) and "b" not in modes[0])
        ):
            found.append(f"{path}:{call.lineno}")
    return found


@pytest.mark.parametrize("folder", ["jaxclf", "conversion", "configs"])
def test_text_has_the_same_encoding_in_every_locale(folder):
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files
    assert [place for file in files for place in unnamed_encodings(file)] == []
