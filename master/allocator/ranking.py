"""Who is next: roles by weighted dominant share, in each role its frameworks by dominant share.

Both levels are heaps whose entries are lower bounds: a share that has grown is brought up to date
when its entry reaches the top, one that has fallen must be announced through `lower`. Equal shares
go to who has waited longest since its last offer, then to who came first.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from master.allocator.book import Client, Role
from master.allocator.measure import Measure

_ClientEntry = tuple[int, int, int, Client]  # Share, number of the last offer, order of arrival.
_RoleEntry = tuple[int, int, int, "_Branch"]

# Entries that were overtaken stay in a heap until they reach the top; beyond this many it is made anew.
_STALE_ALLOWED: Final = 64
# Single pushes cost less than making the heap anew up to about this fraction of its size.
_FEW_FACTOR: Final = 8


class Ranking:
    """A set of clients in the order in which they are to be offered something.

    Ranks all live clients, or, for one round, the few that could take what there is.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._branches: dict[int, _Branch] = {}
        self._heap: list[_RoleEntry] = []
        self._parked: list[Client] = []

    def rebuild(self, clients: Iterable[Client]) -> None:
        """Rank exactly `clients`; needed when the cluster's totals or a weight changed."""
        self._branches = {}
        self._parked = []
        for client in clients:
            branch = self._branch(client.role)
            branch.insert(client)
        for branch in self._branches.values():
            heapify(branch.heap)
            branch.entry = branch.fresh_entry()
        self._heap = [branch.entry for branch in self._branches.values() if branch.entry is not None]
        heapify(self._heap)

    def lower(self, client: Client) -> None:
        """Take a client in, or note that its share, and so its role's, may have fallen."""
        branch = self._branch(client.role)
        branch.lower(client)
        self._lower_branch(branch)

    def lower_role(self, role: Role) -> None:
        """Note that the share of a role may have fallen, though those of its ranked clients have not."""
        branch = self._branches.get(role.order)
        if branch is not None:
            self._lower_branch(branch)

    def remove(self, client: Client) -> None:
        """Take a client out."""
        branch = self._branches.get(client.role.order)
        if branch is not None:
            branch.entries.pop(client.order, None)
            if not branch.entries:
                del self._branches[client.role.order]

    def lowest(self) -> Client | None:
        """Return who is next, None if all are parked."""
        heap = self._heap
        while heap:
            entry = heap[0]
            branch = entry[3]
            if branch.entry is not entry or not branch.entries:
                heappop(heap)
                continue
            role = branch.role
            # The only one left is the lowest, whatever its share.
            if len(heap) > 1 and (self._measured_role(role) != entry[0] or role.offer_number != entry[1]):
                branch.entry = branch.fresh_entry()
                heapreplace(heap, branch.entry)
                continue
            client = branch.lowest()
            if client is not None:
                return client
            heappop(heap)
            branch.entry = None
        return None

    def park(self, client: Client) -> None:
        """Set aside the client that `lowest` returned, until `unpark`."""
        heappop(self._branches[client.role.order].heap)
        self._parked.append(client)

    def unpark(self) -> None:
        """Take back all that were set aside."""
        returning: dict[int, list[Client]] = {}
        for client in self._parked:
            returning.setdefault(client.role.order, []).append(client)
        self._parked = []
        for order, clients in returning.items():
            branch = self._branches[order]
            branch.put_back(clients)
            if branch.entry is None:
                branch.entry = branch.fresh_entry()
                heappush(self._heap, branch.entry)

    def check(self, clients: list[Client], lowered: dict[Client, None]) -> list[str]:
        """Return what is wrong if exactly `clients` should be ranked; `lowered` are yet to be announced."""
        faults = []
        ranked = [order for branch in self._branches.values() for order in branch.entries]
        if sorted(ranked) != sorted(client.order for client in clients):
            faults.append(f"ranked are {sorted(ranked)}, live are {sorted(client.order for client in clients)}")
        pending_roles = {client.role.order for client in lowered}
        for branch in self._branches.values():
            role = branch.role
            if branch.entry is None or branch.entry not in self._heap:
                faults.append(f"role {role.name} has clients and is not ranked")
            elif role.order not in pending_roles and branch.entry[0] > self._measured_role(role):
                faults.append(f"role {role.name} is ranked too high")
            for entry in branch.entries.values():
                if entry not in branch.heap:
                    faults.append(f"{entry[3].name} is not in the heap of its role")
                elif entry[3] not in lowered and entry[0] > branch.measured(entry[3]):
                    faults.append(f"{entry[3].name} is ranked too high")
        return faults

    def _measured_role(self, role: Role) -> int:
        if role.share < 0:
            role.share = self._measure.weighted_share(role.held, role.weight_milli)
        return role.share

    def _branch(self, role: Role) -> "_Branch":
        branch = self._branches.get(role.order)
        if branch is None:
            branch = self._branches[role.order] = _Branch(role, self._measure)
        return branch

    def _lower_branch(self, branch: "_Branch") -> None:
        fresh = branch.fresh_entry()
        if branch.entry is None or fresh < branch.entry:
            branch.entry = fresh
            heappush(self._heap, fresh)
            if len(self._heap) > 2 * len(self._branches) + _STALE_ALLOWED:
                self._heap = [one.entry for one in self._branches.values() if one.entry is not None]
                heapify(self._heap)


