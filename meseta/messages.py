"""Every message, one typed struct each: the wire's only source of truth.

A payload is a MessagePack array of maps; each map has a `type` tag. A payload of a master starts
with its `Epoch`. One bad element refuses the whole array. `docs/protocol.md` shows an example of
each message.
"""

import re
from typing import Annotated, Final

import msgspec

from meseta.errors import DecodeError
from meseta.ids import ContainerId, ExecutorId, FrameworkId, OfferId, SlaveId, StatusUuid, TaskId
from meseta.model import (
    Address,
    Data,
    ExecutorInfo,
    FileEntry,
    Filters,
    FrameworkInfo,
    FrameworkView,
    Name,
    Node,
    Offer,
    Operation,
    Record,
    RunningExecutor,
    Seconds,
    SlaveInfo,
    Task,
    TaskInfo,
    TaskQuery,
    TaskState,
    TaskStatus,
    Text,
)
from meseta.resources import Resources

PROTOCOL_VERSION = 1
PAGE_LIMIT = 1000  # Objects in one answer: some 300 kB, a few milliseconds of the master's time.
CHUNK_LIMIT_BYTES = 1 << 20  # The largest piece of a file in one message.

RequestId = Annotated[int, msgspec.Meta(ge=0)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)]


class _Message(Record, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base: the tag is the class's name."""


# --- Sessions -----------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True):
    """First message of a session, from the one who connects."""

    kind: Name  # "slave", "framework", "executor", "operator" or "task"
    version: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = ()
    name: Name = ""
    token: str = ""  # Executors prove the token that their slave gave them.


class Welcome(_Message, frozen=True, kw_only=True):
    """Answer to `Hello`: the session is open."""

    version: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = ()
    principal: Name = ""  # As the server knows the caller.


class Epoch(_Message, frozen=True, kw_only=True):
    """First element of every payload of a master: the term in which it was sent."""

    epoch: int


class Ping(_Message, frozen=True, kw_only=True):
    """Sent by the master; a peer that misses too many is taken for dead, and so is a silent master.

    `interval_s` is the time to the next one and `missed_limit` how many may be missed.
    """

    interval_s: Seconds
    missed_limit: int


class Pong(_Message, frozen=True, kw_only=True):
    """Answer to `Ping`."""


class Goodbye(_Message, frozen=True, kw_only=True):
    """The session ends on purpose."""

    message: Text = ""


class Error(_Message, frozen=True, kw_only=True):
    """A refusal. `code` is for programs, `message` for people; `request_id` names the request if there was one.

    Codes: unknown_session, bad_message, bad_version, overflow, unauthorized, not_found, invalid, removed, expired,
    failed.
    """

    code: Name
    message: Text
    index: int | None = None
    field: str | None = None
    request_id: RequestId | None = None


# --- Framework to master ------------------------------------------------------------------------


class RegisterFramework(_Message, frozen=True, kw_only=True):
    """Become a framework. `framework_info.id` set: come back, also from another process (take-over)."""

    framework_info: FrameworkInfo
    suppressed_roles: tuple[str, ...] = ()


class AcceptOffers(_Message, frozen=True, kw_only=True):
    """Use offers of one slave; what the operations leave over is declined with `filters`."""

    offer_ids: tuple[OfferId, ...]
    operations: tuple[Operation, ...] = ()
    filters: Filters = Filters()


class DeclineOffers(_Message, frozen=True, kw_only=True):
    """Give offers back and do not see a subset of them for `filters.refuse_s`."""

    offer_ids: tuple[OfferId, ...]
    filters: Filters = Filters()


class ReviveOffers(_Message, frozen=True, kw_only=True):
    """Want offers again for `roles` (none named: all) and forget their filters."""

    roles: tuple[str, ...] = ()


class SuppressOffers(_Message, frozen=True, kw_only=True):
    """Want no offers for `roles` (none named: all)."""

    roles: tuple[str, ...] = ()


class KillTask(_Message, frozen=True, kw_only=True):
    """Framework to master to slave. `framework_id` is set by the master; `grace_period_s` overrides the task's."""

    task_id: TaskId
    framework_id: FrameworkId | None = None
    slave_id: SlaveId | None = None
    grace_period_s: Seconds | None = None


class AcknowledgeStatus(_Message, frozen=True, kw_only=True):
    """The update `uuid` is safe with the framework. Framework to master to slave; also slave to executor."""

    task_id: TaskId
    uuid: StatusUuid
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None


class ReconcileTasks(_Message, frozen=True, kw_only=True):
    """Ask for the newest state of `tasks`; none named: of all tasks the master knows."""

    tasks: tuple[TaskQuery, ...] = ()


class FrameworkToExecutor(_Message, frozen=True, kw_only=True):
    """Unreliable; framework to master to slave to executor."""

    slave_id: SlaveId
    executor_id: ExecutorId
    data: Data
    framework_id: FrameworkId | None = None


class ShutdownExecutor(_Message, frozen=True, kw_only=True):
    """End an executor and its tasks. Framework to master to slave to executor."""

    executor_id: ExecutorId
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None


class TeardownFramework(_Message, frozen=True, kw_only=True):
    """End a framework and all its tasks; its id is barred for ever.

    From the framework itself without fields; from an operator with both.
    """

    framework_id: FrameworkId | None = None
    request_id: RequestId | None = None


# --- Master to framework ------------------------------------------------------------------------


class FrameworkRegistered(_Message, frozen=True, kw_only=True):
    """`reregistered` tells that the id was known before, to this master or an earlier one."""

    framework_id: FrameworkId
    reregistered: bool = False


class ResourceOffers(_Message, frozen=True, kw_only=True):
    """New offers."""

    offers: tuple[Offer, ...]


class RescindOffer(_Message, frozen=True, kw_only=True):
    """The offer is void."""

    offer_id: OfferId


class StatusUpdate(_Message, frozen=True, kw_only=True):
    """Executor to slave to master to framework. Towards a framework the first two fields may be unset.

    `latest_state` is the newest that the slave knows, when that is later than `status.state`.
    """

    status: TaskStatus
    framework_id: FrameworkId | None = None
    latest_state: TaskState | None = None


class SlaveLost(_Message, frozen=True, kw_only=True):
    """The slave is unreachable or gone; updates for its tasks follow."""

    slave_id: SlaveId


class ExecutorLost(_Message, frozen=True, kw_only=True):
    """Slave to master to framework: the executor's process ended; updates for its tasks come apart."""

    executor_id: ExecutorId
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None
    exit_status: int = 0


class ExecutorToFramework(_Message, frozen=True, kw_only=True):
    """Unreliable; executor to slave to master to framework."""

    executor_id: ExecutorId
    data: Data
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None


class FrameworkError(_Message, frozen=True, kw_only=True):
    """The framework cannot go on: taken over, torn down or refused."""

    message: Text


# --- Slave and master ---------------------------------------------------------------------------


class RegisterSlave(_Message, frozen=True, kw_only=True):
    """A slave without an id asks to be admitted."""

    slave_info: SlaveInfo


class ReregisterSlave(_Message, frozen=True, kw_only=True):
    """A slave that has an id (in `slave_info`) comes back with what runs on it."""

    slave_info: SlaveInfo
    tasks: tuple[Task, ...] = ()
    executors: tuple[RunningExecutor, ...] = ()
    frameworks: tuple[FrameworkInfo, ...] = ()


class SlaveRegistered(_Message, frozen=True, kw_only=True):
    """The slave is admitted, durably."""

    slave_id: SlaveId
    reregistered: bool = False


class ShutdownSlave(_Message, frozen=True, kw_only=True):
    """Kill everything and exit: the master no longer accounts for this slave."""

    message: Text


class RunTask(_Message, frozen=True, kw_only=True):
    """Master to slave. `framework_info.id` is set.

    Without `launch_executor` the task's executor is accounted for already: if it has ended meanwhile, the task is
    not to be started, since the master would not know what a new one holds.
    """

    framework_info: FrameworkInfo
    task: TaskInfo
    role: Name = "*"
    launch_executor: bool = True


class UpdateFramework(_Message, frozen=True, kw_only=True):
    """Master to slave: a framework with tasks there has registered again with other data."""

    framework_info: FrameworkInfo


class ShutdownFramework(_Message, frozen=True, kw_only=True):
    """Master to slave: kill all tasks and executors of the framework."""

    framework_id: FrameworkId


# --- Executor and slave -------------------------------------------------------------------------


class RegisterExecutor(_Message, frozen=True, kw_only=True):
    """An executor reports; after its slave's restart with what it has in hand."""

    executor_id: ExecutorId
    framework_id: FrameworkId
    tasks: tuple[TaskInfo, ...] = ()
    unacknowledged: tuple[TaskStatus, ...] = ()


class ExecutorRegistered(_Message, frozen=True, kw_only=True):
    """The executor may work."""

    framework_info: FrameworkInfo
    executor_info: ExecutorInfo
    slave_id: SlaveId
    hostname: Name
    container_id: ContainerId
    address: Address
    reregistered: bool = False


class LaunchTask(_Message, frozen=True, kw_only=True):
    """Slave to executor."""

    task: TaskInfo


# --- Operators and master -----------------------------------------------------------------------


class GetMaster(_Message, frozen=True, kw_only=True):
    """Ask for the master's own state."""

    request_id: RequestId


class MasterStatus(_Message, frozen=True, kw_only=True):
    """Answer to `GetMaster`. Resource sums are over registered slaves."""

    request_id: RequestId
    epoch: int
    version: str
    uptime_s: Seconds
    slaves_active: int
    slaves_unreachable: int
    frameworks_active: int
    frameworks_disconnected: int
    tasks_active: int
    offers_outstanding: int
    resources_total: Resources
    resources_used: Resources
    resources_offered: Resources


class GetNodes(_Message, frozen=True, kw_only=True):
    """One page of slaves, in the order of their ids, after `after`."""

    request_id: RequestId
    after: str = ""
    limit: Limit = PAGE_LIMIT


class Nodes(_Message, frozen=True, kw_only=True):
    """Answer to `GetNodes`; `next` is the `after` of the next page, None on the last."""

    request_id: RequestId
    nodes: tuple[Node, ...]
    next: str | None = None


class GetFrameworks(_Message, frozen=True, kw_only=True):
    """One page of frameworks, in the order of their ids."""

    request_id: RequestId
    after: str = ""
    limit: Limit = PAGE_LIMIT
    name: str | None = None  # Only frameworks of this name.
    include_completed: bool = False


class Frameworks(_Message, frozen=True, kw_only=True):
    """Answer to `GetFrameworks`."""

    request_id: RequestId
    frameworks: tuple[FrameworkView, ...]
    next: str | None = None


class GetTasks(_Message, frozen=True, kw_only=True):
    """One page of tasks in the order of `framework id/task id`, active ones and, if asked, completed ones."""

    request_id: RequestId
    after: str = ""
    limit: Limit = PAGE_LIMIT
    framework_id: FrameworkId | None = None
    slave_id: SlaveId | None = None
    include_completed: bool = False


class Tasks(_Message, frozen=True, kw_only=True):
    """Answer to `GetTasks`. A completed task's `status` says how it ended."""

    request_id: RequestId
    tasks: tuple[Task, ...]
    next: str | None = None


class OperatorKillTask(_Message, frozen=True, kw_only=True):
    """Kill a task whoever's it is; its framework hears of it by a status update."""

    request_id: RequestId
    framework_id: FrameworkId
    task_id: TaskId
    grace_period_s: Seconds | None = None


class Done(_Message, frozen=True, kw_only=True):
    """The request was carried out (a kill: was sent to the slave)."""

    request_id: RequestId


# --- Files of a sandbox, from the slave's own ROUTER ---------------------------------------------


class ReadFile(_Message, frozen=True, kw_only=True):
    """Read `length` bytes from `offset` of a file in a sandbox; negative offset: from the end.

    Answered by one or more `FileData` of at most 1 MiB, no more than `credit` of them before the
    next `FileCredit` of the same `request_id`.
    """

    request_id: RequestId
    framework_id: FrameworkId
    container_id: ContainerId
    path: Text
    offset: int = 0
    length: Annotated[int, msgspec.Meta(ge=0)] = CHUNK_LIMIT_BYTES
    credit: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4


class FileCredit(_Message, frozen=True, kw_only=True):
    """The reader has room for `credit` more pieces."""

    request_id: RequestId
    credit: Annotated[int, msgspec.Meta(ge=1, le=64)]


class FileData(_Message, frozen=True, kw_only=True):
    """A piece of a file. `size_bytes` is the file's size now; `is_last` ends the answer."""

    request_id: RequestId
    offset: int
    data: Annotated[bytes, msgspec.Meta(max_length=CHUNK_LIMIT_BYTES)]
    size_bytes: int
    is_last: bool = False


class ListFiles(_Message, frozen=True, kw_only=True):
    """List a folder of a sandbox."""

    request_id: RequestId
    framework_id: FrameworkId
    container_id: ContainerId
    path: Text = "."


class FileList(_Message, frozen=True, kw_only=True):
    """Answer to `ListFiles`, in the order of names."""

    request_id: RequestId
    entries: tuple[FileEntry, ...]


# --- Services that frameworks offer --------------------------------------------------------------


class Call(_Message, frozen=True, kw_only=True):
    """A request to a framework's own ROUTER. `params` is MessagePack, typed by the framework."""

    request_id: RequestId
    method: Name
    params: msgspec.Raw = msgspec.Raw(b"\x80")


class Reply(_Message, frozen=True, kw_only=True):
    """Answer to `Call`; a stream has several, all but the last with `more`."""

    request_id: RequestId
    result: msgspec.Raw
    more: bool = False


Message = (
    Hello
    | Welcome
    | Epoch
    | Ping
    | Pong
    | Goodbye
    | Error
    | RegisterFramework
    | AcceptOffers
    | DeclineOffers
    | ReviveOffers
    | SuppressOffers
    | KillTask
    | AcknowledgeStatus
    | ReconcileTasks
    | FrameworkToExecutor
    | ShutdownExecutor
    | TeardownFramework
    | FrameworkRegistered
    | ResourceOffers
    | RescindOffer
    | StatusUpdate
    | SlaveLost
    | ExecutorLost
    | ExecutorToFramework
    | FrameworkError
    | RegisterSlave
    | ReregisterSlave
    | SlaveRegistered
    | ShutdownSlave
    | RunTask
    | UpdateFramework
    | ShutdownFramework
    | RegisterExecutor
    | ExecutorRegistered
    | LaunchTask
    | GetMaster
    | MasterStatus
    | GetNodes
    | Nodes
    | GetFrameworks
    | Frameworks
    | GetTasks
    | Tasks
    | OperatorKillTask
    | Done
    | ReadFile
    | FileCredit
    | FileData
    | ListFiles
    | FileList
    | Call
    | Reply
)

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[Message])
_PATH: Final = re.compile(r"`\$\[(\d+)\]\.?([^`]*)`")


def encode(messages: "list[Message] | tuple[Message, ...]") -> bytes:
    """Return one payload. Order is kept."""
    return _ENCODER.encode(messages)


def append(message: Message, payload: bytearray) -> None:
    """Put one message at the end of a payload that is being built (`meseta/transport_outbox.py`)."""
    _ENCODER.encode_into(message, payload, -1)


def decode(payload: bytes) -> list[Message]:
    """Read one payload, from anyone.

    Raises:
        DecodeError: whatever is wrong with it; names the first bad element and its field.
    """
    try:
        return _DECODER.decode(payload)
    except msgspec.ValidationError as error:
        match = _PATH.search(str(error))
        if match is None:
            raise DecodeError(str(error)) from error
        raise DecodeError(str(error), index=int(match.group(1)), field=match.group(2) or None) from error
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        raise DecodeError(f"payload of {len(payload)} bytes is no MessagePack array of messages: {error}") from error
