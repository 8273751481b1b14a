"""Following a master's event stream: a mirror of its slaves, frameworks and tasks that keeps itself true.

```python
async with Follower(cluster.master, handler, keys=pair, server_public_key=key) as follower:
    ...  # `handler.renewed()` comes first; then `follower.mirror` is whole, and each change is told.
```
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Protocol, Self

import msgspec

from meseta.errors import MesetaError, TransportError
from meseta.follower_core import (
    Answered,
    Ask,
    Change,
    Changed,
    Failed,
    FollowerCore,
    FollowerEffect,
    FollowerEvent,
    Heard,
    Mirror,
    Outdated,
    Renewed,
    Subscribe,
)
from meseta.messages import Frameworks, GetMaster, Hello, MasterStatus, Message, Nodes, Tasks
from meseta.requests import Requester
from meseta.runner import CoreRunner
from meseta.transport import Subscriber
from meseta.transport_keys import KeyPair

_ANY_ADDRESS: Final = ("*", "0.0.0.0", "[::]")


class FollowerHandler(Protocol):
    """What a follower tells its owner, on the loop's thread."""

    def renewed(self, mirror: Mirror) -> None:
        """Take the whole state: at the start, and again after each `outdated`. Anything may have changed."""

    def changed(self, change: Change) -> None:
        """Take one change, which the mirror shows already."""

    def outdated(self, reason: str) -> None:
        """Take note that the mirror stands still until `renewed`; the follower tries again by itself."""


class Follower:
    """Follows one master, also over its restarts; entered by `async with`, ended by leaving it.

    Keys are those of a principal that may `follow_events` and `view`.
    """

    def __init__(
        self,
        endpoint: str,
        handler: FollowerHandler,
        *,
        keys: KeyPair | None,
        server_public_key: str | None,
        name: str = "follower",
    ) -> None:
        self._handler = handler
        self._keys = keys
        self._server_public_key = server_public_key
        self._core = FollowerCore()
        self._requester = Requester(
            endpoint, hello=Hello(kind="operator", name=name), keys=keys, server_public_key=server_public_key
        )
        self._runner: CoreRunner[FollowerEvent, FollowerEffect]
        self._subscription: _Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def mirror(self) -> Mirror:
        """The newest state that is known; not to be changed. After each `renewed` it is another object."""
        return self._core.mirror

    @property
    def is_current(self) -> bool:
        """True between `renewed` and `outdated`."""
        return self._core.is_current

    async def __aenter__(self) -> Self:
        """Open a session with the master; the stream follows.

        Raises:
            TransportError: nobody answers, or we are refused; says which and what to check.
        """
        await self._requester.__aenter__()
        self._runner = CoreRunner(self._core, self._perform)
        self._runner.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()
        self._drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._requester.__aexit__(kind, error, trace)

    # --- Private ----------------------------------------------------------------------------------

    def _perform(self, effect: FollowerEffect) -> None:
        match effect:
            case Subscribe():
                self._drop()
                self._spawn(effect.attempt, self._subscribe(effect.attempt))
            case Ask():
                self._spawn(effect.attempt, self._ask(effect))
            case Renewed():
                self._handler.renewed(self._core.mirror)
            case Changed():
                self._handler.changed(effect.change)
            case Outdated():
                self._handler.outdated(effect.reason)

    def _drop(self) -> None:
        """End the subscription and all questions."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        for task in self._tasks:
            task.cancel()

    def _spawn(self, attempt: int, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except MesetaError as error:
                self._runner.handle(Failed(attempt=attempt, reason=str(error)))

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _subscribe(self, attempt: int) -> None:
        requester = self._requester
        answer = await requester.request(GetMaster(request_id=requester.next_id()))
        if not isinstance(answer, MasterStatus) or not answer.events_endpoint:
            raise TransportError(f"{requester.endpoint} has no event stream: its version is not ours")
        endpoint = events_endpoint(answer.events_endpoint, requester.endpoint)
        self._subscription = _Subscription(attempt, self._runner, endpoint, self._keys, self._server_public_key)

    async def _ask(self, effect: Ask) -> None:
        requester = self._requester
        question = msgspec.structs.replace(effect.question, request_id=requester.next_id())
        answer = await requester.request(question)
        if not isinstance(answer, Nodes | Frameworks | Tasks):
            raise TransportError(f"{requester.endpoint} answers {type(answer).__name__} to {type(question).__name__}")
        self._runner.handle(Answered(attempt=effect.attempt, epoch=requester.epoch, page=answer))


class _Subscription:
    """The subscription of one attempt."""

    def __init__(
        self,
        attempt: int,
        runner: CoreRunner[FollowerEvent, FollowerEffect],
        endpoint: str,
        keys: KeyPair | None,
        server_public_key: str | None,
    ) -> None:
        self._attempt = attempt
        self._runner = runner
        self._subscriber = Subscriber(endpoint, self, keys=keys, server_public_key=server_public_key)

    def published(self, messages: list[Message], epoch: int) -> None:
        """See `SubscriberHandler`."""
        self._runner.handle(Heard(attempt=self._attempt, epoch=epoch, messages=tuple(messages)))

    def unsubscribed(self, reason: str) -> None:
        """See `SubscriberHandler`."""
        self._runner.handle(Failed(attempt=self._attempt, reason=reason))

    def close(self) -> None:
        self._subscriber.close()


def events_endpoint(announced: str, master: str) -> str:
    """Return where to subscribe: what the master announced, at its own address if it listens on all."""
    host, _, port = announced.removeprefix("tcp://").rpartition(":")
    return f"{master.rpartition(':')[0]}:{port}" if host in _ANY_ADDRESS else announced
