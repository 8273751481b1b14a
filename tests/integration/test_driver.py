"""The scheduler's driver on real sockets, against a scripted master."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from meseta.driver_events import SchedulerEvent
from meseta.errors import InvalidInput
from meseta.ids import FrameworkId, OfferId, SlaveId, StatusUuid, TaskId
from meseta.keys import Cluster, create_cluster_keys, read_key_file, write_cluster
from meseta.messages import (
    AcceptOffers,
    AcknowledgeStatus,
    DeclineOffers,
    KillTask,
    ReconcileTasks,
    RegisterFramework,
    ResourceOffers,
    ReviveOffers,
    StatusUpdate,
    TeardownFramework,
)
from meseta.model import Address, CommandInfo, FrameworkInfo, Offer, TaskInfo, TaskState, TaskStatus
from meseta.resources import Resources, resources
from meseta.runner import replay
from meseta.scheduler import MesetaSchedulerDriver, Scheduler, SchedulerDriver
from meseta.scheduler_core import SchedulerCore, SchedulerInit
from meseta.service_client import ServiceClient
from meseta.transport import generate_keypair
from tests.integration.driver_peers import FRAMEWORK_ID, LIMIT_S, ScriptedMaster, successor

ANY = "tcp://127.0.0.1:0"


class Notes(Scheduler):
    """Launches one task on each offer, and notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.states: list[TaskState] = []
        self.on_registered: Callable[[SchedulerDriver], object] = lambda driver: None

    def registered(self, driver: SchedulerDriver, framework_id: FrameworkId) -> None:
        self.calls.append(f"registered {framework_id}")
        self.on_registered(driver)

    def reregistered(self, driver: SchedulerDriver) -> None:
        self.calls.append("reregistered")

    def disconnected(self, driver: SchedulerDriver) -> None:
        self.calls.append("disconnected")

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            driver.launch_tasks([offer.offer_id], [task(f"t-{offer.offer_id}", offer.slave_id)])

    def offer_rescinded(self, driver: SchedulerDriver, offer_id: OfferId) -> None:
        self.calls.append(f"rescinded {offer_id}")

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        self.states.append(status.state)
        if status.state is TaskState.FINISHED:
            driver.stop()

    def error(self, driver: SchedulerDriver, message: str) -> None:
        self.calls.append(f"error {message}")


def task(name: str, slave_id: SlaveId) -> TaskInfo:
    return TaskInfo(
        task_id=TaskId(name), slave_id=slave_id, resources=resources(cpus=1), command=CommandInfo(value="true")
    )


def offer(name: str) -> Offer:
    return Offer(
        offer_id=OfferId(name),
        framework_id=FRAMEWORK_ID,
        slave_id=SlaveId("s-1"),
        hostname="h",
        resources=resources(cpus=1),
        address=Address(endpoint="tcp://127.0.0.1:1"),
    )


def update(name: str, state: TaskState, uuid: str) -> StatusUpdate:
    status = TaskStatus(task_id=TaskId(name), state=state, slave_id=SlaveId("s-1"), uuid=StatusUuid(uuid))
    return StatusUpdate(status=status)


def make_driver(
    scheduler: Scheduler,
    master: ScriptedMaster,
    *,
    record: Path | None = None,
    explicit_acknowledgement: bool = False,
) -> MesetaSchedulerDriver:
    return MesetaSchedulerDriver(
        scheduler,
        FrameworkInfo(name="tests", user="nobody"),
        endpoint=master.endpoint,
        keys=None,
        master_public_key=None,
        record=record,
        explicit_acknowledgement=explicit_acknowledgement,
    )


async def ended(driver: MesetaSchedulerDriver) -> int:
    async with asyncio.timeout(LIMIT_S):
        return await driver.join()


def test_task_lives_and_its_updates_are_acknowledged_over_curve(tmp_path: Path) -> None:
    async def scenario() -> None:
        master_keys, own_keys = generate_keypair(), generate_keypair()
        master = ScriptedMaster(ANY, keys=master_keys, client_key=own_keys.public, epoch=1)
        notes = Notes()
        driver = MesetaSchedulerDriver(
            notes,
            FrameworkInfo(name="tests", user="nobody"),
            endpoint=master.endpoint,
            keys=own_keys,
            master_public_key=master_keys.public,
            record=tmp_path / "recording",
        )
        driver.start()
        await master.wait_for(RegisterFramework)
        master.send(ResourceOffers(offers=(offer("o-1"),)))
        (accept,) = await master.wait_for(AcceptOffers)
        assert accept.operations[0].task_infos[0].task_id == "t-o-1"
        master.send(update("t-o-1", TaskState.RUNNING, "u-1"), update("t-o-1", TaskState.FINISHED, "u-2"))
        assert await ended(driver) == 0
        await master.wait_for(TeardownFramework)
        assert [one.uuid for one in master.of(AcknowledgeStatus)] == ["u-1", "u-2"]
        assert notes.states == [TaskState.RUNNING, TaskState.FINISHED]
        assert notes.calls == [f"registered {FRAMEWORK_ID}"]
        master.server.close()

    asyncio.run(scenario())
    count, differing = replay(tmp_path / "recording", SchedulerInit, SchedulerEvent, SchedulerCore)
    assert count >= 6
    assert differing == []


