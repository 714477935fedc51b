"""Defaults of every experiment, and the arguments that choose a variant of one.

A config file calls `parse` on the text after its name (`NAME.py:five_shot,task=both,smoke`) and
`default` for the fields, then states what differs.
"""

import difflib

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """Every field a run reads, with its default."""
    config = ConfigDict()
    config.seed = 0

    config.data = data = ConfigDict()
    data.name = "builtin"  # builtin | massive | 20ng | glue/NAME | imdb | ag_news | trec | file
    data.root = ""  # local root; empty: $JAXCLF_DATA_ROOT, else the public source
    data.task = "both"  # one task of the data set, or both
    data.on_defect = "fail"  # fail | skip: what a malformed record does
    data.limit = 0  # records kept per split; 0: all
    data.train_limit = 0  # records kept of train; 0: all
    data.train_examples = 0  # few labels: so many of these, drawn by seed and class; 0: all
    data.dev_fraction = 0.0  # share of train held out as dev where the data set has none
    data.truncate = True  # cut texts that do not fit; False: an error that names the record
    data.check_counts = True  # split sizes must equal the published ones
    data.train = ""  # name="file": jsonl, csv or parquet
    data.dev = ""
    data.test = ""
    data.text = "text"  # name="file": columns
    data.label = "label"
    data.slots = ""
    data.id = ""
    data.pair = ""  # column of a second text (encoders)
    data.kind = "class"  # of the label: class | multilabel | regression

    config.prompt = prompt = ConfigDict()
    # listing (Zhao et al. 2025) | plain (text and cue only) | labels | definitions | choice (the
    # answer is an option's letter) | cloze (a sentence that the label completes)
    prompt.template = "listing"
    prompt.definitions = ""  # template="definitions": JSON file {"label": "what it means"}
    prompt.cloze = "$text\nThis text is about"  # template="cloze": ends where the label goes
    prompt.file = ""  # your own template, instead of these
    prompt.wrapper = "none"  # none | llama2 | llama3
    prompt.shots = 0
    prompt.choose = "seed"  # seed | balanced (over the classes) | similar (to the text to label)
    prompt.fresh_shots = False  # new examples for every prompt instead of one set per run
    prompt.styles = ()  # without tuning: several templates in one run; empty: prompt.template
    prompt.seeds = 1  # without tuning: so many sets of examples in one run
    prompt.orders = 1  # without tuning: so many orders of each
    prompt.think = False  # without tuning: thoughts first; the answer is read after its cue alone
    prompt.think_tokens = 256  # at most, beside those of the answer
    prompt.slots = "names"  # names | bio

    config.tokenizer = tokenizer = ConfigDict()
    tokenizer.path = ""  # directory; empty: the checkpoint's, else trained on the train split
    tokenizer.vocab_size = 2048  # of a tokenizer trained in the run

    config.model = model = ConfigDict()
    model.name = "llama_tiny"
    model.checkpoint = ""  # empty: random start; ours; a Hugging Face directory or hub id
    model.dtype = "auto"  # of matmuls: float32 on CPU, bfloat16 on TPU and GPU
    model.param_dtype = "float32"
    model.remat = True  # layers again in the backward pass; False: on GPU and TPU cheap parts alone
    model.unroll = 1  # layers compiled one by one; on a CPU more of them run faster
    model.dropout = -1.0  # of every kind the model has; below 0: the model's own
    model.heads = "keep"  # keep | new: what becomes of the checkpoint's own heads (encoders)

    model.attention = "auto"  # plain | cudnn (GPU) | splash (TPU); auto: that of the backend
    model.quantise = "none"  # of the frozen base: none | int8 | int4 | nf4
    model.prefix = 0  # trained keys and values before every layer's own; for tune="prefix"

    config.mesh = mesh = ConfigDict()  # how many devices cut what; -1: those that others leave
    mesh.data = 1  # rows of a batch; parameters are repeated
    mesh.fsdp = -1  # rows of a batch; and parameters
    mesh.tensor = 1  # heads and feed-forward
    mesh.sequence = 1  # tokens of a row; and parameters

    config.tune = "full"  # full | lora | dora | lora_fa | bitfit | prefix | head | none (prompts)
    config.lora = lora = ConfigDict()
    lora.targets = "q,v"  # modules, comma-separated: names, path patterns, or all-linear
    lora.layers = ()  # empty: all
    lora.rank = 8
    lora.alpha = 16.0  # the addition is scaled by alpha / rank
    lora.rank_pattern = ()  # (("layers/0/.*", 4), …) where it differs
    lora.alpha_pattern = ()
    lora.dropout = 0.0  # of what enters the addition
    lora.rslora = False  # scale by alpha / sqrt(rank)
    lora.saved = "heads/.*,pooler/.*"  # parameters trained along, as path patterns
    lora.b_rate = 1.0  # LoRA+: how many times faster b learns than a

    config.train = train = ConfigDict()
    train.steps = 1000
    train.epochs = 0.0  # above 0: steps are counted by these instead
    train.batch_size = 8  # examples a step; rows a step when packed
    train.max_length = 1024  # tokens of one example
    train.row_length = 0  # tokens of a packed row; 0: max_length
    train.pack = False  # several examples a row
    train.bucket = False  # batches of examples of like length, which pads less
    train.share_prefix = True  # compute what prompts have in common once a batch, exactly
    train.max_shapes = 24  # compiled shapes of batches; past that, a new one is padded to another
    train.accumulate = 1  # micro-batches a step
    train.learning_rate = 1e-3
    train.schedule = "constant"  # constant | linear | cosine
    train.warmup_steps = 0
    train.weight_decay = 0.0
    train.b1 = 0.9
    train.b2 = 0.999
    train.eps = 1e-8
    train.clip_norm = 1.0  # 0: no clipping
    train.trained = "all"  # all | last:N | biases | norms | a pattern of parameter paths
    train.prng = "threefry2x32"  # draws dropout; rbg is faster, but on a mesh each device draws all
    train.vocabulary = "all"  # used: token embeddings train where a training text has the token
    train.max_skipped = 0  # non-finite steps skipped before the run stops; 0: stop at the first
    train.log_every = 10
    train.eval_every = 0  # steps between evaluations on dev; 0: only at the end
    train.checkpoint_every = 500
    train.keep = 1  # latest checkpoints kept, beside the best
    train.best_metric = ""  # e.g. intent.accuracy; empty: the mean of the tasks' main metrics

    config.loss = loss = ConfigDict()
    loss.label_smoothing = 0.0
    loss.balanced = False  # class weights inverse to the classes' counts (encoders)
    loss.class_weights = ()  # (("spam", 3.0), …), beside or instead of these
    loss.task_weights = ()  # one a task; empty: all the same

    config.attens = attens = ConfigDict()
    attens.modules = ()  # data sets whose adapters are combined; empty: no ensemble
    attens.targets = ()  # data sets they are combined for; empty: data.name
    attens.adapters = ""  # folder with a run or a peft directory a module; empty: WORKDIR/adapters
    attens.k = 0  # modules combined, the target's own first; 0: all
    attens.sweep = ()  # further numbers of modules to compare
    attens.baselines = True  # the untrained head, one layer on the base, and the target's adapter
    attens.tokens = "mean"  # of the last hidden states: mean | max | min | last (decoders)
    attens.padding = 0  # above 0: texts padded to this many tokens, which count too
    attens.over = "mean"  # of the modules' outputs: mean | max | min
    attens.combine = "sum"  # with the base: sum | mean | product | concat | max | min
    attens.norms = "own"  # own | shared: one LayerNorm at all places
    attens.across = "modules"  # modules | batch: what attention goes over
    attens.heads = 4
    attens.epochs = 20
    attens.batch_size = 16
    attens.learning_rate = 2e-5
    attens.schedule = "constant"  # constant | linear | cosine
    attens.weight_decay = 0.01

    config.api = api = ConfigDict()  # a model behind OpenAI's chat completions, for jaxclf.prompt
    api.model = ""  # by the server's name for it; empty: none
    api.base_url = ""  # such as http://localhost:8000/v1 of vLLM; empty: OpenAI's
    api.key_env = "OPENAI_API_KEY"  # environment variable that holds the key
    api.concurrency = 8  # requests under way at once
    api.timeout = 60.0  # seconds without an answer
    api.retries = 6  # of one request, after growing pauses
    api.max_characters = 0  # of a text; longer ones are cut at their end; 0: none are
    api.input_price = 0.0  # per million tokens; 0: unknown
    api.output_price = 0.0
    api.max_cost = 0.0  # nothing is sent if the estimate is above; 0: no limit

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 32
    evaluation.split = "test"
    evaluation.limit = 0  # records of dev scored during training and for the temperature; 0: all
    evaluation.fallback = "none"  # none | first | nearest | random: what an unparsed output becomes
    evaluation.first_line = False  # a class is read from an output's first line alone
    evaluation.max_new_tokens = 0  # 0: the longest answer of the label set or train split
    evaluation.temperature = "dev"  # none | dev: where that of class probabilities is fitted
    evaluation.wanted_accuracy = 0.95  # reported: the confidence to answer from; 0: not reported
    # free: any text is read for labels | constrained: among the labels | score: p of every label
    evaluation.decoding = "free"
    evaluation.score_bound = 1e-3  # share of the labels' probability left unread; 0: none
    evaluation.normalise = "none"  # of scores: none | length | pmi | contextual

    return config.lock()


