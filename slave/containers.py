"""Containers and the supervisors that have them: starts, kills, recovery, and a supervisor's death.

A container is started once at most: a start goes to one supervisor for ever (it is written first),
and that one knows a doubled start by its id. What a supervisor has and the slave cannot account
for is killed.
"""

from enum import Enum

import msgspec

from meseta.errors import InvariantError
from meseta.ids import ContainerId
from meseta.log import DEBUG, ERROR, INFO, WARNING
from meseta.timers import Timers
from slave.events import KillOrphans, LaunchContainer, SendSupervisor, StartSupervisor
from slave.records import AssignedRecord, StartedRecord
from slave.state import Container, ContainerState, Context
from slave.supervisor_messages import (
    Containers as ContainerList,
)
from slave.supervisor_messages import (
    Exited,
    Forget,
    FromSupervisor,
    KillContainer,
    Limits,
    ListContainers,
    ResizeContainer,
    RetireSupervisor,
    Started,
    StartFailed,
    SupervisorRefused,
)

_C = ContainerState

ANSWER_LIMIT_S = 10.0  # A supervisor answers in a millisecond; one that is silent holds up registration no longer.
RESTART_BASE_S = 1.0
RESTART_LIMIT_S = 60.0


class Cause(Enum):
    """Why a container is over."""

    EXITED = "exited"
    START_FAILED = "start failed"
    NEVER_STARTED = "never started"  # Killed before a supervisor was asked.
    SUPERVISOR_LOST = "supervisor lost"


class ContainerStarted(msgspec.Struct, frozen=True, gc=False):
    """The process runs."""

    container_id: ContainerId


class ContainerEnded(msgspec.Struct, frozen=True, gc=False):
    """Nothing of it runs any more. `exited` is set if the cause is EXITED."""

    container_id: ContainerId
    cause: Cause
    message: str = ""
    exited: Exited | None = None


Outcome = ContainerStarted | ContainerEnded


class _Supervisor:
    __slots__ = ("has_answered", "isolation")

    def __init__(self) -> None:
        self.has_answered = False
        self.isolation = ""


