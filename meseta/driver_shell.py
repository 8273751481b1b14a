"""The shell around a driver's core: one client socket, the user's callbacks, calls from any thread.

The same for schedulers and executors. It decides nothing.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from meseta.driver_events import (
    CallbackFailed,
    HelloRefused,
    Received,
    ResetSession,
    Send,
    SessionClosed,
    SessionOpened,
    Stop,
)
from meseta.errors import InvalidInput
from meseta.log import Log, perform_log
from meseta.messages import Error, Hello, Message, Welcome
from meseta.runner import Core, CoreRunner, Recorder
from meseta.transport import Client
from meseta.transport_keys import KeyPair

SEED_BITS: Final = 63  # MessagePack's integers have a sign.

Call = TypeVar("Call")
Callback = TypeVar("Callback")
_SessionEvent = SessionOpened | SessionClosed | HelloRefused | Received | CallbackFailed
_SharedEffect = Send | ResetSession | Stop | Log


class Peer(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Whom to connect to, and how to introduce oneself."""

    endpoint: str
    hello: Hello
    keys: KeyPair | None
    public_key: str | None


class DriverShell(Generic[Call, Callback]):
    """Runs one core on the running loop; `deliver` hands a callback to the user's code."""

    def __init__(self, log: logging.Logger, deliver: Callable[[Callback], None]) -> None:
        self._log = log
        self._deliver = deliver
        self._waiting: deque[Call] = deque()
        self._thread_id: int | None = None
        self._has_failed = False

    def start(
        self,
        core: Core[_SessionEvent | Call, _SharedEffect | Callback],
        init: msgspec.Struct,
        peer: Peer,
        *,
        record: Path | None,
    ) -> None:
        """Begin to connect. Callbacks come on this thread from now on."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Stop] = self._loop.create_future()
        recorder = None if record is None else Recorder(record, init)
        self._runner: CoreRunner[_SessionEvent | Call, _SharedEffect | Callback] = CoreRunner(
            core, self._perform, recorder=recorder
        )
        self._client = Client(
            peer.endpoint,
            _SessionHandler(self._runner.handle),
            hello=peer.hello,
            keys=peer.keys,
            server_public_key=peer.public_key,
        )
        self._runner.start()
        self._thread_id = threading.get_ident()
        self._drain()

    async def join(self) -> Stop:
        """Wait for the end."""
        return await self._ended

    def submit(self, call: Call) -> None:
        """Hand a call to the core: at once on the loop's thread, else by waking the loop.

        Calls of one thread keep their order.
        """
        if threading.get_ident() == self._thread_id and not self._waiting:
            self._runner.handle(call)
            return
        self._waiting.append(call)
        if self._thread_id is not None:
            self._wake(self._drain)

    def call_later(self, delay_s: float, function: Callable[[], object]) -> "LoopTimer":
        """Call `function` on the loop's thread after `delay_s` seconds, unless the driver has ended by then."""
        if self._thread_id is None:
            raise InvalidInput("call_later: the driver has not started; call it from a callback")
        timer = LoopTimer(lambda: self._call("call_later", function))
        if threading.get_ident() == self._thread_id:
            timer.arm(self._loop, delay_s)
        else:
            self._wake(lambda: timer.arm(self._loop, delay_s))
        return timer

    def _wake(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # The loop is closed: the driver has ended, and its calls mean nothing.
            self._waiting.clear()

    def _drain(self) -> None:
        while self._waiting:
            self._runner.handle(self._waiting.popleft())

    def _call(self, name: str, function: Callable[[], object]) -> None:
        if self._has_failed or self._ended.done():
            return
        try:
            function()
        except Exception as error:  # The user's own code: anything may come out of it.
            self._log.exception("callback failed, driver aborted name=%s", name)
            self._has_failed = True
            self._runner.handle(CallbackFailed(name=name, message=repr(error)))

    def _perform(self, effect: _SharedEffect | Callback) -> None:
        if isinstance(effect, Send):
            # What follows a failed callback must not happen, its acknowledgement least of all.
            if not self._has_failed:
                self._client.send(effect.message)
        elif isinstance(effect, Log):
            perform_log(self._log, effect)
        elif isinstance(effect, ResetSession):
            self._client.reset(effect.reason)
        elif isinstance(effect, Stop):
            self._client.close()
            self._runner.close()
            self._ended.set_result(effect)
        else:
            callback = effect
            self._call(type(callback).__name__, lambda: self._deliver(callback))


class LoopTimer:
    """One function to be called later on a loop; may be cancelled from any thread."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._is_cancelled = False

    def arm(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        """Start the clock. On the loop's thread."""
        loop.call_later(delay_s, self._fire)

    def cancel(self) -> None:
        """Do not call the function; nothing happens if it was called already."""
        self._is_cancelled = True

    def _fire(self) -> None:
        if not self._is_cancelled:
            self._function()


class _SessionHandler:
    """Turns what the transport tells into events."""

    def __init__(self, handle: Callable[[_SessionEvent], None]) -> None:
        self._handle = handle

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        self._handle(SessionOpened(epoch=epoch))

    def received(self, message: Message, epoch: int | None) -> None:
        self._handle(Received(message=message, epoch=epoch))

    def disconnected(self, reason: str) -> None:
        self._handle(SessionClosed(reason=reason))

    def refused(self, error: Error) -> None:
        self._handle(HelloRefused(code=error.code, message=error.message))
