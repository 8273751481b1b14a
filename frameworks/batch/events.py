"""What the batch core is told, and what it wants done."""

import msgspec

from frameworks.batch.model import Heartbeat, JobId, JobRecord, JobSpec, Order, TaskKind, TaskRecord
from meseta.ids import ExecutorId, OfferId, SlaveId, TaskId
from meseta.log import Log
from meseta.model import Offer, TaskStatus
from meseta.resources import Resources


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag=True, tag_field="type"):
    """Base: the tag is the class's name."""


# --- Events ---------------------------------------------------------------------------------------


class Registered(_Value, frozen=True, kw_only=True):
    """The master knows us (again); there are no offers from before."""


class Disconnected(_Value, frozen=True, kw_only=True):
    """The master is gone: silence says nothing about slaves now."""


class OffersReceived(_Value, frozen=True, kw_only=True):
    """New offers."""

    offers: tuple[Offer, ...]


class StatusReceived(_Value, frozen=True, kw_only=True):
    """A task's state."""

    status: TaskStatus


class SlaveWasLost(_Value, frozen=True, kw_only=True):
    """The master gave a slave up."""

    slave_id: SlaveId


class HeartbeatReceived(_Value, frozen=True, kw_only=True):
    """An executor lives."""

    slave_id: SlaveId
    executor_id: ExecutorId
    heartbeat: Heartbeat


class SubmitJob(_Value, frozen=True, kw_only=True):
    """A client wants a job run; answered by `Answer` with the same `request_id`."""

    request_id: int
    spec: JobSpec
    unix_s: float


class JobSaved(_Value, frozen=True, kw_only=True):
    """A new job's record is durable."""

    job_id: JobId


class KillJob(_Value, frozen=True, kw_only=True):
    """A client wants a job ended; answered by `Answer`."""

    request_id: int
    job_id: JobId


Event = (
    Registered
    | Disconnected
    | OffersReceived
    | StatusReceived
    | SlaveWasLost
    | HeartbeatReceived
    | SubmitJob
    | JobSaved
    | KillJob
)


# --- Effects --------------------------------------------------------------------------------------


class LaunchItem(_Value, frozen=True, kw_only=True):
    """A task to launch."""

    task_id: TaskId
    job_id: JobId
    kind: TaskKind
    resources: Resources
    order: Order


class Launch(_Value, frozen=True, kw_only=True):
    """Accept an offer with these tasks."""

    offer_id: OfferId
    slave_id: SlaveId
    items: tuple[LaunchItem, ...]


class Decline(_Value, frozen=True, kw_only=True):
    """Give an offer back."""

    offer_id: OfferId


class Revive(_Value, frozen=True, kw_only=True):
    """Want offers."""


class Suppress(_Value, frozen=True, kw_only=True):
    """Want no offers."""


class Reconcile(_Value, frozen=True, kw_only=True):
    """Ask for the state of all our tasks."""


class Acknowledge(_Value, frozen=True, kw_only=True):
    """Acknowledge a status, once what was saved before is durable."""

    status: TaskStatus


class KillAttempt(_Value, frozen=True, kw_only=True):
    """End a task."""

    task_id: TaskId


class EndExecutor(_Value, frozen=True, kw_only=True):
    """End a job's executor on a slave."""

    executor_id: ExecutorId
    slave_id: SlaveId


class SaveJob(_Value, frozen=True, kw_only=True):
    """Keep a job's record. `is_new`: tell by `JobSaved` when it is durable."""

    record: JobRecord
    is_new: bool = False


class SaveTask(_Value, frozen=True, kw_only=True):
    """Keep a task's record."""

    record: TaskRecord


class ForgetTasks(_Value, frozen=True, kw_only=True):
    """Remove the records of a job's tasks."""

    job_id: JobId


class ForgetJob(_Value, frozen=True, kw_only=True):
    """Remove a job's record."""

    job_id: JobId


class Answer(_Value, frozen=True, kw_only=True):
    """Answer a client; `error` is empty if it was done."""

    request_id: int
    job_id: JobId = ""
    error: str = ""


class JobChanged(_Value, frozen=True, kw_only=True):
    """Those who watch the job should look again."""

    job_id: JobId


Effect = (
    Launch
    | Decline
    | Revive
    | Suppress
    | Reconcile
    | Acknowledge
    | KillAttempt
    | EndExecutor
    | SaveJob
    | SaveTask
    | ForgetTasks
    | ForgetJob
    | Answer
    | JobChanged
    | Log
)