def parse(
    argument: str,
    tasks: tuple[str, ...],
    shots: bool = True,
    adapters: bool = True,
    ks: tuple[str, ...] = (),
    prompts: bool = True,
    instructions: bool = False,
) -> ConfigDict:
    """Read `five_shot,task=both,lora,smoke` into `shots`, `task`, `tune` and `smoke`.

    `tasks`: the values that `task=` may take, the default first; `ks`: those of `k=`; `shots`,
    `adapters`, `prompts`: whether examples, adapters, prompting without tuning are known.
    `instructions`: the words `with` and `without` choose `template`. Raises ValueError naming the
    word, what is possible and what is nearest, or the two words that exclude each other.
    """
    chosen = ConfigDict({"shots": 0, "task": tasks[0], "tune": "full", "k": "", "smoke": False})
    chosen.template = "listing"
    words = {"smoke": ("smoke", True)}
    if adapters:
        words |= {"lora": ("tune", "lora"), "qlora": ("tune", "qlora")}
    if prompts:
        words |= {"no_tuning": ("tune", "none")}
    if shots:
        words |= {"zero_shot": ("shots", 0), "five_shot": ("shots", 5)}
    words |= {f"task={task}": ("task", task) for task in tasks}
    words |= {f"k={k}": ("k", k) for k in ks}
    if instructions:
        words |= {"with": ("template", "listing"), "without": ("template", "plain")}
    given = {}
    for word in filter(None, map(str.strip, argument.split(","))):
        if word not in words:
            near = difflib.get_close_matches(word, words, n=1)
            raise ValueError(
                f"config argument {word!r} is not known; possible: {', '.join(words)}"
                + (f". Did you mean {near[0]!r}?" if near else "")
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
    """Apply the words `lora`, `qlora`, `no_tuning` and `smoke` to a run stated in full otherwise.

    `learning_rate` and `rank`: of adapters. A frozen base may be stored in `param_dtype`: no small
    update is lost in it.
    """
    if chosen.tune == "none":
        config.model.param_dtype = param_dtype
        prompted(config)
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


def _adapt(
    config: ConfigDict, tune: str, learning_rate: float, rank: int, param_dtype: str
) -> None:
    """Train adapters of every kernel of the layers; `qlora`: over a base in 4 bits."""
    config.tune = "lora"
    config.lora.targets = "all-linear"
    config.lora.rank = rank
    config.lora.alpha = 2.0 * rank
    config.lora.dropout = 0.05
    config.train.learning_rate = learning_rate
    config.model.param_dtype = param_dtype
    if tune == "qlora":
        config.model.quantise = "nf4"


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
    config.model.param_dtype = "float32"
    config.train.steps = 4
    config.train.batch_size = 2
    if not encoder:
        # The longest prompts: 600 tokens with all labels listed, 2,500 with five news texts.
        longest = 3072 if config.prompt.shots else 1024
        config.train.max_length = min(longest, config.train.max_length)
    config.train.row_length = 0
    config.train.warmup_steps = 0
    config.train.log_every = 1
    config.train.eval_every = 0
    config.eval.batch_size = 8
