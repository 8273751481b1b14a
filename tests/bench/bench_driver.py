"""CPU of a framework's driver per task, over real sockets with CURVE, against a scripted master in another process.

A task's life here: one offer, one launch, TASK_RUNNING and TASK_FINISHED with their acknowledgements; 40 tasks
in flight. Prints one JSON line. `python -m tests.bench.bench_driver [TASKS]`
"""

import asyncio
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from meseta import Offer, Scheduler, SchedulerDriver, TaskInfo, TaskState, TaskStatus, parse_resources
from meseta.ids import OfferId, Principal, SessionId, SlaveId, StatusUuid, TaskId
from meseta.messages import AcceptOffers, FrameworkRegistered, Hello, Message, ResourceOffers, StatusUpdate
from meseta.model import Address, CommandInfo, FrameworkInfo
from meseta.scheduler import MesetaSchedulerDriver
from meseta.transport import Server, generate_keypair
from meseta.transport_keys import KeyPair
from tests.integration.driver_peers import FRAMEWORK_ID

IN_FLIGHT = 40
NEEDS = parse_resources("cpus:0.05")
ADDRESS = Address(endpoint="tcp://127.0.0.1:1")


class Bench(Scheduler):
    def __init__(self, count: int) -> None:
        self.left = count
        self.started = (0.0, 0.0)
        self.task_index = 0

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        if not self.task_index:
            self.started = (time.process_time(), time.monotonic())
        for offer in offers:
            self.task_index += 1
            task = TaskInfo(
                task_id=TaskId(f"t-{self.task_index}"),
                slave_id=offer.slave_id,
                resources=NEEDS,
                command=CommandInfo(value="true"),
            )
            driver.launch_tasks([offer.offer_id], [task])

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        if status.state is TaskState.FINISHED:
            self.left -= 1
            if not self.left:
                driver.stop()


class Master:
    """Answers each launch with both updates and the next offer."""

    def __init__(self, keys: KeyPair, client_key: str, count: int) -> None:
        self.left = count
        self.server = Server(
            "tcp://127.0.0.1:0", self, keys=keys, principals={client_key: Principal("bench")}.get, epoch=1
        )

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        return None

    def session_closed(self, session: SessionId, reason: str) -> None: ...

    def received(self, session: SessionId, message: Message) -> None:
        if isinstance(message, AcceptOffers):
            for task in message.operations[0].task_infos:
                self.say(session, task, TaskState.RUNNING)
                self.say(session, task, TaskState.FINISHED)
            self.offer(session, 1)
        elif type(message).__name__ == "RegisterFramework":
            self.server.send(session, FrameworkRegistered(framework_id=FRAMEWORK_ID))
            self.offer(session, IN_FLIGHT)

    def say(self, session: SessionId, task: TaskInfo, state: TaskState) -> None:
        uuid = StatusUuid(f"{task.task_id}-{state}")
        status = TaskStatus(task_id=task.task_id, state=state, slave_id=task.slave_id, uuid=uuid)
        self.server.send(session, StatusUpdate(status=status, framework_id=FRAMEWORK_ID))

    def offer(self, session: SessionId, count: int) -> None:
        count = min(count, self.left)
        self.left -= count
        offers = tuple(
            Offer(
                offer_id=OfferId(f"o-{self.left + index}"),
                framework_id=FRAMEWORK_ID,
                slave_id=SlaveId("s-1"),
                hostname="h",
                resources=NEEDS,
                address=ADDRESS,
            )
            for index in range(count)
        )
        if offers:
            self.server.send(session, ResourceOffers(offers=offers))


def run_master(pipe: Connection, keys: KeyPair, client_key: str, count: int) -> None:
    async def serve() -> None:
        master = Master(keys, client_key, count)
        pipe.send(master.server.endpoint)
        await asyncio.to_thread(pipe.recv)
        master.server.close()

    asyncio.run(serve())


def main() -> int:
    """Run the benchmark."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    master_keys, own_keys = generate_keypair(), generate_keypair()
    pipe, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=run_master, args=(other, master_keys, own_keys.public, count)
    )
    process.start()
    endpoint = pipe.recv()
    bench = Bench(count)

    async def drive() -> int:
        driver = MesetaSchedulerDriver(
            bench,
            FrameworkInfo(name="bench", user="nobody"),
            endpoint=endpoint,
            keys=own_keys,
            master_public_key=master_keys.public,
        )
        driver.start()
        return await driver.join()

    exit_code = asyncio.run(drive())
    cpu_s = time.process_time() - bench.started[0]
    wall_s = time.monotonic() - bench.started[1]
    pipe.send("done")
    process.join()
    figures = {
        "bench": "driver",
        "tasks": count,
        "driver_cpu_ms_per_task": round(cpu_s / count * 1e3, 4),
        "tasks_per_s": round(count / wall_s),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(figures))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
