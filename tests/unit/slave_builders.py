"""Builders for the slave's tests, and a world around its core: checkpoint, supervisors and master in memory."""

from meseta.ids import ContainerId, ExecutorId, FrameworkId, SlaveId, StatusUuid, TaskId
from meseta.log import Log
from meseta.messages import (
    AcknowledgeStatus,
    Message,
    RegisterSlave,
    ReregisterSlave,
    RunTask,
    SlaveRegistered,
    StatusUpdate,
)
from meseta.model import (
    Address,
    CommandInfo,
    ExecutorInfo,
    FrameworkInfo,
    TaskInfo,
    TaskState,
    TaskStatus,
)
from meseta.resources import resources
from slave.core import SlaveCore
from slave.events import (
    Begin,
    Exit,
    KillOrphans,
    LaunchContainer,
    MasterConnected,
    MasterSaid,
    OrphansKilled,
    Persist,
    PersistSlaveId,
    RemoveCheckpoint,
    SendExecutor,
    SendMaster,
    SendSupervisor,
    SlaveConfig,
    SlaveEffect,
    SlaveEvent,
    SlaveInit,
    StartSupervisor,
    SupervisorReady,
    SupervisorSaid,
)
from slave.records import CheckpointRecord
from slave.supervisor_messages import (
    Containers,
    Exited,
    Forget,
    FromSupervisor,
    KillContainer,
    Limits,
    ListContainers,
    ResizeContainer,
    StartContainer,
    Started,
    ToSupervisor,
)

SLAVE = SlaveId("s-1")
FRAMEWORK = FrameworkId("f-1")
EXECUTOR = ExecutorId("e-1")


def config(boot_id: str = "boot-1") -> SlaveConfig:
    return SlaveConfig(
        hostname="host",
        resources=resources(cpus=4, mem_mib=1024),
        address=Address(endpoint="tcp://127.0.0.1:1"),
        work_dir="/w",
        executor_endpoint="ipc:///r/executors",
        boot_id=boot_id,
        user="root",
        can_switch_user=True,
    )


def framework(framework_id: str = FRAMEWORK, *capabilities: str) -> FrameworkInfo:
    return FrameworkInfo(name="test", user="root", id=FrameworkId(framework_id), capabilities=capabilities)


def command_task(task_id: str = "t-1", command: str = "true", cpus: float = 0.5) -> TaskInfo:
    return TaskInfo(
        task_id=TaskId(task_id),
        slave_id=SLAVE,
        name=task_id,
        resources=resources(cpus=cpus, mem_mib=64),
        command=CommandInfo(value=command),
    )


def executor_info(executor_id: str = EXECUTOR) -> ExecutorInfo:
    return ExecutorInfo(
        executor_id=ExecutorId(executor_id), command=CommandInfo(value="run"), resources=resources(cpus=0.1, mem_mib=32)
    )


def executor_task(task_id: str = "t-1", executor_id: str = EXECUTOR) -> TaskInfo:
    return TaskInfo(
        task_id=TaskId(task_id),
        slave_id=SLAVE,
        resources=resources(cpus=0.5, mem_mib=64),
        executor=executor_info(executor_id),
        data=b"work",
    )


def run_task(task: TaskInfo, info: FrameworkInfo | None = None) -> RunTask:
    return RunTask(framework_info=info or framework(), task=task, role="*")


class FakeSupervisor:
    """What a supervisor keeps: containers that run, and exit records until they are forgotten."""

    def __init__(self) -> None:
        self.running: dict[ContainerId, Started] = {}
        self.exits: dict[ContainerId, Exited] = {}
        self.starts: list[StartContainer] = []
        self.limits: dict[ContainerId, Limits] = {}
        self.is_retired = False
        self._pid = 100

    def handle(self, message: ToSupervisor) -> list[FromSupervisor]:
        match message:
            case StartContainer():
                if message.container_id in self.exits:
                    return [self.exits[message.container_id]]
                if message.container_id not in self.running:
                    self._pid += 1
                    self.starts.append(message)
                    self.running[message.container_id] = Started(
                        container_id=message.container_id, pid=self._pid, start_ticks=self._pid
                    )
                return [self.running[message.container_id]]
            case KillContainer():
                if message.container_id in self.running:
                    return [self.exit(message.container_id, 143, was_killed=True)]
            case Forget():
                assert message.container_id not in self.running, "forgotten while it runs"
                self.exits.pop(message.container_id, None)
            case ResizeContainer():
                self.limits[message.container_id] = message.limits
            case ListContainers():
                listing = Containers(running=tuple(self.running.values()), isolation="posix")
                return [listing, *self.exits.values()]
            case _:
                self.is_retired = True
        return []

    def exit(self, container_id: ContainerId, exit_status: int = 0, **more: int) -> Exited:
        del self.running[container_id]
        exited = Exited(
            container_id=container_id,
            exit_status=exit_status,
            was_killed=bool(more.pop("was_killed", False)),
            oom_kills=more.get("oom_kills", 0),
            mem_peak_bytes=more.get("mem_peak_bytes", 0),
            mem_limit_bytes=more.get("mem_limit_bytes", 0),
        )
        self.exits[container_id] = exited
        return exited


