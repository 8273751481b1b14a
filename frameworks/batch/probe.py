"""Looks at a job's inputs and output folder from one slave.

Names are taken as on the slave's own file system. Folders are read to their depth; names that
begin with a dot or an underscore are skipped, as are links to folders and what is no plain file.
"""

import os
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

_HIDDEN = (".", "_")


class Listing(NamedTuple):
    """What one slave sees. For each input its files as (path, bytes), or None: it sees none of it."""

    inputs: tuple[tuple[tuple[str, int], ...] | None, ...]
    has_output: bool
    has_output_parent: bool  # And may write there.


def look(inputs: tuple[str, ...], output: str) -> Listing:
    """Return what this process sees."""
    parent = Path(output).parent
    return Listing(
        inputs=tuple(_files_of(one) for one in inputs),
        has_output=Path(output).exists(),
        has_output_parent=parent.is_dir() and os.access(parent, os.W_OK | os.X_OK),
    )


def _files_of(name: str) -> tuple[tuple[str, int], ...] | None:
    roots = sorted(glob(name, recursive=True)) if has_magic(name) and not Path(name).exists() else [name]
    files: list[tuple[str, int]] = []
    is_seen = False
    for root in roots:
        if os.path.isdir(root):
            is_seen = True
            files += _walk(root)
        elif (size := _size_of(root)) is not None:
            is_seen = True
            files.append((root, size))
    return tuple(files) if is_seen else None


def _walk(folder: str) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in ordered:
        if entry.name.startswith(_HIDDEN):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif (size := _size_of(entry.path)) is not None:
            yield entry.path, size


def _size_of(path: str) -> int | None:
    """Return a plain file's size, None if it is none or may not be read."""
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return None
    return os.stat(path).st_size
