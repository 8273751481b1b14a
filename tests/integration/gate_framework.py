"""A framework for tests of partitions: on each slave one task for each gate, which ends when that gate is opened.

`python -P -m tests.integration.gate_framework FOLDER NAME SLAVES GATES [partition-aware]`; GATES are words
joined by commas, and touching FOLDER/GATE opens a gate. The tasks append to FOLDER/witness, which knows
nothing of Meseta; what the framework is told goes to FOLDER/NAME.journal.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from meseta.ids import FrameworkId, SlaveId, TaskId
from meseta.model import Capability, CommandInfo, Offer, TaskInfo, TaskStatus
from meseta.resources import parse_resources
from meseta.scheduler import Scheduler, SchedulerDriver, run

TASK_RESOURCES = parse_resources("cpus:0.2;mem:32MiB")


class Gates(Scheduler):
    """Runs until every task has a terminal state."""

    def __init__(self, folder: Path, name: str, slave_count: int, gates: Sequence[str]) -> None:
        self._folder = folder
        self._name = name
        self._slave_count = slave_count
        self._gates = gates
        self._used: dict[SlaveId, None] = {}
        self._open: dict[TaskId, None] = {}
        self._journal = (folder / f"{name}.journal").open("a", buffering=1)

    def registered(self, driver: SchedulerDriver, framework_id: FrameworkId) -> None:
        self._write(what="registered", framework_id=framework_id)

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            tasks: list[TaskInfo] = []
            if offer.slave_id not in self._used and len(self._used) < self._slave_count:
                self._used[offer.slave_id] = None
                tasks = [self._task(offer, gate) for gate in self._gates]
            driver.launch_tasks([offer.offer_id], tasks)

    def _task(self, offer: Offer, gate: str) -> TaskInfo:
        task_id = TaskId(f"{self._name}-{gate}-{offer.slave_id}")
        self._open[task_id] = None
        witness, opened = shlex.quote(str(self._folder / "witness")), shlex.quote(str(self._folder / gate))
        program = (
            f"echo start {task_id} >> {witness};"
            f" until [ -e {opened} ]; do echo beat {task_id} >> {witness}; sleep 0.1; done;"
            f" echo end {task_id} >> {witness}"
        )
        command = CommandInfo(value=program)
        return TaskInfo(task_id=task_id, slave_id=offer.slave_id, resources=TASK_RESOURCES, command=command)

    def slave_lost(self, driver: SchedulerDriver, slave_id: SlaveId) -> None:
        self._write(what="slave lost", slave_id=slave_id)

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        self._write(what="status", task_id=status.task_id, state=status.state, uuid=status.uuid, reason=status.reason)
        if status.state.is_terminal:
            self._open.pop(status.task_id, None)
        if len(self._used) == self._slave_count and not self._open:
            driver.stop()

    def error(self, driver: SchedulerDriver, message: str) -> None:
        self._write(what="error", message=message)

    def _write(self, **record: object) -> None:
        self._journal.write(json.dumps(record) + "\n")


def main() -> int:
    """Run until every task has ended."""
    folder, name, slave_count, gates, *aware = sys.argv[1:]
    scheduler = Gates(Path(folder), name, int(slave_count), gates.split(","))
    return run(scheduler, name=name, capabilities=(Capability.PARTITION_AWARE,) if aware else ())


if __name__ == "__main__":
    sys.exit(main())
