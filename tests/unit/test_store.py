"""The store: what was reported safe is there after the process is gone; one owner at a time."""

import queue
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meseta.errors import StoreError
from meseta.store import Store, Write

LIMIT_S = 20.0


class Owner:
    """The thread that opened a store, without a loop: takes what is delivered one by one."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.failures: list[StoreError] = []
        self._delivered: queue.Queue[Callable[[], None]] = queue.Queue()
        self.store.start(self._delivered.put, self.failures.append)

    def write(self, *writes: Write) -> None:
        """Write and wait until it is safe."""
        done: list[bool] = []
        self.store.write(writes, lambda: done.append(True))
        while not done and not self.failures:
            self._delivered.get(timeout=LIMIT_S)()


def test_records_are_there_when_the_store_is_opened_again(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "a" / "store")
    owner.write(("slaves", "s1", b"one"), ("slaves", "s2", b"two"), ("frameworks", "f", b""))
    owner.write(("slaves", "s1", None), ("slaves", "s2", b"three"))
    owner.store.close()
    with Store(tmp_path / "a" / "store") as store:
        assert store.read() == [("frameworks", "f", b""), ("slaves", "s2", b"three")]


def test_epoch_rises_with_every_opening(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        with Store(tmp_path / "store") as store:
            epochs.append(store.epoch)
    assert epochs == [1, 2, 3]


def test_second_owner_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with Store(tmp_path / "store"):
        program = f"from pathlib import Path; from meseta.store import Store; Store(Path({str(tmp_path / 'store')!r}))"
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert result.returncode == 1
        assert "is in use by another process: stop that one first" in result.stderr


def test_what_was_reported_safe_survives_kill_9(tmp_path: Path) -> None:
    program = f"""
import os, signal, queue
from pathlib import Path
from meseta.store import Store
store = Store(Path({str(tmp_path / "store")!r}))
delivered = queue.Queue()
store.start(delivered.put, print)
for number in range(50):
    store.write([("t", f"k{{number}}", b"v")], lambda: None)
delivered.get(timeout=10)
store.write([("t", "last", b"v")], lambda: os.kill(os.getpid(), signal.SIGKILL))
while True:
    delivered.get(timeout=10)()
"""
    result = subprocess.run([sys.executable, "-c", program], timeout=LIMIT_S, check=False)
    assert result.returncode == -9
    with Store(tmp_path / "store") as store:
        assert len(store.read()) == 51
        assert store.epoch == 2


def test_close_writes_what_waits(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "store")
    for number in range(100):
        owner.store.write([("t", f"{number:03}", b"v")], lambda: None)
    owner.store.close()
    with Store(tmp_path / "store") as store:
        assert len(store.read()) == 100


def test_write_that_fails_is_reported_and_nothing_follows_it(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "store")
    owner.write(("t", "a", b"v"))
    owner.write(("t", "b", object()))  # type: ignore[arg-type]  # SQLite refuses it as a full disk would.
    assert len(owner.failures) == 1
    assert "cannot be written" in str(owner.failures[0])
    owner.store.write([("t", "c", b"v")], lambda: pytest.fail("written after a failure"))
    owner.store.close()
    with Store(tmp_path / "store") as store:
        assert [key for _, key, _ in store.read()] == ["a"]


def test_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match=r"store is damaged: .*restore it from a copy"):
        Store(path)


def test_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="newer release"):
        Store(path)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "file" / "store")
