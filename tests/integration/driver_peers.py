"""Small scripted peers for tests of the drivers: a master and a slave on real sockets."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from meseta.errors import TransportError
from meseta.ids import ContainerId, FrameworkId, Principal, SessionId, SlaveId
from meseta.messages import (
    AcknowledgeStatus,
    ExecutorRegistered,
    FrameworkRegistered,
    Hello,
    Message,
    RegisterExecutor,
    RegisterFramework,
    StatusUpdate,
)
from meseta.model import Address, CommandInfo, ExecutorInfo, FrameworkInfo, TaskStatus
from meseta.transport import Server
from meseta.transport_keys import KeyPair

LIMIT_S = 10.0
FRAMEWORK_ID = FrameworkId("f-1")
Kind = TypeVar("Kind", bound=Message)
Peer = TypeVar("Peer", bound="ScriptedPeer")


class ScriptedPeer:
    """Remembers what it got; `answer` says what is answered to a message."""

    def __init__(
        self,
        endpoint: str,
        *,
        keys: KeyPair | None = None,
        client_key: str | None = None,
        epoch: int | None = None,
        refusal: str | None = None,
    ) -> None:
        self.received_messages: list[Message] = []
        self.hellos: list[Hello] = []
        self.closings: list[str] = []
        self.session: SessionId | None = None
        self._refusal = refusal
        self._changed = asyncio.Event()
        principals = None if keys is None else {client_key: Principal("tester")}.get
        self.server = Server(endpoint, self, keys=keys, principals=principals, epoch=epoch)

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def answer(self, message: Message) -> list[Message]:
        return []

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        self.hellos.append(hello)
        self.session = session
        return self._refusal

    def session_closed(self, session: SessionId, reason: str) -> None:
        self.closings.append(reason)
        self._changed.set()

    def received(self, session: SessionId, message: Message) -> None:
        self.received_messages.append(message)
        for reply in self.answer(message):
            self.server.send(session, reply)
        self._changed.set()

    def send(self, *messages: Message) -> None:
        assert self.session is not None
        for message in messages:
            assert self.server.send(self.session, message)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after each message."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for(self, kind: type[Kind], count: int = 1) -> list[Kind]:
        """Return the first `count` messages of `kind`, as soon as they are there."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [message for message in self.received_messages if isinstance(message, kind)]


async def successor(make: Callable[[], Peer]) -> Peer:
    """Make a peer on an endpoint whose server was just closed: ZeroMQ lets go of it in a thread of its own."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            with contextlib.suppress(TransportError):
                return make()
            await asyncio.sleep(0.005)


class ScriptedMaster(ScriptedPeer):
    """Registers every framework."""

    def answer(self, message: Message) -> list[Message]:
        if isinstance(message, RegisterFramework):
            return [FrameworkRegistered(framework_id=message.framework_info.id or FRAMEWORK_ID)]
        return []


class ScriptedSlave(ScriptedPeer):
    """Registers every executor and acknowledges its updates, if told so."""

    acknowledges = True

    def answer(self, message: Message) -> list[Message]:
        if isinstance(message, RegisterExecutor):
            acknowledgements = [_acknowledgement(status) for status in message.unacknowledged]
            return [
                *acknowledgements,
                ExecutorRegistered(
                    framework_info=FrameworkInfo(name="tests", user="nobody", id=message.framework_id),
                    executor_info=ExecutorInfo(
                        executor_id=message.executor_id, command=CommandInfo(value="x"), data=b"hello"
                    ),
                    slave_id=self.slave_id,
                    hostname="h",
                    container_id=ContainerId("c-1"),
                    address=Address(endpoint="tcp://127.0.0.1:1"),
                ),
            ]
        if isinstance(message, StatusUpdate) and self.acknowledges:
            return [_acknowledgement(message.status)]
        return []

    @property
    def slave_id(self) -> SlaveId:
        return SlaveId("s-1")


def _acknowledgement(status: TaskStatus) -> AcknowledgeStatus:
    assert status.uuid is not None
    return AcknowledgeStatus(task_id=status.task_id, uuid=status.uuid)
