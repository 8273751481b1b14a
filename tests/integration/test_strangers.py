"""Strangers on the port get an `Error` or a closed connection, whatever they send; honest peers notice nothing.

Every test prints the seed of its noise; MESETA_TEST_SEED repeats it.
"""

import asyncio
import os
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
import zmq
from msgspec import inspect

import meseta.transport_sockets
from meseta.file_server import FileServer
from meseta.files import SlaveFiles
from meseta.ids import ContainerId, FrameworkId, Principal, SlaveId
from meseta.messages import Error, Goodbye, Hello, Message, Ping, Pong, SlaveLost, decode, encode
from meseta.transport import generate_keypair
from tests.tools import protocol_doc
from tests.unit.transport_peers import Wire, hello, receive, run

HANDSHAKE_MS = 500
GREETING_CURVE = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15 + 1 + 31)
GREETING_NULL = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 1 + 31)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
EXAMPLES = [protocol_doc.example(inspect.type_info(kind)) for kind in get_args(Message)]


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    monkeypatch.setattr(meseta.transport_sockets, "HANDSHAKE_MS", HANDSHAKE_MS)
    seed = int(os.environ.get("MESETA_TEST_SEED") or secrets.randbits(32))
    print(f"MESETA_TEST_SEED={seed}")
    return random.Random(seed)


@asynccontextmanager
async def honest_peer(wire: Wire) -> AsyncIterator[None]:
    """Talk all the while, and see every word answered once, in order, in one session."""
    client, notes = await wire.connected(Hello(kind="slave", name="honest"))
    session = wire.notes.opened[-1][0]
    wire.notes.on_message = lambda sender, message: sender == session and wire.server.send(sender, message)
    sent: list[Message] = []
    has_time = True

    async def talk() -> None:
        while has_time:
            sent.append(SlaveLost(slave_id=SlaveId(str(len(sent)))))
            assert client.send(sent[-1])
            await notes.got(len(sent))

    talking = asyncio.create_task(talk())
    try:
        yield
    finally:
        before = len(sent)
        async with asyncio.timeout(5):
            while len(sent) < before + 3 and not talking.done():  # Still answered after all of it.
                await asyncio.sleep(0.001)
        has_time = False
        await talking
    assert notes.messages == sent
    assert notes.losses == []
    assert session not in [closed for closed, _ in wire.notes.closed]


async def closed_after(endpoint: str, *parts: bytes, then_close: bool = False) -> bytes:
    """Send bytes over plain TCP; return what came back until the server closed the connection."""
    address = urlsplit(endpoint)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    got = b""
    try:
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
            if not then_close:
                async with asyncio.timeout(10):
                    while piece := await reader.read(1 << 16):
                        got += piece
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return got


def test_random_bytes_are_answered_by_closing(noise: random.Random) -> None:
    async def main() -> None:
        async with Wire() as wire, honest_peer(wire):
            lengths = [noise.choice([1, 10, 64, 65, 1000, 100_000]) for _ in range(60)]
            tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
            openings = [b"", b"GET / HTTP/1.1\r\nHost: master\r\n\r\n", tls + noise.randbytes(500)]
            openings += [noise.randbytes(length) for length in lengths]
            await asyncio.gather(*(closed_after(wire.server.endpoint, opening) for opening in openings))
            assert len(wire.notes.opened) == 1

    run(main())


@pytest.mark.parametrize("curve", [True, False])
def test_truncated_and_broken_handshakes_are_closed(noise: random.Random, curve: bool) -> None:
    async def main() -> None:
        async with Wire(curve=curve) as wire, honest_peer(wire):
            greeting = GREETING_CURVE if curve else GREETING_NULL
            lengths = [noise.randrange(1, 64) for _ in range(10)]
            commands = [
                b"\x04\xc8\x05HELLO" + noise.randbytes(194),  # A CURVE HELLO of the right size.
                b"\x06" + b"\xff" * 8 + b"\x05HELLO",  # A command of 2^64 - 1 bytes.
                b"\x04\x00",
                noise.randbytes(300),
                READY,
            ]
            await asyncio.gather(
                *(closed_after(wire.server.endpoint, greeting[:length], then_close=True) for length in lengths),
                *(closed_after(wire.server.endpoint, greeting[:length]) for length in lengths),
                *(closed_after(wire.server.endpoint, greeting, command, then_close=True) for command in commands),
                *(closed_after(wire.server.endpoint, greeting, command) for command in commands[: 4 if curve else 2]),
                closed_after(wire.server.endpoint, GREETING_NULL if curve else GREETING_CURVE, noise.randbytes(200)),
            )
            assert len(wire.notes.opened) == 1

    run(main())


def test_announced_gigabytes_cost_no_memory(noise: random.Random) -> None:
    async def main() -> None:
        async with Wire(curve=False) as wire, honest_peer(wire):
            before = psutil.Process().memory_info().rss
            huge = b"\x02" + (1 << 40).to_bytes(8, "big")
            some = b"\x02" + (64 << 20).to_bytes(8, "big")
            frames = [frame + noise.randbytes(1000) for frame in [huge, some] * 20]
            await asyncio.gather(*(closed_after(wire.server.endpoint, GREETING_NULL, READY, frame) for frame in frames))
            assert psutil.Process().memory_info().rss - before < 64 << 20
            assert len(wire.notes.opened) == 1

    run(main())


