"""Every message, one typed struct each: the wire's only source of truth.

Messages about sessions stand in `meseta/messages_session.py`, those of operators and of the event stream in
`meseta/messages_operators.py`; this module is the door to them all.

A payload is a MessagePack array of maps; each map has a `type` tag. A payload of a master starts
with its `Epoch`. One bad element refuses the whole array. `docs/protocol.md` shows an example of
each message.
"""

import re
from typing import Annotated, Final

import msgspec

from meseta.errors import DecodeError
from meseta.ids import ContainerId, ExecutorId, FrameworkId, OfferId, SlaveId, StatusUuid, TaskId
from meseta.messages_operators import (
    Done,
    FrameworkChanged,
    FrameworkRemoved,
    Frameworks,
    GetFrameworks,
    GetMaster,
    GetNodes,
    GetTasks,
    MasterStatus,
    NodeChanged,
    NodeRemoved,
    Nodes,
    OperatorKillTask,
    StreamPosition,
    TaskChanged,
    TaskRemoved,
    Tasks,
)
from meseta.messages_session import (
    PAGE_LIMIT,
    PROTOCOL_VERSION,
    Epoch,
    Error,
    Goodbye,
    Hello,
    Ping,
    Pong,
    RequestId,
    Welcome,
    WireMessage,
)
from meseta.model import (
    Address,
    Data,
    ExecutorInfo,
    FileEntry,
    Filters,
    FrameworkInfo,
    Name,
    Offer,
    Operation,
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

__all__ = [
    "CHUNK_LIMIT_BYTES",
    "PAGE_LIMIT",
    "PROTOCOL_VERSION",
    "AcceptOffers",
    "AcknowledgeStatus",
    "Call",
    "DeclineOffers",
    "Done",
    "Epoch",
    "Error",
    "ExecutorLost",
    "ExecutorRegistered",
    "ExecutorToFramework",
    "FileCredit",
    "FileData",
    "FileList",
    "FrameworkChanged",
    "FrameworkError",
    "FrameworkRegistered",
    "FrameworkRemoved",
    "FrameworkToExecutor",
    "Frameworks",
    "GetFrameworks",
    "GetMaster",
    "GetNodes",
    "GetTasks",
    "Goodbye",
    "Hello",
    "KillTask",
    "LaunchTask",
    "ListFiles",
    "MasterStatus",
    "Message",
    "NodeChanged",
    "NodeRemoved",
    "Nodes",
    "OperatorKillTask",
    "Ping",
    "Pong",
    "ReadFile",
    "ReconcileTasks",
    "RegisterExecutor",
    "RegisterFramework",
    "RegisterSlave",
    "Reply",
    "ReregisterSlave",
    "RescindOffer",
    "ResourceOffers",
    "ReviveOffers",
    "RunTask",
    "ShutdownExecutor",
    "ShutdownFramework",
    "ShutdownSlave",
    "SlaveLost",
    "SlaveRegistered",
    "StatusUpdate",
    "StreamPosition",
    "SuppressOffers",
    "TaskChanged",
    "TaskRemoved",
    "Tasks",
    "TeardownFramework",
    "UpdateFramework",
    "Welcome",
    "append",
    "decode",
    "encode",
]

CHUNK_LIMIT_BYTES = 1 << 20  # The largest piece of a file in one message.


# --- Framework to master ------------------------------------------------------------------------


class RegisterFramework(WireMessage, frozen=True, kw_only=True):
    """Become a framework. `framework_info.id` set: come back, also from another process (take-over)."""

    framework_info: FrameworkInfo
    suppressed_roles: tuple[str, ...] = ()


class AcceptOffers(WireMessage, frozen=True, kw_only=True):
    """Use offers of one slave; what the operations leave over is declined with `filters`."""

    offer_ids: tuple[OfferId, ...]
    operations: tuple[Operation, ...] = ()
    filters: Filters = Filters()


class DeclineOffers(WireMessage, frozen=True, kw_only=True):
    """Give offers back and do not see a subset of them for `filters.refuse_s`."""

    offer_ids: tuple[OfferId, ...]
    filters: Filters = Filters()


class ReviveOffers(WireMessage, frozen=True, kw_only=True):
    """Want offers again for `roles` (none named: all) and forget their filters."""

    roles: tuple[str, ...] = ()


class SuppressOffers(WireMessage, frozen=True, kw_only=True):
    """Want no offers for `roles` (none named: all)."""

    roles: tuple[str, ...] = ()


class KillTask(WireMessage, frozen=True, kw_only=True):
    """Framework to master to slave. `framework_id` is set by the master; `grace_period_s` overrides the task's."""

    task_id: TaskId
    framework_id: FrameworkId | None = None
    slave_id: SlaveId | None = None
    grace_period_s: Seconds | None = None


class AcknowledgeStatus(WireMessage, frozen=True, kw_only=True):
    """The update `uuid` is safe with the framework. Framework to master to slave; also slave to executor."""

    task_id: TaskId
    uuid: StatusUuid
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None


class ReconcileTasks(WireMessage, frozen=True, kw_only=True):
    """Ask for the newest state of `tasks`; none named: of all tasks the master knows."""

    tasks: tuple[TaskQuery, ...] = ()


class FrameworkToExecutor(WireMessage, frozen=True, kw_only=True):
    """Unreliable; framework to master to slave to executor."""

    slave_id: SlaveId
    executor_id: ExecutorId
    data: Data
    framework_id: FrameworkId | None = None


class ShutdownExecutor(WireMessage, frozen=True, kw_only=True):
    """End an executor and its tasks. Framework to master to slave to executor."""

    executor_id: ExecutorId
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None


class TeardownFramework(WireMessage, frozen=True, kw_only=True):
    """End a framework and all its tasks; its id is barred for ever.

    From the framework itself without fields; from an operator with both.
    """

    framework_id: FrameworkId | None = None
    request_id: RequestId | None = None


# --- Master to framework ------------------------------------------------------------------------


class FrameworkRegistered(WireMessage, frozen=True, kw_only=True):
    """`reregistered` tells that the id was known before, to this master or an earlier one."""

    framework_id: FrameworkId
    reregistered: bool = False


class ResourceOffers(WireMessage, frozen=True, kw_only=True):
    """New offers."""

    offers: tuple[Offer, ...]


class RescindOffer(WireMessage, frozen=True, kw_only=True):
    """The offer is void."""

    offer_id: OfferId


class StatusUpdate(WireMessage, frozen=True, kw_only=True):
    """Executor to slave to master to framework. Towards a framework the first two fields may be unset.

    `latest_state` is the newest that the slave knows, when that is later than `status.state`.
    """

    status: TaskStatus
    framework_id: FrameworkId | None = None
    latest_state: TaskState | None = None


class SlaveLost(WireMessage, frozen=True, kw_only=True):
    """The slave is unreachable or gone; updates for its tasks follow."""

    slave_id: SlaveId


class ExecutorLost(WireMessage, frozen=True, kw_only=True):
    """Slave to master to framework: the executor's process ended; updates for its tasks come apart."""

    executor_id: ExecutorId
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None
    exit_status: int = 0


class ExecutorToFramework(WireMessage, frozen=True, kw_only=True):
    """Unreliable; executor to slave to master to framework."""

    executor_id: ExecutorId
    data: Data
    slave_id: SlaveId | None = None
    framework_id: FrameworkId | None = None


class FrameworkError(WireMessage, frozen=True, kw_only=True):
    """The framework cannot go on: taken over, torn down or refused."""

    message: Text


# --- Slave and master ---------------------------------------------------------------------------


class RegisterSlave(WireMessage, frozen=True, kw_only=True):
    """A slave without an id asks to be admitted."""

    slave_info: SlaveInfo


class ReregisterSlave(WireMessage, frozen=True, kw_only=True):
    """A slave that has an id (in `slave_info`) comes back with what runs on it."""

    slave_info: SlaveInfo
    tasks: tuple[Task, ...] = ()
    executors: tuple[RunningExecutor, ...] = ()
    frameworks: tuple[FrameworkInfo, ...] = ()


class SlaveRegistered(WireMessage, frozen=True, kw_only=True):
    """The slave is admitted, durably."""

    slave_id: SlaveId
    reregistered: bool = False


class ShutdownSlave(WireMessage, frozen=True, kw_only=True):
    """Kill everything and exit: the master no longer accounts for this slave."""

    message: Text


class RunTask(WireMessage, frozen=True, kw_only=True):
    """Master to slave. `framework_info.id` is set.

    Without `launch_executor` the task's executor is accounted for already: if it has ended meanwhile, the task is
    not to be started, since the master would not know what a new one holds.
    """

    framework_info: FrameworkInfo
    task: TaskInfo
    role: Name = "*"
    launch_executor: bool = True


class UpdateFramework(WireMessage, frozen=True, kw_only=True):
    """Master to slave: a framework with tasks there has registered again with other data."""

    framework_info: FrameworkInfo


class ShutdownFramework(WireMessage, frozen=True, kw_only=True):
    """Master to slave: kill all tasks and executors of the framework."""

    framework_id: FrameworkId


# --- Executor and slave -------------------------------------------------------------------------


class RegisterExecutor(WireMessage, frozen=True, kw_only=True):
    """An executor reports; after its slave's restart with what it has in hand."""

    executor_id: ExecutorId
    framework_id: FrameworkId
    tasks: tuple[TaskInfo, ...] = ()
    unacknowledged: tuple[TaskStatus, ...] = ()


class ExecutorRegistered(WireMessage, frozen=True, kw_only=True):
    """The executor may work."""

    framework_info: FrameworkInfo
    executor_info: ExecutorInfo
    slave_id: SlaveId
    hostname: Name
    container_id: ContainerId
    address: Address
    reregistered: bool = False


class LaunchTask(WireMessage, frozen=True, kw_only=True):
    """Slave to executor."""

    task: TaskInfo


# --- Files of a sandbox, from the slave's own ROUTER ---------------------------------------------


class ReadFile(WireMessage, frozen=True, kw_only=True):
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


class FileCredit(WireMessage, frozen=True, kw_only=True):
    """The reader has room for `credit` more pieces."""

    request_id: RequestId
    credit: Annotated[int, msgspec.Meta(ge=1, le=64)]


class FileData(WireMessage, frozen=True, kw_only=True):
    """A piece of a file. `size_bytes` is the file's size now; `is_last` ends the answer."""

    request_id: RequestId
    offset: int
    data: Annotated[bytes, msgspec.Meta(max_length=CHUNK_LIMIT_BYTES)]
    size_bytes: int
    is_last: bool = False


class ListFiles(WireMessage, frozen=True, kw_only=True):
    """List a folder of a sandbox."""

    request_id: RequestId
    framework_id: FrameworkId
    container_id: ContainerId
    path: Text = "."


class FileList(WireMessage, frozen=True, kw_only=True):
    """Answer to `ListFiles`, in the order of names."""

    request_id: RequestId
    entries: tuple[FileEntry, ...]


# --- Services that frameworks offer --------------------------------------------------------------


class Call(WireMessage, frozen=True, kw_only=True):
    """A request to a framework's own ROUTER. `params` is MessagePack, typed by the framework."""

    request_id: RequestId
    method: Name
    params: msgspec.Raw = msgspec.Raw(b"\x80")


class Reply(WireMessage, frozen=True, kw_only=True):
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
    | NodeChanged
    | NodeRemoved
    | FrameworkChanged
    | FrameworkRemoved
    | TaskChanged
    | TaskRemoved
    | StreamPosition
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
