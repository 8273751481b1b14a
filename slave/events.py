"""What the slave's core is told, what it wants done, and what it starts from.

Events and effects are frozen values with a `type` tag, so that a daemon can record them. Effects
are performed in the order given; `Persist` always comes first, so that nothing is sent before it
is written.
"""

import msgspec

from meseta.ids import ContainerId, FrameworkId, SessionId, SlaveId
from meseta.log import Log
from meseta.messages import Message
from meseta.model import Address, Record
from meseta.resources import Resources
from slave.records import CheckpointRecord
from slave.supervisor_messages import FromSupervisor, StartContainer, Started, ToSupervisor

DEFAULT_PIDS_LIMIT = 4096  # Enough for a JVM with a thread for each of its clients, too little for a fork bomb to hurt.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Event(Record, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base: the tag is the class's name."""


class SlaveConfig(Record, frozen=True, kw_only=True):
    """What the shell measured or was told. `user` is who the daemon is.

    `can_switch_user`: tasks may run as another user (the daemon is root). Times in seconds.
    """

    hostname: str
    resources: Resources
    address: Address
    work_dir: str
    executor_endpoint: str
    boot_id: str = ""
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    version: str = ""
    user: str = ""
    can_switch_user: bool = False
    python: str = "python3"
    task_path: str = DEFAULT_PATH
    pids_limit: int = DEFAULT_PIDS_LIMIT
    executor_registration_timeout_s: float = 60.0
    executor_reregistration_timeout_s: float = 10.0
    executor_recovery_timeout_s: float = 900.0  # How long an executor waits for its slave; Mesos's 15 min.


class SlaveInit(Record, frozen=True, kw_only=True):
    """All that a core starts from. `supervisors` are the live ones that were found.

    `unix_offset_s` is wall-clock time minus the time that the core is given as `now`.
    `token_secret` makes the executors' tokens: ids come from `seed`, whose next ones can be told from many.
    """

    config: SlaveConfig
    seed: int
    token_secret: bytes = b""
    slave_id: SlaveId | None = None
    records: tuple[CheckpointRecord, ...] = ()
    supervisors: tuple[str, ...] = ()
    unix_offset_s: float = 0.0


# --- Events --------------------------------------------------------------------------------------


class Begin(_Event, frozen=True, kw_only=True):
    """First of all events: the shell is ready for effects."""


class MasterConnected(_Event, frozen=True, kw_only=True):
    """A session with a master is open."""

    epoch: int | None = None


class MasterDisconnected(_Event, frozen=True, kw_only=True):
    """The session is gone; the transport dials again by itself."""

    reason: str


class MasterRefused(_Event, frozen=True, kw_only=True):
    """The master will not talk to this slave."""

    code: str
    message: str


class MasterSaid(_Event, frozen=True, kw_only=True):
    """One message of the master."""

    message: Message
    epoch: int | None = None


class SupervisorReady(_Event, frozen=True, kw_only=True):
    """A new supervisor was started and is connected."""

    supervisor: str


class SupervisorStartFailed(_Event, frozen=True, kw_only=True):
    """No supervisor could be started."""

    message: str


class SupervisorSaid(_Event, frozen=True, kw_only=True):
    """One report of a supervisor."""

    supervisor: str
    report: FromSupervisor


class SupervisorLost(_Event, frozen=True, kw_only=True):
    """A supervisor's socket broke: its process is dead."""

    supervisor: str
    reason: str = ""


class OrphansKilled(_Event, frozen=True, kw_only=True):
    """`KillOrphans` is done: nothing of these containers runs any more."""

    supervisor: str


class LaunchFailed(_Event, frozen=True, kw_only=True):
    """The sandbox could not be made; nothing was sent to the supervisor."""

    container_id: ContainerId
    message: str


class ExecutorConnected(_Event, frozen=True, kw_only=True):
    """An executor's session with a token that `executor_admitted` knows."""

    session: SessionId
    token: str


class ExecutorSaid(_Event, frozen=True, kw_only=True):
    """One message of an executor."""

    session: SessionId
    message: Message


class ExecutorDisconnected(_Event, frozen=True, kw_only=True):
    """An executor's session is gone; its process may live on and come back."""

    session: SessionId
    reason: str = ""


class Leave(_Event, frozen=True, kw_only=True):
    """The operator wants the slave out of service: kill all tasks, then exit; id and unsent updates stay."""


SlaveEvent = (
    Begin
    | MasterConnected
    | MasterDisconnected
    | MasterRefused
    | MasterSaid
    | SupervisorReady
    | SupervisorStartFailed
    | SupervisorSaid
    | SupervisorLost
    | OrphansKilled
    | LaunchFailed
    | ExecutorConnected
    | ExecutorSaid
    | ExecutorDisconnected
    | Leave
)


# --- Effects -------------------------------------------------------------------------------------


class Persist(_Event, frozen=True, kw_only=True):
    """Append to the checkpoint in one write(2), before what follows."""

    records: tuple[CheckpointRecord, ...]


class PersistSlaveId(_Event, frozen=True, kw_only=True):
    """Write the slave's id and fsync it, before what follows. Once in a slave's life."""

    slave_id: SlaveId


class RemoveCheckpoint(_Event, frozen=True, kw_only=True):
    """Remove id and checkpoint: the next start is that of a new slave."""


class SendMaster(_Event, frozen=True, kw_only=True):
    """Send, if there is a session."""

    message: Message


class ResetSession(_Event, frozen=True, kw_only=True):
    """Close the master's session and dial again."""

    reason: str


class SendSupervisor(_Event, frozen=True, kw_only=True):
    """Send to one supervisor, if it lives."""

    supervisor: str
    message: ToSupervisor


class LaunchContainer(_Event, frozen=True, kw_only=True):
    """Make `start.sandbox`, owned by `start.user`, then send `start`; else answer `LaunchFailed`."""

    supervisor: str
    framework_id: FrameworkId
    start: StartContainer


class StartSupervisor(_Event, frozen=True, kw_only=True):
    """Start one and connect; answered by `SupervisorReady` or `SupervisorStartFailed`."""


class KillOrphans(_Event, frozen=True, kw_only=True):
    """Kill what a dead supervisor left; answered by `OrphansKilled`.

    `pid` 0 in a container: its supervisor died before it told.
    """

    supervisor: str
    containers: tuple[Started, ...]
    isolation: str = ""


class SendExecutor(_Event, frozen=True, kw_only=True):
    """Send to one executor's session."""

    session: SessionId
    message: Message


class CloseExecutor(_Event, frozen=True, kw_only=True):
    """Forget an executor's session."""

    session: SessionId
    reason: str


class Exit(_Event, frozen=True, kw_only=True):
    """End the daemon."""

    status: int
    message: str


SlaveEffect = (
    Persist
    | PersistSlaveId
    | RemoveCheckpoint
    | SendMaster
    | ResetSession
    | SendSupervisor
    | LaunchContainer
    | StartSupervisor
    | KillOrphans
    | SendExecutor
    | CloseExecutor
    | Log
    | Exit
)
