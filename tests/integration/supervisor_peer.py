"""A slave daemon's part in the tests of the supervisor: starts one, asks, waits for answers, cleans up."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from isolation.cgroup_files import own_hierarchies, walk
from isolation.processes import all_stats, find_mark, read_stat
from isolation.trees import CONTAINER_MARK
from meseta.ids import ContainerId
from slave.supervisor_client import SupervisorClient, find_supervisors, kill_orphans, start_supervisor
from slave.supervisor_messages import (
    Containers,
    Exited,
    Forget,
    FromSupervisor,
    KillContainer,
    Limits,
    ListContainers,
    RetireSupervisor,
    StartContainer,
    Started,
    StartFailed,
    ToSupervisor,
)

LIMIT_S = 15.0 * float(os.environ.get("MESETA_TEST_SLOWNESS", "1"))
CGROUP_ROOT = "meseta-test"
_NO_LIMITS = Limits()

Result = TypeVar("Result", bound=FromSupervisor)


def run(coroutine: Coroutine[object, object, None]) -> None:
    """Run a test's coroutine within the limit of time."""

    async def limited() -> None:
        await asyncio.wait_for(coroutine, 4 * LIMIT_S)

    asyncio.run(limited())


class Peer:
    """One connection to one supervisor, with everything that it has said."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.reports: list[FromSupervisor] = []
        self.lost: str | None = None
        self._changed = asyncio.Condition()
        self._news: set[asyncio.Task[None]] = set()
        self.client = SupervisorClient(path, self._on_report, self._on_lost)

    def send(self, message: ToSupervisor) -> None:
        self.client.send(message)

    def start(
        self,
        name: str,
        *arguments: str,
        limits: Limits = _NO_LIMITS,
        user: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> Path:
        """Ask for a container; return its sandbox."""
        sandbox = self.folder / name
        sandbox.mkdir(exist_ok=True)
        self.send(
            StartContainer(
                container_id=ContainerId(name),
                arguments=arguments,
                environment={"PATH": os.environ["PATH"]} if environment is None else environment,
                sandbox=str(sandbox),
                user=user,
                limits=limits,
            )
        )
        return sandbox

    def kill(self, name: str, grace_period_s: float) -> None:
        self.send(KillContainer(container_id=ContainerId(name), grace_period_s=grace_period_s))

    def forget(self, name: str) -> None:
        self.send(Forget(container_id=ContainerId(name)))

    async def started(self, name: str) -> Started:
        return await self.wait(Started, lambda report: report.container_id == name, name)

    async def exited(self, name: str) -> Exited:
        return await self.wait(Exited, lambda report: report.container_id == name, name)

    async def failed(self, name: str) -> str:
        return (await self.wait(StartFailed, lambda report: report.container_id == name)).message

    async def listed(self) -> Containers:
        self.reports = [report for report in self.reports if not isinstance(report, Containers)]
        self.send(ListContainers())
        return await self.wait(Containers, lambda report: True)

    async def wait(self, kind: type[Result], condition: Callable[[Result], bool], name: str = "") -> Result:
        """Return the first report of that kind, past or to come; fail at once if container `name` did not start."""

        def matching() -> list[Result]:
            return [report for report in self.reports if isinstance(report, kind) and condition(report)]

        def failures() -> list[StartFailed]:
            return [each for each in self.reports if isinstance(each, StartFailed) and each.container_id == name]

        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: bool(matching() or failures())), LIMIT_S)
        assert matching(), f"{kind.__name__} of {name} will never come: {failures()}"
        return matching()[0]

    async def until_lost(self) -> str:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.lost is not None), LIMIT_S)
        assert self.lost is not None
        return self.lost

    def _on_report(self, report: FromSupervisor) -> None:
        self.reports.append(report)
        self._notify()

    def _on_lost(self, reason: str) -> None:
        self.lost = reason
        self._notify()

    def _notify(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._news.add(task)
        task.add_done_callback(self._news.discard)


@asynccontextmanager
async def supervisor(folder: Path, isolation: str) -> AsyncIterator[Peer]:
    """Start a supervisor; at the end nothing is left of it and its containers."""
    path = await start_supervisor(folder, isolation=isolation, cgroup_root=CGROUP_ROOT, log_file=folder / "log")
    peer = Peer(path, folder)
    pid = (await peer.listed()).supervisor_pid
    try:
        yield peer
    finally:
        peer.client.close()
        await clean_up(folder, pid, isolation)


async def clean_up(folder: Path, supervisor_pid: int, isolation: str) -> None:
    """End a supervisor with all that it owns, in whatever state a test left it."""
    if find_supervisors(folder):
        last = Peer(find_supervisors(folder)[0], folder)
        running = (await last.listed()).running
        for started in running:
            last.kill(started.container_id, 0.0)
        for started in running:
            await last.exited(started.container_id)
        await last.listed()
        for report in list(last.reports):
            if isinstance(report, Exited):
                last.forget(report.container_id)
        last.send(RetireSupervisor())
        await last.until_lost()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor_pid, signal.SIGKILL)
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
        orphans = [Started(container_id=ContainerId(name), pid=0, start_ticks=0) for name in names]
        await asyncio.to_thread(kill_orphans, orphans, isolation)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the world is as it must become."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


async def until_written(path: Path, count: int = 1) -> list[str]:
    """Return the lines of a file when there are `count` whole ones."""

    def lines() -> list[str]:
        return path.read_text().splitlines(keepends=True) if path.exists() else []

    await until(lambda: len(lines()) >= count and lines()[-1].endswith("\n"), f"{count} lines in {path}")
    return [line.rstrip("\n") for line in lines()]


def is_alive(pid: int) -> bool:
    """True if a process of that pid runs; a zombie does not."""
    stat = read_stat(pid)
    return stat is not None and stat.is_alive


def marked(name: str) -> list[int]:
    """Return the living processes that bear a container's mark."""
    return [stat.pid for stat in all_stats() if stat.is_alive and find_mark(stat.pid, CONTAINER_MARK).value == name]


def group_folders(fragment: str) -> list[str]:
    """Return every cgroup on this machine whose path holds `fragment`."""
    return [path for hierarchy in own_hierarchies() for path in walk(hierarchy.mount) if fragment in path]
