"""A framework's own service on real sockets: calls, streams, refusals."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from meseta.errors import InvalidInput, ProtocolError, RequestRefused, TransportError
from meseta.ids import Principal
from meseta.messages import Call, Error, GetMaster, Hello, Message, Reply, Welcome
from meseta.service import CALLS_LIMIT, Service
from meseta.service_client import ServiceClient
from meseta.transport import Client, generate_keypair
from meseta.transport_keys import KeyPair

LIMIT_S = 10.0


class Number(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: int


class Calculator:
    """Handlers of all kinds, as methods of an object."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.cancelled = 0

    async def square(self, principal: Principal, params: Number) -> Number:
        return Number(params.value**2)

    async def count(self, principal: Principal, params: Number) -> AsyncIterator[Number]:
        for value in range(params.value):
            yield Number(value)

    async def whoami(self, principal: Principal, params: Number) -> Number:
        raise RequestRefused(f"you are {principal}", code="invalid", field="params.value")

    async def crash(self, principal: Principal, params: Number) -> Number:
        return Number(params.value // 0)

    async def wait(self, principal: Principal, params: Number) -> Number:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return params

    def service(self) -> Service:
        service = Service()
        for name in ("square", "count", "whoami", "crash", "wait"):
            service.add(name, getattr(self, name))
        return service


class Caller:
    """One client's session, and what it got."""

    def __init__(self, service: Service, keys: KeyPair | None = None) -> None:
        self.answers: asyncio.Queue[Message] = asyncio.Queue()
        self.open: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        address = service.address
        hello = Hello(kind="operator")
        self.client = Client(address.endpoint, self, hello=hello, keys=keys, server_public_key=address.public_key)

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        self.open.set_result("open")

    def received(self, message: Message, epoch: int | None) -> None:
        self.answers.put_nowait(message)

    def disconnected(self, reason: str) -> None: ...

    def refused(self, error: Error) -> None:
        self.open.set_result(error.code)

    async def call(self, request_id: int, method: str, params: object) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.open
        raw = msgspec.Raw(msgspec.msgpack.encode(params))
        self.client.send(Call(request_id=request_id, method=method, params=raw))

    async def answer(self) -> Message:
        async with asyncio.timeout(LIMIT_S):
            return await self.answers.get()

    async def ask(self, method: str, params: object) -> Message:
        await self.call(1, method, params)
        return await self.answer()


def number(reply: Message) -> int:
    assert isinstance(reply, Reply)
    return msgspec.msgpack.decode(reply.result, type=Number).value


def test_call_is_typed_and_answered() -> None:
    async def scenario() -> None:
        service = Calculator().service()
        service.start()
        caller = Caller(service)
        assert number(await caller.ask("square", {"value": 12})) == 144
        caller.client.close()
        service.close()

    asyncio.run(scenario())


def test_stream_has_every_item_and_an_end() -> None:
    async def scenario() -> None:
        service = Calculator().service()
        service.start()
        caller = Caller(service)
        await caller.call(7, "count", {"value": 1000})
        for value in range(1000):
            reply = await caller.answer()
            assert isinstance(reply, Reply)
            assert (reply.request_id, reply.more, number(reply)) == (7, True, value)
        last = await caller.answer()
        assert isinstance(last, Reply)
        assert (last.more, msgspec.msgpack.decode(last.result)) == (False, None)
        caller.client.close()
        service.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "params", "code", "field", "words"),
    [
        ("cube", {}, "not_found", "method", "no method 'cube'; there are count, crash, square, wait, whoami"),
        ("square", {"value": "x"}, "invalid", "params.value", "Expected `int`, got `str`"),
        ("square", {"valeu": 3}, "invalid", "params", "unknown field `valeu`"),
        ("square", {}, "invalid", "params", "missing required field `value`"),
        ("square", [3], "invalid", "params", "Expected `object`"),
        ("whoami", {"value": 1}, "invalid", "params.value", "you are"),
        ("crash", {"value": 1}, "failed", None, "crash failed; the framework's log tells why"),
    ],
)
def test_bad_call_is_answered_with_the_field_and_the_reason(
    method: str, params: object, code: str, field: str | None, words: str
) -> None:
    async def scenario() -> None:
        service = Calculator().service()
        service.start()
        caller = Caller(service)
        error = await caller.ask(method, params)
        assert isinstance(error, Error)
        assert (error.code, error.field, error.request_id) == (code, field, 1)
        assert words in error.message
        assert number(await caller.ask("square", {"value": 2})) == 4
        caller.client.close()
        service.close()

    asyncio.run(scenario())


