"""Sessions over real sockets: Hello and Welcome, batches, order, errors, ends."""

import asyncio
import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq

from meseta.errors import TransportError
from meseta.ids import SessionId, SlaveId, TaskId
from meseta.messages import (
    Epoch,
    Error,
    FileData,
    Goodbye,
    Hello,
    KillTask,
    Message,
    Ping,
    Pong,
    SlaveLost,
    Welcome,
    encode,
)
from meseta.transport import Client, Server, generate_keypair
from tests.unit.transport_peers import ClientNotes, ServerNotes, Wire, hello, never, receive, run


def lost(number: int) -> SlaveLost:
    return SlaveLost(slave_id=SlaveId(str(number)))


PING = Ping(interval_s=1.0, missed_limit=2)
KILL_OF_NUMBER = encode([KillTask(task_id=TaskId("t"))])[1:].replace(b"\xa1t", b"\x07")


def test_session_opens_with_the_principal_of_the_key() -> None:
    async def main() -> None:
        async with Wire() as wire:
            _, notes = wire.client(Hello(kind="slave", name="s"), keys=wire.keys("slave-1"))
            await notes.until(lambda: notes.welcomes)
            assert notes.welcomes == [(Welcome(principal="slave-1"), None)]
            ((_, principal, message),) = wire.notes.opened
            assert (principal, message) == ("slave-1", Hello(kind="slave", name="s"))

    run(main())


def test_ten_thousand_messages_arrive_in_order_both_ways() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = await wire.connected()
            (session, _, _) = wire.notes.opened[0]
            for number in range(10_000):
                assert client.send(lost(number))
                assert wire.server.send(session, lost(number))
            await notes.until(lambda: len(notes.messages) == 10_000)
            await wire.notes.until(lambda: len(wire.notes.messages) == 10_000)
            assert notes.messages == [lost(number) for number in range(10_000)]
            assert wire.notes.messages == [(session, lost(number)) for number in range(10_000)]

    run(main())


def test_messages_of_one_turn_travel_as_one_payload_split_at_256_messages() -> None:
    async def main() -> None:
        async with Wire(epoch=4) as wire:
            dealer = wire.dealer(wire.keys())
            assert await hello(dealer) == [Epoch(epoch=4), Welcome(principal="ada")]
            session = wire.notes.opened[0][0]
            for count in (3, 600):
                for number in range(count):
                    wire.server.send(session, lost(number))
                got: list[Message] = []
                sizes = []
                while len(got) < count:
                    payload = await receive(dealer)
                    assert payload[0] == Epoch(epoch=4)
                    sizes.append(len(payload) - 1)
                    got += payload[1:]
                assert got == [lost(number) for number in range(count)]
                assert sizes == ([3] if count == 3 else [256, 256, 88])

    run(main())


def test_payloads_are_split_at_a_mebibyte() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            for _ in range(5):
                piece = FileData(request_id=1, offset=0, data=bytes(600 << 10), size_bytes=0)
                wire.server.send(wire.notes.opened[0][0], piece)
            assert [len(await receive(dealer)) for _ in range(3)] == [2, 2, 1]

    run(main())


def test_epoch_is_stripped_and_given_with_each_message() -> None:
    async def main() -> None:
        async with Wire(epoch=9) as wire:
            client, notes = await wire.connected()
            wire.notes.on_message = lambda session, message: [
                wire.server.send(session, one) for one in (Pong(), message)
            ]
            client.send(PING)
            await notes.until(lambda: len(notes.messages) == 2)
            assert notes.messages == [Pong(), PING]
            assert notes.epochs == [9, 9]
            assert notes.welcomes[0][1] == 9

    run(main())


def test_other_version_is_refused_and_not_dialled_again() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = wire.client(Hello(kind="slave", version=2))
            await notes.until(lambda: notes.refusals)
            assert notes.refusals[0].code == "bad_version"
            assert "version 2 is not spoken here, 1 is" in notes.refusals[0].message
            assert not client.send(PING)
            assert wire.notes.opened == []
            await never(notes.until(lambda: len(notes.refusals) > 1))

    run(main())


def test_hello_that_the_handler_refuses_gets_its_words_and_nothing_else() -> None:
    async def main() -> None:
        async with Wire() as wire:
            wire.notes.refusal = "slaves are not admitted today"
            wire.notes.on_opened = lambda session: wire.server.send(session, Pong())
            client, notes = wire.client()
            await notes.until(lambda: notes.refusals)
            assert notes.refusals == [Error(code="unauthorized", message="slaves are not admitted today")]
            assert notes.messages == []
            wire.notes.refusal = None
            client.reset("the operator has changed his mind")
            await notes.until(lambda: notes.welcomes)

    run(main())


def test_what_the_handler_sends_while_a_session_opens_comes_after_welcome() -> None:
    async def main() -> None:
        async with Wire() as wire:
            wire.notes.on_opened = lambda session: wire.server.send(session, lost(1))
            dealer = wire.dealer(wire.keys())
            assert await hello(dealer) == [Welcome(principal="ada"), lost(1)]

    run(main())


