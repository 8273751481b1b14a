"""The executor's driver on real sockets, against a scripted slave."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from meseta.driver_events import ExecutorEvent, ExecutorSlave
from meseta.errors import InvalidInput
from meseta.executor import Executor, ExecutorDriver, MesetaExecutorDriver
from meseta.executor_core import ExecutorCore, ExecutorInit
from meseta.ids import ExecutorId, SlaveId, TaskId
from meseta.messages import (
    KillTask,
    LaunchTask,
    RegisterExecutor,
    ShutdownExecutor,
    StatusUpdate,
)
from meseta.model import ExecutorInfo, FrameworkInfo, TaskInfo, TaskState, TaskStatus
from meseta.runner import replay
from tests.integration.driver_peers import LIMIT_S, ScriptedSlave, successor


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="m-") as folder:  # Short: a socket's path has 107 bytes.
        yield f"ipc://{folder}/s"


def environment(endpoint: str, *, recovery_timeout_s: str = "900") -> dict[str, str]:
    return {
        "MESETA_EXECUTOR_ENDPOINT": endpoint,
        "MESETA_EXECUTOR_TOKEN": "secret",
        "MESETA_FRAMEWORK_ID": "f-1",
        "MESETA_EXECUTOR_ID": "e-1",
        "MESETA_SLAVE_ID": "s-1",
        "MESETA_RECOVERY_TIMEOUT_S": recovery_timeout_s,
    }


def launch(name: str, data: bytes = b"") -> LaunchTask:
    return LaunchTask(task=TaskInfo(task_id=TaskId(name), slave_id=SlaveId("s-1"), data=data))


class Notes(Executor):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def registered(
        self, driver: ExecutorDriver, executor_info: ExecutorInfo, framework_info: FrameworkInfo, slave: ExecutorSlave
    ) -> None:
        self.calls.append(f"registered {executor_info.data.decode()} on {slave.slave_id}")

    def reregistered(self, driver: ExecutorDriver, slave: ExecutorSlave) -> None:
        self.calls.append("reregistered")

    def disconnected(self, driver: ExecutorDriver) -> None:
        self.calls.append("disconnected")
        driver.send_status_update(TaskStatus(task_id=TaskId("t-1"), state=TaskState.FINISHED))

    def launch_task(self, driver: ExecutorDriver, task: TaskInfo) -> None:
        self.calls.append(f"launch {task.task_id}")
        driver.send_status_update(TaskStatus(task_id=task.task_id, state=TaskState.RUNNING))

    def shutdown(self, driver: ExecutorDriver) -> None:
        self.calls.append("shutdown")

    def error(self, driver: ExecutorDriver, message: str) -> None:
        self.calls.append(f"error {message}")


async def ended(driver: MesetaExecutorDriver) -> int:
    async with asyncio.timeout(LIMIT_S):
        return (await driver.join()).exit_code


def test_updates_survive_the_slaves_restart(endpoint: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        slave = ScriptedSlave(endpoint)
        slave.acknowledges = False
        notes = Notes()
        driver = MesetaExecutorDriver(notes, environment=environment(endpoint), record=tmp_path / "recording")
        driver.start()
        await slave.wait_for(RegisterExecutor)
        slave.send(launch("t-1"))
        (running,) = await slave.wait_for(StatusUpdate)
        slave.server.close()
        new_slave = await successor(lambda: ScriptedSlave(endpoint))
        (registration,) = await new_slave.wait_for(RegisterExecutor)
        assert registration.tasks == ()
        assert registration.unacknowledged[0] == running.status
        assert [one.state for one in registration.unacknowledged] == [TaskState.RUNNING, TaskState.FINISHED]
        new_slave.send(ShutdownExecutor(executor_id=ExecutorId("e-1")))
        assert await ended(driver) == 0
        assert notes.calls == ["registered hello on s-1", "launch t-1", "disconnected", "reregistered", "shutdown"]
        new_slave.server.close()

    asyncio.run(scenario())
    count, differing = replay(tmp_path / "recording", ExecutorInit, ExecutorEvent, ExecutorCore)
    assert count >= 6
    assert differing == []


def test_wrong_token_ends_the_executor_with_a_reason(endpoint: str) -> None:
    async def scenario() -> None:
        slave = ScriptedSlave(endpoint, refusal="the token is not that of executor e-1")
        notes = Notes()
        driver = MesetaExecutorDriver(notes, environment=environment(endpoint))
        driver.start()
        assert await ended(driver) == 1
        reason = "the slave refused this executor: unauthorized: the token is not that of executor e-1"
        assert notes.calls == [f"error {reason}"]
        assert [(hello.kind, hello.name, hello.token) for hello in slave.hellos] == [("executor", "e-1", "secret")]
        slave.server.close()

    asyncio.run(scenario())


def test_executor_without_a_slave_ends_after_the_recovery_timeout(endpoint: str) -> None:
    async def scenario() -> None:
        notes = Notes()
        driver = MesetaExecutorDriver(notes, environment=environment(endpoint, recovery_timeout_s="0.2"))
        driver.start()
        assert await ended(driver) == 1
        assert notes.calls == ["shutdown"]

    asyncio.run(scenario())


def test_failing_callback_ends_the_executor(endpoint: str) -> None:
    async def scenario() -> None:
        slave = ScriptedSlave(endpoint)
        driver = MesetaExecutorDriver(Executor(), environment=environment(endpoint))
        driver.start()
        await slave.wait_for(RegisterExecutor)
        slave.send(launch("t-1"))
        assert await ended(driver) == 1
        slave.server.close()

    asyncio.run(scenario())


def test_environment_that_no_slave_made_is_refused() -> None:
    with pytest.raises(InvalidInput, match="MESETA_FRAMEWORK_ID is not set: an executor is started by a slave"):
        MesetaExecutorDriver(Executor(), environment={})
    with pytest.raises(InvalidInput, match="MESETA_RECOVERY_TIMEOUT_S is 'soon'; write seconds"):
        MesetaExecutorDriver(Executor(), environment=environment("ipc:///x", recovery_timeout_s="soon"))


def test_wrong_status_is_refused_where_it_is_passed(endpoint: str) -> None:
    driver = MesetaExecutorDriver(Executor(), environment=environment(endpoint))
    with pytest.raises(InvalidInput, match=r"send_status_update: .*task_id"):
        driver.send_status_update(TaskStatus(task_id=3, state=TaskState.RUNNING))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="data must be bytes"):
        driver.send_framework_message("text")  # type: ignore[arg-type]


def test_example_executor_works_in_threads_and_ends_on_shutdown(endpoint: str) -> None:
    async def scenario() -> None:
        slave = ScriptedSlave(endpoint)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "frameworks.examples.squares_executor"], env=environment(endpoint)
        )
        try:
            await slave.wait_for(RegisterExecutor)
            slave.send(launch("t-1", b"12"), launch("t-2", b"5"), KillTask(task_id=TaskId("t-2")))
            updates = await slave.wait_for(StatusUpdate, 4)
            last = {update.status.task_id: update.status for update in updates}
            assert (last[TaskId("t-1")].state, last[TaskId("t-1")].data) == (TaskState.FINISHED, b"144")
            assert last[TaskId("t-2")].state is TaskState.KILLED
            slave.send(ShutdownExecutor(executor_id=ExecutorId("e-1")))
            assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()
        slave.server.close()

    asyncio.run(scenario())
