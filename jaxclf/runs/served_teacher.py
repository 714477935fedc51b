"""A model behind a server as teacher, asked as a folder of `jaxclf.prompt` asked it."""

import json
from pathlib import Path

from jaxclf.checkpoint import model_files
from jaxclf.config import loading
from jaxclf.core import files
from jaxclf.core.errors import InputError
from jaxclf.decoding.recipe import Recipe
from jaxclf.prompts.source import has_own_prompts
from jaxclf.remote.chat import Account, ChatClassifier
from jaxclf.runs.teacher import Labeller, Teacher


def asks_server(path: Path) -> bool:
    """Whether a folder is one in which a server's model was prompted."""
    config = path / "config.json"
    return config.is_file() and bool(loading.read(config).get("api", {}).get("model"))


def served_teacher(path: Path, source: str, folder: Path) -> Teacher:
    """The model that a folder of `jaxclf.prompt` asked, by the same prompt.

    `source`: as the config names it. `folder`: receives the answers, each before it is used. Its
    labels have probabilities where `api.top_logprobs` asks for them and the server gives them, else
    all of it. Raises InputError where each text has a prompt of its own.
    """
    model_files.check(path)
    config = loading.read_trained(path / "config.json")
    recipe = Recipe.load(path / "task.json")
    if has_own_prompts(config):
        raise own_prompts(source)

    def load() -> Labeller:
        account = Account(config.api, folder)
        asked = [config.api.model, account.endpoint.url, config.api.top_logprobs]
        asked += [config.api.max_characters, recipe.to_text()]
        name = files.digest_of(json.dumps(asked))
        return Labeller(ChatClassifier(recipe, account), name, batch_size=0)

    return Teacher(source, recipe, load)


def own_prompts(source: str) -> InputError:
    """The error where examples of a prompt would be drawn anew for texts that may be among them."""
    return InputError(
        f"distil.teacher {source} was asked with other examples in each prompt "
        "(prompt.fresh_shots or prompt.choose='similar'), which may be the very texts that it is "
        "to label. Choose a teacher with fixed examples, or none"
    )
