"""What a supervisor adds to starting and reaping a process: 2,000 `true` containers, 40 in flight.

Prints one JSON line. CPU is that of the supervisor and of its tasks; beside it stands a bare
loop of posix_spawn and wait in the same run, and the client's own CPU.
"""

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from meseta.errors import IsolationError
from meseta.ids import ContainerId
from slave.supervisor_client import SupervisorClient, start_supervisor
from slave.supervisor_messages import (
    Containers,
    Exited,
    Forget,
    FromSupervisor,
    Limits,
    ListContainers,
    RetireSupervisor,
    StartContainer,
    StartFailed,
)
from tests.bench.harness import emit, pss_mib

TASK_COUNT = 2000
IN_FLIGHT = 40
LIMIT_S = 120.0
LIMITS = Limits(cpu_milli=50, mem_bytes=32 << 20, pids=100)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

BARE_LOOP = f"""
import os, resource, time
begin = time.perf_counter()
running = set()
for _ in range({TASK_COUNT}):
    if len(running) == {IN_FLIGHT}:
        running.discard(os.wait()[0])
    running.add(os.posix_spawn("/bin/true", ("true",), {{}}, setsid=True))
while running:
    running.discard(os.wait()[0])
usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(time.perf_counter() - begin, sum(usage.ru_utime + usage.ru_stime for usage in usages))
"""


def cpu_s_of(pid: int) -> float:
    """Return the CPU time of a process and of the children it has reaped, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S


class Load:
    """Keeps `IN_FLIGHT` containers running until all have ended."""

    def __init__(self, path: Path, sandbox: str) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sandbox = sandbox
        self.listed: asyncio.Future[Containers] = asyncio.get_running_loop().create_future()
        self.started_count = 0
        self.ended_count = 0
        self.client = SupervisorClient(path, self.on_report, self.on_lost)
        self.client.send(ListContainers())

    def on_lost(self, reason: str) -> None:
        self.done.set_exception(RuntimeError(reason))

    def on_report(self, report: FromSupervisor) -> None:
        match report:
            case Containers():
                self.listed.set_result(report)
            case Exited():
                if report.exit_status != 0:
                    self.done.set_exception(RuntimeError(f"{report}"))
                self.client.send(Forget(container_id=report.container_id))
                self.ended_count += 1
                if self.started_count < TASK_COUNT:
                    self.start_one()
                elif self.ended_count == TASK_COUNT:
                    self.done.set_result(None)
            case StartFailed():
                self.done.set_exception(RuntimeError(report.message))
            case _:
                pass

    def start_one(self) -> None:
        self.started_count += 1
        self.client.send(
            StartContainer(
                container_id=ContainerId(f"bench-{self.started_count}"),
                arguments=("/bin/true",),
                environment={"PATH": "/usr/bin:/bin"},
                sandbox=self.sandbox,
                limits=LIMITS,
            )
        )


async def measure(isolation: str) -> dict[str, object]:
    """Run the load through a supervisor of its own and return its figures."""
    with tempfile.TemporaryDirectory(prefix="meseta-bench-") as folder:
        path = await start_supervisor(
            Path(folder), isolation=isolation, cgroup_root="meseta-bench", log_file=Path(folder) / "log"
        )
        load = Load(path, folder)
        containers = await asyncio.wait_for(load.listed, LIMIT_S)
        pid = containers.supervisor_pid
        own_before = resource.getrusage(resource.RUSAGE_SELF)
        before_s, begin = cpu_s_of(pid), time.perf_counter()
        for _ in range(IN_FLIGHT):
            load.start_one()
        await asyncio.wait_for(load.done, LIMIT_S)
        wall_s = time.perf_counter() - begin
        cpu_s = cpu_s_of(pid) - before_s
        own = resource.getrusage(resource.RUSAGE_SELF)
        client_s = own.ru_utime + own.ru_stime - own_before.ru_utime - own_before.ru_stime
        figures: dict[str, object] = {
            "isolation": containers.isolation,
            "cpu_ms_per_task": round(cpu_s / TASK_COUNT * 1000, 3),
            "tasks_per_s": round(TASK_COUNT / wall_s),
            "client_cpu_ms_per_task": round(client_s / TASK_COUNT * 1000, 3),
            "pss_mib": round(pss_mib(pid), 1),
        }
        load.client.send(RetireSupervisor())
        load.client.close()
        return figures


def measure_bare() -> dict[str, object]:
    """Run the bare loop in a fresh interpreter."""
    result = subprocess.run(
        (sys.executable, "-P", "-S", "-c", BARE_LOOP), capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    wall_s, cpu_s = (float(field) for field in result.stdout.split())
    return {
        "cpu_ms_per_task": round(cpu_s / TASK_COUNT * 1000, 3),
        "tasks_per_s": round(TASK_COUNT / wall_s),
    }


def main() -> None:
    """Print the figures."""
    bare = measure_bare()
    posix = asyncio.run(measure("posix"))
    try:
        cgroups: object = asyncio.run(measure("cgroups"))
    except IsolationError as error:
        cgroups = str(error)
    emit("supervisor", tasks=TASK_COUNT, in_flight=IN_FLIGHT, bare_posix_spawn=bare, posix=posix, cgroups=cgroups)


if __name__ == "__main__":
    main()