def test_methods_may_be_called_from_any_thread_and_keep_their_order() -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)

        def shout(driver: SchedulerDriver) -> None:
            for index in range(100):
                driver.kill_task(TaskId(f"t-{index}"))
            driver.stop()

        notes = Notes()
        threads: list[threading.Thread] = []

        def begin(driver: SchedulerDriver) -> None:
            threads.append(threading.Thread(target=shout, args=(driver,)))
            threads[0].start()

        notes.on_registered = begin
        driver = make_driver(notes, master)
        driver.kill_task(TaskId("before-start"))
        driver.start()
        assert await ended(driver) == 0
        threads[0].join()
        kills = await master.wait_for(KillTask, 101)
        assert [kill.task_id for kill in kills] == ["before-start", *(f"t-{index}" for index in range(100))]
        driver.kill_task(TaskId("after-end"))
        master.server.close()

    asyncio.run(scenario())


def test_update_whose_callback_raised_is_not_acknowledged() -> None:
    class Broken(Notes):
        def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
            driver.kill_task(status.task_id)
            raise ValueError("no state for this")

    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        driver = make_driver(Broken(), master)
        driver.start()
        await master.wait_for(RegisterFramework)
        master.send(update("t-1", TaskState.RUNNING, "u-1"))
        assert await ended(driver) == 1
        await master.until(lambda: bool(master.closings))
        assert master.of(AcknowledgeStatus) == []
        assert master.of(KillTask) == []
        assert master.of(TeardownFramework) == []
        master.server.close()

    asyncio.run(scenario())


def test_restarted_master_gets_the_same_framework_back() -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        notes = Notes()
        driver = make_driver(notes, master)
        driver.start()
        await master.wait_for(RegisterFramework)
        master.send(ResourceOffers(offers=(offer("o-1"),)))
        await master.wait_for(AcceptOffers)
        endpoint = master.endpoint
        master.server.close()
        new_master = await successor(lambda: ScriptedMaster(endpoint, epoch=2))
        (registration,) = await new_master.wait_for(RegisterFramework)
        assert registration.framework_info.id == FRAMEWORK_ID
        (question,) = await new_master.wait_for(ReconcileTasks)
        assert [query.task_id for query in question.tasks] == ["t-o-1"]
        new_master.send(update("t-o-1", TaskState.FINISHED, "u-1"))
        assert await ended(driver) == 0
        assert notes.calls == [f"registered {FRAMEWORK_ID}", "disconnected", "reregistered"]
        new_master.server.close()

    asyncio.run(scenario())


def test_refused_framework_hears_why_and_ends() -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1, refusal="tester may not register role *")
        notes = Notes()
        driver = make_driver(notes, master)
        driver.start()
        assert await ended(driver) == 1
        assert notes.calls == ["error unauthorized: tester may not register role *"]
        master.server.close()

    asyncio.run(scenario())


def test_explicit_acknowledgement_is_sent_when_the_scheduler_says_so() -> None:
    class Later(Notes):
        def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
            driver.call_later(0.01, lambda: driver.acknowledge_status(status))

    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        driver = make_driver(Later(), master, explicit_acknowledgement=True)
        driver.start()
        await master.wait_for(RegisterFramework)
        master.send(update("t-1", TaskState.RUNNING, "u-1"))
        (acknowledgement,) = await master.wait_for(AcknowledgeStatus)
        assert acknowledgement.uuid == "u-1"
        driver.stop(failover=True)
        assert await ended(driver) == 0
        assert master.of(TeardownFramework) == []
        master.server.close()

    asyncio.run(scenario())


def test_wrong_argument_is_refused_where_it_is_passed() -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        driver = make_driver(Notes(), master)
        bad = TaskInfo(task_id=TaskId("t"), slave_id=SlaveId("s"), resources=Resources({"cpus": 0.5}))  # type: ignore[dict-item]
        with pytest.raises(InvalidInput, match=r"accept_offers: Expected `int`, got `float` - at .*scalars"):
            driver.launch_tasks([OfferId("o-1")], [bad])
        with pytest.raises(InvalidInput, match="offer_ids: 'o-1' is one value"):
            driver.launch_tasks(OfferId("o-1"), [])  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="kill_task"):
            driver.kill_task(TaskId("t"), grace_period_s=-1.0)
        with pytest.raises(InvalidInput, match="call it from a callback"):
            driver.call_later(1.0, lambda: None)
        master.server.close()

    asyncio.run(scenario())


