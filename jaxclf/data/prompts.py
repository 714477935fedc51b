"""Prompts: everything around an example's text, and the answer that is to follow it.

A prompt is two runs of pieces, before and after the text. Pieces of a template may hold a
model's special tokens; pieces of data (label names, the texts and answers of examples) may not,
whatever they contain, so each piece says which it is.

    build(config.prompt, "Utter", (intent,), shots=())
    before  You will be given an utterance. … ['alarm_set', 'play_music'] … Beginning of <<Utter>>
    text    wake me at five
    after   End of <<Utter>>
            Label:
    answer(record, (intent,))  →  alarm_set

Source of the blocks, their order, delimiters and cues: Zhao et al. 2025, Listings 1 to 12.
The wording is ours.
"""

import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxclf.data.tasks import OTHER, Record, Task, plain_slots
from jaxclf.errors import InputError

SLOT_FORMATS = ("names", "bio")
"""Slots as plain names, where equal neighbours form one span, or as BIO tags."""


@dataclass(frozen=True)
class Piece:
    """A run of text. `is_data`: special tokens in it are plain text."""

    text: str
    is_data: bool


@dataclass(frozen=True)
class Prompt:
    """What stands before and after the text, and the `lead` between the prompt and the answer.

    system: without a wrapper, how many characters of `before` are the system part.
    """

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    lead: str = " "
    system: int = 0

    def render(self, text: str) -> str:
        """The prompt for `text` as a person reads it."""
        return "".join(
            [
                *(piece.text for piece in self.before),
                text,
                *(piece.text for piece in self.after),
            ]
        )

    def messages(self, text: str) -> list[dict[str, str]]:
        """The prompt for `text` as messages of a chat: the system part, if any, and the rest.

        For prompts without a wrapper: the server adds the chat tokens of its model. A lone
        surrogate, which UTF-8 has no form for, becomes a question mark.
        """
        whole = self.render(text).encode("utf-8", "replace").decode()
        parts = {"system": whole[: self.system].strip(), "user": whole[self.system :]}
        return [{"role": role, "content": part} for role, part in parts.items() if part]


PromptSource = Prompt | Callable[[int, Record], Prompt]
"""One prompt for all records, or one for each by its number."""


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


class _Wrapper(NamedTuple):
    """A chat format: `start` [`system_start` system `system_end`] `query_start` query `end`."""

    start: str
    system_start: str
    system_end: str
    query_start: str
    end: str
    lead: str


_WRAPPERS = {
    "none": _Wrapper("", "", "\n", "", "", " "),
    "llama2": _Wrapper("[INST] ", "<<SYS>>\n", "\n<</SYS>>\n\n", "", " [/INST]", " "),
    "llama3": _Wrapper(
        start="",
        system_start="<|start_header_id|>system<|end_header_id|>\n\n",
        system_end="<|eot_id|>",
        query_start="<|start_header_id|>user<|end_header_id|>\n\n",
        end="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        lead="",  # the header ends in a blank line, which no space follows
    ),
}


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
) -> Prompt:
    """The prompt that asks `tasks` about a text, with `shots` as solved examples.

    Reads the fields `template`, `file`, `wrapper` and `slots`. Raises InputError for an unknown
    name in them, an unusable template file, a task that no prompt can ask and a shot without gold.
    """
    template = _chosen("prompt.template", prompt_config.template, ("listing", "plain"))
    slot_format = _chosen("prompt.slots", prompt_config.slots, SLOT_FORMATS)
    wrapper = _WRAPPERS[_chosen("prompt.wrapper", prompt_config.wrapper, tuple(_WRAPPERS))]
    for task in tasks:
        if task.kind not in ("class", "slots"):
            raise InputError(
                f"task {task.name} is of kind {task.kind}; a prompt asks for a class or for slots"
            )
    system: list[Piece] = []
    if prompt_config.file:
        path = Path(prompt_config.file)
        before, after = _own_template(path, domain, tasks, shots, slot_format)
    elif template == "plain":
        before, after = _plain(tasks, shots, slot_format)
    else:
        system, before, after = _listing(domain, tasks, shots, slot_format)
    if system:
        system = [_fixed(wrapper.system_start), *system, _fixed(wrapper.system_end)]
    return Prompt(
        _joined([_fixed(wrapper.start), *system, _fixed(wrapper.query_start), *before]),
        _joined([*after, _fixed(wrapper.end)]),
        wrapper.lead,
        sum(len(piece.text) for piece in system),
    )