def test_client_calls_and_streams_by_type() -> None:
    async def scenario() -> None:
        service = Calculator().service()
        service.start()
        async with ServiceClient(service.address) as client:
            assert await client.call("square", Number(5), Number) == Number(25)
            assert [item.value async for item in client.stream("count", Number(3), Number)] == [0, 1, 2]
            assert [item async for item in client.stream("count", Number(0), Number)] == []
            with pytest.raises(RequestRefused, match="no method 'cube'") as refusal:
                await client.call("cube", Number(1), Number)
            assert (refusal.value.code, refusal.value.field) == ("not_found", "method")
            with pytest.raises(ProtocolError, match="the answer to square is of another type"):
                await client.call("square", Number(1), str)
        service.close()

    asyncio.run(scenario())


def test_other_messages_are_refused_and_the_session_goes_on() -> None:
    async def scenario() -> None:
        service = Calculator().service()
        service.start()
        caller = Caller(service)
        await caller.call(1, "square", {"value": 1})
        await caller.answer()
        caller.client.send(GetMaster(request_id=1))
        error = await caller.answer()
        assert isinstance(error, Error)
        assert error.message == "GetMaster is not for a framework's service; send Call"
        caller.client.close()
        service.close()

    asyncio.run(scenario())


def test_only_known_keys_connect_and_authorize_judges_each_call() -> None:
    async def scenario() -> None:
        keys, alice, stranger = generate_keypair(), generate_keypair(), generate_keypair()
        service = Service(
            keys=keys,
            principals={alice.public: Principal("alice")}.get,
            authorize=lambda principal, method: None if method == "square" else f"{principal} may not call {method}",
        )
        calculator = Calculator()
        service.add("square", calculator.square)
        service.add("wait", calculator.wait)
        service.start()
        assert service.address.public_key == keys.public
        caller = Caller(service, alice)
        assert number(await caller.ask("square", {"value": 3})) == 9
        error = await caller.ask("wait", {"value": 3})
        assert isinstance(error, Error)
        assert (error.code, error.message) == ("unauthorized", "alice may not call wait")
        other = Caller(service, stranger)
        async with asyncio.timeout(LIMIT_S):
            assert await other.open == "unauthorized"
        other.client.close()
        caller.client.close()
        service.close()

    asyncio.run(scenario())


def test_calls_of_a_session_are_bounded_and_end_with_it() -> None:
    async def scenario() -> None:
        calculator = Calculator()
        service = calculator.service()
        service.start()
        caller = Caller(service)
        for request_id in range(CALLS_LIMIT + 1):
            await caller.call(request_id, "wait", {"value": request_id})
        error = await caller.answer()
        assert isinstance(error, Error)
        assert (error.code, error.request_id) == ("overflow", CALLS_LIMIT)
        caller.client.close()
        async with asyncio.timeout(LIMIT_S):
            while calculator.cancelled < CALLS_LIMIT:
                await asyncio.sleep(0.001)
        service.close()

    asyncio.run(scenario())


def test_wrong_handlers_are_refused_when_they_are_added() -> None:
    async def untyped(principal, params):  # type: ignore[no-untyped-def]
        return params

    service = Calculator.service(Calculator.__new__(Calculator))
    with pytest.raises(InvalidInput, match="method more: write its handler as"):
        service.add("more", untyped)
    with pytest.raises(InvalidInput, match="method square is added twice"):
        service.add("square", Calculator.square.__get__(object()))
    with pytest.raises(TransportError, match=r"no address before start\(\)"):
        _ = service.address
