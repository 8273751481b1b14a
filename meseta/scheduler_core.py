"""The decisions of a framework's driver, no I/O: registration, offers, updates, reconciliation, suppression.

What it promises a scheduler:
- every task it launches gets an update: on an offer that is gone the driver itself says TASK_DROPPED;
- updates come in order, and an update is acknowledged only after its callback returned;
- an update that was acknowledged is not delivered again, however often it is re-sent;
- a kill is repeated to the next master until the task's end is known;
- a silent or outdated master is left for the next one.
"""

import random
from collections.abc import Iterable

import msgspec

from meseta.driver_events import (
    AbortAsked,
    CallbackFailed,
    DriverState,
    HelloRefused,
    OnDisconnected,
    OnError,
    OnExecutorLost,
    OnFrameworkMessage,
    OnOfferRescinded,
    OnRegistered,
    OnReregistered,
    OnResourceOffers,
    OnSlaveLost,
    OnStatusUpdate,
    Received,
    ResetSession,
    SchedulerEffect,
    SchedulerEvent,
    Send,
    SessionClosed,
    SessionOpened,
    Stop,
    StopAsked,
    UserCall,
    change,
)
from meseta.errors import InvariantError
from meseta.ids import FrameworkId, OfferId, SlaveId, StatusUuid, TaskId
from meseta.log import DEBUG, ERROR, INFO, WARNING, Log, LogValue
from meseta.messages import (
    AcceptOffers,
    AcknowledgeStatus,
    DeclineOffers,
    Error,
    ExecutorLost,
    ExecutorToFramework,
    FrameworkError,
    FrameworkRegistered,
    FrameworkToExecutor,
    KillTask,
    Message,
    Ping,
    Pong,
    ReconcileTasks,
    RegisterFramework,
    RescindOffer,
    ResourceOffers,
    ReviveOffers,
    ShutdownExecutor,
    SlaveLost,
    StatusUpdate,
    SuppressOffers,
    TeardownFramework,
)
from meseta.model import FrameworkInfo, Reason, Source, TaskInfo, TaskState, TaskStatus
from meseta.recent_uuids import RecentUuids
from meseta.reconciler import Reconciler
from meseta.suppression import Suppression

REGISTER_BASE_S = 2.0  # Mesos's back-off of schedulers.
REGISTER_LIMIT_S = 60.0
SILENCE_LIMIT_S = 75.0  # Until the first Ping tells better: the master's default interval times its limit.
TEARDOWN_WAIT_S = 10.0  # How long `stop` waits for a master that could take the framework down.
KILLS_LIMIT = 10_000  # Kills of tasks that the driver does not know, kept for the next session.
# Answers to a registration that the same registration would only get again.
REGISTRATION_REFUSALS = ("unauthorized", "invalid", "removed", "bad_message", "bad_version")

_REGISTER = "register"
_SILENCE = "silence"
_TEARDOWN = "teardown"


