"""A framework's own ROUTER for its clients: typed calls in, answers or streams of answers out.

```python
class Submit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str

service = Service()

@service.method("submit")
async def submit(principal: Principal, params: Submit) -> Submitted: ...

@service.method("watch")
async def watch(principal: Principal, params: Watch) -> AsyncIterator[Progress]: ...
```

The types of `params` are read from the handlers' annotations. The framework announces
`service.address` in its FrameworkInfo (`run(..., service=service)` does), and clients find it by the
framework's name through the master. What a client may not know is refused before its call is looked at.
"""

import asyncio
import inspect
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar, get_type_hints

import msgspec

from meseta.errors import InvalidInput, MesetaError, RequestRefused, TransportError
from meseta.ids import Principal, SessionId
from meseta.messages import Call, Error, Goodbye, Hello, Message, Ping, Pong, Reply
from meseta.model import Address
from meseta.transport import Server
from meseta.transport_keys import KeyPair

CALLS_LIMIT: Final = 64  # Calls under way for one session: a client that asks for more waits for answers.
STREAM_PAUSE_EVERY: Final = 64  # Replies of one stream before others get their turn.

_LOG: Final = logging.getLogger("meseta.service")
_ENCODER: Final = msgspec.msgpack.Encoder()
_PATH: Final = re.compile(r"`\$\.?([^`]*)`")
_NOTHING: Final = msgspec.Raw(_ENCODER.encode(None))

Result = Awaitable[msgspec.Struct] | AsyncIterator[msgspec.Struct]
HandlerT = TypeVar("HandlerT", bound=Callable[..., Result])
Authorize = Callable[[Principal, str], str | None]


def allow_all(principal: Principal, method: str) -> str | None:
    """Let every principal that proved a key call every method."""
    return None


