"""What the slave writes to its checkpoint: one value for each fact that must survive a crash.

Folding the records in order (`slave/recovery.py`) gives back what the core knew. `SlaveCore.snapshot`
writes the same state with as few of them as possible.
"""

from meseta.ids import ContainerId, ExecutorId, FrameworkId, StatusUuid, TaskId
from meseta.model import ExecutorInfo, FrameworkInfo, Name, Record, Seconds, TaskInfo, TaskStatus


class _CheckpointRecord(Record, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base: the tag is the class's name."""


class BootRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """What follows happened in this boot of the machine; no process outlives it."""

    boot_id: str


class EpochRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """A master of this term was heard: lower ones are refused for ever."""

    epoch: int


class FrameworkRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """A framework has tasks here; a later record of the same id replaces it."""

    framework_info: FrameworkInfo


class FrameworkShutdownRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """The framework is over: kill what it has, keep no updates for it."""

    framework_id: FrameworkId


class TaskRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """A task was accepted. `task` of an executor has neither `executor` nor `data`: it is never sent twice.

    `supervisor` is the one that is asked to start it; empty: none was there yet.
    """

    framework_id: FrameworkId
    task: TaskInfo
    container_id: ContainerId
    role: Name = "*"
    user: Name = ""
    executor_id: ExecutorId | None = None
    supervisor: str = ""
    started_unix_s: Seconds = 0.0


class ExecutorRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """An executor is about to be started; `token` is what it proves itself with."""

    framework_id: FrameworkId
    executor: ExecutorInfo
    container_id: ContainerId
    token: str
    role: Name = "*"
    supervisor: str = ""


class AssignedRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """A supervisor was found for a container that had none."""

    container_id: ContainerId
    supervisor: str


class StartedRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """How to find a container's processes when its supervisor is dead."""

    container_id: ContainerId
    pid: int
    start_ticks: int
    cgroup: str = ""


class ExecutorRegisteredRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """The executor has registered: after a restart of the slave it is expected back soon."""

    framework_id: FrameworkId
    executor_id: ExecutorId


class ExecutorEndedRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """The executor's process tree is dead and its tasks are reported."""

    framework_id: FrameworkId
    executor_id: ExecutorId


class UpdateRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """A status update that is to be sent until it is acknowledged."""

    framework_id: FrameworkId
    status: TaskStatus


class AcknowledgedRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """The update at the head of the task's stream is acknowledged; after a terminal one the task is over."""

    framework_id: FrameworkId
    task_id: TaskId
    uuid: StatusUuid


class TaskDroppedRecord(_CheckpointRecord, frozen=True, kw_only=True):
    """The task is over and no acknowledgement is awaited: its framework is gone."""

    framework_id: FrameworkId
    task_id: TaskId


CheckpointRecord = (
    BootRecord
    | EpochRecord
    | FrameworkRecord
    | FrameworkShutdownRecord
    | TaskRecord
    | ExecutorRecord
    | AssignedRecord
    | StartedRecord
    | ExecutorRegisteredRecord
    | ExecutorEndedRecord
    | UpdateRecord
    | AcknowledgedRecord
    | TaskDroppedRecord
)
