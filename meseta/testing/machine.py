"""A simulated machine: its disk, its kernel with processes, and the supervisors on it.

It is also the witness of every test: what really ran here, from when to when, is known apart from
what master, slave and framework believe.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from meseta.errors import InvariantError
from meseta.ids import ContainerId, SlaveId, TaskId
from meseta.testing.world import Timer, World
from slave.records import CheckpointRecord
from slave.supervisor_messages import (
    Containers,
    Exited,
    Forget,
    FromSupervisor,
    KillContainer,
    ListContainers,
    RetireSupervisor,
    StartContainer,
    Started,
    StartFailed,
    ToSupervisor,
)

PROGRAM = "simulate"  # `simulate SECONDS EXIT_STATUS`: what tasks run here.
SIGKILL_STATUS = 137
SIGTERM_STATUS = 143


@dataclass
class Process:
    """A task's process tree. `ended_s` None: it runs."""

    container_id: ContainerId
    task_id: TaskId
    pid: int
    started_s: float
    exit_status: int
    supervisor: "Supervisor | None"
    ended_s: float | None = None
    was_killed: bool = False
    timer: Timer | None = None


@dataclass
class Supervisor:
    """One supervisor process. `report` is the connected daemon's ear, None while there is none."""

    name: str
    is_alive: bool = True
    is_retired: bool = False
    containers: dict[ContainerId, Process] = field(default_factory=dict)
    report: Callable[[FromSupervisor], None] | None = None
    last_report_s: float = 0.0


class Machine:
    """Disk, kernel and supervisors of one slave. Daemons come and go, this stays."""

    SPAWN_S = 0.002

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.slave_id: SlaveId | None = None
        self.records: list[CheckpointRecord] = []
        self.supervisors: dict[str, Supervisor] = {}
        self.processes: list[Process] = []
        self._pid = 100
        self._supervisor_count = 0

    def running(self) -> list[Process]:
        """Return the process trees that run now, in the order of their starts."""
        return [process for process in self.processes if process.ended_s is None]

    def live_supervisors(self) -> tuple[str, ...]:
        """Return the names of supervisors that a daemon would find."""
        return tuple(name for name, supervisor in self.supervisors.items() if supervisor.is_alive)

    def start_supervisor(self) -> str:
        """Start a supervisor; returns its name."""
        self._supervisor_count += 1
        name = f"{self.name}-supervisor-{self._supervisor_count}"
        self.supervisors[name] = Supervisor(name)
        return name

    def kill_supervisor(self, name: str) -> None:
        """`kill -9` of a supervisor: its processes run on as orphans, and their exits are lost."""
        supervisor = self.supervisors[name]
        supervisor.is_alive = False
        for process in supervisor.containers.values():
            process.supervisor = None
        supervisor.containers.clear()

    def disconnect(self) -> None:
        """The daemon died: supervisors have nobody to report to."""
        for supervisor in self.supervisors.values():
            supervisor.report = None

    def send(self, name: str, message: ToSupervisor) -> None:
        """A daemon's datagram to a supervisor; to a dead one it is lost."""
        supervisor = self.supervisors.get(name)
        if supervisor is None or not supervisor.is_alive:
            return
        match message:
            case StartContainer():
                self._start(supervisor, message)
            case KillContainer():
                self._kill(supervisor, message.container_id)
            case Forget():
                process = supervisor.containers.get(message.container_id)
                if process is not None and process.ended_s is not None:
                    del supervisor.containers[message.container_id]
                    self._exit_if_retired(supervisor)
            case ListContainers():
                self._list(supervisor)
            case RetireSupervisor():
                supervisor.is_retired = True
                self._exit_if_retired(supervisor)

    def kill_orphans(self, containers: tuple[Started, ...]) -> None:
        """Kill what a dead supervisor left of `containers`; pid 0: known by its container id alone."""
        wanted = {container.container_id for container in containers}
        for process in self.running():
            if process.container_id in wanted:
                self._end(process, SIGKILL_STATUS)

    def reboot(self) -> None:
        """All processes are gone; the disk stays."""
        for process in self.running():
            process.ended_s = self._world.now
            if process.timer is not None:
                process.timer.cancel()
        self.supervisors.clear()

    def _start(self, supervisor: Supervisor, message: StartContainer) -> None:
        known = supervisor.containers.get(message.container_id)
        if known is not None:
            self._tell(supervisor, self._state_of(known))
            return
        if supervisor.is_retired:
            refusal = StartFailed(container_id=message.container_id, message="this supervisor is retired")
            self._tell(supervisor, refusal)
            return
        program, seconds, status = message.arguments
        if program != PROGRAM:
            raise InvariantError(f"simulated machines run {PROGRAM}, not {program}")
        self._pid += 1
        process = Process(
            container_id=message.container_id,
            task_id=TaskId(message.environment["MESETA_TASK_ID"]),
            pid=self._pid,
            started_s=self._world.now,
            exit_status=int(status),
            supervisor=supervisor,
        )
        self.processes.append(process)
        supervisor.containers[message.container_id] = process
        self._world.note(f"{self.name}: process of {process.task_id} starts")
        process.timer = self._world.call_later(float(seconds), lambda: self._end(process, process.exit_status))
        self._tell(supervisor, self._state_of(process), self.SPAWN_S)

    def _kill(self, supervisor: Supervisor, container_id: ContainerId) -> None:
        process = supervisor.containers.get(container_id)
        if process is not None and process.ended_s is None:
            process.was_killed = True
            self._world.call_later(self.SPAWN_S, lambda: self._end(process, SIGTERM_STATUS))

    def _end(self, process: Process, exit_status: int) -> None:
        if process.ended_s is not None:
            return
        process.ended_s = self._world.now
        process.exit_status = exit_status
        if process.timer is not None:
            process.timer.cancel()
        self._world.note(f"{self.name}: process of {process.task_id} ends with {exit_status}")
        if process.supervisor is not None:
            self._tell(process.supervisor, self._state_of(process))

    def _list(self, supervisor: Supervisor) -> None:
        held = list(supervisor.containers.values())
        running = tuple(_started(process) for process in held if process.ended_s is None)
        self._tell(supervisor, Containers(running=running, isolation="posix"))
        for process in held:
            if process.ended_s is not None:
                self._tell(supervisor, self._state_of(process))

    def _exit_if_retired(self, supervisor: Supervisor) -> None:
        if supervisor.is_retired and not supervisor.containers:
            supervisor.is_alive = False

    def _tell(self, supervisor: Supervisor, report: FromSupervisor, delay_s: float = 0.0005) -> None:
        ear = supervisor.report
        if ear is None:
            return

        def arrive() -> None:
            if supervisor.report is ear and supervisor.is_alive:
                ear(report)

        # A socket keeps the order of its datagrams.
        supervisor.last_report_s = max(supervisor.last_report_s, self._world.now + delay_s)
        self._world.call_at(supervisor.last_report_s, arrive)

    @staticmethod
    def _state_of(process: Process) -> Started | Exited:
        if process.ended_s is None:
            return _started(process)
        return Exited(container_id=process.container_id, exit_status=process.exit_status, was_killed=process.was_killed)


def _started(process: Process) -> Started:
    return Started(container_id=process.container_id, pid=process.pid, start_ticks=process.pid)
