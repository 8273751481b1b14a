"""The master's core against plain models of slaves and frameworks, over random histories.

The models are simple and honest: a slave runs what it is told to and re-sends the oldest update that
is not acknowledged; a framework notes what it is told. Compared with them after every step: no
resource is held twice, no offer overlaps another, every task has at most one end; and once all is
quiet again, every task has one.
"""

from collections import deque

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meseta.ids import FrameworkId, OfferId, SessionId, SlaveId, StatusUuid, TaskId
from meseta.messages import (
    AcknowledgeStatus,
    DeclineOffers,
    Error,
    FrameworkError,
    FrameworkRegistered,
    KillTask,
    Message,
    Ping,
    Pong,
    ReconcileTasks,
    RegisterFramework,
    RegisterSlave,
    ReregisterSlave,
    RescindOffer,
    ResourceOffers,
    RunTask,
    ShutdownFramework,
    SlaveRegistered,
    StatusUpdate,
    TeardownFramework,
)
from meseta.model import (
    Capability,
    Filters,
    FrameworkInfo,
    Offer,
    Task,
    TaskQuery,
    TaskState,
    TaskStatus,
)
from meseta.resources import parse_resources, sum_resources
from tests.unit.master_builders import Harness, accept, framework_info, slave_info, task_info

TASK = parse_resources("cpus:1;mem:64MiB")
TOTAL = parse_resources("cpus:3;mem:1GiB;ports:[31000-31009]")
SLAVE_COUNT = 3
FRAMEWORK_COUNT = 2
PORTS = [parse_resources(f"cpus:1;mem:64MiB;ports:[{port}]") for port in (31000, 31001)]


