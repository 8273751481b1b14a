"""What the driver cores are told and what they ask for: events, callbacks and effects, all frozen.

The calls of a user's code enter a core as the messages themselves (`AcceptOffers`, `KillTask`, ...),
so that a recording holds them too. Callbacks are effects: whoever runs a core hands them to the user's code
in the order given.
"""

from enum import StrEnum

import msgspec

from meseta.errors import InvalidTransition
from meseta.ids import ExecutorId, FrameworkId, OfferId, SlaveId, TaskId
from meseta.log import Log
from meseta.messages import (
    AcceptOffers,
    AcknowledgeStatus,
    DeclineOffers,
    FrameworkToExecutor,
    KillTask,
    Message,
    ReconcileTasks,
    ReviveOffers,
    ShutdownExecutor,
    SuppressOffers,
)
from meseta.model import Address, ExecutorInfo, FrameworkInfo, Offer, Record, TaskInfo, TaskStatus


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag=True):
    """Base: the tag is the class's name."""


class _Callback(_Value, frozen=True, kw_only=True):
    """Base of what is handed to the user's code."""


# --- Events --------------------------------------------------------------------------------------


class SessionOpened(_Value, frozen=True, kw_only=True):
    """The peer said Welcome. `epoch`: the master's term; None from a slave."""

    epoch: int | None = None


class SessionClosed(_Value, frozen=True, kw_only=True):
    """The session is gone; the transport dials again by itself."""

    reason: str


class HelloRefused(_Value, frozen=True, kw_only=True):
    """The peer will not talk with us; the transport does not dial again."""

    code: str
    message: str


class Received(_Value, frozen=True, kw_only=True):
    """One message of the peer."""

    message: Message
    epoch: int | None = None


class StopAsked(_Value, frozen=True, kw_only=True):
    """The user's code called `stop`. `failover`: leave the tasks running for a successor (schedulers only)."""

    failover: bool = False


class AbortAsked(_Value, frozen=True, kw_only=True):
    """The user's code called `abort`."""


class CallbackFailed(_Value, frozen=True, kw_only=True):
    """The user's code raised an exception; the callbacks and effects after it were not performed."""

    name: str
    message: str


class StatusSent(_Value, frozen=True, kw_only=True):
    """An executor called `send_status_update`."""

    status: TaskStatus


class DataSent(_Value, frozen=True, kw_only=True):
    """An executor called `send_framework_message`."""

    data: bytes


# --- Effects -------------------------------------------------------------------------------------


class Send(_Value, frozen=True, kw_only=True):
    """Send to the peer; if the session is gone meanwhile the message is lost, and the core knows what to do."""

    message: Message


class ResetSession(_Value, frozen=True, kw_only=True):
    """Close the session and dial anew."""

    reason: str


class Stop(_Value, frozen=True, kw_only=True):
    """The driver has ended: send what is queued, close, and let `run` return `exit_code`.

    `is_forced`: what still runs of the user's code was given its time and need not be waited for.
    """

    exit_code: int
    is_forced: bool = False


# --- Callbacks of a scheduler --------------------------------------------------------------------


class OnRegistered(_Callback, frozen=True, kw_only=True):
    framework_id: FrameworkId


class OnReregistered(_Callback, frozen=True, kw_only=True):
    pass


class OnDisconnected(_Callback, frozen=True, kw_only=True):
    """Of schedulers and executors."""


class OnResourceOffers(_Callback, frozen=True, kw_only=True):
    offers: tuple[Offer, ...]


class OnOfferRescinded(_Callback, frozen=True, kw_only=True):
    offer_id: OfferId


class OnStatusUpdate(_Callback, frozen=True, kw_only=True):
    status: TaskStatus


class OnFrameworkMessage(_Callback, frozen=True, kw_only=True):
    executor_id: ExecutorId
    slave_id: SlaveId
    data: bytes