def test_timers_fire_on_the_callbacks_thread_unless_cancelled() -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        notes = Notes()
        threads: list[int] = []

        def arm(driver: SchedulerDriver) -> None:
            driver.call_later(0.0, lambda: notes.calls.append("cancelled")).cancel()

            def end() -> None:
                threads.append(threading.get_ident())
                driver.stop()

            threading.Thread(target=lambda: driver.call_later(0.02, end)).start()

        notes.on_registered = arm
        driver = make_driver(notes, master)
        driver.start()
        assert await ended(driver) == 0
        assert threads == [threading.get_ident()]
        assert "cancelled" not in notes.calls
        master.server.close()

    asyncio.run(scenario())


def test_failing_timer_ends_the_driver() -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        notes = Notes()
        notes.on_registered = lambda driver: driver.call_later(0.0, lambda: 1 // 0)
        driver = make_driver(notes, master)
        driver.start()
        assert await ended(driver) == 1
        master.server.close()

    asyncio.run(scenario())


def test_offers_are_declined_by_a_scheduler_that_does_not_look_at_them() -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        driver = make_driver(Scheduler(), master)
        driver.start()
        await master.wait_for(RegisterFramework)
        master.send(ResourceOffers(offers=(offer("o-1"), offer("o-2"))))
        declined = await master.wait_for(DeclineOffers, 2)
        assert [one.offer_ids for one in declined] == [("o-1",), ("o-2",)]
        driver.revive_offers()
        await master.wait_for(ReviveOffers)
        driver.abort()
        assert await ended(driver) == 1
        master.server.close()

    asyncio.run(scenario())


RUNNER = """
import sys
from meseta import Scheduler, run

class Quiet(Scheduler):
    def registered(self, driver, framework_id):
        print("registered", framework_id, flush=True)

sys.exit(run(Quiet(), name="quiet", roles=["web"], cluster=sys.argv[1]))
"""


def test_run_finds_the_cluster_and_leaves_its_tasks_to_a_successor_on_sigterm(tmp_path: Path) -> None:
    async def scenario() -> None:
        master = ScriptedMaster(ANY, epoch=1)
        cluster = tmp_path / "cluster.json"
        cluster.write_text(f'{{"master": "{master.endpoint}"}}')
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", RUNNER, str(cluster)], stdout=subprocess.PIPE, text=True
        )
        try:
            (registration,) = await master.wait_for(RegisterFramework)
            info = registration.framework_info
            assert (info.name, info.roles, info.failover_timeout_s) == ("quiet", ("web",), 7 * 24 * 3600.0)
            assert process.stdout is not None
            assert process.stdout.readline() == f"registered {FRAMEWORK_ID}\n"
            os.kill(process.pid, signal.SIGTERM)
            await master.until(lambda: bool(master.closings))
            assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        assert master.of(TeardownFramework) == []
        master.server.close()

    asyncio.run(scenario())


SERVING_RUNNER = """
import sys
import msgspec
from meseta import Principal, Scheduler, Service, run

class Name(msgspec.Struct, frozen=True):
    text: str

service = Service()

@service.method("greet")
async def greet(principal: Principal, params: Name) -> Name:
    return Name(f"hello {params.text}, you are {principal}")

sys.exit(run(Scheduler(), name="greeter", cluster=sys.argv[1], service=service))
"""


class Name(msgspec.Struct, frozen=True):
    text: str


def test_run_announces_the_service_to_clients_with_a_key(tmp_path: Path) -> None:
    create_cluster_keys(tmp_path, ("master", "operator"))
    master_keys = read_key_file(tmp_path / "keys/master.json").pair
    own_keys = read_key_file(tmp_path / "keys/operator.json").pair

    async def scenario() -> None:
        master = ScriptedMaster(ANY, keys=master_keys, client_key=own_keys.public, epoch=1)
        cluster = tmp_path / "cluster.json"
        write_cluster(cluster, Cluster(master=master.endpoint, master_public_key=master_keys.public))
        process = subprocess.Popen([sys.executable, "-P", "-c", SERVING_RUNNER, str(cluster)])
        try:
            (registration,) = await master.wait_for(RegisterFramework)
            address = registration.framework_info.address
            assert address is not None
            async with ServiceClient(address, keys=own_keys) as client:
                answer = await client.call("greet", Name("Ann"), Name)
            assert answer.text == "hello Ann, you are operator"
            os.kill(process.pid, signal.SIGINT)
            assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()
        master.server.close()

    asyncio.run(scenario())
