"""Every shipped config, in every variant."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from jaxclf import config

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)
TASKS = {
    "20ng": ("both", "7class", "20class"),
    "massive": ("both", "intent", "slots"),
    "builtin": ("both", "intent", "slots"),
    "file": ("label", "slots", "both"),
}
LLAMAS = [path.stem for path in CONFIGS if path.stem.startswith(("llama2_", "llama3_"))]


def variants(path: Path) -> list[str]:
    """`NAME.py:words` for every combination of the words that the file takes."""
    tasks = TASKS[config.load(str(path)).data.name]
    shots = ("", "zero_shot", "five_shot") if "five_shot" in path.read_text() else ("",)
    tunes = ("", "lora", "qlora") if "qlora" in path.read_text() else ("",)
    tasks = ("", *(f"task={task}" for task in tasks))
    words = itertools.product(shots, tasks, tunes, ("", "smoke"))
    return [f"{path}:{','.join(filter(None, chosen))}" for chosen in words]


def first_task(path: Path) -> str:
    """The default that the docstring names: of `task=a|b` it is a."""
    match = re.search(r"task=(\w+)\|", path.read_text())
    assert match
    return match[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_variant_loads_and_means_what_it_says(path):
    for argument in variants(path):
        loaded = config.load(argument)
        words = argument.partition(".py:")[2].split(",")
        assert loaded.prompt.shots == (5 if "five_shot" in words else 0)
        task = next((word for word in words if word.startswith("task=")), None)
        assert loaded.data.task == (task or f"task={first_task(path)}")[5:]
        adapted = next((word for word in words if word.endswith("lora")), "full")
        assert loaded.tune == adapted.removeprefix("q")
        assert loaded.model.quantise == ("nf4" if adapted == "qlora" else "none")
        if "smoke" in words:
            assert loaded.model.name in ("llama_smoke", "encoder_smoke")
            assert loaded.model.checkpoint == loaded.tokenizer.path == ""
            assert loaded.train.steps <= 10
            assert 0 < loaded.data.limit <= 100


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke_keeps_data_and_prompt(path):
    full, smoke = config.load(str(path)), config.load(f"{path}:smoke")
    with full.unlocked():
        full.data.limit = smoke.data.limit
    assert smoke.data == full.data
    assert smoke.prompt == full.prompt


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_docstring_opens_with_the_command(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    text = re.sub(r"\s*\\\n\s*", " ", text)  # a command on two lines
    name = path.stem
    _, blank, command = text.splitlines()[:3]
    assert blank == ""
    assert f"{command.strip()} ".startswith(
        f"python -m jaxclf.train --config configs/{name}.py --workdir runs/{name} "
    )
    assert ":smoke" in text


def test_the_experiments_of_the_paper_are_all_there():
    models = ("llama2_7b", "llama2_70b", "llama3_8b", "llama3_70b")
    assert set(LLAMAS) == {f"{model}_{data}" for model in models for data in ("20ng", "massive")}


@pytest.mark.parametrize("name", LLAMAS)
def test_the_settings_of_the_paper(name):
    """Zhao et al. 2025: lr 1e-6, no warm-up, batch 8, 4,000 or 8,000 steps, 16,384 tokens."""
    loaded = config.load(str(REPOSITORY / "configs" / f"{name}.py"))
    family, size, data = name.split("_")
    assert loaded.model.name == f"{family}_{size}"
    assert (
        loaded.model.checkpoint
        == {
            "llama2_7b": "meta-llama/Llama-2-7b-hf",
            "llama2_70b": "meta-llama/Llama-2-70b-hf",
            "llama3_8b": "meta-llama/Meta-Llama-3-8B",
            "llama3_70b": "meta-llama/Meta-Llama-3-70B",
        }[f"{family}_{size}"]
    )
    assert (loaded.data.name, loaded.prompt.wrapper) == (data, family)
    assert loaded.prompt.template == "listing"
    train = loaded.train
    assert (train.learning_rate, train.warmup_steps, train.schedule) == (1e-6, 0, "constant")
    assert (train.batch_size, train.max_length) == (8, 16_384)
    assert train.steps == (8_000 if size == "70b" else 4_000)
    assert train.trained == "all"


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    ("data", "epochs", "records"), [("20ng", 10, 11_314), ("massive", 20, 11_514)]
)
def test_the_roberta_baselines_of_the_paper(size, data, epochs, records):
    """Zhao et al. 2025: batch 32, Adam at 1e-5, 10 epochs of 20 Newsgroups or 20 of MASSIVE."""
    loaded = config.load(str(REPOSITORY / "configs" / f"roberta_{size}_{data}.py"))
    assert (loaded.model.name, loaded.data.name) == (f"roberta_{size}", data)
    assert loaded.model.checkpoint == f"FacebookAI/roberta-{size}"
    train = loaded.train
    assert (train.batch_size, train.learning_rate, train.weight_decay) == (32, 1e-5, 0.0)
    assert train.steps == round(epochs * records / 32 + 0.49)
    assert not train.pack
