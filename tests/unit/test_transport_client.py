"""A client finds its server, loses it, and finds its successor, to whom it hands nothing old."""

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

import meseta.transport_client
from meseta.errors import TransportError
from meseta.ids import SlaveId
from meseta.messages import (
    CHUNK_LIMIT_BYTES,
    Error,
    FrameworkToExecutor,
    Goodbye,
    Hello,
    Message,
    Ping,
    Pong,
    SlaveLost,
    Welcome,
    decode,
    encode,
)
from meseta.transport import Client, generate_keypair
from meseta.transport_client import BACKOFF_BASE_S, BACKOFF_LIMIT_S, backoff_s
from tests.unit.transport_peers import ClientNotes, ServerNotes, Wire, never, run

PING = Ping(interval_s=1.0, missed_limit=2)


def lost(number: int) -> SlaveLost:
    return SlaveLost(slave_id=SlaveId(str(number)))


class HandMade:
    """A ROUTER that answers as a test wants, without CURVE."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind("tcp://127.0.0.1:0")
        self.endpoint = bytes(self.socket.get(zmq.LAST_ENDPOINT)).decode()

    async def receive(self) -> tuple[bytes, list[Message]]:
        """Wait for a payload; return the peer's routing id and its messages."""
        async with asyncio.timeout(10):
            while True:
                try:
                    routing_id, payload = self.socket.recv_multipart(zmq.NOBLOCK)
                    return routing_id, decode(payload)
                except zmq.Again:
                    await asyncio.sleep(0.002)

    def send(self, routing_id: bytes, *frames: bytes) -> None:
        self.socket.send_multipart([routing_id, *frames])

    def client(self) -> tuple[Client, ClientNotes]:
        notes = ClientNotes()
        return Client(self.endpoint, notes, hello=Hello(kind="slave"), keys=None, server_public_key=None), notes


@contextmanager
def hand_made() -> Iterator[HandMade]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield HandMade(context)
    finally:
        context.destroy(linger=0)


def test_pauses_double_up_to_their_limit_and_spread() -> None:
    assert [backoff_s(attempt, 0.0) for attempt in range(4)] == [BACKOFF_BASE_S * factor / 2 for factor in (1, 2, 4, 8)]
    assert backoff_s(0, 0.999) < BACKOFF_BASE_S
    assert BACKOFF_LIMIT_S / 2 == backoff_s(50, 0.0) <= backoff_s(10_000, 0.999) < BACKOFF_LIMIT_S


def test_client_waits_for_a_server_that_starts_later() -> None:
    async def main() -> None:
        async with Wire() as wire:
            wire.server.close()
            client, notes = wire.client()
            await never(notes.welcomed(1))
            assert "nobody answers at tcp://127.0.0.1" in client.last_failure
            assert notes.losses == []
            wire.server = wire.serve(wire.server.endpoint, wire.notes)
            await notes.welcomed(1)

    run(main())


def test_messages_of_an_old_session_never_reach_the_next_master() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = await wire.connected()
            for generation in range(1, 6):
                old, wire.notes = wire.notes, ServerNotes()
                wire.server.close()
                # The loop has not run: the client does not know, and queues for a dead master.
                assert client.send(lost(generation))
                wire.server = wire.serve(wire.server.endpoint, wire.notes)
                await notes.welcomed(generation + 1)
                assert client.send(PING)
                await wire.notes.until(lambda: wire.notes.messages)
                assert [message for _, message in wire.notes.messages] == [PING]
                assert lost(generation) not in [message for _, message in old.messages]
            assert len(notes.losses) == 5

    run(main())


def test_each_session_has_a_routing_id_that_nobody_can_guess() -> None:
    async def main() -> None:
        with hand_made() as server:
            client, notes = server.client()
            seen = set()
            for count in range(1, 4):
                routing_id, messages = await server.receive()
                assert messages == [Hello(kind="slave")]
                assert len(routing_id) == 16
                seen.add(routing_id)
                server.send(routing_id, encode([Welcome()]))
                await notes.welcomed(count)
                client.reset("next")
            assert len(seen) == 3
            client.close()

    run(main())


def test_server_that_does_not_answer_hello_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_client, "WELCOME_S", 0.1)

    async def main() -> None:
        with hand_made() as server:
            client, notes = server.client()
            first, _ = await server.receive()
            second, messages = await server.receive()
            assert first != second
            assert messages == [Hello(kind="slave")]
            server.send(second, encode([Welcome()]))
            await notes.welcomed(1)
            assert notes.losses == []
            client.close()

    run(main())


