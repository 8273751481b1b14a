"""Counts words: `dcos batch run wordcount.py INPUT... -o OUTPUT`.

`combine` adds up each word's ones while they are mapped, so that a map task hands on every word of its split once.
"""

from collections.abc import Iterator
from operator import add as combine  # noqa: F401 - the batch framework calls it


def map(line: str) -> Iterator[tuple[str, int]]:
    """Yield each word of a line with a one."""
    for word in line.split():
        yield word, 1


def reduce(word: str, counts: Iterator[int]) -> Iterator[tuple[str, int]]:
    """Yield a word with the sum of its counts."""
    yield word, sum(counts)
