"""A master's core with scripted peers: fills in the dull fields, keeps what each peer was sent."""

from typing import TypeVar

from master.core import MasterCore
from master.events import (
    CloseSession,
    MasterConfig,
    MasterEffect,
    MasterEvent,
    MasterInit,
    Persisted,
    PersistRecords,
    Publish,
    Received,
    Send,
    SessionClosed,
    SessionOpened,
    StoredRecord,
    StreamEvent,
)
from meseta.ids import ExecutorId, FrameworkId, OfferId, Principal, SessionId, SlaveId, StatusUuid, TaskId
from meseta.log import Log
from meseta.messages import (
    AcceptOffers,
    FrameworkRegistered,
    Hello,
    Message,
    Ping,
    Pong,
    RegisterFramework,
    RegisterSlave,
    ReregisterSlave,
    ResourceOffers,
    SlaveRegistered,
    StatusUpdate,
)
from meseta.model import (
    Address,
    Capability,
    CommandInfo,
    ExecutorInfo,
    Filters,
    FrameworkInfo,
    Launch,
    Offer,
    RunningExecutor,
    SlaveInfo,
    Source,
    Task,
    TaskInfo,
    TaskState,
    TaskStatus,
)
from meseta.resources import Resources, parse_resources

M = TypeVar("M", bound=Message)

ADDRESS = Address(endpoint="tcp://10.0.0.1:5051")
SMALL = parse_resources("cpus:1;mem:512MiB")
LARGE = parse_resources("cpus:4;mem:4GiB;ports:[31000-31099]")
STEP_LIMIT = 10_000  # Timers handled in one `advance`: more is a core that spins.


