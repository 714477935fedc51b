"""Generated text → labels. No label is ever guessed silently: what is outside the set is UNPARSED.

    parse("sci.space", (topic,), 120).values          → {"topic": "sci.space"}
    parse("about sci.space", (topic,), 120).values    → {"topic": None}
    parse('{"task1": "alarm_set", "task2": ["Other", "ti', (intent, slots), 2).values
                                        → {"intent": "alarm_set", "slots": ("Other",)}

Only what a model generated comes here, never the prompt, so a text that holds a label or a JSON
object of its own cannot answer for the model.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from jaxclf.data.predictions import UNPARSED
from jaxclf.data.tasks import SlotFormat, Task, head_labels
from jaxclf.prompts.template import letters

Fallback = Literal["none", "first", "nearest", "random"]
Value = str | list[str | None] | None  # of a JSON field; None: neither a string nor a list


class Parsed(NamedTuple):
    """The labels in one output.

    values: task name → class name, slot names (or BIO tags) as many as were generated, or
    UNPARSED. unknown_slots: items taken as `Other` because they are no slot of the task, among
    those that stand for a word. guessed: tasks whose value is the fallback's, not the output's.
    """

    values: dict[str, str | tuple[str, ...] | None]
    unknown_slots: int = 0
    guessed: tuple[str, ...] = ()


def parse(
    text: str,
    tasks: Sequence[Task],
    n_words: int,
    slot_format: SlotFormat = "names",
    fallback: Fallback = "none",
    rng: random.Random | None = None,
    first_line: bool = False,
    lettered: bool = False,
    cue: str = "",
) -> Parsed:
    """Read the labels of `tasks` from one output; the output itself never makes it raise.

    One class task: the output, stripped, is a label or UNPARSED. One slots task: a JSON list with
    a name per word, of which the items before a break count. Several tasks: one JSON object with
    the fields task1, task2 …; each is judged alone, and of a broken or truncated object what can
    still be read is read. The first of duplicate fields counts.

    Of an untuned model's output less is read. `first_line`: for one class only the first line that
    is not empty. `cue`: only what stands after it, where a line begins with it, and for one class
    the first line of that; nothing where no line does.

    `lettered`: a class is its option's letter, `B`, `B)`, `(B)` or `B.`, or the whole option.

    `fallback` replaces an UNPARSED class: "first", the label mentioned first in the field (else in
    the output); "nearest", the label at the smallest edit distance, ties to the first in the list;
    "random", one drawn with `rng`, as in instruction-tuning practice.
    """
    if cue:
        found = re.search(rf"^[ \t]*{re.escape(cue)}", text, re.MULTILINE)
        text = text[found.end() :] if found else ""
    if (first_line or cue) and len(tasks) == 1 and tasks[0].kind == "class":
        text = text.strip().partition("\n")[0]
    fields = _read_fields(text, tasks)
    values: dict[str, str | tuple[str, ...] | None] = {}
    unknown_slots = 0
    guessed = []
    for task, value in zip(tasks, fields, strict=True):
        if task.kind == "class":
            written = value.strip() if isinstance(value, str) else None
            values[task.name] = _forms(task, lettered).get(written or "", UNPARSED)
            if values[task.name] is UNPARSED and fallback != "none":
                source = text if written is None else written
                values[task.name] = _fall_back(source, task.labels, fallback, rng)
                if values[task.name] is not UNPARSED:
                    guessed.append(task.name)
        elif task.kind == "slots":
            values[task.name] = UNPARSED
            if isinstance(value, list):
                known, other = slot_items(task, slot_format)
                items = [item.strip() if isinstance(item, str) else None for item in value]
                values[task.name] = tuple(
                    item if item is not None and item in known else other for item in items
                )
                unknown_slots += sum(item not in known for item in items[:n_words])
        else:
            raise ValueError(
                f"task {task.name} is of kind {task.kind}; outputs are read for class and slots"
            )
    return Parsed(values, unknown_slots, tuple(guessed))


@lru_cache
def slot_items(task: Task, slot_format: SlotFormat) -> tuple[frozenset[str], str]:
    """What an item of a slots answer may be, and which of these stands for no slot."""
    items = head_labels(task, slot_format)
    return frozenset(items), items[0]


def tag_per_word(
    items: Sequence[str], words: int, task: Task, slot_format: SlotFormat
) -> tuple[str, ...]:
    """Predicted slots, one a word: missing ones are outside, those past the words are cut."""
    _, outside = slot_items(task, slot_format)
    return (*items, *(outside,) * words)[:words]


@lru_cache
def _forms(task: Task, lettered: bool) -> dict[str, str]:
    """How each class may be written."""
    if not lettered:
        return {label: label for label in task.labels}
    return {
        form: label
        for label, letter in letters(task).items()
        for form in (letter, f"{letter})", f"({letter})", f"{letter}.", f"{letter}) {label}")
    }


# Fallbacks


def _fall_back(
    text: str, labels: tuple[str, ...], fallback: Fallback, rng: random.Random | None
) -> str | None:
    if fallback == "first":
        mention = _mention_pattern(labels).search(text)
        return mention[0] if mention else UNPARSED
    if fallback == "nearest":
        from rapidfuzz.distance import Levenshtein

        return min(labels, key=lambda label: Levenshtein.distance(text.strip(), label))
    if rng is None:
        raise ValueError('fallback "random" needs rng, seeded by the caller')
    return rng.choice(labels)


@lru_cache
def _mention_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Finds labels as whole names: "sci" neither in "science" nor in "sci.space", but in "sci."."""
    longest_first = sorted(labels, key=len, reverse=True)
    # A dot, dash or slash between two word characters joins them into one name.
    return re.compile(
        r"(?<!\w)(?<!\w[.\-/])"
        rf"(?:{'|'.join(re.escape(label) for label in longest_first)})"
        r"(?!\w)(?![.\-/]\w)"
    )