class World:
    """Runs a core; supervisors answer at once unless `is_slow`."""

    def __init__(self, *, boot_id: str = "boot-1") -> None:
        self.boot_id = boot_id
        self.now = 100.0
        self.slave_id: SlaveId | None = None
        self.records: list[CheckpointRecord] = []
        self.supervisors: dict[str, FakeSupervisor] = {}
        self.is_slow = False
        self.waiting: list[SlaveEvent] = []
        self.to_master: list[Message] = []
        self.to_executors: list[tuple[bytes, Message]] = []
        self.exits: list[Exit] = []
        self.logs: list[Log] = []
        self.resets = 0
        self._made = 0
        self._starts = 0
        self.core = self._core()

    def _core(self) -> SlaveCore:
        init = SlaveInit(
            config=config(self.boot_id),
            seed=self._starts,  # A seed that came twice would bring ids that came before.
            token_secret=b"secret",
            slave_id=self.slave_id,
            records=tuple(self.records),
            supervisors=tuple(self.supervisors),
            unix_offset_s=1e9,
        )
        return SlaveCore(init)

    def restart(self) -> None:
        """kill -9 of the daemon, and its next start."""
        self.waiting.clear()
        self.to_master.clear()
        self._starts += 1
        self.core = self._core()
        self.handle(Begin())

    def compact(self) -> None:
        self.records = self.core.snapshot()

    def handle(self, event: SlaveEvent) -> list[SlaveEffect]:
        effects = self.core.handle(event, self.now)
        for effect in effects:
            self.perform(effect)
        if not self.is_slow:
            self.settle()
        return effects

    def settle(self) -> None:
        while self.waiting:
            for effect in self.core.handle(self.waiting.pop(0), self.now):
                self.perform(effect)
        self.core.check()

    def advance(self, seconds: float) -> None:
        """Let time pass, with every deadline on its own moment."""
        until = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            for effect in self.core.tick(self.now):
                self.perform(effect)
            self.settle()
        self.now = until

    def perform(self, effect: SlaveEffect) -> None:
        match effect:
            case Persist():
                self.records.extend(effect.records)
            case PersistSlaveId():
                self.slave_id = effect.slave_id
            case RemoveCheckpoint():
                self.slave_id = None
                self.records.clear()
            case SendMaster():
                self.to_master.append(effect.message)
            case LaunchContainer():
                self._to_supervisor(effect.supervisor, effect.start)
            case SendSupervisor():
                self._to_supervisor(effect.supervisor, effect.message)
            case SendExecutor():
                self.to_executors.append((effect.session, effect.message))
            case StartSupervisor():
                self._made += 1
                name = f"sup-{self._made}"
                self.supervisors[name] = FakeSupervisor()
                self.waiting.append(SupervisorReady(supervisor=name))
            case KillOrphans():
                self.waiting.append(OrphansKilled(supervisor=effect.supervisor))
            case Exit():
                self.exits.append(effect)
            case Log():
                self.logs.append(effect)
            case _:
                self.resets += 1

    def _to_supervisor(self, name: str, message: ToSupervisor) -> None:
        supervisor = self.supervisors.get(name)
        if supervisor is not None:
            self.waiting += [SupervisorSaid(supervisor=name, report=report) for report in supervisor.handle(message)]

    # --- What tests say -------------------------------------------------------------------------

    @property
    def supervisor(self) -> FakeSupervisor:
        """The newest."""
        return self.supervisors[next(reversed(self.supervisors))]

    def master(self, message: Message, epoch: int | None = None) -> list[SlaveEffect]:
        return self.handle(MasterSaid(message=message, epoch=epoch))

    def register(self) -> None:
        """Connect, and be admitted as the master would."""
        self.handle(MasterConnected(epoch=1))
        asked = next(m for m in self.to_master if isinstance(m, RegisterSlave | ReregisterSlave))
        self.master(SlaveRegistered(slave_id=SLAVE, reregistered=isinstance(asked, ReregisterSlave)))

    def exit_task(self, exit_status: int = 0, **more: int) -> None:
        """End the container that was started first and runs still."""
        name, supervisor = next((n, s) for n, s in self.supervisors.items() if s.running)
        exited = supervisor.exit(next(iter(supervisor.running)), exit_status, **more)
        self.handle(SupervisorSaid(supervisor=name, report=exited))

    def take(self, kind: type[Message]) -> list[Message]:
        """Return what of this kind was sent to the master, and forget it."""
        taken = [m for m in self.to_master if isinstance(m, kind)]
        self.to_master = [m for m in self.to_master if not isinstance(m, kind)]
        return taken

    def statuses(self) -> list[TaskStatus]:
        """Return the statuses that were sent to the master, and forget them."""
        return [m.status for m in self.take(StatusUpdate) if isinstance(m, StatusUpdate)]

    def acknowledge(self, status: TaskStatus, framework_id: FrameworkId = FRAMEWORK) -> None:
        uuid = status.uuid
        assert uuid is not None
        self.master(AcknowledgeStatus(task_id=status.task_id, uuid=StatusUuid(uuid), framework_id=framework_id))

    def acknowledge_all(self) -> list[TaskState]:
        """Acknowledge until nothing is sent any more; return the states in order."""
        states = []
        while sent := self.statuses():
            for status in sent:
                states.append(status.state)
                if status.uuid is not None:
                    self.acknowledge(status)
        return states


def ready_world(*, boot_id: str = "boot-1") -> World:
    """A registered slave with one supervisor."""
    world = World(boot_id=boot_id)
    world.handle(Begin())
    world.register()
    world.to_master.clear()
    return world
