"""The decisions of an executor's driver, no I/O: registration with the slave, tasks, updates, the end.

What it promises: an update is kept, and told again at each registration, until the slave has acknowledged
it; a task is started once, however often the slave asks; without its slave the executor ends itself in time.
"""

import random
from collections.abc import Iterator

import msgspec

from meseta.driver_events import (
    AbortAsked,
    CallbackFailed,
    DataSent,
    DriverState,
    ExecutorEffect,
    ExecutorEvent,
    ExecutorSlave,
    HelloRefused,
    OnDisconnected,
    OnError,
    OnExecutorMessage,
    OnExecutorRegistered,
    OnExecutorReregistered,
    OnKillTask,
    OnLaunchTask,
    OnShutdown,
    Received,
    Send,
    SessionClosed,
    SessionOpened,
    StatusSent,
    Stop,
    StopAsked,
    change,
)
from meseta.errors import InvariantError
from meseta.ids import ExecutorId, FrameworkId, IdSource, SlaveId, StatusUuid, TaskId
from meseta.log import DEBUG, ERROR, INFO, WARNING, Log, LogValue
from meseta.messages import (
    AcknowledgeStatus,
    Error,
    ExecutorRegistered,
    ExecutorToFramework,
    FrameworkToExecutor,
    KillTask,
    LaunchTask,
    Message,
    Ping,
    Pong,
    RegisterExecutor,
    ShutdownExecutor,
    StatusUpdate,
)
from meseta.model import DEFAULT_SHUTDOWN_GRACE_S, Source, TaskInfo, TaskStatus

REGISTER_BASE_S = 1.0
REGISTER_LIMIT_S = 15.0
RECOVERY_TIMEOUT_S = 15 * 60.0  # Mesos's recovery_timeout: how long a slave's restart may take.
# Of the grace period; the rest is for the process to end by itself before the slave kills it.
GRACE_SHARE = 0.8

_REGISTER = "register"
_RECOVERY = "recovery"
_GRACE = "grace"


