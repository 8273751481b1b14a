"""Records of the registry: there and back, and what is wrong with others."""

import pytest

from master.events import StoredRecord
from master.registry import (
    AdmittedSlave,
    KnownFramework,
    RemovedFramework,
    framework_record,
    read_registry,
    removed_framework_record,
    slave_record,
)
from meseta.errors import StoreError
from meseta.ids import FrameworkId, Principal, SlaveId, TaskId
from tests.unit.master_builders import framework_info, slave_info

SLAVE = AdmittedSlave(
    slave_info=slave_info(),
    registered_unix_s=1.5,
    unreachable_unix_s=2.5,
    disowned=((FrameworkId("f"), TaskId("t")),),
)
FRAMEWORK = KnownFramework(
    framework_info=framework_info(), principal=Principal("p"), registered_unix_s=1.0, disconnected_unix_s=3.0
)


def test_records_are_read_back_equal() -> None:
    registry = read_registry(
        [
            slave_record(SlaveId("s"), SLAVE),
            framework_record(FrameworkId("f"), FRAMEWORK),
            removed_framework_record(FrameworkId("g"), RemovedFramework(removed_unix_s=4.0)),
        ]
    )
    assert registry.slaves == {"s": SLAVE}
    assert registry.frameworks == {"f": FRAMEWORK}
    assert registry.removed_frameworks == {"g": RemovedFramework(removed_unix_s=4.0)}


def test_record_without_value_removes() -> None:
    registry = read_registry([slave_record(SlaveId("s"), SLAVE), slave_record(SlaveId("s"), None)])
    assert registry.slaves == {}


def test_removed_ids_come_oldest_first() -> None:
    records = [
        removed_framework_record(FrameworkId(name), RemovedFramework(removed_unix_s=moment))
        for name, moment in (("a", 3.0), ("b", 1.0), ("c", 2.0))
    ]
    assert list(read_registry(records).removed_frameworks) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (StoredRecord(table="slaves", key="s", value=b"\xc1"), "slaves/s cannot be read"),
        (StoredRecord(table="slaves", key="s", value=b"\x80"), "slaves/s cannot be read"),
        (StoredRecord(table="quotas", key="q", value=b"\x80"), "no table quotas"),
    ],
)
def test_record_that_cannot_be_read_is_named(record: StoredRecord, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        read_registry([record])
