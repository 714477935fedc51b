"""Who may import whom; the README's map of the rooms in force."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# The rooms of jaxclf from the ground up. A room imports from its own level and those below.
LEVELS = (
    {"__init__", "allocator", "cache", "chips", "collectives", "errors", "gpus", "hlo"}
    | {"published_tables", "shapes", "standin", "trie"},
    {"config", "endpoint", "fields", "interrupts", "kernels", "ledger", "processes"}
    | {"sharding", "storage", "tables"},
    {"data", "models"},
    {"answers", "attens", "calibration", "checkpoints", "choosing", "decode", "labels", "logs"}
    | {"lora", "losses", "metrics", "optim", "report", "significance"},
    {"answering", "chat", "classify", "combining", "features", "generation", "objectives"}
    | {"ranking", "recipe", "scoring", "steps", "transfer", "tuning"},
    {"planning", "preparation", "programs", "workload"},
    {"comparison", "curves", "evaluation", "labelling", "plans", "prompting", "training"},
    {"modules"},
    {"ensemble", "table_plans", "table_results", "table_runs"},
    {"compare", "curve", "evaluate", "plan", "predict", "prompt", "reproduce", "train"},
)
ENTRY_POINTS = LEVELS[-1]
# Their imports are all paid before a typo in the config is reported.
CHEAP = (
    "jaxclf/__init__.py",
    "jaxclf/core/errors.py",
    "jaxclf/config/schema.py",
    "jaxclf/config/loading.py",
)


def level(room: str) -> int:
    for number, rooms in enumerate(LEVELS):
        if room in rooms:
            return number
    raise AssertionError(f"jaxclf/{room} has no place yet: add it to LEVELS in {__file__}")


def imports(root: Path, path: Path) -> Iterator[str]:
    """Full names of the modules a file imports anywhere: at its top, in a function, for types."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            for alias in node.names:
                # `from jaxclf import decode` imports a module, `from jaxclf.data import X` may not.
                inner = f"{module}.{alias.name}"
                stem = root / inner.replace(".", "/")
                is_module = stem.with_suffix(".py").is_file() or stem.is_dir()
                yield inner if is_module else module


def violations(root: Path) -> list[str]:
    """`file: what it must not do` for every import in the repository that breaks a rule."""
    checks = {"jaxclf": _check_jaxclf, "conversion": _check_package, "configs": _check_config}
    found = []
    for path in sorted(path for top in checks for path in (root / top).rglob("*.py")):
        parts = path.relative_to(root).parts
        for name in sorted(set(imports(root, path))):
            reason = checks[parts[0]](parts, name)
            if reason:
                found.append(f"{'/'.join(parts)} imports {name}: {reason}")
    return found


def _check_package(parts: tuple[str, ...], name: str) -> str | None:
    if name.partition(".")[0] in ("torch", "tests", "benchmarks"):
        return "only tests and benchmarks may"
    return None


def _check_config(parts: tuple[str, ...], name: str) -> str | None:
    if name.partition(".")[0] in {"ml_collections", "configs", *sys.stdlib_module_names}:
        return None
    return "configs import only ml_collections and each other"


def _check_jaxclf(parts: tuple[str, ...], name: str) -> str | None:
    room, names = parts[1].removesuffix(".py"), name.split(".")
    if names[0] == "configs":
        return "configs are files that a user names"
    if names[0] == "conversion" and room not in ENTRY_POINTS:
        return "only the entry points may call conversion"
    if names[0] != "jaxclf":
        return _check_package(parts, name)
    other = names[1] if len(names) > 1 else "__init__"
    if {room, other} == {"data", "models"}:
        return "data and models meet at Batch alone"
    if level(other) > level(room):
        return f"{other} stands above {room}"
    return None


def test_imports_go_one_way():
    assert violations(REPOSITORY) == []


@pytest.mark.parametrize("name", CHEAP)
def test_what_reads_the_config_imports_nothing_heavy(name):
    allowed = {"jaxclf", "ml_collections", *sys.stdlib_module_names}
    found = set(imports(REPOSITORY, REPOSITORY / name))
    assert {module.partition(".")[0] for module in found} <= allowed
    assert {f"{module.replace('.', '/')}.py" for module in found if "jaxclf" in module} <= {*CHEAP}


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("jaxclf/data/batching.py", "from jaxclf.models import llama", "meet at Batch"),
        ("jaxclf/data/batching.py", "from ..models.llama import Llama", "meet at Batch"),
        ("jaxclf/models/decoder.py", "import jaxclf.data.batching", "meet at Batch"),
        ("jaxclf/training/losses.py", "from jaxclf import steps", "steps stands above losses"),
        (
            "jaxclf/training/train_step.py",
            "def f():\n    from jaxclf.train import main",
            "stands above",
        ),
        ("jaxclf/training/train_step.py", "import jaxclf.convert.from_hf", "only the entry points"),
        ("jaxclf/metrics/metrics.py", "import torch.nn", "only tests and benchmarks"),
        ("jaxclf/config/loading.py", "from configs import common", "files that a user names"),
        ("jaxclf/convert/mapping.py", "import torch", "only tests and benchmarks"),
        ("configs/mine.py", "import jax", "configs import only"),
        ("configs/mine.py", "from jaxclf import config", "configs import only"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, source, reason):
    for module in (
        "jaxclf/training/train_step.py",
        "jaxclf/train.py",
        "jaxclf/models/decoder.py",
        file,
    ):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).touch()
    (tmp_path / file).write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{file} imports ")
    assert reason in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("jaxclf/train.py", "import jaxclf.convert.from_hf\nfrom jaxclf import steps"),
        (
            "jaxclf/training/train_step.py",
            "from jaxclf.models.decoder import Llama\nfrom jaxclf.data import pack",
        ),
        ("tests/parity/test_llama.py", "import torch"),
        ("configs/mine.py", "import ml_collections\nfrom configs import common"),
    ],
)
def test_an_allowed_import_is_not(tmp_path, file, source):
    for module in (
        "jaxclf/training/train_step.py",
        "jaxclf/models/decoder.py",
        "jaxclf/data/batching.py",
        file,
    ):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).touch()
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []


def test_a_new_room_needs_a_place(tmp_path):
    (tmp_path / "jaxclf").mkdir()
    (tmp_path / "jaxclf" / "attic.py").write_text("import jaxclf.core.errors")
    with pytest.raises(AssertionError, match="jaxclf/attic has no place yet"):
        violations(tmp_path)
