"""Requests find their answers, and say what to check when there is none."""

import asyncio
from contextlib import aclosing

import msgspec
import pytest

import meseta.requests
from meseta.errors import RequestRefused, SessionLost, TransportError
from meseta.ids import SessionId
from meseta.messages import Call, Done, Error, GetMaster, GetNodes, Hello, Message, Nodes, Ping, Pong, Reply
from meseta.requests import Requester
from meseta.transport import generate_keypair
from tests.unit.transport_peers import Wire, run

OPERATOR = Hello(kind="operator")


def requester(wire: Wire, *, timeout_s: float = 5.0) -> Requester:
    return Requester(
        wire.server.endpoint,
        hello=OPERATOR,
        keys=wire.keys(),
        server_public_key=wire.public_key,
        timeout_s=timeout_s,
    )


def test_answers_find_their_requests_in_whatever_order_they_come() -> None:
    async def main() -> None:
        async with Wire() as wire:
            asked: list[tuple[SessionId, int]] = []

            def answer_backwards(session: SessionId, message: Message) -> None:
                assert isinstance(message, GetNodes)
                asked.append((session, message.request_id))
                if len(asked) == 100:
                    for asker, request_id in reversed(asked):
                        wire.server.send(asker, Nodes(request_id=request_id, nodes=(), next=str(request_id)))

            wire.notes.on_message = answer_backwards
            async with requester(wire) as one:
                requests = [GetNodes(request_id=one.next_id()) for _ in range(100)]
                answers = await asyncio.gather(*(one.request(request) for request in requests))
                assert answers == [
                    Nodes(request_id=request.request_id, nodes=(), next=str(request.request_id)) for request in requests
                ]
                assert one.welcome is not None
                assert one.welcome.principal == "ada"

    run(main())


def test_refused_request_carries_code_and_words_and_others_go_on() -> None:
    async def main() -> None:
        async with Wire() as wire:

            def answer(session: SessionId, message: Message) -> None:
                if isinstance(message, GetMaster):
                    refusal = Error(code="unauthorized", message="ada may not", request_id=message.request_id)
                    wire.server.send(session, refusal)
                elif isinstance(message, GetNodes):
                    wire.server.send(session, Done(request_id=message.request_id))

            wire.notes.on_message = answer
            async with requester(wire) as one:
                with pytest.raises(RequestRefused, match="ada may not") as caught:
                    await one.request(GetMaster(request_id=one.next_id()))
                assert caught.value.code == "unauthorized"
                assert isinstance(await one.request(GetNodes(request_id=one.next_id())), Done)

    run(main())


def test_session_that_breaks_fails_its_requests_and_the_next_one_uses_another() -> None:
    async def main() -> None:
        async with Wire() as wire:

            def answer(session: SessionId, message: Message) -> None:
                if isinstance(message, GetMaster):
                    wire.server.forget(session, "test")
                elif isinstance(message, GetNodes):
                    wire.server.send(session, Done(request_id=message.request_id))

            wire.notes.on_message = answer
            async with requester(wire) as one:
                waiting = asyncio.create_task(one.request(GetMaster(request_id=one.next_id())))
                await wire.notes.until(lambda: wire.notes.messages)
                one.send(Pong())
                with pytest.raises(SessionLost, match=f"session with {wire.server.endpoint} ended: unknown session"):
                    await waiting
                assert isinstance(await one.request(GetNodes(request_id=one.next_id())), Done)

    run(main())


def test_silent_server_is_named_when_time_is_up() -> None:
    async def main() -> None:
        async with Wire() as wire, requester(wire, timeout_s=0.2) as one:
            with pytest.raises(
                TransportError, match=f"no answer to GetMaster from {wire.server.endpoint} within 0.2 s"
            ):
                await one.request(GetMaster(request_id=one.next_id()))

    run(main())


