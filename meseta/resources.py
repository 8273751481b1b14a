"""Resources: scalars, ranges and sets, with exact arithmetic.

Scalars are integers in thousandths (1.5 cpus is 1500), so that sums are exact. `mem` and `disk`
count MiB (512 MiB of mem is 512000). Ranges are inclusive at both ends, as `ports:[31000-32000]`.
A value is canonical: no zero scalar, no empty range or set; ranges sorted, disjoint and not
adjacent; sets sorted without doubles. So equal resources compare equal.
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final

import msgspec

from meseta.errors import InvalidInput

MILLI: Final = 1000
SCALAR_LIMIT_MILLI: Final = 10**15  # 10^12 whole units: sums over 10^3 slaves still fit 64 bits.
RANGE_LIMIT: Final = 2**32
_ITEM_COUNT_LIMIT: Final = 10_000  # Ranges or set items of one kind: bounds the cost of hostile messages.

RangeTuple = tuple[tuple[int, int], ...]
_Milli = Annotated[int, msgspec.Meta(ge=0, le=SCALAR_LIMIT_MILLI)]
_Bound = Annotated[int, msgspec.Meta(ge=0, le=RANGE_LIMIT)]

_BYTE_RESOURCES: Final = frozenset({"mem", "disk"})
_KIB_BY_UNIT: Final = {"KIB": 1, "MIB": 1 << 10, "GIB": 1 << 20, "TIB": 1 << 30}
# Any other name is a resource that an operator has made up; these are slips, and nobody would ever ask for them.
_MEANT: Final = {"cpu": "cpus", "core": "cpus", "cores": "cpus", "memory": "mem", "ram": "mem", "port": "ports"}
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_SCALAR: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\Z")
_RANGE: Final = re.compile(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?\Z")


class Resources(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An immutable bag of resources; see the module for its canonical form."""

    scalars: dict[str, _Milli] = {}
    ranges: dict[str, tuple[tuple[_Bound, _Bound], ...]] = {}
    sets: dict[str, tuple[str, ...]] = {}

    def __post_init__(self) -> None:
        scalars = self.scalars
        if scalars and 0 in scalars.values():
            msgspec.structs.force_setattr(self, "scalars", {k: v for k, v in scalars.items() if v})
        if self.ranges:
            ranges = {name: canonical_ranges(pieces) for name, pieces in self.ranges.items()}
            msgspec.structs.force_setattr(self, "ranges", {k: v for k, v in ranges.items() if v})
        if self.sets:
            sets = {name: tuple(sorted(set(items))) for name, items in self.sets.items()}
            msgspec.structs.force_setattr(self, "sets", {k: v for k, v in sets.items() if v})

    def __bool__(self) -> bool:
        return bool(self.scalars or self.ranges or self.sets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Resources):
            return NotImplemented
        return self.scalars == other.scalars and self.ranges == other.ranges and self.sets == other.sets

    def __hash__(self) -> int:
        return hash(
            (
                frozenset(self.scalars.items()),
                frozenset(self.ranges.items()),
                frozenset(self.sets.items()),
            )
        )

    def __add__(self, other: "Resources") -> "Resources":
        """Return the sum. Raises ValueError where ranges or sets overlap: one port cannot be held twice."""
        scalars = dict(self.scalars)
        for name, amount in other.scalars.items():
            scalars[name] = scalars.get(name, 0) + amount
        if not (other.ranges or other.sets):
            return Resources(scalars, self.ranges, self.sets)
        ranges = dict(self.ranges)
        for name, pieces in other.ranges.items():
            ranges[name] = _add_ranges(name, ranges.get(name, ()), pieces)
        sets = dict(self.sets)
        for name, items in other.sets.items():
            held = sets.get(name, ())
            if not set(held).isdisjoint(items):
                raise ValueError(f"{name}: {sorted(set(held) & set(items))} would be held twice")
            sets[name] = held + items
        return Resources(scalars, ranges, sets)

    def __sub__(self, other: "Resources") -> "Resources":
        """Return the difference. Raises ValueError unless `other <= self`."""
        scalars = dict(self.scalars)
        for name, amount in other.scalars.items():
            left = scalars.get(name, 0) - amount
            if left < 0:
                raise ValueError(f"{name}: cannot take {format_milli(amount)} from {format_milli(left + amount)}")
            scalars[name] = left
        if not (other.ranges or other.sets):
            return Resources(scalars, self.ranges, self.sets)
        ranges = dict(self.ranges)
        for name, pieces in other.ranges.items():
            held = ranges.get(name, ())
            if not _ranges_contain(held, pieces):
                raise ValueError(f"{name}: {_format_ranges(pieces)} is not within {_format_ranges(held)}")
            ranges[name] = _subtract_ranges(held, pieces)
        sets = dict(self.sets)
        for name, items in other.sets.items():
            if not set(items) <= set(sets.get(name, ())):
                raise ValueError(f"{name}: {list(items)} is not within {list(sets.get(name, ()))}")
            sets[name] = tuple(item for item in sets[name] if item not in items)
        return Resources(scalars, ranges, sets)

    def __le__(self, other: "Resources") -> bool:
        """True if all of this is contained in `other` (a partial order)."""
        held = other.scalars
        for name, amount in self.scalars.items():
            if held.get(name, 0) < amount:
                return False
        for name, pieces in self.ranges.items():
            if not _ranges_contain(other.ranges.get(name, ()), pieces):
                return False
        return all(set(items) <= set(other.sets.get(name, ())) for name, items in self.sets.items())

    def __ge__(self, other: "Resources") -> bool:
        return other <= self

    def shortfall(self, wanted: "Resources") -> "Resources":
        """Return what of `wanted` is missing here; empty if it fits."""
        scalars = {
            name: amount - self.scalars.get(name, 0)
            for name, amount in wanted.scalars.items()
            if amount > self.scalars.get(name, 0)
        }
        ranges = {name: _subtract_ranges(pieces, self.ranges.get(name, ())) for name, pieces in wanted.ranges.items()}
        sets = {
            name: tuple(item for item in items if item not in self.sets.get(name, ()))
            for name, items in wanted.sets.items()
        }
        return Resources(scalars, ranges, sets)

    def get(self, name: str) -> int:
        """Return scalar `name` in thousandths, 0 if there is none."""
        return self.scalars.get(name, 0)

    def __str__(self) -> str:
        """Return the text form; `parse_resources` reads it back to an equal value."""
        parts = [f"{name}:{format_scalar(name, amount)}" for name, amount in sorted(self.scalars.items())]
        parts += [f"{name}:{_format_ranges(pieces)}" for name, pieces in sorted(self.ranges.items())]
        parts += [f"{name}:{{{','.join(items)}}}" for name, items in sorted(self.sets.items())]
        return ";".join(parts)


