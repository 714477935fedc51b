"""Every field of a config, once: its default, what it may hold, what it means and what it affects.

`jaxclf.config.defaults.default` makes a config of it, `validation` checks one, `identity` says
whether two are of the same run, and `reference` writes docs/reference/config.md.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import ml_collections

from jaxclf.config import rules
from jaxclf.config.rules import Rule, boolean, matching, one_of, pairs, real, tuple_of, whole

Value = bool | int | float | str | tuple[Any, ...]
# "run": what is learned or asked. "report": how long it goes on and how it is evaluated, which a
# continuation may change. "nothing": no figure of the report, only speed or what is shown or kept.
Affects = Literal["run", "report", "nothing"]


@dataclasses.dataclass(frozen=True)
class Field:
    """`default` gives the type; `secret`: a wrong value is not repeated in the error."""

    default: Value
    rule: Rule
    meaning: str
    affects: Affects = "run"
    secret: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    meaning: str
    fields: Mapping[str, Field]


GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli-mm", "qnli", "rte", "wnli")
# What `data.task` may name besides "both", for every value of `data.name`.
TASKS = {
    "builtin": ("intent", "slots"),
    "massive": ("intent", "slots"),
    "20ng": ("7class", "20class"),
    "file": ("label", "slots", "auto"),
    "imdb": ("imdb",),
    "ag_news": ("ag_news",),
    "trec": ("coarse", "fine"),
    **{f"glue/{name}": (name,) for name in GLUE},
}
HUB = "hub:"  # before the id of a data set of the hub
# What `prompt.template` may name.
TEMPLATES = ("listing", "plain", "labels", "definitions", "choice", "cloze")

_AXIS = rules.or_value(-1, "the devices that the other axes leave", whole(1))
_SCHEDULE = one_of("constant", "linear", "cosine")
_DATA_SETS = tuple_of(
    "names of data sets such as ('glue/rte',)", lambda name: type(name) is str and name != ""
)


def tasks_of(name: str) -> tuple[str, ...]:
    """What `data.task` may name for a data set, besides "both"."""
    return TASKS["file" if name.startswith(HUB) else name]


def _is_data_set(value: Any) -> bool:
    return type(value) is str and (value in TASKS or (value.startswith(HUB) and value != HUB))


_DATA_SET = Rule(f"one of {', '.join(TASKS)}, or {HUB}OWNER/NAME", _is_data_set, tuple(TASKS))


def _is_trained(value: Any) -> bool:
    if type(value) is not str or not value:
        return False
    if value.startswith("last:"):
        return matching("", r"last:[1-9][0-9]*").holds(value)
    return rules.is_pattern(value)


def _are_templates(values: Any) -> bool:
    if type(values) is not tuple or not all(type(name) is str for name in values):
        return False
    return len({*values}) == len(values) and {*values} <= {*TEMPLATES}


def _is_separator(value: Any) -> bool:
    return type(value) is str and (len(value) <= 1 or value in ("tab", "\\t"))


# How your own files may be written; jaxclf.data.readers reads them.
FORMATS = ("jsonl", "json", "csv", "parquet", "arrow", "xlsx", "txt", "fasttext", "conll")

_DATA = Group(
    "The texts and their labels.",
    {
        "name": Field(
            "builtin",
            _DATA_SET,
            "Data set; `file`: your own files; `hub:OWNER/NAME`: one of the hub, or a folder.",
        ),
        "root": Field(
            "",
            rules.folder,
            "Folder with the data sets. Empty: `$JAXCLF_DATA_ROOT`, else the public source.",
        ),
        "task": Field(
            "both",
            rules.nonempty,
            "One task of the data set by its name, or `both` at once. Your own files, `auto`: what "
            "they have labels for.",
        ),
        "on_defect": Field(
            "fail", one_of("fail", "skip"), "On a malformed record, end the run or skip it."
        ),
        "limit": Field(0, whole(0), "Records kept of each split; 0: all."),
        "train_limit": Field(0, whole(0), "Records kept of the training split; 0: all."),
        "train_examples": Field(
            0,
            whole(0),
            "Training records kept to learn from few labels, drawn by seed and class; 0: all.",
        ),
        "dev_fraction": Field(
            0.0,
            real(0, 1),
            "Share of the training split held out as dev where the data set has no dev split.",
        ),
        "test_fraction": Field(
            0.0,
            real(0, 1),
            "Share of the training split held out as test where there is neither dev nor test.",
        ),
        "split_seed": Field(0, whole(0), "Seed of the splits that are drawn from train."),
        "folds": Field(
            0,
            whole(0, 1000),
            "Parts that train is divided into, of which `fold` is the test split; 0: none.",
        ),
        "fold": Field(
            0, whole(0), "`folds`: the number of the part that is the test split, from 0."
        ),
        "truncate": Field(
            True,
            boolean,
            "Truncate texts that do not fit; false: an error that names the record.",
        ),
        "check_counts": Field(
            True, boolean, "Require that the sizes of the splits are the published ones."
        ),
        "train": Field(
            "",
            rules.file,
            "Your own: the training split, a file, folder or archive. Of the hub: a split's name.",
        ),
        "dev": Field("", rules.file, "Your own: the dev split."),
        "test": Field("", rules.file, "Your own: the test split."),
        "text": Field(
            "",
            rules.column,
            "Your own: column of the text, or several (`title,body`). Empty: found out.",
        ),
        "label": Field(
            "",
            rules.column,
            "Your own: column of the label, or several of 0 and 1. Empty: found out.",
        ),
        "slots": Field("", rules.column, "Your own: column of the slots, one tag a word."),
        "id": Field("", rules.column, "Your own: column of the record's id. Empty: file and line."),
        "pair": Field("", rules.column, "Your own: column of a second text, for encoders."),
        "group": Field(
            "",
            rules.column,
            "Your own: column whose equal values stay on one side of a split that is drawn.",
        ),
        "kind": Field(
            "auto",
            one_of("auto", "class", "multilabel", "regression"),
            "Your own: what a label is.",
        ),
        "label_names": Field(
            "",
            rules.file,
            "Your own: file with what the numbers of labels or tags stand for, one a line or JSON.",
        ),
        "label_separator": Field(
            "",
            rules.text,
            "Your own: what stands between several labels in one column. Empty: found out.",
        ),
        "decimal": Field(
            "auto",
            one_of("auto", ".", ","),
            "Your own: what stands before the decimals of numbers.",
        ),
        "format": Field(
            "",
            one_of("", *FORMATS),
            "Your own: how files are written. Empty: by the ending of their names.",
        ),
        "encoding": Field(
            "", rules.text, "Your own: encoding of text files, such as `cp1252`. Empty: found out."
        ),
        "separator": Field(
            "",
            Rule("one character, tab, or nothing", _is_separator),
            "Your own: what separates the fields of csv files. Empty: found out.",
        ),
        "header": Field(
            "auto",
            one_of("auto", "yes", "no"),
            "Your own: whether csv files have a header. `no`: columns are called 1, 2 and so on.",
        ),
        "quotes": Field(
            "auto",
            one_of("auto", "doubled", "backslash", "none"),
            "Your own: how a quote inside quotes is written in csv files; `none`: quotes are text.",
        ),
        "sheet": Field("", rules.text, "Your own: the sheet of a spreadsheet. Empty: the first."),
        "hub_config": Field("", rules.text, "Of the hub: the data set's configuration."),
    },
)

_PROMPT = Group(
    "What a generative model reads around a text.",
    {
        "template": Field(
            "listing",
            one_of(*TEMPLATES),
            "`listing`: as Zhao et al. 2025. `plain`: text and cue alone. `labels`: an instruction "
            "with the labels. `definitions`: with what each label means. `choice`: the answer is "
            "an option's letter. `cloze`: a sentence that the label completes.",
        ),
        "definitions": Field(
            "", rules.file, '`template=definitions`: JSON file `{"label": "what it means"}`.'
        ),
        "cloze": Field(
            "$text\nThis text is about",
            rules.text,
            "`template=cloze`: the sentence, which ends where the label goes.",
        ),
        "file": Field("", rules.file, "Your own template, in place of `template`."),
        "wrapper": Field(
            "none",
            one_of("none", "llama2", "llama3", "checkpoint"),
            "Chat tokens around the prompt. `checkpoint`: as its own chat template writes them.",
        ),
        "shots": Field(0, whole(0), "Solved examples in the prompt."),
        "choose": Field(
            "seed",
            one_of("seed", "balanced", "similar"),
            "How examples are chosen: at random by seed, evenly over the classes, or by similarity "
            "to the text.",
        ),
        "fresh_shots": Field(
            False, boolean, "New examples for every prompt, in place of one set a run."
        ),
        "styles": Field(
            (),
            Rule("templates such as ('listing', 'labels')", _are_templates),
            "Without tuning: several templates compared in one run. Empty: `template` alone.",
        ),
        "seeds": Field(1, whole(1), "Without tuning: sets of examples compared in one run."),
        "orders": Field(1, whole(1), "Without tuning: orders of each set compared in one run."),
        "chain_of_thought": Field(
            False,
            boolean,
            "Without tuning: the model reasons step by step first; the answer is read after its "
            "cue alone.",
        ),
        "chain_of_thought_tokens": Field(
            256, whole(1), "Tokens of the reasoning at most, beside those of the answer."
        ),
        "slots": Field("names", one_of("names", "bio"), "How slots are written in prompts."),
    },
)

_TOKENIZER = Group(
    "How texts become tokens.",
    {
        "path": Field(
            "",
            rules.folder,
            "Folder of a tokenizer. Empty: the checkpoint's, else one trained on the training "
            "split.",
        ),
        # Byte-level: one entry per byte and some for the special tokens.
        "vocab_size": Field(2048, whole(260), "Size of a tokenizer trained in the run."),
    },
)

_MODEL = Group(
    "The model and how it computes.",
    {
        "name": Field(
            "llama_tiny",
            rules.text,
            "Dimensions by name. Empty: those of the checkpoint.",
        ),
        "checkpoint": Field(
            "",
            rules.text,
            "A run or model of ours, a Hugging Face directory, a hub id, or `package:NAME/FILE`. "
            "Empty: a random start.",
        ),
        "layers": Field(
            0,
            whole(0),
            "Layers kept of the model or checkpoint, evenly spaced from the first to the last; 0: "
            "all.",
        ),
        "dtype": Field(
            "auto",
            one_of("auto", "float32", "bfloat16"),
            "Type of matrix products. `auto`: float32 on CPU, bfloat16 on TPU and GPU.",
        ),
        "param_dtype": Field(
            "float32", one_of("float32", "bfloat16"), "Type that parameters are stored in."
        ),
        "gradient_checkpointing": Field(
            True,
            boolean,
            "Compute the layers again in the backward pass, to save memory. False: on GPU and TPU "
            "the cheap parts alone.",
        ),
        "checkpoint_layers": Field(
            1,
            whole(1),
            "With `gradient_checkpointing`: layers of a group, of which only the first one's input "
            "is kept; the others are computed once more. The root of their number needs least.",
        ),
        "unroll": Field(
            1, whole(1), "Layers compiled one by one; on a CPU more of them run faster."
        ),
        "dropout": Field(
            -1.0,
            rules.or_value(-1, "the model's own", real(0, 1)),
            "Dropout of every kind that the model has.",
        ),
        "output": Field(
            "auto",
            one_of("auto", "generate", "head"),
            "How labels come: a decoder or a T5 writes them (`generate`) or scores them by a head "
            "on its last token (`head`). `auto`: as the checkpoint has it; encoders have heads.",
        ),
        "heads": Field(
            "keep",
            one_of("keep", "new"),
            "What becomes of the checkpoint's own classification heads.",
        ),
        "attention": Field(
            "auto",
            one_of("auto", "plain", "cudnn", "splash"),
            "Attention kernel: `cudnn` on GPU, `splash` on TPU. `auto`: that of the backend.",
            affects="nothing",
        ),
        "quantize": Field(
            "none", one_of("none", "int8", "int4", "nf4"), "Quantization of a frozen base."
        ),
        "num_virtual_tokens": Field(
            0, whole(0), "`tune=prefix`: trained keys and values before every layer's own."
        ),
    },
)

_MESH = Group(
    "Over how many devices each axis shards. The product is the number of devices.",
    {
        "data": Field(1, _AXIS, "Rows of a batch; parameters are replicated.", affects="nothing"),
        "fsdp": Field(-1, _AXIS, "Rows of a batch, and parameters.", affects="nothing"),
        "tensor": Field(1, _AXIS, "Attention heads and feed-forward.", affects="nothing"),
        "sequence": Field(1, _AXIS, "Tokens of a row, and parameters.", affects="nothing"),
        "dcn_data": Field(
            0,
            whole(0),
            "Slices that `data` is divided over first, so that only sums of gradients cross the "
            "network between them; 0: the TPU slices that there are.",
            affects="nothing",
        ),
    },
)

_LORA = Group(
    "Adapters, for `tune=lora`, `dora` and `lora_fa`.",
    {
        "target_modules": Field(
            "q,v",
            rules.patterns("names or patterns such as q,v or all-linear"),
            "Modules with an adapter, comma-separated: names, path patterns, or `all-linear`; "
            "experts (`gate,up,down`) by name alone.",
        ),
        "layers_to_transform": Field(
            (),
            tuple_of("numbers of layers such as (0, 1)", whole(0).holds),
            "Layers with adapters, counted from 0. Empty: all.",
        ),
        "rank": Field(8, whole(1), "Rank of the addition."),
        "alpha": Field(16.0, real(0, above=True), "The addition is scaled by alpha / rank."),
        "rank_pattern": Field(
            (),
            pairs('pairs such as (("layers/0/.*", 4),)', whole(1)),
            "Path patterns where the rank differs; the first that matches counts.",
        ),
        "alpha_pattern": Field(
            (),
            pairs('pairs such as (("q", 8.0),)', real(0, above=True)),
            "Path patterns where alpha differs; the first that matches counts.",
        ),
        "dropout": Field(0.0, real(0, 1), "Dropout of what enters the addition."),
        "use_rslora": Field(False, boolean, "Scale by alpha / sqrt(rank) instead."),
        "modules_to_save": Field(
            "heads/.*,pooler/.*",
            rules.patterns("path patterns such as heads/.*,pooler/.*"),
            "Parameters trained and saved beside the adapters, as comma-separated path patterns.",
        ),
        "loraplus_lr_ratio": Field(
            1.0,
            real(0, above=True),
            "LoRA+: the ratio of the learning rate of matrix B to that of A.",
        ),
    },
)

_TRAIN = Group(
    "Batches, optimizer and what is saved.",
    {
        # Where the schedule depends on them, `identity` keeps a continuation from changing these.
        "steps": Field(1000, whole(0), "Optimizer steps.", affects="report"),
        "epochs": Field(
            0.0,
            real(0),
            "Passes over the training split, in place of `steps`; 0: `steps` counts.",
            affects="report",
        ),
        "batch_size": Field(
            8,
            whole(1),
            "Examples a step over all devices; with `pack`, rows a step.",
        ),
        "max_length": Field(1024, whole(1), "Tokens of one example at most."),
        "row_length": Field(0, whole(0), "Tokens of a packed row; 0: `max_length`."),
        "pack": Field(False, boolean, "Put several examples into a row."),
        "group_by_length": Field(
            False, boolean, "Make batches of examples of similar length, which need less padding."
        ),
        "share_prefix": Field(
            True, boolean, "Compute what prompts have in common once a batch, exactly."
        ),
        "max_shapes": Field(
            24,
            whole(1),
            "Compiled shapes of batches at most; past that, a new one is padded to another.",
            affects="nothing",
        ),
        "gradient_accumulation_steps": Field(
            1, whole(1), "Micro-batches that a step's batch is split into."
        ),
        "learning_rate": Field(1e-3, real(0), "Peak learning rate."),
        "schedule": Field("constant", _SCHEDULE, "Learning rate after the warm-up."),
        "warmup_steps": Field(0, whole(0), "Steps of linear warm-up from 0."),
        "weight_decay": Field(
            0.0, real(0), "AdamW's decoupled decay; norms and biases are left alone."
        ),
        "adam_beta1": Field(0.9, real(0, 1), "Adam's decay of the first moment."),
        "adam_beta2": Field(0.999, real(0, 1), "Adam's decay of the second moment."),
        "adam_epsilon": Field(1e-8, real(0, above=True), "Adam's epsilon."),
        "adam_moments": Field(
            "float32",
            one_of("float32", "int8"),
            "Type of Adam's moments; `int8`: 8 bits and a scale for each block, a quarter of the "
            "memory.",
        ),
        "stochastic_rounding": Field(
            False,
            boolean,
            "Round updated bfloat16 parameters up or down by chance, so that small steps are made "
            "in the mean.",
        ),
        "average": Field(
            "none",
            one_of("none", "ema"),
            "Average of the trained parameters over the steps, which is evaluated and kept in "
            "their place; `ema`: exponential moving average.",
        ),
        "average_decay": Field(
            0.999,
            real(0, 1),
            "`average=ema`: share of the average that a step leaves; less in the first steps.",
        ),
        "max_grad_norm": Field(
            1.0, real(0), "Gradients are clipped to this global norm; 0: no clipping."
        ),
        "trained": Field(
            "all",
            Rule("all, last:N, biases, norms or a regular expression", _is_trained),
            "`tune=full`: which parameters train: `all`, `last:N` layers, `biases`, `norms`, or a "
            "pattern of parameter paths.",
        ),
        "prng": Field(
            "threefry2x32",
            one_of("threefry2x32", "rbg"),
            "Generator that draws dropout; `rbg` is faster, but on a mesh each device draws all.",
        ),
        "vocabulary": Field(
            "all",
            one_of("all", "used"),
            "Token embeddings that train; `used`: those of tokens in the training texts.",
        ),
        "max_skipped": Field(
            0,
            whole(0),
            "Non-finite steps in a row that are skipped before the run stops; 0: stop at the "
            "first.",
        ),
        "logging_steps": Field(10, whole(1), "Steps between logged metrics.", affects="nothing"),
        "eval_steps": Field(0, whole(0), "Steps between evaluations on dev; 0: only at the end."),
        "patience": Field(
            0,
            whole(0),
            "Evaluations on dev in a row that are worse than the best, after which training ends; "
            "0: it goes on to the last step.",
        ),
        "save_steps": Field(
            500, whole(0), "Steps between checkpoints; 0: only at the end.", affects="nothing"
        ),
        "keep": Field(1, whole(1), "Latest checkpoints kept, beside the best.", affects="nothing"),
        "metric_for_best_model": Field(
            "",
            rules.text,
            "Dev metric that chooses the best checkpoint, such as `intent.accuracy`; of errors "
            "such as `label.mse` the smallest is best. Empty: the mean of the main metrics.",
        ),
    },
)

_LOSS = Group(
    "What is minimized.",
    {
        "label_smoothing": Field(0.0, real(0, 1), "Probability spread over the other labels."),
        "balanced": Field(
            False, boolean, "Weigh classes inversely to their training counts (encoders)."
        ),
        "class_weights": Field(
            (),
            pairs('pairs such as (("spam", 3.0), ("ham", 1.0))', real(0)),
            "Weights of classes, multiplied with `balanced`; others have 1 (encoders).",
        ),
        "task_weights": Field(
            (),
            tuple_of("positive numbers, one a task", real(0, above=True).holds),
            "Weights of the tasks' losses. Empty: all the same.",
        ),
    },
)

_DISTIL = Group(
    "A teacher whose probabilities are learned beside the labels, by models with heads.",
    {
        "teacher": Field(
            "",
            rules.text,
            "A trained classifier, or several with commas between, whose probabilities are "
            "averaged; also a folder of `jaxclf.prompt` with an `api.model`. Empty: none.",
        ),
        "unlabelled": Field(
            "",
            rules.text,
            "Further texts to learn from, labelled by the teacher alone: a file with the columns "
            "`data.text`, `data.pair` and `data.id`, or `rest`, the training records that "
            "`data.train_examples` and `data.train_limit` leave out.",
        ),
        "temperature": Field(
            2.0,
            real(0, above=True),
            "Both sides' probabilities are softened by it; 1: as they are.",
        ),
        "weight": Field(
            0.5,
            rules.share,
            "Weight of the teacher's word in the mean over texts; that of a label is 1 less this.",
        ),
        "folder": Field(
            "",
            rules.folder,
            "Folder where the teacher's probabilities are kept, for several runs to share. Empty: "
            "WORKDIR/teacher.",
            affects="nothing",
        ),
    },
)

_ATTENS = Group(
    "The ensemble of adapters of Beiranvand et al. 2025.",
    {
        "modules": Field(
            (), _DATA_SETS, "Data sets whose adapters are combined. Empty: no ensemble."
        ),
        "targets": Field((), _DATA_SETS, "Data sets they are combined for. Empty: `data.name`."),
        "adapters": Field(
            "",
            rules.folder,
            "Folder with a run or a peft directory a module. Empty: WORKDIR/adapters.",
        ),
        "k": Field(0, whole(0), "Modules combined, the target's own first; 0: all."),
        "sweep": Field(
            (),
            tuple_of("numbers of modules such as (3, 5)", whole(0).holds),
            "Further numbers of modules to compare.",
        ),
        "baselines": Field(
            True,
            boolean,
            "Also measure the untrained head, one layer on the base, and the target's adapter.",
        ),
        "tokens": Field(
            "mean",
            one_of("mean", "max", "min", "last"),
            "Pooling of the last hidden states over tokens; `last`: for decoders.",
        ),
        "padding": Field(
            0,
            whole(0),
            "Pad texts to this many tokens, and pool the padding too; 0: no padding is pooled.",
        ),
        "over": Field("mean", one_of("mean", "max", "min"), "Pooling over the modules' outputs."),
        "combine": Field(
            "sum",
            one_of("sum", "mean", "product", "concat", "max", "min"),
            "How the modules' output meets the base's.",
        ),
        "norms": Field(
            "own", one_of("own", "shared"), "A LayerNorm for each place, or one at all places."
        ),
        "across": Field(
            "modules", one_of("modules", "batch"), "What the combiner's attention goes over."
        ),
        "heads": Field(4, whole(1), "Attention heads of the combiner."),
        "epochs": Field(20, whole(0), "Epochs of the combiner."),
        "batch_size": Field(16, whole(1), "Examples a step of the combiner."),
        "learning_rate": Field(2e-5, real(0), "Peak learning rate of the combiner."),
        "schedule": Field("constant", _SCHEDULE, "Learning rate of the combiner over its steps."),
        "weight_decay": Field(0.01, real(0), "Weight decay of the combiner."),
    },
)

_API = Group(
    "A model behind OpenAI's chat completions, for `jaxclf.prompt`.",
    {
        "model": Field("", rules.text, "The server's name for the model. Empty: none is asked."),
        "base_url": Field(
            "",
            matching(
                "an address such as http://localhost:8000/v1, without a key or password in it",
                r"(https?://[^\s@?#]+)?",
            ),
            "The server's address. Empty: OpenAI's.",
            affects="nothing",
        ),
        "key_env": Field(
            "OPENAI_API_KEY",
            matching(
                "the name of an environment variable in capitals, such as OPENAI_API_KEY. The key "
                "itself belongs there, never into a config",
                r"[A-Z][A-Z0-9_]*",
            ),
            "Environment variable that holds the key.",
            affects="nothing",
            secret=True,  # perhaps it is the key itself
        ),
        "concurrency": Field(8, whole(1, 1000), "Requests in flight at once.", affects="nothing"),
        "timeout": Field(
            60.0,
            real(0, 86_401, above=True),
            "Seconds to wait for a whole answer.",
            affects="nothing",
        ),
        "retries": Field(
            6, whole(0), "Retries of a request, after growing pauses.", affects="nothing"
        ),
        "top_logprobs": Field(
            0,
            whole(0, 20),
            "Log-probabilities asked for of the likeliest tokens at each place of an answer, from "
            "which labels get probabilities; 0: none.",
        ),
        "max_characters": Field(
            0,
            whole(0),
            "Characters kept of a longer text, from its start; 0: all.",
        ),
        "input_price": Field(
            0.0, real(0), "Price of a million input tokens; 0: unknown.", affects="report"
        ),
        "output_price": Field(
            0.0, real(0), "Price of a million output tokens; 0: unknown.", affects="report"
        ),
        "max_cost": Field(
            0.0,
            real(0),
            "Most that a run's answers may cost, by the server's counts of tokens: nothing is sent "
            "if the estimate is higher, and no more when the answers come to it; 0: no limit.",
            affects="nothing",
        ),
    },
)

_EVAL = Group(
    "How a model is evaluated.",
    {
        "batch_size": Field(32, whole(1), "Examples in a batch.", affects="report"),
        "split": Field(
            "test",
            one_of("train", "dev", "heldout", "test"),
            "Split that the report is of.",
            affects="report",
        ),
        "limit": Field(
            0,
            whole(0),
            "Dev records scored during training and for the temperature; 0: all.",
            affects="report",
        ),
        "fallback": Field(
            "none",
            one_of("none", "first", "nearest", "random"),
            "Label of an output that cannot be parsed; `none`: it counts as wrong.",
            affects="report",
        ),
        "first_line": Field(
            False,
            boolean,
            "Read a class from the first line of an output alone.",
            affects="report",
        ),
        "max_new_tokens": Field(
            0,
            whole(0),
            "Tokens of an output; 0: the longest answer of the label set or training split.",
            affects="report",
        ),
        "temperature": Field(
            "dev",
            one_of("none", "dev"),
            "Split that the temperature of class probabilities is fitted on.",
            affects="report",
        ),
        "target_accuracy": Field(
            0.95,
            real(0, 1),
            "The report gives the confidence threshold from which this share of answers is right; "
            "0: none is given.",
            affects="report",
        ),
        "decoding": Field(
            "free",
            one_of("free", "constrained", "score"),
            "`free`: any text, read for labels. `constrained`: the likeliest label, token by "
            "token. `score`: the probability of every label.",
            affects="report",
        ),
        "score_bound": Field(
            1e-3,
            real(0, 1),
            "`decoding=score`: share of the labels' probability that may stay unread; 0: none.",
            affects="report",
        ),
        "normalize": Field(
            "none",
            one_of("none", "length", "pmi", "contextual"),
            "`decoding=score`: what scores are normalized by.",
            affects="report",
        ),
    },
)

SCHEMA: dict[str, Field | Group] = {
    "seed": Field(
        0,
        whole(0, 2**32 - 1),  # what the generators of JAX, NumPy and grain take
        "Draws records, examples of prompts, the order of batches and random starts.",
    ),
    "data": _DATA,
    "prompt": _PROMPT,
    "tokenizer": _TOKENIZER,
    "model": _MODEL,
    "mesh": _MESH,
    "tune": Field(
        "full",
        one_of("full", "lora", "dora", "lora_fa", "bitfit", "prefix", "head", "none"),
        "What trains: all parameters, adapters, biases, a prefix, the heads, or nothing (prompts).",
    ),
    "lora": _LORA,
    "train": _TRAIN,
    "loss": _LOSS,
    "distil": _DISTIL,
    "attens": _ATTENS,
    "api": _API,
    "eval": _EVAL,
}


def _flat() -> Iterator[tuple[str, Field]]:
    for name, entry in SCHEMA.items():
        if isinstance(entry, Field):
            yield name, entry
        else:
            yield from ((f"{name}.{field}", found) for field, found in entry.fields.items())


FIELDS: dict[str, Field] = dict(_flat())
"""Every field by its whole name, such as `train.steps`."""


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a config below its groups, as (`train.steps`, value)."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
