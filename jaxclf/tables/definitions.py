"""The papers' tables and ours: which rows and columns they have, and which run fills each cell.

    table = tables.find("zhao3", smoke=False).select(rows="llama3-8b", columns="20class-dual")
    table.cells[0].run      llama3-8b-zero-shot-tuned-20class, configs/llama3_8b_20ng.py:…
    table.cells[0].path     ("eval", "20class"): where the run's report has the figure

A run may fill several cells: one model for both tasks fills two columns, an ensemble four rows.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from jaxclf.core.errors import InputError
from jaxclf.core.suggest import did_you_mean
from jaxclf.tables import published

NAMES = ("zhao3", "attens2", "attens3", "attens_k", "laptop")

METHODS = ("Model", "FFN", "FT_LoRA", "AttEns")
KS = (3, 5, 7, 9)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that a table needs, for one seed or several.

    name: of its folder. config: `FILE.py:VARIANT`, the file in the folder of configs. group: runs
    of an ensemble with the same base, which share their adapters; "" for other runs. seeds: how
    many where nobody says it.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    group: str = ""
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure of the paper, and where ours is: in the run's report under `path`, then `metric`.

    published: a share in [0, 1] or a correlation; None: not in the paper's table.
    """

    row: str
    column: str
    run: Run
    path: tuple[str, ...]
    metric: str
    published: float | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows and columns by slug, with the titles that a reader sees; cells row by row.

    percent: whether the paper prints per cent, else shares of four digits. own: nothing of it is
    published; it shows what a row costs, and which rows are as good as the best.
    """

    name: str
    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    cells: tuple[Cell, ...]
    percent: bool = False
    smoke: bool = False
    own: bool = False

    @property
    def runs(self) -> list[Run]:
        """Those that fill the cells, each once."""
        return list(dict.fromkeys(cell.run for cell in self.cells))

    def select(self, rows: str = "", columns: str = "") -> "Table":
        """The part whose slugs or titles hold one of the words that stand between commas.

        A word that is a slug means this one alone; "" means all. Raises InputError where a word
        means nothing.
        """
        kept_rows = _chosen("--rows", rows, self.rows)
        kept_columns = _chosen("--columns", columns, self.columns)
        cells = tuple(
            cell for cell in self.cells if cell.row in kept_rows and cell.column in kept_columns
        )
        return dataclasses.replace(self, rows=kept_rows, columns=kept_columns, cells=cells)


def find(name: str, smoke: bool = False) -> Table:
    """One of `NAMES`, of real runs or of their smoke variants; raises InputError for another."""
    makers = {
        "zhao3": _zhao3,
        "attens2": _attens2,
        "attens3": _attens3,
        "attens_k": _attens_k,
        "laptop": _laptop,
    }
    if name not in makers:
        raise InputError(
            f"table {name!r} is not known; possible: {', '.join(NAMES)}{did_you_mean(name, NAMES)}"
        )
    return makers[name](smoke)


def _chosen(option: str, words: str, titles: Mapping[str, str]) -> dict[str, str]:
    wanted: set[str] = set()
    for word in filter(None, (word.strip().lower() for word in words.split(","))):
        exact = {slug for slug in titles if word == slug}
        found = exact or {
            slug for slug, title in titles.items() if word in slug or word in title.lower()
        }
        if not found:
            raise InputError(
                f"{option} {word}: nothing is called so; there are {', '.join(titles)}"
                f"{did_you_mean(word, titles)}"
            )
        wanted |= found
    return {slug: title for slug, title in titles.items() if not wanted or slug in wanted}


# Zhao et al. 2025 ---------------------------------------------------------------------------------

_MODELS = {
    "roberta-base": "RoBERTa-base",
    "roberta-large": "RoBERTa-large",
    "llama2-7b": "Llama2-7B",
    "llama2-70b": "Llama2-70B",
    "llama3-8b": "Llama3-8B",
    "llama3-70b": "Llama3-70B",
    "gpt35": "GPT-3.5",
    "gpt4": "GPT-4",
    "gpt4o": "GPT-4o",
}
# Column → data set, its task there, the task that the run is asked for.
_ZHAO3_COLUMNS = {
    "20class-dual": ("20ng", "20class", "20class"),
    "7class-dual": ("20ng", "7class", "7class"),
    "20class-one": ("20ng", "20class", "both"),
    "7class-one": ("20ng", "7class", "both"),
    "intent-dual": ("massive", "intent", "intent"),
    "slots-dual": ("massive", "slots", "slots"),
    "intent-one": ("massive", "intent", "both"),
    "slots-one": ("massive", "slots", "both"),
}


def _zhao3(smoke: bool) -> Table:
    cells = []
    for row, figures in published.ZHAO3.items():
        for column, figure in zip(published.ZHAO3_COLUMNS, figures, strict=True):
            data, _, asked = _ZHAO3_COLUMNS[column]
            cells.append(_cell(row, column, _zhao3_run(row, data, asked, smoke), figure / 100))
    return Table(
        name="zhao3",
        title="Zhao et al. 2025, Table 3: accuracy of classes and intent, F1 of slots, per cent",
        rows={row: _zhao3_title(row) for row in published.ZHAO3},
        columns={column: column.replace("-", " ") for column in published.ZHAO3_COLUMNS},
        cells=tuple(cells),
        percent=True,
        smoke=smoke,
    )


def _cell(row: str, column: str, run: Run, figure: float | None) -> Cell:
    task = _ZHAO3_COLUMNS[column][1]
    metric = "slot_f1" if task == "slots" else "accuracy"
    return Cell(row, column, run, ("eval", task), metric, figure)


def _parts(row: str) -> tuple[str, str]:
    """`llama2-7b-five-shot-tuned → llama2-7b, five-shot-tuned`."""
    model = max((name for name in _MODELS if row.startswith(name)), key=len)
    return model, row.removeprefix(model).removeprefix("-")


def _zhao3_title(row: str) -> str:
    model, rest = _parts(row)
    rest = rest.replace("-shot", "_shot").replace("no-", "no_").replace("-", ", ")
    return f"{_MODELS[model]} {rest}".replace("_shot", "-shot").replace("_", " ").strip()


def _zhao3_run(row: str, data: str, asked: str, smoke: bool) -> Run:
    model, rest = _parts(row)
    words = [shots for shots in ("zero_shot", "five_shot") if shots.replace("_", "-") in rest]
    if "no-tuning" in rest:
        words.append("no_tuning")
    words.append(f"task={asked}")
    name = f"{row}-{data}-both" if asked == "both" else f"{row}-{asked}"
    return _run(name, f"{model.replace('-', '_')}_{data}.py", words, smoke)


def _run(
    name: str,
    file: str,
    words: Iterable[str],
    smoke: bool,
    overrides: tuple[str, ...] = (),
    group: str = "",
) -> Run:
    if not smoke:
        return Run(name, f"{file}:{','.join(words)}", overrides, group)
    # A few steps: batches padded to one shape cost less than a program for each shape.
    overrides = ("train.max_shapes=1", *overrides)
    return Run(f"smoke-{name}", f"{file}:{','.join((*words, 'smoke'))}", overrides, group)


# The same columns, with models that a laptop tunes ------------------------------------------------

# Row → its title, the files' first part, the words of the variant, and seeds of each run.
_LAPTOP = {
    "zero-shot-no-tuning": ("SmolLM2 0-shot, no tuning", "smollm2", ("no_tuning",), 1),
    "five-shot-no-tuning": ("SmolLM2 5-shot, no tuning", "smollm2", ("five_shot", "no_tuning"), 1),
    "zero-shot-tuned": ("SmolLM2 0-shot, tuned", "smollm2", (), 1),
    "five-shot-tuned": ("SmolLM2 5-shot, tuned", "smollm2", ("five_shot",), 1),
    "text-alone-tuned": ("SmolLM2 text alone, tuned", "smollm2", ("without",), 1),
    "zero-shot-lora": ("SmolLM2 0-shot, LoRA", "smollm2", ("lora",), 1),
    "five-shot-lora": ("SmolLM2 5-shot, LoRA", "smollm2", ("five_shot", "lora"), 1),
    "text-alone-lora": ("SmolLM2 text alone, LoRA", "smollm2", ("without", "lora"), 1),
    "zero-shot-qlora": ("SmolLM2 0-shot, QLoRA", "smollm2", ("qlora",), 1),
    "text-alone-prefix": ("SmolLM2 text alone, prefix", "smollm2", ("without", "prefix"), 1),
    "head": ("SmolLM2 with heads", "smollm2", ("head",), 1),
    "minilm": ("MiniLM-L6 with heads", "minilm", (), 3),
}


def _laptop(smoke: bool) -> Table:
    cells = []
    for row, (_, model, words, seeds) in _LAPTOP.items():
        for column, (data, _, asked) in _ZHAO3_COLUMNS.items():
            name = f"{row}-{data}-both" if asked == "both" else f"{row}-{asked}"
            run = _run(name, f"{model}_{data}.py", (*words, f"task={asked}"), smoke)
            run = dataclasses.replace(run, seeds=1 if smoke else seeds)
            cells.append(_cell(row, column, run, None))
    return Table(
        name="laptop",
        title="On two cores of a laptop: accuracy of classes and intent, F1 of slots, per cent",
        rows={row: title for row, (title, *_) in _LAPTOP.items()},
        columns={column: column.replace("-", " ") for column in _ZHAO3_COLUMNS},
        cells=tuple(cells),
        percent=True,
        smoke=smoke,
        own=True,
    )


# Beiranvand et al. 2025 ---------------------------------------------------------------------------

_BASES = {
    "distilbert": "DistilBERT",
    "bert-base": "BERT-base",
    "electra-small": "ELECTRA-small",
    "electra-base": "ELECTRA-base",
}
_METRICS = {"cola": "matthews", "stsb": "pearson"}  # else accuracy
_TASKS = {"trec": "fine"}  # of the two that TREC has, the one with 50 classes; else the column's
# The smoke variants combine three modules, the table needs all nine.
_MODULES = ("cola", "mnli-mm", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")


def _attens2(smoke: bool) -> Table:
    cells = [
        cell
        for base, methods in published.ATTENS2.items()
        for method in METHODS
        for cell in _attens_row(base, method, published.ATTENS2_COLUMNS, methods[method], smoke)
    ]
    return _attens_table(
        "attens2",
        "Beiranvand et al. 2025, Table 2: GLUE's dev splits, accuracy, Matthews of CoLA",
        {_slug(base, method): f"{_BASES[base]} {method}" for base in _BASES for method in METHODS},
        cells,
        smoke,
    )


def _attens3(smoke: bool) -> Table:
    base = "bert-base"
    cells = [
        cell
        for method in METHODS
        for cell in _attens_row(
            base, method, published.ATTENS3_COLUMNS, published.ATTENS3[method], smoke
        )
    ]
    return _attens_table(
        "attens3",
        "Beiranvand et al. 2025, Table 3: targets outside the modules, accuracy, Pearson of STS-B",
        {_slug(base, method): f"{_BASES[base]} {method}" for method in METHODS},
        cells,
        smoke,
    )


def _attens_k(smoke: bool) -> Table:
    """AttEns over the number of modules. Of these the paper gives no figures that we have."""
    cells = [
        Cell(
            f"{base}-k{k}",
            column,
            _attens_run(base, column, smoke, sweep=True),
            ("attens", column, "by_k", str(k)),
            _METRICS.get(column, "accuracy"),
            None,
        )
        for base in _BASES
        for k in KS
        for column in published.ATTENS2_COLUMNS
    ]
    return _attens_table(
        "attens_k",
        "Beiranvand et al. 2025: AttEns with k modules on GLUE's dev splits",
        {f"{base}-k{k}": f"{_BASES[base]} k={k}" for base in _BASES for k in KS},
        cells,
        smoke,
    )


def _attens_table(
    name: str, title: str, rows: Mapping[str, str], cells: Iterable[Cell], smoke: bool
) -> Table:
    cells = tuple(cells)
    columns = dict.fromkeys(cell.column for cell in cells)
    return Table(name, title, rows, {column: column for column in columns}, cells, smoke=smoke)


def _slug(base: str, method: str) -> str:
    return f"{base}-{method.lower().replace('_', '-')}"


def _attens_row(
    base: str, method: str, columns: Iterable[str], figures: Iterable[float | None], smoke: bool
) -> Iterator[Cell]:
    for column, figure in zip(columns, figures, strict=True):
        path = ("attens", _TASKS.get(column, column), "methods", method)
        metric = _METRICS.get(column, "accuracy")
        run = _attens_run(base, column, smoke)
        yield Cell(_slug(base, method), column, run, path, metric, figure)


def _attens_run(base: str, column: str, smoke: bool, sweep: bool = False) -> Run:
    """One target on one base: its methods, or its numbers of modules, all at once."""
    overrides: tuple[str, ...] = ()
    if smoke:
        modules = tuple(f"glue/{name}" for name in _MODULES)
        overrides = (f"attens.modules={modules}",)
        overrides += (f"attens.sweep={KS[:-1]}",) if sweep else ()
    words = [f"task={column}", *(["k=sweep"] if sweep else [])]
    name = f"attens-{base}-{column}" + ("-k" if sweep else "")
    group = f"smoke-attens-{base}" if smoke else f"attens-{base}"
    file = f"attens_{base.replace('-', '_')}.py"
    return _run(name, file, words, smoke, overrides=overrides, group=group)
