"""What an executor tells a worker process to do, and what the worker answers: files in the attempt's folder.

Named tuples, not msgspec Structs: importing msgspec doubles the time in which a worker starts.
"""

from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

from frameworks.batch.records import PieceTuple
from meseta.errors import DecodeError
from meseta.spill import pack, unpack

WORK_FILE = "work"
RESULT_FILE = "result"
PROGRESS_FILE = "progress"
STDERR_FILE = "stderr"
STDOUT_FILE = "stdout"
OUTPUT_FILE = "output"  # A map's partitioned run.

TEMPORARY = "_temporary"
MARKER = "job"  # In `_temporary`: the id of the job that owns the output folder.
SUCCESS = "_SUCCESS"

_PROGRESS = Struct("<d")


class Job(NamedTuple):
    """What all attempts of a job share. `file_name` is empty if the job is two commands."""

    job_id: str
    name: str
    folder: str
    file_name: str
    mapper: str
    reducer: str
    reducers: int
    files: tuple[str, ...]


class ProbeWork(NamedTuple):
    """Say which inputs can be seen, and whether the output's parent folder can."""

    inputs: tuple[str, ...]
    output: str


class SetupWork(NamedTuple):
    """Make the output folder."""

    output: str


class MapWork(NamedTuple):
    """Map a split."""

    pieces: tuple[PieceTuple, ...]
    limit_bytes: int


class ReduceWork(NamedTuple):
    """Reduce a partition; `sources` are (path, first byte, byte after the last) in the order of the maps."""

    partition: int
    sources: tuple[tuple[str, int, int], ...]
    output: str
    limit_bytes: int


class CommitWork(NamedTuple):
    """Move the parts of the winning attempts (by partition) into place."""

    output: str
    attempt_ids: tuple[str, ...]


class CleanupWork(NamedTuple):
    """Remove what an unfinished job left in its output folder."""

    output: str


Work: TypeAlias = ProbeWork | SetupWork | MapWork | ReduceWork | CommitWork | CleanupWork
_KINDS: dict[str, type[Work]] = {
    "probe": ProbeWork,
    "setup": SetupWork,
    "map": MapWork,
    "reduce": ReduceWork,
    "commit": CommitWork,
    "cleanup": CleanupWork,
}


class Result(NamedTuple):
    """A worker's answer. `error` is empty if it succeeded; `verdict` tells some failures apart for the scheduler."""

    error: str = ""
    verdict: str = ""
    counters: tuple[tuple[str, str, int], ...] = ()
    payload: Any = None  # A map: its offsets. A probe: see `probe.py`.


OUTPUT_EXISTS = "output_exists"
OUTPUT_INVISIBLE = "output_invisible"


def write_work(folder: Path, attempt_id: str, job: Job, work: Work) -> None:
    """Leave the work for a worker in its attempt's folder."""
    kind = next(kind for kind, work_type in _KINDS.items() if type(work) is work_type)
    (folder / WORK_FILE).write_bytes(pack((attempt_id, job, kind, work)))


def read_work(folder: Path) -> tuple[str, Job, Work]:
    """Return what `write_work` left."""
    attempt_id, job, kind, work = unpack((folder / WORK_FILE).read_bytes())
    return attempt_id, Job(*job), _KINDS[kind](*work)


def write_result(folder: Path, result: Result) -> None:
    """Leave the answer; it appears whole or not at all."""
    draft = folder / (RESULT_FILE + ".new")
    draft.write_bytes(pack(result))
    draft.rename(folder / RESULT_FILE)


def read_result(folder: Path) -> Result | None:
    """Return the worker's answer, None if it died without one."""
    try:
        return Result(*unpack((folder / RESULT_FILE).read_bytes()))
    except (FileNotFoundError, DecodeError):
        return None


def encode_progress(progress: float) -> bytes:
    """Return what the progress file holds."""
    return _PROGRESS.pack(progress)


def read_progress(folder: Path) -> float:
    """Return how far the worker is, 0 to 1."""
    try:
        data = (folder / PROGRESS_FILE).read_bytes()
    except FileNotFoundError:
        return 0.0
    return float(_PROGRESS.unpack(data)[0]) if len(data) == _PROGRESS.size else 0.0