class Service:
    """Answers `Call`s. Handlers run on the loop that `start` was called on, many at a time.

    `authorize(principal, method)` returns None, or the sentence with which the call is refused.
    """

    def __init__(
        self,
        endpoint: str = "tcp://127.0.0.1:0",
        *,
        keys: KeyPair | None = None,
        principals: Callable[[str], Principal | None] | None = None,
        authorize: Authorize = allow_all,
    ) -> None:
        self.keys = keys
        self.principals = principals
        self._endpoint = endpoint
        self._authorize = authorize
        self._methods: dict[str, tuple[Callable[..., Result], msgspec.msgpack.Decoder[Any]]] = {}
        self._principal_by_session: dict[SessionId, Principal] = {}
        self._calls: dict[SessionId, dict[int, asyncio.Task[None]]] = {}
        self._server: Server | None = None

    def method(self, name: str) -> Callable[[HandlerT], HandlerT]:
        """Decorate the handler of `name`: `async def (principal, params: StructType)`, or an async generator.

        Raises:
            InvalidInput: the handler's second parameter has no annotation, or the name is taken.
        """

        def add(handler: HandlerT) -> HandlerT:
            self.add(name, handler)
            return handler

        return add

    def add(self, name: str, handler: Callable[..., Result]) -> None:
        """Answer calls of `name` by `handler`, which may be a bound method; as `method`."""
        parameters = list(inspect.signature(handler).parameters)
        hints = get_type_hints(handler)
        if len(parameters) != 2 or parameters[1] not in hints:
            raise InvalidInput(f"method {name}: write its handler as (principal: Principal, params: YourStruct)")
        if name in self._methods:
            raise InvalidInput(f"method {name} is added twice")
        self._methods[name] = (handler, msgspec.msgpack.Decoder(hints[parameters[1]]))

    def start(self) -> None:
        """Bind the endpoint.

        Raises:
            TransportError: the endpoint cannot be bound.
        """
        self._server = Server(self._endpoint, self, keys=self.keys, principals=self.principals)

    @property
    def address(self) -> Address:
        """Where clients reach the service: at this machine's name if it listens on all addresses.

        Raises:
            TransportError: `start` was not called.
        """
        if self._server is None:
            raise TransportError("the service has no address before start()")
        name = socket.gethostname()
        endpoint = self._server.endpoint.replace("//0.0.0.0:", f"//{name}:").replace("//[::]:", f"//{name}:")
        return Address(endpoint=endpoint, public_key=None if self.keys is None else self.keys.public)

    def close(self) -> None:
        """End all calls and the server."""
        for session in list(self._calls):
            self._drop(session)
        if self._server is not None:
            self._server.close()
            self._server = None

    # --- What the transport tells ---

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        """Remember who calls."""
        self._principal_by_session[session] = principal
        return None

    def session_closed(self, session: SessionId, reason: str) -> None:
        """Nobody is left to answer: end the session's calls."""
        self._principal_by_session.pop(session, None)
        self._drop(session)

    def received(self, session: SessionId, message: Message) -> None:
        """Begin to answer a call."""
        if isinstance(message, Call):
            refusal = self._begin(session, message)
            if refusal is not None:
                self._send(session, refusal)
        elif isinstance(message, Ping):
            self._send(session, Pong())
        elif not isinstance(message, Pong | Goodbye | Error):
            text = f"{type(message).__name__} is not for a framework's service; send Call"
            self._send(session, Error(code="invalid", message=text))

    # --- Calls ---

    def _begin(self, session: SessionId, call: Call) -> Error | None:
        principal = self._principal_by_session[session]
        if (reason := self._authorize(principal, call.method)) is not None:
            return Error(code="unauthorized", message=reason, request_id=call.request_id)
        if call.method not in self._methods:
            known = ", ".join(sorted(self._methods))
            text = f"no method {call.method!r}; there are {known}"
            return Error(code="not_found", message=text, field="method", request_id=call.request_id)
        calls = self._calls.setdefault(session, {})
        if len(calls) >= CALLS_LIMIT:
            text = f"{CALLS_LIMIT} calls are under way already; wait for an answer"
            return Error(code="overflow", message=text, request_id=call.request_id)
        if call.request_id in calls:
            text = f"request_id {call.request_id} is under way already"
            return Error(code="invalid", message=text, field="request_id", request_id=call.request_id)
        handler, decoder = self._methods[call.method]
        try:
            params = decoder.decode(call.params)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            match = _PATH.search(str(error))
            field = f"params.{match.group(1)}" if match is not None and match.group(1) else "params"
            text = f"{call.method}: {error}"
            return Error(code="invalid", message=text, field=field, request_id=call.request_id)
        task = asyncio.get_running_loop().create_task(self._answer(session, call, handler, principal, params))
        calls[call.request_id] = task
        task.add_done_callback(lambda _: calls.pop(call.request_id, None))
        return None

    async def _answer(
        self,
        session: SessionId,
        call: Call,
        handler: Callable[..., Result],
        principal: Principal,
        params: object,
    ) -> None:
        try:
            result = handler(principal, params)
            if isinstance(result, AsyncIterator):
                await self._stream(session, call, result)
            else:
                value = await result
                self._send(session, Reply(request_id=call.request_id, result=_encode(value)))
        except RequestRefused as error:
            refusal = Error(code=error.code, message=str(error), field=error.field, request_id=call.request_id)
            self._send(session, refusal)
        except InvalidInput as error:
            self._send(session, Error(code="invalid", message=str(error), request_id=call.request_id))
        except MesetaError as error:
            self._send(session, Error(code="failed", message=str(error), request_id=call.request_id))
        except Exception:  # The framework's own code: anything may come out of it.
            _LOG.exception("handler failed method=%s principal=%s", call.method, principal)
            text = f"{call.method} failed; the framework's log tells why"
            self._send(session, Error(code="failed", message=text, request_id=call.request_id))

    async def _stream(self, session: SessionId, call: Call, items: AsyncIterator[msgspec.Struct]) -> None:
        """Send each item as it comes, then an empty answer without `more`."""
        count = 0
        async for item in items:
            if not self._send(session, Reply(request_id=call.request_id, result=_encode(item), more=True)):
                return
            count += 1
            if count % STREAM_PAUSE_EVERY == 0:
                await asyncio.sleep(0)  # A generator that never waits would keep the loop to itself.
        self._send(session, Reply(request_id=call.request_id, result=_NOTHING))

    def _send(self, session: SessionId, message: Message) -> bool:
        return self._server is not None and self._server.send(session, message)

    def _drop(self, session: SessionId) -> None:
        for task in list(self._calls.pop(session, {}).values()):
            task.cancel()


def _encode(value: object) -> msgspec.Raw:
    return msgspec.Raw(_ENCODER.encode(value))