class Containers:
    """All containers that are not over, by id. Methods return what became of containers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.by_id: dict[ContainerId, Container] = {}
        self._supervisors: dict[str, _Supervisor] = {}
        self._dying: dict[str, None] = {}  # Lost supervisors whose containers are being killed.
        self._isolation_by_lost: dict[str, str] = {}
        self._current: str | None = None
        self._is_starting = False
        self._is_leaving = False
        self._restart_count = 0
        self._timers: Timers[str] = Timers()  # By supervisor: its answer; by "": the next start of one.

    # --- Start and end of the daemon ------------------------------------------------------------

    def begin(self, found: tuple[str, ...]) -> None:
        """Ask the supervisors that were found; clean up after those that were not."""
        for supervisor in found:
            self._supervisors[supervisor] = _Supervisor()
            self._timers.set(supervisor, self._context.now + ANSWER_LIMIT_S)
            self._context.emit(SendSupervisor(supervisor=supervisor, message=ListContainers()))
        lost = {entry.supervisor: None for entry in self.by_id.values() if entry.state is _C.CLAIMED}
        for supervisor in lost:
            if supervisor not in self._supervisors:
                self._orphan(supervisor)
        if not found:
            self._start_supervisor()

    @property
    def is_recovered(self) -> bool:
        """True when every supervisor that was found has said what it has, or took too long."""
        return all(entry.has_answered or name not in self._timers for name, entry in self._supervisors.items())

    @property
    def is_starting(self) -> bool:
        """True while a supervisor is being started: nobody else would end it."""
        return self._is_starting

    def retire(self) -> None:
        """Start nothing any more; supervisors end with their last container."""
        self._is_leaving = True
        for name in self._supervisors:
            self._context.emit(SendSupervisor(supervisor=name, message=RetireSupervisor()))

    # --- Starts and kills -----------------------------------------------------------------------

    def choose(self) -> str:
        """Return the supervisor that a container added now is started by, empty if it must wait."""
        return self._current or ""

    def recover(self, container: Container) -> None:
        """Take a container of the checkpoint."""
        if container.supervisor:
            container.change(_C.CLAIMED)
        self.by_id[container.container_id] = container

    def add(self, container: Container, supervisor: str) -> None:
        """Start a container; `supervisor` comes from `choose` and is in the caller's record."""
        self.by_id[container.container_id] = container
        if supervisor:
            self._request(container, supervisor)

    def kill(self, container_id: ContainerId, grace_s: float) -> list[Outcome]:
        """End a container. Asked again, only a shorter grace changes anything."""
        container = self.by_id.get(container_id)
        if container is None:
            return []
        if container.state is _C.WAITING:
            return self._end(container, Cause.NEVER_STARTED)
        if container.kill_grace_s is None or grace_s < container.kill_grace_s:
            container.kill_grace_s = grace_s
            # A claimed one is asked for when its supervisor has answered: the start goes first.
            if container.state in {_C.REQUESTED, _C.RUNNING}:
                self._send_kill(container)
        return []

    def resize(self, container_id: ContainerId, limits: Limits) -> None:
        """Give a container other limits; one that has not started yet is started with them."""
        container = self.by_id.get(container_id)
        if container is None:
            return
        if container.start is not None:
            container.start = msgspec.structs.replace(container.start, limits=limits)
        if container.state in {_C.REQUESTED, _C.RUNNING}:
            resize = ResizeContainer(container_id=container_id, limits=limits)
            self._context.emit(SendSupervisor(supervisor=container.supervisor, message=resize))

    def launch_failed(self, container_id: ContainerId, message: str) -> list[Outcome]:
        """Take word that its sandbox could not be made: the supervisor was not asked."""
        container = self.by_id.get(container_id)
        if container is None or container.state is not _C.REQUESTED:
            return []
        return self._end(container, Cause.START_FAILED, message)

    # --- Supervisors ----------------------------------------------------------------------------

    def supervisor_ready(self, supervisor: str) -> None:
        """Take a new supervisor, which has no containers, and start what waited."""
        self._is_starting = False
        self._restart_count = 0
        entry = self._supervisors[supervisor] = _Supervisor()
        entry.has_answered = True
        self._current = supervisor
        # It tells its isolation; a list with our own containers in it changes nothing.
        self._context.emit(SendSupervisor(supervisor=supervisor, message=ListContainers()))
        if self._is_leaving:
            self._context.emit(SendSupervisor(supervisor=supervisor, message=RetireSupervisor()))
        self._start_waiting(supervisor)

    def supervisor_start_failed(self, message: str) -> list[Outcome]:
        """Fail what waited for a supervisor, with the cause, and try again later."""
        self._is_starting = False
        delay_s = min(RESTART_BASE_S * 2.0**self._restart_count, RESTART_LIMIT_S)
        self._restart_count = min(self._restart_count + 1, 32)
        self._timers.set("", self._context.now + delay_s)
        self._context.log(ERROR, "supervisor did not start", error=message, retry_s=delay_s)
        outcomes: list[Outcome] = []
        for container in [entry for entry in self.by_id.values() if entry.state is _C.WAITING]:
            outcomes += self._end(container, Cause.START_FAILED, f"no supervisor could be started: {message}")
        return outcomes

    def supervisor_lost(self, supervisor: str, reason: str) -> None:
        """Kill what a dead supervisor had, and start another one if it was the current one."""
        entry = self._supervisors.pop(supervisor, None)
        if entry is None:
            return
        self._timers.cancel(supervisor)
        self._isolation_by_lost[supervisor] = entry.isolation
        held = sum(container.supervisor == supervisor for container in self.by_id.values())
        if not self._is_leaving:
            self._context.log(ERROR, "supervisor lost", supervisor=supervisor, reason=reason, containers=held)
        if held:
            self._orphan(supervisor)
        if self._current == supervisor:
            self._current = self._newest_answered()
        if self._current is None and self.is_recovered:
            self._start_supervisor()

    def orphans_killed(self, supervisor: str) -> list[Outcome]:
        """Report the containers of a dead supervisor: now nothing of them runs."""
        self._dying.pop(supervisor, None)
        self._isolation_by_lost.pop(supervisor, None)
        outcomes: list[Outcome] = []
        for container in [entry for entry in self.by_id.values() if entry.state is _C.ORPHANED]:
            if container.supervisor == supervisor:
                outcomes += self._end(container, Cause.SUPERVISOR_LOST, "the slave's supervisor process died")
        return outcomes

    def report(self, supervisor: str, report: FromSupervisor) -> list[Outcome]:
        """Take what a supervisor says."""
        match report:
            case Started():
                return self._on_started(supervisor, report)
            case Exited():
                return self._on_exited(supervisor, report)
            case StartFailed():
                container = self.by_id.get(report.container_id)
                if container is None or container.supervisor != supervisor:
                    return []
                return self._end(container, Cause.START_FAILED, report.message)
            case ContainerList():
                return self._on_list(supervisor, report)
            case SupervisorRefused():
                self._context.log(ERROR, "supervisor refused a request", supervisor=supervisor, error=report.message)
        return []

    def tick(self) -> None:
        """Do what is due."""
        for name in self._timers.pop_due(self._context.now):
            if name:
                self._context.log(ERROR, "supervisor does not answer", supervisor=name, waited_s=ANSWER_LIMIT_S)
                self._finish_recovery()
            else:
                self._start_supervisor()

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do."""
        return self._timers.next_due()

    def check(self) -> None:
        """Raise InvariantError if a container is where it must not be."""
        if self._current is not None and self._current not in self._supervisors:
            raise InvariantError(f"the current supervisor {self._current} is not there")
        for container_id, container in self.by_id.items():
            state = container.state
            if container_id != container.container_id or state is _C.ENDED:
                raise InvariantError(f"container {container_id} is {state.value} and still there")
            if (state is _C.WAITING) != (container.supervisor == ""):
                raise InvariantError(f"container {container_id} is {state.value} at {container.supervisor!r}")
            if (state is _C.ORPHANED) != (container.supervisor in self._dying):
                raise InvariantError(f"container {container_id} is {state.value} and its supervisor's end differs")
            if state not in {_C.ORPHANED, _C.CLAIMED} and container.supervisor not in {"", *self._supervisors}:
                raise InvariantError(f"container {container_id} is at {container.supervisor}, which is not there")
            if container.started is None and state is _C.RUNNING:
                raise InvariantError(f"container {container_id} is {state.value} and its process is not known so")

    # --- Private --------------------------------------------------------------------------------

    def _request(self, container: Container, supervisor: str) -> None:
        assert container.start is not None, f"container {container.container_id} was started"
        container.change(_C.REQUESTED)
        container.supervisor = supervisor
        self._context.emit(
            LaunchContainer(supervisor=supervisor, framework_id=container.framework_id, start=container.start)
        )

    def _send_kill(self, container: Container) -> None:
        assert container.kill_grace_s is not None, f"container {container.container_id} is not to be killed"
        kill = KillContainer(container_id=container.container_id, grace_period_s=container.kill_grace_s)
        self._context.emit(SendSupervisor(supervisor=container.supervisor, message=kill))

    def _end(
        self, container: Container, cause: Cause, message: str = "", exited: Exited | None = None
    ) -> list[Outcome]:
        container.change(_C.ENDED)
        del self.by_id[container.container_id]
        return [ContainerEnded(container.container_id, cause, message, exited)]

    def _on_started(self, supervisor: str, report: Started) -> list[Outcome]:
        container = self.by_id.get(report.container_id)
        if container is None or container.supervisor != supervisor:
            self._kill_unknown(supervisor, report.container_id)
            return []
        if container.state not in {_C.REQUESTED, _C.CLAIMED}:
            return []  # The answer to a doubled start.
        self._run(container, report)
        return [ContainerStarted(container.container_id)]

    def _run(self, container: Container, report: Started) -> None:
        if container.started != report:
            self._context.persist(
                StartedRecord(
                    container_id=report.container_id,
                    pid=report.pid,
                    start_ticks=report.start_ticks,
                    cgroup=report.cgroup,
                )
            )
        container.change(_C.RUNNING)
        container.started = report
        container.start = None

    def _on_exited(self, supervisor: str, report: Exited) -> list[Outcome]:
        container = self.by_id.get(report.container_id)
        outcomes: list[Outcome] = []
        if container is not None and container.supervisor == supervisor:
            outcomes = self._end(container, Cause.EXITED, "", report)
        # Its update is written before any effect: the record at the supervisor has served.
        self._context.emit(SendSupervisor(supervisor=supervisor, message=Forget(container_id=report.container_id)))
        return outcomes

    def _on_list(self, supervisor: str, report: ContainerList) -> list[Outcome]:
        entry = self._supervisors.get(supervisor)
        if entry is None:
            return []
        entry.isolation = report.isolation
        is_posix = report.isolation == "posix"
        phrase = "limits are NOT enforced" if is_posix else "limits are enforced"
        level = WARNING if is_posix else INFO
        note = report.isolation_note or None
        self._context.log(level, phrase, isolation=report.isolation, why=note, supervisor=supervisor)
        for started in report.running:
            container = self.by_id.get(started.container_id)
            if container is None or container.supervisor != supervisor:
                self._kill_unknown(supervisor, started.container_id)
        if entry.has_answered:
            return []
        entry.has_answered = True
        self._timers.cancel(supervisor)
        outcomes = self._adopt(supervisor, report)
        self._finish_recovery()
        return outcomes

    def _adopt(self, supervisor: str, report: ContainerList) -> list[Outcome]:
        """Match the checkpointed containers of a supervisor with what it has."""
        running = {started.container_id: started for started in report.running}
        outcomes: list[Outcome] = []
        for container in self.by_id.values():
            if container.supervisor != supervisor or container.state is not _C.CLAIMED:
                continue
            started = running.get(container.container_id)
            if started is not None:
                self._run(container, started)
                outcomes.append(ContainerStarted(container.container_id))
            else:
                # Not started, or ended: it knows which, and repeats the answer it gave.
                container.started = None
                self._request(container, supervisor)
            if container.kill_grace_s is not None:
                self._send_kill(container)
        return outcomes

    def _finish_recovery(self) -> None:
        if self._current is None:
            self._current = self._newest_answered()
            if self._current is not None:
                self._start_waiting(self._current)
            elif self.is_recovered:
                self._start_supervisor()

    def _start_waiting(self, supervisor: str) -> None:
        if self._is_leaving:
            return
        for container in self.by_id.values():
            if container.state is _C.WAITING:
                self._context.persist(AssignedRecord(container_id=container.container_id, supervisor=supervisor))
                self._request(container, supervisor)

    def _newest_answered(self) -> str | None:
        return next((name for name in reversed(self._supervisors) if self._supervisors[name].has_answered), None)

    def _kill_unknown(self, supervisor: str, container_id: ContainerId) -> None:
        self._context.log(WARNING, "unknown container killed", container_id=container_id, supervisor=supervisor)
        kill = KillContainer(container_id=container_id, grace_period_s=0.0)
        self._context.emit(SendSupervisor(supervisor=supervisor, message=kill))

    def _orphan(self, supervisor: str) -> None:
        self._dying[supervisor] = None
        orphans = []
        for container in self.by_id.values():
            if container.supervisor == supervisor:
                container_id = container.container_id
                orphans.append(container.started or Started(container_id=container_id, pid=0, start_ticks=0))
                container.change(_C.ORPHANED)
                container.started = None
        isolation = self._isolation_by_lost.get(supervisor, "")
        self._context.emit(KillOrphans(supervisor=supervisor, containers=tuple(orphans), isolation=isolation))

    def _start_supervisor(self) -> None:
        if not self._is_starting and not self._is_leaving:
            self._is_starting = True
            self._context.log(DEBUG, "supervisor is being started")
            self._context.emit(StartSupervisor())
