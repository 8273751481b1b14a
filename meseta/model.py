"""What messages are made of: offers, tasks, frameworks, slaves and their states.

Names are those of the field (Mesos). Quantities are `Resources` in integer thousandths, durations
are float seconds and end in `_s`, wall-clock times end in `_unix_s`. All values are immutable;
between peers unknown fields are ignored.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from meseta.ids import (
    ContainerId,
    ExecutorId,
    FrameworkId,
    OfferId,
    SlaveId,
    StatusUuid,
    TaskId,
)
from meseta.resources import Resources

ID_LIMIT = 255  # A task's id names its folder, and a file name has at most 255 bytes.
DATA_LIMIT_BYTES = 1 << 20  # `data` passes the master; what is larger belongs in a file.
TEXT_LIMIT = 64 << 10  # A message that people read; longer ones belong in a log.
WEEK_S = 7 * 24 * 3600.0
DEFAULT_REFUSE_S = 5.0  # Mesos's default filter.
REFUSE_LIMIT_S = 365 * 24 * 3600.0  # Mesos's cap on `refuse_seconds`.
DEFAULT_KILL_GRACE_S = 3.0
DEFAULT_SHUTDOWN_GRACE_S = 5.0

Text = Annotated[str, msgspec.Meta(max_length=TEXT_LIMIT)]
Name = Annotated[str, msgspec.Meta(max_length=ID_LIMIT)]
# Becomes a folder's name on a slave: no slash, no leading dot, nothing that a shell or a terminal reads.
IDENTIFIER_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.:@=+-]*\Z"
Data = Annotated[bytes, msgspec.Meta(max_length=DATA_LIMIT_BYTES)]
# Bounded on both sides: that refuses NaN and the infinities, which no arithmetic on times survives.
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e10)]


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """Base of all values on the wire and on disk."""


class TaskState(StrEnum):
    """The 14 task states of Mesos v1; `is_terminal` says which are an end."""

    STAGING = "TASK_STAGING"
    STARTING = "TASK_STARTING"
    RUNNING = "TASK_RUNNING"
    KILLING = "TASK_KILLING"
    FINISHED = "TASK_FINISHED"
    FAILED = "TASK_FAILED"
    KILLED = "TASK_KILLED"
    ERROR = "TASK_ERROR"
    LOST = "TASK_LOST"
    DROPPED = "TASK_DROPPED"
    UNREACHABLE = "TASK_UNREACHABLE"
    GONE = "TASK_GONE"
    GONE_BY_OPERATOR = "TASK_GONE_BY_OPERATOR"
    UNKNOWN = "TASK_UNKNOWN"

    @property
    def is_terminal(self) -> bool:
        """True if nothing follows: the task's resources are free.

        TASK_LOST is terminal only by courtesy: frameworks that are not partition-aware get it in
        place of TASK_UNREACHABLE, and such a task may come back.
        """
        return self in _TERMINAL_STATES


_TERMINAL_STATES = frozenset(
    {
        TaskState.FINISHED,
        TaskState.FAILED,
        TaskState.KILLED,
        TaskState.ERROR,
        TaskState.LOST,
        TaskState.DROPPED,
        TaskState.GONE,
        TaskState.GONE_BY_OPERATOR,
    }
)


class Source(StrEnum):
    """Who made a status update."""

    MASTER = "SOURCE_MASTER"
    SLAVE = "SOURCE_SLAVE"
    EXECUTOR = "SOURCE_EXECUTOR"


class Reason(StrEnum):
    """Why a task is in its state (Mesos v0 names, which say slave)."""

    CONTAINER_LAUNCH_FAILED = "REASON_CONTAINER_LAUNCH_FAILED"
    CONTAINER_LIMITATION_MEMORY = "REASON_CONTAINER_LIMITATION_MEMORY"
    EXECUTOR_REGISTRATION_TIMEOUT = "REASON_EXECUTOR_REGISTRATION_TIMEOUT"
    EXECUTOR_REREGISTRATION_TIMEOUT = "REASON_EXECUTOR_REREGISTRATION_TIMEOUT"
    EXECUTOR_TERMINATED = "REASON_EXECUTOR_TERMINATED"
    FRAMEWORK_REMOVED = "REASON_FRAMEWORK_REMOVED"
    INVALID_OFFERS = "REASON_INVALID_OFFERS"
    MASTER_DISCONNECTED = "REASON_MASTER_DISCONNECTED"
    RECONCILIATION = "REASON_RECONCILIATION"
    SLAVE_DISCONNECTED = "REASON_SLAVE_DISCONNECTED"
    SLAVE_REMOVED = "REASON_SLAVE_REMOVED"
    SLAVE_REREGISTERED = "REASON_SLAVE_REREGISTERED"
    SLAVE_RESTARTED = "REASON_SLAVE_RESTARTED"
    SUPERVISOR_TERMINATED = "REASON_SUPERVISOR_TERMINATED"
    TASK_INVALID = "REASON_TASK_INVALID"
    TASK_KILLED_DURING_LAUNCH = "REASON_TASK_KILLED_DURING_LAUNCH"
    TASK_UNAUTHORIZED = "REASON_TASK_UNAUTHORIZED"


class Capability(StrEnum):
    """What a peer understands; exchanged in `Hello` and in `FrameworkInfo`."""

    PARTITION_AWARE = "PARTITION_AWARE"
    TASK_KILLING_STATE = "TASK_KILLING_STATE"


class Address(Record, frozen=True, kw_only=True):
    """Where a ROUTER listens, and the CURVE public key (Z85) that it proves.

    `public_key` is None only in clusters that run with --insecure.
    """

    endpoint: Name
    public_key: str | None = None


class CommandInfo(Record, frozen=True, kw_only=True):
    """What to start: `value` through `/bin/sh -c`, or `arguments` as they are; exactly one of them."""

    value: str | None = None
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    user: Name | None = None  # None: the framework's user.


class KillPolicy(Record, frozen=True, kw_only=True):
    """SIGTERM, wait `grace_period_s`, SIGKILL."""

    grace_period_s: Seconds = DEFAULT_KILL_GRACE_S


class ExecutorInfo(Record, frozen=True, kw_only=True):
    """A long-lived process on a slave that runs a framework's tasks in its own way.

    `data` reaches the executor in `ExecutorRegistered`.
    """

    executor_id: ExecutorId
    command: CommandInfo
    resources: Resources = Resources()
    name: Name = ""
    data: Data = b""
    shutdown_grace_period_s: Seconds = DEFAULT_SHUTDOWN_GRACE_S


class TaskInfo(Record, frozen=True, kw_only=True):
    """A task as its framework describes it: `command` or `executor`, exactly one of them."""

    task_id: TaskId
    slave_id: SlaveId
    name: Name = ""
    resources: Resources = Resources()
    command: CommandInfo | None = None
    executor: ExecutorInfo | None = None
    data: Data = b""
    kill_policy: KillPolicy = KillPolicy()
    labels: dict[str, str] = {}


class FrameworkInfo(Record, frozen=True, kw_only=True):
    """Who a framework is. `id` is None until the master gives one.

    `address` announces a ROUTER that the framework binds for its own clients, found by name
    through the master. Holders of the secret to `task_public_key` may read the sandboxes of this
    framework's tasks, on any slave that runs one: for tasks that fetch from each other.
    """

    name: Name
    user: Name
    id: FrameworkId | None = None
    roles: tuple[Name, ...] = ("*",)
    failover_timeout_s: Seconds = WEEK_S
    capabilities: tuple[str, ...] = ()
    hostname: Name = ""
    webui_url: Text = ""
    labels: dict[str, str] = {}
    address: Address | None = None
    task_public_key: str | None = None


class SlaveInfo(Record, frozen=True, kw_only=True):
    """Who a slave is and what it has. `address` is the ROUTER that serves its files."""

    hostname: Name
    resources: Resources
    address: Address
    attributes: dict[str, str] = {}
    id: SlaveId | None = None
    boot_id: str = ""
    version: str = ""
    capabilities: tuple[str, ...] = ()


class Offer(Record, frozen=True, kw_only=True):
    """The free resources of one slave, for one role of one framework."""

    offer_id: OfferId
    framework_id: FrameworkId
    slave_id: SlaveId
    hostname: Name
    resources: Resources
    address: Address
    role: Name = "*"
    attributes: dict[str, str] = {}
    executor_ids: tuple[ExecutorId, ...] = ()


class Filters(Record, frozen=True, kw_only=True):
    """How long the refused resources of a slave are not offered again, in seconds (at most 365 days)."""

    refuse_s: Annotated[float, msgspec.Meta(ge=0, le=REFUSE_LIMIT_S)] = DEFAULT_REFUSE_S


class Launch(Record, frozen=True, kw_only=True, tag="LAUNCH", tag_field="type"):
    """Start tasks on the accepted offers' slave; judged task by task, in order."""

    task_infos: tuple[TaskInfo, ...]


