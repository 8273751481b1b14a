"""The master daemon with real sockets, files and signals."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from master.core import MasterCore
from master.daemon import EXIT_BROKEN, REGISTRY_NAME
from master.events import MasterEvent, MasterInit
from meseta.keys import create_cluster_keys, read_key_file
from meseta.messages import (
    Error,
    FrameworkRegistered,
    GetMaster,
    Hello,
    MasterStatus,
    Message,
    Ping,
    Pong,
    RegisterFramework,
    RegisterSlave,
    ReregisterSlave,
    ResourceOffers,
    RunTask,
    SlaveRegistered,
    Welcome,
)
from meseta.runner import replay
from meseta.store import Store
from meseta.transport import Client
from tests.unit.master_builders import accept, framework_info, slave_info, task_info

LIMIT_S = 20.0
M = TypeVar("M")


class Master:
    """A master daemon in a process of its own, started again on the same folder and port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.endpoint = ""
        self.process: subprocess.Popen[bytes] | None = None
        create_cluster_keys(folder)

    def start(self, *more: str, program: tuple[str, ...] = ("-m", "master")) -> None:
        """Start it and wait until it is ready; its port stays the same."""
        keys = self.folder / "keys"
        command = [sys.executable, "-P", *program, "--work-dir", str(self.folder / "work")]
        command += ["--key", str(keys / "master.json"), "--principals", str(keys / "principals.json")]
        command += ["--bind", self.endpoint or "tcp://127.0.0.1:0", *more]
        offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        text = ""
        for _ in range(int(LIMIT_S * 50)):
            text = self.log.read_text()[offset:]
            ready = re.search(r"ready endpoint=(\S+) epoch=(\d+)", text)
            if ready is not None:
                self.endpoint = ready.group(1)
                return
            try:
                self.process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError(f"the master did not start: {text}")

    def end(self, number: int) -> int:
        """Send a signal and return the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


class Peer:
    """A scripted peer: answers pings, keeps the rest."""

    def __init__(self, master: Master, kind: str, principal: str) -> None:
        keys = master.folder / "keys"
        self.messages: asyncio.Queue[tuple[Message, int | None]] = asyncio.Queue()
        self.epochs: asyncio.Queue[int | None] = asyncio.Queue()
        self.client = Client(
            master.endpoint,
            self,
            hello=Hello(kind=kind),
            keys=read_key_file(keys / f"{principal}.json").pair,
            server_public_key=read_key_file(keys / "master.json").public,
        )

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        """See `ClientHandler`."""
        self.epochs.put_nowait(epoch)

    def received(self, message: Message, epoch: int | None) -> None:
        """See `ClientHandler`."""
        if isinstance(message, Ping):
            self.client.send(Pong())
        else:
            self.messages.put_nowait((message, epoch))

    def disconnected(self, reason: str) -> None:
        """See `ClientHandler`."""

    def refused(self, error: Error) -> None:
        """See `ClientHandler`."""
        self.messages.put_nowait((error, None))

    async def session(self) -> int | None:
        """Wait for a new session; return the master's epoch."""
        return await asyncio.wait_for(self.epochs.get(), LIMIT_S)

    async def next(self, kind: type[M]) -> M:
        """Wait for a message of one kind; others before it are dropped."""
        while True:
            message, _ = await asyncio.wait_for(self.messages.get(), LIMIT_S)
            if isinstance(message, kind):
                return message


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    master = Master(tmp_path)
    yield master
    if master.process is not None and master.process.poll() is None:
        master.process.kill()
        master.process.wait(LIMIT_S)


