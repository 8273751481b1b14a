"""Sets of small indices as Python integers: bit i stands for index i.

Ten thousand slaves by a thousand frameworks are ten million pairs: 1.25 MB as bits, over 1 GB as
objects. And, or, xor run at memory speed.
"""

from collections.abc import Iterable, Iterator
from typing import Final

# Below this many members, taking out the lowest bit again and again beats a pass over the whole text form [measured].
_SPARSE: Final = 24
# From this many members on, one pass over a byte array beats repeated or.
_DENSE: Final = 8


def members(bits: int) -> Iterator[int]:
    """Yield the indices in `bits`, ascending."""
    if bits.bit_count() < _SPARSE:
        while bits:
            rest = bits & (bits - 1)
            yield (bits ^ rest).bit_length() - 1
            bits = rest
        return
    text = bin(bits)[:1:-1]
    index = text.find("1")
    while index >= 0:
        yield index
        index = text.find("1", index + 1)


def bits_of(indices: Iterable[int]) -> int:
    """Return the set that holds `indices`."""
    chosen = list(indices)
    if len(chosen) < _DENSE:
        bits = 0
        for index in chosen:
            bits |= 1 << index
        return bits
    field = bytearray((max(chosen) >> 3) + 1)
    for index in chosen:
        field[index >> 3] |= 1 << (index & 7)
    return int.from_bytes(field, "little")


class BitCounters:
    """One counter for each index, kept as bit planes: plane p holds bit p of every counter.

    Counting up a whole set of indices costs a few operations on integers, not one for each member.
    """

    def __init__(self) -> None:
        self._planes: list[int] = []

    def count(self, bits: int) -> None:
        """Add 1 to the counter of every member of `bits`."""
        carry = bits
        for position, plane in enumerate(self._planes):
            if not carry:
                return
            self._planes[position] = plane ^ carry
            carry &= plane
        if carry:
            self._planes.append(carry)

    def clear(self, bits: int) -> None:
        """Set the counter of every member of `bits` to 0."""
        self._planes = [plane & ~bits for plane in self._planes]

    def value(self, index: int) -> int:
        """Return the counter of `index`."""
        return sum((plane >> index & 1) << position for position, plane in enumerate(self._planes))
