"""All that the master's parts share: the indexes, the allocator, the timers, and what is to be done.

Whatever enters or leaves an index does so in a method of this module, which changes all of them.
"""

import random
from collections.abc import Callable
from typing import Literal

from master.allocator import Allocator, AllocatorConfig
from master.authorizer import Authorizer
from master.events import CloseSession, MasterEffect, MasterInit, PersistRecords, Send, StoredRecord
from master.registry import AdmittedSlave, KnownFramework, RemovedFramework, slave_record
from master.state import (
    ExecutorEntry,
    FrameworkEntry,
    FrameworkState,
    OfferEntry,
    Session,
    SlaveEntry,
    SlaveState,
    TaskEntry,
    TaskKey,
)
from master.touched import Touched
from meseta.acls import Acls, Action, parse_acls
from meseta.errors import InvariantError
from meseta.ids import FrameworkId, IdSource, OfferId, Principal, SessionId, SlaveId, TaskId
from meseta.log import Log, LogValue
from meseta.messages import AcknowledgeStatus, Error, KillTask, Message, StatusUpdate
from meseta.model import Reason, Source, Task, TaskInfo, TaskState, TaskStatus
from meseta.resources import Resources, sum_resources
from meseta.timers import Timers

COMPLETED_TASKS_LIMIT = 1000  # For each framework, in memory only, as in Mesos.
COMPLETED_FRAMEWORKS_LIMIT = 50
UNREACHABLE_TASKS_LIMIT = 1000
REAP_INTERVAL_S = 10.0  # How often what is left of a removed framework is killed again.
GONE_OFFERS_LIMIT = 1000  # Offers that ended by themselves, so that a late accept is told why.

TimerKey = tuple[
    Literal[
        "begin", "slave", "framework", "failover", "reregister", "forget", "removals", "reap", "summary", "position"
    ],
    str,
]


