"""A framework with an executor of its own: squares the numbers it is given.

`python -m frameworks.examples.squares 3 4 5` prints 9, 16 and 25. The slaves must have this package installed;
they say in $MESETA_PYTHON which interpreter has it.
"""

import sys
from collections.abc import Sequence

from meseta import (
    CommandInfo,
    ExecutorId,
    ExecutorInfo,
    Offer,
    Scheduler,
    SchedulerDriver,
    TaskId,
    TaskInfo,
    TaskState,
    TaskStatus,
    parse_resources,
    run,
)

EXECUTOR = ExecutorInfo(
    executor_id=ExecutorId("squares"),
    command=CommandInfo(value='exec "$MESETA_PYTHON" -P -m frameworks.examples.squares_executor'),
    resources=parse_resources("cpus:0.1;mem:64MiB"),
)
NEEDS = parse_resources("cpus:0.1;mem:8MiB")


class SquaresScheduler(Scheduler):
    def __init__(self, numbers: Sequence[int]) -> None:
        self.waiting = {TaskId(f"square-of-{number}"): number for number in numbers}
        self.squares: dict[TaskId, str] = {}
        self.count = len(self.waiting)

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            # The executor's own resources are needed once on each slave.
            free = offer.resources
            if EXECUTOR.executor_id not in offer.executor_ids and EXECUTOR.resources <= free:
                free = free - EXECUTOR.resources
            tasks = []
            while self.waiting and free >= NEEDS:
                task_id, number = self.waiting.popitem()
                tasks.append(
                    TaskInfo(
                        task_id=task_id,
                        slave_id=offer.slave_id,
                        resources=NEEDS,
                        executor=EXECUTOR,
                        data=str(number).encode(),
                    )
                )
                free = free - NEEDS
            driver.launch_tasks([offer.offer_id], tasks)

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        if status.state is TaskState.FINISHED and status.data:
            self.squares[status.task_id] = status.data.decode()
            print(self.squares[status.task_id], flush=True)
            if len(self.squares) == self.count:
                driver.stop()
        elif status.state.is_terminal:
            print(f"{status.task_id}: {status.state} {status.message}", file=sys.stderr)
            driver.abort()


if __name__ == "__main__":
    sys.exit(run(SquaresScheduler([int(text) for text in sys.argv[1:]]), name="squares", failover_timeout_s=10.0))