class ModelSlave:
    """A slave daemon with its disk."""

    def __init__(self, machine: "MasterMachine", index: int) -> None:
        self.machine = machine
        self.hostname = f"host{index}"
        self.slave_id: SlaveId | None = None
        self.session: SessionId | None = None
        self.is_registered = False
        self.states: dict[tuple[FrameworkId, TaskId], RunTask] = {}
        self.updates: dict[tuple[FrameworkId, TaskId], deque[TaskStatus]] = {}
        self.now: dict[tuple[FrameworkId, TaskId], TaskState] = {}
        self.over: set[FrameworkId] = set()
        self.started: set[tuple[FrameworkId, TaskId]] = set()

    def connect(self) -> None:
        self.session = self.machine.harness.open("slave")
        self.is_registered = False
        self.register()

    def register(self) -> None:
        assert self.session is not None
        info = slave_info(TOTAL, self.hostname, self.slave_id)
        if self.slave_id is None:
            self.say(RegisterSlave(slave_info=info))
            return
        tasks = tuple(
            Task(
                task_id=key[1],
                framework_id=key[0],
                slave_id=self.slave_id,
                state=self.now[key],
                resources=run.task.resources,
                role=run.role,
                user="alice",
                status=self.updates[key][-1] if self.updates[key] else None,
            )
            for key, run in self.states.items()
        )
        infos = {run.framework_info.id: run.framework_info for run in self.states.values()}
        self.say(ReregisterSlave(slave_info=info, tasks=tasks, frameworks=tuple(infos.values())))

    def say(self, message: Message) -> None:
        assert self.session is not None
        self.machine.harness.say(self.session, message)

    def read(self) -> None:
        """Obey what the master sent."""
        if self.session is None:
            return
        if self.session in self.machine.harness.closed:
            self.session = None
            self.is_registered = False
            return
        for message in self.machine.harness.take_all(self.session):
            self._obey(message)

    def _obey(self, message: Message) -> None:
        match message:
            case SlaveRegistered():
                was_registered = self.is_registered
                self.slave_id = message.slave_id
                self.is_registered = True
                if not was_registered:
                    for key in list(self.updates):
                        self.send_head(key)
            case Ping():
                self.say(Pong())
            case RunTask():
                self._run(message)
            case KillTask():
                assert message.framework_id is not None
                self.kill((message.framework_id, message.task_id))
            case ShutdownFramework():
                self.over.add(message.framework_id)
                for key in [key for key in self.states if key[0] == message.framework_id]:
                    if self.now[key].is_terminal:
                        self._forget(key)
                    else:
                        self.end(key, TaskState.KILLED)
            case AcknowledgeStatus():
                assert message.framework_id is not None
                key = (message.framework_id, message.task_id)
                pending = self.updates.get(key)
                if pending and pending[0].uuid == message.uuid:
                    head = pending.popleft()
                    if head.state.is_terminal:
                        self._forget(key)
                    else:
                        self.send_head(key)
            case Error():
                raise AssertionError(f"a slave was refused: {message.message}")
            case _:
                raise AssertionError(f"a slave was sent {message}")

    def _run(self, message: RunTask) -> None:
        assert message.framework_info.id is not None
        key = (message.framework_info.id, message.task.task_id)
        assert key not in self.started, f"{key} was launched twice"
        if key[0] in self.over:
            state = TaskStatus(task_id=key[1], state=TaskState.LOST, slave_id=self.slave_id)
            self.say(StatusUpdate(status=state, framework_id=key[0]))
            return
        self.started.add(key)
        self.states[key] = message
        self.now[key] = TaskState.STAGING
        self.updates[key] = deque()

    def change(self, key: tuple[FrameworkId, TaskId], state: TaskState) -> None:
        """A task goes on."""
        self.now[key] = state
        one = TaskStatus(task_id=key[1], state=state, uuid=self.machine.uuid(), slave_id=self.slave_id)
        self.updates[key].append(one)
        if len(self.updates[key]) == 1:
            self.send_head(key)

    def end(self, key: tuple[FrameworkId, TaskId], state: TaskState) -> None:
        """A task ends; of a framework that is over the master is told once, without a uuid."""
        if key[0] not in self.over:
            self.change(key, state)
            return
        self.now[key] = state
        if self.is_registered:
            one = TaskStatus(task_id=key[1], state=state, slave_id=self.slave_id)
            self.say(StatusUpdate(status=one, framework_id=key[0]))
        self._forget(key)

    def kill(self, key: tuple[FrameworkId, TaskId]) -> None:
        if key not in self.states:
            one = TaskStatus(task_id=key[1], state=TaskState.LOST, slave_id=self.slave_id)
            self.say(StatusUpdate(status=one, framework_id=key[0]))
        elif not self.now[key].is_terminal:
            self.end(key, TaskState.KILLED)

    def send_head(self, key: tuple[FrameworkId, TaskId]) -> None:
        pending = self.updates[key]
        if pending and self.is_registered:
            latest = self.now[key] if self.now[key] is not pending[0].state else None
            self.say(StatusUpdate(status=pending[0], framework_id=key[0], latest_state=latest))

    def _forget(self, key: tuple[FrameworkId, TaskId]) -> None:
        del self.states[key], self.now[key], self.updates[key]


class ModelFramework:
    """A scheduler with its disk."""

    def __init__(self, machine: "MasterMachine", index: int, *, is_partition_aware: bool) -> None:
        self.machine = machine
        self.info: FrameworkInfo = framework_info(
            is_partition_aware=is_partition_aware, name=f"f{index}", failover_timeout_s=1e6
        )
        self.session: SessionId | None = None
        self.is_registered = False
        self.is_over = False
        self.offers: dict[OfferId, Offer] = {}
        self.tasks: dict[TaskId, SlaveId] = {}
        self.ends: dict[TaskId, TaskState] = {}
        self.last: dict[TaskId, TaskState] = {}

    def connect(self) -> None:
        self.session = self.machine.harness.open("framework", "alice")
        self.is_registered = False
        self.say(RegisterFramework(framework_info=self.info))

    def say(self, message: Message) -> None:
        assert self.session is not None
        self.machine.harness.say(self.session, message)

    def lost(self) -> None:
        self.session = None
        self.is_registered = False
        self.offers.clear()

    def read(self) -> None:
        if self.session is None:
            return
        session = self.session
        for message in self.machine.harness.take_all(session):
            self._read(message)
        if session in self.machine.harness.closed:
            self.lost()

    def _read(self, message: Message) -> None:
        match message:
            case FrameworkRegistered():
                assert self.info.id in (None, message.framework_id)
                self.info = framework_info(
                    message.framework_id,
                    is_partition_aware=Capability.PARTITION_AWARE in self.info.capabilities,
                    name=self.info.name,
                    failover_timeout_s=1e6,
                )
                self.is_registered = True
            case Ping():
                self.say(Pong())
            case ResourceOffers():
                self.offers |= {offer.offer_id: offer for offer in message.offers}
            case RescindOffer():
                self.offers.pop(message.offer_id, None)
            case StatusUpdate():
                self._note(message.status)
            case FrameworkError():
                assert self.is_over, message.message
            case Error():
                assert self.is_over, message.message

    def _note(self, status: TaskStatus) -> None:
        task_id = status.task_id
        assert task_id in self.tasks, f"an update for {task_id}, which was never launched"
        known = self.ends.get(task_id)
        self.last[task_id] = status.state
        if status.state.is_terminal:
            assert known in (None, status.state), f"{task_id} ended as {known} and as {status.state}: {status}"
            self.ends[task_id] = status.state
        elif status.uuid is None and status.state is not TaskState.UNKNOWN:
            assert known is None, f"{task_id} ended as {known} and is {status.state} again"
        if status.uuid is not None:
            self.say(AcknowledgeStatus(task_id=task_id, uuid=status.uuid, slave_id=status.slave_id))


