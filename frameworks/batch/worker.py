"""The process that does one attempt: `python -P -m frameworks.batch.worker FOLDER`.

A job's own code runs here and nowhere else, so that its crash, its exit or its hunger for memory
ends one attempt and not the executor. Imports little: it is started for each attempt.
"""

import faulthandler
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any

from frameworks.batch import output as output_folder
from frameworks.batch.collect import Collector, Segments
from frameworks.batch.counters import FRAMEWORK_GROUP, user_counters
from frameworks.batch.jobcode import JobCode, load
from frameworks.batch.output import OutputExists, OutputInvisible
from frameworks.batch.records import Reader
from frameworks.batch.work import (
    OUTPUT_EXISTS,
    OUTPUT_FILE,
    OUTPUT_INVISIBLE,
    PROGRESS_FILE,
    CleanupWork,
    CommitWork,
    Job,
    MapWork,
    ProbeWork,
    ReduceWork,
    Result,
    SetupWork,
    Work,
    encode_progress,
    read_work,
    write_result,
)
from meseta.errors import InvalidInput
from meseta.spill import Key, Pair, Value

# Pairs are many, short-lived and hold no cycles: the default of 700 looks at all of them again and again.
_GC_THRESHOLDS = (100_000, 20, 100)
_IN_MEMORY_RATIO = 8  # Python's objects are that much larger than their MessagePack, at most.
_TEXT_BATCH = 1000
_ERROR_LIMIT = 2000  # Characters of an exception that travel; the rest is in the attempt's stderr.


class Attempt:
    """One attempt at work: its folder, its counters and its progress."""

    def __init__(self, folder: Path, attempt_id: str, job: Job) -> None:
        self.folder = folder
        self.attempt_id = attempt_id
        self.job = job
        self._counters: dict[str, int] = {}
        self._progress = os.open(folder / PROGRESS_FILE, os.O_WRONLY | os.O_CREAT, 0o644)

    def count(self, name: str, amount: int) -> None:
        """Add to one of the framework's counters."""
        self._counters[name] = self._counters.get(name, 0) + amount

    def progress(self, fraction: float) -> None:
        """Say how far the attempt is, 0 to 1."""
        os.pwrite(self._progress, encode_progress(min(1.0, fraction)), 0)

    def counters(self) -> tuple[tuple[str, str, int], ...]:
        """Return all counters of this attempt."""
        times = os.times()
        self.count("cpu ms", round(1000 * (times.user + times.system + times.children_user + times.children_system)))
        own = [(FRAMEWORK_GROUP, name, amount) for name, amount in sorted(self._counters.items())]
        return (*own, *user_counters())

    def load(self) -> JobCode:
        """Return the job file's functions."""
        path = Path(self.job.folder) / self.job.file_name
        return load(path.read_bytes(), self.job.file_name)


def perform(attempt: Attempt, work: Work) -> Any:
    """Do the work and return the result's payload."""
    match work:
        case ProbeWork():
            from frameworks.batch.probe import look  # noqa: PLC0415 - only here: `glob` takes its time to load.

            return look(work.inputs, work.output)
        case SetupWork():
            return output_folder.set_up(Path(work.output), attempt.job.job_id)
        case MapWork():
            return _map(attempt, work)
        case ReduceWork():
            return _reduce(attempt, work)
        case CommitWork():
            return output_folder.commit(Path(work.output), attempt.job.job_id, work.attempt_ids)
        case CleanupWork():
            return output_folder.clean_up(Path(work.output), attempt.job.job_id)


def main(arguments: list[str]) -> int:
    """Do the work found in the folder and leave the result there."""
    folder = Path(arguments[0])
    os.chdir(folder)
    faulthandler.enable()  # A crash in native code leaves the Python lines that led to it.
    gc.set_threshold(*_GC_THRESHOLDS)
    attempt_id, job, work = read_work(folder)
    sys.path.insert(0, job.folder)
    attempt = Attempt(folder, attempt_id, job)
    try:
        payload = perform(attempt, work)
        result = Result(counters=attempt.counters(), payload=payload)
    except OutputExists as error:
        result = Result(error=str(error), verdict=OUTPUT_EXISTS)
    except OutputInvisible as error:
        result = Result(error=str(error), verdict=OUTPUT_INVISIBLE)
    except InvalidInput as error:
        result = Result(error=str(error))
    except BaseException as error:  # The job's own code: anything may come out of it, SystemExit too.
        import traceback  # noqa: PLC0415 - only here: most workers do not need it.

        traceback.print_exc()
        result = Result(error=f"{type(error).__name__}: {error}"[:_ERROR_LIMIT])
    write_result(folder, result)
    sys.stdout.flush()
    return 1 if result.error else 0


