"""A scripted master for tests of the slave daemon, and the daemon itself as a process."""

import asyncio
import contextlib
import getpass
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from meseta.ids import ContainerId, FrameworkId, SlaveId, TaskId
from meseta.keys import Cluster, create_cluster_keys, read_key_file, write_cluster
from meseta.messages import (
    AcknowledgeStatus,
    Message,
    RegisterSlave,
    ReregisterSlave,
    RunTask,
    SlaveRegistered,
    StatusUpdate,
)
from meseta.model import Address, CommandInfo, FrameworkInfo, SlaveInfo, Task, TaskInfo, TaskState, TaskStatus
from meseta.resources import resources
from slave.supervisor_client import find_supervisors
from tests.integration.driver_peers import ScriptedPeer

SLAVE = SlaveId("s-0001")
FRAMEWORK = FrameworkId("f-0001")


class ScriptedMaster(ScriptedPeer):
    """Admits the slave, and acknowledges what it is told unless `is_silent`."""

    def __init__(self, cluster: Path, endpoint: str = "tcp://127.0.0.1:0", *, epoch: int = 1) -> None:
        keys = cluster / "keys"
        super().__init__(
            endpoint,
            keys=read_key_file(keys / "master.json").pair,
            client_key=read_key_file(keys / "slave.json").public,
            epoch=epoch,
        )
        self.is_silent = False
        self.info: SlaveInfo | None = None
        self.listed: tuple[Task, ...] = ()

    def answer(self, message: Message) -> list[Message]:
        match message:
            case RegisterSlave():
                self.info = message.slave_info
                return [SlaveRegistered(slave_id=SLAVE)]
            case ReregisterSlave():
                self.info, self.listed = message.slave_info, message.tasks
                return [SlaveRegistered(slave_id=SLAVE, reregistered=True)]
            case StatusUpdate() if message.status.uuid is not None and not self.is_silent:
                return [
                    AcknowledgeStatus(
                        task_id=message.status.task_id, uuid=message.status.uuid, framework_id=message.framework_id
                    )
                ]
        return []

    def statuses(self, task_id: str = "t-1") -> list[TaskStatus]:
        """Return what was told of a task, repetitions left out."""
        updates = [m.status for m in self.received_messages if isinstance(m, StatusUpdate)]
        by_uuid = {status.uuid: status for status in updates if status.task_id == task_id}
        return list(by_uuid.values())

    def states(self, task_id: str = "t-1") -> list[TaskState]:
        """Return the states that were told of a task, repetitions left out."""
        return [status.state for status in self.statuses(task_id)]

    async def until_state(self, state: TaskState, task_id: str = "t-1") -> TaskStatus:
        """Wait for a state of a task."""
        await self.until(lambda: state in self.states(task_id))
        return next(status for status in self.statuses(task_id) if status.state is state)

    async def until_registered(self) -> Address:
        """Wait for the slave, return where it serves files."""
        await self.until(lambda: self.info is not None)
        assert self.info is not None
        return self.info.address

    def forget_slave(self) -> None:
        """Wait for the next registration."""
        self.info = None
        self.listed = ()


class Daemon:
    """`python -P -m slave` as a process."""

    def __init__(self, cluster: Path, *options: str) -> None:
        self.cluster = cluster
        self.runtime = cluster / "run"
        self.log = cluster / "slave.log"
        self._options = options
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        arguments = ["--cluster", str(self.cluster / "cluster.json"), "--work-dir", str(self.cluster / "work")]
        arguments += ["--runtime-dir", str(self.runtime), "--resources", "cpus:4;mem:1GiB;disk:1GiB"]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "slave", *arguments, *self._options, stderr=log
            )

    async def signal(self, number: int) -> int:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        return await self.wait()

    async def wait(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(10.0):
            return await self.process.wait()

    def supervisor_pids(self) -> list[int]:
        """Return the processes whose arguments name a socket in our runtime folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                arguments = path.read_bytes().split(b"\0")
                if b"slave.supervisor" in arguments and any(os.fsencode(self.runtime) in one for one in arguments):
                    found.append(int(path.parent.name))
        return found

    async def end(self) -> None:
        """End all: SIGUSR1 ends tasks, supervisor and daemon; what is left is killed."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(TimeoutError):
                await self.wait()
            if self.process.returncode is None:
                self.process.kill()
                await self.wait()
        for pid in self.supervisor_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        find_supervisors(self.runtime)


@asynccontextmanager
async def slave_cluster(folder: Path, *options: str) -> AsyncIterator[tuple[ScriptedMaster, Daemon]]:
    """A scripted master and a slave daemon that has registered with it."""
    create_cluster_keys(folder)
    master = ScriptedMaster(folder)
    public_key = read_key_file(folder / "keys" / "master.json").public
    write_cluster(folder / "cluster.json", Cluster(master=master.endpoint, master_public_key=public_key))
    daemon = Daemon(folder, *(options or ("--isolation", "posix")))
    try:
        await daemon.start()
        await master.until_registered()
        yield master, daemon
    finally:
        await daemon.end()
        master.server.close()


def framework_info(task_public_key: str | None = None) -> FrameworkInfo:
    return FrameworkInfo(name="test", user=getpass.getuser(), id=FRAMEWORK, task_public_key=task_public_key)


def run(command: str, task_id: str = "t-1", *, user: str | None = None, mem_mib: float = 64) -> RunTask:
    task = TaskInfo(
        task_id=TaskId(task_id),
        slave_id=SLAVE,
        resources=resources(cpus=0.5, mem_mib=mem_mib),
        command=CommandInfo(value=command, user=user),
    )
    return RunTask(framework_info=framework_info(), task=task)


def sandbox(daemon: Daemon, container_id: ContainerId | None, task_id: str = "t-1") -> Path:
    """Return where a task's files are."""
    assert container_id is not None
    return daemon.cluster / f"work/slaves/{SLAVE}/frameworks/{FRAMEWORK}/tasks/{task_id}.{container_id}"