class SchedulerInit(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a fresh core is made of. `unix_offset_s` plus the monotonic time is the wall-clock time."""

    framework_info: FrameworkInfo
    seed: int
    explicit_acknowledgement: bool = False
    auto_suppress: bool = True
    unix_offset_s: float = 0.0


class SchedulerCore:
    """One framework's driver. Use it through `handle`, `tick` and `next_deadline`."""

    def __init__(self, init: SchedulerInit) -> None:
        self._init = init
        self._info = init.framework_info
        self._is_takeover = init.framework_info.id is not None
        self._rng = random.Random(init.seed)
        self._state = DriverState.DISCONNECTED
        self._was_registered = False
        self._is_stopping = False
        self._epoch = -1
        self._heard_at = 0.0
        self._silence_limit_s = SILENCE_LIMIT_S
        self._register_s = REGISTER_BASE_S
        self._due: dict[str, float] = {}
        self._offers: dict[OfferId, SlaveId] = {}
        self._tasks: dict[TaskId, tuple[SlaveId | None, TaskState]] = {}
        self._kills: dict[TaskId, KillTask] = {}
        self._acknowledged = RecentUuids()
        self._revive_when_registered = False
        self._suppression = Suppression(init.framework_info.roles, is_automatic=init.auto_suppress)
        self._reconciler = Reconciler(self._rng)

    @property
    def state(self) -> DriverState:
        """Where the driver stands towards its master."""
        return self._state

    @property
    def framework_id(self) -> FrameworkId | None:
        """The framework's id, None before the first registration."""
        return self._info.id

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        """Take one input and return what is to be done, in order."""
        if self._state is DriverState.STOPPED:
            return []
        if isinstance(event, Received):
            return self._received(event, now)
        if isinstance(event, SessionOpened):
            return self._session_opened(event, now)
        if isinstance(event, SessionClosed):
            return self._lose_session(event.reason)
        if isinstance(event, HelloRefused):
            return self._fail(f"{event.code}: {event.message}")
        if self._is_stopping and not isinstance(event, AbortAsked | CallbackFailed):
            return []  # After `stop` nothing that the user's code still asks for may reach the master.
        return self._user_call(event, now)

    def tick(self, now: float) -> list[SchedulerEffect]:
        """Do what is due at `now` or before."""
        effects: list[SchedulerEffect] = []
        for name in [name for name, due in self._due.items() if due <= now]:
            if name in self._due:  # An earlier one may have removed it.
                effects += self._due_action(name, now)
        if self._state is DriverState.REGISTERED:
            effects += self._tick_registered(now)
        else:
            self._suppression.revive_if_due(now)  # The next registration tells the master.
        return effects

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next, None if nothing is due ever."""
        dues = list(self._due.values())
        if self._state is DriverState.REGISTERED:
            dues += [
                due
                for due in (self._reconciler.retry_due(), self._reconciler.period_due(), self._idle_due())
                if due is not None
            ]
        if (revive_due := self._suppression.revive_due()) is not None and self._state is not DriverState.STOPPED:
            dues.append(revive_due)
        return min(dues) if dues else None

    def check(self) -> None:
        """Raise InvariantError if what is kept in two places differs."""
        if self._state is not DriverState.REGISTERED and self._offers:
            raise InvariantError(f"{len(self._offers)} offers are kept while the driver is {self._state}")
        ended = [task_id for task_id, (_, state) in self._tasks.items() if _is_end(state)]
        if ended:
            raise InvariantError(f"tasks {ended} are kept after their end")
        if self._state is DriverState.REGISTERED and self._info.id is None:
            raise InvariantError("registered without an id")

    # --- Sessions ---

    def _session_opened(self, event: SessionOpened, now: float) -> list[SchedulerEffect]:
        effects = self._lose_session("a new session was opened")
        if self._is_outdated(event.epoch):
            return [*effects, *self._leave_outdated(event.epoch)]
        self._become(DriverState.REGISTERING, "session opened")
        self._heard_at = now
        self._silence_limit_s = SILENCE_LIMIT_S
        self._due[_SILENCE] = now + SILENCE_LIMIT_S
        self._register_s = REGISTER_BASE_S
        return [*effects, *self._register(now)]

    def _register(self, now: float) -> list[SchedulerEffect]:
        self._due[_REGISTER] = now + self._register_s * self._rng.uniform(0.5, 1.0)
        self._register_s = min(REGISTER_LIMIT_S, self._register_s * 2)
        return [
            Send(
                message=RegisterFramework(
                    framework_info=self._info, suppressed_roles=self._suppression.suppressed_roles()
                )
            )
        ]

    def _lose_session(self, reason: str) -> list[SchedulerEffect]:
        if self._state is DriverState.DISCONNECTED:
            return []
        was_registered = self._state is DriverState.REGISTERED
        self._become(DriverState.DISCONNECTED, reason)
        self._due.pop(_REGISTER, None)
        self._due.pop(_SILENCE, None)
        self._reconciler.pause()
        self._suppression.forget_idleness()
        effects: list[SchedulerEffect] = [OnOfferRescinded(offer_id=offer_id) for offer_id in self._offers]
        self._offers.clear()
        if not was_registered:
            return []
        if self._is_stopping:
            return [_log(INFO, "disconnected", reason=reason)]
        return [_log(INFO, "disconnected", reason=reason), *effects, OnDisconnected()]

    def _is_outdated(self, epoch: int | None) -> bool:
        """Judge a master's epoch and remember the highest."""
        if epoch is None:
            return False
        if epoch < self._epoch:
            return True
        self._epoch = epoch
        return False

    def _leave_outdated(self, epoch: int | None) -> list[SchedulerEffect]:
        effects = self._lose_session("the master is outdated")
        warning = _log(WARNING, "outdated master refused", epoch=epoch, highest_epoch=self._epoch)
        return [*effects, warning, ResetSession(reason=f"epoch {epoch} is below {self._epoch}")]

    def _due_action(self, name: str, now: float) -> list[SchedulerEffect]:
        if name == _REGISTER:
            return self._register(now)
        if name == _SILENCE:
            due = self._heard_at + self._silence_limit_s
            if due > now:
                self._due[_SILENCE] = due
                return []
            silent_s = now - self._heard_at
            effects = self._lose_session("the master is silent")
            warning = _log(WARNING, "master silent", silent_s=silent_s)
            return [*effects, warning, ResetSession(reason=f"the master was silent for {silent_s:.1f} s")]
        warning = _log(
            WARNING,
            "framework not torn down: no master answered",
            framework_id=self._info.id,
            failover_timeout_s=self._info.failover_timeout_s,
        )
        return [warning, *self._end(exit_code=1, reason="no master to tear the framework down")]

    # --- Messages of the master ---

    def _received(self, event: Received, now: float) -> list[SchedulerEffect]:
        if self._state is DriverState.DISCONNECTED:
            return []  # Left over from a session that was given up.
        if event.epoch is not None and event.epoch != self._epoch and self._is_outdated(event.epoch):
            return self._leave_outdated(event.epoch)
        self._heard_at = now
        message = event.message
        if isinstance(message, Ping):
            self._silence_limit_s = max(message.interval_s * message.missed_limit, message.interval_s, 1e-3)
            self._due[_SILENCE] = now + self._silence_limit_s
            return [Send(message=Pong())]
        if isinstance(message, FrameworkError):
            return self._fail(message.message)
        if self._state is DriverState.REGISTERING:
            return self._received_while_registering(message, now)
        return [] if self._is_stopping else self._received_while_registered(message, now)

    def _received_while_registering(self, message: Message, now: float) -> list[SchedulerEffect]:
        if isinstance(message, FrameworkRegistered):
            return self._registered(message, now)
        if isinstance(message, Error) and message.code in REGISTRATION_REFUSALS:
            return self._fail(f"{message.code}: {message.message}")
        # Left over from before; the master re-sends whatever matters once we are registered.
        return [_log(DEBUG, "message before registration dropped", message=type(message).__name__)]

    def _received_while_registered(self, message: Message, now: float) -> list[SchedulerEffect]:
        match message:
            case StatusUpdate():
                return self._status_update(message.status, now)
            case ResourceOffers():
                for offer in message.offers:
                    self._offers[offer.offer_id] = offer.slave_id
                return [OnResourceOffers(offers=message.offers)]
            case RescindOffer():
                return self._rescind(message.offer_id, now)
            case ExecutorToFramework() if message.slave_id is not None:
                return [
                    OnFrameworkMessage(executor_id=message.executor_id, slave_id=message.slave_id, data=message.data)
                ]
            case SlaveLost():
                return self._slave_lost(message.slave_id, now)
            case ExecutorLost() if message.slave_id is not None:
                lost = OnExecutorLost(
                    executor_id=message.executor_id, slave_id=message.slave_id, exit_status=message.exit_status
                )
                return [lost]
            case Error():
                return [_log(WARNING, "master refused a message", code=message.code, text=message.message)]
            case FrameworkRegistered():
                return []  # The answer to a registration that we repeated.
            case _:
                return [_log(WARNING, "unexpected message dropped", message=type(message).__name__)]

    def _registered(self, message: FrameworkRegistered, now: float) -> list[SchedulerEffect]:
        if self._info.id is not None and self._info.id != message.framework_id:
            return self._fail(f"registered as {self._info.id}, but the master answers {message.framework_id}")
        self._become(DriverState.REGISTERED, "registered")
        self._due.pop(_REGISTER, None)
        self._info = msgspec.structs.replace(self._info, id=message.framework_id)
        if self._is_stopping:
            return self._end(exit_code=0, reason="torn down", last=[Send(message=TeardownFramework())])
        effects: list[SchedulerEffect] = [
            _log(INFO, "registered", framework_id=message.framework_id, epoch=self._epoch),
            OnReregistered() if self._was_registered else OnRegistered(framework_id=message.framework_id),
        ]
        self._was_registered = True
        if self._revive_when_registered and (roles := self._suppression.wanted_roles()):
            effects.append(Send(message=ReviveOffers(roles=roles)))
        self._revive_when_registered = False
        effects += _sends(self._kills.values())
        return effects + self._reconcile_all(now)

    def _status_update(self, status: TaskStatus, now: float) -> list[SchedulerEffect]:
        uuid = status.uuid
        if uuid is not None and uuid in self._acknowledged:
            return [self._acknowledgement(status, uuid)]
        task_id, state = status.task_id, status.state
        is_wanted = self._reconciler.has_questions() and self._reconciler.answered(task_id)
        known = self._tasks.get(task_id)
        if _is_end(state):
            self._tasks.pop(task_id, None)
            self._kills.pop(task_id, None)
        else:
            self._tasks[task_id] = (status.slave_id or (known[0] if known else None), state)
        if uuid is None:
            is_answer = status.reason is Reason.RECONCILIATION and not is_wanted
            return [] if is_answer and not _is_news(known, state) else [OnStatusUpdate(status=status)]
        delivery = OnStatusUpdate(status=status)
        if self._init.explicit_acknowledgement:
            return [delivery]
        self._acknowledged.add(uuid)
        return [delivery, self._acknowledgement(status, uuid)]

    def _acknowledgement(self, status: TaskStatus, uuid: StatusUuid) -> Send:
        return Send(
            message=AcknowledgeStatus(
                task_id=status.task_id, uuid=uuid, slave_id=status.slave_id, framework_id=self._info.id
            )
        )

    def _rescind(self, offer_id: OfferId, now: float) -> list[SchedulerEffect]:
        if self._offers.pop(offer_id, None) is None:
            return []  # Used or declined meanwhile: the scheduler has nothing in hand that it could lose.
        self._note_unused(now)
        return [OnOfferRescinded(offer_id=offer_id), *self._suppress_if_idle(now)]

    def _slave_lost(self, slave_id: SlaveId, now: float) -> list[SchedulerEffect]:
        effects: list[SchedulerEffect] = []
        for offer_id in [offer_id for offer_id, owner in self._offers.items() if owner == slave_id]:
            del self._offers[offer_id]
            effects.append(OnOfferRescinded(offer_id=offer_id))
        return [*effects, OnSlaveLost(slave_id=slave_id), *self._suppress_if_idle(now)]

    # --- Calls of the scheduler ---

    def _user_call(self, call: UserCall, now: float) -> list[SchedulerEffect]:
        match call:
            case AcceptOffers():
                return self._accept(call, now)
            case DeclineOffers():
                return self._decline(call, now)
            case AcknowledgeStatus():
                return self._acknowledge(call)
            case KillTask():
                return self._kill(call)
            case ReviveOffers():
                return self._revive(call)
            case SuppressOffers():
                return self._suppress(call)
            case ReconcileTasks():
                return self._reconcile(call, now)
            case StopAsked():
                return self._stop(call, now)
            case AbortAsked():
                return self._end(exit_code=1, reason="aborted")
            case CallbackFailed():
                # The scheduler's own state is unknown now: going on could run a task twice or never.
                return self._end(exit_code=1, reason=f"callback {call.name} failed: {call.message}")
            case _:
                return self._send_unreliably(call)

    def _accept(self, call: AcceptOffers, now: float) -> list[SchedulerEffect]:
        tasks = [task for operation in call.operations for task in operation.task_infos]
        missing = [offer_id for offer_id in call.offer_ids if offer_id not in self._offers]
        valid = tuple(offer_id for offer_id in call.offer_ids if offer_id in self._offers)
        if not tasks:
            return self._decline(DeclineOffers(offer_ids=call.offer_ids, filters=call.filters), now)
        was_pausing = self._suppression.note_use()
        if missing or not valid:
            effects: list[SchedulerEffect] = list(self._drop(tasks, missing, now))
            if valid:
                effects += self._decline(DeclineOffers(offer_ids=valid, filters=call.filters), now)
            return effects
        for offer_id in valid:
            self._offers.pop(offer_id, None)  # A list may name one twice.
        for task in tasks:
            self._tasks[task.task_id] = (task.slave_id, TaskState.STAGING)
        if was_pausing:  # These offers and our suppression had crossed on the way.
            return [Send(message=call), Send(message=ReviveOffers(roles=self._suppression.wanted_roles()))]
        return [Send(message=call)]

    def _drop(self, tasks: list[TaskInfo], missing: list[OfferId], now: float) -> list[OnStatusUpdate]:
        if self._state is not DriverState.REGISTERED:
            reason, message = Reason.MASTER_DISCONNECTED, "the driver is not connected to a master"
        else:
            gone = ", ".join(missing) or "none was named"
            reason, message = Reason.INVALID_OFFERS, f"no such offer any more: {gone}"
        return [
            OnStatusUpdate(
                status=TaskStatus(
                    task_id=task.task_id,
                    state=TaskState.DROPPED,
                    slave_id=task.slave_id,
                    source=Source.MASTER,
                    reason=reason,
                    message=message,
                    timestamp_unix_s=max(0.0, now + self._init.unix_offset_s),
                )
            )
            for task in tasks
        ]

    def _decline(self, call: DeclineOffers, now: float) -> list[SchedulerEffect]:
        valid = tuple(offer_id for offer_id in call.offer_ids if self._offers.pop(offer_id, None) is not None)
        if not valid:
            return []
        self._note_unused(now)
        return [
            Send(message=DeclineOffers(offer_ids=valid, filters=call.filters)),
            *self._suppress_if_idle(now),
        ]

    def _acknowledge(self, call: AcknowledgeStatus) -> list[SchedulerEffect]:
        if call.uuid in self._acknowledged:
            return []
        self._acknowledged.add(call.uuid)
        if self._state is not DriverState.REGISTERED:
            return []  # It will be sent again, and then acknowledged from memory.
        return [Send(message=msgspec.structs.replace(call, framework_id=self._info.id))]

    def _kill(self, call: KillTask) -> list[SchedulerEffect]:
        known = self._tasks.get(call.task_id)
        if known is None:
            self._reconciler.want({call.task_id: None})  # The master's answer will look like a reconciliation.
        elif call.slave_id is None:
            call = msgspec.structs.replace(call, slave_id=known[0])
        is_registered = self._state is DriverState.REGISTERED
        if known is not None or (not is_registered and len(self._kills) < KILLS_LIMIT):
            self._kills[call.task_id] = call
        return [Send(message=call)] if is_registered else []

    def _revive(self, call: ReviveOffers) -> list[SchedulerEffect]:
        roles = self._suppression.revive(call.roles)
        if self._state is DriverState.REGISTERED:
            return [Send(message=ReviveOffers(roles=roles))]
        self._revive_when_registered = True
        return []

    def _suppress(self, call: SuppressOffers) -> list[SchedulerEffect]:
        self._suppression.suppress(call.roles)
        return [Send(message=call)] if self._state is DriverState.REGISTERED else []

    def _reconcile(self, call: ReconcileTasks, now: float) -> list[SchedulerEffect]:
        is_registered = self._state is DriverState.REGISTERED
        if call.tasks:
            asked = {query.task_id: query.slave_id for query in call.tasks}
            return _sends(self._reconciler.ask(asked, now, is_session_open=is_registered))
        self._reconciler.want(self._slave_by_task())
        self._is_takeover = True  # From now on every registration asks for all tasks too.
        return [Send(message=call)] if is_registered else []

    def _send_unreliably(self, call: FrameworkToExecutor | ShutdownExecutor) -> list[SchedulerEffect]:
        if self._state is not DriverState.REGISTERED:
            return [_log(DEBUG, "message dropped while disconnected", message=type(call).__name__)]
        return [Send(message=msgspec.structs.replace(call, framework_id=self._info.id))]

    # --- The end ---

    def _stop(self, call: StopAsked, now: float) -> list[SchedulerEffect]:
        if call.failover:
            return self._end(exit_code=0, reason="stopped for a successor")
        if self._state is DriverState.REGISTERED:
            return self._end(exit_code=0, reason="torn down", last=[Send(message=TeardownFramework())])
        if self._state is DriverState.DISCONNECTED and self._info.id is None:
            return self._end(exit_code=0, reason="stopped before registration")
        # Gone without a word, the framework's tasks would hold their resources until failover_timeout.
        self._is_stopping = True
        self._due[_TEARDOWN] = now + TEARDOWN_WAIT_S
        return [_log(INFO, "waiting for a master to tear the framework down", limit_s=TEARDOWN_WAIT_S)]

    def _fail(self, message: str) -> list[SchedulerEffect]:
        """End because the master will not have this framework."""
        if self._is_stopping:
            return self._end(exit_code=0, reason=message)
        return [
            _log(ERROR, "framework refused: driver aborted", error=message),
            OnError(message=message),
            *self._end(exit_code=1, reason=message),
        ]

    def _end(self, *, exit_code: int, reason: str, last: list[SchedulerEffect] | None = None) -> list[SchedulerEffect]:
        self._become(DriverState.STOPPED, reason)
        self._due.clear()
        self._offers.clear()
        self._reconciler.pause()
        return [*(last or []), Stop(exit_code=exit_code)]

    # --- What is due while registered ---

    def _tick_registered(self, now: float) -> list[SchedulerEffect]:
        effects: list[SchedulerEffect] = []
        if (period_due := self._reconciler.period_due()) is not None and period_due <= now:
            effects += self._reconcile_all(now)
        elif (retry_due := self._reconciler.retry_due()) is not None and retry_due <= now:
            effects += _sends(self._reconciler.retry(now))
        if self._suppression.revive_if_due(now) and (roles := self._suppression.wanted_roles()):
            effects.append(Send(message=ReviveOffers(roles=roles)))
        return effects + self._suppress_if_idle(now)

    def _reconcile_all(self, now: float) -> list[SchedulerEffect]:
        effects = _sends(self._reconciler.begin(self._slave_by_task(), now))
        if self._is_takeover:
            effects.append(Send(message=ReconcileTasks()))  # There may be tasks that only the master knows.
        return effects

    def _note_unused(self, now: float) -> None:
        if self._tasks:
            self._suppression.forget_idleness()
        else:
            self._suppression.note_unused(now)

    def _idle_due(self) -> float | None:
        # With offers in hand nothing is decided; the last one's decline or rescind asks again.
        return None if self._offers else self._suppression.idle_due()

    def _suppress_if_idle(self, now: float) -> list[SchedulerEffect]:
        due = self._idle_due()
        if due is None or due > now:
            return []
        roles = self._suppression.wanted_roles()
        if self._tasks or not roles:
            self._suppression.forget_idleness()
            return []
        pause_s = self._suppression.begin_pause(now)
        return [
            _log(INFO, "offers suppressed: the scheduler used none", pause_s=pause_s),
            Send(message=SuppressOffers(roles=roles)),
        ]

    def _slave_by_task(self) -> dict[TaskId, SlaveId | None]:
        return {task_id: slave_id for task_id, (slave_id, _) in self._tasks.items()}

    def _become(self, state: DriverState, reason: str) -> None:
        self._state = change("scheduler driver", self._state, state, reason)


def _is_end(state: TaskState) -> bool:
    """True if the driver need not ask for the task any more; of one TASK_UNKNOWN nobody knows."""
    return state.is_terminal or state is TaskState.UNKNOWN


def _is_news(known: tuple[SlaveId | None, TaskState] | None, state: TaskState) -> bool:
    """Judge an answer to what the driver asked by itself.

    The end of a task that the driver does not know is none: either its own update told it already,
    and the master has forgotten the task since, or that update is still to come.
    """
    return not _is_end(state) if known is None else known[1] is not state


def _sends(messages: Iterable[Message]) -> list[SchedulerEffect]:
    return [Send(message=message) for message in messages]


def _log(level: int, phrase: str, **values: LogValue) -> Log:
    return Log(level=level, phrase=phrase, values=values)