class ExecutorInit(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a fresh core is made of, most of it from the environment that the slave sets.

    `started_at` is the time on the core's own clock: it must meet its slave `recovery_timeout_s` later.
    """

    framework_id: FrameworkId
    executor_id: ExecutorId
    slave_id: SlaveId
    seed: int
    started_at: float
    recovery_timeout_s: float = RECOVERY_TIMEOUT_S
    unix_offset_s: float = 0.0


class ExecutorCore:
    """One executor's driver. Use it through `handle`, `tick` and `next_deadline`."""

    def __init__(self, init: ExecutorInit) -> None:
        self._init = init
        self._rng = random.Random(init.seed)
        self._ids = IdSource(self._rng)
        self._state = DriverState.DISCONNECTED
        self._was_registered = False
        self._is_stopping = False  # `stop` was called: what is unacknowledged is still told.
        self._is_shutting_down = False
        self._is_orphaned = False  # The slave stayed away too long: nobody is left to tell anything.
        self._grace_s = DEFAULT_SHUTDOWN_GRACE_S * GRACE_SHARE
        self._register_s = REGISTER_BASE_S
        self._due: dict[str, float] = {_RECOVERY: init.started_at + init.recovery_timeout_s}
        # Tasks stay until their terminal update was acknowledged: till then the slave may ask for them again.
        self._tasks: dict[TaskId, TaskInfo] = {}
        self._ended: dict[TaskId, StatusUuid] = {}
        self._unacknowledged: dict[StatusUuid, TaskStatus] = {}
        self._untold: dict[StatusUuid, None] = {}  # Made after the last registration was sent.

    @property
    def state(self) -> DriverState:
        """Where the driver stands towards its slave."""
        return self._state

    def handle(self, event: ExecutorEvent, now: float) -> list[ExecutorEffect]:
        """Take one input and return what is to be done, in order."""
        if self._state is DriverState.STOPPED:
            return []
        match event:
            case Received():
                return self._received(event.message, now)
            case StatusSent():
                return self._send_status(event.status, now)
            case DataSent():
                return self._send_data(event.data)
            case SessionOpened():
                return self._session_opened(now)
            case SessionClosed():
                return self._lose_session(event.reason, now)
            case HelloRefused():
                return self._fail(f"the slave refused this executor: {event.code}: {event.message}")
            case StopAsked():
                return self._stop(now)
            case AbortAsked():
                return self._end(exit_code=1, reason="aborted")
            case CallbackFailed():
                return self._end(exit_code=1, reason="a callback failed")

    def tick(self, now: float) -> list[ExecutorEffect]:
        """Do what is due at `now` or before."""
        effects: list[ExecutorEffect] = []
        for name in [name for name, due in self._due.items() if due <= now]:
            if name in self._due:  # An earlier one may have removed it.
                effects += self._due_action(name, now)
        return effects

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next, None if nothing is due ever."""
        return min(self._due.values()) if self._due else None

    def check(self) -> None:
        """Raise InvariantError if what is kept in two places differs."""
        for task_id, uuid in self._ended.items():
            if task_id not in self._tasks or uuid not in self._unacknowledged:
                raise InvariantError(f"the end of task {task_id}, update {uuid}, is kept without task or update")
        if not self._untold.keys() <= self._unacknowledged.keys():
            raise InvariantError("an acknowledged update is kept to be told")

    # --- Sessions ---

    def _session_opened(self, now: float) -> list[ExecutorEffect]:
        effects = self._lose_session("a new session was opened", now)
        self._become(DriverState.REGISTERING, "session opened")
        self._register_s = REGISTER_BASE_S
        return [*effects, *self._register(now)]

    def _register(self, now: float) -> list[ExecutorEffect]:
        self._due[_REGISTER] = now + self._register_s
        self._register_s = min(REGISTER_LIMIT_S, self._register_s * 2)
        self._untold.clear()
        message = RegisterExecutor(
            executor_id=self._init.executor_id,
            framework_id=self._init.framework_id,
            tasks=tuple(self._active_tasks()),
            unacknowledged=tuple(self._unacknowledged.values()),
        )
        return [Send(message=message)]

    def _registered(self, message: ExecutorRegistered) -> list[ExecutorEffect]:
        self._become(DriverState.REGISTERED, "registered")
        self._due.pop(_REGISTER, None)
        self._due.pop(_RECOVERY, None)
        self._grace_s = message.executor_info.shutdown_grace_period_s * GRACE_SHARE
        slave = ExecutorSlave(
            slave_id=message.slave_id,
            hostname=message.hostname,
            container_id=message.container_id,
            address=message.address,
        )
        effects: list[ExecutorEffect] = [_log(INFO, "registered", slave_id=message.slave_id)]
        if self._was_registered:
            effects.append(OnExecutorReregistered(slave=slave))
        else:
            effects.append(
                OnExecutorRegistered(
                    executor_info=message.executor_info, framework_info=message.framework_info, slave=slave
                )
            )
        self._was_registered = True
        return effects + [self._update(self._unacknowledged[uuid]) for uuid in self._untold]

    def _lose_session(self, reason: str, now: float) -> list[ExecutorEffect]:
        if self._state is DriverState.DISCONNECTED:
            return []
        was_registered = self._state is DriverState.REGISTERED
        self._become(DriverState.DISCONNECTED, reason)
        self._due.pop(_REGISTER, None)
        if not self._is_shutting_down:
            self._due.setdefault(_RECOVERY, now + self._init.recovery_timeout_s)
        return [_log(INFO, "disconnected", reason=reason), OnDisconnected()] if was_registered else []

    # --- Messages of the slave ---

    def _received(self, message: Message, now: float) -> list[ExecutorEffect]:
        if self._state is DriverState.DISCONNECTED:
            return []  # Left over from a session that was given up.
        if isinstance(message, Ping):
            return [Send(message=Pong())]
        if isinstance(message, ShutdownExecutor):
            return self._shut_down(now)
        if isinstance(message, Error):
            if message.code in ("unauthorized", "not_found", "invalid", "removed"):
                return self._fail(f"the slave refused this executor: {message.code}: {message.message}")
            return [_log(WARNING, "slave refused a message", code=message.code, text=message.message)]
        if isinstance(message, AcknowledgeStatus):
            return self._acknowledged(message)  # Before the registration's answer too: it told what is unacknowledged.
        if self._state is DriverState.REGISTERING:
            if isinstance(message, ExecutorRegistered):
                return self._registered(message)
            return [_log(DEBUG, "message before registration dropped", message=type(message).__name__)]
        return self._received_while_registered(message)

    def _received_while_registered(self, message: Message) -> list[ExecutorEffect]:
        match message:
            case LaunchTask():
                task = message.task
                if task.task_id in self._tasks or self._is_shutting_down:
                    return []
                self._tasks[task.task_id] = task
                return [OnLaunchTask(task=task)]
            case KillTask():
                return self._kill(message)
            case FrameworkToExecutor():
                return [OnExecutorMessage(data=message.data)]
            case ExecutorRegistered():
                return []  # The answer to a registration that we repeated.
            case _:
                return [_log(WARNING, "unexpected message dropped", message=type(message).__name__)]

    def _acknowledged(self, message: AcknowledgeStatus) -> list[ExecutorEffect]:
        self._unacknowledged.pop(message.uuid, None)
        self._untold.pop(message.uuid, None)
        if self._ended.get(message.task_id) == message.uuid:
            del self._ended[message.task_id]
            del self._tasks[message.task_id]
        return self._end_if_done()

    def _kill(self, message: KillTask) -> list[ExecutorEffect]:
        task = self._tasks.get(message.task_id)
        if task is None or message.task_id in self._ended:
            return [_log(DEBUG, "kill of a task that does not run ignored", task_id=message.task_id)]
        grace_period_s = message.grace_period_s
        if grace_period_s is None:
            grace_period_s = task.kill_policy.grace_period_s
        return [OnKillTask(task_id=message.task_id, grace_period_s=grace_period_s)]

    # --- Calls of the executor ---

    def _send_status(self, status: TaskStatus, now: float) -> list[ExecutorEffect]:
        if status.task_id in self._ended:
            return [_log(WARNING, "update after the task's end dropped", task_id=status.task_id, state=status.state)]
        uuid = self._ids.new_uuid()
        status = msgspec.structs.replace(
            status,
            uuid=uuid,
            slave_id=self._init.slave_id,
            executor_id=self._init.executor_id,
            source=Source.EXECUTOR,
            timestamp_unix_s=max(0.0, now + self._init.unix_offset_s),
        )
        self._unacknowledged[uuid] = status
        if status.state.is_terminal and status.task_id in self._tasks:
            self._ended[status.task_id] = uuid
        if self._state is DriverState.REGISTERED:
            return [self._update(status)]
        self._untold[uuid] = None
        return self._end_if_done()

    def _update(self, status: TaskStatus) -> Send:
        return Send(message=StatusUpdate(status=status, framework_id=self._init.framework_id))

    def _send_data(self, data: bytes) -> list[ExecutorEffect]:
        if self._state is not DriverState.REGISTERED:
            return [_log(DEBUG, "message dropped while disconnected")]
        message = ExecutorToFramework(
            executor_id=self._init.executor_id,
            data=data,
            slave_id=self._init.slave_id,
            framework_id=self._init.framework_id,
        )
        return [Send(message=message)]

    # --- The end ---

    def _shut_down(self, now: float) -> list[ExecutorEffect]:
        """Let the user's code end its tasks, for the grace period at most."""
        if self._is_shutting_down:
            return []
        self._is_shutting_down = True
        self._due.pop(_RECOVERY, None)
        self._due[_GRACE] = now + self._grace_s
        # What the callback says about its tasks comes after it; so nobody is asked whether all is done before that.
        return [_log(INFO, "shutdown", grace_s=self._grace_s), OnShutdown(), *self._end_if_done()]

    def _stop(self, now: float) -> list[ExecutorEffect]:
        self._is_stopping = True
        self._due.setdefault(_GRACE, now + self._grace_s)
        return self._end_if_done()

    def _end_if_done(self) -> list[ExecutorEffect]:
        if not (self._is_stopping or self._is_shutting_down):
            return []
        if self._unacknowledged and not self._is_orphaned:
            return []
        if not self._is_stopping and any(True for _ in self._active_tasks()):
            return []
        return self._end(exit_code=1 if self._is_orphaned else 0, reason="all is told")

    def _due_action(self, name: str, now: float) -> list[ExecutorEffect]:
        if name == _REGISTER:
            return self._register(now)
        if name == _RECOVERY:
            self._due.pop(_RECOVERY)
            self._is_orphaned = True
            silent_s = self._init.recovery_timeout_s
            return [_log(ERROR, "no slave: the executor ends itself", limit_s=silent_s), *self._shut_down(now)]
        return [
            _log(WARNING, "grace period is over", unacknowledged_count=len(self._unacknowledged)),
            *self._end(exit_code=1 if self._is_orphaned else 0, reason="grace period is over", is_forced=True),
        ]

    def _fail(self, message: str) -> list[ExecutorEffect]:
        return [
            _log(ERROR, "executor refused", error=message),
            OnError(message=message),
            *self._end(exit_code=1, reason=message),
        ]

    def _end(self, *, exit_code: int, reason: str, is_forced: bool = False) -> list[ExecutorEffect]:
        self._become(DriverState.STOPPED, reason)
        self._due.clear()
        return [Stop(exit_code=exit_code, is_forced=is_forced)]

    def _active_tasks(self) -> Iterator[TaskInfo]:
        return (task for task_id, task in self._tasks.items() if task_id not in self._ended)

    def _become(self, state: DriverState, reason: str) -> None:
        self._state = change("executor driver", self._state, state, reason)


def _log(level: int, phrase: str, **values: LogValue) -> Log:
    return Log(level=level, phrase=phrase, values=values)
