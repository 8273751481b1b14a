"""Who holds what on which slave: the allocator's accounts.

For every slave, at all times, what the clients hold and what is free add up to its total, exactly.
A client is one role of one framework. The only exception is a slave whose total shrank below what
its tasks hold: then free is what the tasks leave of it, and the slave counts as overcommitted.
"""

from operator import add, sub
from typing import Final

from master.allocator.bits import bits_of, members
from master.allocator.filters import Refusals
from master.allocator.measure import Measure, Vector
from meseta.errors import InvariantError
from meseta.ids import FrameworkId, SlaveId
from meseta.resources import Resources, sum_resources

EMPTY: Final = Resources()
DEFAULT_WEIGHT_MILLI: Final = 1000
# What a client holds on a slave is kept as the pieces it came in, so that an offer that comes back whole
# costs no arithmetic; so many pieces are merged into one.
_PIECES_LIMIT: Final = 8
_FIRST_CAPACITY: Final = 64


class Role:
    """A role that has clients."""

    __slots__ = ("clients", "held", "name", "offer_number", "order", "share", "weight_milli")

    def __init__(self, name: str, order: int, weight_milli: int, held: Vector) -> None:
        self.name = name
        self.order = order
        self.weight_milli = weight_milli
        self.held = held
        self.share = -1  # Weighted; -1: to be computed.
        self.offer_number = 0  # Of the last offer to one of its clients; they rise.
        self.clients: dict[int, Client] = {}  # By order.


class Client:
    """One role of one framework: what it holds, and which slaves it may be offered."""

    __slots__ = (
        "bit",
        "filtered",
        "framework",
        "held",
        "index",
        "is_live",
        "last_offer_s",
        "offer_number",
        "order",
        "role",
        "share",
        "slots",
        "unblocked",
    )

    def __init__(self, framework: "Framework", role: Role, *, order: int, index: int, unblocked: int) -> None:
        self.framework = framework
        self.role = role
        self.order = order
        self.index = index
        self.bit = 1 << index
        self.held: Vector = (0,) * len(role.held)
        self.share = -1
        self.offer_number = 0
        self.last_offer_s: float | None = None
        self.is_live = False  # Registered, active, not suppressed.
        self.slots: dict[int, None] = {}  # Slaves on which it holds something.
        self.unblocked = unblocked  # Bits of the slaves that no filter forbids it.
        self.filtered = 0  # Bits of further slaves on which it may have filters, broken or ended ones included.

    def __lt__(self, other: object) -> bool:
        return False  # Reached only by two equal entries of one client in a heap, of which one is stale.

    @property
    def name(self) -> str:
        """For texts that people read."""
        return f"{self.framework.framework_id} in role {self.role.name}"


class Framework:
    """A framework by its clients; not registered: it is known only by what it holds."""

    __slots__ = ("clients", "framework_id", "is_active", "is_registered", "roles", "since_s", "suppressed")

    def __init__(self, framework_id: FrameworkId) -> None:
        self.framework_id = framework_id
        self.is_registered = False
        self.is_active = False
        self.since_s = 0.0  # When it was registered.
        self.roles: tuple[str, ...] = ()
        self.suppressed: dict[str, None] = {}
        self.clients: dict[str, Client] = {}  # By role; also roles it has left but still holds something in.


class Slave:
    """A slave: its total, what is free of it, who holds the rest, who has refused it."""

    __slots__ = (
        "bit",
        "blocked",
        "free",
        "free_vector",
        "given",
        "given_vector",
        "holdings",
        "is_active",
        "is_overcommitted",
        "refusals",
        "slave_id",
        "slot",
        "total",
    )

    def __init__(self, slave_id: SlaveId, slot: int, total: Resources, free_vector: Vector) -> None:
        self.slave_id = slave_id
        self.slot = slot
        self.bit = 1 << slot
        self.total = total
        self.free = total
        self.free_vector = free_vector
        self.given = EMPTY  # What was offered last: mostly it comes back whole.
        self.given_vector: Vector = ()
        self.is_active = True
        self.is_overcommitted = False
        self.holdings: dict[Client, list[Resources]] = {}
        self.refusals = Refusals()
        self.blocked = 0  # Bits of the clients whose `unblocked` lacks this slave.

    def allocated(self) -> Resources:
        """Return the sum of what all clients hold here."""
        return sum_resources([piece for pieces in self.holdings.values() for piece in pieces])


