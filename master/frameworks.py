"""Frameworks: registration, take-over, the time without a scheduler, and the end."""

import re
from functools import partial

import msgspec

from master.cluster import REAP_INTERVAL_S, Cluster
from master.offers import Offers
from master.registry import (
    KnownFramework,
    RemovedFramework,
    framework_record,
    removed_framework_record,
)
from master.state import FrameworkEntry, FrameworkState, Session
from meseta.acls import Action
from meseta.ids import FrameworkId
from meseta.log import INFO, WARNING
from meseta.messages import (
    FrameworkError,
    FrameworkRegistered,
    KillTask,
    Ping,
    Pong,
    RegisterFramework,
    ShutdownExecutor,
    ShutdownFramework,
    StatusUpdate,
    TeardownFramework,
    UpdateFramework,
)
from meseta.model import ID_LIMIT, IDENTIFIER_PATTERN, FrameworkInfo

FRAMEWORKS_LIMIT = 10_000  # Ten times what the allocator is measured with.
ROLES_LIMIT = 100  # Of one framework; each costs the allocator a client.
_IS_IDENTIFIER = re.compile(IDENTIFIER_PATTERN).match  # It names folders on slaves.
REMOVED_LIMIT = 100_000  # Barred ids; the oldest are forgotten, when no one can remember them either.


