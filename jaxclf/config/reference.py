"""The reference of all config fields, from the schema, as Markdown.

python -m jaxclf.config.reference > docs/reference/config.md
"""

from collections.abc import Iterator, Mapping

from jaxclf.config.renames import RENAMED
from jaxclf.config.schema import SCHEMA, Field, Group

_HEAD = """\
# Config fields

<!-- Written by `python -m jaxclf.config.reference`: edit jaxclf/config/schema.py instead. -->

An experiment's file starts from `default()` of `jaxclf.config.defaults` and states what differs.
Any field is set on the command line too: `--config.train.steps=100`, and a tuple as
`--config.lora.layers_to_transform="(0, 1)"`.

The last column says what a field affects. **run**: what is learned or asked; a run that changes it
is another run. **report**: how long a run goes on and how it is evaluated; a run that is continued
may change it. **nothing**: only speed, or what is shown or kept. How long a run goes on is fixed
where `train.schedule` depends on it.
"""
_TAIL = """\
## Earlier names

Runs that were written under these names are read as before; a config or a command that uses one is
told the new one.

| earlier | now |
|---|---|
"""


def markdown() -> str:
    """The whole page."""
    top = {name: entry for name, entry in SCHEMA.items() if isinstance(entry, Field)}
    groups = {name: entry for name, entry in SCHEMA.items() if isinstance(entry, Group)}
    parts = [_HEAD, "\n".join(_table(top))]
    for name, group in groups.items():
        rows = _table({f"{name}.{field}": entry for field, entry in group.fields.items()})
        parts.append("\n".join([f"## {name}\n", f"{group.meaning}\n", *rows]))
    renamed = "\n".join(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())
    return "\n\n".join(part.rstrip("\n") for part in (*parts, _TAIL + renamed)) + "\n"


def _table(fields: Mapping[str, Field]) -> Iterator[str]:
    yield "| field | default | values | meaning | affects |"
    yield "|---|---|---|---|---|"
    for name, field in fields.items():
        cells = f"`{name}`", f"`{field.default!r}`", _values(field), field.meaning, field.affects
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _values(field: Field) -> str:
    """The choices of a field where there are few, else what the rule expects."""
    if field.rule.choices:
        return ", ".join(f"`{choice}`" for choice in field.rule.choices)
    return field.rule.expected.replace("*", r"\*")


if __name__ == "__main__":
    print(markdown(), end="")