def test_peers_with_wrong_keys_or_none_get_nothing(noise: random.Random) -> None:
    async def main() -> None:
        async with Wire() as wire, honest_peer(wire):
            unknown = [wire.dealer(generate_keypair()) for _ in range(10)]
            keyless = [wire.dealer() for _ in range(10)]
            wrong_server = []
            for _ in range(10):
                socket = wire.context.socket(zmq.DEALER)
                wire.dealers.append(socket)
                keys = wire.keys()
                assert keys is not None
                socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
                socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
                socket.set(zmq.CURVE_SERVERKEY, generate_keypair().public.encode())
                socket.connect(wire.server.endpoint)
                wrong_server.append(socket)
            strangers = unknown + keyless + wrong_server
            for stranger in strangers:
                stranger.send(encode([Hello(kind="operator")]))
                stranger.send(noise.randbytes(100))
            await asyncio.sleep(2 * HANDSHAKE_MS / 1000)  # Time in which nothing must happen.
            assert [stranger.poll(0) for stranger in strangers] == [0] * len(strangers)
            assert len(wire.notes.opened) == 1

    run(main())


def test_other_versions_are_told_which_one_is_spoken(noise: random.Random) -> None:
    async def main() -> None:
        async with Wire() as wire, honest_peer(wire):
            for version in (0, 2, 1 << 40, -1):
                (answer,) = await hello(wire.dealer(wire.keys()), Hello(kind="slave", version=version))
                assert isinstance(answer, Error)
                assert (answer.code, answer.field) == ("bad_version", "version")
            assert len(wire.notes.opened) == 1

    run(main())


def test_right_key_and_noise_get_errors_only(noise: random.Random) -> None:
    async def main() -> None:
        async with Wire() as wire, honest_peer(wire):
            dealer = wire.dealer(wire.keys("mallory"))
            await hello(dealer)
            session = wire.notes.opened[-1][0]
            bad = 0
            for _ in range(800):
                payload = bytearray(msgspec.msgpack.encode(noise.choices(EXAMPLES, k=noise.randrange(1, 4))))
                for _ in range(noise.randrange(3)):
                    payload[noise.randrange(len(payload))] = noise.randrange(256)
                if noise.random() < 0.2:
                    payload = bytearray(noise.randbytes(noise.randrange(2000)))
                frames = [bytes(payload)] * noise.choice([1, 1, 1, 2])
                with suppress(Exception):
                    if any(isinstance(message, Hello | Goodbye) for message in decode(frames[0])):
                        continue  # Well said, and ends the session.
                dealer.send_multipart(frames)
                bad += 1
            assert bad > 100
            dealer.send(encode([Pong()]))
            await wire.notes.until(lambda: (session, Pong()) in wire.notes.messages)
            assert session not in [closed for closed, _ in wire.notes.closed]
            while dealer.poll(0):
                for answer in await receive(dealer):
                    assert isinstance(answer, Error)
                    assert answer.code == "bad_message"

    run(main())


def test_right_key_and_no_session_get_few_errors_only(noise: random.Random) -> None:
    async def main() -> None:
        async with Wire() as wire, honest_peer(wire):
            dealer = wire.dealer(wire.keys("mallory"))
            for _ in range(800):
                dealer.send(noise.randbytes(noise.randrange(200)))
            dealer.send_multipart([b"", encode([Ping(interval_s=1.0, missed_limit=1)])])
            first = await receive(dealer)
            answers = [*first]
            await asyncio.sleep(0.1)
            while dealer.poll(0):
                answers += await receive(dealer)
            assert 1 <= len(answers) <= 3
            assert all(isinstance(answer, Error) for answer in answers)
            assert len(wire.notes.opened) == 1

    run(main())


def test_huge_payload_of_a_known_peer_ends_its_connection_only(noise: random.Random) -> None:
    async def main() -> None:
        async with Wire() as wire, honest_peer(wire):
            dealer = wire.dealer(wire.keys("mallory"))
            await hello(dealer)
            session = wire.notes.opened[-1][0]
            dealer.send(bytes(18 << 20))
            async with asyncio.timeout(10):
                while wire.server.send(session, Pong()):
                    await asyncio.sleep(0.01)
            await wire.notes.until(lambda: session in [closed for closed, _ in wire.notes.closed])

    run(main())


def test_file_server_keeps_serving_among_strangers(noise: random.Random, tmp_path: Path) -> None:
    async def main() -> None:
        data = noise.randbytes(5 << 20)
        (tmp_path / "part-00000").write_bytes(data)
        keys, reader_keys = generate_keypair(), generate_keypair()

        def resolve(principal: Principal, framework_id: FrameworkId, container_id: ContainerId) -> Path:
            return tmp_path

        known = {reader_keys.public: Principal("ada")}.get
        server = FileServer("tcp://127.0.0.1:0", resolve, keys=keys, principals=known)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.set(zmq.CURVE_PUBLICKEY, reader_keys.public.encode())
        dealer.set(zmq.CURVE_SECRETKEY, reader_keys.secret.encode())
        dealer.set(zmq.CURVE_SERVERKEY, keys.public.encode())
        dealer.connect(server.endpoint)
        try:
            async with SlaveFiles(server.endpoint, keys=reader_keys, server_public_key=keys.public) as files:
                await hello(dealer)
                for _ in range(20):
                    for _ in range(20):
                        dealer.send(msgspec.msgpack.encode([noise.choice(EXAMPLES)]))
                        dealer.send(noise.randbytes(100))
                    await closed_after(server.endpoint, noise.randbytes(100))
                    got = await files.read(FrameworkId("f"), ContainerId("c"), "part-00000")
                    assert got == data
        finally:
            context.destroy(linger=0)
            server.close()

    run(main())
