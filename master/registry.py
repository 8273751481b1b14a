"""What must survive the master: slaves, frameworks, and the ids of frameworks that are over. Pure.

Not tasks: those are rebuilt from the slaves that register again. Wall-clock times, since monotonic
ones mean nothing to the next process.
"""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from master.events import StoredRecord
from meseta.errors import StoreError
from meseta.ids import FrameworkId, Principal, SlaveId, TaskId
from meseta.model import FrameworkInfo, Record, Seconds, SlaveInfo

SLAVES = "slaves"
FRAMEWORKS = "frameworks"
REMOVED_FRAMEWORKS = "removed_frameworks"


class AdmittedSlave(Record, frozen=True, kw_only=True):
    """A slave. `unreachable_unix_s` is set while it is given up.

    `disowned` are tasks whose frameworks were told that they are lost: they must not come back to life.
    """

    slave_info: SlaveInfo
    registered_unix_s: Seconds
    unreachable_unix_s: Seconds | None = None
    disowned: tuple[tuple[FrameworkId, TaskId], ...] = ()


class KnownFramework(Record, frozen=True, kw_only=True):
    """A framework, and since when it has no scheduler (None: it has one)."""

    framework_info: FrameworkInfo
    principal: Principal
    registered_unix_s: Seconds
    disconnected_unix_s: Seconds | None = None


class RemovedFramework(Record, frozen=True, kw_only=True):
    """The id is barred for ever."""

    removed_unix_s: Seconds


class Registry(msgspec.Struct, kw_only=True):
    """All records, decoded; each dict in the order of keys, the removed ones by when they were removed."""

    slaves: dict[SlaveId, AdmittedSlave] = {}
    frameworks: dict[FrameworkId, KnownFramework] = {}
    removed_frameworks: dict[FrameworkId, RemovedFramework] = {}


Key = TypeVar("Key")
Value = TypeVar("Value")

_ENCODER = msgspec.msgpack.Encoder()


def slave_record(slave_id: SlaveId, slave: AdmittedSlave | None) -> StoredRecord:
    """Return the record of a slave; None removes it."""
    return StoredRecord(table=SLAVES, key=slave_id, value=None if slave is None else _ENCODER.encode(slave))


def framework_record(framework_id: FrameworkId, framework: KnownFramework | None) -> StoredRecord:
    """Return the record of a framework; None removes it."""
    value = None if framework is None else _ENCODER.encode(framework)
    return StoredRecord(table=FRAMEWORKS, key=framework_id, value=value)


def removed_framework_record(framework_id: FrameworkId, removed: RemovedFramework | None) -> StoredRecord:
    """Return the record of a barred id; None removes it."""
    value = None if removed is None else _ENCODER.encode(removed)
    return StoredRecord(table=REMOVED_FRAMEWORKS, key=framework_id, value=value)


def read_registry(records: Iterable[StoredRecord]) -> Registry:
    """Decode what the store holds; a later record of the same key counts.

    Raises:
        StoreError: a record is of no known table or cannot be decoded: names table and key.
    """
    registry = Registry()
    for record in sorted(records, key=lambda record: (record.table, record.key)):
        try:
            _read(registry, record)
        except (msgspec.DecodeError, ValueError) as error:
            raise StoreError(f"registry: {record.table}/{record.key} cannot be read: {error}") from error
    by_time = sorted(registry.removed_frameworks.items(), key=lambda item: item[1].removed_unix_s)
    registry.removed_frameworks = dict(by_time)
    return registry


def _read(registry: Registry, record: StoredRecord) -> None:
    value = record.value
    if record.table == SLAVES:
        _put(registry.slaves, SlaveId(record.key), value, AdmittedSlave)
    elif record.table == FRAMEWORKS:
        _put(registry.frameworks, FrameworkId(record.key), value, KnownFramework)
    elif record.table == REMOVED_FRAMEWORKS:
        _put(registry.removed_frameworks, FrameworkId(record.key), value, RemovedFramework)
    else:
        raise StoreError(f"registry: there is no table {record.table}; was it written by a newer release?")


def _put(target: dict[Key, Value], key: Key, value: bytes | None, kind: type[Value]) -> None:
    if value is None:
        target.pop(key, None)
    else:
        target[key] = msgspec.msgpack.decode(value, type=kind)
