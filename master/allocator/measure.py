"""Dominant shares as exact integers, and scalars as tuples in one fixed order of names.

A client's dominant share is the largest of its shares of each scalar resource of the cluster
(Ghodsi et al., Dominant Resource Fairness, NSDI 2011). With L the least common multiple of the
cluster's totals, L times a share is an integer, so shares compare without rounding.
"""

from math import lcm
from operator import add, mul, sub
from typing import Final

from meseta.resources import Resources

Vector = tuple[int, ...]  # Thousandths, in the order of `Measure.names`.

CPUS_INDEX: Final = 0
MEM_INDEX: Final = 1
WEIGHT_MILLI_LIMIT: Final = 10**9  # A weight of a million.
# Weighted shares are floor(share * 2^64 / weight). Two shares in units of 1/L, divided by weights of
# at most 10^9, differ by nothing or by more than 10^-18 > 2^-60 of a unit: the floor keeps their order.
_WEIGHT_SHIFT: Final = 64


class Measure:
    """The order of resource names, the cluster's totals in it, and the shares that follow."""

    def __init__(self) -> None:
        self.names: list[str] = ["cpus", "mem", "disk"]
        self.totals: Vector = (0, 0, 0)
        self.zero: Vector = (0, 0, 0)
        self.scale = 1  # A share of the whole cluster, in the units of `share`.
        self._multipliers: Vector = (0, 0, 0)

    def learn(self, resources: Resources) -> bool:
        """Take up names not seen before; True if there were any: older vectors must then be padded."""
        new = [name for name in resources.scalars if name not in self.names]
        if not new:
            return False
        self.names += sorted(new)
        self.zero = (0,) * len(self.names)
        self.totals = self.padded(self.totals)
        self._multipliers = self.padded(self._multipliers)
        return True

    def padded(self, vector: Vector) -> Vector:
        """Return `vector` with zeros for the names learned since it was made."""
        return vector + self.zero[len(vector) :]

    def vector(self, resources: Resources) -> Vector:
        """Return the scalars of `resources`, whose names must all be known."""
        get = resources.scalars.get
        return tuple([get(name, 0) for name in self.names])

    def grow(self, total: Resources) -> None:
        """Count a slave's `total` in."""
        self.totals = tuple(map(add, self.totals, self.vector(total)))
        self._refresh()

    def shrink(self, total: Resources) -> None:
        """Count a slave's `total` out."""
        self.totals = tuple(map(sub, self.totals, self.vector(total)))
        self._refresh()

    def share(self, held: Vector) -> int:
        """Return the dominant share of who holds `held`, in units of 1/`scale`.

        A resource of which the cluster has none (its slave is gone, its tasks are not) does not count.
        """
        share: int = max(map(mul, held, self._multipliers))
        return share

    def weighted_share(self, held: Vector, weight_milli: int) -> int:
        """Return the dominant share by weight, for comparison with other weighted shares only."""
        return (self.share(held) << _WEIGHT_SHIFT) // weight_milli

    def _refresh(self) -> None:
        self.scale = lcm(*(total for total in self.totals if total))
        self._multipliers = tuple([self.scale // total if total else 0 for total in self.totals])