class Cluster:
    """The state that all parts of the core work on."""

    def __init__(self, init: MasterInit) -> None:
        config = init.config
        rng = random.Random(init.seed)
        self.init = init
        self.config = config
        self.epoch = init.epoch
        self.ids = IdSource(rng)
        self.unix_offset_s = init.unix_offset_s
        self.allocator = Allocator(AllocatorConfig(min_refuse_s=config.min_refuse_s), rng)
        acls: Acls | None = parse_acls(config.acls) if config.acls else None
        self.authorizer = Authorizer(acls, is_insecure=config.is_insecure)
        self.sessions: dict[SessionId, Session] = {}
        self.slaves: dict[SlaveId, SlaveEntry] = {}
        self.frameworks: dict[FrameworkId, FrameworkEntry] = {}
        self.removed_frameworks: dict[FrameworkId, RemovedFramework] = {}
        self.offers: dict[OfferId, OfferEntry] = {}
        self.gone_offers: dict[OfferId, tuple[Reason, str]] = {}
        self.over: dict[FrameworkId, None] = {}  # REMOVED ones of which nothing is left, oldest first.
        self.kills: dict[TaskKey, KillTask] = {}  # Of tasks that a slave may yet come back with.
        self.now = init.started_s
        self.timers: Timers[TimerKey] = Timers()
        self.allocate_at: float | None = None
        self.effects: list[MasterEffect] = []
        self.touched: Touched | None = None  # None: nobody follows the event stream.
        self.sequence = 0  # Of the last event that was published.
        self._pending: dict[int, Callable[[], None]] = {}
        self._token = 0

    # --- What is to be done -----------------------------------------------------------------------

    def take_effects(self) -> list[MasterEffect]:
        """Return what is to be done and start over."""
        effects = self.effects
        self.effects = []
        return effects

    def send(self, session: Session, message: Message) -> None:
        """Send to a session."""
        self.effects.append(Send(session=session.session_id, message=message))

    def refuse(self, session: Session, code: str, text: str, request_id: int | None = None) -> None:
        """Answer `Error`."""
        self.send(session, Error(code=code, message=text, request_id=request_id))

    def close(self, session: Session, reason: str) -> None:
        """Forget a session, whose slave or framework is told apart."""
        if self.sessions.pop(session.session_id, None) is not None:
            self.effects.append(CloseSession(session=session.session_id, reason=reason))

    def log(self, level: int, phrase: str, **values: LogValue) -> None:
        """Have a line logged."""
        self.effects.append(Log(level=level, phrase=phrase, values=values))

    def persist(self, *records: StoredRecord, then: Callable[[], None] | None = None) -> None:
        """Have records written, and `then` called with the time when they are safe."""
        self._token += 1
        if then is not None:
            self._pending[self._token] = then
        self.effects.append(PersistRecords(token=self._token, records=records))

    def persisted(self, token: int) -> None:
        """Go on with what waited for these records."""
        then = self._pending.pop(token, None)
        if then is not None:
            then()

    def unix_s(self) -> float:
        """Return wall-clock time in whole milliseconds."""
        return round(max(0.0, self.now + self.unix_offset_s), 3)

    def authorize(self, principal: Principal, action: Action, subject: str) -> str | None:
        """Return why not, None: allowed."""
        return self.authorizer.authorize(principal, action, subject)

    def request_allocation(self) -> None:
        """See soon what can be offered."""
        if self.allocate_at is None:
            self.allocate_at = self.now + self.config.allocation_delay_s

    # --- For the event stream ---------------------------------------------------------------------

    # Called wherever a view of the object changes; `tests/property/test_event_stream.py` finds a place that forgets.

    def touch_task(self, task: TaskEntry) -> None:
        """Note that a task changed, if anybody wants to know."""
        if self.touched is not None:
            self.touched.task(task)

    def touch_slave(self, slave: SlaveEntry) -> None:
        """Note that a slave changed."""
        if self.touched is not None:
            self.touched.slaves[slave.slave_id] = None

    def touch_framework(self, framework: FrameworkEntry) -> None:
        """Note that a framework changed."""
        if self.touched is not None:
            self.touched.frameworks[framework.framework_id] = None

    # --- Tasks ------------------------------------------------------------------------------------

    def add_task(self, task: TaskEntry) -> None:
        """Take a task into all indexes."""
        if self.touched is not None:
            self.touched.task(task)
        framework, slave = task.framework, task.slave
        if task.is_disowned:
            framework.disowned[(slave.slave_id, task.task_id)] = task
            self._reap(framework)
        else:
            framework.tasks[task.task_id] = task
        slave.tasks[(framework.framework_id, task.task_id)] = task

    def forget_task(self, task: TaskEntry) -> None:
        """Take a task out of all indexes; its resources must be free."""
        assert not task.is_charged, f"task {task.task_id} still holds its resources"
        if self.touched is not None:
            self.touched.task(task)
        framework, slave = task.framework, task.slave
        if task.is_disowned:
            del framework.disowned[(slave.slave_id, task.task_id)]
        else:
            del framework.tasks[task.task_id]
            framework.unreachable.pop(task.task_id, None)
        del slave.tasks[(framework.framework_id, task.task_id)]
        if framework.is_over:
            self.release_if_over(framework)

    def disown(self, task: TaskEntry) -> None:
        """Take a task from its framework, which was told of its end; its slave has it until it is dead."""
        self.touch_task(task)
        framework = task.framework
        del framework.tasks[task.task_id]
        framework.unreachable.pop(task.task_id, None)
        task.is_disowned = True
        framework.disowned[(task.slave.slave_id, task.task_id)] = task
        self.remember_end(task)
        self._reap(framework)

    def _reap(self, framework: FrameworkEntry) -> None:
        """See to it that what is left of a framework that is over gets killed, also if an order is lost."""
        if framework.is_over:
            self.over.pop(framework.framework_id, None)
            if ("reap", framework.framework_id) not in self.timers:
                self.timers.set(("reap", framework.framework_id), self.now + REAP_INTERVAL_S)

    def release_if_over(self, framework: FrameworkEntry) -> None:
        """Let go of a framework that is over once nothing of it is left; keep only some of those."""
        if framework.state is not FrameworkState.REMOVED or framework.has_open_ends:
            return
        framework_id = framework.framework_id
        self.allocator.remove_framework(framework_id, self.now)
        self.timers.cancel(("reap", framework_id))
        self.over.pop(framework_id, None)
        self.over[framework_id] = None
        if len(self.over) > COMPLETED_FRAMEWORKS_LIMIT:
            oldest = next(iter(self.over))
            del self.over[oldest]
            forgotten = self.frameworks.pop(oldest)
            if self.touched is not None:
                self.touched.frameworks[oldest] = None
                self.touched.tasks |= {(oldest, task_id): None for task_id in forgotten.completed}

    def complete_task(self, task: TaskEntry) -> None:
        """Take a task that is over out of the indexes, and remember how it ended."""
        self.forget_task(task)
        self.remember_end(task)

    def remember_end(self, task: TaskEntry) -> None:
        """Note how a task ended, for operators and for frameworks that ask."""
        task.framework.tasks_completed += 1
        self._remember(task.framework, task.view())

    def end_unlaunched(
        self, framework: FrameworkEntry, info: TaskInfo, state: TaskState, *, reason: Reason, message: str
    ) -> None:
        """Tell a framework that a task ended before it began; its id must be no other task's."""
        status = self.tell(framework, info.task_id, state, reason=reason, message=message, slave_id=info.slave_id)
        ended = Task(
            task_id=info.task_id,
            framework_id=framework.framework_id,
            slave_id=info.slave_id,
            state=state,
            resources=info.resources,
            name=info.name,
            status=status,
        )
        self._remember(framework, ended)

    def _remember(self, framework: FrameworkEntry, ended: Task) -> None:
        framework.completed.pop(ended.task_id, None)
        framework.completed[ended.task_id] = ended
        oldest = next(iter(framework.completed)) if len(framework.completed) > COMPLETED_TASKS_LIMIT else None
        if oldest is not None:
            del framework.completed[oldest]
        if self.touched is not None:
            framework_id = framework.framework_id
            self.touched.frameworks[framework_id] = None
            for task_id in (ended.task_id, oldest):
                if task_id is not None:
                    self.touched.tasks[(framework_id, task_id)] = None

    def free_task(self, task: TaskEntry) -> None:
        """Count a task's resources as free."""
        if task.is_charged:
            self.touch_task(task)
            task.is_charged = False
            self.allocator.recover(
                task.framework.framework_id, task.role, task.slave.slave_id, task.resources, self.now
            )
            self.request_allocation()

    def charge_task(self, task: TaskEntry) -> None:
        """Count the resources of a task that its slave reports as used."""
        self.touch_task(task)
        task.is_charged = True
        self.allocator.charge(task.framework.framework_id, task.role, task.slave.slave_id, task.resources, self.now)

    def change_task(self, task: TaskEntry, state: TaskState) -> None:
        """Change a task's state, and what follows for its resources."""
        task.change(state)
        self.touch_task(task)
        if state is TaskState.RUNNING and not task.started_unix_s:
            task.started_unix_s = self.unix_s()
        elif state.is_terminal:
            self.free_task(task)

    def mark_unreachable(self, task: TaskEntry) -> None:
        """Note that a task's slave is given up."""
        framework = task.framework
        task.change(TaskState.UNREACHABLE)
        self.touch_task(task)
        framework.unreachable[task.task_id] = None
        if len(framework.unreachable) > UNREACHABLE_TASKS_LIMIT:
            oldest = framework.tasks[next(iter(framework.unreachable))]
            self.forget_task(oldest)

    def add_executor(self, executor: ExecutorEntry) -> None:
        """Take an executor into all indexes; the allocator counts its resources already."""
        if self.touched is not None:
            self.touched.executor(executor)
        slave, framework, executor_id = executor.slave, executor.framework, executor.info.executor_id
        slave.executors[(framework.framework_id, executor_id)] = executor
        framework.executors[(slave.slave_id, executor_id)] = executor
        self._reap(framework)

    def remove_executor(self, executor: ExecutorEntry) -> None:
        """Take an executor out of all indexes; its resources are free."""
        if self.touched is not None:
            self.touched.executor(executor)
        slave, framework, executor_id = executor.slave, executor.framework, executor.info.executor_id
        del slave.executors[(framework.framework_id, executor_id)]
        del framework.executors[(slave.slave_id, executor_id)]
        self.allocator.recover(framework.framework_id, executor.role, slave.slave_id, executor.info.resources, self.now)
        self.request_allocation()
        if framework.is_over:
            self.release_if_over(framework)

    # --- What frameworks and slaves are told -------------------------------------------------------

    def tell(
        self,
        framework: FrameworkEntry,
        task_id: TaskId,
        state: TaskState,
        *,
        reason: Reason,
        message: str,
        slave_id: SlaveId | None = None,
    ) -> TaskStatus:
        """Make a status update of the master's and send it if there is a scheduler. Never sent again."""
        status = TaskStatus(
            task_id=task_id,
            state=state,
            slave_id=slave_id,
            source=Source.MASTER,
            reason=reason,
            message=message,
            timestamp_unix_s=self.unix_s(),
        )
        if framework.session is not None:
            self.send(framework.session, StatusUpdate(status=status, framework_id=framework.framework_id))
        return status

    def acknowledge(self, slave: SlaveEntry, framework_id: FrameworkId, status: TaskStatus) -> None:
        """Tell a slave that it need not send an update again."""
        if slave.session is not None and status.uuid is not None:
            answer = AcknowledgeStatus(
                task_id=status.task_id, uuid=status.uuid, slave_id=slave.slave_id, framework_id=framework_id
            )
            self.send(slave.session, answer)

    def kill(self, task: TaskEntry, grace_period_s: float | None = None) -> None:
        """Have a task killed, also after its slave has been away."""
        task.kill = KillTask(
            task_id=task.task_id,
            framework_id=task.framework.framework_id,
            slave_id=task.slave.slave_id,
            grace_period_s=grace_period_s,
        )
        if task.slave.session is not None and not task.state.is_terminal:
            self.send(task.slave.session, task.kill)

    # --- Offers -----------------------------------------------------------------------------------

    def add_offer(self, entry: OfferEntry) -> None:
        """Take an offer into all indexes."""
        offer_id = entry.offer.offer_id
        self.offers[offer_id] = entry
        if self.touched is not None:
            self.touched.holder(entry.slave, entry.framework)
        entry.framework.offers[offer_id] = entry
        entry.slave.offers[offer_id] = entry

    def remove_offer(self, entry: OfferEntry) -> None:
        """Take an offer out of all indexes; its resources stay charged."""
        offer_id = entry.offer.offer_id
        del self.offers[offer_id]
        if self.touched is not None:
            self.touched.holder(entry.slave, entry.framework)
        del entry.framework.offers[offer_id]
        del entry.slave.offers[offer_id]

    def note_gone_offer(self, offer_id: OfferId, reason: Reason, text: str) -> None:
        """Remember why an offer is void."""
        self.gone_offers[offer_id] = (reason, text)
        if len(self.gone_offers) > GONE_OFFERS_LIMIT:
            del self.gone_offers[next(iter(self.gone_offers))]

    # --- Records ----------------------------------------------------------------------------------

    def slave_record(self, slave: SlaveEntry, record: AdmittedSlave) -> StoredRecord:
        """Keep what is about to be written of a slave."""
        self.touch_slave(slave)
        slave.record = record
        return slave_record(slave.slave_id, record)

    def known_framework(self, framework: FrameworkEntry) -> KnownFramework:
        """Return what the registry holds of a framework."""
        return KnownFramework(
            framework_info=framework.info,
            principal=framework.principal,
            registered_unix_s=framework.registered_unix_s,
            disconnected_unix_s=framework.disconnected_unix_s,
        )

    # --- Sums and checks --------------------------------------------------------------------------

    def used(self, slave: SlaveEntry) -> Resources:
        """Return what tasks and executors hold on a slave."""
        pieces = [task.resources for task in slave.tasks.values() if task.is_charged]
        return sum_resources(pieces + [executor.info.resources for executor in slave.executors.values()])

    def offered(self, slave: SlaveEntry) -> Resources:
        """Return what is offered of a slave."""
        return sum_resources([entry.offer.resources for entry in slave.offers.values()])

    def check(self) -> None:
        """Raise InvariantError if what is kept in two places differs, or resources do not add up."""
        self.allocator.check()
        for slave in self.slaves.values():
            self._check_slave(slave)
        for framework in self.frameworks.values():
            self._check_framework(framework)
        for offer_id, entry in self.offers.items():
            if entry.framework.offers.get(offer_id) is not entry or entry.slave.offers.get(offer_id) is not entry:
                raise InvariantError(f"offer {offer_id} is not listed by its framework and slave")
        for name, count in (
            ("slaves", sum(len(slave.offers) for slave in self.slaves.values())),
            ("frameworks", sum(len(framework.offers) for framework in self.frameworks.values())),
        ):
            if count != len(self.offers):
                raise InvariantError(f"{name} list {count} offers, there are {len(self.offers)}")
        for session in self.sessions.values():
            self._check_session(session)

    def _check_slave(self, slave: SlaveEntry) -> None:
        if (slave.session is not None) != (slave.state is SlaveState.ACTIVE):
            raise InvariantError(f"slave {slave.slave_id} is {slave.state.value}, its session is {slave.session}")
        for key, task in slave.tasks.items():
            framework = task.framework
            listed = (
                framework.disowned.get((slave.slave_id, key[1])) if task.is_disowned else framework.tasks.get(key[1])
            )
            if key != (framework.framework_id, task.task_id) or listed is not task:
                raise InvariantError(f"task {key[1]} is on slave {slave.slave_id}, but not its framework's")
            if task.slave is not slave or (task.is_charged and not slave.is_counted):
                raise InvariantError(f"task {key[1]} is charged to slave {slave.slave_id} by mistake")
        if not slave.is_counted:
            if slave.offers or slave.executors:
                raise InvariantError(f"slave {slave.slave_id} is {slave.state.value} and has offers or executors")
            return
        held = sum_resources([self.used(slave), self.offered(slave)])
        if held != self.allocator.allocated(slave.slave_id):
            allocated = self.allocator.allocated(slave.slave_id)
            raise InvariantError(f"slave {slave.slave_id}: {held} are used or offered, {allocated} are allocated")
        if slave.state is not SlaveState.ACTIVE and slave.offers:
            raise InvariantError(f"slave {slave.slave_id} is {slave.state.value} and offered")

    def _check_framework(self, framework: FrameworkEntry) -> None:
        is_active = framework.state is FrameworkState.ACTIVE
        if (framework.session is not None) != is_active:
            raise InvariantError(f"framework {framework.framework_id} is {framework.state.value} and its session not")
        if framework.offers and not is_active:
            raise InvariantError(f"framework {framework.framework_id} is {framework.state.value} and has offers")
        for (slave_id, executor_id), executor in framework.executors.items():
            if (
                executor.slave.slave_id != slave_id
                or executor.slave.executors.get((framework.framework_id, executor_id)) is not executor
            ):
                raise InvariantError(f"executor {executor_id} is in framework {framework.framework_id} only")
        for (slave_id, task_id), task in framework.disowned.items():
            if task.slave.tasks.get((framework.framework_id, task_id)) is not task or task.slave.slave_id != slave_id:
                raise InvariantError(f"disowned task {task_id} is in framework {framework.framework_id} only")
        unreachable = []
        for task_id, task in framework.tasks.items():
            key: TaskKey = (framework.framework_id, task_id)
            if task.slave.tasks.get(key) is not task or self.slaves.get(task.slave.slave_id) is not task.slave:
                raise InvariantError(f"task {task_id} is in framework {framework.framework_id} only")
            if task.is_charged and task.state.is_terminal:
                raise InvariantError(f"task {task_id} is {task.state} and holds its resources")
            if task.state is TaskState.UNREACHABLE:
                unreachable.append(task_id)
        if sorted(unreachable) != sorted(framework.unreachable):
            raise InvariantError(f"unreachable tasks of {framework.framework_id} differ from their list")

    def _check_session(self, session: Session) -> None:
        slave, framework = session.slave, session.framework
        if slave is not None and slave.session is not session:
            raise InvariantError(f"slave {slave.slave_id} has another session")
        if framework is not None and framework.session is not session:
            raise InvariantError(f"framework {framework.framework_id} has another session")
