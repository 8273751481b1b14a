"""What the master keeps of slaves, frameworks, tasks and offers, and how their states may change."""

from enum import Enum

from master.registry import AdmittedSlave
from meseta.errors import InvalidTransition
from meseta.ids import ContainerId, ExecutorId, FrameworkId, OfferId, Principal, SessionId, SlaveId, TaskId
from meseta.messages import KillTask, RegisterFramework, RegisterSlave, ReregisterSlave
from meseta.model import Capability, ExecutorInfo, FrameworkInfo, Offer, SlaveInfo, Task, TaskState, TaskStatus
from meseta.resources import Resources

TaskKey = tuple[FrameworkId, TaskId]
ExecutorKey = tuple[FrameworkId, ExecutorId]

_HISTORY_LIMIT = 10  # States named in the report of a forbidden change.


class SlaveState(Enum):
    """Where a slave is.

    RECOVERED: in the registry, and not heard of by this master. MARKING: the record that gives it up
    is being written; READMITTING: the one that takes it back.
    """

    RECOVERED = "recovered"
    ACTIVE = "active"
    DISCONNECTED = "disconnected"
    MARKING = "marking"
    UNREACHABLE = "unreachable"
    READMITTING = "readmitting"


_S = SlaveState
# A slave that registers again while it is MARKING waits for the end of that. What an ACTIVE slave may
# wrongly do (register as another one) is refused in `Slaves`.
SLAVE_CHANGES: dict[SlaveState, frozenset[SlaveState]] = {
    _S.RECOVERED: frozenset({_S.ACTIVE, _S.MARKING}),
    _S.ACTIVE: frozenset({_S.ACTIVE, _S.DISCONNECTED, _S.MARKING}),
    _S.DISCONNECTED: frozenset({_S.ACTIVE, _S.MARKING}),
    _S.MARKING: frozenset({_S.UNREACHABLE}),
    _S.UNREACHABLE: frozenset({_S.READMITTING}),
    _S.READMITTING: frozenset({_S.ACTIVE, _S.RECOVERED}),
}
# Slaves that may still come back with tasks of which this master does not know.
UNHEARD = frozenset({_S.RECOVERED, _S.READMITTING, _S.MARKING})


class FrameworkState(Enum):
    """Where a framework is. RECOVERED: known by the registry or by a slave, no scheduler yet.

    REMOVING: its id is being barred; REMOVED: over, but some of its tasks may still be dying.
    """

    RECOVERED = "recovered"
    ACTIVE = "active"
    DISCONNECTED = "disconnected"
    REMOVING = "removing"
    REMOVED = "completed"


_F = FrameworkState
# ACTIVE to itself: another scheduler takes over, or the same registers again.
FRAMEWORK_CHANGES: dict[FrameworkState, frozenset[FrameworkState]] = {
    _F.RECOVERED: frozenset({_F.ACTIVE, _F.REMOVING}),
    _F.ACTIVE: frozenset({_F.ACTIVE, _F.DISCONNECTED, _F.REMOVING}),
    _F.DISCONNECTED: frozenset({_F.ACTIVE, _F.REMOVING}),
    _F.REMOVING: frozenset({_F.REMOVED}),
    _F.REMOVED: frozenset(),
}

_T = TaskState
_ENDS = frozenset({state for state in TaskState if state.is_terminal})
# As slaves report it; late and doubled reports that go backwards are ignored in `Tasks`.
TASK_CHANGES: dict[TaskState, frozenset[TaskState]] = {
    _T.STAGING: _ENDS | {_T.STARTING, _T.RUNNING, _T.KILLING, _T.UNREACHABLE},
    _T.STARTING: _ENDS | {_T.RUNNING, _T.KILLING, _T.UNREACHABLE},
    _T.RUNNING: _ENDS | {_T.KILLING, _T.UNREACHABLE},
    _T.KILLING: _ENDS | {_T.UNREACHABLE},
    _T.UNREACHABLE: _ENDS | {_T.STAGING, _T.STARTING, _T.RUNNING, _T.KILLING},
    _T.UNKNOWN: frozenset(),
    **{state: frozenset() for state in _ENDS},
}


