"""What a framework developer writes a custom executor with: `Executor`, `ExecutorDriver`, `run_executor`.

An executor is a process that a slave starts when the first task that names it arrives; it runs tasks in its own
way and says how they fare. The decisions are in `meseta/executor_core.py`.
"""

import asyncio
import logging
import os
import secrets
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from meseta.driver_events import (
    AbortAsked,
    DataSent,
    ExecutorCall,
    ExecutorCallback,
    ExecutorSlave,
    OnDisconnected,
    OnError,
    OnExecutorMessage,
    OnExecutorRegistered,
    OnExecutorReregistered,
    OnKillTask,
    OnLaunchTask,
    OnShutdown,
    StatusSent,
    Stop,
    StopAsked,
)
from meseta.driver_shell import SEED_BITS, DriverShell, Peer
from meseta.errors import InvalidInput
from meseta.executor_core import RECOVERY_TIMEOUT_S, ExecutorCore, ExecutorInit
from meseta.ids import ExecutorId, FrameworkId, SlaveId, TaskId
from meseta.messages import Hello
from meseta.model import DATA_LIMIT_BYTES, ExecutorInfo, FrameworkInfo, TaskInfo, TaskStatus

# After a forced end, for threads of the user's code that do not know it; then the process is left the hard way.
EXIT_LIMIT_S: Final = 1.0

_LOG: Final = logging.getLogger("meseta.executor")
_ENCODER: Final = msgspec.msgpack.Encoder()
_STATUS_DECODER: Final = msgspec.msgpack.Decoder(TaskStatus)


class ExecutorDriver(ABC):
    """An executor's way to its slave. Methods may be called from any thread and return at once."""

    @abstractmethod
    def submit(self, call: ExecutorCall) -> None:
        """Hand a call to the driver's core. For drivers themselves; executors use the methods below."""

    def send_status_update(self, status: TaskStatus) -> None:
        """Tell how a task fares. Set `task_id`, `state` and what you have to say; the driver fills in the rest.

        The update is kept until the slave has acknowledged it, also over a restart of the slave.

        Raises:
            InvalidInput: a field of `status` has the wrong type or is out of range.
        """
        try:
            checked = _STATUS_DECODER.decode(_ENCODER.encode(status))
        except (msgspec.ValidationError, TypeError) as error:
            raise InvalidInput(f"send_status_update: {error}") from error
        self.submit(StatusSent(status=checked))

    def send_framework_message(self, data: bytes) -> None:
        """Send at most 1 MiB to the scheduler. It may be lost, and nobody would tell.

        Raises:
            InvalidInput: `data` is no bytes, or longer.
        """
        if not isinstance(data, bytes) or len(data) > DATA_LIMIT_BYTES:
            raise InvalidInput(f"send_framework_message: data must be bytes, at most {DATA_LIMIT_BYTES} of them")
        self.submit(DataSent(data=data))

    def stop(self) -> None:
        """End the driver with exit code 0 as soon as the slave has acknowledged every update."""
        self.submit(StopAsked())

    def abort(self) -> None:
        """End the driver at once with exit code 1; the slave fails what still runs."""
        self.submit(AbortAsked())


class Executor:
    """Base of an executor. Override what you need; `launch_task` you must.

    Callbacks come one at a time, on one thread, and must not wait: run tasks in threads or processes.
    An exception from a callback ends the executor with exit code 1, and the slave fails its tasks.
    """

    def registered(
        self, driver: ExecutorDriver, executor_info: ExecutorInfo, framework_info: FrameworkInfo, slave: ExecutorSlave
    ) -> None:
        """The slave knows this executor. `executor_info.data` is what the scheduler put there."""

    def reregistered(self, driver: ExecutorDriver, slave: ExecutorSlave) -> None:
        """The slave is back, after `disconnected`."""

    def disconnected(self, driver: ExecutorDriver) -> None:
        """The slave is gone, perhaps to be restarted. Tasks run on, updates are kept."""

    def launch_task(self, driver: ExecutorDriver, task: TaskInfo) -> None:
        """Start `task`, and report TASK_RUNNING and later its end."""
        raise NotImplementedError(f"{type(self).__name__} does not override launch_task")

    def kill_task(self, driver: ExecutorDriver, task_id: TaskId, grace_period_s: float) -> None:
        """End a task, gently for `grace_period_s`, and report TASK_KILLED. May come more than once."""

    def framework_message(self, driver: ExecutorDriver, data: bytes) -> None:
        """The scheduler sent `data`."""

    def shutdown(self, driver: ExecutorDriver) -> None:
        """End all tasks and report their ends; the process has `shutdown_grace_period_s` for it."""

    def error(self, driver: ExecutorDriver, message: str) -> None:
        """The slave will not have this executor; the driver ends with exit code 1."""