Operation = Launch


class Limitation(Record, frozen=True, kw_only=True):
    """The resource that a task used up: how much it was given, how much it used at most."""

    resource: Name
    limit_milli: int
    peak_milli: int


class TaskStatus(Record, frozen=True, kw_only=True):
    """One step in a task's life. With a `uuid` it is re-sent until acknowledged; without, never."""

    task_id: TaskId
    state: TaskState
    slave_id: SlaveId | None = None
    executor_id: ExecutorId | None = None
    source: Source = Source.SLAVE
    reason: Reason | None = None
    message: Text = ""
    data: Data = b""
    uuid: StatusUuid | None = None
    timestamp_unix_s: Seconds = 0.0
    exit_status: int | None = None  # As a shell shows it: 128 + the signal's number if one ended it.
    container_id: ContainerId | None = None  # Names the sandbox of a command task.
    limitation: Limitation | None = None


class Task(Record, frozen=True, kw_only=True):
    """A task as slave and master account for it.

    `state` is the newest the slave knows and rules resources; `status` is the update that was
    last handed on to the framework (None: none yet).
    """

    task_id: TaskId
    framework_id: FrameworkId
    slave_id: SlaveId
    state: TaskState
    resources: Resources
    name: Name = ""
    executor_id: ExecutorId | None = None
    container_id: ContainerId | None = None
    status: TaskStatus | None = None
    role: Name = "*"
    user: Name = ""
    started_unix_s: Seconds = 0.0


