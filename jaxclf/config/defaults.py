"""Defaults of every experiment, and the arguments that choose a variant of one.

A config file calls `parse` on the text after its name (`NAME.py:five_shot,task=both,smoke`) and
`default` for the fields, then states what differs.
"""

from ml_collections import ConfigDict

from jaxclf.config.schema import SCHEMA, Field
from jaxclf.core.suggest import did_you_mean


def default() -> ConfigDict:
    """Every field of `schema` with its default."""
    config = ConfigDict()
    for name, entry in SCHEMA.items():
        if isinstance(entry, Field):
            config[name] = entry.default
        else:
            fields = {field: found.default for field, found in entry.fields.items()}
            config[name] = ConfigDict(fields)
    return config.lock()


def parse(
    argument: str,
    tasks: tuple[str, ...],
    shots: bool = True,
    adapters: bool = True,
    ks: tuple[str, ...] = (),
    prompts: bool = True,
    instructions: bool = False,
    lean: bool = False,
    heads: bool = False,
) -> ConfigDict:
    """Read `five_shot,task=both,lora,smoke` into `shots`, `task`, `tune` and `smoke`.

    `tasks`: the values that `task=` may take, the default first; `ks`: those of `k=`; `shots`,
    `adapters`, `prompts`: whether examples, adapters, prompting without tuning are known.
    `lean`: whether full tuning in less memory is. `instructions`: the words `with` and `without`
    choose `template`. `heads`: whether a decoder may score labels (`head`), and only a prefix train
    (`prefix`). Raises ValueError naming the word, what is possible and what is nearest, or
    the two words that exclude each other.
    """
    chosen = ConfigDict({"shots": 0, "task": tasks[0], "tune": "full", "k": "", "smoke": False})
    chosen.template = "listing"
    chosen.output = "auto"
    words = {"smoke": ("smoke", True)}
    if adapters:
        words |= {"lora": ("tune", "lora"), "qlora": ("tune", "qlora")}
    if prompts:
        words |= {"no_tuning": ("tune", "none")}
    if lean:
        words |= {"lean": ("tune", "lean")}
    if heads:
        words |= {"head": ("output", "head"), "prefix": ("tune", "prefix")}
    if shots:
        words |= {"zero_shot": ("shots", 0), "five_shot": ("shots", 5)}
    words |= {f"task={task}": ("task", task) for task in tasks}
    words |= {f"k={k}": ("k", k) for k in ks}
    if instructions:
        words |= {"with": ("template", "listing"), "without": ("template", "plain")}
    given = {}
    for word in filter(None, map(str.strip, argument.split(","))):
        if word not in words:
            raise ValueError(
                f"config argument {word!r} is not known; possible: {', '.join(words)}"
                f"{did_you_mean(word, words)}"
            )
        name, value = words[word]
        if given.setdefault(name, word) != word:
            raise ValueError(f"config arguments {given[name]!r} and {word!r} exclude each other")
        chosen[name] = value
    return chosen


def finish(
    config: ConfigDict,
    chosen: ConfigDict,
    *,
    learning_rate: float = 2e-4,
    rank: int = 16,
    param_dtype: str = "float32",
) -> ConfigDict:
    """Apply the words that say what is tuned, and `smoke`, to a run stated in full otherwise.

    `learning_rate` and `rank`: of adapters. A frozen base may be stored in `param_dtype`: no small
    update is lost in it.
    """
    if chosen.tune == "none":
        config.model.param_dtype = param_dtype
        prompted(config)
    elif chosen.tune == "lean":
        lean(config)
    elif chosen.tune == "prefix":
        config.tune = "prefix"
        config.model.num_virtual_tokens = 16
        config.model.param_dtype = param_dtype
        config.train.learning_rate = 10 * learning_rate
    elif chosen.tune != "full":
        _adapt(config, chosen.tune, learning_rate, rank, param_dtype)
    if chosen.smoke:
        smoke(config, encoder=config.model.name in ENCODERS)
    return config


def prompted(config: ConfigDict) -> None:
    """Ask a model as it is."""
    config.tune = "none"
    config.eval.first_line = True
    config.eval.temperature = "none"  # nothing is fitted


def lean(config: ConfigDict) -> None:
    """Tune all parameters in a quarter of the memory: 6 bytes each and a little, not 16 and more.

    Parameters and gradients have 2 bytes, moments one each. A step of 1e-6 is far below the spacing
    of bfloat16 numbers, so they are rounded by chance: in the mean none is lost.
    """
    config.model.param_dtype = "bfloat16"
    config.model.checkpoint_layers = 5
    config.train.stochastic_rounding = True
    config.train.adam_moments = "int8"


def _adapt(
    config: ConfigDict, tune: str, learning_rate: float, rank: int, param_dtype: str
) -> None:
    """Train adapters of every kernel of the layers; `qlora`: over a base in 4 bits."""
    config.tune = "lora"
    config.lora.target_modules = "all-linear"
    config.lora.rank = rank
    config.lora.alpha = 2.0 * rank
    config.lora.dropout = 0.05
    config.train.learning_rate = learning_rate
    config.model.param_dtype = param_dtype
    if tune == "qlora":
        config.model.quantize = "nf4"


ENCODERS = (
    *("minilm_l6", "roberta_base", "roberta_large", "bert_base", "distilbert"),
    *("electra_small", "electra_base"),
)


def smoke(config: ConfigDict, encoder: bool = False) -> None:
    """Shrink a run to a few steps of a tiny random model on a few records, in place.

    Data set, tasks, prompt and everything after them stay those of the real run.
    """
    config.data.limit = 24
    config.tokenizer.path = ""  # trained in the run
    decoder = "t5_smoke" if config.model.name.startswith("flan_t5_") else "llama_smoke"
    config.model.name = "encoder_smoke" if encoder else decoder
    config.model.unroll = 1
    config.model.checkpoint = ""
    if config.prompt.wrapper == "checkpoint":
        config.prompt.wrapper = "none"
    if not config.train.stochastic_rounding:
        config.model.param_dtype = "float32"
    config.train.steps = 4
    config.train.batch_size = 2
    if not encoder:
        # The longest prompts: 600 tokens with all labels listed, 2,500 with five news texts.
        longest = 3072 if config.prompt.shots else 1024
        config.train.max_length = min(longest, config.train.max_length)
    config.train.row_length = 0
    config.train.warmup_steps = 0
    config.train.logging_steps = 1
    config.train.eval_steps = 0
    config.eval.batch_size = 8
