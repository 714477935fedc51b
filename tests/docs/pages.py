"""The pages that people read, cut into what a test can check: blocks, spans of code, links."""

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
KINDS = {"bash", "python", "json", "csv", "text"}
# A command line in the middle of a sentence or a table; `python -m jaxclf.train` alone is a name.
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*"
    r"(?:python (?:-m \S+ \S|\S+\.py)|(?:pip|jaxclf|mkdocs|git) \w|launch/\w+\.sh \w)"
)


@dataclasses.dataclass(frozen=True)
class Block:
    """What stands between two fences, and the line on which its text begins."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    found, start, kind, indent = [], None, "", ""
    lines = read(page).splitlines()
    for number, line in enumerate(lines, 1):
        fence = re.fullmatch(r"( *)(```+|~~~+)(.*)", line)
        if not fence:
            continue
        if start is None:
            start, kind, indent = number, fence[3].strip(), fence[1]
        else:
            text = "\n".join(each.removeprefix(indent) for each in lines[start : number - 1])
            found.append(Block(page, start + 1, kind, text))
            start = None
    assert start is None, f"{page}:{start}: a fence that is not closed"
    return found


def prose(page: str) -> str:
    """The page without its fenced blocks, line by line where it was."""
    lines = read(page).splitlines()
    for block in blocks(page):
        count = len(block.text.splitlines())
        lines[block.line - 2 : block.line + count] = [""] * (count + 2)
    return "\n".join(lines)


def spans(page: str) -> list[str]:
    """What stands between backticks outside of blocks, with spaces for line breaks."""
    found = re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", prose(page))
    return [" ".join(span.split()) for span in found]


def commands_in_prose(page: str) -> list[str]:
    """Spans that are a command line."""
    return [span for span in spans(page) if _COMMAND.match(span)]


def links(page: str) -> list[str]:
    """Targets of links and images that lie in the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page)) + re.findall(r'src="([^"]+)"', prose(page))
    return [target for target in found if not re.match(r"\w+:", target)]


def anchors(page: str) -> set[str]:
    """What `#…` may name: the page's headings, as MkDocs and GitHub write them."""
    titles = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
