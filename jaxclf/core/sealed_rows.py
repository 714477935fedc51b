"""Files of one text a line, each after its own checksum, that are added to and survive a kill.

    file.write(line(0, header))
    file.writelines(map(line, itertools.count(1), rows))
    read(path, "remove the file")    → [header, row, …]

A line's checksum is over its number and text, so that lost and moved lines are found too.
"""

from pathlib import Path
from typing import AnyStr

from jaxclf.core.errors import ArtifactError
from jaxclf.core.files import digest_of

_DIGITS = 16  # of a line's checksum


def line(number: int, text: str) -> str:
    """Line `number`, counted from 0: the checksum, then the text, which has no line break."""
    return f"{digest_of(f'{number} {text}')[:_DIGITS]} {text}\n"


def text_of(found: AnyStr) -> AnyStr:
    """The text of a line, with its end."""
    return found[_DIGITS + 1 :]


def read(path: Path, remedy: str) -> list[str]:
    """The texts of all whole lines; what a kill left of one is cut off the file.

    Raises ArtifactError naming the first line that was altered, and the remedy.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.decode("utf-8", "surrogateescape").split("\n")[:-1]
    for number, found in enumerate(lines):
        if f"{found}\n" != line(number, text_of(found)):
            raise ArtifactError(f"{path}:{number + 1}: altered since it was written; {remedy}")
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return list(map(text_of, lines))
