"""Chat tokens around a prompt: those of known models, or what a checkpoint's own template writes.

    start [system_start system system_end] query_start query end lead answer

A checkpoint's template (Jinja, rendered in transformers' sandbox) is asked once, with words that
stand for the parts of a prompt; what it writes around them is the wrapper. Texts never pass through
it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxclf.core.errors import InputError

# Writes a conversation as the model expects it, up to where its answer begins if `True`.
Render = Callable[[Sequence[Mapping[str, str]], bool], str]


class Wrapper(NamedTuple):
    """What stands around the parts of a prompt, see above."""

    start: str
    system_start: str
    system_end: str
    query_start: str
    end: str
    lead: str


KNOWN = {
    "none": Wrapper("", "", "\n", "", "", " "),
    "llama2": Wrapper("[INST] ", "<<SYS>>\n", "\n<</SYS>>\n\n", "", " [/INST]", " "),
    "llama3": Wrapper(
        start="",
        system_start="<|start_header_id|>system<|end_header_id|>\n\n",
        system_end="<|eot_id|>",
        query_start="<|start_header_id|>user<|end_header_id|>\n\n",
        end="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        lead="",  # the header ends in a blank line, which no space follows
    ),
}
_SYSTEM, _QUERY, _ANSWER = "JAXCLFSYSTEM", "JAXCLFQUERY", "JAXCLFANSWER"


@functools.lru_cache(maxsize=4)  # texts with examples of their own have a prompt each
def of_template(render: Render, has_system: bool) -> Wrapper:
    """What a template writes around a prompt; raises InputError where it keeps no place for it.

    A template that knows no system part gets it at the beginning of the query.
    """
    query = {"role": "user", "content": _QUERY}
    before, end = _around(render([query], True), _QUERY)
    answered, _ = _around(
        render([query, {"role": "assistant", "content": _ANSWER}], False), _ANSWER
    )
    between = answered.partition(_QUERY)[2]
    lead = between.removeprefix(end) if between.startswith(end) else ""
    if not has_system:
        return Wrapper("", "", "", before, end, lead)
    try:
        whole = render([{"role": "system", "content": _SYSTEM}, query], True)
        start, rest = _around(whole, _SYSTEM)
        between, _ = _around(rest, _QUERY)
    except InputError:
        return Wrapper(before, "", "\n", "", end, lead)
    return Wrapper(start, "", between, "", end, lead)


def _around(text: str, word: str) -> tuple[str, str]:
    """What stands before and after a word that stands once."""
    before, found, after = text.partition(word)
    if not found or word in after:
        raise InputError(
            "prompt.wrapper=checkpoint: the tokenizer's chat template does not write a message as "
            "it is, once. Choose prompt.wrapper=none, or another checkpoint"
        )
    return before, after