class Harness:
    """One master after another on the same store. Records are safe at once unless `is_disk_slow`."""

    def __init__(self, **config: object) -> None:
        self.config = MasterConfig(**config)  # type: ignore[arg-type]
        self.now = 100.0
        self.unix_offset_s = 1_700_000_000.0
        self.epoch = 0
        self.records: dict[tuple[str, str], bytes] = {}
        self.is_disk_slow = False
        self._session_count = 0
        self.start()

    def start(self) -> None:
        """Start a master on what the store holds; all sessions are gone."""
        self.epoch += 1
        self.init = MasterInit(
            config=self.config,
            seed=self.epoch,
            epoch=self.epoch,
            records=tuple(
                StoredRecord(table=table, key=key, value=value) for (table, key), value in self.records.items()
            ),
            started_s=self.now,
            unix_offset_s=self.unix_offset_s,
        )
        self.core = MasterCore(self.init)
        self.inboxes: dict[SessionId, list[Message]] = {}
        self.alive: set[SessionId] = set()  # These answer pings by themselves.
        self.closed: dict[SessionId, str] = {}
        self.unsafe: list[PersistRecords] = []
        self.logs: list[Log] = []
        self.published: list[StreamEvent] = []

    # --- Inputs -----------------------------------------------------------------------------------

    def feed(self, event: MasterEvent) -> list[MasterEffect]:
        """Give the core an event; return all effects, also those that followed writes."""
        effects = self._perform(self.core.handle(event, self.now))
        self.core.check()
        return effects

    def advance(self, seconds: float) -> list[MasterEffect]:
        """Let time pass, with all that falls due on the way."""
        end = self.now + seconds
        effects: list[MasterEffect] = []
        for _ in range(STEP_LIMIT):
            due = self.core.next_deadline()
            if due is None or due > end:
                self.now = end
                return effects
            self.now = max(self.now, due)
            effects += self._perform(self.core.tick(self.now))
            self.core.check()
        raise AssertionError(f"the core spins at {self.now}")

    def write_all(self) -> list[MasterEffect]:
        """Let a slow disk finish what waits for it."""
        effects: list[MasterEffect] = []
        while self.unsafe:
            effects += self._write(self.unsafe.pop(0))
        self.core.check()
        return effects

    def open(self, kind: str, principal: str = "") -> SessionId:
        """Open a session."""
        self._session_count += 1
        session = SessionId(b"%d" % self._session_count)
        self.inboxes[session] = []
        principal = principal or kind
        hello = Hello(kind=kind)
        assert self.core.refusal(Principal(principal), hello) is None
        self.feed(SessionOpened(session=session, principal=Principal(principal), hello=hello))
        return session

    def close(self, session: SessionId, reason: str = "gone") -> list[MasterEffect]:
        """Lose a session."""
        return self.feed(SessionClosed(session=session, reason=reason))

    def say(self, session: SessionId, message: Message) -> list[MasterEffect]:
        """Let a peer send."""
        return self.feed(Received(session=session, message=message))

    # --- What peers got ---------------------------------------------------------------------------

    def take(self, session: SessionId, kind: type[M]) -> list[M]:
        """Return what a peer was sent of one kind, and forget all that it was sent."""
        inbox, self.inboxes[session] = self.inboxes[session], []
        return [message for message in inbox if isinstance(message, kind)]

    def take_all(self, session: SessionId) -> list[Message]:
        """Return all that a peer was sent, and forget it."""
        inbox, self.inboxes[session] = self.inboxes[session], []
        return inbox

    # --- Whole flows ------------------------------------------------------------------------------

    def slave(self, resources: Resources = LARGE, hostname: str = "host") -> tuple[SessionId, SlaveId]:
        """Register a slave."""
        session = self.open("slave")
        self.say(session, RegisterSlave(slave_info=slave_info(resources, hostname)))
        (answer,) = self.take(session, SlaveRegistered)
        # It knows its id. Not by a Pong, from which on its silence would be counted.
        self.say(session, ReregisterSlave(slave_info=slave_info(resources, hostname, answer.slave_id)))
        self.take(session, SlaveRegistered)
        return session, answer.slave_id

    def back(
        self,
        slave_id: SlaveId,
        *,
        resources: Resources = LARGE,
        tasks: tuple[Task, ...] = (),
        executors: tuple[RunningExecutor, ...] = (),
        frameworks: tuple[FrameworkInfo, ...] = (),
    ) -> SessionId:
        """Let a slave register again in a new session."""
        session = self.open("slave")
        info = slave_info(resources, "host", slave_id)
        message = ReregisterSlave(slave_info=info, tasks=tasks, executors=executors, frameworks=frameworks)
        self.say(session, message)
        return session

    def framework(
        self,
        *,
        framework_id: FrameworkId | None = None,
        is_partition_aware: bool = True,
        principal: str = "alice",
        **fields: object,
    ) -> tuple[SessionId, FrameworkId]:
        """Register a framework."""
        session = self.open("framework", principal)
        info = framework_info(framework_id, is_partition_aware=is_partition_aware, **fields)
        self.say(session, RegisterFramework(framework_info=info))
        (answer,) = self.take(session, FrameworkRegistered)
        self.alive.add(session)
        return session, answer.framework_id

    def offers(self, session: SessionId) -> list[Offer]:
        """Let the next round be made; return what the framework is offered."""
        self.advance(self.config.allocation_delay_s + 0.001)
        return [offer for message in self.take(session, ResourceOffers) for offer in message.offers]

    def launch(self, session: SessionId, offer: Offer, *tasks: TaskInfo, refuse_s: float = 5.0) -> list[MasterEffect]:
        """Accept an offer with tasks."""
        return self.say(session, accept(offer.offer_id, *tasks, refuse_s=refuse_s))

    def updates(self, session: SessionId) -> list[tuple[str, TaskState, str | None]]:
        """Return the updates that a framework was sent: task, state, reason."""
        return [
            (update.status.task_id, update.status.state, update.status.reason)
            for update in self.take(session, StatusUpdate)
        ]

    # --- Private ----------------------------------------------------------------------------------

    def _perform(self, effects: list[MasterEffect]) -> list[MasterEffect]:
        done: list[MasterEffect] = []
        for effect in effects:
            done.append(effect)
            match effect:
                case Send():
                    if effect.session in self.inboxes and effect.session not in self.closed:
                        self.inboxes[effect.session].append(effect.message)
                case CloseSession():
                    self.closed[effect.session] = effect.reason
                case Log():
                    self.logs.append(effect)
                case Publish():
                    self.published += effect.events
                case PersistRecords():
                    if self.is_disk_slow:
                        self.unsafe.append(effect)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Ping) and effect.session in self.alive:
                done += self._perform(self.core.handle(Received(session=effect.session, message=Pong()), self.now))
            if isinstance(effect, PersistRecords) and not self.is_disk_slow:
                done += self._write(effect)
        return done

    def _write(self, effect: PersistRecords) -> list[MasterEffect]:
        for record in effect.records:
            if record.value is None:
                self.records.pop((record.table, record.key), None)
            else:
                self.records[(record.table, record.key)] = record.value
        return self._perform(self.core.handle(Persisted(token=effect.token), self.now))