class MasterMachine(RuleBasedStateMachine):
    """Random histories of a small cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness(slave_removal_interval_s=0.5, reregister_timeout_s=200.0)
        self.count = 0
        self.slaves = [ModelSlave(self, index) for index in range(SLAVE_COUNT)]
        self.frameworks = [
            ModelFramework(self, index, is_partition_aware=index == 0) for index in range(FRAMEWORK_COUNT)
        ]

    def uuid(self) -> StatusUuid:
        self.count += 1
        return StatusUuid(f"u{self.count}")

    @initialize()
    def begin(self) -> None:
        for slave in self.slaves:
            slave.connect()
        for framework in self.frameworks:
            framework.connect()
        self.settle()

    def settle(self) -> None:
        """Let all that was sent be read."""
        for _ in range(4):
            for slave in self.slaves:
                slave.read()
            for framework in self.frameworks:
                framework.read()

    @rule()
    def read_all(self) -> None:
        self.settle()

    @rule(seconds=st.sampled_from([0.01, 0.01, 1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.harness.advance(seconds)
        self.settle()

    @rule()
    def make_offers(self) -> None:
        self.harness.advance(0.01)
        for framework in self.frameworks:
            framework.read()

    @rule(framework=st.integers(0, FRAMEWORK_COUNT - 1), count=st.integers(0, 4), port=st.integers(0, 4))
    def accept(self, framework: int, count: int, port: int) -> None:
        one = self.frameworks[framework]
        if not one.is_registered or not one.offers:
            return
        offer_id, offer = next(iter(one.offers.items()))
        del one.offers[offer_id]
        tasks = []
        for number in range(count):
            self.count += 1
            task_id = f"t{self.count}"
            resources = PORTS[port] if number == 0 and port < len(PORTS) else TASK
            one.tasks[TaskId(task_id)] = offer.slave_id
            tasks.append(task_info(task_id, offer.slave_id, resources))
        one.say(accept(offer_id, *tasks, refuse_s=1.0))

    @rule(framework=st.integers(0, FRAMEWORK_COUNT - 1))
    def decline(self, framework: int) -> None:
        one = self.frameworks[framework]
        if one.is_registered and one.offers:
            one.say(DeclineOffers(offer_ids=tuple(one.offers), filters=Filters(refuse_s=1.0)))
            one.offers.clear()

    @rule(slave=st.integers(0, SLAVE_COUNT - 1), pick=st.integers(0, 9), step=st.integers(0, 2))
    def task_goes_on(self, slave: int, pick: int, step: int) -> None:
        one = self.slaves[slave]
        alive = [key for key, state in one.now.items() if not state.is_terminal]
        if alive:
            key = alive[pick % len(alive)]
            if step == 0 and one.now[key] is TaskState.STAGING and key[0] not in one.over:
                one.change(key, TaskState.RUNNING)
            else:
                one.end(key, TaskState.FINISHED if step else TaskState.FAILED)

    @rule(framework=st.integers(0, FRAMEWORK_COUNT - 1), pick=st.integers(0, 9))
    def kill(self, framework: int, pick: int) -> None:
        one = self.frameworks[framework]
        alive = [task_id for task_id in one.tasks if task_id not in one.ends]
        if one.is_registered and alive:
            task_id = alive[pick % len(alive)]
            one.say(KillTask(task_id=task_id, slave_id=one.tasks[task_id]))

    @rule(framework=st.integers(0, FRAMEWORK_COUNT - 1))
    def reconcile(self, framework: int) -> None:
        one = self.frameworks[framework]
        if one.is_registered:
            self.ask(one)

    def ask(self, one: ModelFramework) -> None:
        queries = tuple(
            TaskQuery(task_id=task_id, slave_id=slave_id)
            for task_id, slave_id in one.tasks.items()
            if task_id not in one.ends
        )
        if queries:
            one.say(ReconcileTasks(tasks=queries))
        one.say(ReconcileTasks())

    @rule(slave=st.integers(0, SLAVE_COUNT - 1), is_told=st.booleans())
    def slave_loses_session(self, slave: int, is_told: bool) -> None:
        one = self.slaves[slave]
        if one.session is not None:
            if is_told:
                self.harness.close(one.session)
            one.session = None
            one.is_registered = False

    @rule(slave=st.integers(0, SLAVE_COUNT - 1))
    def slave_comes_back(self, slave: int) -> None:
        one = self.slaves[slave]
        one.read()
        if one.session is None:
            one.connect()
        elif not one.is_registered:
            one.register()

    @rule(framework=st.integers(0, FRAMEWORK_COUNT - 1), is_told=st.booleans())
    def scheduler_loses_session(self, framework: int, is_told: bool) -> None:
        one = self.frameworks[framework]
        if one.session is not None and one.info.id is not None:
            if is_told:
                self.harness.close(one.session)
            one.lost()

    @rule(framework=st.integers(0, FRAMEWORK_COUNT - 1))
    def scheduler_comes_back(self, framework: int) -> None:
        one = self.frameworks[framework]
        if not one.is_over and one.session is None:
            one.connect()

    @rule()
    def partition(self) -> None:
        """Every slave that has no session by now is given up."""
        for _ in range(12):
            self.harness.advance(10.0)
            self.settle()

    @rule()
    def master_restarts(self) -> None:
        self.harness.is_disk_slow = False
        self.harness.start()
        for slave in self.slaves:
            slave.session, slave.is_registered = None, False
        for framework in self.frameworks:
            framework.lost()

    @rule()
    def disk_becomes_slow(self) -> None:
        self.harness.is_disk_slow = True

    @rule()
    def disk_catches_up(self) -> None:
        self.harness.is_disk_slow = False
        self.harness.write_all()

    @precondition(lambda self: self.count > 8 and not self.frameworks[1].is_over)
    @rule()
    def framework_is_torn_down(self) -> None:
        one = self.frameworks[1]
        one.read()
        if one.is_registered:
            one.is_over = True
            one.say(TeardownFramework())

    @invariant()
    def core_is_sound(self) -> None:
        self.harness.core.check()

    @invariant()
    def nothing_is_held_twice(self) -> None:
        for slave in self.slaves:
            running = [run.task.resources for key, run in slave.states.items() if not slave.now[key].is_terminal]
            assert sum_resources(running) <= TOTAL

    @rule()
    def heal(self) -> None:
        """Once all is well again, every task comes to its end, and its framework knows it."""
        self.disk_catches_up()
        for _ in range(3):
            self.settle()
            for slave in self.slaves:
                if slave.session is None:
                    slave.connect()
                elif not slave.is_registered:
                    slave.register()
            for framework in self.frameworks:
                if framework.session is None and not framework.is_over:
                    framework.connect()
            self.settle()
        for slave in self.slaves:
            assert slave.is_registered
            for key in [key for key, state in slave.now.items() if not state.is_terminal]:
                slave.end(key, TaskState.FINISHED)
        for _ in range(6):
            self.harness.advance(50.0)  # Long enough for slaves that nobody knows any more to be given up.
            self.settle()
            for framework in self.frameworks:
                if framework.is_registered:
                    self.ask(framework)
            self.settle()
        for framework in self.frameworks:
            for task_id in framework.tasks:
                is_known = task_id in framework.ends or framework.last.get(task_id) is TaskState.UNREACHABLE
                assert framework.is_over or is_known, f"{task_id} has no end, but {framework.last.get(task_id)}"


MasterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMaster = MasterMachine.TestCase