def resources(*, cpus: float = 0, mem_mib: float = 0, disk_mib: float = 0) -> Resources:
    """Return resources from plain numbers, rounded to thousandths."""
    return Resources({"cpus": round(cpus * MILLI), "mem": round(mem_mib * MILLI), "disk": round(disk_mib * MILLI)})


def sum_resources(many: "list[Resources] | tuple[Resources, ...]") -> Resources:
    """Return the sum of `many`."""
    total = Resources()
    for one in many:
        total = total + one
    return total


def parse_resources(text: str, *, field: str = "resources") -> Resources:
    """Read the text form, as `cpus:2;mem:4GiB;ports:[31000-32000];gpus:{a,b}`.

    `mem` and `disk` take KiB, MiB, GiB or TiB; bare numbers are MiB. More than three decimals are
    refused, since they could not be exact.

    Raises:
        InvalidInput: names `field`, the part and what it should look like.
    """
    scalars: dict[str, int] = {}
    ranges: dict[str, RangeTuple] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        if not colon or not _NAME.match(name):
            raise InvalidInput(f"{field}: {part!r} is not NAME:VALUE, as in cpus:2;mem:4GiB;ports:[31000-32000]")
        if name.lower() in _MEANT:
            raise InvalidInput(f"{field}: {name} is not how a resource is called; write {_MEANT[name.lower()]}")
        if name in scalars or name in ranges or name in sets:
            raise InvalidInput(f"{field}: {name} is given twice; give each resource once")
        if value.startswith("["):
            ranges[name] = _parse_ranges(field, name, value)
        elif value.startswith("{"):
            sets[name] = _parse_set(field, name, value)
        else:
            scalars[name] = parse_scalar(name, value, field=field)
    try:
        return Resources(scalars, ranges, sets)
    except ValueError as error:
        raise InvalidInput(f"{field}: {error}") from error


def parse_scalar(name: str, text: str, *, field: str = "resources") -> int:
    """Read one quantity into thousandths: `2`, `0.5`, for mem and disk also `512MiB`.

    Raises:
        InvalidInput: no such number or unit, too many decimals, or too large.
    """
    match = _SCALAR.match(text.strip())
    if match is None:
        raise InvalidInput(f"{field}: {name}:{text} is no quantity; write a number such as {_example(name)}")
    number, unit = match.groups()
    try:
        milli = Decimal(number) * MILLI
    except InvalidOperation as error:  # pragma: no cover - the pattern admits numbers only
        raise InvalidInput(f"{field}: {name}:{text} is no number") from error
    if unit:
        kib = _KIB_BY_UNIT.get(unit.upper())
        if kib is None or name not in _BYTE_RESOURCES:
            allowed = "KiB, MiB, GiB or TiB" if name in _BYTE_RESOURCES else "no unit"
            raise InvalidInput(f"{field}: {name}:{text} has unit {unit!r}; {name} takes {allowed}")
        milli = milli * kib / 1024
    if milli != int(milli):
        raise InvalidInput(f"{field}: {name}:{text} is finer than a thousandth; round it to three decimals")
    if milli > SCALAR_LIMIT_MILLI:
        raise InvalidInput(f"{field}: {name}:{text} is over the limit of {SCALAR_LIMIT_MILLI // MILLI}")
    return int(milli)