class Session:
    """An open session: who is at its other end, and as what it has registered."""

    __slots__ = ("deferred", "framework", "is_registering", "kind", "principal", "session_id", "slave")

    def __init__(self, session_id: SessionId, principal: Principal, kind: str) -> None:
        self.session_id = session_id
        self.principal = principal
        self.kind = kind
        self.slave: SlaveEntry | None = None
        self.framework: FrameworkEntry | None = None
        self.is_registering = False  # A record is being written for it: repeated attempts are ignored.
        self.deferred: RegisterFramework | RegisterSlave | ReregisterSlave | None = None


class OfferEntry:
    """An offer that a framework has in hand."""

    __slots__ = ("framework", "offer", "slave")

    def __init__(self, offer: Offer, framework: "FrameworkEntry", slave: "SlaveEntry") -> None:
        self.offer = offer
        self.framework = framework
        self.slave = slave


class ExecutorEntry:
    """An executor that holds resources of a slave."""

    __slots__ = ("framework", "info", "role", "slave")

    def __init__(self, info: ExecutorInfo, role: str, framework: "FrameworkEntry", slave: "SlaveEntry") -> None:
        self.info = info
        self.role = role
        self.framework = framework
        self.slave = slave


class TaskEntry:
    """A task from its launch until its end is acknowledged.

    `head` is the update that its slave re-sends until it is acknowledged, `status` the last one that
    the framework was sent, `acked` the last one that it acknowledged. A disowned task is one whose
    framework was told of its end already, or is over: it is no longer among its framework's tasks, and
    its updates are acknowledged here.
    """

    __slots__ = (
        "acked",
        "container_id",
        "executor_id",
        "framework",
        "head",
        "history",
        "is_charged",
        "is_disowned",
        "kill",
        "name",
        "resources",
        "role",
        "slave",
        "started_unix_s",
        "state",
        "status",
        "task_id",
        "user",
    )

    def __init__(
        self,
        task_id: TaskId,
        framework: "FrameworkEntry",
        slave: "SlaveEntry",
        resources: Resources,
        *,
        role: str,
        name: str,
        user: str,
        executor_id: ExecutorId | None,
    ) -> None:
        self.task_id = task_id
        self.framework = framework
        self.slave = slave
        self.resources = resources
        self.role = role
        self.name = name
        self.user = user
        self.executor_id = executor_id
        self.state = TaskState.STAGING
        self.status: TaskStatus | None = None
        self.head: TaskStatus | None = None
        self.acked: str | None = None
        self.kill: KillTask | None = None  # Asked for: sent again when the slave registers again.
        self.container_id: ContainerId | None = None
        self.started_unix_s = 0.0
        self.is_charged = False  # Its resources count as used.
        self.is_disowned = False
        self.history: tuple[TaskState, ...] = ()

    def change(self, state: TaskState) -> None:
        """Set the state, by the table."""
        if state not in TASK_CHANGES[self.state]:
            raise InvalidTransition(f"task {self.task_id}", self.state, state, self.history)
        self.history = (*self.history[-_HISTORY_LIMIT:], self.state)
        self.state = state

    def view(self) -> Task:
        """Return the task as operators see it."""
        return Task(
            task_id=self.task_id,
            framework_id=self.framework.framework_id,
            slave_id=self.slave.slave_id,
            state=self.state,
            resources=self.resources,
            name=self.name,
            executor_id=self.executor_id,
            container_id=self.container_id,
            status=self.status,
            role=self.role,
            user=self.user,
            started_unix_s=self.started_unix_s,
        )


