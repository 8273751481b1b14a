"""Slaves: admission, pings, and the way out of sight and back.

A slave is admitted durably before it is told so. One that stays silent is given up, durably, one at
a time; it may come back, and then its tasks are compared with what frameworks were told.
"""

from functools import partial

import msgspec

from master.cluster import Cluster
from master.offers import Offers
from master.reconciliation import Reconciliation
from master.registry import AdmittedSlave, slave_record
from master.reports import Reports
from master.state import Session, SlaveEntry, SlaveState
from meseta.acls import Action
from meseta.ids import SlaveId
from meseta.log import INFO, WARNING
from meseta.messages import Ping, Pong, RegisterSlave, ReregisterSlave, SlaveLost, SlaveRegistered
from meseta.model import Reason, SlaveInfo

SLAVES_LIMIT = 50_000  # Five times the largest cluster that the allocator is measured with.
UNREACHABLE_AGE_LIMIT_S = 14 * 24 * 3600.0  # Mesos's time until an unreachable slave is forgotten.


class Slaves:
    """All slaves that the registry knows."""

    def __init__(self, cluster: Cluster, offers: Offers, reconciliation: Reconciliation) -> None:
        self._cluster = cluster
        self._offers = offers
        self._reconciliation = reconciliation
        self._reports = Reports(cluster)
        self._removals: dict[SlaveId, None] = {}  # Given up, and waiting for their turn.
        self._next_removal_s = cluster.init.started_s

    def recover(self, records: dict[SlaveId, AdmittedSlave]) -> None:
        """Take what the registry holds at the start."""
        started_s, config = self._cluster.init.started_s, self._cluster.config
        for slave_id, record in records.items():
            is_unreachable = record.unreachable_unix_s is not None
            slave = SlaveEntry(slave_id, record, SlaveState.UNREACHABLE if is_unreachable else SlaveState.RECOVERED)
            self._cluster.slaves[slave_id] = slave
            if record.unreachable_unix_s is not None:
                age_s = self._cluster.unix_s() - record.unreachable_unix_s
                self._cluster.timers.set(("forget", slave_id), started_s + UNREACHABLE_AGE_LIMIT_S - max(0.0, age_s))
            else:
                self._cluster.timers.set(("reregister", slave_id), started_s + config.reregister_timeout_s)

    # --- Registration -----------------------------------------------------------------------------

    def register(self, session: Session, message: RegisterSlave) -> None:
        """Admit a slave that has no id."""
        if session.slave is not None:
            self._answer(session, session.slave, is_back=False)
            return
        if session.is_registering or self._is_refused(session, message.slave_info):
            return
        slave_id = SlaveId(self._cluster.ids.new("s"))
        self._admit(session, slave_id, message.slave_info, report=None)

    def reregister(self, session: Session, message: ReregisterSlave) -> None:
        """Take back a slave that has an id, with what runs on it."""
        slave_id = message.slave_info.id
        if slave_id is None:
            self._cluster.refuse(session, "invalid", "slave_info.id is missing: send RegisterSlave to get one")
            return
        if session.slave is not None:
            # Written before the launches that followed our answer: its list of tasks is outdated.
            if session.slave.slave_id == slave_id:
                self._confirm(session.slave)
                self._answer(session, session.slave, is_back=True)
            else:
                text = f"slave_info.id: this session is slave {session.slave.slave_id}; open another for {slave_id}"
                self._cluster.refuse(session, "invalid", text)
            return
        if self._is_refused(session, message.slave_info):
            return
        fault = self._reports.fault(message)
        if fault is not None:
            self._cluster.log(WARNING, "slave refused", slave_id=slave_id, error=fault)
            self._cluster.refuse(session, "invalid", fault)
            return
        slave = self._cluster.slaves.get(slave_id)
        if slave is None:
            if not session.is_registering:
                self._admit(session, slave_id, message.slave_info, report=message)
            return
        if slave.state in (SlaveState.MARKING, SlaveState.READMITTING):
            session.deferred = message
            slave.waiting = session
        elif slave.state is SlaveState.UNREACHABLE:
            self._readmit(slave, session, message)
        else:
            self._return(slave, session, message, was_unreachable=False)

    def _is_refused(self, session: Session, info: SlaveInfo) -> bool:
        refusal = self._cluster.authorize(session.principal, Action.REGISTER_SLAVE, info.hostname)
        if refusal is not None:
            self._cluster.log(WARNING, "slave refused", hostname=info.hostname, error=refusal)
            self._cluster.refuse(session, "unauthorized", refusal)
            return True
        if len(self._cluster.slaves) >= SLAVES_LIMIT and info.id not in self._cluster.slaves:
            self._cluster.refuse(session, "failed", f"there are {SLAVES_LIMIT} slaves already, which is the limit")
            return True
        return False

    def _admit(self, session: Session, slave_id: SlaveId, info: SlaveInfo, *, report: ReregisterSlave | None) -> None:
        record = AdmittedSlave(
            slave_info=msgspec.structs.replace(info, id=slave_id), registered_unix_s=self._cluster.unix_s()
        )
        session.is_registering = True
        then = partial(self._admitted, session, slave_id, record, report)
        self._cluster.persist(slave_record(slave_id, record), then=then)

    def _admitted(
        self,
        session: Session,
        slave_id: SlaveId,
        record: AdmittedSlave,
        report: ReregisterSlave | None,
    ) -> None:
        session.is_registering = False
        known = self._cluster.slaves.get(slave_id)
        if known is not None:  # Two sessions of one slave, and this is the older write.
            if report is not None and self._is_open(session):
                self.reregister(session, report)
            return
        if not self._is_open(session):
            if report is None:  # Nobody knows this id: the slave will ask for another.
                self._cluster.persist(slave_record(slave_id, None))
            else:
                self._wait_for(SlaveEntry(slave_id, record, SlaveState.RECOVERED))
            return
        slave = SlaveEntry(slave_id, record, SlaveState.RECOVERED)
        self._cluster.slaves[slave_id] = slave
        message = report or ReregisterSlave(slave_info=record.slave_info)
        self._return(slave, session, message, was_unreachable=False, is_back=report is not None)

    def _wait_for(self, slave: SlaveEntry) -> None:
        self._cluster.slaves[slave.slave_id] = slave
        self._cluster.touch_slave(slave)
        self._cluster.timers.set(
            ("reregister", slave.slave_id), self._cluster.now + self._cluster.config.reregister_timeout_s
        )

    def _readmit(self, slave: SlaveEntry, session: Session, message: ReregisterSlave) -> None:
        slave.change(SlaveState.READMITTING)
        session.deferred = message
        slave.waiting = session
        disowned = dict.fromkeys(slave.record.disowned)
        disowned |= dict.fromkeys(self._reports.lost_tasks(message))
        record = msgspec.structs.replace(slave.record, unreachable_unix_s=None, disowned=tuple(disowned))
        self._cluster.persist(self._cluster.slave_record(slave, record), then=partial(self._readmitted, slave))

    def _readmitted(self, slave: SlaveEntry) -> None:
        session, slave.waiting = slave.waiting, None
        self._cluster.timers.cancel(("forget", slave.slave_id))
        if session is None or not self._is_open(session) or not isinstance(session.deferred, ReregisterSlave):
            slave.change(SlaveState.RECOVERED)
            self._wait_for(slave)
            return
        message, session.deferred = session.deferred, None
        self._return(slave, session, message, was_unreachable=True)

    def _return(
        self,
        slave: SlaveEntry,
        session: Session,
        message: ReregisterSlave,
        *,
        was_unreachable: bool,
        is_back: bool = True,
    ) -> None:
        """Make the slave ACTIVE with what it reports."""
        cluster = self._cluster
        if slave.session is not None:
            cluster.close(slave.session, "replaced by a new session of this slave")
            slave.session.slave = None
        self._offers.rescind_of_slave(slave, Reason.SLAVE_DISCONNECTED, "registered again")
        slave.change(SlaveState.ACTIVE)
        cluster.touch_slave(slave)
        slave.session = session
        session.slave = slave
        info = msgspec.structs.replace(message.slave_info, id=slave.slave_id)
        if info != slave.info:
            slave.info = info
            cluster.persist(cluster.slave_record(slave, msgspec.structs.replace(slave.record, slave_info=info)))
        self._removals.pop(slave.slave_id, None)
        cluster.timers.cancel(("reregister", slave.slave_id))
        self._answer(session, slave, is_back=is_back)
        if slave.is_counted:
            cluster.allocator.update_total(slave.slave_id, info.resources, self._cluster.now)
            cluster.allocator.set_slave_active(slave.slave_id, now=self._cluster.now, is_active=True)
        else:
            slave.is_counted = True
            cluster.allocator.add_slave(slave.slave_id, info.resources, {}, self._cluster.now)
        if not is_back:
            # It may never hear of its id, and then asks for another: a task sent to it would never be heard of again.
            slave.is_unconfirmed = True
            cluster.allocator.set_slave_active(slave.slave_id, now=self._cluster.now, is_active=False)
        else:
            slave.is_unconfirmed = False
        self._reports.merge(slave, message, was_unreachable=was_unreachable)
        slave.missed_pings = 0
        self._ping(slave)
        cluster.log(
            INFO,
            "slave registered again" if is_back else "slave registered",
            slave_id=slave.slave_id,
            hostname=info.hostname,
            resources=str(info.resources),
            tasks=len(slave.tasks),
        )
        self._reconciliation.slave_settled(slave)
        cluster.request_allocation()

    def _answer(self, session: Session, slave: SlaveEntry, *, is_back: bool) -> None:
        self._cluster.send(session, SlaveRegistered(slave_id=slave.slave_id, reregistered=is_back))

    def _is_open(self, session: Session) -> bool:
        return self._cluster.sessions.get(session.session_id) is session

    # --- Liveness ---------------------------------------------------------------------------------

    def session_closed(self, slave: SlaveEntry, reason: str) -> None:
        """The slave's session is gone: no offers of it until it is back."""
        slave.change(SlaveState.DISCONNECTED)
        self._cluster.touch_slave(slave)
        slave.session = None
        self._cluster.allocator.set_slave_active(slave.slave_id, now=self._cluster.now, is_active=False)
        self._offers.rescind_of_slave(slave, Reason.SLAVE_DISCONNECTED, "was disconnected")
        self._cluster.log(WARNING, "slave disconnected", slave_id=slave.slave_id, reason=reason)

    def pong(self, session: Session, message: Pong) -> None:
        """The slave lives."""
        slave = session.slave
        assert slave is not None, "only registered slaves are heard"
        slave.missed_pings = 0
        self._confirm(slave)  # The ping followed the answer: it has written its id by now.
        if slave.slave_id in self._removals:
            del self._removals[slave.slave_id]
            self._cluster.log(INFO, "removal cancelled by a pong", slave_id=slave.slave_id)

    def _confirm(self, slave: SlaveEntry) -> None:
        if slave.is_unconfirmed:
            slave.is_unconfirmed = False
            self._cluster.allocator.set_slave_active(slave.slave_id, now=self._cluster.now, is_active=True)
            self._cluster.request_allocation()

    def ping_due(self, slave_id: SlaveId) -> None:
        """Ping a slave, or give it up."""
        slave = self._cluster.slaves.get(slave_id)
        if slave is None or slave.state not in (SlaveState.ACTIVE, SlaveState.DISCONNECTED):
            return
        if slave.missed_pings >= self._cluster.config.max_missed_pings and slave_id not in self._removals:
            silent_s = self._cluster.config.ping_timeout_s * slave.missed_pings
            self._cluster.log(WARNING, "slave is silent", slave_id=slave_id, silent_s=silent_s)
            self._queue_removal(slave)
        self._ping(slave)

    def reregister_due(self, slave_id: SlaveId) -> None:
        """A slave of the registry did not come back in time."""
        slave = self._cluster.slaves.get(slave_id)
        if slave is not None and slave.state is SlaveState.RECOVERED:
            self._cluster.log(WARNING, "slave did not come back", slave_id=slave_id, hostname=slave.info.hostname)
            self._queue_removal(slave)

    def forget_due(self, slave_id: SlaveId) -> None:
        """A slave has been unreachable for too long to be remembered."""
        slave = self._cluster.slaves.get(slave_id)
        if slave is None or slave.state is not SlaveState.UNREACHABLE:
            return
        for task in list(slave.tasks.values()):
            self._cluster.forget_task(task)
        del self._cluster.slaves[slave_id]
        self._cluster.touch_slave(slave)
        self._cluster.persist(slave_record(slave_id, None))
        self._cluster.log(INFO, "unreachable slave forgotten", slave_id=slave_id)

    def removal_due(self) -> None:
        """Give up the slave that has waited longest."""
        while self._removals:
            slave_id = next(iter(self._removals))
            del self._removals[slave_id]
            slave = self._cluster.slaves.get(slave_id)
            if slave is not None and SlaveState.MARKING is not slave.state:
                self._mark(slave)
                self._next_removal_s = self._cluster.now + self._cluster.config.slave_removal_interval_s
                break
        self._arm_removals()

    def _ping(self, slave: SlaveEntry) -> None:
        config = self._cluster.config
        slave.missed_pings += 1
        if slave.session is not None:
            ping = Ping(interval_s=config.ping_timeout_s, missed_limit=config.max_missed_pings)
            self._cluster.send(slave.session, ping)
        self._cluster.timers.set(("slave", slave.slave_id), self._cluster.now + config.ping_timeout_s)

    def _queue_removal(self, slave: SlaveEntry) -> None:
        self._removals[slave.slave_id] = None
        self._arm_removals()

    def _arm_removals(self) -> None:
        if self._removals:
            self._cluster.timers.set(("removals", ""), max(self._cluster.now, self._next_removal_s))

    def _mark(self, slave: SlaveEntry) -> None:
        """Write that a slave is given up; until that is safe nobody is told."""
        cluster = self._cluster
        cluster.timers.cancel(("slave", slave.slave_id))
        if slave.session is not None:
            cluster.close(slave.session, "unreachable: too many pings were missed")
            slave.session.slave = None
            slave.session = None
        slave.change(SlaveState.MARKING)
        if slave.is_counted:
            cluster.allocator.set_slave_active(slave.slave_id, now=self._cluster.now, is_active=False)
        self._offers.rescind_of_slave(slave, Reason.SLAVE_REMOVED, "is unreachable")
        record = msgspec.structs.replace(slave.record, unreachable_unix_s=cluster.unix_s())
        cluster.persist(cluster.slave_record(slave, record), then=partial(self._marked, slave))

    def _marked(self, slave: SlaveEntry) -> None:
        cluster = self._cluster
        slave.change(SlaveState.UNREACHABLE)
        cluster.touch_slave(slave)
        for executor in list(slave.executors.values()):
            cluster.remove_executor(executor)
        if slave.is_counted:
            slave.is_counted = False
            cluster.allocator.remove_slave(slave.slave_id, cluster.now)
        cluster.log(WARNING, "slave unreachable", slave_id=slave.slave_id, tasks=len(slave.tasks))
        for framework in cluster.frameworks.values():
            if framework.session is not None:
                cluster.send(framework.session, SlaveLost(slave_id=slave.slave_id))
        for task in list(slave.tasks.values()):
            task.is_charged = False  # `lose` notes the change.
            self._reports.lose(task)
        cluster.timers.set(("forget", slave.slave_id), self._cluster.now + UNREACHABLE_AGE_LIMIT_S)
        cluster.request_allocation()
        self._reconciliation.slave_settled(slave)
        session, slave.waiting = slave.waiting, None
        if session is not None and self._is_open(session) and isinstance(session.deferred, ReregisterSlave):
            message, session.deferred = session.deferred, None
            self.reregister(session, message)
