"""Streams of key-value pairs in files, as MessagePack: what a shuffle writes, fetches and merges.

A run is a sequence of chunks; a chunk is an array of two arrays of the same length, keys and
values. Two arrays cost a third of the time of an array of pairs, and a thousand pairs in one call
a tenth of a call for each. Within a run keys rise, unless it begins with a `false`. The `msgpack` library, not
msgspec, since these are a user's own values, and since a worker process should start quickly.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, BinaryIO, TypeAlias

import msgpack

from meseta.errors import DecodeError, InvalidInput

# A user's own data: str, bytes, int, float, bool, None, and lists, tuples and dicts of them.
Key: TypeAlias = Any
Value: TypeAlias = Any
Pair: TypeAlias = tuple[Key, Value]
Chunk: TypeAlias = tuple[Sequence[Key], Sequence[Value]]

CHUNK_PAIRS = 1000  # Packed in one call: more gains nothing measurable, and a merge holds one chunk of each run.
_UNSORTED = b"\xc2"  # MessagePack's `false`.
_READ_BYTES = 256 << 10
_CHUNK_LIMIT_BYTES = 1 << 31  # msgpack's own limit on one buffer is lower (100 MB) than a chunk of long values.


class RunWriter:
    """Appends chunks to an open file, and knows how much it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packer = msgpack.Packer(unicode_errors="surrogatepass", autoreset=True)
        self.size_bytes = 0
        self.pairs_written = 0

    def mark_unsorted(self) -> None:
        """Begin a run whose keys are in any order, each once."""
        self.size_bytes += self._file.write(_UNSORTED)

    def write(self, keys: Sequence[Key], values: Sequence[Value]) -> None:
        """Append pairs, in chunks. `keys` and `values` have the same length.

        Raises:
            InvalidInput: a key or value is of a type that MessagePack cannot hold.
        """
        for start in range(0, len(keys), CHUNK_PAIRS):
            end = start + CHUNK_PAIRS
            try:
                data = self._packer.pack((keys[start:end], values[start:end]))
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidInput(
                    f"a key or value cannot be written: {error}; use str, bytes, int (64 bits), float, bool, None,"
                    " and lists, tuples and dicts of them"
                ) from error
            self._file.write(data)
            self.size_bytes += len(data)
        self.pairs_written += len(keys)

    def write_pairs(self, pairs: Iterable[Pair]) -> None:
        """Append pairs from an iterator of any length."""
        iterator = iter(pairs)
        while batch := list(islice(iterator, CHUNK_PAIRS)):
            keys, values = zip(*batch, strict=True)
            self.write(keys, values)


def read_chunks(file: BinaryIO, *, length_bytes: int | None = None) -> Iterator[Chunk]:
    """Yield the chunks of a run from where the file stands, `length_bytes` of it (None: to its end).

    Sequences come back as tuples, so that a tuple can be a key.

    Raises:
        DecodeError: the bytes are no run, or it is cut off.
    """
    unpacker = msgpack.Unpacker(
        use_list=False,
        strict_map_key=False,
        unicode_errors="surrogatepass",
        max_buffer_size=_CHUNK_LIMIT_BYTES,
    )
    left = length_bytes
    fed = whole = 0
    while left is None or left > 0:
        data = file.read(_READ_BYTES if left is None else min(_READ_BYTES, left))
        if not data:
            break
        fed += len(data)
        left = None if left is None else left - len(data)
        unpacker.feed(data)
        try:
            for chunk in unpacker:
                whole = unpacker.tell()  # Asked again at the end, it would count a chunk that has only begun.
                if chunk is not False:
                    yield _checked(chunk)
        except (ValueError, msgpack.UnpackException) as error:
            raise DecodeError(f"no run of pairs: {error}") from error
    if left or whole != fed:
        raise DecodeError(f"a run of pairs is cut off after {fed} bytes")


def is_sorted_run(file: BinaryIO) -> bool:
    """True if the run that begins where the file stands is sorted."""
    return file.read(1) != _UNSORTED


def pairs_of(chunks: Iterable[Chunk]) -> Iterator[Pair]:
    """Yield the pairs of chunks one by one."""
    for keys, values in chunks:
        yield from zip(keys, values, strict=True)


def merge_runs(runs: Sequence[Iterator[Pair]]) -> Iterator[Pair]:
    """Yield the pairs of sorted runs in the order of keys; equal keys in the order of the runs.

    Raises:
        InvalidInput: keys of different types cannot be put in order.
    """
    if len(runs) == 1:
        yield from runs[0]
        return
    try:
        yield from heapq.merge(*runs, key=itemgetter(0))
    except TypeError as error:
        raise unordered(error) from error


def sorted_keys(keys: Iterable[Key]) -> list[Key]:
    """Return the keys in rising order.

    Raises:
        InvalidInput: keys of different types cannot be put in order.
    """
    try:
        return sorted(keys)
    except TypeError as error:
        raise unordered(error) from error


def unordered(error: TypeError) -> InvalidInput:
    """Return the error that says why keys cannot be sorted, and what to do."""
    return InvalidInput(f"keys cannot be sorted together: {error}; let all keys be of one type")


def pack(value: Value) -> bytes:
    """Return one value as MessagePack; the same bytes in every process.

    Raises:
        InvalidInput: it is of a type that MessagePack cannot hold.
    """
    try:
        return bytes(msgpack.packb(value, unicode_errors="surrogatepass"))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{value!r} cannot be written: {error}") from error


def unpack(data: bytes) -> Value:
    """Read what `pack` wrote.

    Raises:
        DecodeError: the bytes are not one MessagePack value.
    """
    try:
        return msgpack.unpackb(data, use_list=False, strict_map_key=False, unicode_errors="surrogatepass")
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise DecodeError(f"no MessagePack value: {error}") from error


def _checked(chunk: object) -> Chunk:
    if not (isinstance(chunk, tuple) and len(chunk) == 2):
        raise DecodeError("no run of pairs: a chunk is no array of two")
    keys, values = chunk
    if not (isinstance(keys, tuple) and isinstance(values, tuple) and len(keys) == len(values)):
        raise DecodeError("no run of pairs: a chunk's keys and values differ in number")
    return keys, values
