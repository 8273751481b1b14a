"""The batch framework's own values: jobs, tasks, attempts, and what travels between daemon, executors and clients."""

import zlib
from enum import StrEnum
from typing import Annotated

import msgspec

from frameworks.batch.splits import Piece, Split
from meseta.errors import DecodeError, InvalidTransition
from meseta.ids import ContainerId, SlaveId, TaskId
from meseta.model import Address, Data, Name, Text
from meseta.resources import Resources

REPORT_LIMIT_BYTES = 64 << 20  # Unpacked: a listing of a million files.
INPUT_LIMIT = 1000  # Names on one command line; a folder or a glob counts as one.
REDUCER_LIMIT = 10_000

JobId = Name
Counters = dict[str, dict[str, int]]  # Group, name, value.


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """Base of all values here."""


class JobState(StrEnum):
    """A job's life; see `JOB_CHANGES`."""

    PROBING = "probing"  # Which slaves see the inputs?
    SETUP = "setup"  # The output folder is made.
    RUNNING = "running"  # Maps, then reduces.
    COMMITTING = "committing"  # The parts are moved into place.
    CLEANING = "cleaning"  # It failed or was killed, and tidies up.
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    KILLED = "killed"

    @property
    def is_terminal(self) -> bool:
        """True if nothing follows."""
        return not JOB_CHANGES[self]


JOB_CHANGES: dict[JobState, tuple[JobState, ...]] = {
    JobState.PROBING: (JobState.SETUP, JobState.CLEANING),
    JobState.SETUP: (JobState.RUNNING, JobState.CLEANING),
    JobState.RUNNING: (JobState.COMMITTING, JobState.CLEANING),
    JobState.COMMITTING: (JobState.SUCCEEDED, JobState.CLEANING),
    JobState.CLEANING: (JobState.FAILED, JobState.KILLED),
    JobState.SUCCEEDED: (),
    JobState.FAILED: (),
    JobState.KILLED: (),
}


class AttemptState(StrEnum):
    """An attempt's life; see `ATTEMPT_CHANGES`."""

    STAGING = "staging"
    RUNNING = "running"
    SILENT = "silent"  # Its executor says nothing: another attempt may start beside it.
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # Counts against the task and the slave.
    KILLED = "killed"  # By us, or because it could not work where it was: does not count.
    LOST = "lost"  # With its slave or executor: does not count.

    @property
    def is_terminal(self) -> bool:
        """True if nothing follows."""
        return not ATTEMPT_CHANGES[self]


_ENDS = (AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.KILLED, AttemptState.LOST)
ATTEMPT_CHANGES: dict[AttemptState, tuple[AttemptState, ...]] = {
    AttemptState.STAGING: (AttemptState.RUNNING, AttemptState.SILENT, *_ENDS),
    AttemptState.RUNNING: (AttemptState.SILENT, *_ENDS),
    AttemptState.SILENT: (AttemptState.RUNNING, *_ENDS),
    AttemptState.SUCCEEDED: (),
    AttemptState.FAILED: (),
    AttemptState.KILLED: (),
    AttemptState.LOST: (),
}


def check_job_change(job_id: str, current: JobState, wanted: JobState) -> None:
    """Raise InvalidTransition unless a job may go from `current` to `wanted`."""
    if wanted not in JOB_CHANGES[current]:
        raise InvalidTransition(job_id, current, wanted)


def check_attempt_change(attempt_id: str, current: AttemptState, wanted: AttemptState) -> None:
    """Raise InvalidTransition unless an attempt may go from `current` to `wanted`."""
    if wanted not in ATTEMPT_CHANGES[current]:
        raise InvalidTransition(attempt_id, current, wanted)


class TaskKind(StrEnum):
    """What a task of a job is for."""

    PROBE = "probe"
    SETUP = "setup"
    MAP = "map"
    REDUCE = "reduce"
    COMMIT = "commit"
    CLEANUP = "cleanup"


# --- Jobs -----------------------------------------------------------------------------------------


class JobSpec(Record, frozen=True, kw_only=True):
    """A job as its client describes it: a job file, or two commands.

    `inputs` and `output` are absolute. Resources that are None are chosen: see `docs/batch.md`.
    """

    name: Name
    user: Name
    inputs: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=INPUT_LIMIT)]
    output: Text
    reducers: Annotated[int, msgspec.Meta(ge=1, le=REDUCER_LIMIT)] = 1
    file_name: Name = ""
    job_file: Data = b""
    mapper: Text = ""
    reducer: Text = ""
    files: dict[Name, Data] = {}  # Shipped beside the job file.
    cpus_milli: Annotated[int, msgspec.Meta(ge=10, le=10**9)] | None = None
    mem_milli: Annotated[int, msgspec.Meta(ge=32_000, le=10**12)] | None = None
    split_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None


class OutputLocation(Record, frozen=True, kw_only=True):
    """Where a finished map's run lies: a file in a sandbox, and its offsets by partition."""

    address: Address
    container_id: ContainerId
    path: str
    offsets: tuple[int, ...]


class TaskRecord(Record, frozen=True, kw_only=True):
    """What survives of a map or reduce task: its failures, and who won."""

    job_id: JobId
    kind: TaskKind
    index: int
    failures: int = 0
    outputs_lost: int = 0
    winner: TaskId | None = None
    slave_id: SlaveId | None = None
    hostname: str = ""
    location: OutputLocation | None = None
    counters: Counters = {}