def _map(attempt: Attempt, work: MapWork) -> tuple[int, ...]:
    reader = Reader(work.pieces)
    total = sum(end - start for _, start, end, _ in work.pieces)

    def watched(blocks: Iterator[Any]) -> Iterator[Any]:
        for block in blocks:
            attempt.progress(reader.bytes_read / total)
            yield block

    if attempt.job.file_name:
        code = attempt.load()
        collector = Collector(code, attempt.folder, partitions=attempt.job.reducers, limit_bytes=work.limit_bytes)
        lines = chain.from_iterable(watched(reader.line_blocks()))
        if code.map_lines is not None:
            collector.adopt(_mapping(code.map_lines(lines)))
        elif code.map_function is not None:
            collector.add(chain.from_iterable(map(code.map_function, lines)))
    else:
        collector = Collector(_STREAMING, attempt.folder, partitions=attempt.job.reducers, limit_bytes=work.limit_bytes)
        from frameworks.batch.streaming import mapped  # noqa: PLC0415 - loads `subprocess` and `threading`.

        collector.add(mapped(attempt.job.mapper, watched(reader.blocks())))
    segments = collector.write(attempt.folder / OUTPUT_FILE)
    attempt.count("map input bytes", reader.bytes_read)
    attempt.count("map input records", reader.lines_read)
    attempt.count("map output records", collector.pairs_in)
    attempt.count("map output bytes", segments.offsets[-1])
    attempt.count("spilled records", collector.spilled_records)
    attempt.count("replaced characters", reader.replaced)
    return segments.offsets


def _reduce(attempt: Attempt, work: ReduceWork) -> None:
    part = output_folder.attempt_file(Path(work.output), attempt.job.job_id, attempt.attempt_id, work.partition)
    is_streaming = not attempt.job.file_name
    code = _STREAMING if is_streaming else attempt.load()
    collector = Collector(code, attempt.folder, limit_bytes=work.limit_bytes)
    sources = [Segments(Path(path), (start, end)) for path, start, end in work.sources]
    total = sum(end - start for _, start, end in work.sources)
    groups = _counted(attempt, _groups(collector, sources, total, work.limit_bytes), total)
    if is_streaming:
        from frameworks.batch.streaming import reduced  # noqa: PLC0415 - loads `subprocess` and `threading`.

        reduced(attempt.job.reducer, groups, part)
    else:
        attempt.count("reduce output records", _write_text(part, chain.from_iterable(starmap(code.reduce, groups))))
    attempt.count("reduce input bytes", total)
    attempt.count("reduce input records", collector.pairs_in)
    attempt.count("reduce output bytes", part.stat().st_size)


def _groups(
    collector: Collector, sources: list[Segments], total: int, limit_bytes: int
) -> Iterator[tuple[Key, Iterator[Value]]]:
    """Return the groups of the maps' runs: by a dict if all fits into memory, else by a merge.

    With a binary combiner the dict holds each key once, and seldom has to spill: it is always tried.
    """
    if not collector.is_folding and total * _IN_MEMORY_RATIO > limit_bytes:
        return collector.merged_groups(sources)
    for source in sources:
        collector.add_chunks(source.chunks(0))
    return collector.groups()


def _counted(
    attempt: Attempt, groups: Iterator[tuple[Key, Iterator[Value]]], total: int
) -> Iterator[tuple[Key, Iterator[Value]]]:
    """Pass groups on; count them, and guess from them how far the reduce is."""
    count = 0
    expected = max(1, total // 16)  # A guess at how many groups there are: good enough for a bar that must move.
    for group in groups:
        count += 1
        if count % _TEXT_BATCH == 0:
            attempt.progress(0.5 + 0.5 * min(1.0, count / expected))
        yield group
    attempt.count("reduce input groups", count)


def _write_text(path: Path, pairs: Iterable[Pair]) -> int:
    """Write `key<tab>value` lines; return how many."""
    count = 0
    iterator = iter(pairs)
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        while batch := list(islice(iterator, _TEXT_BATCH)):
            count += len(batch)
            try:
                file.write("".join([f"{_text(key)}\t{_text(value)}\n" for key, value in batch]))
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"reduce must yield pairs that can be written: {error}") from error
        file.flush()
        os.fsync(file.fileno())
    return count


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, int | float) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _mapping(value: object) -> dict[Key, Value]:
    if isinstance(value, dict):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise InvalidInput(f"map_lines returns a {type(value).__name__}; let it return a dict or a Counter")


def _no_code(key: Key, values: Iterator[Value]) -> Iterable[Pair]:
    raise AssertionError(f"a job of commands calls no function, but one was called for {key!r}")


_STREAMING = JobCode(reduce=_no_code)

if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # To free millions of objects one by one would take a tenth of a second.
