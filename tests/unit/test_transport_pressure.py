"""Peers that read slowly, not at all, or leave without a word; strangers; bounds on all of them."""

import asyncio

import pytest
import zmq

import meseta.transport_outbox
import meseta.transport_server
from meseta.ids import SlaveId
from meseta.messages import Error, FileData, Goodbye, Hello, Message, Ping, Pong, SlaveLost, decode, encode
from tests.unit.transport_peers import Wire, hello, never, receive, run

PING = Ping(interval_s=1.0, missed_limit=2)
MIB = 1 << 20


def lost(number: int) -> SlaveLost:
    return SlaveLost(slave_id=SlaveId(str(number)))


def piece(size_bytes: int) -> FileData:
    return FileData(request_id=1, offset=0, data=bytes(size_bytes), size_bytes=0)


def test_peer_that_reads_late_gets_everything_in_order() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            session = wire.notes.opened[0][0]
            for number in range(100_000):
                assert wire.server.send(session, lost(number))
            for _ in range(20):
                assert wire.server.send(session, piece(MIB))
            await asyncio.sleep(0.05)
            got: list[Message] = []
            while len(got) < 100_020:
                got += await receive(dealer)
            assert got[:100_000] == [lost(number) for number in range(100_000)]
            assert wire.notes.closed == []

    run(main())


def test_peer_that_does_not_read_loses_its_session_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_outbox, "OUTBOX_BYTES", 8 * MIB)

    async def main() -> None:
        async with Wire() as wire:
            wire.notes.on_message = wire.server.send
            client, notes = await wire.connected()
            dealer = wire.dealer(wire.keys())
            dealer.set(zmq.RCVHWM, 1)
            await hello(dealer)
            session = wire.notes.opened[1][0]
            sent = 0
            while wire.server.send(session, piece(MIB)):
                sent += 1
                await asyncio.sleep(0)
            assert 64 <= sent < 200
            await wire.notes.until(lambda: wire.notes.closed)
            assert wire.notes.closed == [(session, "overflow: the peer does not read what it is sent")]
            client.send(PING)
            await notes.got(1)
            last: Message = PING
            while not isinstance(last, Error):
                dealer.send(encode([PING]))  # Again: an answer that finds no room is not kept.
                (last,) = await receive(dealer)
            assert last.code == "unknown_session"

    run(main())


def test_blocked_peer_does_not_hold_up_another() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            blocked = wire.notes.opened[0][0]
            while not wire.server.waiting_bytes(blocked):
                wire.server.send(blocked, piece(MIB))
                await asyncio.sleep(0)
            _, notes = await wire.connected()
            for number in range(1000):
                wire.server.send(wire.notes.opened[1][0], lost(number))
            await notes.got(1000)
            assert wire.notes.closed == []

    run(main())


def test_session_of_a_peer_that_left_ends_with_the_next_message_to_it() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            session = wire.notes.opened[0][0]
            dealer.close()
            async with asyncio.timeout(5):
                while not wire.notes.closed:
                    wire.server.send(session, PING)
                    await asyncio.sleep(0.01)
            ((closed, reason),) = wire.notes.closed
            assert closed == session
            assert reason.startswith("disconnected")

    run(main())


def test_session_of_a_peer_that_left_is_found_by_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_server, "SWEEP_S", 0.05)

    async def main() -> None:
        async with Wire() as wire:
            _, notes = await wire.connected()
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            dealer.close()
            await wire.notes.until(lambda: wire.notes.closed)
            assert [session for session, _ in wire.notes.closed] == [wire.notes.opened[1][0]]
            await never(notes.until(lambda: notes.losses or notes.messages))

    run(main())


def test_operator_who_says_nothing_is_forgotten_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_server, "SWEEP_S", 0.02)

    async def main() -> None:
        async with Wire() as wire:
            await wire.connected(Hello(kind="slave"))
            client, notes = await wire.connected(Hello(kind="operator"))
            await wire.notes.until(lambda: wire.notes.closed)
            assert wire.notes.closed == [(wire.notes.opened[1][0], "idle")]
            client.send(PING)
            await notes.welcomed(2)

    run(main())


def test_sessions_are_bounded_and_the_next_peer_gets_in_when_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_server, "SESSION_LIMIT", 2)

    async def main() -> None:
        async with Wire() as wire:
            first, _ = await wire.connected()
            await wire.connected()
            client, notes = wire.client()
            await never(notes.welcomed(1))
            assert "overflow" in client.last_failure
            assert "2 sessions already" in client.last_failure
            first.close()
            await notes.welcomed(1)

    run(main())


def test_stranger_gets_one_error_a_second_however_much_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Wire() as wire:
            stranger = wire.dealer(wire.keys())
            for _ in range(500):
                stranger.send(encode([PING] * 10))
            stranger.send(encode([Hello(kind="slave")]))  # Read after all of the others.
            errors = 0
            while isinstance((await receive(stranger))[0], Error):
                errors += 1
            assert errors <= 2
            assert wire.notes.messages == []

    run(main())


def test_strangers_are_answered_up_to_a_number_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_server, "STRANGERS_PER_S", 3)

    async def main() -> None:
        async with Wire(curve=False) as wire:
            strangers = [wire.dealer() for _ in range(10)]
            for stranger in strangers:
                stranger.send(encode([Pong()]))
            answers = 0
            for stranger in strangers:
                try:
                    await receive(stranger, within_s=0.05)
                    answers += 1
                except TimeoutError:
                    pass
            assert 3 <= answers <= 6  # The second may have ended meanwhile.
            assert isinstance((await hello(strangers[0]))[0], Message)

    run(main())


def test_bad_payloads_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            for _ in range(500):
                dealer.send(b"noise")
            dealer.send(encode([PING]))
            await wire.notes.until(lambda: wire.notes.messages)

    caplog.set_level("INFO")
    run(main())
    assert 10 <= len([one for one in caplog.records if one.message.startswith("bad payload refused")]) <= 50


def test_message_over_the_limit_ends_its_session_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = await wire.connected()
            bad = wire.dealer(wire.keys())
            await hello(bad)
            bad.send(bytes(20 * MIB))  # ZeroMQ itself closes this connection.
            client.send(PING)
            await wire.notes.until(lambda: wire.notes.messages)
            session = wire.notes.opened[0][0]
            assert not wire.server.send(session, Goodbye(message="x" * (17 * MIB)))
            await wire.notes.until(lambda: wire.notes.closed)
            assert "Goodbye of" in wire.notes.closed[0][1]
            client.send(PING)
            await notes.welcomed(2)

    run(main())


def test_payload_of_the_largest_messages_passes() -> None:
    async def main() -> None:
        async with Wire() as wire:
            wire.notes.on_message = wire.server.send
            client, notes = await wire.connected()
            messages = [FileData(request_id=n, offset=0, data=bytes(MIB), size_bytes=0) for n in range(30)]
            for message in messages:
                client.send(message)
            await notes.got(30)
            assert notes.messages == messages
            assert decode(encode([messages[0]])) == [messages[0]]

    run(main())