def test_message_without_session_is_answered_unknown_session() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            dealer.send(encode([PING]))
            (answer,) = await receive(dealer)
            assert isinstance(answer, Error)
            assert answer.code == "unknown_session"
            assert "Ping" in answer.message
            assert await hello(dealer) == [Welcome(principal="ada")]
            assert wire.notes.messages == []

    run(main())


def test_forgotten_peer_gets_what_was_sent_before_then_unknown_session_and_comes_back() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = await wire.connected()
            session = wire.notes.opened[0][0]
            wire.server.send(session, lost(1))
            wire.server.forget(session, "test")
            assert not wire.server.send(session, lost(2))
            await notes.until(lambda: notes.messages)
            assert notes.messages == [lost(1)]
            assert notes.losses == []
            assert client.send(PING)
            await notes.until(lambda: len(notes.welcomes) == 2)
            assert notes.losses[0].startswith("unknown session")
            assert wire.notes.opened[1][0] != session
            assert wire.notes.messages == []
            assert wire.notes.closed == []

    run(main())


@pytest.mark.parametrize(
    ("payload", "index", "field"),
    [
        (b"", None, None),
        (b"\xc1", None, None),
        (b"\xff" * 100, None, None),
        (b"\x91\x80", 0, None),
        (encode([PING]) + b"x", None, None),
        (
            b"\x92" + encode([PING])[1:] + encode([KillTask(task_id=TaskId("t"))])[1:].replace(b"\xa1t", b"\x07"),
            1,
            "task_id",
        ),
    ],
)
def test_bad_payload_is_answered_by_index_and_field_and_the_session_stays(
    payload: bytes, index: int | None, field: str | None
) -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            dealer.send(payload)
            (answer,) = await receive(dealer)
            assert isinstance(answer, Error)
            assert (answer.code, answer.index, answer.field) == ("bad_message", index, field)
            dealer.send(encode([PING]))
            await wire.notes.until(lambda: wire.notes.messages)
            assert [message for _, message in wire.notes.messages] == [PING]
            assert wire.notes.closed == []

    run(main())


def test_payload_of_several_frames_is_refused_whole() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            dealer.send_multipart([b"", encode([PING]), encode([PING])])
            dealer.send(encode([Pong()]))
            (answer,) = await receive(dealer)
            assert isinstance(answer, Error)
            assert (answer.code, "one frame" in answer.message) == ("bad_message", True)
            await wire.notes.until(lambda: wire.notes.messages)
            assert [message for _, message in wire.notes.messages] == [Pong()]

    run(main())


def test_second_hello_replaces_the_session() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys())
            await hello(dealer)
            await hello(dealer, Hello(kind="framework", name="again"))
            first, second = (session for session, _, _ in wire.notes.opened)
            assert first != second
            assert wire.notes.closed == [(first, "replaced: the peer said Hello again")]
            assert not wire.server.send(first, PING)
            assert wire.server.send(second, PING)

    run(main())


def test_closing_client_says_goodbye_after_its_last_messages() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, _ = await wire.connected()
            client.send(PING)
            client.close()
            await wire.notes.until(lambda: wire.notes.closed)
            assert wire.notes.closed == [(wire.notes.opened[0][0], "goodbye")]
            assert [message for _, message in wire.notes.messages] == [PING]

    run(main())


def test_goodbye_of_the_server_ends_the_session() -> None:
    async def main() -> None:
        async with Wire() as wire:
            _, notes = await wire.connected()
            wire.server.send(wire.notes.opened[0][0], Goodbye())
            await notes.until(lambda: len(notes.welcomes) == 2)
            assert notes.losses == ["the server said Goodbye"]

    run(main())


def test_sessions_of_two_peers_do_not_mix() -> None:
    async def main() -> None:
        async with Wire() as wire:
            wire.notes.on_message = wire.server.send
            peers = [await wire.connected() for _ in range(5)]
            for number, (client, _) in enumerate(peers):
                client.send(lost(number))
            for number, (_, notes) in enumerate(peers):
                await notes.got(1)
                assert notes.messages == [lost(number)]

    run(main())


def test_handler_that_forgets_in_the_middle_of_a_payload_hears_no_more_of_it() -> None:
    async def main() -> None:
        async with Wire() as wire:
            wire.notes.on_message = lambda session, message: wire.server.forget(session, "enough")
            client, notes = await wire.connected()
            for number in range(10):
                client.send(lost(number))
            await notes.until(lambda: notes.losses)
            assert [message for _, message in wire.notes.messages] == [lost(0)]

    run(main())


def test_handler_that_fails_does_not_stop_the_socket() -> None:
    async def main() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        async with Wire() as wire:

            def fail_once(session: SessionId, message: Message) -> None:
                wire.notes.on_message = None
                raise RuntimeError("a bug")

            wire.notes.on_message = fail_once
            client, _ = await wire.connected()
            client.send(lost(1))
            await wire.notes.until(lambda: len(wire.notes.messages) == 1)
            client.send(lost(2))
            await wire.notes.until(lambda: len(wire.notes.messages) == 2)
            assert [str(problem["exception"]) for problem in problems] == ["a bug"]

    run(main())


