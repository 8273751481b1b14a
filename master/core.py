"""The master's state machine: sessions and their messages become effects. No I/O.

This module only sends each input to its part: slaves, frameworks, offers, tasks, operators.
"""

from collections.abc import Callable
from typing import Any

from master.authorizer import TASK_KEY_PREFIX
from master.cluster import Cluster
from master.events import (
    FollowersChanged,
    MasterEffect,
    MasterEvent,
    MasterInit,
    Persisted,
    Received,
    SessionClosed,
    SessionOpened,
)
from master.frameworks import Frameworks
from master.offers import Offers
from master.operators import Operators
from master.reconciliation import Reconciliation
from master.registry import read_registry
from master.slaves import Slaves
from master.state import Session
from master.stream import Stream
from master.tasks import Tasks
from meseta.acls import Action
from meseta.ids import FrameworkId, Principal, SessionId, SlaveId
from meseta.log import DEBUG, INFO, WARNING
from meseta.messages import (
    AcceptOffers,
    AcknowledgeStatus,
    DeclineOffers,
    Error,
    ExecutorLost,
    ExecutorToFramework,
    FrameworkToExecutor,
    GetFrameworks,
    GetMaster,
    GetNodes,
    GetTasks,
    Hello,
    KillTask,
    OperatorKillTask,
    Pong,
    ReconcileTasks,
    RegisterFramework,
    RegisterSlave,
    ReregisterSlave,
    ReviveOffers,
    ShutdownExecutor,
    StatusUpdate,
    SuppressOffers,
    TeardownFramework,
)

# What one kind of session may send. Before it has registered, a peer may only register.
Handler = Callable[[Session, Any], None]  # Each handler takes the one message type that it stands for.

KINDS = ("slave", "framework", "operator")


