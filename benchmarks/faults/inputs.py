"""Data, configs and arguments that are wrong: each ends with its code, and with a remedy.

Code 2 says that the user's input is wrong, 3 that an artifact is, 4 that a disk or a network is, 5
that training met numbers that are none. Nothing is left behind that the next command trips over.
"""

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.world import Result, World, failed

SECONDS = 120.0

# name → module, arguments ("@": a workdir of its own), the codes that are right, environment
Case = tuple[str, list[Any], tuple[int, ...], dict[str, str]]

_QUICK = ["--config", "configs/quickstart.py:smoke,task=intent", "--config.data.limit=8"]
_QUICK += ["--config.train.steps=2", "--config.eval.max_new_tokens=4"]
_ENCODER = ["--config", "configs/my_task.py:smoke", "--config.model.name=encoder_smoke"]
_ENCODER += ["--config.eval.decoding=free", "--config.train.max_length=32"]
_ENCODER += ["--config.train.steps=2", "--config.data.limit=0", "--config.train.batch_size=4"]
_TEXTS = ("pay the bill", "open the door", "sing a song")


class _Cases:
    """The cases, with the files that they need."""

    def __init__(self, world: World, folder: Path):
        self.world, self.folder = world, folder
        self.found: dict[str, Case] = {}
        rows = [
            {"text": f"{text} number {number}", "label": text.split()[0]}
            for number in range(6)
            for text in _TEXTS
        ]
        self.good = self.rows("good.jsonl", rows)
        self.texts = world.artifacts / "texts.jsonl"

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, name: str, rows: list[dict]) -> Path:
        return self.file(name, "".join(json.dumps(row) + "\n" for row in rows))

    def add(
        self,
        name: str,
        module: str,
        arguments: list[Any],
        *codes: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        assert name not in self.found, name
        self.found[name] = f"jaxclf.{module}", arguments, codes or (2,), environment or {}

    def quick(self, name: str, *words: str, codes: tuple[int, ...] = (2,), **options) -> None:
        """The quickstart under more arguments."""
        self.add(name, "train", [*_QUICK, *words, "--workdir", "@"], *codes, **options)

    def field(self, field: str, *values: str, codes: tuple[int, ...] = (2,)) -> None:
        """The quickstart with values of a field that mean nothing."""
        for value in values:
            self.quick(f"{field}={value[:40]}", f"--config.{field}={value}", codes=codes)

    def data(
        self,
        name: str,
        *words: str,
        train: Path | str | None = None,
        dev: Path | str | None = None,
        test: Path | str | None = None,
        codes: tuple[int, ...] = (2,),
        **options,
    ) -> None:
        """An encoder on files of one's own."""
        splits = {"train": train, "dev": dev, "test": test}
        given = [
            f"--config.data.{split}={self.good if path is None else path}"
            for split, path in splits.items()
        ]
        self.add(name, "train", [*_ENCODER, *given, *words, "--workdir", "@"], *codes, **options)

    def predict(self, name: str, *words: Any, codes: tuple[int, ...] = (2,), **other: Any) -> None:
        given = {"checkpoint": self.world.artifacts / "scored", "input": self.texts}
        given = {**given, "output": self.folder / f"{len(self.found)}.jsonl", **other}
        options = [part for option, value in given.items() for part in (f"--{option}", value)]
        self.add(name, "predict", [*options, *words], *codes)


def cases(world: World, folder: Path) -> dict[str, Case]:
    """All of them, by name."""
    found = _Cases(world, folder)
    found.quick("undisturbed: quickstart", codes=(0,))
    found.data("undisturbed: my data", codes=(0,))
    _data_files(found)
    _fields(found)
    _combinations(found)
    _places(found, folder)
    _prompts(found)
    _opened(found, world, folder)
    _commands(found, world, folder)
    return found.found


def _data_files(found: _Cases) -> None:
    file, rows, data = found.file, found.rows, found.data
    label = {"label": "a"}
    bad = {
        "missing": "/nonexistent.jsonl",
        "a folder": found.folder,
        "empty": file("empty.jsonl", ""),
        "blank lines": file("blank.jsonl", "\n\n\n"),
        "a header alone": file("header.csv", "text,label\n"),
        "of no known kind": file("data.xyz", "text\tlabel\na\tb\n"),
        "without an ending": file("data", "text,label\na,b\n"),
        "UTF-16": file("utf16.jsonl", '{"text": "a", "label": "b"}\n'.encode("utf-16")),
        "Latin 1": file("latin1.jsonl", b'{"text": "caf\xe9", "label": "a"}\n'),
        "a byte order mark": file("mark.jsonl", b'\xef\xbb\xbf{"text": "a b", "label": "a"}\n'),
        "no JSON": file("no.jsonl", "text,label\na,b\n"),
        "a JSON array": file("array.jsonl", '[{"text": "a b", "label": "a"}]\n'),
        "deeply nested": file("deep.jsonl", '{"text": ' + "[" * 100_000 + "\n"),
        "a NUL": file("nul.jsonl", '{"text": "a\\u0000b", "label": "a"}\n'),
        "half a surrogate": file("half.jsonl", '{"text": "a\\ud800b", "label": "a"}\n'),
        "numbers for texts": rows("number.jsonl", [{"text": 5, **label}] * 4),
        "lists for texts": rows("list.jsonl", [{"text": ["a"], **label}] * 4),
        "nulls for texts": rows("null.jsonl", [{"text": None, **label}] * 4),
        "empty texts": rows("none.jsonl", [{"text": "", **label}] * 4),
        "texts of space": rows("space.jsonl", [{"text": " \t ", **label}] * 4),
        "labels that are floats": rows("float.jsonl", [{"text": "a b", "label": 1.5}] * 4),
        "labels that are null": rows("nolabel.jsonl", [{"text": "a b", "label": None}] * 4),
        "labels that are objects": rows("object.jsonl", [{"text": "a b", "label": {}}] * 4),
        "labels that are lists": rows("labels.jsonl", [{"text": "a b", "label": ["a"]}] * 4),
        "empty labels": rows("nothing.jsonl", [{"text": "a b", "label": ""}] * 4),
        "labels that are NaN": file("nan.jsonl", '{"text": "a b", "label": NaN}\n' * 4),
        "a label of 10,000 digits": file(
            "big.jsonl", '{"text":"a b","label":' + "9" * 10_000 + "}\n"
        ),
        "without the label": rows("text.jsonl", [{"text": "a b"}] * 4),
        "without the text": rows("label.jsonl", [label] * 4),
        "a record of 5 MB": rows("long.jsonl", [{"text": "a " * 2_500_000, **label}]),
        "a csv with an open quote": file("open.csv", 'text,label\n"a b,x\n' + "c d,y\n" * 50),
        "a csv with a stray quote": file("stray.csv", 'text,label\na b,x\n"c" d,y\ne f,x\n'),
        "a csv with more fields": file("more.csv", "text,label\na,b,c\n"),
        "a csv with fewer fields": file("fewer.csv", "text,label\na\n"),
        "a csv with a column twice": file("twice.csv", "text,label,text\na,b,c\n"),
        "a csv without a header": file("bare.csv", "a b,x\nc d,y\n"),
        "a csv with a NUL": file("nul.csv", b"text,label\na\0b,x\n"),
        "a damaged gzip": file("damaged.jsonl.gz", b"\x1f\x8b\x08\x00garbage"),
        "half a gzip": file(
            "half.jsonl.gz", gzip.compress(b'{"text":"a","label":"b"}\n' * 999)[:60]
        ),
        "no gzip": file("plain.jsonl.gz", '{"text": "a b", "label": "a"}\n'),
        "no parquet": file("no.parquet", b"PAR1 nothing of the kind PAR1"),
        "an empty parquet": file("empty.parquet", b""),
    }
    for name, path in bad.items():
        data(f"training file: {name}", train=path)
    for name in ("missing", "empty", "no JSON", "a csv with an open quote", "no parquet"):
        data(f"dev file: {name}", dev=bad[name])
        data(f"test file: {name}", test=bad[name])
        found.predict(f"predict, input: {name}", input=bad[name])
    data(
        "skipped, and nothing is left", "--config.data.on_defect=skip", train=bad["nulls for texts"]
    )
    data(
        "one id twice",
        "--config.data.id=id",
        train=rows("ids.jsonl", [{"text": "a b", "id": "1", **label}] * 2),
    )
    for field in ("text", "label", "id", "pair", "slots"):
        data(f"data.{field} is no column", f"--config.data.{field}=nope")
    data("data.kind=number", "--config.data.kind=number")
    data("numbers wanted, names found", "--config.data.kind=regression")
    data("neither dev nor test", dev="", test="", codes=(0,))  # and says that nothing is scored
    data("no dev", dev="", codes=(0,))
    data(
        "a label in test that train lacks",
        test=rows("new.jsonl", [{"text": "a b", "label": "new"}] * 3),
        codes=(0, 2),
    )
    data(
        "one class alone",
        train=rows("one.jsonl", [{"text": "a b", "label": "pay"}] * 4),
        codes=(0, 2),
    )
    data("data.name=nope", "--config.data.name=nope")


def _fields(found: _Cases) -> None:
    field = found.field
    field("data.dev_fraction", "1.5", "-0.1", "nan", "many")
    field("data.limit", "-1", "1.5", "many")
    field("data.train_examples", "5000", "-1")
    field("train.max_length", "0", "-5", "1", "1e3")
    field("train.batch_size", "0", "-1", "2.5", "")
    field("train.gradient_accumulation_steps", "0", "3", "-2")
    field("train.steps", "-1", "many", "1e3", "99999999999999999999")
    field("train.epochs", "nan", "-1", "inf", "1e18")
    field("train.learning_rate", "nan", "inf", "-1", "small")
    field("train.learning_rate", "1e30", codes=(5,))
    field("train.schedule", "sawtooth", "")
    field("train.warmup_steps", "-1", "x")
    field("train.weight_decay", "-0.1", "nan")
    field("train.max_grad_norm", "-1", "nan")
    field("train.adam_beta1", "1.0", "-0.1", "nan")
    field("train.keep", "0", "-1")
    field("train.save_steps", "-1")
    field("train.metric_for_best_model", "intent.acuracy", "loss", "intent")
    field("train.trained", "last:0", "last:x", "(")
    field("train.max_skipped", "-1")
    field("eval.batch_size", "0", "-4", "many")
    field("eval.decoding", "beam", "")
    field("eval.split", "heldout", "nope")
    field("eval.fallback", "guess")
    field("eval.score_bound", "7", "-1", "nan")
    field("eval.target_accuracy", "1.5", "-1", "nan")
    field("eval.max_new_tokens", "-3")
    field("mesh.data", "0", "3", "-2")
    field("mesh.fsdp", "7")
    field("seed", "-1", "1.5", "1180591620717411303424")
    field("model.name", "llama9", "")
    field("model.dtype", "int8", "float8")
    field("model.dropout", "1.0", "-0.1", "nan")
    field("model.checkpoint", "/nonexistent", "no/such/folder/at/all")
    field("model.quantize", "int8")
    field("tokenizer.path", "/nonexistent")
    field("tokenizer.vocab_size", "0", "-1", "1000000000000")
    field("tune", "nothing", "lora ")
    field("lora.rank", "0", "-1")
    field("lora.target_modules", "(")
    found.quick(
        "modules that are not there", "--config.tune=lora", "--config.lora.target_modules=no"
    )
    field("prompt.template", "poem", "definitions")
    field("prompt.shots", "-1", "5000")
    field("prompt.file", "/nonexistent.txt")
    field("loss.label_smoothing", "1.5", "-1")
    found.quick("a mistyped field", "--config.train.stpes=3")
    found.quick("a group for a field", "--config.train=3")
    found.quick("a field of nothing", "--config.=3")
    found.quick(
        "an override that is code", "--config.lora.target_modules=__import__('os')", codes=(0, 2)
    )
    found.quick("a tuple that never ends", "--config.prompt.styles=" + "(" * 5000)


def _combinations(found: _Cases) -> None:
    quick, data = found.quick, found.data
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    quick("a batch that four devices cannot share", "--config.train.batch_size=3", environment=four)
    quick("more axes than devices", "--config.mesh.tensor=8", environment=four)
    quick("two axes of what is left", "--config.mesh.data=-1", "--config.mesh.fsdp=-1")
    quick("prefix tuning without a prefix", "--config.tune=prefix")
    quick("a prefix without prefix tuning", "--config.model.num_virtual_tokens=4")
    quick(
        "packing and groups by length",
        "--config.train.pack=true",
        "--config.train.group_by_length=true",
    )
    quick("a server that is trained", "--config.api.model=m")
    quick("class weights for a decoder", "--config.loss.balanced=true")
    quick(
        "thoughts and scores",
        "--config.prompt.chain_of_thought=true",
        "--config.eval.decoding=score",
    )
    quick("several sets of no examples", "--config.prompt.seeds=3")
    quick("ten orders of two examples", "--config.prompt.shots=2", "--config.prompt.orders=10")
    data("prompts for an encoder", "--config.prompt.shots=2")
    data("an encoder that is not tuned", "--config.tune=none")
    data("an encoder beyond its positions", "--config.train.max_length=100000")
    data("weights of a class that is not there", "--config.loss.class_weights=(('nope',2.0),)")
    data("weights of two tasks for one", "--config.loss.task_weights=(1.0,2.0)")
    data(
        "a pair column for a decoder", "--config.model.name=llama_smoke", "--config.data.pair=label"
    )


def _places(found: _Cases, folder: Path) -> None:
    afile = found.file("afile", "x")
    for name, words, codes in (
        ("workdir is a file", afile, (2, 4)),
        ("workdir is below a file", afile / "x", (2, 4)),
        ("workdir on /proc", Path("/proc/x"), (4,)),
        ("workdir of another run", found.world.artifacts / "scored", (2,)),
        ("workdir is a converted model", found.world.artifacts / "converted", (2,)),
        ("workdir is Hugging Face's", found.world.artifacts / "hf", (2,)),
        ("workdir has 300 letters", folder / ("x" * 300), (2, 4)),
    ):
        found.add(name, "train", [*_QUICK, "--workdir", words], *codes)
    found.add("no workdir", "train", _QUICK)
    found.add("no config", "train", ["--workdir", "@"])
    found.add("a mistyped option", "train", [*_QUICK, "--work-dir", "@"])
    configs = {
        "a config that is missing": "configs/nope.py",
        "a config that is a folder": folder,
        "a config of bytes": found.file("bytes.py", bytes(range(256))),
        "a config with a syntax error": found.file("syntax.py", "def get_config(:\n"),
        "a config without get_config": found.file("without.py", "x = 1\n"),
        "a config that raises": found.file("raises.py", "raise ValueError('x')\n"),
        "a config that exits": found.file(
            "exits.py", "import sys\ndef get_config(a=''): sys.exit(0)\n"
        ),
        "a config that recurses": found.file(
            "again.py", "def get_config(a=''): return get_config(a)\n"
        ),
        "a config that is None": found.file("none.py", "def get_config(a=''): return None\n"),
        "a config that is a dict": found.file(
            "dict.py", "def get_config(a=''): return {'seed': 1}\n"
        ),
        "a config that imports nothing there": found.file("imports.py", "import nothing_there\n"),
        "a variant that is unknown": "configs/quickstart.py:smok",
        "a variant twice over": "configs/quickstart.py:lora,qlora",
    }
    for name, config in configs.items():
        found.add(name, "train", ["--config", config, "--workdir", "@"])
    found.quick("a hub id without a network", "--config.model.checkpoint=no/such", codes=(4,))
    found.quick(
        "a root of data that is missing",
        "--config.data.name=massive",
        "--config.data.root=/nonexistent",
        codes=(2, 4),
    )


def _prompts(found: _Cases) -> None:
    for name, content in {
        "no place for the text": "Say the label of $labels:",
        "an unknown place": "$text $foo:",
        "the text twice": "$text $text:",
        "nothing": "",
        "bytes": bytes(range(256)),
    }.items():
        path = found.file(f"prompt-{len(found.found)}.txt", content)
        found.quick(f"prompt file: {name}", f"--config.prompt.file={path}")
    for name, content in {
        "a list": "[1, 2]",
        "no JSON": "{",
        "labels missing": '{"pay": "money"}',
        "numbers": '{"alarm_set": 5}',
    }.items():
        path = found.file(f"definitions-{len(found.found)}.json", content)
        words = ["--config.prompt.template=definitions", f"--config.prompt.definitions={path}"]
        found.quick(f"definitions: {name}", *words)
    asked = ["--config", "configs/quickstart.py:no_tuning,smoke,task=intent", "--workdir", "@"]
    for name, words in {
        "tuned": ["--config.tune=full"],
        "a key for the name of a key": ["--config.api.model=m", "--config.api.key_env=sk-abc123"],
        "no key": ["--config.api.model=m"],
        "a URL of no kind": ["--config.api.model=m", "--config.api.base_url=ftp://x"],
        "timeout 0": ["--config.api.model=m", "--config.api.timeout=0"],
        "no threads": ["--config.api.model=m", "--config.api.concurrency=0"],
        "a cap without prices": ["--config.api.model=m", "--config.api.max_cost=1"],
        "a split that is not there": ["--config.eval.split=nope"],
    }.items():
        found.add(f"prompt: {name}", "prompt", [*asked, *words])


def _opened(found: _Cases, world: World, folder: Path) -> None:
    artifacts, predict = world.artifacts, found.predict
    same = found.rows("same.jsonl", [{"text": "a b"}])
    exists = found.rows("exists.jsonl", [{"text": "a b"}])
    predict("predict: no run", checkpoint="/nonexistent", codes=(2, 3))
    predict("predict: Hugging Face's folder", checkpoint=artifacts / "hf", codes=(0,))
    predict("predict: a converted model", checkpoint=artifacts / "converted")
    predict("predict: an empty folder", checkpoint=found.file("void/x", "").parent, codes=(2, 3))
    predict("predict: into a folder that is missing", output=folder / "no/x.jsonl", codes=(0,))
    predict("predict: onto a file that is there", output=exists)
    predict("predict: onto its input", input=same, output=same)
    predict("predict: onto its input, overwriting", "--overwrite", input=same, output=same)
    predict("predict: onto a folder", "--overwrite", output=folder, codes=(2, 4))
    predict("predict: a column that is missing", "--text", "nope")
    predict("predict: a pair for a decoder", "--pair", "text")
    for step in ("99", "x", "²", "-1", ""):
        predict(f"predict: step {step!r}", "--step", step, codes=(2, 3))
    for size in ("-3", "many", "1.5"):
        predict(f"predict: batch size {size}", "--batch-size", size)
    for override in (
        "eval.decoding=foo",
        "eval.batch_size=-4",
        "eval.batch_size=0",
        "eval.score_bound=7",
        "eval.max_new_tokens=-1",
        "model.dtype=int8",
        "model.name=llama3_8b",
        "model.num_virtual_tokens=7",
        "seed=-5",
        "seed=5",
        "train.max_length=2",
        "prompt.template=choice",
        "prompt.shots=2",
        "tune=lora",
        "data.limt=3",
    ):
        predict(f"predict: {override}", f"--config.{override}")
    evaluate = ["--checkpoint", artifacts / "scored", "--output"]
    afile = folder / "afile"
    for name, words, codes in (
        ("a split that is not there", [folder / "e1", "--split", "nope"], (2,)),
        ("eval.batch_size=0", [folder / "e2", "--config.eval.batch_size=0"], (2,)),
        ("into a file", [afile], (2, 4)),
        ("into the run", [artifacts / "scored"], (2,)),
        ("another task's data", [folder / "e3", "--config.data.task=slots"], (2,)),
        ("another template", [folder / "e4", "--config.prompt.template=choice"], (2,)),
        (
            "data that are missing",
            [folder / "e5", "--config.data.name=file", "--config.data.train=/no"],
            (2, 4),
        ),
    ):
        found.add(f"evaluate: {name}", "evaluate", [*evaluate, *words], *codes)


def _commands(found: _Cases, world: World, folder: Path) -> None:
    artifacts = world.artifacts
    data = [f"--config.data.{split}={found.good}" for split in ("train", "dev", "test")]
    pair = [artifacts / "scored", artifacts / "lora"]
    for name, words in {
        "one run": [artifacts / "scored"],
        "no runs": [],
        "a folder that is none": [artifacts / "scored", folder],
        "no samples": [*pair, "--samples", "0"],
        "-5 samples": [*pair, "--samples", "-5"],
    }.items():
        codes = (2, 3) if "none" in name else (2,)
        found.add(f"compare: {name}", "compare", words, *codes)
    for name, words in {
        "sizes 0": ["--sizes", "0", "--seeds", "1"],
        "sizes in words": ["--sizes", "few", "--seeds", "1"],
        "more than there are": ["--sizes", "1000000", "--seeds", "1"],
        "no seeds": ["--sizes", "4", "--seeds", "0"],
    }.items():
        found.add(f"curve: {name}", "curve", [*_ENCODER, *data, *words, "--workdir", "@"])
    for name, words in {
        "an unknown table": ["zhao9"],
        "an unknown row": ["zhao3", "--rows", "nope"],
        "an unknown column": ["zhao3", "--columns", "nope"],
        "an unknown scale": ["zhao3", "--scale", "huge"],
    }.items():
        found.add(f"reproduce: {name}", "reproduce", [*words, "--workdir", "@"])
    for name, topology in {"unknown": "v9:9x9", "no numbers": "v5p:x", "empty": ""}.items():
        words = ["--config", "configs/quickstart.py", "--topology", topology]
        found.add(f"plan: topology {name}", "plan", words)
    broken = folder / "broken"
    for name, change in {
        "no config.json": lambda path: (path / "config.json").unlink(),
        "config.json of a list": lambda path: (path / "config.json").write_text("[]", "utf-8"),
        "config.json deeply nested": lambda path: (path / "config.json").write_text(
            "[" * 100_000, "utf-8"
        ),
        "an unknown model_type": lambda path: _edit(path, model_type="mamba"),
        "a million layers": lambda path: _edit(path, num_hidden_layers=10**6),
        "a vocabulary of 10^9": lambda path: _edit(path, vocab_size=10**9),
        "layers below zero": lambda path: _edit(path, num_hidden_layers=-1),
        "heads in words": lambda path: _edit(path, num_attention_heads="many"),
        "no weights": lambda path: (path / "model.safetensors").unlink(),
        "empty weights": lambda path: (path / "model.safetensors").write_bytes(b""),
        "half of the weights": _halve,
        "an empty tokenizer": lambda path: (path / "tokenizer.json").write_bytes(b""),
        "a tokenizer of a list": lambda path: (path / "tokenizer.json").write_text("[]", "utf-8"),
        "a dangling tokenizer": _dangle,
    }.items():
        source = broken / str(len(found.found))
        shutil.copytree(artifacts / "hf", source)
        change(source)
        words = [source, folder / f"converted-{len(found.found)}"]
        found.add(f"from_hf: {name}", "convert.from_hf", words, 2, 3)
    found.add("from_hf: a source that is missing", "convert.from_hf", ["/no", folder / "c1"], 2, 4)
    found.add("from_hf: a run", "convert.from_hf", [artifacts / "scored", folder / "c2"], 2, 3)
    found.add(
        "from_hf: onto what is there", "convert.from_hf", [artifacts / "hf", artifacts / "hf"]
    )
    found.add(
        "to_hf: onto what is there", "convert.to_hf", [artifacts / "scored", artifacts / "hf"]
    )
    found.add("to_hf: adapters, not merged", "convert.to_hf", [artifacts / "lora", folder / "c3"])
    found.add("to_peft: a whole model", "convert.to_peft", [artifacts / "scored", folder / "c4"])
    found.add(
        "from_peft: no adapters", "convert.from_peft", [artifacts / "hf", folder / "c5"], 2, 3
    )


def _edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields))


