"""Offers: made in rounds, used, declined, rescinded. An offer dies with its slave's session, its
framework's session, after a time, and with the master.
"""

from collections import deque

from master.cluster import Cluster
from master.launching import Launching
from master.state import FrameworkEntry, OfferEntry, Session, SlaveEntry
from meseta.ids import ExecutorId, OfferId
from meseta.log import DEBUG
from meseta.messages import (
    PAGE_LIMIT,
    AcceptOffers,
    DeclineOffers,
    RescindOffer,
    ResourceOffers,
    ReviveOffers,
    SuppressOffers,
)
from meseta.model import Offer, Reason, TaskInfo, TaskState
from meseta.resources import sum_resources


class Offers:
    """All offers that frameworks have in hand."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._launching = Launching(cluster)
        self._expiries: deque[tuple[float, OfferId]] = deque()  # Oldest first: all live equally long.
        self._count = 0

    # --- Rounds -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Make the offers that are due, and take back those that were not answered in time."""
        cluster = self._cluster
        now = cluster.now
        self._expire(now)
        filters_end_s = cluster.allocator.next_deadline()
        is_asked = cluster.allocate_at is not None and cluster.allocate_at <= now
        if is_asked or (filters_end_s is not None and filters_end_s <= now):
            cluster.allocate_at = None
            self._allocate()

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do."""
        expiries, offers = self._expiries, self._cluster.offers
        while expiries and expiries[0][1] not in offers:
            expiries.popleft()
        due = expiries[0][0] if expiries else None
        for other in (self._cluster.allocate_at, self._cluster.allocator.next_deadline()):
            if other is not None and (due is None or other < due):
                due = other
        return due

    def _allocate(self) -> None:
        cluster = self._cluster
        offers_by_framework: dict[FrameworkEntry, list[Offer]] = {}
        until = cluster.now + cluster.config.offer_timeout_s
        for allocation in cluster.allocator.allocate(cluster.now):
            framework = cluster.frameworks[allocation.framework_id]
            slave = cluster.slaves[allocation.slave_id]
            self._count += 1
            offer = Offer(
                offer_id=OfferId(f"o-{cluster.epoch}-{self._count}"),
                framework_id=allocation.framework_id,
                slave_id=allocation.slave_id,
                hostname=slave.info.hostname,
                resources=allocation.resources,
                address=slave.info.address,
                role=allocation.role,
                attributes=slave.info.attributes,
                executor_ids=_executor_ids(slave, framework) if slave.executors else (),
            )
            cluster.add_offer(OfferEntry(offer, framework, slave))
            self._expiries.append((until, offer.offer_id))
            offers = offers_by_framework.get(framework)
            if offers is None:
                offers_by_framework[framework] = [offer]
            else:
                offers.append(offer)
        for framework, offers in offers_by_framework.items():
            assert framework.session is not None, "only frameworks with a session are offered anything"
            for start in range(0, len(offers), PAGE_LIMIT):
                cluster.send(framework.session, ResourceOffers(offers=tuple(offers[start : start + PAGE_LIMIT])))

    def _expire(self, now: float) -> None:
        expiries, offers = self._expiries, self._cluster.offers
        while expiries and (expiries[0][1] not in offers or expiries[0][0] <= now):
            entry = offers.get(expiries.popleft()[1])
            if entry is not None:
                timeout_s = self._cluster.config.offer_timeout_s
                self._rescind(entry, Reason.INVALID_OFFERS, f"was not answered within {timeout_s:g} s")

    # --- Ends -------------------------------------------------------------------------------------

    def rescind_of_slave(self, slave: SlaveEntry, reason: Reason, why: str) -> None:
        """Take back all offers of a slave and tell their frameworks; `why` goes on with the slave's id."""
        for entry in list(slave.offers.values()):
            self._rescind(entry, reason, f"slave {slave.slave_id} {why}")

    def drop_of_framework(self, framework: FrameworkEntry) -> None:
        """Take back all offers of a framework, which knows that they are void."""
        for entry in list(framework.offers.values()):
            self._take_back(entry)

    def _rescind(self, entry: OfferEntry, reason: Reason, text: str) -> None:
        self._take_back(entry)
        self._cluster.note_gone_offer(entry.offer.offer_id, reason, text)
        if entry.framework.session is not None:
            self._cluster.send(entry.framework.session, RescindOffer(offer_id=entry.offer.offer_id))

    def _take_back(self, entry: OfferEntry, refuse_s: float | None = None) -> None:
        cluster, offer = self._cluster, entry.offer
        cluster.remove_offer(entry)
        cluster.allocator.recover(
            offer.framework_id, offer.role, offer.slave_id, offer.resources, cluster.now, refuse_s=refuse_s
        )
        cluster.request_allocation()

    # --- Calls ------------------------------------------------------------------------------------

    def accept(self, session: Session, message: AcceptOffers) -> None:
        """Launch what is wanted on the offers' slave; what is left over is declined."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        entries: list[OfferEntry] = []
        for offer_id in dict.fromkeys(message.offer_ids):
            entry = framework.offers.get(offer_id)
            if entry is None:
                self._fail(framework, message, offer_id)
                return
            entries.append(entry)
        tasks = [task for operation in message.operations for task in operation.task_infos]
        if not entries or any(_place(entry.offer) != _place(entries[0].offer) for entry in entries):
            text = "offer_ids: name one offer at least, all of one slave and one role"
            self._drop(framework, tasks, Reason.INVALID_OFFERS, text)
            for entry in entries:
                self._take_back(entry)
            return
        cluster = self._cluster
        for entry in entries:
            cluster.remove_offer(entry)
        offer = entries[0].offer
        resources = offer.resources
        if len(entries) > 1:
            resources = sum_resources([entry.offer.resources for entry in entries])
        left = self._launching.launch(framework, entries[0].slave, offer.role, resources, tasks)
        if left:
            refuse_s = message.filters.refuse_s
            cluster.allocator.recover(
                offer.framework_id, offer.role, offer.slave_id, left, cluster.now, refuse_s=refuse_s
            )
            cluster.request_allocation()

    def decline(self, session: Session, message: DeclineOffers) -> None:
        """Take offers back, not to be offered again for a while. Offers that are gone are ignored."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        for offer_id in message.offer_ids:
            entry = framework.offers.get(offer_id)
            if entry is not None:
                self._take_back(entry, message.filters.refuse_s)

    def revive(self, session: Session, message: ReviveOffers) -> None:
        """Offer everything to the framework again."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        cluster = self._cluster
        if self._are_roles_known(session, framework, message.roles):
            cluster.allocator.revive(framework.framework_id, message.roles, cluster.now)
            cluster.request_allocation()

    def suppress(self, session: Session, message: SuppressOffers) -> None:
        """Offer nothing to the framework."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        cluster = self._cluster
        if self._are_roles_known(session, framework, message.roles):
            cluster.allocator.suppress(framework.framework_id, message.roles, cluster.now)
            cluster.log(DEBUG, "offers suppressed", framework_id=framework.framework_id)

    # --- Private ----------------------------------------------------------------------------------

    def _are_roles_known(self, session: Session, framework: FrameworkEntry, roles: tuple[str, ...]) -> bool:
        for role in roles:
            if role not in framework.info.roles:
                known = ", ".join(framework.info.roles)
                self._cluster.refuse(
                    session, "invalid", f"roles: {role} is none of this framework's, which are {known}"
                )
                return False
        return True

    def _fail(self, framework: FrameworkEntry, message: AcceptOffers, missing: OfferId) -> None:
        """Refuse a whole call: one of its offers is gone."""
        for offer_id in message.offer_ids:
            entry = framework.offers.get(offer_id)
            if entry is not None:
                self._take_back(entry)
        default = (Reason.INVALID_OFFERS, "it was used, declined, or is of an earlier master")
        reason, why = self._cluster.gone_offers.get(missing, default)
        tasks = [task for operation in message.operations for task in operation.task_infos]
        self._drop(framework, tasks, reason, f"offer {missing} is gone: {why}")

    def _drop(self, framework: FrameworkEntry, tasks: list[TaskInfo], reason: Reason, text: str) -> None:
        state = TaskState.DROPPED if framework.is_partition_aware else TaskState.LOST
        for task in tasks:
            if task.task_id not in framework.tasks:
                self._cluster.end_unlaunched(framework, task, state, reason=reason, message=text)


def _place(offer: Offer) -> tuple[str, str]:
    return (offer.slave_id, offer.role)


def _executor_ids(slave: SlaveEntry, framework: FrameworkEntry) -> tuple[ExecutorId, ...]:
    return tuple(key[1] for key in slave.executors if key[0] == framework.framework_id)