class RunningExecutor(Record, frozen=True, kw_only=True):
    """An executor as slave and master account for it."""

    framework_id: FrameworkId
    executor: ExecutorInfo
    container_id: ContainerId
    role: Name = "*"


class TaskQuery(Record, frozen=True, kw_only=True):
    """A task to be reconciled."""

    task_id: TaskId
    slave_id: SlaveId | None = None


class Node(Record, frozen=True, kw_only=True):
    """A slave as operators see it. `state`: active, disconnected, unreachable or recovered."""

    slave_id: SlaveId
    hostname: str
    state: str
    address: Address
    attributes: dict[str, str]
    total: Resources
    used: Resources
    offered: Resources
    tasks_active: int
    version: str = ""
    registered_unix_s: Seconds = 0.0


class WaitReasons(Record, frozen=True, kw_only=True):
    """Why a framework has had no offer since its last one: how often each check failed.

    `too_small_by` is the least that one slave lacked of the smallest offer worth making;
    `filtered_slaves` and the like count slaves, now.
    """

    since_s: Seconds = 0.0
    suppressed_roles: tuple[str, ...] = ()
    filtered_slaves: int = 0
    too_small_slaves: int = 0
    too_small_by: Resources = Resources()
    role_share: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    lost_to_lower_share: int = 0
    no_slaves: bool = False


class FrameworkView(Record, frozen=True, kw_only=True):
    """A framework as operators see it. `state`: active, disconnected, recovered or completed."""

    framework_info: FrameworkInfo
    state: str
    principal: str = ""
    used: Resources = Resources()
    offered: Resources = Resources()
    tasks_active: int = 0
    tasks_completed: int = 0
    registered_unix_s: Seconds = 0.0
    waiting: WaitReasons | None = None


class FileEntry(Record, frozen=True, kw_only=True):
    """One entry of a folder, as `ls -l` shows it."""

    name: str
    size_bytes: int
    mode: int
    modified_unix_s: Seconds
    is_folder: bool = False
