"""Collects pairs by key in bounded memory: the sorted, partitioned spills of a map, the merge of a reduce.

Pairs are held in a dict: with a binary combiner one value for a key, else a list of values. When
the dict grows over its limit it is sorted and spilled to a file; at the end the spills and what is
in memory are merged. A run holds for each key what the dict held: a value, or a tuple of values.

A map that never spilled leaves its run unsorted: most reducers have room for all they get and use a dict
again, and a reducer that has not sorts such runs before it merges. That saves a quarter of a word count.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, groupby, islice
from operator import itemgetter
from pathlib import Path
from sys import getsizeof
from zlib import crc32

from frameworks.batch.jobcode import FoldFunction, GroupFunction, JobCode
from meseta.errors import InvalidInput
from meseta.spill import (
    Chunk,
    Key,
    Pair,
    RunWriter,
    Value,
    is_sorted_run,
    merge_runs,
    pack,
    pairs_of,
    read_chunks,
    sorted_keys,
)

BATCH_PAIRS = 4000  # Folded at once: so few stay in the processor's cache. Ten times as many cost a fifth more.
LOOK_PAIRS = 50_000  # Between two looks at the memory held: some 10 MB at most.
MERGE_FACTOR = 100  # Runs open at once; each holds a chunk and a buffer. More take another pass.
_ENTRY_BYTES = 110  # A dict's slot at its usual load, and the key's header beyond `getsizeof`'s sample.
_LIST_BYTES = 88
_SAMPLE = 64
_FEW_PARTITIONS = 8  # For so few a pass over all keys for each is quicker than one pass with Python's own steps.
_NONE_YET = object()
_VALUES_IN_ENTRY = 1000  # A key's values are written in pieces of so many, so that a chunk stays small.


def partition_of(key: Key, partition_count: int) -> int:
    """Return the partition of a key: the same in every process, unlike Python's `hash`.

    Keys that are equal in Python (1 and 1.0 and True) meet in one partition.
    """
    if partition_count == 1:
        return 0
    data = key.encode(errors="surrogatepass") if isinstance(key, str) else pack(_canonical(key))
    return crc32(data) % partition_count


def partitions_of(keys: list[Key], partition_count: int) -> list[int]:
    """Return the partition of each key."""
    try:
        # Words, mostly: then no step of Python's own is taken for each of them.
        return [hashed % partition_count for hashed in map(crc32, map(str.encode, keys))]
    except (TypeError, UnicodeEncodeError):
        return [partition_of(key, partition_count) for key in keys]


def partitioned(held: dict[Key, Value], partition_count: int) -> Iterator[tuple[list[Key], list[Value]]]:
    """Yield the keys and values of each partition, in the order of the dict."""
    keys, values = list(held), list(held.values())
    if partition_count == 1:
        yield keys, values
        return
    partitions = partitions_of(keys, partition_count)
    if partition_count <= _FEW_PARTITIONS:
        for partition in range(partition_count):
            chosen = [one == partition for one in partitions]
            yield list(compress(keys, chosen)), list(compress(values, chosen))
        return
    buckets: list[tuple[list[Key], list[Value]]] = [([], []) for _ in range(partition_count)]
    for key, value, partition in zip(keys, values, partitions, strict=True):
        bucket = buckets[partition]
        bucket[0].append(key)
        bucket[1].append(value)
    yield from buckets


class Segments:
    """A file of runs, one for each partition: `offsets[p]` to `offsets[p + 1]`."""

    def __init__(self, path: Path, offsets: Sequence[int], *, is_temporary: bool = False) -> None:
        self.path = path
        self.offsets = tuple(offsets)
        self.is_temporary = is_temporary  # To be removed when it is merged.

    def chunks(self, partition: int) -> Iterator[Chunk]:
        """Yield a partition's chunks."""
        start, end = self.offsets[partition], self.offsets[partition + 1]
        if start == end:
            return
        with self.path.open("rb") as file:
            file.seek(start)
            yield from read_chunks(file, length_bytes=end - start)

    def is_sorted(self, partition: int) -> bool:
        """True if a partition's keys rise."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[partition])
            return is_sorted_run(file)

    def pairs(self, partition: int) -> Iterator[Pair]:
        """Yield a partition's pairs."""
        return pairs_of(self.chunks(partition))