class Book:
    """The accounts. Notes in `changed` and `lowered` what the next allocation has to look at."""

    def __init__(self) -> None:
        self.measure = Measure()
        self.slaves: dict[SlaveId, Slave] = {}
        self.slots: list[Slave | None] = []
        self.frameworks: dict[FrameworkId, Framework] = {}
        self.clients: list[Client | None] = []  # By index.
        self.roles: dict[str, Role] = {}
        self.weights_milli: dict[str, int] = {}  # Of roles with and without clients.
        self.changed: dict[int, None] = {}  # Slots of slaves whose free resources, state or filters changed.
        self.lowered: dict[Client, None] = {}  # Clients that hold less than when they were ranked.
        self.is_remeasured = False  # The cluster's totals changed, and with them all shares.
        self._free_slots: list[int] = []
        self._free_indices: list[int] = []
        self._order = 0
        self._capacity = _FIRST_CAPACITY
        self.all_slots = (1 << _FIRST_CAPACITY) - 1

    # Slaves

    def add_slave(self, slave_id: SlaveId, total: Resources) -> Slave:
        """Open the account of a slave, all of it free."""
        self._learn(total)
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot = len(self.slots)
            self.slots.append(None)
            if slot >= self._capacity:
                self._grow_capacity()
        slave = Slave(slave_id, slot, total, self.measure.vector(total))
        self.slots[slot] = slave
        self.slaves[slave_id] = slave
        self.measure.grow(total)
        self.is_remeasured = True
        self.changed[slot] = None
        return slave

    def update_total(self, slave: Slave, total: Resources) -> None:
        """Change what a slave has; what is held stays held."""
        self._learn(total)
        self.measure.shrink(slave.total)
        self.measure.grow(total)
        self.is_remeasured = True
        slave.total = total
        self._recompute_free(slave)

    def remove_slave(self, slave: Slave) -> None:
        """Close the account of a slave; what was held there is forgotten."""
        for client in list(slave.holdings):
            for piece in slave.holdings[client]:
                self._discharge(client, self.measure.vector(piece))
            del client.slots[slave.slot]
            self.forget_if_idle(client)
        self.set_blocked(slave, 0)
        del self.slaves[slave.slave_id]
        self.slots[slave.slot] = None
        self._free_slots.append(slave.slot)
        self.changed.pop(slave.slot, None)
        self.measure.shrink(slave.total)
        self.is_remeasured = True

    def bar(self, client: Client, slave: Slave) -> None:
        """Record that one client, with a filter on the slave, may not be offered it."""
        if not slave.blocked & client.bit:
            slave.blocked |= client.bit
            client.unblocked ^= slave.bit

    def set_blocked(self, slave: Slave, blocked: int) -> None:
        """Record which clients may not be offered the slave, on both sides."""
        bit = slave.bit
        differing = slave.blocked ^ blocked
        while differing:  # Not through `members`: mostly it is one client, and this runs for each decline.
            rest = differing & (differing - 1)
            client = self.clients[(differing ^ rest).bit_length() - 1]
            if client is not None:
                client.unblocked ^= bit
                if client.unblocked & bit:
                    client.filtered |= bit  # Its filter may be broken and not ended.
            differing = rest
        slave.blocked = blocked

    # Holdings

    def take(self, client: Client, slave: Slave, resources: Resources) -> None:
        """Let a client hold `resources` of a slave, whether they are free or not (then it is overcommitted).

        Raises:
            ValueError: another holds one of the same ranges or set items there; nothing has changed.
        """
        self._learn(resources)
        try:
            free = None if slave.is_overcommitted else slave.free - resources
        except ValueError:
            free = None
        if free is not None:
            self._hold(client, slave, resources)
            slave.free = free
            slave.free_vector = self.measure.vector(free)
        else:
            _ = slave.allocated() + resources  # Raises what the docstring promises.
            self._hold(client, slave, resources)
            self._recompute_free(slave)
        self._charge(client, self.measure.vector(resources))
        self.changed[slave.slot] = None

    def take_all_free(self, client: Client, slave: Slave) -> Resources:
        """Let a client hold all that is free on a slave, and return it."""
        resources = slave.given = slave.free
        vector = slave.given_vector = slave.free_vector
        slave.free = EMPTY
        slave.free_vector = self.measure.zero
        # Not through `_hold` and `_charge`: this runs for each offer.
        pieces = slave.holdings.get(client)
        if pieces is None:
            slave.holdings[client] = [resources]
            client.slots[slave.slot] = None
        elif len(pieces) < _PIECES_LIMIT:
            pieces.append(resources)
        else:
            slave.holdings[client] = [sum_resources(pieces) + resources]
        client.held = tuple(map(add, client.held, vector))
        client.share = -1
        role = client.role
        role.held = tuple(map(add, role.held, vector))
        role.share = -1
        return resources

    def give_back(self, client: Client, slave: Slave, resources: Resources) -> None:
        """Take `resources` of a slave back from a client.

        Raises:
            InvariantError: the client does not hold them.
        """
        self._release(client, slave, resources)
        vector = slave.given_vector if resources is slave.given else self.measure.vector(resources)
        self._discharge(client, vector)
        if slave.is_overcommitted:
            self._recompute_free(slave)
        elif slave.free:
            slave.free = slave.free + resources
            slave.free_vector = tuple(map(add, slave.free_vector, vector))
        else:
            slave.free = resources
            slave.free_vector = vector
        self.changed[slave.slot] = None

    def give_all_back(self, client: Client) -> None:
        """Take back all that a client holds anywhere."""
        for slot in list(client.slots):
            slave = self.slot(slot)
            self.give_back(client, slave, sum_resources(slave.holdings[client]))

    # Clients

    def framework(self, framework_id: FrameworkId) -> Framework:
        """Return the framework, made if it is not known."""
        framework = self.frameworks.get(framework_id)
        if framework is None:
            framework = self.frameworks[framework_id] = Framework(framework_id)
        return framework

    def client(self, framework: Framework, role_name: str) -> Client:
        """Return the framework's client in a role, made if there is none."""
        client = framework.clients.get(role_name)
        if client is not None:
            return client
        role = self.roles.get(role_name)
        if role is None:
            weight_milli = self.weights_milli.get(role_name, DEFAULT_WEIGHT_MILLI)
            role = self.roles[role_name] = Role(role_name, self._next_order(), weight_milli, self.measure.zero)
        if self._free_indices:
            index = self._free_indices.pop()
        else:
            index = len(self.clients)
            self.clients.append(None)
        client = Client(framework, role, order=self._next_order(), index=index, unblocked=self.all_slots)
        self.clients[index] = client
        framework.clients[role_name] = client
        role.clients[client.order] = client
        return client

    def forget_if_idle(self, client: Client) -> None:
        """Forget a client that holds nothing and whose framework does not want its role."""
        framework = client.framework
        role = client.role
        if client.slots or (framework.is_registered and role.name in framework.roles):
            return
        self.forget_filters(client)
        del framework.clients[role.name]
        del role.clients[client.order]
        self.clients[client.index] = None
        self._free_indices.append(client.index)
        if not role.clients:
            del self.roles[role.name]
        if not framework.clients and not framework.is_registered:
            del self.frameworks[framework.framework_id]

    def forget_filters(self, client: Client) -> None:
        """Drop all filters of a client."""
        for slot in members(client.filtered | (self.all_slots ^ client.unblocked)):
            slave = self.slots[slot]
            if slave is not None:
                slave.refusals.forget(client.bit)
                slave.blocked &= ~client.bit
        client.filtered = 0
        client.unblocked = self.all_slots

    def slot(self, slot: int) -> Slave:
        """Return the slave in a slot that is in use."""
        slave = self.slots[slot]
        if slave is None:
            raise InvariantError(f"slot {slot} holds no slave")
        return slave

    # Checks

    def check(self) -> list[str]:
        """Return what contradicts itself in the accounts; empty if all is well."""
        faults = self._check_slaves() + self._check_clients()
        totals = self._sum([self.measure.vector(slave.total) for slave in self.slaves.values()])
        if totals != self.measure.totals:
            faults.append(f"the cluster's totals are {self.measure.totals}, its slaves have {totals}")
        for role in self.roles.values():
            held = self._sum([client.held for client in role.clients.values()])
            if not role.clients or held != role.held:
                faults.append(f"role {role.name} holds {role.held}, its clients hold {held}")
        return faults

    # Private

    def _check_slaves(self) -> list[str]:
        faults = []
        if sorted(slave.slot for slave in self.slots if slave) != sorted(one.slot for one in self.slaves.values()):
            faults.append("slots and slaves differ")
        for slave in self.slaves.values():
            held = slave.allocated()
            free = held.shortfall(slave.total)
            if slave.free != free or slave.free_vector != self.measure.vector(free):
                faults.append(f"slave {slave.slave_id} has {slave.free} free, its total leaves {free}")
            if slave.is_overcommitted != (not held <= slave.total):
                faults.append(f"slave {slave.slave_id} is overcommitted: {slave.is_overcommitted}")
            blocked = bits_of(one.index for one in self.clients if one and not one.unblocked & slave.bit)
            if blocked != slave.blocked:
                faults.append(f"slave {slave.slave_id} is barred to {slave.blocked:b}, its clients say {blocked:b}")
        return faults

    def _check_clients(self) -> list[str]:
        faults = []
        listed = [client for framework in self.frameworks.values() for client in framework.clients.values()]
        if sorted(one.order for one in listed) != sorted(one.order for one in self.clients if one):
            faults.append("clients of frameworks and clients by index differ")
        for client in listed:
            if not client.slots and client.role.name not in client.framework.roles:
                faults.append(f"{client.name} holds nothing, is not wanted and not forgotten")
            slots = [slave.slot for slave in self.slaves.values() if client in slave.holdings]
            if sorted(slots) != sorted(client.slots):
                faults.append(f"{client.name} holds something on slots {slots}, noted are {list(client.slots)}")
            pieces = [piece for slot in slots for piece in self.slot(slot).holdings[client]]
            held = self._sum([self.measure.vector(piece) for piece in pieces])
            if held != client.held:
                faults.append(f"{client.name} holds {held} by slaves, {client.held} in sum")
            if client.share >= 0 and not self.is_remeasured and client.share != self.measure.share(held):
                faults.append(f"{client.name} has an outdated share")
            filtered = bits_of(one.slot for one in self.slaves.values() if one.refusals.clients() & client.bit)
            if filtered & ~client.filtered & client.unblocked:
                faults.append(f"{client.name} has filters that are not noted: {filtered & ~client.filtered:b}")
        return faults

    def _sum(self, vectors: list[Vector]) -> Vector:
        return tuple(map(sum, zip(self.measure.zero, *vectors, strict=True)))

    def _hold(self, client: Client, slave: Slave, resources: Resources) -> None:
        pieces = slave.holdings.get(client)
        if pieces is None:
            slave.holdings[client] = [resources]
            client.slots[slave.slot] = None
        elif len(pieces) < _PIECES_LIMIT:
            pieces.append(resources)
        else:
            slave.holdings[client] = [sum_resources(pieces) + resources]

    def _release(self, client: Client, slave: Slave, resources: Resources) -> None:
        pieces = slave.holdings.get(client)
        if pieces is None:
            raise InvariantError(f"{client.name} holds nothing on slave {slave.slave_id}")
        for position, piece in enumerate(pieces):
            if piece is resources:
                del pieces[position]
                break
        else:
            try:
                left = sum_resources(pieces) - resources
            except ValueError as error:
                raise InvariantError(
                    f"{client.name} holds less than {resources} on slave {slave.slave_id}: {error}"
                ) from error
            pieces[:] = [left] if left else []
        if not pieces:
            del slave.holdings[client]
            del client.slots[slave.slot]

    def _charge(self, client: Client, vector: Vector) -> None:
        client.held = tuple(map(add, client.held, vector))
        client.share = -1
        role = client.role
        role.held = tuple(map(add, role.held, vector))
        role.share = -1

    def _discharge(self, client: Client, vector: Vector) -> None:
        client.held = tuple(map(sub, client.held, vector))
        client.share = -1
        role = client.role
        role.held = tuple(map(sub, role.held, vector))
        role.share = -1
        self.lowered[client] = None

    def _recompute_free(self, slave: Slave) -> None:
        held = slave.allocated()
        slave.free = held.shortfall(slave.total)
        slave.free_vector = self.measure.vector(slave.free)
        slave.is_overcommitted = not held <= slave.total
        self.changed[slave.slot] = None

    def _learn(self, resources: Resources) -> None:
        measure = self.measure
        if not measure.learn(resources):
            return
        for slave in self.slaves.values():
            slave.free_vector = measure.padded(slave.free_vector)
            slave.given_vector = measure.padded(slave.given_vector)
        for client in self.clients:
            if client is not None:
                client.held = measure.padded(client.held)
        for role in self.roles.values():
            role.held = measure.padded(role.held)

    def _grow_capacity(self) -> None:
        """Double the slots, so that adding slaves one by one touches the clients rarely."""
        added = ((1 << self._capacity) - 1) << self._capacity
        self._capacity *= 2
        self.all_slots |= added
        for client in self.clients:
            if client is not None:
                client.unblocked |= added

    def _next_order(self) -> int:
        self._order += 1
        return self._order