def _halve(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _dangle(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/nonexistent")


def run(world: World) -> Iterator[Result]:
    folder = world.folder("inputs")
    found = cases(world, folder)
    names = list(found)
    if world.short:
        names = [names[0], *world.random("inputs").sample(names, 12)]
    for number, name in enumerate(names):
        module, arguments, codes, environment = found[name]
        workdir = folder / f"work{number}"
        words = [workdir if word == "@" else word for word in arguments]
        command = world.commands.run(
            module,
            words,
            folder / f"{number}.log",
            environment=environment,
            unset=["OPENAI_API_KEY"],
            seconds=SECONDS,
        )
        verdict = failed(command, codes)
        if verdict == "told" and command.code and not _says(command.text):
            verdict = "wrong code"
        seen = f"code {command.code}: {command.last_words()}"
        left = _left(workdir) if command.code == 2 else ""
        if verdict == "told" and left:
            verdict, seen = "left behind", f"{seen} ({left})"
        yield Result("inputs", name, verdict, seen)


def _says(text: str) -> bool:
    """Whether an error stands there, of one's own or of argparse."""
    return re.search(r"(?m)^(error: |.*: error: )", text) is not None


def _left(workdir: Path) -> str:
    """What a refused command has left of a run."""
    if not workdir.exists():
        return ""
    return ", ".join(path.name for path in workdir.iterdir() if path.name != ".lock")