class MasterCore:
    """Use it through `handle`, `tick` and `next_deadline`."""

    def __init__(self, init: MasterInit) -> None:
        cluster = self._cluster = Cluster(init)
        self._offers = Offers(cluster)
        self._frameworks = Frameworks(cluster, self._offers)
        reconciliation = Reconciliation(cluster)
        self._slaves = Slaves(cluster, self._offers, reconciliation)
        tasks = Tasks(cluster, reconciliation)
        operators = Operators(cluster, self._frameworks)
        self._stream = Stream(cluster)
        self._registering: dict[str, dict[type, Handler]] = {
            "slave": {RegisterSlave: self._slaves.register, ReregisterSlave: self._slaves.reregister},
            "framework": {RegisterFramework: self._frameworks.register},
        }
        self._handlers: dict[str, dict[type, Handler]] = {
            "slave": {
                StatusUpdate: tasks.status_update,
                Pong: self._slaves.pong,
                ExecutorLost: tasks.executor_lost,
                ExecutorToFramework: tasks.to_framework,
            },
            "framework": {
                AcceptOffers: self._offers.accept,
                AcknowledgeStatus: tasks.acknowledge,
                DeclineOffers: self._offers.decline,
                Pong: self._frameworks.pong,
                ReviveOffers: self._offers.revive,
                SuppressOffers: self._offers.suppress,
                KillTask: tasks.kill,
                ReconcileTasks: reconciliation.reconcile,
                FrameworkToExecutor: tasks.to_executor,
                ShutdownExecutor: tasks.shutdown_executor,
                TeardownFramework: self._frameworks.teardown,
            },
            "operator": {
                GetMaster: operators.get_master,
                GetNodes: operators.get_nodes,
                GetFrameworks: operators.get_frameworks,
                GetTasks: operators.get_tasks,
                OperatorKillTask: operators.kill_task,
                TeardownFramework: operators.teardown_framework,
            },
        }
        registry = read_registry(init.records)
        self._frameworks.recover(registry.frameworks, registry.removed_frameworks)
        self._slaves.recover(registry.slaves)
        for role, weight in init.config.weights.items():
            cluster.allocator.set_weight(role, weight, cluster.now)

    # --- For the shell --------------------------------------------------------------------------

    def refusal(self, principal: Principal, hello: Hello) -> str | None:
        """Return why a peer gets no session, None if it does. Changes nothing."""
        if principal.startswith(TASK_KEY_PREFIX):
            return f"{principal} is the key of a framework's tasks, which may do nothing at the master"
        if hello.kind not in KINDS:
            return f"kind {hello.kind!r} has no business with a master; it takes {', '.join(KINDS)}"
        return None

    def follow_refusal(self, principal: Principal) -> str | None:
        """Return why a peer may not follow the event stream, None if it may. Changes nothing."""
        return self._cluster.authorize(principal, Action.FOLLOW_EVENTS, "events")

    def handle(self, event: MasterEvent, now: float) -> list[MasterEffect]:
        """Take one input and return what is to be done, in order."""
        cluster = self._cluster
        cluster.now = now
        if type(event) is Received:
            self._received(event)
        elif isinstance(event, Persisted):
            cluster.persisted(event.token)
        elif isinstance(event, SessionOpened):
            self._session_opened(event)
        elif isinstance(event, SessionClosed):
            self._session_closed(event.session, event.reason)
        elif isinstance(event, FollowersChanged):
            self._stream.followers_changed(event)
        if cluster.touched is not None:
            self._stream.publish(cluster.touched)
        return cluster.take_effects()

    def tick(self, now: float) -> list[MasterEffect]:
        """Do what is due at `now` or before."""
        cluster = self._cluster
        cluster.now = now
        for kind, key in cluster.timers.pop_due(now):
            match kind:
                case "slave":
                    self._slaves.ping_due(SlaveId(key))
                case "framework":
                    self._frameworks.ping_due(FrameworkId(key))
                case "failover":
                    self._frameworks.failover_due(FrameworkId(key))
                case "reregister":
                    self._slaves.reregister_due(SlaveId(key))
                case "removals":
                    self._slaves.removal_due()
                case "reap":
                    self._frameworks.reap_due(FrameworkId(key))
                case "forget":
                    self._slaves.forget_due(SlaveId(key))
                case "begin":
                    self._frameworks.begin()
                case "summary":
                    self._stream.summary_due()
                case "position":
                    self._stream.position_due()
        self._offers.tick()
        if cluster.touched is not None:
            self._stream.publish(cluster.touched)
        return cluster.take_effects()

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next, None if nothing is due ever."""
        due = self._cluster.timers.next_due()
        offers_due = self._offers.next_deadline()
        if due is None or (offers_due is not None and offers_due < due):
            return offers_due
        return due

    def check(self) -> None:
        """Raise InvariantError if indexes differ, or offered + used + free is not a slave's total."""
        self._cluster.check()

    # --- Sessions -------------------------------------------------------------------------------

    def _session_opened(self, event: SessionOpened) -> None:
        session = Session(event.session, event.principal, event.hello.kind)
        self._cluster.sessions[event.session] = session
        self._cluster.log(DEBUG, "session opened", kind=session.kind, principal=session.principal)

    def _session_closed(self, session_id: SessionId, reason: str) -> None:
        session = self._cluster.sessions.pop(session_id, None)
        if session is None:
            return
        slave, session.slave = session.slave, None
        framework, session.framework = session.framework, None
        if slave is not None:
            self._slaves.session_closed(slave, reason)
        elif framework is not None:
            self._frameworks.session_closed(framework, reason)

    def _received(self, event: Received) -> None:
        session = self._cluster.sessions.get(event.session)
        if session is None:
            return  # It was closed by us, and this was under way.
        message = event.message
        kind = type(message)
        if session.slave is not None or session.framework is not None or session.kind == "operator":
            handler = self._handlers[session.kind].get(kind)
            if handler is not None:
                handler(session, message)
                return
        self._register_or_refuse(session, message)

    def _register_or_refuse(self, session: Session, message: Any) -> None:
        handler = self._registering.get(session.kind, {}).get(type(message))
        if handler is not None:
            handler(session, message)
            return
        name = type(message).__name__
        if isinstance(message, Pong):
            return  # To a ping of a registration that has ended since.
        if isinstance(message, Error):
            self._cluster.log(WARNING, "peer answered with an error", kind=session.kind, error=message.message)
            return
        if type(message) in self._handlers[session.kind]:
            text = f"{name}: register first, this session has not or no longer"
        else:
            text = f"{name}: a {session.kind} may not send it"
        self._cluster.log(INFO, "message refused", kind=session.kind, principal=session.principal, why=text)
        self._cluster.refuse(session, "bad_message", text, getattr(message, "request_id", None))