class OnSlaveLost(_Callback, frozen=True, kw_only=True):
    slave_id: SlaveId


class OnExecutorLost(_Callback, frozen=True, kw_only=True):
    executor_id: ExecutorId
    slave_id: SlaveId
    exit_status: int


class OnError(_Callback, frozen=True, kw_only=True):
    """Of schedulers and executors."""

    message: str


# --- Callbacks of an executor --------------------------------------------------------------------


class ExecutorSlave(Record, frozen=True, kw_only=True):
    """The slave as its executor sees it. `container_id` names the executor's sandbox, `address` serves its files."""

    slave_id: SlaveId
    hostname: str
    container_id: str
    address: Address


class OnExecutorRegistered(_Callback, frozen=True, kw_only=True):
    executor_info: ExecutorInfo
    framework_info: FrameworkInfo
    slave: ExecutorSlave


class OnExecutorReregistered(_Callback, frozen=True, kw_only=True):
    slave: ExecutorSlave


class OnLaunchTask(_Callback, frozen=True, kw_only=True):
    task: TaskInfo


class OnKillTask(_Callback, frozen=True, kw_only=True):
    task_id: TaskId
    grace_period_s: float


class OnExecutorMessage(_Callback, frozen=True, kw_only=True):
    data: bytes


class OnShutdown(_Callback, frozen=True, kw_only=True):
    pass


SchedulerCallback = (
    OnRegistered
    | OnReregistered
    | OnDisconnected
    | OnResourceOffers
    | OnOfferRescinded
    | OnStatusUpdate
    | OnFrameworkMessage
    | OnSlaveLost
    | OnExecutorLost
    | OnError
)
ExecutorCallback = (
    OnExecutorRegistered
    | OnExecutorReregistered
    | OnDisconnected
    | OnLaunchTask
    | OnKillTask
    | OnExecutorMessage
    | OnShutdown
    | OnError
)

UserCall = (
    AcceptOffers
    | DeclineOffers
    | ReviveOffers
    | SuppressOffers
    | KillTask
    | AcknowledgeStatus
    | ReconcileTasks
    | FrameworkToExecutor
    | ShutdownExecutor
    | StopAsked
    | AbortAsked
    | CallbackFailed
)
SchedulerEvent = SessionOpened | SessionClosed | HelloRefused | Received | UserCall
SchedulerEffect = Send | ResetSession | Stop | Log | SchedulerCallback
ExecutorCall = StatusSent | DataSent | StopAsked | AbortAsked | CallbackFailed
ExecutorEvent = SessionOpened | SessionClosed | HelloRefused | Received | ExecutorCall
ExecutorEffect = Send | ResetSession | Stop | Log | ExecutorCallback


# --- The life of a driver, the same for schedulers and executors ----------------------------------


class DriverState(StrEnum):
    """Where a driver stands towards its peer."""

    DISCONNECTED = "disconnected"  # No session.
    REGISTERING = "registering"  # A session, and no answer to the registration yet.
    REGISTERED = "registered"
    STOPPED = "stopped"


ALLOWED_CHANGES: dict[DriverState, frozenset[DriverState]] = {
    DriverState.DISCONNECTED: frozenset({DriverState.REGISTERING, DriverState.STOPPED}),
    DriverState.REGISTERING: frozenset({DriverState.REGISTERED, DriverState.DISCONNECTED, DriverState.STOPPED}),
    DriverState.REGISTERED: frozenset({DriverState.DISCONNECTED, DriverState.STOPPED}),
    DriverState.STOPPED: frozenset(),
}


def change(subject: str, current: DriverState, wanted: DriverState, reason: str) -> DriverState:
    """Return `wanted`; the one place that judges a driver's change of state.

    Raises:
        InvalidTransition: the change is not in the table.
    """
    if wanted not in ALLOWED_CHANGES[current]:
        raise InvalidTransition(subject, current, wanted, (reason,))
    return wanted