def slave_info(resources: Resources = LARGE, hostname: str = "host", slave_id: SlaveId | None = None) -> SlaveInfo:
    """Return a slave's description."""
    return SlaveInfo(hostname=hostname, resources=resources, address=ADDRESS, id=slave_id)


def framework_info(
    framework_id: FrameworkId | None = None, *, is_partition_aware: bool = True, **fields: object
) -> FrameworkInfo:
    """Return a framework's description."""
    values: dict[str, object] = {
        "name": "test",
        "user": "alice",
        "capabilities": (Capability.PARTITION_AWARE,) if is_partition_aware else (),
        **fields,
    }
    return FrameworkInfo(id=framework_id, **values)  # type: ignore[arg-type]


def task_info(task_id: str, slave_id: SlaveId, resources: Resources = SMALL, **fields: object) -> TaskInfo:
    """Return a command task."""
    values: dict[str, object] = {"command": CommandInfo(value="true"), **fields}
    return TaskInfo(task_id=TaskId(task_id), slave_id=slave_id, resources=resources, **values)  # type: ignore[arg-type]


def executor_info(executor_id: str = "e", resources: Resources = SMALL) -> ExecutorInfo:
    """Return an executor."""
    return ExecutorInfo(executor_id=ExecutorId(executor_id), command=CommandInfo(value="run"), resources=resources)


def accept(offer_id: OfferId, *tasks: TaskInfo, refuse_s: float = 5.0) -> AcceptOffers:
    """Return a call that launches `tasks`."""
    return AcceptOffers(
        offer_ids=(offer_id,), operations=(Launch(task_infos=tasks),), filters=Filters(refuse_s=refuse_s)
    )


def status(task_id: str, state: TaskState, uuid: str | None = None, slave_id: SlaveId | None = None) -> TaskStatus:
    """Return an update of a slave."""
    return TaskStatus(
        task_id=TaskId(task_id),
        state=state,
        uuid=None if uuid is None else StatusUuid(uuid),
        source=Source.SLAVE,
        slave_id=slave_id,
    )


def update(framework_id: FrameworkId, one: TaskStatus, latest_state: TaskState | None = None) -> StatusUpdate:
    """Return an update on its way."""
    return StatusUpdate(status=one, framework_id=framework_id, latest_state=latest_state)


def slave_task(
    task_id: str,
    framework_id: FrameworkId,
    slave_id: SlaveId,
    state: TaskState,
    *,
    last: TaskStatus | None = None,
    resources: Resources = SMALL,
) -> Task:
    """Return a task as its slave reports it."""
    return Task(
        task_id=TaskId(task_id),
        framework_id=framework_id,
        slave_id=slave_id,
        state=state,
        resources=resources,
        status=last,
        user="alice",
    )