@pytest.mark.parametrize(
    "frames",
    [(b"\xc1",), (b"",), (b"\x91\x80",), (encode([PING]) + b"!",), (encode([PING]), encode([PING]))],
)
def test_bad_payload_of_a_server_ends_the_session_and_nothing_else(frames: tuple[bytes, ...]) -> None:
    async def main() -> None:
        with hand_made() as server:
            client, notes = server.client()
            routing_id, _ = await server.receive()
            server.send(routing_id, encode([Welcome()]))
            await notes.welcomed(1)
            server.send(routing_id, *frames)
            routing_id, messages = await server.receive()
            assert messages == [Hello(kind="slave")]
            server.send(routing_id, encode([Welcome(), PING]))
            await notes.got(1)
            assert [loss.startswith("bad payload") for loss in notes.losses] == [True]
            client.close()

    run(main())


def test_client_without_a_descriptor_to_spare_dials_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with hand_made() as server:
            client, notes = server.client()
            routing_id, _ = await server.receive()
            server.send(routing_id, encode([Welcome()]))
            await notes.welcomed(1)
            real = client._context.socket
            refusals = iter([zmq.ZMQError(errno.EMFILE), zmq.ZMQError(errno.EMFILE)])

            def socket(kind: int) -> "zmq.Socket[bytes]":
                for refusal in refusals:
                    raise refusal
                return real(kind)

            monkeypatch.setattr(client._context, "socket", socket)
            client.reset("next")
            routing_id, _ = await server.receive()
            server.send(routing_id, encode([Welcome()]))
            await notes.welcomed(2)
            assert next(refusals, None) is None
            client.close()

    run(main())


def test_overloaded_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with hand_made() as server:
            client, notes = server.client()
            routing_id, _ = await server.receive()
            server.send(routing_id, encode([Error(code="overflow", message="try later")]))
            routing_id, _ = await server.receive()
            assert client.last_failure == "overflow: try later"
            server.send(routing_id, encode([Welcome()]))
            await notes.welcomed(1)
            assert notes.refusals == []
            client.close()

    run(main())


def test_what_came_before_the_connection_broke_is_handed_on() -> None:
    async def main() -> None:
        with hand_made() as server:
            client, notes = server.client()
            routing_id, _ = await server.receive()
            server.send(routing_id, encode([Welcome()]))
            await notes.welcomed(1)
            server.socket.linger = 1000
            for number in range(50):
                server.send(routing_id, encode([lost(number)]))
            server.socket.close()
            await notes.until(lambda: notes.losses)
            assert notes.messages == [lost(number) for number in range(50)]
            client.close()

    run(main())


def test_reset_ends_a_session_at_once_and_opens_another() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = await wire.connected()
            client.send(PING)
            client.reset("the master is silent")
            assert notes.losses == ["the master is silent"]
            assert not client.send(PING)
            await notes.welcomed(2)
            assert wire.notes.messages == []

    run(main())


def test_handler_may_close_or_reset_inside_any_call() -> None:
    async def main() -> None:
        async with Wire() as wire:
            session_of = wire.notes.opened
            client, notes = await wire.connected()
            notes.on_message = lambda message: client.close() if message == Pong() else client.reset("asked")
            wire.server.send(session_of[0][0], PING)
            wire.server.send(session_of[0][0], PING)
            await notes.welcomed(2)
            assert notes.messages == [PING]
            wire.server.send(session_of[1][0], Pong())
            wire.server.send(session_of[1][0], PING)
            await notes.got(2)
            assert notes.messages == [PING, Pong()]
            assert notes.losses == ["asked"]

    run(main())


def test_message_that_is_too_large_is_refused_where_it_is_sent() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = await wire.connected()
            with pytest.raises(TransportError, match=r"Goodbye of .* bytes is over the limit of .*: send"):
                client.send(Goodbye(message="x" * (17 << 20)))
            client.send(PING)
            await wire.notes.until(lambda: wire.notes.messages)
            assert notes.losses == []

    run(main())


def test_server_that_stops_reading_costs_the_session_and_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_outbox, "OUTBOX_BYTES", 8 << 20)

    async def main() -> None:
        with hand_made() as server:
            server.socket.rcvhwm = 1
            client, notes = server.client()
            routing_id, _ = await server.receive()
            server.send(routing_id, encode([Welcome()]))
            await notes.welcomed(1)
            large = FrameworkToExecutor(slave_id=SlaveId("s"), executor_id="e", data=bytes(CHUNK_LIMIT_BYTES))  # type: ignore[arg-type]
            sent = 0
            while client.send(large):
                sent += 1
                await asyncio.sleep(0)
            assert sent < 200
            await notes.until(lambda: notes.losses)
            assert notes.losses == ["overflow: the server does not read what it is sent"]
            client.close()

    run(main())


def test_refused_client_says_why() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = wire.client(keys=generate_keypair())
            await notes.until(lambda: notes.refusals)
            assert notes.refusals[0].code == "unauthorized"
            assert "does not know our key" in client.last_failure

    run(main())
