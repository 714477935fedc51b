"""How much a record, a line and a decompressed file may be, so that memory stays bounded."""

from jaxclf.core.errors import InputError

MAX_BYTES = 4 << 20  # of one record; some 25 times the longest of 20 Newsgroups
MAX_LINE = 64 * MAX_BYTES  # how far the end of a line that is too long is looked for
# What a compressed file may become, as a multiple of its size; every file may become FREE_BYTES.
# Texts shrink to a third or a tenth, and rows that are all alike to a few hundredths.
MAX_EXPANSION, FREE_BYTES = 256, 256 << 20
ROW_BYTES = 64  # what a row counts as at least: as a record it takes more


def too_large(size: int) -> str:
    return (
        f"{size:,} bytes; a record may have {MAX_BYTES:,}. Split the document into several "
        "records or cut it."
    )


class Expansion:
    """Counts what a file is read to become; InputError where that is more than it may.

    where: the file, as errors name it. stored: its bytes on disk.
    """

    def __init__(self, where: str, stored: int):
        self.where, self.found, self.stored = where, 0, stored
        self.limit = max(FREE_BYTES, MAX_EXPANSION * stored)

    def add(self, size: int) -> None:
        self.found += size
        self.check(self.found)

    def check(self, size: int) -> None:
        if size > self.limit:
            raise InputError(
                f"{self.where}: decompressed it has more than {self.limit:,} bytes (a row counts "
                f"as {ROW_BYTES} at least), the most that a file of its size may become. If it is "
                "meant so, decompress it or divide it"
            )
