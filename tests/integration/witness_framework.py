"""A framework for tests that kill everything: what it knows is in a file, before it acts on it.

`python -P -m tests.integration.witness_framework FOLDER UNITS SEED` runs UNITS shell tasks to their
end. Each task appends a line at its start and at its end to FOLDER/witness: that file knows nothing
of Meseta, and is compared with FOLDER/journal, what the framework was told.
"""

import json
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from meseta.ids import FrameworkId, SlaveId, TaskId
from meseta.model import Capability, CommandInfo, Filters, Offer, TaskInfo, TaskQuery, TaskState, TaskStatus
from meseta.resources import parse_resources
from meseta.scheduler import Scheduler, SchedulerDriver, run
from tests.integration.real_cluster import read_json_lines

TASK_RESOURCES = parse_resources("cpus:0.5;mem:64MiB")
LIVED = {TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED}


class Witness(Scheduler):
    """Launches a unit of work again under a new id until one of its tasks has lived to its end."""

    def __init__(self, folder: Path, unit_count: int, seed: int, recording: Path) -> None:
        self._folder = folder
        self._unit_count = unit_count
        self._rng = random.Random(seed)
        self.framework_id: FrameworkId | None = None
        self._open: dict[TaskId, tuple[int, SlaveId]] = {}
        self._finished: set[int] = set()
        self._launch_count = 0
        for record in read_json_lines(folder / "journal"):
            self._replay(record)
        self._journal = (folder / "journal").open("a", buffering=1)
        self.recording = recording

    def _replay(self, record: dict[str, object]) -> None:
        match record["what"]:
            case "registered":
                self.framework_id = FrameworkId(str(record["framework_id"]))
            case "launch":
                self._launch_count += 1
                unit_index = int(str(record["unit"]))
                self._open[TaskId(str(record["task_id"]))] = (unit_index, SlaveId(str(record["slave_id"])))
            case "status":
                self._heard(TaskId(str(record["task_id"])), TaskState(str(record["state"])))

    def _write(self, **record: object) -> None:
        self._journal.write(json.dumps(record) + "\n")

    def _heard(self, task_id: TaskId, state: TaskState) -> None:
        if state.is_terminal and task_id in self._open:
            unit_index, _ = self._open.pop(task_id)
            if state in LIVED:
                self._finished.add(unit_index)

    def registered(self, driver: SchedulerDriver, framework_id: FrameworkId) -> None:
        self._write(what="registered", framework_id=framework_id)
        self._resume(driver)

    def reregistered(self, driver: SchedulerDriver) -> None:
        self._resume(driver)

    def _resume(self, driver: SchedulerDriver) -> None:
        queries = [TaskQuery(task_id=task_id, slave_id=slave_id) for task_id, (_, slave_id) in self._open.items()]
        if queries:
            driver.reconcile_tasks(queries)
        driver.revive_offers()
        self._stop_when_done(driver)

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            busy = {unit_index for unit_index, _ in self._open.values()} | self._finished
            waiting = [unit_index for unit_index in range(self._unit_count) if unit_index not in busy]
            tasks: list[TaskInfo] = []
            left = offer.resources
            for unit_index in waiting:
                if not left >= TASK_RESOURCES:
                    break
                left = left - TASK_RESOURCES
                tasks.append(self._task(offer, unit_index))
            if tasks:
                driver.launch_tasks([offer.offer_id], tasks, Filters(refuse_s=0.5))
            else:
                driver.decline_offer(offer.offer_id, Filters(refuse_s=2.0))

    def _task(self, offer: Offer, unit_index: int) -> TaskInfo:
        task_id = TaskId(f"unit-{unit_index}-{self._launch_count}")
        self._launch_count += 1
        self._open[task_id] = (unit_index, offer.slave_id)
        self._write(what="launch", task_id=task_id, unit=unit_index, slave_id=offer.slave_id)
        witness = shlex.quote(str(self._folder / "witness"))
        seconds = self._rng.uniform(0.05, 2.0)
        program = f"echo start {task_id} >> {witness}; sleep {seconds:.2f}; echo end {task_id} >> {witness}"
        command = CommandInfo(value=program)
        return TaskInfo(task_id=task_id, slave_id=offer.slave_id, resources=TASK_RESOURCES, command=command)

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        self._write(
            what="status",
            task_id=status.task_id,
            state=status.state,
            uuid=status.uuid,
            reason=status.reason,
            message=status.message,
        )
        self._heard(status.task_id, status.state)
        if status.state.is_terminal:
            driver.revive_offers()
        self._stop_when_done(driver)

    def _stop_when_done(self, driver: SchedulerDriver) -> None:
        if len(self._finished) == self._unit_count and not self._open:
            (self._folder / "done").touch()
            driver.stop(failover=True)

    def error(self, driver: SchedulerDriver, message: str) -> None:
        self._write(what="error", message=message)


def main() -> int:
    """Run until every unit has lived to its end."""
    folder, unit_count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    number = len(list(folder.glob("recordings/scheduler-*.rec")))
    witness = Witness(folder, unit_count, seed, folder / "recordings" / f"scheduler-{number}.rec")
    return run(
        witness,
        name="witness",
        framework_id=witness.framework_id,
        capabilities=(Capability.PARTITION_AWARE,),
        record=witness.recording,
    )


if __name__ == "__main__":
    sys.exit(main())
