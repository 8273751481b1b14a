"""Reads the lines of a split, a block of them at a time.

A line ends with a newline, and a carriage return before it belongs to the end. Bytes that are no
UTF-8 become U+FFFD and are counted. Blocks of a megabyte are decoded and cut into lines by C code;
a Python loop over the lines would cost more than most mappers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from meseta.errors import InvalidInput

BLOCK_BYTES = 1 << 20

# A piece of a file: path, first byte, byte after the last, size of the whole file.
PieceTuple = tuple[str, int, int, int]


class Reader:
    """Yields the lines of pieces and counts what it reads."""

    def __init__(self, pieces: Sequence[PieceTuple], *, block_bytes: int = BLOCK_BYTES) -> None:
        self._pieces = pieces
        self._block_bytes = block_bytes
        self.bytes_read = 0
        self.lines_read = 0
        self.replaced = 0  # Characters that stand for bytes that are no UTF-8.

    def blocks(self) -> Iterator[bytes]:
        """Yield whole lines, many at a time; only a file's last block may lack its newline.

        Raises:
            InvalidInput: a file is gone or was changed since the job's start.
        """
        for path, start, end, size in self._pieces:
            try:
                with Path(path).open("rb") as file:
                    found = file.seek(0, 2)
                    if found != size:
                        raise InvalidInput(
                            f"input {path} has {found} bytes, {size} when the job began; let inputs be while a job runs"
                        )
                    for block in _owned_blocks(file, start, end, self._block_bytes):
                        self.bytes_read += len(block)
                        yield block
            except OSError as error:
                raise InvalidInput(f"input {path} cannot be read: {error.strerror}") from error

    def line_blocks(self) -> Iterator[list[str]]:
        """Yield lists of lines, without their ends."""
        for block in self.blocks():
            lines = self._decode(block).split("\n")
            if not lines[-1]:
                lines.pop()
            self.lines_read += len(lines)
            yield lines

    def _decode(self, block: bytes) -> str:
        try:
            text = block.decode()
        except UnicodeDecodeError:
            text = block.decode(errors="replace")
            self.replaced += text.count("\ufffd") - block.count(b"\xef\xbf\xbd")
        return text.replace("\r\n", "\n") if "\r" in text else text


def _owned_blocks(file: BinaryIO, start: int, end: int, block_bytes: int) -> Iterator[bytes]:
    position = start
    if start:
        # The line that starts exactly at `start` is ours: so look for the newline from one byte before.
        file.seek(start - 1)
        position = start - 1 + len(file.readline())
    else:
        file.seek(0)
    carried: list[bytes] = []  # A line longer than a block, so far; joined once, not for every block.
    while position < end:
        data = file.read(min(block_bytes, end - position))
        if not data:
            break
        position += len(data)
        cut = data.rfind(b"\n") + 1
        if cut:
            carried.append(data[:cut])
            yield b"".join(carried)
            carried = [data[cut:]] if cut < len(data) else []
        else:
            carried.append(data)
    if carried:
        carried.append(file.readline())
        yield b"".join(carried)
