"""What frameworks refused of one slave, and for how long.

A refusal suppresses an offer of the slave if and only if what would be offered is contained in what
was refused: more resources on the slave break it, fewer do not. Equal refusals of many clients that
end together are one set of bits, so that a thousand filters on a slave cost less than one object each.
"""

import math
from typing import Final

from meseta.resources import Resources

# Distinct refused amounts kept for a slave. One framework that keeps declining what its tasks leave,
# each time for a year, would otherwise fill the memory and make each change of the slave slower.
# Over it the refusal that ends first is dropped: its framework is offered the slave too early.
REFUSAL_LIMIT: Final = 64
# Filters end together at multiples of 1/64 of the power of two below their length: at most 1/64
# later than asked. So a burst of declines is one set of bits and one deadline, not a thousand.
_STEPS_PER_DOUBLING: Final = 64


def filter_end(now: float, length_s: float) -> float:
    """Return when a filter of `length_s` set at `now` ends: never early, at most 1/64 of its length late."""
    _, exponent = math.frexp(length_s)
    step_s = math.ldexp(1.0, exponent - 1) / _STEPS_PER_DOUBLING
    return math.ceil((now + length_s) / step_s) * step_s


class Refusals:
    """All filters on one slave. Clients are bits."""

    def __init__(self) -> None:
        self._refusals: list[_Refusal] = []

    def __bool__(self) -> bool:
        return bool(self._refusals)

    def add(self, refused: Resources, until: float, client: int) -> bool:
        """Set a filter for the bit `client`; True if it is the first on this slave to end at `until`."""
        is_first = True
        found = None
        for refusal in self._refusals:
            if until in refusal.clients_by_until:
                is_first = False
            if refusal.refused is refused or refusal.refused == refused:
                found = refusal
        if found is None:
            if len(self._refusals) >= REFUSAL_LIMIT:
                self._refusals.remove(min(self._refusals, key=lambda one: max(one.clients_by_until)))
            found = _Refusal(refused)
            self._refusals.append(found)
        found.clients |= client
        found.clients_by_until[until] = found.clients_by_until.get(until, 0) | client
        return is_first

    def expire(self, now: float) -> bool:
        """Drop the filters that end at `now` or before; True if there were any."""
        had_any = False
        for refusal in self._refusals:
            ended = [until for until in refusal.clients_by_until if until <= now]
            for until in ended:
                del refusal.clients_by_until[until]
            if ended:
                had_any = True
                refusal.recount()
        if had_any:
            self._drop_empty()
        return had_any

    def forget(self, client: int) -> bool:
        """Drop all filters of the bit `client`; True if there were any."""
        had_any = False
        for refusal in self._refusals:
            if refusal.clients & client:
                had_any = True
                kept = {until: clients & ~client for until, clients in refusal.clients_by_until.items()}
                refusal.clients_by_until = {until: clients for until, clients in kept.items() if clients}
                refusal.recount()
        if had_any:
            self._drop_empty()
        return had_any

    def blocked(self, offered: Resources) -> int:
        """Return the bits of all clients to which an offer of `offered` is suppressed."""
        blocked = 0
        for refusal in self._refusals:
            if refusal.refused is offered or offered <= refusal.refused:
                blocked |= refusal.clients
        return blocked

    def clients(self) -> int:
        """Return the bits of all clients that have a filter here, whether it suppresses or not."""
        clients = 0
        for refusal in self._refusals:
            clients |= refusal.clients
        return clients

    def ends(self) -> set[float]:
        """Return when filters on this slave end (not in order; for checks)."""
        return {until for refusal in self._refusals for until in refusal.clients_by_until}

    def _drop_empty(self) -> None:
        self._refusals = [refusal for refusal in self._refusals if refusal.clients]


class _Refusal:
    """One refused amount: who refused it, by when their filters end."""

    __slots__ = ("clients", "clients_by_until", "refused")

    def __init__(self, refused: Resources) -> None:
        self.refused = refused
        self.clients = 0
        self.clients_by_until: dict[float, int] = {}

    def recount(self) -> None:
        """Bring the union up to date."""
        self.clients = 0
        for clients in self.clients_by_until.values():
            self.clients |= clients
