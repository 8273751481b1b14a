"""The caller's side of a framework's `Service`: typed calls and streams.

```python
async with ServiceClient(framework_info.address, keys=pair) as client:
    job = await client.call("submit", Submit(text="..."), Submitted)
    async for progress in client.stream("watch", Watch(job_id=job.job_id), Progress):
        ...
```
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from meseta.errors import ProtocolError
from meseta.messages import Call, Hello, Message, Reply
from meseta.model import Address
from meseta.requests import TIMEOUT_S, Requester
from meseta.transport_keys import KeyPair

ResultT = TypeVar("ResultT")
_ENCODER: Final = msgspec.msgpack.Encoder()


class ServiceClient:
    """A session with a framework's service, entered by `async with`. Any number of calls may be under way."""

    def __init__(
        self, address: Address, *, keys: KeyPair | None = None, name: str = "", timeout_s: float = TIMEOUT_S
    ) -> None:
        self._requester = Requester(
            address.endpoint,
            hello=Hello(kind="operator", name=name),
            keys=None if address.public_key is None else keys,
            server_public_key=address.public_key,
            timeout_s=timeout_s,
        )

    async def __aenter__(self) -> Self:
        """Open the session.

        Raises:
            TransportError: nobody answers, or we are refused; says which and what to check.
        """
        await self._requester.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._requester.__aexit__(kind, error, trace)

    async def call(
        self, method: str, params: msgspec.Struct, result: type[ResultT], *, timeout_s: float | None = TIMEOUT_S
    ) -> ResultT:
        """Call `method` and return its answer as a `result`. `timeout_s` None waits for ever.

        Raises:
            RequestRefused: the service refused; `code` and `field` say what.
            SessionLost: the session ended first; whether the call was carried out is unknown.
            TransportError: there is no session, or no answer in time.
            ProtocolError: the answer is not of the type `result`.
        """
        answer = await self._requester.request(self._message(method, params), timeout_s=timeout_s)
        return _decode(method, answer, msgspec.msgpack.Decoder(result))

    async def stream(
        self, method: str, params: msgspec.Struct, item: type[ResultT], *, timeout_s: float | None = None
    ) -> AsyncGenerator[ResultT, None]:
        """Call `method` and yield its answers. `timeout_s` limits the wait for each (None: for ever).

        Leave early by closing the iterator (`contextlib.aclosing`). Raises what `call` raises.
        """
        decoder = msgspec.msgpack.Decoder(item)
        async with aclosing(self._requester.stream(self._message(method, params), timeout_s=timeout_s)) as answers:
            async for answer in answers:
                if isinstance(answer, Reply) and not answer.more:
                    return  # The end of a stream carries nothing.
                yield _decode(method, answer, decoder)

    def _message(self, method: str, params: msgspec.Struct) -> Call:
        raw = msgspec.Raw(_ENCODER.encode(params))
        return Call(request_id=self._requester.next_id(), method=method, params=raw)


def _decode(method: str, answer: Message, decoder: "msgspec.msgpack.Decoder[ResultT]") -> ResultT:
    if not isinstance(answer, Reply):
        raise ProtocolError(f"{method} was answered by {type(answer).__name__}, not by Reply")
    try:
        return decoder.decode(answer.result)
    except (msgspec.DecodeError, ValueError) as error:
        raise ProtocolError(f"the answer to {method} is of another type than asked for: {error}") from error
