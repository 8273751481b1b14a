"""The slave's checkpoint on disk: an append-only log of records, and the slave's id.

A record is its length, its CRC-32 and MessagePack. It is written with one write(2) and not
synced: it must survive the daemon, and no task survives the machine. The id is synced, since the
master knows it for ever. A log that has grown is replaced by a snapshot, written beside it and
renamed.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from meseta.errors import StoreError
from meseta.ids import SlaveId
from slave.records import CheckpointRecord

COMPACT_BYTES: Final = 4 << 20  # Some 4,000 tasks; read and folded at the next start in a tenth of a second.
COMPACT_FACTOR: Final = 4  # ...and this many times the last snapshot, or a large one would be rewritten for ever.

_MAGIC: Final = b"meseta slave checkpoint 1\n"
_HEADER: Final = struct.Struct("<II")
_RECORD_LIMIT_BYTES: Final = 64 << 20
_LOG_NAME: Final = "checkpoint.log"
_ID_NAME: Final = "slave_id.json"


class _SlaveIdFile(msgspec.Struct, forbid_unknown_fields=True):
    slave_id: SlaveId


class Checkpoint:
    """The open checkpoint of one slave's work folder."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._path = work_dir / _LOG_NAME
        self._encoder = msgspec.msgpack.Encoder()
        self._fd = -1
        self._size = 0
        self._compact_at = COMPACT_BYTES
        self.torn_bytes = 0

    def open(self) -> tuple[SlaveId | None, tuple[CheckpointRecord, ...]]:
        """Read what an earlier daemon wrote, cut off a torn tail (see `torn_bytes`) and open for writing.

        Raises:
            StoreError: it is damaged elsewhere, or cannot be read or written.
        """
        try:
            slave_id = self._read_id()
            data = self._path.read_bytes() if self._path.exists() else b""
            if not data.startswith(_MAGIC[: len(data)]):
                raise StoreError(f"{self._path} is no checkpoint of a slave; move it away or name another --work-dir")
            if len(data) < len(_MAGIC):
                os.close(_write_new(self._path, _MAGIC))
                data = _MAGIC
            records, end = _read_records(self._path, data)
            self.torn_bytes = len(data) - end
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            if self.torn_bytes:
                os.ftruncate(self._fd, end)
            self._size = end
        except OSError as error:
            raise StoreError(f"checkpoint {self._path}: {error.strerror or error}") from error
        self._compact_at = max(COMPACT_BYTES, COMPACT_FACTOR * end)
        return slave_id, records

    def append(self, records: Iterable[CheckpointRecord]) -> None:
        """Write records with one write(2).

        Raises:
            StoreError: they could not be written whole; nothing may be told of them.
        """
        data = b"".join([self._frame(record) for record in records])
        try:
            written = os.write(self._fd, data)
            if written != len(data):  # What came after a torn record could never be read.
                os.ftruncate(self._fd, self._size)
        except OSError as error:
            raise StoreError(f"checkpoint {self._path} cannot be written: {error.strerror}") from error
        if written != len(data):
            raise StoreError(f"checkpoint {self._path} took {written} of {len(data)} bytes: is the disk full?")
        self._size += written

    @property
    def is_large(self) -> bool:
        """True if it is time for `rewrite`."""
        return self._size >= self._compact_at

    def rewrite(self, records: Iterable[CheckpointRecord]) -> None:
        """Replace the log by a snapshot; a crash leaves the one or the other.

        Raises:
            StoreError: it could not be written; the old log stays in use, and becomes large again later.
        """
        data = b"".join([_MAGIC, *(self._frame(record) for record in records)])
        try:
            fd = _write_new(self._path, data)
        except OSError as error:
            self._compact_at = self._size + COMPACT_BYTES
            raise StoreError(f"checkpoint {self._path} cannot be rewritten: {error.strerror}") from error
        os.close(self._fd)
        self._fd = fd
        self._size = len(data)
        self._compact_at = max(COMPACT_BYTES, COMPACT_FACTOR * len(data))

    def write_slave_id(self, slave_id: SlaveId) -> None:
        """Write the id, safe from a failure of power.

        Raises:
            StoreError: it could not be written.
        """
        try:
            text = json.dumps({"slave_id": slave_id})
            os.close(_write_new(self._work_dir / _ID_NAME, text.encode(), is_synced=True))
        except OSError as error:
            raise StoreError(f"the slave's id cannot be written to {self._work_dir}: {error.strerror}") from error

    def remove(self) -> None:
        """Forget id and log: the next start is that of a new slave. The id goes first."""
        (self._work_dir / _ID_NAME).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the log."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _frame(self, record: CheckpointRecord) -> bytes:
        body = self._encoder.encode(record)
        return _HEADER.pack(len(body), zlib.crc32(body)) + body

    def _read_id(self) -> SlaveId | None:
        path = self._work_dir / _ID_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=_SlaveIdFile).slave_id
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreError(f'{path} is damaged ({error}); it should read {{"slave_id": "..."}}') from error


def _read_records(path: Path, data: bytes) -> tuple[tuple[CheckpointRecord, ...], int]:
    """Return the records, and where the last whole one ends. Raises StoreError."""
    decoder: msgspec.msgpack.Decoder[CheckpointRecord] = msgspec.msgpack.Decoder(CheckpointRecord)
    records: list[CheckpointRecord] = []
    at = len(_MAGIC)
    while at < len(data):
        body_at = at + _HEADER.size
        length, crc = _HEADER.unpack_from(data, at) if body_at <= len(data) else (0, 0)
        end = body_at + length
        body = data[body_at:end]
        is_whole = 0 < length <= _RECORD_LIMIT_BYTES and end <= len(data) and zlib.crc32(body) == crc
        if not is_whole:
            # Written in part, or lost with the machine's memory: so is only what is last.
            if end >= len(data) or not any(data[at:]):
                break
            raise StoreError(_damage(path, at, "its checksum is wrong"))
        try:
            records.append(decoder.decode(body))
        except msgspec.DecodeError as error:
            raise StoreError(_damage(path, at, str(error))) from error
        at = end
    return tuple(records), at


def _damage(path: Path, at: int, what: str) -> str:
    return (
        f"{path} is damaged at byte {at}: {what}; restore it, or move it away to start without "
        "(the tasks that run on this slave are then killed and reported lost)"
    )


def _write_new(path: Path, data: bytes, *, is_synced: bool = False) -> int:
    """Replace a file in one step; return a descriptor that appends to it. Raises OSError; the old one stays."""
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if is_synced:
            os.fsync(fd)
        beside.rename(path)
        if is_synced:
            _sync_folder(path.parent)
    except BaseException:
        os.close(fd)
        beside.unlink(missing_ok=True)  # On a full disk what it took is wanted.
        raise
    return fd


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