def deliver(callback: ExecutorCallback, executor: Executor, driver: ExecutorDriver) -> None:
    """Call the executor's method that `callback` stands for. For drivers."""
    match callback:
        case OnLaunchTask():
            executor.launch_task(driver, callback.task)
        case OnKillTask():
            executor.kill_task(driver, callback.task_id, callback.grace_period_s)
        case OnExecutorMessage():
            executor.framework_message(driver, callback.data)
        case OnExecutorRegistered():
            executor.registered(driver, callback.executor_info, callback.framework_info, callback.slave)
        case OnExecutorReregistered():
            executor.reregistered(driver, callback.slave)
        case OnDisconnected():
            executor.disconnected(driver)
        case OnShutdown():
            executor.shutdown(driver)
        case OnError():
            executor.error(driver, callback.message)


class MesetaExecutorDriver(ExecutorDriver):
    """The driver of a real slave, which it finds in its environment. `run_executor` is the simple way to it.

    On a running asyncio loop: `driver.start()`, then `await driver.join()`.

    Raises:
        InvalidInput: a variable that the slave sets is missing or wrong.
    """

    def __init__(self, executor: Executor, *, environment: Mapping[str, str], record: Path | None = None) -> None:
        self._init = ExecutorInit(
            framework_id=FrameworkId(_variable(environment, "MESETA_FRAMEWORK_ID")),
            executor_id=ExecutorId(_variable(environment, "MESETA_EXECUTOR_ID")),
            slave_id=SlaveId(_variable(environment, "MESETA_SLAVE_ID")),
            seed=secrets.randbits(SEED_BITS),
            started_at=time.monotonic(),
            recovery_timeout_s=_recovery_timeout_s(environment),
            unix_offset_s=time.time() - time.monotonic(),
        )
        token = _variable(environment, "MESETA_EXECUTOR_TOKEN")
        self._peer = Peer(
            endpoint=_variable(environment, "MESETA_EXECUTOR_ENDPOINT"),
            hello=Hello(kind="executor", name=self._init.executor_id, token=token),
            keys=None,
            public_key=None,
        )
        self._record = record
        self._shell: DriverShell[ExecutorCall, ExecutorCallback] = DriverShell(
            _LOG, lambda callback: deliver(callback, executor, self)
        )

    def start(self) -> None:
        """Begin to look for the slave. Callbacks come on the running loop's thread."""
        self._shell.start(ExecutorCore(self._init), self._init, self._peer, record=self._record)

    async def join(self) -> Stop:
        """Wait for the driver's end."""
        return await self._shell.join()

    def submit(self, call: ExecutorCall) -> None:
        """Hand a call to the core: at once on the loop's thread, else by waking the loop."""
        self._shell.submit(call)


def run_executor(executor: Executor, *, record: Path | str | None = None) -> int:
    """Run `executor` in this process, which a slave has started, until it ends; return the process's exit code.

    Write `sys.exit(run_executor(MyExecutor()))`. Threads that still run tasks when the grace period of a
    shutdown is over do not keep the process alive.

    Raises:
        InvalidInput: this process was not started by a slave.
    """
    driver = MesetaExecutorDriver(executor, environment=os.environ, record=None if record is None else Path(record))
    stop = asyncio.run(_run(driver))
    if stop.is_forced:
        # A thread of the user's code may wait for a task that does not end: the slave wants the process gone.
        threading.Thread(target=_exit_later, args=(stop.exit_code,), daemon=True).start()
    return stop.exit_code


async def _run(driver: MesetaExecutorDriver) -> Stop:
    driver.start()
    if threading.current_thread() is threading.main_thread():  # Nobody else may set signal handlers.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, driver.abort)
    return await driver.join()


def _exit_later(exit_code: int) -> None:
    time.sleep(EXIT_LIMIT_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _variable(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise InvalidInput(f"{name} is not set: an executor is started by a slave, through a task that names it")
    return value


def _recovery_timeout_s(environment: Mapping[str, str]) -> float:
    text = environment.get("MESETA_RECOVERY_TIMEOUT_S", "")
    try:
        return float(text) if text else RECOVERY_TIMEOUT_S
    except ValueError as error:
        raise InvalidInput(f"MESETA_RECOVERY_TIMEOUT_S is {text!r}; write seconds, such as 900") from error