class SlaveEntry:
    """A slave: with its tasks, executors and offers, all ordered as they came."""

    __slots__ = (
        "executors",
        "history",
        "info",
        "is_counted",
        "is_unconfirmed",
        "missed_pings",
        "offers",
        "queries",
        "record",
        "session",
        "slave_id",
        "state",
        "tasks",
        "waiting",
    )

    def __init__(self, slave_id: SlaveId, record: AdmittedSlave, state: SlaveState) -> None:
        self.slave_id = slave_id
        self.record = record
        self.info: SlaveInfo = record.slave_info
        self.state = state
        self.session: Session | None = None  # Set while ACTIVE.
        self.is_counted = False  # The allocator knows it: its resources belong to the cluster's.
        self.is_unconfirmed = False  # It was given an id, and has not shown yet that it knows.
        self.missed_pings = 0
        self.tasks: dict[TaskKey, TaskEntry] = {}
        self.executors: dict[ExecutorKey, ExecutorEntry] = {}
        self.offers: dict[OfferId, OfferEntry] = {}
        self.queries: dict[TaskKey, None] = {}  # To be answered when the slave's fate is known.
        self.waiting: Session | None = None  # Its registration waits for the end of MARKING.
        self.history: tuple[str, ...] = ()

    def change(self, state: SlaveState) -> None:
        """Set the state, by the table."""
        if state not in SLAVE_CHANGES[self.state]:
            raise InvalidTransition(f"slave {self.slave_id}", self.state.value, state.value, self.history)
        self.history = (*self.history[-_HISTORY_LIMIT:], self.state.value)
        self.state = state


class FrameworkEntry:
    """A framework: with its tasks and offers, ordered as they came, and its past."""

    __slots__ = (
        "completed",
        "disconnected_unix_s",
        "disowned",
        "executors",
        "framework_id",
        "history",
        "info",
        "is_partition_aware",
        "missed_pings",
        "offers",
        "principal",
        "refusals_by_user",
        "registered_unix_s",
        "session",
        "state",
        "tasks",
        "tasks_completed",
        "unreachable",
    )

    def __init__(
        self, framework_id: FrameworkId, info: FrameworkInfo, principal: Principal, state: FrameworkState
    ) -> None:
        self.framework_id = framework_id
        self.principal = principal
        self.state = state
        self.set_info(info)
        self.session: Session | None = None  # Set while ACTIVE.
        self.missed_pings = 0
        self.registered_unix_s = 0.0
        self.disconnected_unix_s: float | None = None
        self.tasks: dict[TaskId, TaskEntry] = {}
        self.unreachable: dict[TaskId, None] = {}  # Those of `tasks` that are TASK_UNREACHABLE, oldest first.
        self.disowned: dict[tuple[SlaveId, TaskId], TaskEntry] = {}
        self.executors: dict[tuple[SlaveId, ExecutorId], ExecutorEntry] = {}
        self.completed: dict[TaskId, Task] = {}
        self.tasks_completed = 0
        self.offers: dict[OfferId, OfferEntry] = {}
        self.history: tuple[str, ...] = ()

    def set_info(self, info: FrameworkInfo) -> None:
        """Take a newer description."""
        self.info = info
        self.is_partition_aware = Capability.PARTITION_AWARE in info.capabilities
        self.refusals_by_user: dict[str, str | None] = {}  # What the authorizer said of tasks of a user.

    def change(self, state: FrameworkState) -> None:
        """Set the state, by the table."""
        if state not in FRAMEWORK_CHANGES[self.state]:
            raise InvalidTransition(f"framework {self.framework_id}", self.state.value, state.value, self.history)
        self.history = (*self.history[-_HISTORY_LIMIT:], self.state.value)
        self.state = state

    @property
    def has_open_ends(self) -> bool:
        """True while something of a framework that is over still holds resources, or may do so."""
        return bool(self.tasks or self.disowned or self.executors)

    @property
    def is_over(self) -> bool:
        """True once its end was decided."""
        return self.state is FrameworkState.REMOVING or self.state is FrameworkState.REMOVED
