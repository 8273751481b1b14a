"""A framework in 30 lines: runs a command N times, each once, and fails if one of them fails.

`python -m frameworks.examples.commands 5 'echo hello'`
"""

import sys
from collections.abc import Sequence

from meseta import CommandInfo, Offer, Scheduler, SchedulerDriver, TaskId, TaskInfo, TaskStatus, parse_resources, run

NEEDS = parse_resources("cpus:0.1;mem:32MiB")


class Commands(Scheduler):
    def __init__(self, count: int, command: str) -> None:
        self.command = command
        self.waiting = [TaskId(f"command-{index}") for index in range(count)]
        self.active = set(self.waiting)
        self.failed: list[str] = []

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            free, tasks = offer.resources, []
            while self.waiting and free >= NEEDS:
                command = CommandInfo(value=self.command)
                task_id = self.waiting.pop()
                tasks.append(TaskInfo(task_id=task_id, slave_id=offer.slave_id, resources=NEEDS, command=command))
                free = free - NEEDS
            driver.launch_tasks([offer.offer_id], tasks)  # Without tasks, this declines the offer.

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        print(status.task_id, status.state, status.message, flush=True)
        if status.state.is_terminal and status.task_id in self.active:
            self.active.remove(status.task_id)
            if status.state != "TASK_FINISHED":
                self.failed.append(status.task_id)
            if not self.active:
                driver.stop()


if __name__ == "__main__":
    scheduler = Commands(int(sys.argv[1]), sys.argv[2])
    # Nobody could take over from a scheduler that remembers nothing: without it, its tasks may end soon.
    sys.exit(run(scheduler, name="commands", failover_timeout_s=10.0) or len(scheduler.failed) > 0)
