"""Jobs of two commands: lines through a mapper, sorted lines through a reducer.

As Hadoop Streaming: a mapper's output line is a key up to the first tab and a value after it; a
reducer gets the sorted lines of its partition. Commands run by `/bin/sh -c` in the attempt's folder.
A line `reporter:counter:GROUP,NAME,N` on stderr counts.
"""

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from frameworks.batch.counters import counter
from meseta.errors import InvalidInput
from meseta.spill import Key, Pair, Value

_COUNTER = b"reporter:counter:"
_STATUS = b"reporter:status:"


class Command:
    """A command that is fed from an iterator in a thread of its own, while its output is read here."""

    def __init__(self, kind: str, command: str, blocks: Iterable[bytes], stdout: int | IO[bytes]) -> None:
        self._kind = kind
        self._failure: BaseException | None = None
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE
        )
        self._threads = [
            threading.Thread(target=self._feed, args=(blocks,), daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def lines(self) -> Iterator[bytes]:
        """Yield the command's output lines, each with its newline, as they come."""
        assert self._process.stdout is not None
        yield from self._process.stdout

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            InvalidInput: the command failed, or what it was fed with did.
        """
        status = self._process.wait()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        if status:
            how = f"was ended by signal {-status}" if status < 0 else f"exited with {status}"
            raise InvalidInput(f"the {self._kind} {how}")

    def _feed(self, blocks: Iterable[bytes]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            for block in blocks:
                stdin.write(block)
            stdin.close()
        except BrokenPipeError:
            pass  # The command has read enough; whether that was right, its exit status tells.
        except BaseException as error:
            self._failure = error
            self._process.kill()

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith(_COUNTER):
                _count(line)
            elif not line.startswith(_STATUS):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()


def mapped(command: str, blocks: Iterable[bytes]) -> Iterator[Pair]:
    """Yield the pairs that a mapper makes of whole lines."""
    # A file's last line may lack its newline; the next file's first line must not become part of it.
    whole = (block if block.endswith(b"\n") else block + b"\n" for block in blocks)
    process = Command("mapper", command, whole, subprocess.PIPE)
    for line in process.lines():
        key, _, value = line.rstrip(b"\n").partition(b"\t")
        yield key, value
    process.finish()


def reduced(command: str, groups: Iterable[tuple[Key, Iterator[Value]]], path: Path) -> None:
    """Let a reducer write the file `path` from groups of byte values."""
    with path.open("wb") as file:
        Command("reducer", command, _lines_of(groups), file).finish()


def _lines_of(groups: Iterable[tuple[Key, Iterator[Value]]]) -> Iterator[bytes]:
    for key, values in groups:
        start = key + b"\t"
        yield b"".join([start + value + b"\n" for value in values])


def _count(line: bytes) -> None:
    group, _, rest = line[len(_COUNTER) :].decode(errors="replace").strip().partition(",")
    name, _, amount = rest.partition(",")
    try:
        counter(group, name, int(amount))
    except (ValueError, InvalidInput) as error:
        print(f"{line.decode(errors='replace').rstrip()}: {error}", file=sys.stderr)  # noqa: T201
