"""Questions and answers over a `Client`: what operators' commands and readers of files speak.

```python
async with Requester(endpoint, hello=Hello(kind="operator"), keys=pair, server_public_key=key) as requester:
    nodes = await requester.request(GetNodes(request_id=requester.next_id()))
```

Answers are told apart by `request_id`, so that any number of requests may be under way.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from meseta.errors import MesetaError, RequestRefused, SessionLost, TransportError
from meseta.messages import Error, FileData, Hello, Message, Ping, Pong, Reply, Welcome
from meseta.transport import Client
from meseta.transport_keys import KeyPair

TIMEOUT_S = 10.0  # For a session, and for each answer: a master with 10,000 slaves answers a page in milliseconds.
ANSWERS_WAITING = 10_000  # Of one request: a reader that is further behind will never catch up.

_NO_TIMEOUT_GIVEN = -1.0


class _Pending:
    """One request: the answers that came and were not read yet."""

    __slots__ = ("answers",)

    def __init__(self) -> None:
        self.answers: asyncio.Queue[Message | MesetaError] = asyncio.Queue()


class Requester:
    """A session with a server, entered by `async with`; sessions that break are opened again by themselves.

    `timeout_s` is the longest wait for a session and for each answer. `welcome` is the newest session's,
    `epoch` that of the master's last payload (None: it is no master).
    """

    def __init__(
        self,
        endpoint: str,
        *,
        hello: Hello,
        keys: KeyPair | None = None,
        server_public_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.welcome: Welcome | None = None
        self.epoch: int | None = None
        self._hello = hello
        self._keys = keys
        self._server_public_key = server_public_key
        self._client: Client | None = None
        self._changed = asyncio.Event()  # Set while there is a session, or when there will never be one.
        self._refusal: TransportError | None = None
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        """Open the session.

        Raises:
            TransportError: nobody answers, or we are refused; says which and what to check.
        """
        self._client = Client(
            self.endpoint, self, hello=self._hello, keys=self._keys, server_public_key=self._server_public_key
        )
        try:
            await self._session(self.timeout_s)
        except BaseException:
            self._client.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        self._client.close()
        self._fail(SessionLost(f"the session with {self.endpoint} was closed"))

    def next_id(self) -> int:
        """Return a request id that this session has not used."""
        return next(self._ids)

    async def request(self, message: Message, *, timeout_s: float | None = _NO_TIMEOUT_GIVEN) -> Message:
        """Send `message`, which has a `request_id`, and return the first answer to it.

        `timeout_s` is the requester's own if not given; None waits for ever.

        Raises:
            RequestRefused: the answer is an `Error`.
            SessionLost: the session ended before an answer came; whether the request was carried out is unknown.
            TransportError: there is no session, or no answer in time.
        """
        pending, request_id = await self._begin(message)
        try:
            return await self._next(pending, message, timeout_s)
        finally:
            del self._pending[request_id]

    async def stream(
        self, message: Message, *, timeout_s: float | None = _NO_TIMEOUT_GIVEN
    ) -> AsyncGenerator[Message, None]:
        """Send `message` and yield its answers up to the last (`Reply` without `more`, `FileData` with `is_last`).

        `timeout_s` limits the wait for each answer. Leave early by closing the iterator (`contextlib.aclosing`).

        Raises:
            RequestRefused, SessionLost, TransportError: as `request`.
        """
        pending, request_id = await self._begin(message)
        try:
            while True:
                answer = await self._next(pending, message, timeout_s)
                yield answer
                if _is_last(answer):
                    return
        finally:
            del self._pending[request_id]

    def send(self, message: Message) -> bool:
        """Send what has no answer; False: there is no session now."""
        return self._client is not None and self._client.send(message)

    # --- What the client tells ------------------------------------------------------------------

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        """See `ClientHandler`."""
        self.welcome = welcome
        self.epoch = epoch
        self._changed.set()

    def received(self, message: Message, epoch: int | None) -> None:
        """See `ClientHandler`."""
        self.epoch = epoch
        if isinstance(message, Ping):
            self.send(Pong())
            return
        pending = self._pending.get(getattr(message, "request_id", None) or 0)
        if pending is not None:
            if pending.answers.qsize() < ANSWERS_WAITING:
                pending.answers.put_nowait(_refused(message) if isinstance(message, Error) else message)
        elif isinstance(message, Error) and message.request_id is None:
            # What we sent was not understood at all: it can be any of the requests.
            self._fail(_refused(message))

    def disconnected(self, reason: str) -> None:
        """See `ClientHandler`."""
        self._changed.clear()
        self._fail(SessionLost(f"the session with {self.endpoint} ended: {reason}"))

    def refused(self, error: Error) -> None:
        """See `ClientHandler`."""
        self._refusal = TransportError(f"{self.endpoint} refuses us: {error.message}")
        self._changed.set()
        self._fail(SessionLost(str(self._refusal)))

    # --- Waiting --------------------------------------------------------------------------------

    async def _session(self, timeout_s: float) -> None:
        assert self._client is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError as error:
            raise TransportError(
                f"no session with {self.endpoint} within {timeout_s:g} s: {self._client.last_failure};"
                " check that the daemon runs, and that address and public key are its own"
            ) from error
        if self._refusal is not None:
            raise self._refusal

    async def _begin(self, message: Message) -> tuple[_Pending, int]:
        request_id: int | None = getattr(message, "request_id", None)
        if not request_id or request_id in self._pending:
            raise ValueError(f"{type(message).__name__} needs a request_id of its own, from next_id()")
        if self._client is None:
            raise TransportError("a Requester is used by `async with`")
        while not self._client.send(message):  # A session may end between our waking and our sending.
            await self._session(self.timeout_s)
            if not self._client.is_open:
                self._changed.clear()
        pending = _Pending()
        self._pending[request_id] = pending
        return pending, request_id

    async def _next(self, pending: _Pending, message: Message, timeout_s: float | None) -> Message:
        limit_s = self.timeout_s if timeout_s == _NO_TIMEOUT_GIVEN else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                answer = await pending.answers.get()
        except TimeoutError as error:
            raise TransportError(
                f"no answer to {type(message).__name__} from {self.endpoint} within {limit_s:g} s:"
                " it is overloaded or stopped; see its log"
            ) from error
        if isinstance(answer, MesetaError):
            raise answer
        if pending.answers.qsize() >= ANSWERS_WAITING - 1:
            raise SessionLost(f"{ANSWERS_WAITING} answers to {type(message).__name__} wait: they are read too slowly")
        return answer

    def _fail(self, error: MesetaError) -> None:
        for pending in self._pending.values():
            pending.answers.put_nowait(error)


def _refused(error: Error) -> RequestRefused:
    return RequestRefused(error.message, code=error.code, field=error.field)


def _is_last(answer: Message) -> bool:
    if isinstance(answer, Reply):
        return not answer.more
    return not isinstance(answer, FileData) or answer.is_last