class JobRecord(Record, frozen=True, kw_only=True):
    """What survives of a job beside its tasks."""

    job_id: JobId
    spec: JobSpec
    state: JobState
    submitted_unix_s: float
    reason: str = ""
    outcome: JobState | None = None  # Of a job that cleans up: what it will be.
    splits: tuple[Split, ...] = ()
    task_resources: Resources = Resources()
    setup_slave_id: SlaveId | None = None
    finished_unix_s: float = 0.0
    attempts: int = 0
    failed_attempts: int = 0
    counters: Counters = {}  # Of a finished job.


class AttemptView(Record, frozen=True, kw_only=True):
    """An attempt that runs, for people."""

    task_id: TaskId
    kind: TaskKind
    state: AttemptState
    hostname: str
    progress: float


class JobView(Record, frozen=True, kw_only=True):
    """A job for people. Progress is 0 to 1. `waiting` says why nothing runs, if nothing does."""

    job_id: JobId
    name: str
    user: str
    state: JobState
    output: str
    reason: str = ""
    waiting: str = ""
    map_progress: float = 0.0
    reduce_progress: float = 0.0
    maps_done: int = 0
    maps_total: int = 0
    reduces_done: int = 0
    reduces_total: int = 0
    running: tuple[AttemptView, ...] = ()
    attempts: int = 0
    failed_attempts: int = 0
    counters: Counters = {}
    submitted_unix_s: float = 0.0
    finished_unix_s: float = 0.0
    inputs: tuple[str, ...] = ()


# --- Daemon to executor -----------------------------------------------------------------------------


class _Order(Record, frozen=True, kw_only=True, tag=True, tag_field="type"):
    """What an attempt is to do; travels in TaskInfo.data."""


class ProbeOrder(_Order, frozen=True, kw_only=True):
    """Look at the inputs and at the output's place."""

    inputs: tuple[str, ...]
    output: str


class SetupOrder(_Order, frozen=True, kw_only=True):
    """Make the output folder."""

    output: str


class MapOrder(_Order, frozen=True, kw_only=True):
    """Map a split."""

    pieces: tuple[Piece, ...]


class Source(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A reducer's part of one map's output; `sandbox_index` is an index into the order's `sandboxes`."""

    map_index: int
    attempt_id: TaskId
    sandbox_index: int
    start: int
    end: int


class Sandbox(Record, frozen=True, kw_only=True):
    """A container whose files a slave serves."""

    address: Address
    container_id: ContainerId


class ReduceOrder(_Order, frozen=True, kw_only=True):
    """Fetch a partition of each map and reduce it."""

    partition: int
    output: str
    sandboxes: tuple[Sandbox, ...]
    sources: tuple[Source, ...]


class CommitOrder(_Order, frozen=True, kw_only=True):
    """Move the parts of these attempts, by partition, into place."""

    output: str
    attempt_ids: tuple[TaskId, ...]


class CleanupOrder(_Order, frozen=True, kw_only=True):
    """Remove what the job left in its output folder."""

    output: str


Order = ProbeOrder | SetupOrder | MapOrder | ReduceOrder | CommitOrder | CleanupOrder


class JobPackage(Record, frozen=True, kw_only=True):
    """What each executor of a job needs; travels in ExecutorInfo.data.

    `task_public_key` and `task_secret_key` open the sandboxes of this framework's tasks, on every
    slave; None in a cluster that runs with --insecure.
    """

    job_id: JobId
    name: str
    reducers: int
    file_name: str = ""
    job_file: bytes = b""
    mapper: str = ""
    reducer: str = ""
    files: dict[str, bytes] = {}
    task_public_key: str | None = None
    task_secret_key: str | None = None


# --- Executor to daemon -----------------------------------------------------------------------------


class Verdict(StrEnum):
    """Failures that are not the attempt's own fault."""

    NONE = ""
    OUTPUT_EXISTS = "output_exists"
    OUTPUT_INVISIBLE = "output_invisible"
    FETCH_FAILED = "fetch_failed"


class Listing(Record, frozen=True, kw_only=True):
    """What a slave sees; for each input its files, or None if it sees none of it."""

    inputs: tuple[tuple[tuple[str, int], ...] | None, ...]
    has_output: bool
    has_output_parent: bool


class Report(Record, frozen=True, kw_only=True):
    """An attempt's end; travels in TaskStatus.data."""

    error: str = ""
    verdict: Verdict = Verdict.NONE
    stderr_tail: str = ""
    counters: tuple[tuple[str, str, int], ...] = ()
    location: OutputLocation | None = None
    listing: Listing | None = None
    lost_outputs: tuple[tuple[int, TaskId], ...] = ()  # Maps whose output could not be fetched, and of which attempt.


class Heartbeat(Record, frozen=True, kw_only=True):
    """An executor lives, and so far are its attempts."""

    job_id: JobId
    progress: dict[str, float] = {}


_REPORT_DECODER = msgspec.msgpack.Decoder(Report)
_ORDER_DECODER: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)


def encode_report(report: Report) -> bytes:
    """Return a report as it travels, compressed: a listing names many paths that are alike."""
    return zlib.compress(msgspec.msgpack.encode(report), 1)


def decode_report(data: bytes) -> Report:
    """Read what `encode_report` made.

    Raises:
        DecodeError: it is no report.
    """
    try:
        inflater = zlib.decompressobj()
        encoded = inflater.decompress(data, REPORT_LIMIT_BYTES)
        return _REPORT_DECODER.decode(encoded)
    except (zlib.error, msgspec.DecodeError, ValueError) as error:
        raise DecodeError(f"no report of an attempt: {error}") from error


def decode_order(data: bytes) -> Order:
    """Read TaskInfo.data.

    Raises:
        DecodeError: it is no order.
    """
    try:
        return _ORDER_DECODER.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise DecodeError(f"no order: {error}") from error
