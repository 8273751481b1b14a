"""Whole task lives through the master's core alone: offer, accept, launch, RUNNING, FINISHED, acknowledgements.

Prints one JSON line. The floor is 10,000 lives a second.
"""

import gc
import json
import os
import time

from master.events import MasterEvent, Received
from meseta.ids import SessionId, SlaveId, StatusUuid, TaskId
from meseta.messages import AcknowledgeStatus, RunTask, StatusUpdate
from meseta.model import CommandInfo, Offer, TaskInfo, TaskState, TaskStatus
from meseta.resources import parse_resources
from tests.unit.master_builders import Harness, accept

SLAVE_COUNT = 100
ROUND_COUNT = 300
FLOOR_PER_S = 10_000
TASK = parse_resources("cpus:0.5;mem:128MiB")
COMMAND = CommandInfo(value="true")


class Lives:
    """A cluster whose slaves run every task at once."""

    def __init__(self, *, tasks_per_offer: int) -> None:
        self.harness = Harness(min_refuse_s=0.0)
        self.tasks_per_offer = tasks_per_offer
        total = parse_resources("cpus:4;mem:4GiB;disk:100GiB;ports:[31000-32000]")
        self.slaves: dict[SlaveId, SessionId] = {}
        for number in range(SLAVE_COUNT):
            session, slave_id = self.harness.slave(total, f"host{number}")
            self.slaves[slave_id] = session
        self.framework, self.framework_id = self.harness.framework()
        self.task_count = 0
        self.core_s = 0.0

    def round(self) -> int:
        """Offer all slaves, launch on each, end all tasks; return how many lives that were."""
        harness, framework_id, framework = self.harness, self.framework_id, self.framework
        handle, tick = harness.core.handle, harness.core.tick
        before = self.task_count
        harness.now += 0.01  # Long enough for a round, too short for pings.
        inputs: list[MasterEvent] = []
        started = time.process_time()
        effects = tick(harness.now)
        self.core_s += time.process_time() - started
        offers = [offer for effect in effects for offer in getattr(getattr(effect, "message", None), "offers", ())]
        assert len(offers) == SLAVE_COUNT, f"{len(offers)} offers for {SLAVE_COUNT} slaves"
        for offer in offers:
            inputs += self._inputs(offer)
        launched = 0
        started = time.process_time()
        for event in inputs:
            for effect in handle(event, harness.now):
                if type(getattr(effect, "message", None)) is RunTask:
                    launched += 1
        self.core_s += time.process_time() - started
        assert launched == self.task_count - before
        assert framework in harness.inboxes
        assert framework_id
        return launched

    def _inputs(self, offer: Offer) -> list[MasterEvent]:
        slave_id = offer.slave_id
        slave = self.slaves[slave_id]
        tasks: list[TaskInfo] = []
        rest: list[MasterEvent] = []
        for _ in range(self.tasks_per_offer):
            self.task_count += 1
            task_id = TaskId(f"t{self.task_count}")
            tasks.append(TaskInfo(task_id=task_id, slave_id=slave_id, resources=TASK, command=COMMAND, name="true"))
            for state in (TaskState.RUNNING, TaskState.FINISHED):
                uuid = StatusUuid(f"{task_id}-{state}")
                one = TaskStatus(task_id=task_id, state=state, uuid=uuid, slave_id=slave_id)
                update = StatusUpdate(status=one, framework_id=self.framework_id)
                rest.append(Received(session=slave, message=update))
                answer = AcknowledgeStatus(task_id=task_id, uuid=uuid, slave_id=slave_id)
                rest.append(Received(session=self.framework, message=answer))
        return [Received(session=self.framework, message=accept(offer.offer_id, *tasks, refuse_s=0.0)), *rest]


def measure(tasks_per_offer: int) -> float:
    """Return lives a second."""
    lives = Lives(tasks_per_offer=tasks_per_offer)
    for _ in range(10):
        lives.round()
    lives.core_s = 0.0
    gc.collect()
    gc.freeze()
    count = sum(lives.round() for _ in range(ROUND_COUNT // tasks_per_offer))
    lives.harness.core.check()
    return count / lives.core_s


def main() -> None:
    """Print the figures."""
    single, many = measure(1), measure(4)
    figures = {
        "bench": "master_core",
        "lives_per_s_one_task_an_offer": round(single),
        "lives_per_s_four_tasks_an_offer": round(many),
        "floor_per_s": FLOOR_PER_S,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