def format_milli(amount_milli: int) -> str:
    """Return thousandths as a decimal number without trailing zeros: 1500 is `1.5`."""
    whole, rest = divmod(amount_milli, MILLI)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)


def format_scalar(name: str, amount_milli: int) -> str:
    """Return a quantity for people, exact: mem and disk in the largest binary unit that leaves no rest."""
    if name not in _BYTE_RESOURCES:
        return format_milli(amount_milli)
    for unit, mib in (("TiB", 1 << 20), ("GiB", 1 << 10)):
        if amount_milli % (mib * MILLI) == 0:
            return f"{amount_milli // (mib * MILLI)}{unit}"
    return f"{format_milli(amount_milli)}MiB"


def canonical_ranges(pieces: RangeTuple) -> RangeTuple:
    """Return sorted, disjoint, non-adjacent ranges that cover the same numbers.

    Raises:
        ValueError: a range ends before it starts, or there are too many.
    """
    if len(pieces) > _ITEM_COUNT_LIMIT:
        raise ValueError(f"{len(pieces)} ranges are over the limit of {_ITEM_COUNT_LIMIT}")
    result: list[tuple[int, int]] = []
    for begin, end in sorted(pieces):
        if end < begin:
            raise ValueError(f"range {begin}-{end} ends before it starts")
        if result and begin <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return tuple(result)


def take_from_ranges(pieces: RangeTuple, count: int) -> RangeTuple | None:
    """Return the `count` lowest numbers of `pieces` as ranges, None if there are fewer."""
    taken: list[tuple[int, int]] = []
    for begin, end in pieces:
        if count <= 0:
            break
        stop = min(end, begin + count - 1)
        taken.append((begin, stop))
        count -= stop - begin + 1
    return tuple(taken) if count <= 0 else None


def _add_ranges(name: str, held: RangeTuple, pieces: RangeTuple) -> RangeTuple:
    total = range_size(held) + range_size(pieces)
    merged = canonical_ranges(held + pieces)
    if range_size(merged) != total:
        raise ValueError(f"{name}: parts of {_format_ranges(pieces)} would be held twice")
    return merged


def range_size(pieces: RangeTuple) -> int:
    """Return how many numbers the disjoint ranges `pieces` cover."""
    return sum(end - begin + 1 for begin, end in pieces)


def _subtract_ranges(held: RangeTuple, pieces: RangeTuple) -> RangeTuple:
    """Return the numbers of `held` that are not in `pieces`; both canonical."""
    result: list[tuple[int, int]] = []
    index = 0
    for begin, end in held:
        start = begin
        while index < len(pieces) and pieces[index][1] < begin:
            index += 1
        cursor = index
        while cursor < len(pieces) and pieces[cursor][0] <= end:
            cut_begin, cut_end = pieces[cursor]
            if start < cut_begin:
                result.append((start, cut_begin - 1))
            start = max(start, cut_end + 1)
            cursor += 1
        if start <= end:
            result.append((start, end))
    return tuple(result)


def _ranges_contain(held: RangeTuple, pieces: RangeTuple) -> bool:
    index = 0
    for begin, end in pieces:
        while index < len(held) and held[index][1] < begin:
            index += 1
        if index == len(held) or held[index][0] > begin or held[index][1] < end:
            return False
    return True


def _parse_ranges(field: str, name: str, value: str) -> RangeTuple:
    if not value.endswith("]"):
        raise InvalidInput(f"{field}: {name}:{value} lacks its closing ]")
    pieces: list[tuple[int, int]] = []
    for piece in filter(None, value[1:-1].split(",")):
        match = _RANGE.match(piece)
        if match is None:
            raise InvalidInput(f"{field}: {name}: {piece.strip()!r} is no range; write [31000-32000,33000]")
        begin = int(match.group(1))
        end = int(match.group(2) or begin)
        if end < begin or end > RANGE_LIMIT:
            raise InvalidInput(f"{field}: {name}: {piece.strip()} must rise and end at {RANGE_LIMIT} at most")
        pieces.append((begin, end))
    return tuple(pieces)


def _parse_set(field: str, name: str, value: str) -> tuple[str, ...]:
    if not value.endswith("}"):
        raise InvalidInput(f"{field}: {name}:{value} lacks its closing }}")
    return tuple(filter(None, (item.strip() for item in value[1:-1].split(","))))


def _format_ranges(pieces: RangeTuple) -> str:
    return "[" + ",".join(f"{begin}-{end}" if end > begin else str(begin) for begin, end in pieces) + "]"


def _example(name: str) -> str:
    return f"{name}:512MiB" if name in _BYTE_RESOURCES else f"{name}:0.5"


def scalars_from_mapping(values: Mapping[str, float]) -> Resources:
    """Return scalars from plain numbers by name, rounded to thousandths."""
    return Resources({name: round(value * MILLI) for name, value in values.items()})
