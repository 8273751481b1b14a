"""The framework developer's guide tells the truth: its code is that of the examples, and all of it runs."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meseta.ids import OfferId, SlaveId, StatusUuid, TaskId
from meseta.messages import (
    AcceptOffers,
    AcknowledgeStatus,
    FrameworkRegistered,
    Message,
    RegisterFramework,
    ResourceOffers,
    StatusUpdate,
    TeardownFramework,
)
from meseta.model import Address, FrameworkInfo, Offer, TaskInfo, TaskState, TaskStatus
from meseta.resources import parse_resources
from meseta.scheduler import MesetaSchedulerDriver
from meseta.service import Service
from tests.integration.driver_peers import FRAMEWORK_ID, LIMIT_S, ScriptedMaster

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/framework-guide.md"
BLOCK = re.compile(r"<!-- (file|run): (\S+) -->\n```python\n(.*?)```\n", re.DOTALL)
ANY = "tcp://127.0.0.1:0"


class PlayingMaster(ScriptedMaster):
    """A master with one slave, on which every task finishes at once; a number in `data` comes back squared."""

    offer_count = 0

    def answer(self, message: Message) -> list[Message]:
        if isinstance(message, RegisterFramework):
            return [FrameworkRegistered(framework_id=FRAMEWORK_ID), self.new_offer()]
        if isinstance(message, AcceptOffers):
            updates = [self.update(task, state) for task in message.operations[0].task_infos for state in _LIFE]
            return [*updates, self.new_offer()]
        return []

    def new_offer(self) -> ResourceOffers:
        self.offer_count += 1
        offer = Offer(
            offer_id=OfferId(f"o-{self.offer_count}"),
            framework_id=FRAMEWORK_ID,
            slave_id=SlaveId("s-1"),
            hostname="h",
            resources=parse_resources("cpus:0.25;mem:1GiB"),
            address=Address(endpoint="tcp://127.0.0.1:1"),
        )
        return ResourceOffers(offers=(offer,))

    def update(self, task: TaskInfo, state: TaskState) -> StatusUpdate:
        data = str(int(task.data) ** 2).encode() if task.data and state.is_terminal else b""
        status = TaskStatus(
            task_id=task.task_id,
            state=state,
            slave_id=task.slave_id,
            uuid=StatusUuid(f"{task.task_id}-{state}"),
            data=data,
        )
        return StatusUpdate(status=status)


_LIFE = (TaskState.RUNNING, TaskState.FINISHED)


def blocks() -> dict[str, str]:
    """Return the guide's code by file or name."""
    return {name: code for _, name, code in BLOCK.findall(GUIDE.read_text())}


def loaded(name: str, **names: object) -> dict[str, Any]:
    """Run a block of the guide and return its names."""
    space: dict[str, Any] = {"__name__": f"guide_{name}", **names}
    exec(compile(blocks()[name], f"{GUIDE}:{name}", "exec", dont_inherit=True), space)
    return space


@contextlib.contextmanager
def example(master: ScriptedMaster, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start `python -P -m arguments` against the master."""
    cluster = folder / "cluster.json"
    cluster.write_text(f'{{"master": "{master.endpoint}"}}')
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "MESETA_CLUSTER": str(cluster)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_every_block_of_python_is_run_by_a_test() -> None:
    assert GUIDE.read_text().count("```python") == len(BLOCK.findall(GUIDE.read_text()))
    tested = {"explicit", "service", "client", "fake", "replay"}
    assert {name for kind, name, _ in BLOCK.findall(GUIDE.read_text()) if kind == "run"} == tested


def test_examples_stand_in_the_guide_as_they_are() -> None:
    for kind, name, code in BLOCK.findall(GUIDE.read_text()):
        if kind == "file":
            assert (ROOT / name).read_text() == code, f"{name} has changed: copy it to {GUIDE}"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ("frameworks.examples.commands", "3", "echo hello"),
            {f"command-{index} {state} " for index in range(3) for state in ("TASK_RUNNING", "TASK_FINISHED")},
        ),
        (("frameworks.examples.squares", "3", "4", "5"), {"9", "16", "25"}),
    ],
)
def test_example_framework_does_what_it_says(tmp_path: Path, arguments: tuple[str, ...], lines: set[str]) -> None:
    async def scenario() -> None:
        master = PlayingMaster(ANY, epoch=1)
        with example(master, tmp_path, *arguments) as process:
            output, _ = await asyncio.to_thread(process.communicate, timeout=LIMIT_S)
            assert process.returncode == 0
            assert set(output.splitlines()) == lines
        await master.wait_for(TeardownFramework)
        master.server.close()

    asyncio.run(scenario())


def test_explicit_acknowledgement_comes_from_the_storing_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recording = tmp_path / "driver.rec"

    async def scenario() -> None:
        master = PlayingMaster(ANY, epoch=1)
        driver = MesetaSchedulerDriver(
            loaded("explicit")["Careful"](),
            FrameworkInfo(name="careful", user="nobody"),
            endpoint=master.endpoint,
            keys=None,
            master_public_key=None,
            explicit_acknowledgement=True,
            record=recording,
        )
        driver.start()
        await master.wait_for(RegisterFramework)
        task = TaskInfo(task_id=TaskId("t-1"), slave_id=SlaveId("s-1"))
        master.send(master.update(task, TaskState.RUNNING))
        (acknowledgement,) = await master.wait_for(AcknowledgeStatus)
        assert acknowledgement.uuid == "t-1-TASK_RUNNING"
        assert (tmp_path / "states.log").read_text() == "t-1 TASK_RUNNING\n"
        driver.stop()
        async with asyncio.timeout(LIMIT_S):
            await driver.join()
        master.server.close()

    asyncio.run(scenario())
    assert loaded("replay")["differing_inputs"](recording) == []


def test_clients_of_the_service_are_answered() -> None:
    space = loaded("service")
    service = space["service"]
    assert isinstance(service, Service)
    talk = loaded("client", Greet=space["Greet"], Greeting=space["Greeting"])["talk"]

    async def scenario() -> list[str]:
        service.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                answers: list[str] = await talk(service.address, None)
        finally:
            service.close()
        return answers

    assert asyncio.run(scenario()) == ["hello Ann, you are ", "B", "o", "b"]


def test_scheduler_is_tested_with_a_driver_that_only_writes_down() -> None:
    loaded("fake")["test_offer_is_filled"]()
