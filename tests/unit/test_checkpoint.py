"""The slave's checkpoint: what was written is read again; damage is told apart from a torn tail."""

import errno
import os
import struct
import zlib
from pathlib import Path

import pytest

from meseta.errors import StoreError
from meseta.ids import FrameworkId, SlaveId
from slave import checkpoint as checkpoint_module
from slave.checkpoint import Checkpoint
from slave.records import BootRecord, CheckpointRecord, EpochRecord, FrameworkShutdownRecord

RECORDS: tuple[CheckpointRecord, ...] = (
    BootRecord(boot_id="b"),
    EpochRecord(epoch=3),
    FrameworkShutdownRecord(framework_id=FrameworkId("f")),
)


def written(folder: Path) -> Path:
    """Write RECORDS and return the log."""
    checkpoint = Checkpoint(folder)
    assert checkpoint.open() == (None, ())
    checkpoint.append(RECORDS[:1])
    checkpoint.append(RECORDS[1:])
    checkpoint.close()
    return folder / "checkpoint.log"


def read(folder: Path) -> tuple[tuple[CheckpointRecord, ...], int]:
    """Return the records, and how many bytes of a torn tail were cut off."""
    checkpoint = Checkpoint(folder)
    _, records = checkpoint.open()
    checkpoint.close()
    return records, checkpoint.torn_bytes


def test_records_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    written(tmp_path)
    assert read(tmp_path) == (RECORDS, 0)


def test_one_append_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open()
    sizes: list[int] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    checkpoint.append(RECORDS)
    assert len(sizes) == 1
    checkpoint.close()


def test_tail_torn_at_any_byte_costs_only_the_last_record(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    last = len(whole) - len(FrameworkShutdownRecord(framework_id=FrameworkId("f")).framework_id)
    for size in range(last - 20, len(whole)):
        path.write_bytes(whole[:size])
        records, torn = read(tmp_path)
        assert records in (RECORDS[:1], RECORDS[:2])
        assert path.stat().st_size == size - torn
        again, torn = read(tmp_path)
        assert (again, torn) == (records, 0)


def test_tail_of_zeros_that_a_power_failure_leaves_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(100))
    assert read(tmp_path) == (RECORDS, 100)


def test_what_is_written_after_a_torn_tail_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open()
    checkpoint.append([EpochRecord(epoch=9)])
    checkpoint.close()
    assert read(tmp_path) == ((*RECORDS[:2], EpochRecord(epoch=9)), 0)


def test_damage_in_the_middle_is_refused_with_place_and_remedy(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged at byte 26.*move it away"):
        read(tmp_path)


def test_record_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    body = b"\x81\xa4type\xa3Xyz"
    frame = struct.pack("<II", len(body), zlib.crc32(body)) + body
    path.write_bytes(path.read_bytes() + frame)
    with pytest.raises(StoreError, match="Xyz"):
        read(tmp_path)


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.log").write_text("something else entirely, and long enough")
    with pytest.raises(StoreError, match="is no checkpoint"):
        read(tmp_path)


def test_rewriting_replaces_the_log_by_the_snapshot(tmp_path: Path) -> None:
    written(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open()
    checkpoint.rewrite(RECORDS[1:2])
    checkpoint.append([EpochRecord(epoch=5)])
    checkpoint.close()
    assert read(tmp_path) == ((RECORDS[1], EpochRecord(epoch=5)), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.log"]


def test_log_is_large_when_it_has_outgrown_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "COMPACT_BYTES", 300)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open()
    checkpoint.rewrite([BootRecord(boot_id="x" * 100)])
    count = 0
    while not checkpoint.is_large:
        checkpoint.append([BootRecord(boot_id="x" * 100)])
        count += 1
    assert 3 <= count <= 6
    checkpoint.rewrite([])
    assert not checkpoint.is_large
    checkpoint.close()


def test_slave_id_is_kept_and_forgotten_with_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open()
    checkpoint.write_slave_id(SlaveId("s-7"))
    checkpoint.close()
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.open()[0] == "s-7"
    checkpoint.remove()
    checkpoint.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"slave_id": 3}', '{"slave": "s"}'])
def test_damaged_slave_id_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "slave_id.json").write_text(text)
    with pytest.raises(StoreError, match=r"slave_id\.json is damaged"):
        Checkpoint(tmp_path).open()


def test_disk_that_takes_only_a_part_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    with pytest.raises(StoreError, match="took 3 of"):
        checkpoint.append(RECORDS)
    monkeypatch.undo()
    checkpoint.append(RECORDS[:1])  # Nothing torn stands before it.
    checkpoint.close()
    assert read(tmp_path) == (RECORDS[:1], 0)


def test_log_that_cannot_be_rewritten_goes_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "COMPACT_BYTES", 40)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open()
    checkpoint.append(RECORDS)
    assert checkpoint.is_large

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="cannot be rewritten: No space left"):
        checkpoint.rewrite(RECORDS[:1])
    monkeypatch.undo()
    assert not checkpoint.is_large  # Or each record would bring the next attempt.
    checkpoint.append([EpochRecord(epoch=5)])
    checkpoint.close()
    assert read(tmp_path) == ((*RECORDS, EpochRecord(epoch=5)), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.log"]
