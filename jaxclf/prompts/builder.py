"""Prompts: everything around an example's text, and the answer that is to follow it.

    build(config.prompt, "Utter", (intent,), shots=())
    before  You will be given an utterance. … ['alarm_set', 'play_music'] … Beginning of <<Utter>>
    text    wake me at five
    after   End of <<Utter>>
            Label:
    answer(record, (intent,))  →  alarm_set

Source of the blocks, their order, delimiters and cues: Zhao et al. 2025, Listings 1 to 12.
The wording is ours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxclf.config.schema import TEMPLATES
from jaxclf.core.errors import InputError
from jaxclf.data.tasks import OTHER, Record, SlotFormat, Task
from jaxclf.prompts import styles, wrappers
from jaxclf.prompts.template import (
    SLOT_FORMATS,
    Piece,
    Prompt,
    PromptSource,
    answer,
    cue,
    data,
    filled,
    fixed,
    joined,
    label_list,
)
from jaxclf.prompts.wrappers import Render

__all__ = [
    "SLOT_FORMATS",
    "Listing",
    "Piece",
    "Prompt",
    "PromptSource",
    "answer",
    "build",
    "listing",
]


class Listing(NamedTuple):
    """What one of the twelve published prompts asks: see `listing`."""

    domain: str
    tasks: tuple[str, ...]
    shots: int


_LISTINGS = {
    1: Listing("News", ("20class",), 0),
    2: Listing("News", ("7class",), 0),
    3: Listing("News", ("20class",), 5),
    4: Listing("News", ("7class",), 5),
    5: Listing("News", ("7class", "20class"), 0),
    6: Listing("News", ("7class", "20class"), 5),
    7: Listing("Utter", ("intent",), 0),
    8: Listing("Utter", ("intent",), 5),
    9: Listing("Utter", ("slots",), 0),
    10: Listing("Utter", ("slots",), 5),
    11: Listing("Utter", ("intent", "slots"), 0),
    12: Listing("Utter", ("intent", "slots"), 5),
}

_NOUNS = {"News": "a news text", "Utter": "an utterance", "Text": "a text"}


def listing(number: int) -> Listing:
    """Domain, task names and number of examples of a listing: `9 → ("Utter", ("slots",), 0)`."""
    if number not in _LISTINGS:
        raise InputError(f"listing {number} does not exist; there are Listings 1 to 12")
    return _LISTINGS[number]


def build(
    prompt_config: Any,
    domain: str,
    tasks: Sequence[Task],
    shots: Sequence[Record] = (),
    render: Render | None = None,
) -> Prompt:
    """The prompt that asks `tasks` about a text, with `shots` as solved examples.

    Reads the fields `template`, `file`, `wrapper`, `slots`, `chain_of_thought` and what a template
    needs besides. `render`: the tokenizer's chat template, for `wrapper=checkpoint`. A file of
    one's own has to ask for the chain of thought itself. Raises InputError for an unknown name in
    them, an unusable template file, a task that no prompt can ask and a shot without gold.
    """
    template = _chosen("prompt.template", prompt_config.template, TEMPLATES)
    slot_format: SlotFormat = prompt_config.slots
    _chosen("prompt.slots", slot_format, SLOT_FORMATS)
    name = _chosen("prompt.wrapper", prompt_config.wrapper, (*wrappers.KNOWN, "checkpoint"))
    if name == "checkpoint" and render is None:
        raise InputError(
            "prompt.wrapper=checkpoint needs a tokenizer with a chat template, and this one has "
            "none. Name a checkpoint that was tuned to chat, or set prompt.wrapper=none"
        )
    for task in tasks:
        if task.kind not in ("class", "slots"):
            raise InputError(
                f"task {task.name} is of kind {task.kind}; a prompt asks for a class or for slots"
            )
    system: list[Piece] = []
    think = prompt_config.get("chain_of_thought", False)  # older runs do not have it
    lettered = template == "choice" and not prompt_config.file
    if prompt_config.file:
        path = Path(prompt_config.file)
        before, after = _own_template(path, domain, tasks, shots, slot_format)
    elif template == "plain":
        before, after = _plain(tasks, shots, slot_format)
    elif template == "cloze":
        before, after = styles.cloze(prompt_config.cloze, tasks, shots)
    elif template == "listing":
        system, before, after = _listing(domain, tasks, shots, slot_format, think)
    else:
        meanings = None
        if template == "definitions":
            meanings = styles.read_meanings(prompt_config.definitions, tasks)
        before, after = styles.instructed(
            tasks, shots, slot_format, meanings=meanings, lettered=lettered, think=think
        )
    if name == "checkpoint":
        assert render is not None
        wrapper = wrappers.of_template(render, bool(system))
    else:
        wrapper = wrappers.KNOWN[name]
    if system:
        system = [fixed(wrapper.system_start), *system, fixed(wrapper.system_end)]
    return Prompt(
        joined([fixed(wrapper.start), *system, fixed(wrapper.query_start), *before]),
        joined([*after, fixed(wrapper.end)]),
        wrapper.lead,
        lettered,
        cue(tasks, lettered) if think else "",
        sum(len(piece.text) for piece in system),
    )


def _listing(
    domain: str,
    tasks: Sequence[Task],
    shots: Sequence[Record],
    slot_format: SlotFormat,
    think: bool,
) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """The blocks of Listings 1 to 12 as (system part, before the text, after the text)."""
    given = _NOUNS[domain]
    system: list[Piece] = []
    query = [fixed(f"You will be given {given}.\n")]
    if len(tasks) == 1:
        query += _question(tasks[0], domain, slot_format)
        target = "label" if tasks[0].kind == "class" else "list of labels"
    else:
        number = {2: "two", 3: "three"}.get(len(tasks), str(len(tasks)))
        fields = ", ".join(f'"task{n}": "task{n}_label"' for n in range(1, len(tasks) + 1))
        query.append(
            fixed(
                f"There are {number} classification tasks to solve. "
                f"Output {number} JSON fields in this format: {{{fields}}}\n"
            )
        )
        if domain == "Utter":  # Listings 11 and 12 end the system part here
            query[-1] = fixed(query[-1].text.removesuffix("\n"))
            system, query = query, []
        for n, task in enumerate(tasks, 1):
            query += [fixed(f"task{n}: "), *_question(task, domain, slot_format)]
        target = f"{number} JSON fields"
    if shots:
        query.append(fixed("Here are examples that are classified correctly.\n"))
        query += _examples(domain, tasks, shots, slot_format)
        query.append(fixed("\n"))
    query.append(
        fixed(
            styles.closing(target, cue(tasks), think)
            + f"Now it is your turn.\nBeginning of <<{domain}>>\n"
        )
    )
    end = styles.THOUGHTS if think else cue(tasks)
    return system, query, [fixed(f"\nEnd of <<{domain}>>\n{end}")]


def _question(task: Task, domain: str, slot_format: SlotFormat) -> list[Piece]:
    """The sentences that say what to do for one task, with its label list."""
    noun = _NOUNS[domain].split(maxsplit=1)[1]
    labels = data(label_list(task, slot_format))
    if task.kind == "class":
        instruction = fixed(f"Classify the {noun} as one of the labels in this list: ")
        return [instruction, labels, fixed("\n")]
    outside = OTHER if slot_format == "names" else "O"
    return [
        fixed(f"Label each word of the {noun} with one of the labels in this list: "),
        labels,
        fixed(
            f"\nA word that fits none of them gets the label '{outside}'. "
            "Put the labels of all words, in their order, into one list.\n"
        ),
    ]


def _examples(
    domain: str, tasks: Sequence[Task], shots: Sequence[Record], slot_format: SlotFormat
) -> list[Piece]:
    """Solved examples between their delimiters, each as the real text and answer will stand."""
    pieces = [fixed("Beginning of <<Examples>>\n")]
    for shot in shots:
        pieces += [
            fixed(f"Beginning of <<{domain}>>\n"),
            data(shot.text),
            fixed(f"\nEnd of <<{domain}>>\n{cue(tasks)} "),
            data(answer(shot, tasks, slot_format)),
            fixed("\n"),
        ]
    return [*pieces, fixed("End of <<Examples>>")]


def _plain(
    tasks: Sequence[Task], shots: Sequence[Record], slot_format: SlotFormat
) -> tuple[list[Piece], list[Piece]]:
    """Text and cue only, for models trained from scratch, which can use no instruction."""
    end = f"\n{cue(tasks)}"
    before: list[Piece] = []
    for shot in shots:
        gold = data(answer(shot, tasks, slot_format))
        before += [data(shot.text), fixed(f"{end} "), gold, fixed("\n\n")]
    return before, [fixed(end)]


def _own_template(
    path: Path,
    domain: str,
    tasks: Sequence[Task],
    shots: Sequence[Record],
    slot_format: SlotFormat,
) -> tuple[list[Piece], list[Piece]]:
    """Fill a user's template file: UTF-8 text with `$` placeholders, as in `string.Template`.

    `$text` (exactly once) is the text to label; `$labels` the label list of the only task, or
    `$labels1`, `$labels2` … those of several; `$examples` the solved examples between their
    delimiters; `$$` a dollar sign. Space at the end of the file is dropped, so that the answer
    follows the cue; best start a line with `$text`, as a space before it is a token by itself.
    Raises InputError with file and line for anything else.
    """
    try:
        template = path.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompt.file {path} cannot be read: {error}") from error
    examples = _examples(domain, tasks, shots, slot_format) if shots else []
    values = {"examples": examples}
    for number, task in enumerate(tasks, 1):
        name = "labels" if len(tasks) == 1 else f"labels{number}"
        values[name] = [data(label_list(task, slot_format))]
    before, after, seen = filled(template, values, str(path))
    if shots and "examples" not in seen:
        raise InputError(
            f"{path}: prompt.shots is {len(shots)}, but $examples does not stand in the template. "
            "Add it or set prompt.shots=0."
        )
    return before, after


def _chosen(field: str, value: str, possible: Sequence[str]) -> str:
    if value not in possible:
        raise InputError(f"{field} is {value!r}; possible: {', '.join(possible)}")
    return value
