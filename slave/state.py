"""What the slave's core keeps: frameworks, tasks, executors, containers, and how their states may change."""

import hashlib
import random
from enum import Enum

from meseta.errors import InvalidTransition
from meseta.ids import ContainerId, ExecutorId, FrameworkId, IdSource, SessionId, SlaveId, TaskId
from meseta.log import Log, LogValue
from meseta.model import ExecutorInfo, FrameworkInfo, Reason, RunningExecutor, Task, TaskInfo, TaskState, TaskStatus
from meseta.resources import Resources
from slave.events import Persist, SlaveConfig, SlaveEffect, SlaveInit
from slave.records import CheckpointRecord
from slave.supervisor_messages import StartContainer, Started

TaskKey = tuple[FrameworkId, TaskId]
ExecutorKey = tuple[FrameworkId, ExecutorId]

_HISTORY_LIMIT = 10  # States named in the report of a forbidden change.

_TOKEN_BYTES = 16

_S = TaskState
_ENDS = frozenset({_S.FINISHED, _S.FAILED, _S.KILLED, _S.ERROR, _S.LOST, _S.DROPPED, _S.GONE})
# An executor may repeat RUNNING to hand over new data. What it may wrongly report (a running task
# that is STAGING, anything of a finished one) is dropped with a warning in `Executors`.
TASK_CHANGES: dict[TaskState, frozenset[TaskState]] = {
    _S.STAGING: _ENDS | {_S.STARTING, _S.RUNNING, _S.KILLING},
    _S.STARTING: _ENDS | {_S.STARTING, _S.RUNNING, _S.KILLING},
    _S.RUNNING: _ENDS | {_S.RUNNING, _S.KILLING},
    _S.KILLING: _ENDS | {_S.KILLING},
    **{state: frozenset() for state in _ENDS},
}


