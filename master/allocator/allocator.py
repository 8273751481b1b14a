"""Who is offered what: weighted dominant resource fairness over roles, then over their frameworks.

A round gives the client with the lowest share all that is free on one of the slaves that it may be
offered, chosen at random, and goes on until no slave is left that anyone would take. What is offered
counts as held until it comes back through `recover`.

A round costs what changed since the last one, not slaves times frameworks. Between rounds this
holds: no slave has anything to offer that a live client has not refused. So a round looks only at
slaves that changed and at clients that became live, and only at the pairs of them that no filter
bars; a refused pair is met again when its filter ends or breaks.
"""

import heapq
import random
from collections.abc import Mapping
from typing import Final

import msgspec

from master.allocator.bits import BitCounters, bits_of, members
from master.allocator.book import Book, Client, Framework, Slave
from master.allocator.filters import filter_end
from master.allocator.measure import CPUS_INDEX, MEM_INDEX, WEIGHT_MILLI_LIMIT, Vector
from master.allocator.ranking import Ranking
from meseta.errors import InvariantError
from meseta.ids import FrameworkId, SlaveId
from meseta.model import REFUSE_LIMIT_S, WaitReasons
from meseta.resources import MILLI, Resources, sum_resources

# A ranking made for one round pays when fewer than one in so many clients can take anything.
_FEW_FACTOR: Final = 8
# How far the random choice of a slave looks with cheap arithmetic before it takes the long way.
_WINDOW_BITS: Final = 60
_WINDOW: Final = (1 << _WINDOW_BITS) - 1


class AllocatorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`min_refuse_s`: shortest filter of a decline. An offer is worth making from either minimum on."""

    min_refuse_s: float = 1.0
    min_cpus_milli: int = 10
    min_mem_milli: int = 32_000


class Allocation(msgspec.Struct, frozen=True, gc=False):
    """All that was free on a slave, for one role of a framework."""

    framework_id: FrameworkId
    role: str
    slave_id: SlaveId
    resources: Resources


class Allocator:
    """The allocator's state machine. Methods note what happened; `allocate` decides."""

    def __init__(self, config: AllocatorConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._book = Book()
        self._ranking = Ranking(self._book.measure)
        self._live = 0  # Bits of the clients that are ranked.
        self._awakened: dict[Client, None] = {}  # Became live, or lost their filters, since the last round.
        self._open = 0  # Slots of the slaves with something to offer, as of the last round.
        self._slots_by_end: dict[float, dict[int, None]] = {}  # Slaves with filters, by when these end.
        self._ends: list[float] = []  # A heap of the keys.
        self._burst = (0.0, 0.0)  # Time and length of the last filter: declines come in bursts of equals.
        self._burst_end = 0.0
        self._offer_number = 0
        self._outbid = BitCounters()  # Rounds in which all that a client could have had went to others.

    # Slaves

    def add_slave(
        self,
        slave_id: SlaveId,
        total: Resources,
        used: Mapping[FrameworkId, Mapping[str, Resources]],
        now: float,
    ) -> None:
        """Take in a slave of which `used` is held by framework and role.

        Raises:
            ValueError: two of `used` hold the same ranges or set items; nothing has changed.
        """
        if slave_id in self._book.slaves:
            raise InvariantError(f"slave {slave_id} was added before")
        pieces = [held for by_role in used.values() for held in by_role.values()]
        if len(pieces) > 1:
            sum_resources(pieces)  # Raises what the docstring promises, before anything has changed.
        slave = self._book.add_slave(slave_id, total)
        for framework_id, by_role in used.items():
            for role, held in by_role.items():
                self._charge(framework_id, role, slave, held)

    def update_total(self, slave_id: SlaveId, total: Resources, now: float) -> None:
        """Change what a slave has. It may have less than is held there: then nothing of it is free."""
        self._book.update_total(self._slave(slave_id), total)

    def remove_slave(self, slave_id: SlaveId, now: float) -> None:
        """Forget a slave, what is held there and the filters on it."""
        slave = self._slave(slave_id)
        self._open &= ~slave.bit
        self._book.remove_slave(slave)

    def set_slave_active(self, slave_id: SlaveId, is_active: bool, now: float) -> None:
        """Offer an active slave, do not offer an inactive one. What was offered stays offered."""
        slave = self._slave(slave_id)
        if slave.is_active != is_active:
            slave.is_active = is_active
            self._book.changed[slave.slot] = None

    # Frameworks

    def add_framework(
        self, framework_id: FrameworkId, roles: tuple[str, ...], suppressed: tuple[str, ...], now: float
    ) -> None:
        """Take in a framework, active; one that was added before changes its roles. What it held stays held."""
        framework = self._book.framework(framework_id)
        if not framework.is_registered:
            framework.is_registered = True
            framework.since_s = now
        framework.is_active = True
        framework.roles = tuple(dict.fromkeys(roles))
        framework.suppressed = dict.fromkeys(suppressed)
        for role in framework.roles:
            self._book.client(framework, role)
        self._refresh_live(framework)

    def remove_framework(self, framework_id: FrameworkId, now: float) -> None:
        """Forget a framework; all that it held is free again."""
        framework = self._book.frameworks.get(framework_id)
        if framework is None:
            return
        framework.is_registered = framework.is_active = False
        framework.roles = ()
        for client in framework.clients.values():
            self._book.give_all_back(client)
        self._refresh_live(framework)

    def set_framework_active(self, framework_id: FrameworkId, is_active: bool, now: float) -> None:
        """Make offers to an active framework, none to an inactive one.

        A framework that becomes inactive loses its filters: the scheduler that comes back need not
        know what the one before it refused.
        """
        framework = self._registered(framework_id)
        if framework.is_active != is_active:
            framework.is_active = is_active
            if not is_active:
                for client in framework.clients.values():
                    self._book.forget_filters(client)
            self._refresh_live(framework)

    def suppress(self, framework_id: FrameworkId, roles: tuple[str, ...], now: float) -> None:
        """Make no offers to the framework for `roles` (none named: for all)."""
        framework = self._registered(framework_id)
        framework.suppressed.update(dict.fromkeys(roles or framework.roles))
        self._refresh_live(framework)

    def revive(self, framework_id: FrameworkId, roles: tuple[str, ...], now: float) -> None:
        """Make offers to the framework for `roles` again (none named: for all), and drop their filters."""
        framework = self._registered(framework_id)
        for role in roles or framework.roles:
            framework.suppressed.pop(role, None)
            client = framework.clients.get(role)
            if client is not None:
                self._book.forget_filters(client)
                if client.is_live:
                    self._awakened[client] = None
        self._refresh_live(framework)

    def set_weight(self, role: str, weight: float, now: float) -> None:
        """Let a role have `weight` times the share of one of weight 1; kept also while it has no framework.

        Raises:
            ValueError: not within 0.001 and a million.
        """
        weight_milli = round(weight * MILLI) if 0 < weight <= WEIGHT_MILLI_LIMIT else 0
        if not 1 <= weight_milli <= WEIGHT_MILLI_LIMIT:
            raise ValueError(f"role {role}: weight {weight} is not within 0.001 and {WEIGHT_MILLI_LIMIT // MILLI}")
        self._book.weights_milli[role] = weight_milli
        present = self._book.roles.get(role)
        if present is not None:
            present.weight_milli = weight_milli
            present.share = -1
            self._ranking.lower_role(present)

    # Holdings

    def charge(self, framework_id: FrameworkId, role: str, slave_id: SlaveId, resources: Resources, now: float) -> None:
        """Count as held what no offer of ours gave: a task that a slave reports.

        The framework need not be known. More than is free may be charged; see `Book`.

        Raises:
            ValueError: another holds the same ranges or set items there; nothing has changed.
        """
        self._charge(framework_id, role, self._slave(slave_id), resources)

    def recover(
        self,
        framework_id: FrameworkId,
        role: str,
        slave_id: SlaveId,
        resources: Resources,
        now: float,
        *,
        refuse_s: float | None = None,
    ) -> None:
        """Take back what a framework held; with `refuse_s`, it refuses `resources` for so long.

        What was forgotten with its slave or framework is ignored. A filter lasts at least
        `min_refuse_s` and may end up to 1/64 of its length late (see `filter_end`).

        Raises:
            InvariantError: the framework holds less than that there.
        """
        slave = self._book.slaves.get(slave_id)
        framework = self._book.frameworks.get(framework_id)
        client = framework.clients.get(role) if framework is not None else None
        if slave is None or client is None or client not in slave.holdings or not resources:
            return
        self._book.give_back(client, slave, resources)
        if refuse_s is not None and client.framework.is_registered:
            self._refuse(client, slave, resources, now, refuse_s)
        if not client.slots:
            self._book.forget_if_idle(client)

    # Rounds

    def allocate(self, now: float) -> list[Allocation]:
        """Offer all that can be offered, and count it as held; in the order in which it was decided."""
        self._end_filters(now)
        if not self._book.changed and not self._awakened:
            return []
        self._remeasure()
        takeable, takers = self._find_pairs()
        if not takeable:
            return []
        if takers.bit_count() * _FEW_FACTOR < self._live.bit_count():
            ranking = Ranking(self._book.measure)
            ranking.rebuild([client for index in members(takers) if (client := self._book.clients[index])])
        else:
            ranking = self._ranking
        return self._fill(ranking, takeable, takers, now)

    def next_deadline(self) -> float | None:
        """Return when the next filters end: `allocate` is due then."""
        return self._ends[0] if self._ends else None

    # Questions

    def available(self, slave_id: SlaveId) -> Resources:
        """Return what is free on a slave."""
        return self._slave(slave_id).free

    def allocated(self, slave_id: SlaveId) -> Resources:
        """Return what is held on a slave: offered or used."""
        return self._slave(slave_id).allocated()

    def waiting(self, framework_id: FrameworkId, now: float) -> WaitReasons:
        """Return why a framework has had no offer since its last one, as of the last round."""
        framework = self._registered(framework_id)
        clients = [framework.clients[role] for role in framework.roles]
        wanting = [client for client in clients if client.role.name not in framework.suppressed]
        unblocked = 0
        for client in wanting:
            unblocked |= client.unblocked
        too_small = [
            slave
            for slave in self._book.slaves.values()
            if slave.is_active and not self._is_worth_offering(slave.free_vector)
        ]
        last_offers = [client.last_offer_s for client in clients if client.last_offer_s is not None]
        return WaitReasons(
            since_s=max(0.0, now - max(last_offers, default=framework.since_s)),
            suppressed_roles=tuple(role for role in framework.roles if role in framework.suppressed),
            filtered_slaves=(self._open & ~unblocked).bit_count() if wanting else 0,
            too_small_slaves=len(too_small),
            too_small_by=self._least_lack(too_small),
            role_share=max((self._weighted_share(client) for client in clients), default=0.0),
            lost_to_lower_share=max((self._outbid.value(client.index) for client in clients), default=0),
            no_slaves=not self._book.slaves,
        )

    def check(self) -> None:
        """Compare all that is kept twice.

        Raises:
            InvariantError: something differs; names it.
        """
        faults = self._book.check() + self._check_pairs()
        live = [client for client in self._book.clients if client and client.is_live]
        if bits_of(client.index for client in live) != self._live:
            faults.append(f"live clients are {[client.name for client in live]}, their bits {self._live:b}")
        if not self._book.is_remeasured:
            faults += self._ranking.check(live, self._book.lowered)
        if faults:
            raise InvariantError("; ".join(faults))

    # Private

    def _slave(self, slave_id: SlaveId) -> Slave:
        slave = self._book.slaves.get(slave_id)
        if slave is None:
            raise InvariantError(f"slave {slave_id} is not known to the allocator")
        return slave

    def _registered(self, framework_id: FrameworkId) -> Framework:
        framework = self._book.frameworks.get(framework_id)
        if framework is None or not framework.is_registered:
            raise InvariantError(f"framework {framework_id} is not known to the allocator")
        return framework

    def _charge(self, framework_id: FrameworkId, role: str, slave: Slave, resources: Resources) -> None:
        if not resources:
            return
        client = self._book.client(self._book.framework(framework_id), role)
        try:
            self._book.take(client, slave, resources)
        finally:
            self._book.forget_if_idle(client)  # Where the charge is refused, it may have been made for nothing.

    def _refuse(self, client: Client, slave: Slave, refused: Resources, now: float, refuse_s: float) -> None:
        length_s = min(max(refuse_s, self._config.min_refuse_s), REFUSE_LIMIT_S)
        if length_s <= 0:
            return
        if (now, length_s) != self._burst:
            self._burst = (now, length_s)
            self._burst_end = filter_end(now, length_s)
        until = self._burst_end
        if slave.free is refused:
            # All that the slave has was refused: barred at once, since the next round would find no more.
            self._book.bar(client, slave)
        else:
            client.filtered |= slave.bit
        if slave.refusals.add(refused, until, client.bit):
            slots = self._slots_by_end.get(until)
            if slots is None:
                slots = self._slots_by_end[until] = {}
                heapq.heappush(self._ends, until)
            slots[slave.slot] = None

    def _refresh_live(self, framework: Framework) -> None:
        for role, client in list(framework.clients.items()):
            is_live = framework.is_active and role in framework.roles and role not in framework.suppressed
            if is_live and not client.is_live:
                client.is_live = True
                self._live |= client.bit
                self._outbid.clear(client.bit)
                self._awakened[client] = None
                self._ranking.lower(client)
            elif client.is_live and not is_live:
                client.is_live = False
                self._live &= ~client.bit
                self._awakened.pop(client, None)
                self._ranking.remove(client)
            self._book.forget_if_idle(client)

    def _end_filters(self, now: float) -> None:
        while self._ends and self._ends[0] <= now:
            for slot in self._slots_by_end.pop(heapq.heappop(self._ends)):
                slave = self._book.slots[slot]
                if slave is not None and slave.refusals.expire(now):
                    self._book.changed[slot] = None

    def _remeasure(self) -> None:
        """Bring the ranking up to date with totals and shares that changed since the last round."""
        book = self._book
        if book.is_remeasured:
            book.is_remeasured = False
            for role in book.roles.values():
                role.share = -1
            for client in book.clients:
                if client is not None:
                    client.share = -1
            self._ranking.rebuild([client for client in book.clients if client and client.is_live])
        else:
            for client in book.lowered:
                if client.is_live:
                    self._ranking.lower(client)
                else:
                    self._ranking.lower_role(client.role)
        book.lowered.clear()

    def _find_pairs(self) -> tuple[int, int]:
        """Return the slots that some live client may be offered, and the clients that may be offered one."""
        book = self._book
        live = self._live
        takers = 0
        opened: list[int] = []
        takeable: list[int] = []
        for slot in book.changed:
            slave = book.slot(slot)
            if not slave.is_active or not self._is_worth_offering(slave.free_vector):
                continue
            opened.append(slot)
            blocked = slave.refusals.blocked(slave.free)
            if blocked != slave.blocked:
                book.set_blocked(slave, blocked)
            here = live ^ (live & blocked)
            if here:
                takeable.append(slot)
                if here != takers:
                    takers |= here
        self._open = (self._open & ~bits_of(book.changed)) | bits_of(opened)
        book.changed.clear()
        takeable_bits = bits_of(takeable)
        for client in self._awakened:
            candidates = self._open & client.unblocked
            if candidates:
                takers |= client.bit
                takeable_bits |= candidates
        self._awakened.clear()
        return takeable_bits, takers

    def _is_worth_offering(self, free: Vector) -> bool:
        return free[CPUS_INDEX] >= self._config.min_cpus_milli or free[MEM_INDEX] >= self._config.min_mem_milli

    def _fill(self, ranking: Ranking, takeable: int, takers: int, now: float) -> list[Allocation]:
        """Make offers in the order of `ranking` until no client can take any slave of `takeable`."""
        allocations: list[Allocation] = []
        given = 0
        left = takeable
        while left:
            client = ranking.lowest()
            if client is None:
                break
            candidates = left & client.unblocked
            if not candidates:
                ranking.park(client)
                continue
            slot = self._pick(candidates)
            left ^= 1 << slot
            given |= client.bit
            allocations.append(self._offer(client, self._book.slot(slot), now))
        ranking.unpark()
        self._open ^= takeable ^ left
        self._outbid.clear(given)
        self._outbid.count(takers & ~given)
        return allocations

    def _pick(self, candidates: int) -> int:
        """Return a member of `candidates` from a random place on: spread, not exactly uniform."""
        start = int(self._rng.random() * candidates.bit_length())
        rest = candidates >> start
        near = rest & _WINDOW
        if near:
            return start + (near & -near).bit_length() - 1
        return start + (rest ^ (rest - 1)).bit_length() - 1

    def _offer(self, client: Client, slave: Slave, now: float) -> Allocation:
        resources = self._book.take_all_free(client, slave)
        self._offer_number += 1
        client.offer_number = client.role.offer_number = self._offer_number
        client.last_offer_s = now
        return Allocation(client.framework.framework_id, client.role.name, slave.slave_id, resources)

    def _weighted_share(self, client: Client) -> float:
        role = client.role
        return self._book.measure.share(role.held) * MILLI / (self._book.measure.scale * role.weight_milli)

    def _least_lack(self, too_small: list[Slave]) -> Resources:
        """Return what the slave that comes closest to the smallest offer lacks of it."""
        if not too_small:
            return Resources()
        min_cpus, min_mem = self._config.min_cpus_milli, self._config.min_mem_milli
        cpus = min_cpus - max(slave.free_vector[CPUS_INDEX] for slave in too_small)
        mem = min_mem - max(slave.free_vector[MEM_INDEX] for slave in too_small)
        return Resources({"cpus": cpus}) if cpus * min_mem <= mem * min_cpus else Resources({"mem": mem})

    def _check_pairs(self) -> list[str]:
        faults = []
        awakened = bits_of(client.index for client in self._awakened)
        for slave in self._book.slaves.values():
            unnoted = [end for end in slave.refusals.ends() if slave.slot not in self._slots_by_end.get(end, {})]
            if unnoted:
                faults.append(f"filters on slave {slave.slave_id} would not end: {sorted(unnoted)}")
            if slave.slot in self._book.changed:
                continue
            is_open = slave.is_active and self._is_worth_offering(slave.free_vector)
            if is_open != bool(self._open & slave.bit):
                faults.append(f"slave {slave.slave_id} has something to offer: {is_open}, noted otherwise")
            blocked = slave.refusals.blocked(slave.free)
            if is_open and blocked != slave.blocked:
                faults.append(f"slave {slave.slave_id} is refused by {blocked:b}, noted are {slave.blocked:b}")
            if is_open and self._live & ~blocked & ~awakened:
                faults.append(f"slave {slave.slave_id} is free, and a client was not offered it")
        if sorted(self._ends) != sorted(self._slots_by_end):
            faults.append("the ends of filters differ from their heap")
        return faults
