"""Divides input files into splits: what one map task reads. Pure; the lines themselves: `records.py`.

A split owns the lines that start in it. Long files are cut into pieces of the split size, the last
up to a tenth longer, so that no task is left with a few bytes; small files are put together until
they make up a split (Hadoop's CombineFileInputFormat), but only files that the same slaves see.
"""

from collections.abc import Sequence

import msgspec

MIB = 1 << 20
SPLIT_MIN_BYTES = 4 * MIB  # Below it the start of a worker process outweighs the work.
SPLIT_MAX_BYTES = 64 * MIB  # Above it a lost attempt costs too much, and progress is too coarse.
TASKS_PER_SLAVE = 4  # Enough that slaves of unlike speed end together.
SPLIT_SLOP_PERCENT = 110  # Hadoop's SPLIT_SLOP of 1.1.


class InputFile(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A file of the input, as a slave's probe saw it."""

    path: str
    size_bytes: int


class Piece(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The lines of a file that start at `start` or after, but before `end` (bytes)."""

    path: str
    start: int
    end: int
    size_bytes: int  # Of the whole file: a reader that finds another size knows that the file was changed.


class Split(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one map task reads; `size_bytes` is the sum of its pieces."""

    pieces: tuple[Piece, ...]
    size_bytes: int


def default_split_bytes(total_bytes: int, slave_count: int) -> int:
    """Return a split size that gives every slave some tasks, within bounds."""
    wanted = total_bytes // max(1, slave_count * TASKS_PER_SLAVE)
    return max(SPLIT_MIN_BYTES, min(SPLIT_MAX_BYTES, wanted))


def plan_splits(groups: Sequence[Sequence[InputFile]], split_bytes: int) -> list[Split]:
    """Return the splits of all files, in order. Files of different groups never share a split.

    Empty files have no lines and get no split.

    Raises:
        ValueError: `split_bytes` is not positive.
    """
    if split_bytes <= 0:
        raise ValueError(f"a split of {split_bytes} bytes is no split")
    splits: list[Split] = []
    for group in groups:
        together: list[Piece] = []
        together_bytes = 0
        for file in group:
            if file.size_bytes == 0:
                continue
            if file.size_bytes * 100 > split_bytes * SPLIT_SLOP_PERCENT:
                splits += [Split((piece,), piece.end - piece.start) for piece in _cut(file, split_bytes)]
                continue
            if together and together_bytes + file.size_bytes > split_bytes:
                splits.append(Split(tuple(together), together_bytes))
                together, together_bytes = [], 0
            together.append(Piece(file.path, 0, file.size_bytes, file.size_bytes))
            together_bytes += file.size_bytes
        if together:
            splits.append(Split(tuple(together), together_bytes))
    return splits


def _cut(file: InputFile, split_bytes: int) -> list[Piece]:
    pieces: list[Piece] = []
    start = 0
    while (file.size_bytes - start) * 100 > split_bytes * SPLIT_SLOP_PERCENT:
        pieces.append(Piece(file.path, start, start + split_bytes, file.size_bytes))
        start += split_bytes
    pieces.append(Piece(file.path, start, file.size_bytes, file.size_bytes))
    return pieces
