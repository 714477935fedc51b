"""HTML made of text that nobody vouches for."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from jaxclf.report.style import STYLE

# Control characters, those that turn the writing direction, halves of surrogate pairs.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def text(value: Any, limit: int = 0) -> str:
    """Text that cannot be taken for markup, cut to `limit` characters; NUL is shown as \\x00."""
    shown = str(value)
    if limit and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return _INVISIBLE.sub(lambda match: ascii(match[0])[1:-1], escape(shown))


def number(shown: str) -> str:
    """A cell aligned to the right."""
    return f'<td class="number">{shown}</td>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    """A table of cells that are HTML already; a cell may bring its own <td>."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<table class="{style}">'
        + (f"<thead><tr>{top}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table>"
    )


def document(title: str, header: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page: title, HTML below it, then a section for each (title, HTML) that has any."""
    sections = [(name, body) for name, body in sections if body]
    links = "".join(
        f'<a href="#s{place}">{text(name)}</a>' for place, (name, _) in enumerate(sections)
    )
    bodies = "".join(
        f'<section id="s{place}"><h2>{text(name)}</h2>{body}</section>'
        for place, (name, body) in enumerate(sections)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        # Belt and braces: even an escape that is missed loads and runs nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{text(title)}</h1>{header}</header><nav>{links}</nav>{bodies}</body></html>\n"
    )
