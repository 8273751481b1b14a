"""Handlers that write down what they are told, and wait for it; sockets that speak the wire by hand."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import zmq

from meseta.ids import Principal, SessionId
from meseta.messages import Error, Hello, Message, Welcome, decode, encode
from meseta.transport import Client, KeyPair, Server, generate_keypair

TIME_LIMIT_S = 20.0
FRAMEWORK = Hello(kind="framework")
Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a test's coroutine on a loop of its own, within a time limit."""

    async def limited() -> Result:
        async with asyncio.timeout(TIME_LIMIT_S):
            return await main

    return asyncio.run(limited())


class Notes:
    """Wakes those who wait whenever something was noted."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], object], asyncio.Future[None]]] = []

    async def until(self, holds: Callable[[], object]) -> None:
        """Return when `holds()` is true; looked at after each note."""
        if not holds():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((holds, future))
            await future

    def noted(self) -> None:
        """Look at all who wait."""
        for holds, future in self._waiting:
            if not future.done() and holds():
                future.set_result(None)
        self._waiting = [item for item in self._waiting if not item[1].done()]


class ServerNotes(Notes):
    """A server's handler. `refusal` answers every Hello if set; `reply` makes the answer to a message."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[SessionId, Principal, Hello]] = []
        self.messages: list[tuple[SessionId, Message]] = []
        self.closed: list[tuple[SessionId, str]] = []
        self.refusal: str | None = None
        self.on_message: Callable[[SessionId, Message], object] | None = None
        self.on_opened: Callable[[SessionId], object] | None = None

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        self.opened.append((session, principal, hello))
        if self.on_opened is not None:
            self.on_opened(session)
        self.noted()
        return self.refusal

    def received(self, session: SessionId, message: Message) -> None:
        self.messages.append((session, message))
        try:
            if self.on_message is not None:
                self.on_message(session, message)
        finally:
            self.noted()

    def session_closed(self, session: SessionId, reason: str) -> None:
        self.closed.append((session, reason))
        self.noted()


class ClientNotes(Notes):
    """A client's handler."""

    def __init__(self) -> None:
        super().__init__()
        self.welcomes: list[tuple[Welcome, int | None]] = []
        self.messages: list[Message] = []
        self.epochs: list[int | None] = []
        self.losses: list[str] = []
        self.refusals: list[Error] = []
        self.on_message: Callable[[Message], object] | None = None

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        self.welcomes.append((welcome, epoch))
        self.noted()

    def received(self, message: Message, epoch: int | None) -> None:
        self.messages.append(message)
        self.epochs.append(epoch)
        if self.on_message is not None:
            self.on_message(message)
        self.noted()

    async def welcomed(self, count: int) -> None:
        """Return when there were `count` sessions."""
        await self.until(lambda: len(self.welcomes) >= count)

    async def got(self, count: int) -> None:
        """Return when `count` messages came."""
        await self.until(lambda: len(self.messages) >= count)

    def disconnected(self, reason: str) -> None:
        self.losses.append(reason)
        self.noted()

    def refused(self, error: Error) -> None:
        self.refusals.append(error)
        self.noted()


class Wire:
    """A server with CURVE, clients and hand-made peers of it; `async with` closes them all."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:0", *, curve: bool = True, epoch: int | None = None) -> None:
        self.server_keys = generate_keypair() if curve else None
        self.principal_by_key: dict[str, Principal] = {}
        self.notes = ServerNotes()
        self.server = self.serve(endpoint, self.notes, epoch)
        self.clients: list[Client] = []
        self.context = zmq.Context()
        self.dealers: list[zmq.Socket[bytes]] = []

    def serve(self, endpoint: str, notes: ServerNotes, epoch: int | None = None) -> Server:
        """Bind a server with this wire's keys."""
        known = None if self.server_keys is None else self.principal_by_key.get
        return Server(endpoint, notes, keys=self.server_keys, principals=known, epoch=epoch)

    def keys(self, principal: str = "ada") -> KeyPair | None:
        """Return a new key that the server knows; None without CURVE."""
        if self.server_keys is None:
            return None
        pair = generate_keypair()
        self.principal_by_key[pair.public] = Principal(principal)
        return pair

    @property
    def public_key(self) -> str | None:
        return None if self.server_keys is None else self.server_keys.public

    def client(
        self, hello: Hello = FRAMEWORK, *, keys: KeyPair | None = None, endpoint: str | None = None
    ) -> tuple[Client, ClientNotes]:
        """Dial the server."""
        notes = ClientNotes()
        client = Client(
            endpoint or self.server.endpoint,
            notes,
            hello=hello,
            keys=keys or self.keys(),
            server_public_key=self.public_key,
        )
        self.clients.append(client)
        return client, notes

    async def connected(self, hello: Hello = FRAMEWORK) -> tuple[Client, ClientNotes]:
        """Dial the server and wait for Welcome."""
        client, notes = self.client(hello)
        await notes.until(lambda: notes.welcomes)
        return client, notes

    def dealer(self, keys: KeyPair | None = None, *, routing_id: bytes | None = None) -> "zmq.Socket[bytes]":
        """Return a socket that speaks by hand, connected; with `keys` by CURVE."""
        socket = self.context.socket(zmq.DEALER)
        self.dealers.append(socket)
        socket.linger = 0
        if routing_id is not None:
            socket.set(zmq.ROUTING_ID, routing_id)
        if keys is not None and self.server_keys is not None:
            socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
            socket.set(zmq.CURVE_SERVERKEY, self.server_keys.public.encode())
        socket.connect(self.server.endpoint)
        return socket

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.server.close()
        self.context.destroy(linger=0)


async def receive(socket: "zmq.Socket[bytes]", *, within_s: float = 10.0) -> list[Message]:
    """Wait for one payload on a hand-made socket.

    Raises:
        TimeoutError: none came.
    """
    async with asyncio.timeout(within_s):
        while True:
            try:
                return decode(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                await asyncio.sleep(0.002)


async def hello(socket: "zmq.Socket[bytes]", message: Hello = FRAMEWORK) -> list[Message]:
    """Say Hello by hand and return the answer."""
    socket.send(encode([message]))
    return await receive(socket)


async def never(happens: Awaitable[object], *, within_s: float = 0.3) -> None:
    """Fail if `happens` ends within the time: for what must not happen."""
    try:
        async with asyncio.timeout(within_s):
            await happens
    except TimeoutError:
        return
    raise AssertionError("it happened")