class ContainerState(Enum):
    """Where a container is. CLAIMED: checkpointed, and its supervisor has not answered yet."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    REQUESTED = "requested"
    RUNNING = "running"
    ORPHANED = "orphaned"
    ENDED = "ended"


_C = ContainerState
# A supervisor that reports an unknown container is told to kill it; an exit told twice is forgotten twice.
CONTAINER_CHANGES: dict[ContainerState, frozenset[ContainerState]] = {
    _C.WAITING: frozenset({_C.CLAIMED, _C.REQUESTED, _C.ENDED}),
    _C.CLAIMED: frozenset({_C.REQUESTED, _C.RUNNING, _C.ORPHANED, _C.ENDED}),
    _C.REQUESTED: frozenset({_C.RUNNING, _C.ORPHANED, _C.ENDED}),
    _C.RUNNING: frozenset({_C.ORPHANED, _C.ENDED}),
    _C.ORPHANED: frozenset({_C.ENDED}),
    _C.ENDED: frozenset(),
}


class ExecutorState(Enum):
    """Where an executor is. RECOVERING: the slave has restarted and waits for it to register again."""

    STARTING = "starting"
    REGISTERED = "registered"
    RECOVERING = "recovering"
    TERMINATING = "terminating"
    ENDED = "ended"


_E = ExecutorState
# REGISTERED to itself: a new session of a living executor. What a terminating one says is still heard.
EXECUTOR_CHANGES: dict[ExecutorState, frozenset[ExecutorState]] = {
    _E.STARTING: frozenset({_E.REGISTERED, _E.RECOVERING, _E.TERMINATING, _E.ENDED}),
    _E.RECOVERING: frozenset({_E.REGISTERED, _E.TERMINATING, _E.ENDED}),
    _E.REGISTERED: frozenset({_E.REGISTERED, _E.TERMINATING, _E.ENDED}),
    _E.TERMINATING: frozenset({_E.ENDED}),
    _E.ENDED: frozenset(),
}


class Framework:
    """A framework with tasks here, or lately so. `tasks` and `executors` are ordered as they came."""

    __slots__ = ("executors", "info", "is_shutting_down", "tasks")

    def __init__(self, info: FrameworkInfo) -> None:
        self.info = info
        self.is_shutting_down = False
        self.tasks: dict[TaskId, SlaveTask] = {}
        self.executors: dict[ExecutorId, SlaveExecutor] = {}

    @property
    def is_idle(self) -> bool:
        return not self.tasks and not self.executors


class SlaveTask:
    """A task from its acceptance until its terminal update is acknowledged."""

    __slots__ = (
        "container_id",
        "executor_id",
        "history",
        "info",
        "is_recovered",
        "is_sent",
        "key",
        "kill_grace_s",
        "kill_reason",
        "role",
        "started_unix_s",
        "state",
        "status",
        "user",
    )

    def __init__(self, key: TaskKey, info: TaskInfo, container_id: ContainerId, *, role: str, user: str) -> None:
        self.key = key
        self.info = info
        self.container_id = container_id
        self.role = role
        self.user = user
        self.executor_id: ExecutorId | None = None
        self.started_unix_s = 0.0
        self.state = TaskState.STAGING
        self.status: TaskStatus | None = None
        self.history: list[TaskState] = []
        self.is_sent = False  # To its executor, in this life of the slave.
        self.is_recovered = False  # From the checkpoint: an executor that does not name it never had it.
        self.kill_grace_s: float | None = None  # Set: a kill was asked for.
        self.kill_reason: Reason | None = None

    def change(self, state: TaskState) -> None:
        """Set the state, by the table."""
        if state not in TASK_CHANGES[self.state]:
            raise InvalidTransition(f"task {self.key[1]}", self.state, state, tuple(self.history))
        self.history = [*self.history[-_HISTORY_LIMIT:], self.state]
        self.state = state

    def view(self, slave_id: SlaveId) -> Task:
        """Return the task as the master accounts for it."""
        return Task(
            task_id=self.key[1],
            framework_id=self.key[0],
            slave_id=slave_id,
            state=self.state,
            resources=self.info.resources,
            name=self.info.name,
            executor_id=self.executor_id,
            container_id=self.container_id,
            status=self.status,
            role=self.role,
            user=self.user,
            started_unix_s=self.started_unix_s,
        )


class SlaveExecutor:
    """A custom executor from the decision to start it until its process tree is dead."""

    __slots__ = (
        "container_id",
        "end_message",
        "end_reason",
        "has_registered",
        "history",
        "info",
        "key",
        "role",
        "session",
        "state",
        "tasks",
        "token",
    )

    def __init__(self, key: ExecutorKey, info: ExecutorInfo, container_id: ContainerId, *, role: str, token: str):
        self.key = key
        self.info = info
        self.container_id = container_id
        self.role = role
        self.token = token
        self.state = ExecutorState.STARTING
        self.history: list[ExecutorState] = []
        self.session: SessionId | None = None
        self.has_registered = False
        self.tasks: dict[TaskId, SlaveTask] = {}  # Those that are not terminal.
        self.end_reason: Reason | None = None  # Why we end it, if we do.
        self.end_message = ""

    def change(self, state: ExecutorState) -> None:
        """Set the state, by the table."""
        if state not in EXECUTOR_CHANGES[self.state]:
            past = tuple(entry.value for entry in self.history)
            raise InvalidTransition(f"executor {self.key[1]}", self.state.value, state.value, past)
        self.history = [*self.history[-_HISTORY_LIMIT:], self.state]
        self.state = state

    def held(self) -> tuple[Resources, ...]:
        """Return what it holds, its own resources and those of its tasks."""
        return (self.info.resources, *(task.info.resources for task in self.tasks.values()))

    def view(self) -> RunningExecutor:
        """Return the executor as the master accounts for it."""
        return RunningExecutor(
            framework_id=self.key[0], executor=self.info, container_id=self.container_id, role=self.role
        )


class Container:
    """A process tree that a supervisor has, will have or had. `owner` is a task's or an executor's key.

    `start` is kept until the process runs, and rebuilt from the checkpoint for one that is claimed.
    """

    __slots__ = ("container_id", "framework_id", "history", "kill_grace_s", "start", "started", "state", "supervisor")

    def __init__(self, framework_id: FrameworkId, container_id: ContainerId, start: StartContainer) -> None:
        self.framework_id = framework_id
        self.container_id = container_id
        self.start: StartContainer | None = start
        self.supervisor = ""
        self.started: Started | None = None
        self.state = ContainerState.WAITING
        self.kill_grace_s: float | None = None  # Set: its supervisor was told to kill it.
        self.history: list[ContainerState] = []

    def change(self, state: ContainerState) -> None:
        """Set the state, by the table."""
        if state not in CONTAINER_CHANGES[self.state]:
            past = tuple(entry.value for entry in self.history)
            raise InvalidTransition(f"container {self.container_id}", self.state.value, state.value, past)
        self.history = [*self.history[-_HISTORY_LIMIT:], self.state]
        self.state = state


class Context:
    """What the parts of the core share: who we are, the moment, and what is to be done."""

    def __init__(self, init: SlaveInit) -> None:
        self.config: SlaveConfig = init.config
        self.rng = random.Random(init.seed)
        self.ids = IdSource(self.rng)
        self.slave_id = init.slave_id
        self.unix_offset_s = init.unix_offset_s
        self._token_secret = init.token_secret
        self.now = 0.0
        self.is_master_ready = False
        self._records: list[CheckpointRecord] = []
        self._effects: list[SlaveEffect] = []

    def unix_s(self) -> float:
        """Return the present wall-clock time, in whole milliseconds."""
        return round(self.now + self.unix_offset_s, 3)

    def token(self, container_id: ContainerId) -> str:
        """Return the token of an executor that is to run in this container."""
        return hashlib.blake2b(container_id.encode(), key=self._token_secret, digest_size=_TOKEN_BYTES).hexdigest()

    def persist(self, record: CheckpointRecord) -> None:
        """Have it written before anything that this event brings is sent."""
        self._records.append(record)

    def emit(self, effect: SlaveEffect) -> None:
        """Have it done, after all that was emitted before."""
        self._effects.append(effect)

    def log(self, level: int, phrase: str, **values: LogValue) -> None:
        """Have a line logged."""
        self._effects.append(Log(level=level, phrase=phrase, values=values))

    def take(self) -> list[SlaveEffect]:
        """Return what is to be done, what is to be written first, and start over."""
        effects = self._effects
        if self._records:
            # In one write, also of what was emitted late: nothing may be told before it is safe.
            effects.insert(0, Persist(records=tuple(self._records)))
            self._records = []
        self._effects = []
        return effects