class Frameworks:
    """All frameworks, also those that are over for as long as they are remembered."""

    def __init__(self, cluster: Cluster, offers: Offers) -> None:
        self._cluster = cluster
        self._offers = offers

    def recover(self, records: dict[FrameworkId, KnownFramework], removed: dict[FrameworkId, RemovedFramework]) -> None:
        """Take what the registry holds at the start."""
        cluster = self._cluster
        cluster.removed_frameworks.update(removed)
        for framework_id, record in records.items():
            framework = FrameworkEntry(framework_id, record.framework_info, record.principal, FrameworkState.RECOVERED)
            framework.registered_unix_s = record.registered_unix_s
            framework.disconnected_unix_s = record.disconnected_unix_s
            cluster.frameworks[framework_id] = framework
            silent_s = 0.0
            if record.disconnected_unix_s is not None:
                silent_s = max(0.0, cluster.unix_s() - record.disconnected_unix_s)
            rest_s = max(0.0, record.framework_info.failover_timeout_s - silent_s)
            cluster.timers.set(("failover", framework_id), cluster.now + rest_s)
        if any(framework.disconnected_unix_s is None for framework in cluster.frameworks.values()):
            cluster.timers.set(("begin", ""), cluster.now)

    def begin(self) -> None:
        """Write since when the frameworks that the last master still had are without a scheduler."""
        cluster = self._cluster
        for framework in cluster.frameworks.values():
            if framework.state is FrameworkState.RECOVERED and framework.disconnected_unix_s is None:
                framework.disconnected_unix_s = cluster.unix_s()
                self._persist(framework)

    # --- Registration -----------------------------------------------------------------------------

    def register(self, session: Session, message: RegisterFramework) -> None:
        """Admit a framework, take one back, or hand one to another scheduler."""
        info = message.framework_info
        present = session.framework
        if present is not None and (info.id is None or info.id == present.framework_id):
            if msgspec.structs.replace(info, id=present.framework_id) == present.info:
                self._answer(session, present, is_back=info.id is not None)
                return
            info = msgspec.structs.replace(info, id=present.framework_id)
            message = msgspec.structs.replace(message, framework_info=info)
        elif present is not None:
            self._cluster.refuse(session, "invalid", f"framework_info.id: this session is {present.framework_id}")
            return
        if session.is_registering:
            session.deferred = message
            return
        refusal = self._refusal(session, info)
        if refusal is not None:
            code, text = refusal
            self._cluster.log(WARNING, "framework refused", name=info.name, framework_id=info.id, why=text)
            self._cluster.refuse(session, code, text)
            return
        framework_id = info.id or FrameworkId(self._cluster.ids.new("f"))
        message = msgspec.structs.replace(message, framework_info=msgspec.structs.replace(info, id=framework_id))
        known = self._cluster.frameworks.get(framework_id)
        record = KnownFramework(
            framework_info=message.framework_info,
            principal=session.principal,
            registered_unix_s=known.registered_unix_s if known is not None else self._cluster.unix_s(),
        )
        session.is_registering = True
        then = partial(self._registered, session, message, record, is_new=info.id is None)
        self._cluster.persist(framework_record(framework_id, record), then=then)

    def _refusal(self, session: Session, info: FrameworkInfo) -> tuple[str, str] | None:
        """Return code and reason, None if the framework may register."""
        cluster = self._cluster
        fault = _info_fault(info)
        if fault is not None:
            return "invalid", fault
        for role in info.roles:
            refusal = cluster.authorize(session.principal, Action.REGISTER_FRAMEWORK, role)
            if refusal is not None:
                return "unauthorized", refusal
        known = None if info.id is None else cluster.frameworks.get(info.id)
        if known is None and len(cluster.frameworks) >= FRAMEWORKS_LIMIT:
            return "failed", f"there are {FRAMEWORKS_LIMIT} frameworks already, which is the limit"
        if info.id is None:
            return None
        if info.id in cluster.removed_frameworks or (known is not None and known.is_over):
            return "removed", f"Framework has been removed: {info.id}; register without an id to get a new one"
        if known is not None and known.principal and known.principal != session.principal:
            return "unauthorized", f"framework {info.id} belongs to principal {known.principal}"
        return None

    def _registered(
        self, session: Session, message: RegisterFramework, record: KnownFramework, *, is_new: bool
    ) -> None:
        """Go on now that the registration is safe."""
        cluster = self._cluster
        session.is_registering = False
        info = message.framework_info
        assert info.id is not None, "the id was given before it was written"
        framework = cluster.frameworks.get(info.id)
        if info.id in cluster.removed_frameworks or (framework is not None and framework.is_over):
            # Torn down meanwhile; its record was written before ours and is to go again.
            cluster.persist(framework_record(info.id, None))
            cluster.refuse(session, "removed", f"Framework has been removed: {info.id}")
            return
        if cluster.sessions.get(session.session_id) is not session:
            self._unwind(info.id, framework, record, is_new=is_new)
            return
        is_known = framework is not None
        if framework is None:
            framework = FrameworkEntry(info.id, info, record.principal, FrameworkState.RECOVERED)
            framework.registered_unix_s = record.registered_unix_s
            cluster.frameworks[info.id] = framework
        self._activate(framework, session, message, is_back=is_known or not is_new)
        deferred, session.deferred = session.deferred, None
        if isinstance(deferred, RegisterFramework):
            self.register(session, deferred)

    def _unwind(
        self, framework_id: FrameworkId, framework: FrameworkEntry | None, record: KnownFramework, *, is_new: bool
    ) -> None:
        """The session ended while its registration was being written."""
        if is_new:
            self._cluster.persist(framework_record(framework_id, None))
        elif framework is None:
            framework = FrameworkEntry(framework_id, record.framework_info, record.principal, FrameworkState.RECOVERED)
            framework.registered_unix_s = record.registered_unix_s
            self._cluster.frameworks[framework_id] = framework
            self._start_failover(framework)
        elif framework.state is not FrameworkState.ACTIVE:
            self._persist(framework)

    def _activate(
        self, framework: FrameworkEntry, session: Session, message: RegisterFramework, *, is_back: bool
    ) -> None:
        cluster = self._cluster
        old = framework.session
        self._offers.drop_of_framework(framework)
        if old is not None and old is not session:
            cluster.send(old, FrameworkError(message="another scheduler took this framework over"))
            old.framework = None
            cluster.close(old, "taken over")
        framework.change(FrameworkState.ACTIVE)
        framework.session = session
        session.framework = framework
        is_changed = framework.info != message.framework_info
        framework.set_info(message.framework_info)
        framework.principal = session.principal
        framework.disconnected_unix_s = None
        cluster.touch_framework(framework)
        cluster.timers.cancel(("failover", framework.framework_id))
        cluster.allocator.add_framework(
            framework.framework_id, framework.info.roles, message.suppressed_roles, cluster.now
        )
        cluster.request_allocation()
        self._answer(session, framework, is_back=is_back)
        framework.missed_pings = 0
        self._ping(framework)
        if is_changed and is_back:
            for slave in dict.fromkeys(task.slave for task in framework.tasks.values()):
                if slave.session is not None:
                    cluster.send(slave.session, UpdateFramework(framework_info=framework.info))
        for task in framework.tasks.values():
            if task.head is not None:  # The scheduler before this one may not have had it.
                task.status = task.head
                cluster.touch_task(task)
                cluster.send(session, StatusUpdate(status=task.head, framework_id=framework.framework_id))
        cluster.log(
            INFO,
            "framework registered again" if is_back else "framework registered",
            framework_id=framework.framework_id,
            name=framework.info.name,
            principal=framework.principal,
        )

    def _answer(self, session: Session, framework: FrameworkEntry, *, is_back: bool) -> None:
        self._cluster.send(session, FrameworkRegistered(framework_id=framework.framework_id, reregistered=is_back))

    # --- Liveness ---------------------------------------------------------------------------------

    def pong(self, session: Session, message: Pong) -> None:
        """The scheduler lives."""
        if session.framework is not None:
            session.framework.missed_pings = 0

    def ping_due(self, framework_id: FrameworkId) -> None:
        """Ping a scheduler, or take it for gone."""
        framework = self._cluster.frameworks.get(framework_id)
        if framework is None or framework.session is None:
            return
        if framework.missed_pings >= self._cluster.config.max_missed_pings:
            session = framework.session
            session.framework = None
            self._cluster.close(session, "silent: too many pings were missed")
            self.session_closed(framework, "silent")
        else:
            self._ping(framework)

    def session_closed(self, framework: FrameworkEntry, reason: str) -> None:
        """The scheduler is gone: its offers return, and its time to come back begins."""
        cluster = self._cluster
        framework.change(FrameworkState.DISCONNECTED)
        framework.session = None
        cluster.timers.cancel(("framework", framework.framework_id))
        self._offers.drop_of_framework(framework)
        cluster.allocator.set_framework_active(framework.framework_id, now=cluster.now, is_active=False)
        cluster.log(INFO, "framework disconnected", framework_id=framework.framework_id, reason=reason)
        self._start_failover(framework)

    def failover_due(self, framework_id: FrameworkId) -> None:
        """No scheduler came back in time."""
        framework = self._cluster.frameworks.get(framework_id)
        if framework is not None and framework.state in (FrameworkState.DISCONNECTED, FrameworkState.RECOVERED):
            self._cluster.log(
                WARNING,
                "failover timeout passed",
                framework_id=framework_id,
                failover_timeout_s=framework.info.failover_timeout_s,
            )
            self.remove(framework, "failover timeout passed")

    def _start_failover(self, framework: FrameworkEntry) -> None:
        framework.disconnected_unix_s = self._cluster.unix_s()
        self._cluster.touch_framework(framework)
        self._persist(framework)
        due = self._cluster.now + framework.info.failover_timeout_s
        self._cluster.timers.set(("failover", framework.framework_id), due)

    def _persist(self, framework: FrameworkEntry) -> None:
        record = self._cluster.known_framework(framework)
        self._cluster.persist(framework_record(framework.framework_id, record))

    def _ping(self, framework: FrameworkEntry) -> None:
        config = self._cluster.config
        framework.missed_pings += 1
        assert framework.session is not None, "only schedulers that are there are pinged"
        ping = Ping(interval_s=config.ping_timeout_s, missed_limit=config.max_missed_pings)
        self._cluster.send(framework.session, ping)
        self._cluster.timers.set(("framework", framework.framework_id), self._cluster.now + config.ping_timeout_s)

    # --- The end ----------------------------------------------------------------------------------

    def teardown(self, session: Session, message: TeardownFramework) -> None:
        """The scheduler ends its framework."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        if message.framework_id not in (None, framework.framework_id):
            text = f"framework_id: {message.framework_id} is another framework; ask for it as an operator"
            self._cluster.refuse(session, "unauthorized", text, message.request_id)
            return
        self.remove(framework, "torn down by its scheduler")

    def remove(self, framework: FrameworkEntry, why: str, then: "partial[None] | None" = None) -> None:
        """End a framework: its id is barred durably, then its tasks are killed, then `then` is called."""
        cluster, framework_id = self._cluster, framework.framework_id
        if framework.session is not None:
            session = framework.session
            cluster.timers.cancel(("framework", framework_id))
            self._offers.drop_of_framework(framework)
            cluster.allocator.set_framework_active(framework_id, now=cluster.now, is_active=False)
            session.framework = None
            framework.session = None
            cluster.send(session, FrameworkError(message=f"the framework was removed: {why}"))
            cluster.close(session, why)
        cluster.timers.cancel(("failover", framework_id))
        framework.change(FrameworkState.REMOVING)
        cluster.touch_framework(framework)
        removed = RemovedFramework(removed_unix_s=cluster.unix_s())
        cluster.removed_frameworks[framework_id] = removed
        records = [framework_record(framework_id, None), removed_framework_record(framework_id, removed)]
        if len(cluster.removed_frameworks) > REMOVED_LIMIT:
            oldest = next(iter(cluster.removed_frameworks))
            del cluster.removed_frameworks[oldest]
            records.append(removed_framework_record(oldest, None))
        cluster.persist(*records, then=partial(self._removed, framework, why, then))

    def _removed(self, framework: FrameworkEntry, why: str, then: "partial[None] | None") -> None:
        cluster = self._cluster
        framework.change(FrameworkState.REMOVED)
        cluster.touch_framework(framework)
        cluster.log(INFO, "framework removed", framework_id=framework.framework_id, name=framework.info.name, why=why)
        slaves = dict.fromkeys(
            entry.slave
            for entries in (framework.tasks, framework.disowned, framework.executors)
            for entry in entries.values()
        )
        for slave in slaves:
            if slave.session is not None:
                cluster.send(slave.session, ShutdownFramework(framework_id=framework.framework_id))
        for task in list(framework.tasks.values()):
            if task.is_charged:
                cluster.disown(task)
            else:  # Over, or on a slave that is out of sight.
                cluster.complete_task(task)
        if framework.executors:
            cluster.timers.set(("reap", framework.framework_id), cluster.now + REAP_INTERVAL_S)
        cluster.release_if_over(framework)
        if then is not None:
            then()

    def reap_due(self, framework_id: FrameworkId) -> None:
        """Ask again after what should be dead: an answer may have been lost."""
        framework = self._cluster.frameworks.get(framework_id)
        if framework is None or not framework.has_open_ends:
            return
        for task in framework.disowned.values():
            if task.slave.session is not None:
                kill = KillTask(task_id=task.task_id, framework_id=framework_id, slave_id=task.slave.slave_id)
                self._cluster.send(task.slave.session, kill)
        for executor in framework.executors.values():
            if executor.slave.session is not None:
                order = ShutdownExecutor(
                    executor_id=executor.info.executor_id,
                    slave_id=executor.slave.slave_id,
                    framework_id=framework_id,
                )
                self._cluster.send(executor.slave.session, order)
        self._cluster.timers.set(("reap", framework_id), self._cluster.now + REAP_INTERVAL_S)


def _info_fault(info: FrameworkInfo) -> str | None:
    """Return which field is wrong and the remedy, None if all is well."""
    if info.id is not None and (len(info.id) > ID_LIMIT or _IS_IDENTIFIER(info.id) is None):
        return f"framework_info.id: {info.id[:80]!r} is none that a master gave; register without an id to get one"
    if not info.name:
        return "framework_info.name: is empty; give the framework a name that operators will know"
    if not info.user:
        return "framework_info.user: is empty; name the user as whom tasks run"
    if not info.roles:
        return 'framework_info.roles: is empty; name one role at least, as "*"'
    if len(info.roles) > ROLES_LIMIT:
        return f"framework_info.roles: {len(info.roles)} are over the limit of {ROLES_LIMIT}"
    if len(set(info.roles)) != len(info.roles):
        return "framework_info.roles: one is named twice; name each once"
    for role in info.roles:
        if not _is_role(role):
            return (
                f"framework_info.roles: {role!r} is no role; write names without spaces, not starting with -, "
                "joined by / if need be"
            )
    return None


def _is_role(role: str) -> bool:
    if any(character.isspace() or not character.isprintable() for character in role):
        return False
    return all(part not in ("", ".", "..") and not part.startswith("-") for part in role.split("/"))