class Collector:
    """Takes pairs in any order, gives them back by partition, sorted, in bounded memory."""

    def __init__(self, code: JobCode, folder: Path, *, partitions: int = 1, limit_bytes: int) -> None:
        self._fold = code.combine_fold
        self._combine = code.combine_group
        self._folder = folder
        self._partitions = partitions
        self._limit_bytes = limit_bytes
        self._held: dict[Key, Value] = {}
        self._held_values = 0
        self._spills: list[Segments] = []
        self.pairs_in = 0
        self._looked_at = 0
        self.spilled_records = 0

    @property
    def is_folding(self) -> bool:
        """True if equal keys become one pair as they come."""
        return self._fold is not None

    def add(self, pairs: Iterable[Pair]) -> None:
        """Take pairs from an iterator of any length."""
        iterator = iter(pairs)
        while batch := list(islice(iterator, BATCH_PAIRS)):
            self.pairs_in += len(batch)
            try:
                if self._fold is not None:
                    fold_pairs(self._held, batch, self._fold)
                else:
                    group_pairs(self._held, batch)
                    self._held_values += len(batch)
            except (TypeError, ValueError) as error:
                raise _explained(batch, error) from error
            self._spill_if_large()

    def add_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Take what another collector wrote: values are folded ones, or tuples of values."""
        for keys, values in chunks:
            self.pairs_in += len(keys)
            if self._fold is not None:
                fold_pairs(self._held, zip(keys, values, strict=True), self._fold)
            else:
                for key, many in zip(keys, values, strict=True):
                    self._held.setdefault(key, []).extend(many)
                    self._held_values += len(many)
            self._spill_if_large()

    def adopt(self, mapping: dict[Key, Value]) -> None:
        """Take a whole mapping of single values, without a copy where it can be."""
        self.pairs_in += len(mapping)
        if self._held:
            self.add(mapping.items())
        elif self._fold is not None:
            self._held = mapping
        else:
            self._held = {key: [value] for key, value in mapping.items()}
            self._held_values = len(mapping)

    def write(self, path: Path, *, is_sorted: bool = False) -> Segments:
        """Write all that was taken to one file and forget it. Unless `is_sorted`, it may be unsorted."""
        if not self._spills:
            return self._write_held(path, is_sorted=is_sorted)
        self._spill()
        return self.merge_files(self._spills, path)

    def groups(self) -> Iterator[tuple[Key, Iterator[Value]]]:
        """Yield each key with its values, in the order of keys; for one partition."""
        if self._spills:
            self._spill()
            yield from self.merged_groups(self._spills)
            return
        held, is_folded = self._held, self._fold is not None
        for key in sorted_keys(held):
            yield key, iter((held[key],) if is_folded else held[key])

    def merged_groups(self, sources: Sequence[Segments]) -> Iterator[tuple[Key, Iterator[Value]]]:
        """Yield each key of partition 0 of `sources` with its values, in the order of keys."""
        sources = self._narrowed([self._sorted(source, index) for index, source in enumerate(sources)])
        merged = self._counted(merge_runs([source.pairs(0) for source in sources]))
        if self._fold is not None:
            for key, value in folded(merged, self._fold):
                yield key, iter((value,))
        else:
            yield from grouped(merged)
        _remove(sources)

    def merge_files(self, sources: Sequence[Segments], path: Path) -> Segments:
        """Merge files of sorted runs, partition by partition, into one; removes temporary ones."""
        sources = self._narrowed(sources)
        offsets = array("Q", [0])
        with path.open("wb") as file:
            writer = RunWriter(file)
            for partition in range(self._partitions):
                merged = merge_runs([source.pairs(partition) for source in sources])
                writer.write_pairs(self._entries(merged))
                offsets.append(writer.size_bytes)
        self.spilled_records += writer.pairs_written
        _remove(sources)
        return Segments(path, offsets)

    def _counted(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        for pair in pairs:
            self.pairs_in += 1
            yield pair

    def _sorted(self, source: Segments, index: int) -> Segments:
        """Return partition 0 of a map's output, sorted. It fitted into the map's memory, so it does into ours."""
        if source.is_sorted(0):
            return source
        pairs_in = self.pairs_in
        self.add_chunks(source.chunks(0))
        self.pairs_in = self._looked_at = pairs_in  # They are counted when they are merged.
        written = self.write(self._folder / f"sorted-{index}", is_sorted=True)
        self._spills = []
        return Segments(written.path, written.offsets, is_temporary=True)

    def _narrowed(self, sources: Sequence[Segments]) -> Sequence[Segments]:
        """Return at most `MERGE_FACTOR` files: neighbours are merged, so that the order of values stays."""
        depth = 0
        while len(sources) > MERGE_FACTOR:
            depth += 1
            sources = [
                Segments(merged.path, merged.offsets, is_temporary=True)
                for start in range(0, len(sources), MERGE_FACTOR)
                for merged in [
                    self.merge_files(sources[start : start + MERGE_FACTOR], self._folder / f"merge-{depth}-{start}")
                ]
            ]
        return sources

    def _estimated_bytes(self) -> int:
        held = self._held
        newest = list(islice(reversed(held.items()), _SAMPLE))
        if not newest:
            return 0
        key_bytes = sum(getsizeof(key) for key, _ in newest) // len(newest)
        if self._fold is not None:
            value_bytes = sum(getsizeof(value) for _, value in newest) // len(newest)
            return len(held) * (_ENTRY_BYTES + key_bytes + value_bytes)
        value_bytes = sum(getsizeof(values[-1]) for _, values in newest) // len(newest)
        return len(held) * (_ENTRY_BYTES + _LIST_BYTES + key_bytes) + self._held_values * (8 + value_bytes)

    def _spill_if_large(self) -> None:
        if self.pairs_in - self._looked_at >= LOOK_PAIRS:
            self._looked_at = self.pairs_in
            if self._estimated_bytes() > self._limit_bytes:
                self._spill()

    def _spill(self) -> None:
        if self._held:
            written = self._write_held(self._folder / f"spill-{len(self._spills)}", is_sorted=True)
            self._spills.append(Segments(written.path, written.offsets, is_temporary=True))

    def _write_held(self, path: Path, *, is_sorted: bool) -> Segments:
        held = self._held
        offsets = array("Q", [0])
        with path.open("wb") as file:
            writer = RunWriter(file)
            for keys, values in partitioned(held, self._partitions):
                if is_sorted:
                    rising = sorted_keys(keys)
                    self._write_run(writer, rising, [held[key] for key in rising])
                elif keys:
                    writer.mark_unsorted()
                    self._write_run(writer, keys, values)
                offsets.append(writer.size_bytes)
        self.spilled_records += writer.pairs_written
        self._held = {}
        self._held_values = 0
        return Segments(path, offsets)

    def _write_run(self, writer: RunWriter, keys: list[Key], values: list[Value]) -> None:
        if self._fold is not None:
            writer.write(keys, values)
        else:
            writer.write_pairs(self._entries(zip(keys, values, strict=True)))

    def _entries(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """Return sorted pairs as they are written: combined, and no value longer than a piece."""
        if self._fold is not None:
            return folded(pairs, self._fold)
        if self._combine is not None:
            return _pieces(combined(grouped(pairs), self._combine))
        return _pieces(pairs)


def _remove(sources: Sequence[Segments]) -> None:
    for source in sources:
        if source.is_temporary:
            source.path.unlink()


def fold_pairs(held: dict[Key, Value], pairs: Iterable[Pair], combine: FoldFunction) -> None:
    """Add pairs to `held`; values of equal keys become one by `combine(older, newer)`."""
    get = held.get
    for key, value in pairs:
        older = get(key, _NONE_YET)
        held[key] = value if older is _NONE_YET else combine(older, value)


def group_pairs(held: dict[Key, Value], pairs: Iterable[Pair]) -> None:
    """Add pairs to `held`, whose values are lists."""
    for key, value in pairs:
        if key in held:
            held[key].append(value)
        else:
            held[key] = [value]


def folded(pairs: Iterator[Pair], combine: FoldFunction) -> Iterator[Pair]:
    """Yield sorted pairs with the values of equal keys made one."""
    first = next(pairs, None)
    if first is None:
        return
    key, value = first
    for next_key, next_value in pairs:
        if next_key == key:
            value = combine(value, next_value)
        else:
            yield key, value
            key, value = next_key, next_value
    yield key, value


def grouped(pairs: Iterator[Pair]) -> Iterator[tuple[Key, Iterator[Value]]]:
    """Yield each key of sorted (key, sequence of values) pairs with an iterator over all its values."""
    for key, entries in groupby(pairs, key=itemgetter(0)):
        yield key, (value for _, values in entries for value in values)


def combined(groups: Iterable[tuple[Key, Iterator[Value]]], combine: GroupFunction) -> Iterator[Pair]:
    """Yield (key, list of what `combine` made of its values).

    Raises:
        InvalidInput: `combine` yields another key than it was given: the runs would no longer be sorted.
    """
    for key, values in groups:
        result: list[Value] = []
        for new_key, value in combine(key, values):
            if new_key != key:
                raise InvalidInput(
                    f"combine({key!r}, values) yields the key {new_key!r}; let it yield the key it is given"
                )
            result.append(value)
        if result:
            yield key, result


def _pieces(pairs: Iterator[Pair]) -> Iterator[Pair]:
    for key, values in pairs:
        if len(values) <= _VALUES_IN_ENTRY:
            yield key, values
        else:
            for start in range(0, len(values), _VALUES_IN_ENTRY):
                yield key, values[start : start + _VALUES_IN_ENTRY]


def _canonical(key: Key) -> Key:
    if isinstance(key, float) and key.is_integer():
        return int(key)
    if isinstance(key, bool):
        return int(key)
    if isinstance(key, tuple):
        return tuple(_canonical(one) for one in key)
    return key


def _explained(batch: Sequence[object], error: Exception) -> Exception:
    """Return an error that says what is wrong with the first bad pair, else `error` itself."""
    for pair in batch:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            return InvalidInput(f"map yields {pair!r:.200}; let it yield pairs, as in: yield word, 1")
        try:
            hash(pair[0])
        except TypeError:
            return InvalidInput(
                f"map yields the key {pair[0]!r:.200}; a key is str, bytes, a number, or a tuple of them"
            )
    return error
