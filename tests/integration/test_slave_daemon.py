"""The slave daemon as a process, with a real supervisor, real tasks and a scripted master."""

import asyncio
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path

import msgspec
import pytest

from meseta.errors import RequestRefused
from meseta.files import SlaveFiles
from meseta.ids import ContainerId, ExecutorId, FrameworkId, TaskId
from meseta.keys import read_key_file
from meseta.messages import (
    ExecutorLost,
    ExecutorToFramework,
    FrameworkToExecutor,
    KillTask,
    RunTask,
    ShutdownExecutor,
    ShutdownFramework,
    ShutdownSlave,
)
from meseta.model import CommandInfo, ExecutorInfo, Reason, TaskState
from meseta.runner import replay
from meseta.transport import generate_keypair
from slave.core import SlaveCore
from slave.events import SlaveEvent, SlaveInit
from tests.integration.slave_peer import (
    FRAMEWORK,
    SLAVE,
    ScriptedMaster,
    framework_info,
    run,
    sandbox,
    slave_cluster,
)

LIMIT_S = 45.0
EXECUTOR = ExecutorId("e-1")


def play(coroutine: Coroutine[object, object, None]) -> None:
    """Run a test's coroutine within the limit of time."""

    async def limited() -> None:
        await asyncio.wait_for(coroutine, LIMIT_S)

    asyncio.run(limited())


