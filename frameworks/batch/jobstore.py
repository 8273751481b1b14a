"""What the batch daemon keeps over its own death: jobs, their tasks, and its framework id."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from frameworks.batch.model import JobRecord, TaskRecord
from meseta.errors import StoreError
from meseta.ids import FrameworkId
from meseta.store import Store

_JOBS = "jobs"
_TASKS = "tasks"
_SELF = "self"
_FRAMEWORK_ID = "framework_id"
_ENCODER = msgspec.msgpack.Encoder()


class JobStore:
    """Typed records over a `Store`; made on a running loop, which gets the callbacks."""

    def __init__(self, path: Path, failed: Callable[[StoreError], None]) -> None:
        """Open the store and read it.

        Raises:
            StoreError: it is in use or damaged, or a record in it is.
        """
        self._store = Store(path)
        self.framework_id: FrameworkId | None = None
        self._jobs: dict[str, JobRecord] = {}
        self._tasks: dict[str, TaskRecord] = {}
        self._task_keys: dict[str, dict[str, None]] = {}
        try:
            for table, key, value in self._store.read():
                self._restore(table, key, value)
        except msgspec.DecodeError as error:
            self._store.close()
            raise StoreError(f"{path} holds a record that is none: {error}") from error
        self._store.start(asyncio.get_running_loop().call_soon_threadsafe, failed)

    def load(self) -> tuple[tuple[JobRecord, ...], tuple[TaskRecord, ...]]:
        """Return what was found, once."""
        jobs, tasks = tuple(self._jobs.values()), tuple(self._tasks.values())
        self._jobs, self._tasks = {}, {}
        return jobs, tasks

    def save_framework_id(self, framework_id: FrameworkId) -> None:
        """Keep the id under which the master knows us."""
        self.framework_id = framework_id
        self._store.write([(_SELF, _FRAMEWORK_ID, framework_id.encode())], _nothing)

    def save_job(self, record: JobRecord, done: "Callable[[], None] | None" = None) -> None:
        """Keep a job's record; `done` is called when it is durable."""
        self._store.write([(_JOBS, record.job_id, _ENCODER.encode(record))], done or _nothing)

    def save_task(self, record: TaskRecord) -> None:
        """Keep a task's record."""
        key = f"{record.job_id}/{record.kind}-{record.index:05d}"
        self._task_keys.setdefault(record.job_id, {})[key] = None
        self._store.write([(_TASKS, key, _ENCODER.encode(record))], _nothing)

    def forget_tasks(self, job_id: str) -> None:
        """Remove the records of a job's tasks."""
        self._store.write([(_TASKS, key, None) for key in self._task_keys.pop(job_id, {})], _nothing)

    def forget_job(self, job_id: str) -> None:
        """Remove a job's record."""
        self._store.write([(_JOBS, job_id, None)], _nothing)

    def after_writes(self, done: Callable[[], None]) -> None:
        """Call `done` when everything that was saved so far is durable."""
        self._store.write([], done)

    def close(self) -> None:
        """Write what waits."""
        self._store.close()

    def _restore(self, table: str, key: str, value: bytes) -> None:
        if table == _JOBS:
            self._jobs[key] = msgspec.msgpack.decode(value, type=JobRecord)
        elif table == _TASKS:
            record = msgspec.msgpack.decode(value, type=TaskRecord)
            self._tasks[key] = record
            self._task_keys.setdefault(record.job_id, {})[key] = None
        elif table == _SELF and key == _FRAMEWORK_ID:
            self.framework_id = FrameworkId(value.decode())


def _nothing() -> None:
    """Nobody waits for this write."""
