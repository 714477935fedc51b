"""What is installed: one package with the experiments, what it needs; imports without effects."""

import ast
import email
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# Nothing here imports them: transformers does, to read Llama 2's tokenizer.model.
BEHIND_OTHERS = {"jinja2", "protobuf", "sentencepiece"}


def imported() -> set[str]:
    """The names of all top-level modules that a file of the package imports anywhere."""
    names = set()
    for path in (REPOSITORY / "jaxclf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names


def requirements(extra: str = "") -> dict[str, str]:
    """Normalized name → the whole requirement."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found = {re.match(r"[\w.-]+", line)[0]: line for line in lines}
    return {normalized(name): line for name, line in found.items()}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_dependencies_are_what_is_imported():
    modules = metadata.packages_distributions()
    own = {"jaxclf", *sys.stdlib_module_names}
    used = {normalized(name) for each in imported() - own for name in modules.get(each, [each])}
    needed = set(requirements())
    assert needed - used == BEHIND_OTHERS
    extras = ("api", "gguf", "hub", "xlsx")
    assert used - needed == {name for extra in extras for name in requirements(extra)}


def test_the_wheel_holds_one_package_and_the_experiments(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    command += ["--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        folder = next(name for name in files if name.endswith("/METADATA")).partition("/")[0]
        about = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        commands = archive.read(f"{folder}/entry_points.txt").decode()
        archive.extractall(tmp_path / "site")
    assert {name.partition("/")[0] for name in files} == {"jaxclf", folder}
    assert "jaxclf/py.typed" in files
    here = {path.name for path in (REPOSITORY / "configs").glob("*.py")}
    assert {Path(name).name for name in files if name.startswith("jaxclf/configs/")} == here
    assert "jaxclf = jaxclf.__main__:run" in commands
    assert about["Description-Content-Type"] == "text/markdown"

    # The experiments load from where they lie in the wheel, in a folder that has none.
    (tmp_path / "empty").mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from jaxclf.config import loading\n"
        "assert loading.CONFIGS.parent.parent.samefile(sys.argv[1]), loading.CONFIGS\n"
        "for file in sorted(loading.CONFIGS.glob('[!_]*.py')):\n"
        "    loading.load(f'configs/{file.name}')\n"
        "    print(file.name)\n"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "site")],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert set(found.stdout.split()) == here - {"__init__.py"}


# -- importing

# The libraries that jaxclf imports have side effects of their own, which come first.
LIBRARIES = (
    *("jax", "flax.nnx", "optax", "orbax.checkpoint", "grain", "qwix", "ml_collections"),
    *("huggingface_hub", "jaxtyping", "rich.console", "safetensors.numpy", "tensorstore"),
)
IMPORT_ALL = f"""
import importlib, logging, os, pkgutil, signal, sys, threading, warnings

for name in {LIBRARIES}:
    importlib.import_module(name)

def state():
    loggers = [logging.getLogger(), *map(logging.getLogger, ("jax", "absl"))]
    return {{
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "logging": [(list(each.handlers), each.level) for each in loggers],
        "signals": {{each: signal.getsignal(each) for each in signal.valid_signals()}},
        "threads": [each.name for each in threading.enumerate()],
        "path": list(sys.path),
        "hooks": (sys.excepthook, threading.excepthook),
        "folder": os.getcwd(),
    }}

def import_all():
    import jaxclf
    return [
        importlib.import_module(each.name)
        for each in pkgutil.walk_packages(jaxclf.__path__, "jaxclf.")
    ]
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL + code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_changes_nothing_in_the_process():
    run(
        """
import sklearn.base  # which shows its own warnings, whoever imports it
before = state()
assert len(import_all()) > 100
after = state()
for name, value in before.items():
    assert after[name] == value, (name, value, after[name])
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was initialized"
"""
    )


def test_nothing_needs_unix_or_the_chat_client_to_be_imported():
    names = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "openai")
    run(
        f"""
for name in {names}:
    sys.modules[name] = None  # importing it fails from here on
for name in ("SIGKILL", "SIGUSR1", "SIGHUP"):
    delattr(signal, name)
del os.fork, os.getuid, os.uname
import_all()
"""
    )


@pytest.mark.slow
def test_training_imports_no_chat_client(tmp_path):
    """Nor does it miss what Windows lacks."""
    words = ["--config", "configs/quickstart.py:smoke", "--workdir", str(tmp_path / "run")]
    run(
        f"""
sys.modules["openai"] = sys.modules["fcntl"] = sys.modules["resource"] = None
from jaxclf import train
train.main({words})
"""
    )
