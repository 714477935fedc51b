"""Every shipped config, in every variant."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from jaxclf.config import loading, schema
from jaxclf.core.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*.py")
    if path.stem not in ("__init__", "common", "families")
)
TASKS = {
    "20ng": ("both", "7class", "20class"),
    "massive": ("both", "intent", "slots"),
    "builtin": ("both", "intent", "slots"),
    "file": ("label", "slots", "both"),
}
ENSEMBLES = [path for path in CONFIGS if path.stem.startswith("attens_")]
CHATS = [path for path in CONFIGS if path.stem.startswith("gpt")]
RUNS = [path for path in CONFIGS if path not in ENSEMBLES]
LLAMAS = [path.stem for path in CONFIGS if path.stem.startswith(("llama2_", "llama3_"))]


def variants(path: Path) -> list[str]:
    """`NAME.py:words` for every combination of the words that the file takes."""
    tasks = TASKS[loading.load(str(path)).data.name]
    shots = ("", "zero_shot", "five_shot") if "five_shot" in path.read_text() else ("",)
    tunes = ("", "lora", "qlora") if "qlora" in path.read_text() else ("",)
    tunes += ("no_tuning",) if "no_tuning" in path.read_text() else ()
    tasks = ("", *(f"task={task}" for task in tasks))
    words = itertools.product(shots, tasks, tunes, ("", "smoke"))
    return [f"{path}:{','.join(filter(None, chosen))}" for chosen in words]


def first_task(path: Path) -> str:
    """The default that the docstring names: of `task=a|b` it is a."""
    match = re.search(r"task=(\w+)\|", path.read_text())
    assert match
    return match[1]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_variant_loads_and_means_what_it_says(path):
    for argument in variants(path):
        loaded = loading.load(argument)
        words = argument.partition(".py:")[2].split(",")
        assert loaded.prompt.shots == (5 if "five_shot" in words else 0)
        task = next((word for word in words if word.startswith("task=")), None)
        assert loaded.data.task == (task or f"task={first_task(path)}")[5:]
        adapted = next((word for word in words if word.endswith("lora")), "full")
        prompted = "no_tuning" in words or path in CHATS
        expected = "none" if prompted else adapted.removeprefix("q")
        assert loaded.tune == expected
        assert loaded.model.quantize == ("nf4" if adapted == "qlora" else "none")
        if "smoke" in words:
            models = ("llama_smoke", "t5_smoke", "encoder_smoke")
            assert loaded.model.name in models or path in CHATS
            assert loaded.model.checkpoint == loaded.tokenizer.path == ""
            assert loaded.train.steps <= 10 or path in CHATS
            assert 0 < loaded.data.limit <= 100


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke_keeps_data_and_prompt(path):
    full, smoke = loading.load(str(path)), loading.load(f"{path}:smoke")
    with full.unlocked():
        full.data.limit = smoke.data.limit
        if (
            full.prompt.wrapper == "checkpoint"
        ):  # which has a chat template; the tiny model has none
            full.prompt.wrapper = "none"
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
        f"python -m jaxclf.{'prompt' if path in CHATS else 'train'} --config configs/{name}.py "
        f"--workdir runs/{name} "
    )
    assert ":smoke" in text


def test_the_experiments_of_the_paper_are_all_there():
    models = ("llama2_7b", "llama2_70b", "llama3_8b", "llama3_70b")
    assert set(LLAMAS) == {f"{model}_{data}" for model in models for data in ("20ng", "massive")}


@pytest.mark.parametrize("name", LLAMAS)
def test_the_settings_of_the_paper(name):
    """Zhao et al. 2025: lr 1e-6, no warm-up, batch 8, 4,000 or 8,000 steps, 16,384 tokens."""
    loaded = loading.load(str(REPOSITORY / "configs" / f"{name}.py"))
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


@pytest.mark.parametrize("path", CHATS, ids=lambda path: path.stem)
def test_the_closed_models_of_the_paper(path):
    loaded = loading.load(str(path))
    family, data = path.stem.split("_")
    names = {"gpt35": "gpt-3.5-turbo", "gpt4": "gpt-4", "gpt4o": "gpt-4o"}
    assert (loaded.api.model, loaded.data.name) == (names[family], data)
    assert (loaded.prompt.template, loaded.prompt.wrapper, loaded.model.name) == (
        *("listing", "none"),
        "",
    )
    assert len(CHATS) == 6


def test_instructions_are_all_that_differs():
    path = REPOSITORY / "configs/instructions_massive.py"
    bare, told = (loading.load(f"{path}:{word},smoke") for word in ("without", "with"))
    assert (bare.prompt.template, told.prompt.template) == ("plain", "listing")
    with bare.unlocked():
        bare.prompt.template = "listing"
    assert bare == told == loading.load(f"{path}:smoke")
    with pytest.raises(InputError, match="'with' and 'without' exclude each other"):
        loading.load(f"{path}:with,without")


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    ("data", "epochs", "records"), [("20ng", 10, 11_314), ("massive", 20, 11_514)]
)
def test_the_roberta_baselines_of_the_paper(size, data, epochs, records):
    """Zhao et al. 2025: batch 32, Adam at 1e-5, 10 epochs of 20 Newsgroups or 20 of MASSIVE."""
    loaded = loading.load(str(REPOSITORY / "configs" / f"roberta_{size}_{data}.py"))
    assert (loaded.model.name, loaded.data.name) == (f"roberta_{size}", data)
    assert loaded.model.checkpoint == f"FacebookAI/roberta-{size}"
    train = loaded.train
    assert (train.batch_size, train.learning_rate, train.weight_decay) == (32, 1e-5, 0.0)
    assert train.steps == round(epochs * records / 32 + 0.49)
    assert not train.pack


@pytest.mark.parametrize("path", ENSEMBLES, ids=lambda path: path.stem)
def test_ensembles_have_the_settings_of_their_paper(path):
    """Beiranvand et al. 2025: q, k, v at rank 4, alpha 32, dropout 0.1; 20 epochs of batch 16."""
    loaded = loading.load(f"{path}:task=stsb,k=5")
    assert loaded.data.name == "glue/stsb"
    assert (loaded.attens.k, len(loaded.attens.modules)) == (5, 9)
    assert (loaded.tune, loaded.lora.target_modules, loaded.lora.modules_to_save) == (
        *("lora", "q,k,v"),
        "heads/.*,pooler/.*",
    )
    assert (loaded.lora.rank, loaded.lora.alpha, loaded.lora.dropout) == (4, 32.0, 0.1)
    attens = loaded.attens
    assert (attens.heads, attens.tokens, attens.over, attens.combine) == (4, "mean", "mean", "sum")
    assert (attens.epochs, attens.batch_size, attens.weight_decay) == (20, 16, 0.01)
    if path.stem != "attens_minilm":  # which has settings for a laptop
        train = loaded.train
        assert (train.epochs, train.batch_size) == (20.0, 16)
        assert (train.learning_rate, attens.learning_rate) == (2e-5, 2e-5)
        assert (train.weight_decay, train.schedule, attens.schedule) == (
            *(0.01, "constant"),
            "constant",
        )


@pytest.mark.parametrize("path", ENSEMBLES, ids=lambda path: path.stem)
def test_ensembles_take_every_target_and_number_of_modules(path):
    targets = (*schema.GLUE, "imdb", "ag_news", "trec")
    for target in targets:
        loaded = loading.load(f"{path}:task={target}")
        assert loaded.data.name.rpartition("/")[2] == target
    assert loading.load(str(path)).data.name == "glue/rte"
    assert loading.load(f"{path}:k=sweep").attens.sweep == (3, 5, 7)
    small = loading.load(f"{path}:smoke,k=sweep")
    assert (small.model.name, small.model.checkpoint) == ("encoder_smoke", "")
    assert len(small.attens.modules) == 3
    assert small.train.epochs == 0