# A reader of JSON that goes as far as the text does. The standard library's keeps nothing of a
# broken text, recurses into nested brackets and converts numbers of any length.

_TOKEN = re.compile(
    r"""\s*+(?:
        (?P<string> "(?:[^"\\]|\\.)*+" | '(?:[^'\\]|\\.)*+')   # an unfinished string is no token
      | (?P<mark> [\[\]{},:])
      | (?P<bare> [^\s"'\[\]{},:]++)                           # a number, true, null, a bare word
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str | None  # string | mark | bare
    text: str  # of a string: what it says
    start: int  # its place in the output


def _tokens(text: str, start: int) -> Iterator[_Token]:
    """The tokens from `start` on, up to the end or the first thing that is none."""
    while match := _TOKEN.match(text, start):
        kind = match.lastgroup
        content = match["string"]
        yield _Token(
            kind, _unquoted(content) if content else match[0].strip(), match.start(kind or 0)
        )
        start = match.end()


def _unquoted(literal: str) -> str:
    """What a JSON or Python string literal says; an escape that neither knows stays as it is."""
    inside = literal[1:-1]
    if "\\" not in inside:
        return inside
    try:
        inside_json = re.sub(r'\\(.)|(")', _as_json_escape, inside, flags=re.DOTALL)
        return json.loads(f'"{inside_json}"', strict=False)
    except ValueError:
        return inside


def _as_json_escape(match: re.Match[str]) -> str:
    if match[2]:
        return '\\"'
    return "'" if match[1] == "'" else match[0]


def _read_fields(text: str, tasks: Sequence[Task]) -> list[Value]:
    """What the output says for each task, by the form of an answer for these tasks."""
    if len(tasks) > 1:
        fields = _read_object(text, [f"task{number}" for number in range(1, len(tasks) + 1)])
        return list(fields.values())
    if tasks[0].kind == "class":
        return [text]
    start = text.find("[")
    return [None if start < 0 else _read_value(_tokens(text, start))]


def _read_object(text: str, names: Sequence[str]) -> dict[str, Value]:
    """The first value of each named field of the first object in `text`; None if unreadable."""
    found: dict[str, Value] = {}
    broken_at = _read_entries(text, names, found)
    for name in names:
        if name not in found and broken_at is not None:
            # Past a break, a quoted name and a colon are still a field.
            match = re.compile(rf"""(["']){name}\1\s*+:""").search(text, broken_at)
            if match:
                _read_entry(name, _tokens(text, match.end()), names, found)
    return {name: found.get(name) for name in names}


def _read_entries(text: str, names: Sequence[str], found: dict[str, Value]) -> int | None:
    """Add the fields of the first object to `found` as far as it is written properly.

    Returns the place of the entry at which it breaks off, or None if it is complete.
    """
    start = text.find("{")
    if start < 0:
        return 0
    tokens = _tokens(text, start)
    last = next(tokens)
    while key := next(tokens, None):
        if _is_mark(key, "}"):
            return None
        last = key
        if key.kind != "string" or not _is_mark(next(tokens, None), ":"):
            break
        separator = _read_entry(key.text, tokens, names, found)
        if _is_mark(separator, "}"):
            return None
        if not _is_mark(separator, ","):
            break
    return last.start


def _read_entry(
    name: str, tokens: Iterator[_Token], names: Sequence[str], found: dict[str, Value]
) -> _Token | None:
    """Take a value and what follows it, which is returned; add the value to `found`.

    A string that goes on after its closing quote (`"sci".space`) is not the label in the quotes.
    """
    value = _read_value(tokens)
    separator = next(tokens, None)
    goes_on = _goes_on(separator) or (
        separator is not None and separator.kind == "string" and separator.text not in names
    )
    if not (isinstance(value, str) and goes_on):
        found.setdefault(name, value)
    return separator


def _read_value(tokens: Iterator[_Token]) -> Value:
    """Take one value from `tokens`: a string, the items of a list, or None for anything else."""
    token = next(tokens, None)
    if token is None:
        return None
    if token.kind == "string":
        return token.text
    if _is_mark(token, "["):
        return _read_items(tokens)
    if _is_mark(token, "{"):
        _skip_nested(tokens)
    return None


def _read_items(tokens: Iterator[_Token]) -> list[str | None] | None:
    """The items after "[" up to "]" or a break; an item that is no string is None.

    None instead of a list where it breaks before the first item.
    """
    items: list[str | None] = []
    for token in tokens:
        if _is_mark(token, "]"):
            return items
        if _is_mark(token, "[") or _is_mark(token, "{"):
            if not _skip_nested(tokens):
                break
        elif token.kind == "mark":
            break
        separator = next(tokens, None)
        if _goes_on(separator):
            break
        items.append(token.text if token.kind == "string" else None)
        if _is_mark(separator, "]"):
            return items
        if not _is_mark(separator, ","):
            break
    return items or None


def _skip_nested(tokens: Iterator[_Token]) -> bool:
    """Take tokens to the end of a bracket just opened; whether it was closed."""
    depth = 1
    for token in tokens:
        if token.kind == "mark" and token.text in "[{":
            depth += 1
        elif token.kind == "mark" and token.text in "]}":
            depth -= 1
            if depth == 0:
                return True
    return False


def _goes_on(separator: _Token | None) -> bool:
    """Whether the string before `separator` is no whole value: part of a word or a field's name."""
    return separator is not None and (separator.kind == "bare" or _is_mark(separator, ":"))


def _is_mark(token: _Token | None, mark: str) -> bool:
    return token is not None and token.kind == "mark" and token.text == mark
