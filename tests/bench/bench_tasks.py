"""Command tasks through the shipped daemons: the latency of one, and the rate and CPU of two thousand.

Peers in the same run: bare posix_spawn and wait, by one process. CPU is that of all processes:
daemons, supervisors, tasks and the benchmark's own scheduler.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

from meseta import Offer, Scheduler, SchedulerDriver, TaskInfo, TaskState, TaskStatus
from meseta.ids import TaskId
from meseta.keys import read_cluster, read_key_file
from meseta.model import CommandInfo, Filters, FrameworkInfo
from meseta.resources import parse_resources
from meseta.scheduler import MesetaSchedulerDriver
from tests.bench.harness import cluster, cpu_seconds, daemon_pids, emit, percentile

TASK_RESOURCES = parse_resources("cpus:0.05")
TRUE = CommandInfo(arguments=("/bin/true",))
NO_FILTER = Filters(refuse_s=0.0)


class Rate(Scheduler):
    """Keeps `in_flight` tasks running on each slave until `total` are done."""

    def __init__(self, total: int, in_flight: int) -> None:
        self.total = total
        self.in_flight = in_flight
        self.launched = 0
        self.bad: list[TaskStatus] = []
        self.finished = 0
        self.open_by_slave: dict[str, int] = {}
        self.done = asyncio.Event()

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            room = self.in_flight - self.open_by_slave.get(offer.slave_id, 0)
            fitting = offer.resources.get("cpus") // TASK_RESOURCES.get("cpus")
            count = min(room, fitting, self.total - self.launched)
            tasks = [self._task(offer, self.launched + index) for index in range(count)]
            self.launched += count
            self.open_by_slave[offer.slave_id] = self.open_by_slave.get(offer.slave_id, 0) + count
            if tasks:
                driver.launch_tasks([offer.offer_id], tasks, NO_FILTER)
            else:
                driver.decline_offer(offer.offer_id, NO_FILTER)

    def _task(self, offer: Offer, index: int) -> TaskInfo:
        return TaskInfo(
            task_id=TaskId(f"true-{index}"), slave_id=offer.slave_id, resources=TASK_RESOURCES, command=TRUE
        )

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        if not status.state.is_terminal:
            return
        if status.state is not TaskState.FINISHED:
            self.bad.append(status)
        self.finished += 1
        if status.slave_id is not None:
            self.open_by_slave[status.slave_id] -= 1
        if self.finished == self.total:
            self.done.set()


class Latency(Scheduler):
    """Launches one task at a time on an idle cluster; notes accept to TASK_RUNNING."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.running_s: list[float] = []
        self.finished_s: list[float] = []
        self.accepted_s = 0.0
        self.is_open = False
        self.done = asyncio.Event()

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            if self.is_open or len(self.finished_s) >= self.rounds:
                driver.decline_offer(offer.offer_id, NO_FILTER)
                continue
            self.is_open = True
            task_id = TaskId(f"one-{len(self.finished_s)}")
            task = TaskInfo(task_id=task_id, slave_id=offer.slave_id, resources=TASK_RESOURCES, command=TRUE)
            self.accepted_s = time.perf_counter()
            driver.launch_tasks([offer.offer_id], [task], NO_FILTER)

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        passed_s = time.perf_counter() - self.accepted_s
        if status.state is TaskState.RUNNING:
            self.running_s.append(passed_s)
        elif status.state.is_terminal:
            self.finished_s.append(passed_s)
            self.is_open = False
            if len(self.finished_s) == self.rounds:
                self.done.set()


async def drive(folder: Path, scheduler: Rate | Latency, name: str, limit_s: float) -> float:
    """Run a scheduler to its end; return the seconds from its first offer's arrival on."""
    where = read_cluster(folder / "cluster.json")
    driver = MesetaSchedulerDriver(
        scheduler,
        FrameworkInfo(name=name, user="root"),
        endpoint=where.master,
        keys=read_key_file(folder / "keys" / "operator.json").pair,
        master_public_key=where.master_public_key,
        auto_suppress=False,
    )
    started = time.perf_counter()
    driver.start()
    await asyncio.wait_for(scheduler.done.wait(), limit_s)
    took_s = time.perf_counter() - started
    driver.stop()
    await driver.join()
    return took_s


def bare_spawn(count: int) -> tuple[float, float]:
    """Return seconds and CPU seconds for `count` of posix_spawn and wait, one after the other."""
    before = os.times()
    started = time.perf_counter()
    for _ in range(count):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    took_s = time.perf_counter() - started
    after = os.times()
    return took_s, sum(after[:4]) - sum(before[:4])


def main() -> None:
    """Print one line for the rate and one for the latency."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--isolation", default="posix")
    options = parser.parse_args()
    flags = ["--resources", "cpus:4;mem:4GiB", "--isolation", options.isolation, "--without", "batch"]
    with cluster(slaves=2, options=flags) as folder:
        pids = daemon_pids(folder)
        roots = [os.getpid(), *pids.values()]
        warm_up = Rate(200, options.in_flight)
        asyncio.run(drive(folder, warm_up, "warm-up", 60.0))
        rate = Rate(options.tasks, options.in_flight)
        by_name = {name: cpu_seconds([pid]) for name, pid in pids.items()}
        before_s = cpu_seconds(roots)
        took_s = asyncio.run(drive(folder, rate, "rate", 120.0))
        cpu_s = cpu_seconds(roots) - before_s
        parts = {
            f"{name}_cpu_ms_per_task": (cpu_seconds([pid]) - by_name[name]) * 1000 / options.tasks
            for name, pid in pids.items()
        }
        assert not rate.bad, rate.bad[:3]
        slots = Rate(options.tasks // 4, 1)
        slots_s = asyncio.run(drive(folder, slots, "slots", 120.0))
        assert not slots.bad, slots.bad[:3]
        bare_s, bare_cpu_s = bare_spawn(options.tasks)
        emit(
            "true tasks",
            isolation=options.isolation,
            tasks=options.tasks,
            tasks_per_s=options.tasks / took_s,
            cpu_ms_per_task=cpu_s * 1000 / options.tasks,
            two_slots_tasks_per_s=slots.total / slots_s,
            bare_spawn_per_s=options.tasks / bare_s,
            bare_spawn_cpu_ms=bare_cpu_s * 1000 / options.tasks,
            **parts,
        )
    with cluster(slaves=1, options=flags) as folder:
        latency = Latency(options.rounds)
        asyncio.run(drive(folder, latency, "latency", 120.0))
        running, finished = sorted(latency.running_s), sorted(latency.finished_s)
        emit(
            "one task",
            isolation=options.isolation,
            rounds=options.rounds,
            accept_to_running_median_ms=percentile(running, 0.5) * 1000,
            accept_to_running_p99_ms=percentile(running, 0.99) * 1000,
            accept_to_finished_median_ms=percentile(finished, 0.5) * 1000,
        )


if __name__ == "__main__":
    main()