def test_flood_leaves_the_loop_its_turns() -> None:
    async def main() -> None:
        async with Wire(curve=False) as wire:
            client, _ = await wire.connected()
            turns = [0]

            def turn() -> None:
                turns.append(len(wire.notes.messages))
                if turns[-1] < 20_000:
                    asyncio.get_running_loop().call_soon(turn)

            turn()
            for number in range(20_000):
                client.send(lost(number))
            await wire.notes.until(lambda: len(wire.notes.messages) == 20_000)
            # A payload is never split, so a turn may end one payload after its limit; the
            # descriptor and the loop's own call may both read in one turn.
            assert max(after - before for before, after in itertools.pairwise(turns)) <= 4 * 256

    run(main())


def test_executors_meet_their_slave_through_ipc(tmp_path: Path) -> None:
    async def main() -> None:
        async with Wire(f"ipc://{tmp_path}/s", curve=False) as wire:
            wire.notes.on_message = lambda session, message: wire.server.send(session, Pong())
            client, notes = await wire.connected(Hello(kind="executor", token="secret"))
            client.send(PING)
            await notes.until(lambda: notes.messages)
            assert wire.notes.opened[0][1:] == ("", Hello(kind="executor", token="secret"))
        assert not (tmp_path / "s").exists()

    run(main())


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("ipc:///run/" + "x" * 103, "a path of 108 bytes, and a socket's path has at most 107: take a shorter folder"),
        ("127.0.0.1:5055", "'127.0.0.1:5055' is no endpoint: write tcp://ADDRESS:PORT or ipc:///PATH"),
        ("tcp://192.0.2.1:5055", "tcp://192.0.2.1:5055 is no address of this machine: bind one of its own"),
        ("tcp://127.0.0.1:99999", "tcp://127.0.0.1:99999 has a port over 65535"),
        ("tcp://nonsense", "'tcp://nonsense' is no endpoint"),
        ("tcp://no.such.host.invalid:0", "tcp://no.such.host.invalid:0 is no address of this machine"),
        ("ipc://", "'ipc://' is no endpoint"),
        ("ipc:///nonexistent/folder/s", "cannot be bound"),
    ],
)
def test_endpoint_that_cannot_be_bound_is_refused_in_words(endpoint: str, named: str) -> None:
    async def main() -> None:
        with pytest.raises(TransportError) as caught:
            Server(endpoint, ServerNotes(), keys=None, principals=None)
        assert named in str(caught.value)

    run(main())


def test_path_in_use_is_not_taken_away(tmp_path: Path) -> None:
    async def main() -> None:
        async with Wire(f"ipc://{tmp_path}/s", curve=False) as wire:
            with pytest.raises(TransportError, match="s is in use: stop the process that has it, or take another path"):
                wire.serve(wire.server.endpoint, ServerNotes())
            await wire.connected()
        async with Wire(f"ipc://{tmp_path}/s", curve=False) as wire:
            await wire.connected()

    run(main())


def test_port_in_use_is_named_with_the_remedy() -> None:
    async def main() -> None:
        async with Wire() as wire:
            with pytest.raises(TransportError, match=f"{wire.server.endpoint} is in use: stop the process that has it"):
                wire.serve(wire.server.endpoint, ServerNotes())

    run(main())


@pytest.mark.parametrize(
    ("keys", "server_key", "named"),
    [
        (True, None, "keys for tcp://.* are not complete"),
        (True, "short", "cannot dial .*check the address and the keys"),
    ],
)
def test_client_with_bad_keys_is_refused_in_words(keys: bool, server_key: str | None, named: str) -> None:
    async def main() -> None:
        pair = generate_keypair() if keys else None
        with pytest.raises(TransportError, match=named):
            Client(
                "tcp://127.0.0.1:1", ClientNotes(), hello=Hello(kind="slave"), keys=pair, server_public_key=server_key
            )

    run(main())


def test_closed_ends_leave_no_descriptor_and_no_thread() -> None:
    async def main() -> None:
        for curve in (True, False):
            async with Wire(curve=curve) as wire:
                for _ in range(3):
                    client, notes = await wire.connected()
                    client.reset("again")
                    await notes.welcomed(2)

    run(main())
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    tasks = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        run(main())
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(os.listdir("/proc/self/task")) == tasks


def test_transport_has_no_hand_on_zmq_after_close() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, _ = await wire.connected()
            session = wire.notes.opened[0][0]
            client.close()
            client.close()
            client.reset("late")
            assert not client.send(PING)
            wire.server.send(session, PING)
            wire.server.close()
            wire.server.close()
            assert not wire.server.send(session, PING)
            await asyncio.sleep(0.05)  # Callbacks that were scheduled before the close must find it closed.

    run(main())
    assert zmq.zmq_version_info() >= (4, 3)
