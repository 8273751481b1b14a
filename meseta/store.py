"""Durable records in one SQLite file: bytes by table and key, for one owner at a time.

A write is safe when its callback is called: the file is synced first. Writes are done in a thread of
their own, so that no loop waits for a disk, and all that wait at the same time share one sync.
Whoever opens the store locks it, and gets an epoch higher than all before.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from meseta.errors import StoreError

Write = tuple[str, str, bytes | None]  # Table, key, value; None removes the record.

LOCK_WAIT_S: Final = 2.0  # A predecessor that was just killed has let go by then.
CLOSE_WAIT_S: Final = 20.0  # Mesos's limit on one write of the registry.
_SCHEMA_VERSION: Final = 1
_GROUP_LIMIT: Final = 1000  # Writes that share one sync: bounds what one failure takes with it.


class Store:
    """An open store. Make it, `read` it and `close` it on one thread; callbacks come through `deliver`."""

    def __init__(self, path: Path) -> None:
        """Open or make the store at `path`.

        Raises:
            StoreError: it is in use, damaged, of a newer release, or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error
        try:
            self.epoch = self._open()
        except sqlite3.Error as error:
            self._connection.close()
            raise StoreError(_explained(path, error)) from error
        except BaseException:
            self._connection.close()
            raise
        self._queue: queue.SimpleQueue[tuple[Sequence[Write], Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> list[tuple[str, str, bytes]]:
        """Return all records by table and key. Only before the first `write`.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            return self._connection.execute('SELECT "table", key, value FROM records ORDER BY 1, 2').fetchall()
        except sqlite3.Error as error:
            raise StoreError(_explained(self.path, error)) from error

    def start(self, deliver: Callable[[Callable[[], None]], object], failed: Callable[[StoreError], None]) -> None:
        """Begin to write. `deliver` brings callbacks to the owner's thread; `failed` is delivered at the first failure.

        After a failure nothing more is written, so that records never get ahead of earlier ones.
        """
        self._thread = threading.Thread(
            target=self._work, args=(deliver, failed), name=f"store {self.path.name}", daemon=True
        )
        self._thread.start()

    def write(self, writes: Sequence[Write], done: Callable[[], None]) -> None:
        """Write all of `writes` or none, after all earlier ones; then have `done` delivered."""
        self._queue.put((writes, done))

    def close(self) -> None:
        """Write what waits, and let go of the file.

        Raises:
            StoreError: the disk does not answer.
        """
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_WAIT_S)
            if self._thread.is_alive():
                raise StoreError(
                    f"{self.path} could not be written within {CLOSE_WAIT_S:g} s: the disk does not answer"
                )
            self._thread = None
        self._connection.close()

    def _open(self) -> int:
        execute = self._connection.execute
        execute("PRAGMA locking_mode=EXCLUSIVE")
        execute("PRAGMA synchronous=FULL")
        execute("PRAGMA journal_mode=WAL")
        execute("BEGIN EXCLUSIVE")
        (version,) = execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise StoreError(f"{self.path} was written by a newer release (format {version}): use that release")
        execute(
            'CREATE TABLE IF NOT EXISTS records ("table" TEXT, key TEXT, value BLOB NOT NULL,'
            ' PRIMARY KEY ("table", key)) WITHOUT ROWID'
        )
        execute("CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER NOT NULL)")
        execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        (highest,) = execute("SELECT coalesce(max(epoch), 0) FROM epochs").fetchone()
        execute("DELETE FROM epochs")
        execute("INSERT INTO epochs VALUES (?)", (highest + 1,))
        execute("COMMIT")
        return int(highest) + 1

    def _work(self, deliver: Callable[[Callable[[], None]], object], failed: Callable[[StoreError], None]) -> None:
        while True:
            group, is_last = self._next_group()
            if group:
                try:
                    self._commit(group)
                except Exception as error:  # Whatever it is: a thread that ends in silence would hang every writer.
                    text = (
                        f"{self.path} cannot be written: {error}; see that its disk has room and is mounted for writing"
                    )
                    failure = StoreError(text)
                    deliver(partial(failed, failure))
                    return
                deliver(partial(_call, [done for _, done in group]))
            if is_last:
                return

    def _next_group(self) -> tuple[list[tuple[Sequence[Write], Callable[[], None]]], bool]:
        """Wait for a write; return it with all that wait by then, and whether the end was asked for."""
        group = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) >= _GROUP_LIMIT or self._queue.empty():
                return group, False
            item = self._queue.get()
        return group, True

    def _commit(self, group: list[tuple[Sequence[Write], Callable[[], None]]]) -> None:
        execute = self._connection.execute
        execute("BEGIN")
        try:
            for writes, _ in group:
                for table, key, value in writes:
                    if value is None:
                        execute('DELETE FROM records WHERE "table" = ? AND key = ?', (table, key))
                    else:
                        execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (table, key, value))
            execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise


def _call(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _explained(path: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"{path} is in use by another process: stop that one first, or choose another folder"
    if isinstance(error, sqlite3.OperationalError):
        return f"{path} cannot be used: {error}; see that its disk has room and that it may be written"
    return f"{path} is damaged: {error}; restore it from a copy, or move it away to start anew"