def test_task_runs_and_leaves_its_output_in_the_sandbox(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            master.send(run("echo out; echo err >&2; echo $MESETA_TASK_ID; pwd; env | grep -c SECRET; exit 3"))
            status = await master.until_state(TaskState.FAILED)
            assert master.states() == [TaskState.RUNNING, TaskState.FAILED]
            assert (status.exit_status, status.message) == (3, "exited with status 3")
            folder = sandbox(daemon, status.container_id)
            assert (folder / "stdout").read_text() == f"out\nt-1\n{folder}\n0\n"
            assert (folder / "stderr").read_text() == "err\n"

    os.environ["MESETA_TEST_SECRET"] = "1"
    try:
        play(scenario())
    finally:
        del os.environ["MESETA_TEST_SECRET"]


def test_task_goes_on_when_the_daemon_is_killed_and_its_end_is_reported_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            witness = tmp_path / "witness"
            gate = tmp_path / "gate"
            os.mkfifo(gate)
            master.send(run(f"echo start >> {witness}; read line < {gate}; echo end >> {witness}; exit 7"))
            await master.until_state(TaskState.RUNNING)
            assert await daemon.signal(signal.SIGKILL) == -signal.SIGKILL
            master.forget_slave()
            await daemon.start()
            await master.until_registered()
            assert [(task.task_id, task.state) for task in master.listed] == [("t-1", TaskState.RUNNING)]
            await asyncio.to_thread(gate.write_text, "go\n")
            status = await master.until_state(TaskState.FAILED)
            assert status.exit_status == 7
            assert master.states() == [TaskState.RUNNING, TaskState.FAILED]
            assert witness.read_text() == "start\nend\n"

    play(scenario())


def test_end_of_a_task_while_the_daemon_is_dead_is_reported_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            gate, witness = tmp_path / "gate", tmp_path / "witness"
            os.mkfifo(gate)
            master.send(run(f"read line < {gate}; echo end >> {witness}; exit 5"))
            await master.until_state(TaskState.RUNNING)
            await daemon.signal(signal.SIGKILL)
            await asyncio.to_thread(gate.write_text, "go\n")
            async with asyncio.timeout(10.0):
                while not witness.exists():
                    await asyncio.sleep(0.01)
            await daemon.start()
            status = await master.until_state(TaskState.FAILED)
            assert status.exit_status == 5
            assert master.states() == [TaskState.RUNNING, TaskState.FAILED]

    play(scenario())


def test_updates_that_nobody_acknowledged_survive_a_kill_of_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            master.is_silent = True
            master.send(run("true"))
            await master.until_state(TaskState.RUNNING)
            await daemon.signal(signal.SIGKILL)
            master.is_silent = False
            await daemon.start()
            await master.until_state(TaskState.FINISHED)
            assert master.states() == [TaskState.RUNNING, TaskState.FINISHED]

    play(scenario())


def test_tasks_of_a_killed_supervisor_are_killed_and_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            pid_file = tmp_path / "pid"
            master.send(run(f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600"))
            await master.until_state(TaskState.RUNNING)
            async with asyncio.timeout(10.0):
                while not pid_file.exists():
                    await asyncio.sleep(0.01)
            (supervisor,) = daemon.supervisor_pids()
            os.kill(supervisor, signal.SIGKILL)
            status = await master.until_state(TaskState.FAILED)
            assert status.reason is Reason.SUPERVISOR_TERMINATED
            assert not _is_alive(int(pid_file.read_text()))
            master.send(run("true", "t-2"))
            await master.until_state(TaskState.FINISHED, "t-2")

    play(scenario())


def test_tasks_of_a_supervisor_that_died_with_the_daemon_are_killed_and_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            pid_file = tmp_path / "pid"
            master.send(run(f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600"))
            await master.until_state(TaskState.RUNNING)
            async with asyncio.timeout(10.0):
                while not pid_file.exists():
                    await asyncio.sleep(0.01)
            await daemon.signal(signal.SIGKILL)
            for pid in daemon.supervisor_pids():
                os.kill(pid, signal.SIGKILL)
            await daemon.start()
            status = await master.until_state(TaskState.FAILED)
            assert status.reason is Reason.SUPERVISOR_TERMINATED
            assert not _is_alive(int(pid_file.read_text()))

    play(scenario())


def test_kill_ends_the_whole_tree_of_a_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, _):
            master.send(run("sleep 600 & sleep 600"))
            await master.until_state(TaskState.RUNNING)
            master.send(KillTask(task_id=run("x").task.task_id, framework_id=FRAMEWORK, grace_period_s=0.2))
            status = await master.until_state(TaskState.KILLED)
            assert status.message in {"killed by SIGTERM", "killed by SIGKILL"}

    play(scenario())


def test_program_that_does_not_exist_fails_with_the_cause(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, _):
            order = run("x")
            assert order.task.command is not None
            command = msgspec.structs.replace(order.task.command, value=None, arguments=("/no/such/program",))
            task = msgspec.structs.replace(order.task, command=command)
            master.send(msgspec.structs.replace(order, task=task))
            status = await master.until_state(TaskState.FAILED)
            assert status.reason is Reason.CONTAINER_LAUNCH_FAILED
            assert "/no/such/program" in status.message

    play(scenario())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_task_runs_as_the_user_it_names_in_a_sandbox_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        # pytest's own folders are closed to other users.
        with tempfile.TemporaryDirectory(prefix="meseta-") as name:
            Path(name).chmod(0o711)
            await in_folder(Path(name))

    async def in_folder(folder: Path) -> None:
        async with slave_cluster(folder) as (master, daemon):
            master.send(run("id -un; touch mine", user="nobody"))
            status = await master.until_state(TaskState.FINISHED)
            folder = sandbox(daemon, status.container_id)
            assert (folder / "stdout").read_text() == "nobody\n"
            assert stat.S_IMODE(folder.stat().st_mode) == 0o750
            assert {path.owner() for path in folder.iterdir()} == {"nobody"}
            master.send(run("true", "t-2", user="no-such-user"))
            status = await master.until_state(TaskState.FAILED, "t-2")
            assert "no-such-user" in status.message
            master.send(run("true", "t-3", user="no\0body"))
            status = await master.until_state(TaskState.FAILED, "t-3")
            assert "this machine has no user" in status.message

    monkeypatch.setenv("LOGNAME", "nobody")  # As after `su`: tasks of nobody must not run as root for that.
    play(scenario())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")
def test_task_over_its_memory_is_told_by_limit_and_peak(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path, "--isolation", "cgroups") as (master, _):
            hog = 'exec python3 -c "b = bytearray(200 << 20)"'
            master.send(run(hog, mem_mib=64))
            status = await master.until_state(TaskState.FAILED)
            assert status.reason is Reason.CONTAINER_LIMITATION_MEMORY
            assert status.limitation is not None
            assert status.limitation.limit_milli == 64000

    play(scenario())


EXECUTOR_PROGRAM = """
import os
from meseta.executor import Executor, run_executor
from meseta.model import TaskState, TaskStatus

class Echo(Executor):
    def launch_task(self, driver, task):
        driver.send_status_update(TaskStatus(task_id=task.task_id, state=TaskState.RUNNING, data=task.data))

    def framework_message(self, driver, data):
        task_id, _, text = data.decode().partition(" ")
        driver.send_framework_message(str(os.getpid()).encode())
        driver.send_status_update(TaskStatus(task_id=task_id, state=TaskState.FINISHED, message=text))

    def kill_task(self, driver, task_id, grace_period_s):
        driver.send_status_update(TaskStatus(task_id=task_id, state=TaskState.KILLED))

raise SystemExit(run_executor(Echo()))
"""


def executor_run(program: Path, task_id: str) -> RunTask:
    command = CommandInfo(arguments=(sys.executable, str(program)))
    executor = ExecutorInfo(executor_id=EXECUTOR, command=command)
    order = run("x", task_id)
    task = msgspec.structs.replace(order.task, command=None, executor=executor, data=task_id.encode())
    return msgspec.structs.replace(order, task=task)


def test_executor_keeps_its_tasks_over_a_kill_of_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        program = tmp_path / "echo.py"
        program.write_text(EXECUTOR_PROGRAM)
        async with slave_cluster(tmp_path) as (master, daemon):

            def tell(text: str) -> None:
                master.send(
                    FrameworkToExecutor(
                        slave_id=SLAVE, executor_id=EXECUTOR, framework_id=FRAMEWORK, data=text.encode()
                    )
                )

            def answers() -> list[bytes]:
                return [m.data for m in master.received_messages if isinstance(m, ExecutorToFramework)]

            for task_id in ("t-1", "t-2", "t-3"):
                master.send(executor_run(program, task_id))
            for task_id in ("t-1", "t-2", "t-3"):
                assert (await master.until_state(TaskState.RUNNING, task_id)).data == task_id.encode()
            tell("t-1 before")
            assert (await master.until_state(TaskState.FINISHED, "t-1")).message == "before"
            await daemon.signal(signal.SIGKILL)
            master.forget_slave()
            await daemon.start()
            await master.until_registered()
            # Whether the acknowledgement of t-1 came before the kill is a matter of luck.
            assert {task.task_id for task in master.listed} - {"t-1"} == {"t-2", "t-3"}
            async with asyncio.timeout(15.0):
                while "t-2" not in {s.task_id for s in master.statuses("t-2") if s.state is TaskState.FINISHED}:
                    tell("t-2 after")  # Unreliable: lost until the executor is back.
                    await asyncio.sleep(0.2)
            assert len(set(answers())) == 1
            master.send(KillTask(task_id=TaskId("t-3"), framework_id=FRAMEWORK))
            await master.until_state(TaskState.KILLED, "t-3")
            master.send(ShutdownExecutor(executor_id=EXECUTOR, framework_id=FRAMEWORK))
            await master.until(lambda: any(isinstance(m, ExecutorLost) for m in master.received_messages))
            for task_id in ("t-1", "t-2", "t-3"):
                assert len(master.states(task_id)) == 2

    play(scenario())


def test_sandbox_is_served_to_principals_and_to_its_own_framework_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            pair = generate_keypair()
            order = run("echo hello")
            master.send(msgspec.structs.replace(order, framework_info=framework_info(pair.public)))
            container_id = (await master.until_state(TaskState.FINISHED)).container_id
            assert container_id is not None
            await daemon.signal(signal.SIGTERM)
            master.forget_slave()
            await daemon.start()  # Also what ended before is found, from disk.
            address = await master.until_registered()
            operator = read_key_file(tmp_path / "keys" / "operator.json").pair
            async with SlaveFiles(address.endpoint, keys=operator, server_public_key=address.public_key) as files:
                async with asyncio.timeout(5.0):
                    while (text := await _read(files, FRAMEWORK, container_id)) is None:
                        await asyncio.sleep(0.05)
                assert text == b"hello\n"
            async with SlaveFiles(address.endpoint, keys=pair, server_public_key=address.public_key) as files:
                assert await files.read(FRAMEWORK, container_id, "stdout") == b"hello\n"
                with pytest.raises(RequestRefused, match="may not read"):
                    await files.read(FrameworkId("f-other"), container_id, "stdout")

    play(scenario())


def test_recording_of_a_run_replays_to_the_same_effects(tmp_path: Path) -> None:
    async def scenario() -> None:
        recording = tmp_path / "recording"
        async with slave_cluster(tmp_path, "--isolation", "posix", "--record", str(recording)) as (master, daemon):
            for number in range(5):
                master.send(run(f"exit {number}", f"t-{number}"))
            for number in range(5):
                await master.until_state(TaskState.FAILED if number else TaskState.FINISHED, f"t-{number}")
            await daemon.signal(signal.SIGTERM)
        count, differing = replay(recording, SlaveInit, SlaveEvent, SlaveCore)
        assert count > 15
        assert differing == []

    play(scenario())


def test_removed_slave_ends_with_all_its_tasks_and_comes_back_as_a_new_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            master.send(run("exec sleep 600"))
            await master.until_state(TaskState.RUNNING)
            master.send(ShutdownSlave(message="test"))
            assert await daemon.wait() == 75
            async with asyncio.timeout(10.0):
                while daemon.supervisor_pids():
                    await asyncio.sleep(0.01)
            master.forget_slave()
            await daemon.start()
            await master.until_registered()
            assert master.info is not None
            assert master.info.id is None

    play(scenario())


def test_framework_that_is_shut_down_has_no_tasks_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, daemon):
            master.send(run("exec sleep 600"))
            await master.until_state(TaskState.RUNNING)
            master.send(ShutdownFramework(framework_id=FRAMEWORK))
            status = await master.until_state(TaskState.KILLED)
            assert (status.reason, status.uuid) == (Reason.FRAMEWORK_REMOVED, None)
            await daemon.signal(signal.SIGTERM)
            master.forget_slave()
            await daemon.start()
            await master.until_registered()
            assert master.listed == ()

    play(scenario())


def test_slave_registers_with_the_next_master_on_the_same_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (master, _):
            master.send(run("exec sleep 600"))
            await master.until_state(TaskState.RUNNING)
            endpoint = master.endpoint
            master.server.close()
            successor = ScriptedMaster(tmp_path, endpoint, epoch=2)
            try:
                await successor.until_registered()
                assert successor.info is not None
                assert successor.info.id == SLAVE
                assert [task.task_id for task in successor.listed] == ["t-1"]
            finally:
                successor.server.close()

    play(scenario())


def test_second_daemon_on_the_same_work_folder_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with slave_cluster(tmp_path) as (_, daemon):
            first = daemon.process
            await daemon.start()
            assert await daemon.wait() == 1
            assert "another slave daemon uses" in daemon.log.read_text()
            daemon.process = first

    play(scenario())


async def _read(files: SlaveFiles, framework_id: FrameworkId, container_id: ContainerId) -> bytes | None:
    try:
        return await files.read(framework_id, container_id, "stdout")
    except RequestRefused:
        return None  # Not indexed yet.


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