def _run(story: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(story(), 2 * LIMIT_S)

    asyncio.run(limited())


def test_slave_and_framework_return_to_a_master_that_was_killed(master: Master) -> None:
    async def story() -> None:
        master.start()
        slave, framework = Peer(master, "slave", "slave"), Peer(master, "framework", "batch")
        first_epoch = await slave.session()
        await framework.session()
        slave.client.send(RegisterSlave(slave_info=slave_info()))
        slave_id = (await slave.next(SlaveRegistered)).slave_id
        framework.client.send(RegisterFramework(framework_info=framework_info()))
        framework_id = (await framework.next(FrameworkRegistered)).framework_id
        assert (await framework.next(ResourceOffers)).offers[0].slave_id == slave_id
        assert master.end(signal.SIGKILL) == -signal.SIGKILL
        master.start()
        second_epoch = await slave.session()
        assert (first_epoch, second_epoch) == (1, 2)
        slave.client.send(ReregisterSlave(slave_info=slave_info(slave_id=slave_id)))
        assert await slave.next(SlaveRegistered) == SlaveRegistered(slave_id=slave_id, reregistered=True)
        await framework.session()
        framework.client.send(RegisterFramework(framework_info=framework_info(framework_id)))
        answer = await framework.next(FrameworkRegistered)
        assert answer == FrameworkRegistered(framework_id=framework_id, reregistered=True)
        offer = (await framework.next(ResourceOffers)).offers[0]
        framework.client.send(accept(offer.offer_id, task_info("t", slave_id)))
        assert (await slave.next(RunTask)).task.task_id == "t"
        slave.client.close()
        framework.client.close()

    _run(story)


def test_recording_replays_to_identical_effects(master: Master, tmp_path: Path) -> None:
    recording = tmp_path / "recording"

    async def story() -> None:
        master.start("--record", str(recording))
        slave, framework = Peer(master, "slave", "slave"), Peer(master, "framework", "batch")
        await slave.session()
        await framework.session()
        slave.client.send(RegisterSlave(slave_info=slave_info()))
        framework.client.send(RegisterFramework(framework_info=framework_info()))
        await framework.next(ResourceOffers)
        assert master.end(signal.SIGTERM) == 0
        slave.client.close()
        framework.client.close()

    _run(story)
    count, differing = replay(recording, MasterInit, MasterEvent, MasterCore)
    assert count > 6
    assert differing == []


def test_operator_is_answered_and_sigterm_ends_in_order(master: Master) -> None:
    async def story() -> None:
        master.start("--ping-timeout", "1s")
        operator = Peer(master, "operator", "operator")
        await operator.session()
        operator.client.send(GetMaster(request_id=3))
        status = await operator.next(MasterStatus)
        assert (status.request_id, status.epoch, status.slaves_active) == (3, 1, 0)
        operator.client.close()

    _run(story)
    assert master.end(signal.SIGTERM) == 0


def test_second_master_on_the_same_registry_is_refused_in_words(master: Master) -> None:
    master.start()
    keys = master.folder / "keys"
    command = [sys.executable, "-P", "-m", "master", "--bind", "tcp://127.0.0.1:0"]
    command += ["--work-dir", str(master.folder / "work"), "--key", str(keys / "master.json")]
    command += ["--principals", str(keys / "principals.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert result.returncode == 1
    assert "is in use by another process: stop that one first" in result.stderr


def test_kind_without_business_gets_no_session(master: Master) -> None:
    async def story() -> None:
        master.start()
        peer = Peer(master, "task", "slave")
        error = await peer.next(Error)
        assert (error.code, "kind 'task' has no business" in error.message) == ("unauthorized", True)
        peer.client.close()

    _run(story)


def test_core_that_breaks_ends_the_daemon_and_names_the_event(master: Master, tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text(
        "import master.daemon\n"
        "from master.core import MasterCore\n"
        "from meseta.messages import GetMaster\n"
        "class Broken(MasterCore):\n"
        "    def handle(self, event, now):\n"
        "        if isinstance(getattr(event, 'message', None), GetMaster):\n"
        "            raise RuntimeError('planted')\n"
        "        return super().handle(event, now)\n"
        "master.daemon.MasterCore = Broken\n"
        "from master.options import command\n"
        "command()\n"
    )

    async def story() -> None:
        master.start(program=(str(program),))
        operator = Peer(master, "operator", "operator")
        await operator.session()
        operator.client.send(GetMaster(request_id=1))
        assert master.process is not None
        status = await asyncio.to_thread(master.process.wait, LIMIT_S)
        assert status == EXIT_BROKEN
        operator.client.close()

    _run(story)
    text = master.log.read_text()
    assert "core broken by GetMaster" in text
    assert "RuntimeError: planted" in text


def test_registry_that_cannot_be_read_ends_the_start_in_words(master: Master) -> None:
    with Store(master.folder / "work" / REGISTRY_NAME) as store:
        store.start(lambda callback: callback(), lambda failure: pytest.fail(str(failure)))
        store.write([("slaves", "s-1", b"\xc1")], lambda: None)
    with pytest.raises(AssertionError, match="slaves/s-1 cannot be read"):
        master.start()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weights", "eng=0"), "'eng=0' is no weight"),
        (("--weights", "a=1,a=2"), "a is given twice"),
        (("--ping-timeout", "0s"), "must be longer than nothing"),
        (("--bind", "nonsense"), "nonsense"),
        (("--ofer-timeout", "1s"), "--offer-timeout"),
        (("--acl", "/nonexistent/acl"), "cannot be read"),
    ],
)
def test_bad_option_is_refused_in_words(master: Master, arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        master.start(*arguments)
    assert words in " ".join(str(caught.value).split())