def answer(record: Record, tasks: Sequence[Task], slot_format: str = "names") -> str:
    """The text a model should generate for `record`.

    One class is the bare label; slots are a JSON list with one label per word; several tasks are
    one JSON object: `{"task1": "alarm_set", "task2": ["Other", "time"]}`. A word outside every
    slot is "Other", or "O" in BIO format. Raises InputError where the record has no gold.
    """
    values = [_answer_value(record, task, slot_format) for task in tasks]
    if len(values) > 1:
        fields = {f"task{number}": value for number, value in enumerate(values, 1)}
        return json.dumps(fields, ensure_ascii=False)
    (value,) = values
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def has_gold(record: Record, tasks: Sequence[Task]) -> bool:
    """Whether `record` carries a label for every task."""
    return all(record.labels.get(task.name) is not None for task in tasks)


def _fixed(text: str) -> Piece:
    return Piece(text, is_data=False)


def _data(text: str) -> Piece:
    return Piece(text, is_data=True)


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Pieces as a tokenizer should see them: neighbours of one kind joined, empty ones dropped.

    A space before data moves into it: " sci" is one token, as after the cue before an answer.
    """
    joined: list[Piece] = []
    for piece in pieces:
        text = piece.text
        if joined and joined[-1].is_data == piece.is_data:
            text = joined.pop().text + text
        elif joined and piece.is_data and joined[-1].text.endswith(" "):
            joined[-1] = _fixed(joined[-1].text[:-1])
            text = " " + text
        if text:
            joined.append(Piece(text, piece.is_data))
    return tuple(piece for piece in joined if piece.text)


def _listing(
    domain: str, tasks: Sequence[Task], shots: Sequence[Record], slot_format: str
) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """The blocks of Listings 1 to 12 as (system part, before the text, after the text)."""
    given = _NOUNS[domain]
    system: list[Piece] = []
    query = [_fixed(f"You will be given {given}.\n")]
    if len(tasks) == 1:
        query += _question(tasks[0], domain, slot_format)
        target = "label" if tasks[0].kind == "class" else "list of labels"
    else:
        number = {2: "two", 3: "three"}.get(len(tasks), str(len(tasks)))
        fields = ", ".join(f'"task{n}": "task{n}_label"' for n in range(1, len(tasks) + 1))
        query.append(
            _fixed(
                f"There are {number} classification tasks to solve. "
                f"Output {number} JSON fields in this format: {{{fields}}}\n"
            )
        )
        if domain == "Utter":  # Listings 11 and 12 end the system part here
            query[-1] = _fixed(query[-1].text.removesuffix("\n"))
            system, query = query, []
        for n, task in enumerate(tasks, 1):
            query += [_fixed(f"task{n}: "), *_question(task, domain, slot_format)]
        target = f"{number} JSON fields"
    if shots:
        query.append(_fixed("Here are examples that are classified correctly.\n"))
        query += _examples(domain, tasks, shots, slot_format)
        query.append(_fixed("\n"))
    query.append(
        _fixed(
            f"Output the {target} only and nothing else.\n"
            f"Now it is your turn.\nBeginning of <<{domain}>>\n"
        )
    )
    return system, query, [_fixed(f"\nEnd of <<{domain}>>\n{_cue(tasks)}")]


def _question(task: Task, domain: str, slot_format: str) -> list[Piece]:
    """The sentences that say what to do for one task, with its label list."""
    noun = _NOUNS[domain].split(maxsplit=1)[1]
    labels = _data(_label_list(task, slot_format))
    if task.kind == "class":
        instruction = _fixed(f"Classify the {noun} as one of the labels in this list: ")
        return [instruction, labels, _fixed("\n")]
    outside = OTHER if slot_format == "names" else "O"
    return [
        _fixed(f"Label each word of the {noun} with one of the labels in this list: "),
        labels,
        _fixed(
            f"\nA word that fits none of them gets the label '{outside}'. "
            "Put the labels of all words, in their order, into one list.\n"
        ),
    ]


def _label_list(task: Task, slot_format: str) -> str:
    """The labels as a Python list: `['alarm_set', 'play_music']`."""
    if task.kind == "slots" and slot_format == "bio":
        return str([f"{prefix}-{name}" for name in task.labels for prefix in "BI"])
    return str(list(task.labels))


def _examples(
    domain: str, tasks: Sequence[Task], shots: Sequence[Record], slot_format: str
) -> list[Piece]:
    """Solved examples between their delimiters, each as the real text and answer will stand."""
    pieces = [_fixed("Beginning of <<Examples>>\n")]
    for shot in shots:
        pieces += [
            _fixed(f"Beginning of <<{domain}>>\n"),
            _data(shot.text),
            _fixed(f"\nEnd of <<{domain}>>\n{_cue(tasks)} "),
            _data(answer(shot, tasks, slot_format)),
            _fixed("\n"),
        ]
    return [*pieces, _fixed("End of <<Examples>>")]


def _plain(
    tasks: Sequence[Task], shots: Sequence[Record], slot_format: str
) -> tuple[list[Piece], list[Piece]]:
    """Text and cue only, for models trained from scratch, which can use no instruction."""
    cue = f"\n{_cue(tasks)}"
    before: list[Piece] = []
    for shot in shots:
        gold = _data(answer(shot, tasks, slot_format))
        before += [_data(shot.text), _fixed(f"{cue} "), gold, _fixed("\n\n")]
    return before, [_fixed(cue)]


def _own_template(
    path: Path,
    domain: str,
    tasks: Sequence[Task],
    shots: Sequence[Record],
    slot_format: str,
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
    values = {"text": [], "examples": examples}
    for number, task in enumerate(tasks, 1):
        name = "labels" if len(tasks) == 1 else f"labels{number}"
        values[name] = [_data(_label_list(task, slot_format))]

    parts: list[list[Piece]] = [[]]  # split where $text stands
    seen: set[str] = set()
    position = 0
    for match in string.Template.pattern.finditer(template):
        parts[-1].append(_fixed(template[position : match.start()]))
        position = match.end()
        name = match["named"] or match["braced"]
        if match["escaped"] is not None:
            parts[-1].append(_fixed("$"))
        elif name not in values:
            line = template.count("\n", 0, match.start()) + 1
            possible = ", ".join(f"${known}" for known in values)
            raise InputError(
                f"{path}:{line}: {f'${name}' if name else 'a lone $'} is no placeholder; "
                f"possible: {possible}, and $$ for a dollar sign"
            )
        elif name == "text":
            parts.append([])
        else:
            parts[-1] += values[name]
        seen.add(name or "")
    parts[-1].append(_fixed(template[position:]))
    if len(parts) != 2:
        raise InputError(
            f"{path}: $text stands {len(parts) - 1} times; expected once, where the text goes"
        )
    if shots and "examples" not in seen:
        raise InputError(
            f"{path}: prompt.shots is {len(shots)}, but $examples does not stand in the template. "
            "Add it or set prompt.shots=0."
        )
    return parts[0], parts[1]


def _cue(tasks: Sequence[Task]) -> str:
    """The words after which the answer starts."""
    if len(tasks) > 1:
        return "Output:"
    return "Label:" if tasks[0].kind == "class" else "Slots:"


def _answer_value(record: Record, task: Task, slot_format: str) -> str | list[str]:
    gold = record.labels.get(task.name)
    if task.kind == "class" and isinstance(gold, str):
        return gold
    if task.kind == "slots" and isinstance(gold, tuple):
        return list(gold if slot_format == "bio" else plain_slots(gold))
    raise InputError(
        f"record {record.id}: {task.name} is {gold!r}; an answer needs its gold {task.kind}"
    )


def _chosen(field: str, value: str, possible: Sequence[str]) -> str:
    if value not in possible:
        raise InputError(f"{field} is {value!r}; possible: {', '.join(possible)}")
    return value
