"""Exports of annotation tools and of chat models' training data: nested objects → plain columns.

| rows of                          | columns made of them    |
|----------------------------------|-------------------------|
| chat messages (OpenAI, ShareGPT) | text, label             |
| Label Studio (JSON)              | id, text, label, slots  |

What is flat already is taken as it is: doccano, alpaca (instruction, input, output), prompt and
completion, tokens and ner_tags.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxclf.data.formats.rows import Defect, RawRow

Reshape = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_ROLES = {"gpt": "assistant", "bot": "assistant", "model": "assistant", "human": "user"}


def reshape(sample: Sequence[RawRow]) -> tuple[Reshape | None, str]:
    """What makes plain columns of rows like these, and what they are, in words."""
    rows = [row.fields for row in sample if isinstance(row.fields, Mapping)]
    if not rows:
        return None, ""
    for key in ("messages", "conversations", "conversation"):
        if all(_are_messages(row.get(key)) for row in rows):
            systems = {_system(row[key]) for row in rows}
            dropped = " (the system's message is left out)" if systems != {""} else ""
            said = f"chat messages: the label is the assistant's last one{dropped}"
            return functools.partial(_chat, key=key), said
    if all(isinstance(row.get("data"), Mapping) and _annotations(row) is not None for row in rows):
        several = any(len(_annotations(row) or ()) > 1 for row in rows)
        more = ", the first annotation of each text" if several else ""
        return _label_studio, f"an export of Label Studio{more}"
    return None, ""


def reshaped(rows: Iterable[RawRow], change: Reshape) -> Iterator[RawRow]:
    """The rows with plain columns; what does not fit is a defect."""
    for row in rows:
        if isinstance(row.fields, Mapping):
            try:
                row = RawRow(row.where, change(row.fields))
            except Defect as defect:
                row = RawRow(row.where, defect)
        yield row


# Chats


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(each, dict) and _role(each) for each in value)
    )


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role", message.get("from", ""))
    return _ROLES.get(role, role) if isinstance(role, str) else ""


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # of parts, such as {"type": "text", "text": "…"}
        content = "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _system(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(_content(each) for each in messages if _role(each) in ("system", "developer"))


def _chat(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """One turn: its text alone; several: all that was said before the last answer."""
    if not _are_messages(row.get(key)):
        raise Defect(key, "expected a list of messages with a role and content each")
    turns = [each for each in row[key] if _role(each) in ("user", "assistant")]
    answer = None
    if turns and _role(turns[-1]) == "assistant":
        answer = _content(turns.pop()).strip()
    text = "\n".join(
        _content(each) if len(turns) == 1 else f"{_role(each)}: {_content(each)}" for each in turns
    )
    kept = {name: value for name, value in row.items() if name != key}
    return {"text": text, "label": answer, **kept}


# Label Studio


def _annotations(row: Mapping[str, Any]) -> list[Any] | None:
    for key in ("annotations", "completions"):
        if isinstance(row.get(key), list):
            return [
                each
                for each in row[key]
                if isinstance(each, dict) and not each.get("was_cancelled")
            ]
    return None


def _label_studio(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Source: https://labelstud.io/guide/export (raw JSON format)."""
    data = row.get("data")
    if not isinstance(data, Mapping):
        raise Defect("data", "expected an object with the text")
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    text = texts.get("text", max(texts.values(), key=len, default=None))
    annotations = _annotations(row) or [{}]
    labels: list[Any] = []
    spans: list[Any] = []
    label: Any = None
    for result in annotations[0].get("result") or ():
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            continue
        if "start" in value and "end" in value:
            names = value.get("labels") or value.get("hypertextlabels") or ()
            spans += [[value["start"], value["end"], name] for name in names]
        for key in ("choices", "taxonomy"):
            # A path of a taxonomy is one label, as of a hierarchy.
            labels += [
                "/".join(each) if isinstance(each, list) else each for each in value.get(key) or ()
            ]
        label = value.get("rating", value.get("number", label))
    found: dict[str, Any] = {"id": row.get("id"), "text": text}
    if labels or label is not None:
        found["label"] = labels or label
    if spans or not (labels or label is not None):
        found["slots"] = spans
    return found | {name: value for name, value in data.items() if name not in found}
