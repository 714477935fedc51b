"""Styles of a prompt for a task of one's own: an instruction, or a sentence to complete.

    labels         Name the label that fits the text best: ['spam', 'ham']
    definitions    … - spam: nobody asked for it …
    choice         … A) spam, of which the answer is the letter
    cloze          win a car now ⏎ This text is about …

Source of the first three, and of the cloze form: common practice of instruction tuning. The wording
is ours.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxclf.core.errors import InputError
from jaxclf.data.tasks import OTHER, Record, SlotFormat, Task
from jaxclf.prompts.template import Piece, answer, cue, data, filled, fixed, label_list, letters

THOUGHTS = "Thoughts:"  # stands before what a model thinks


def instructed(
    tasks: Sequence[Task],
    shots: Sequence[Record],
    slot_format: SlotFormat,
    *,
    meanings: Mapping[str, str] | None = None,
    lettered: bool = False,
    think: bool = False,
) -> tuple[list[Piece], list[Piece]]:
    """(before the text, after it): what to do for each task, how to answer, and examples.

    `meanings`: a definition for every label. Raises InputError where no task has options to letter.
    """
    if lettered and all(task.kind != "class" for task in tasks):
        raise InputError(
            f"prompt.template is 'choice', but {tasks[0].name} has no classes to choose from. Set "
            "it to 'labels' or 'definitions'"
        )
    before: list[Piece] = []
    for number, task in enumerate(tasks, 1):
        if len(tasks) > 1:
            before.append(fixed(f"task{number}: "))
        before += _question(task, slot_format, meanings, lettered)
    if len(tasks) > 1:
        fields = ", ".join(f'"task{n}": "task{n}_answer"' for n in range(1, len(tasks) + 1))
        before.append(fixed(f"Put the answers into one JSON object: {{{fields}}}\n"))
    before.append(fixed(closing(_target(tasks, lettered), cue(tasks, lettered), think) + "\n"))
    for shot in shots:
        gold = data(answer(shot, tasks, slot_format, lettered))
        before += [fixed("Text:\n"), data(shot.text)]
        before += [fixed(f"\n{cue(tasks, lettered)} "), gold, fixed("\n\n")]
    before.append(fixed("Text:\n"))
    return before, [fixed(f"\n{THOUGHTS if think else cue(tasks, lettered)}")]


def closing(target: str, answer_cue: str, think: bool) -> str:
    """The line that says how to answer: with `target` alone, or after thoughts and the cue."""
    if not think:
        return f"Output the {target} only and nothing else.\n"
    return (
        "First think about the text step by step, in a few sentences. Then begin a new line with "
        f"'{answer_cue}', put the {target} behind it, and stop.\n"
    )


def cloze(
    wording: str, tasks: Sequence[Task], shots: Sequence[Record]
) -> tuple[list[Piece], list[Piece]]:
    """(before the text, after it) of a sentence that the label completes.

    Raises InputError for a wording without one `$text`, and for other tasks than one of classes.
    """
    if len(tasks) > 1 or tasks[0].kind != "class":
        raise InputError(
            "prompt.template is 'cloze', whose sentence one class completes; the tasks are "
            f"{', '.join(task.name for task in tasks)}. Choose one by data.task, or set "
            "prompt.template to 'labels'"
        )
    start, end, _ = filled(wording.rstrip(), {}, "prompt.cloze")
    before: list[Piece] = []
    for shot in shots:
        gold = data(answer(shot, tasks))
        before += [*start, data(shot.text), *end, fixed(" "), gold, fixed("\n\n")]
    return [*before, *start], end


def read_meanings(path: str, tasks: Sequence[Task]) -> dict[str, str]:
    """Definitions from a JSON file `{label: text}`; raises InputError with labels that lack one."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"prompt.definitions {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise InputError(f'prompt.definitions {path}: expected one object {{"label": "text", …}}')
    missing = [name for task in tasks for name in task.labels if not found.get(name, "").strip()]
    if missing:
        raise InputError(
            f"prompt.definitions {path} has none for {len(missing)} labels: {', '.join(missing)}"
        )
    return found


def _question(
    task: Task, slot_format: SlotFormat, meanings: Mapping[str, str] | None, lettered: bool
) -> list[Piece]:
    """What to do for one task, with its labels, options or definitions."""
    listed = data(label_list(task, slot_format))
    defined: list[Piece] = []
    for name in task.labels if meanings else ():
        assert meanings is not None
        defined += [fixed("- "), data(name), fixed(": "), data(meanings[name].strip()), fixed("\n")]
    if task.kind == "slots":
        outside = OTHER if slot_format == "names" else "O"
        return [
            fixed("Label each word of the text with one of these labels: "),
            listed,
            fixed("\n"),
            *defined,
            fixed(
                f"A word that fits none of them gets the label '{outside}'. "
                "Put the labels of all words, in their order, into one list.\n"
            ),
        ]
    if lettered:
        options = [fixed("Choose the option that fits the text best, and name its letter.\n")]
        for name, letter in letters(task).items():
            options += [fixed(f"{letter}) "), data(name), fixed("\n")]
        return options
    if meanings:
        lead = fixed("Name the label that fits the text best. The labels and what they mean:\n")
        return [lead, *defined]
    lead = fixed("Name the label that fits the text best, one of this list: ")
    return [lead, listed, fixed("\n")]


def _target(tasks: Sequence[Task], lettered: bool) -> str:
    if len(tasks) > 1:
        return "JSON object"
    if tasks[0].kind == "slots":
        return "list of labels"
    return "letter" if lettered else "label"