class _Branch:
    """One role with a heap of its clients."""

    __slots__ = ("_measure", "entries", "entry", "heap", "role")

    def __init__(self, role: Role, measure: Measure) -> None:
        self.role = role
        self.heap: list[_ClientEntry] = []
        self.entries: dict[int, _ClientEntry] = {}  # The one valid entry of each client; others are stale.
        self.entry: _RoleEntry | None = None
        self._measure = measure

    def __lt__(self, other: object) -> bool:
        return False  # Reached only by two equal entries of one role, of which one is stale.

    def fresh_entry(self) -> _RoleEntry:
        role = self.role
        if role.share < 0:
            role.share = self._measure.weighted_share(role.held, role.weight_milli)
        return (role.share, role.offer_number, role.order, self)

    def measured(self, client: Client) -> int:
        if client.share < 0:
            client.share = self._measure.share(client.held)
        return client.share

    def insert(self, client: Client) -> None:
        """Add to the list that is to become a heap."""
        entry = (self.measured(client), client.offer_number, client.order, client)
        self.entries[client.order] = entry
        self.heap.append(entry)

    def lower(self, client: Client) -> None:
        fresh = (self.measured(client), client.offer_number, client.order, client)
        present = self.entries.get(client.order)
        if present is None or fresh < present:
            self.entries[client.order] = fresh
            heappush(self.heap, fresh)
            if len(self.heap) > 2 * len(self.entries) + _STALE_ALLOWED:
                self.heap = list(self.entries.values())
                heapify(self.heap)

    def put_back(self, clients: list[Client]) -> None:
        """Take back the present entries of `clients`, which were taken off the heap."""
        if len(clients) * _FEW_FACTOR < len(self.heap):
            for client in clients:
                heappush(self.heap, self.entries[client.order])
        else:
            self.heap += [self.entries[client.order] for client in clients]
            heapify(self.heap)

    def lowest(self) -> Client | None:
        heap = self.heap
        entries = self.entries
        while heap:
            entry = heap[0]
            client = entry[3]
            if entries.get(entry[2]) is not entry:
                heappop(heap)
                continue
            share = client.share if client.share >= 0 else self.measured(client)
            if share == entry[0] and client.offer_number == entry[1]:
                return client
            fresh = (share, client.offer_number, entry[2], client)
            entries[entry[2]] = fresh
            heapreplace(heap, fresh)
        return None