def test_server_that_is_not_there_is_named_with_what_to_check() -> None:
    async def main() -> None:
        one = Requester("tcp://127.0.0.1:1", hello=OPERATOR, timeout_s=0.2)
        with pytest.raises(TransportError) as caught:
            await one.__aenter__()
        text = str(caught.value)
        assert text.startswith("no session with tcp://127.0.0.1:1 within 0.2 s: nobody answers")
        assert "check that the daemon runs" in text

    run(main())


def test_unknown_key_is_refused_at_once() -> None:
    async def main() -> None:
        async with Wire() as wire:
            one = Requester(
                wire.server.endpoint, hello=OPERATOR, keys=generate_keypair(), server_public_key=wire.public_key
            )
            with pytest.raises(TransportError, match=r"refuses us: .* does not know our key"):
                await one.__aenter__()

    run(main())


def test_stream_yields_answers_up_to_the_last() -> None:
    async def main() -> None:
        async with Wire() as wire:

            def answer(session: SessionId, message: Message) -> None:
                assert isinstance(message, Call)
                for number in range(5):
                    result = msgspec.Raw(msgspec.msgpack.encode(number))
                    wire.server.send(session, Reply(request_id=message.request_id, result=result, more=number < 4))

            wire.notes.on_message = answer
            async with requester(wire) as one:
                got = []
                async for reply in one.stream(Call(request_id=one.next_id(), method="watch")):
                    assert isinstance(reply, Reply)
                    got.append(msgspec.msgpack.decode(reply.result))
                assert got == [0, 1, 2, 3, 4]

    run(main())


def test_stream_that_is_left_early_frees_its_request() -> None:
    async def main() -> None:
        async with Wire() as wire:

            def answer(session: SessionId, message: Message) -> None:
                if isinstance(message, Call):
                    for _ in range(3):
                        reply = Reply(request_id=message.request_id, result=msgspec.Raw(b"\x01"), more=True)
                        wire.server.send(session, reply)

            wire.notes.on_message = answer
            async with requester(wire) as one:
                call = Call(request_id=one.next_id(), method="watch")
                async with aclosing(one.stream(call, timeout_s=None)) as replies:
                    await anext(replies)
                assert one._pending == {}

    run(main())


def test_stream_read_too_slowly_ends_with_an_error_and_not_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.requests, "ANSWERS_WAITING", 10)

    async def main() -> None:
        async with Wire() as wire:

            def answer(session: SessionId, message: Message) -> None:
                if isinstance(message, Call):
                    for _ in range(100):
                        reply = Reply(request_id=message.request_id, result=msgspec.Raw(b"\x01"), more=True)
                        wire.server.send(session, reply)

            wire.notes.on_message = answer
            async with requester(wire) as one:

                async def read_all() -> None:
                    async for _ in one.stream(Call(request_id=one.next_id(), method="watch")):
                        pass

                with pytest.raises(SessionLost, match="10 answers to Call wait: they are read too slowly"):
                    await read_all()

    run(main())


def test_payload_that_the_server_cannot_read_fails_what_is_under_way() -> None:
    async def main() -> None:
        async with Wire() as wire:
            wire.notes.on_message = lambda session, message: wire.server.send(
                session, Error(code="bad_message", message="element 0 is no message", index=0)
            )
            async with requester(wire) as one:
                with pytest.raises(RequestRefused, match="element 0 is no message"):
                    await one.request(GetMaster(request_id=one.next_id()))

    run(main())


def test_pings_are_answered() -> None:
    async def main() -> None:
        async with Wire() as wire, requester(wire):
            wire.server.send(wire.notes.opened[0][0], Ping(interval_s=1.0, missed_limit=2))
            await wire.notes.until(lambda: wire.notes.messages)
            assert wire.notes.messages[0][1] == Pong()

    run(main())


def test_request_without_an_id_of_its_own_is_our_bug() -> None:
    async def main() -> None:
        async with Wire() as wire, requester(wire) as one:
            with pytest.raises(ValueError, match="needs a request_id of its own"):
                await one.request(Pong())

    run(main())
