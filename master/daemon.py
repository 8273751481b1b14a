"""The master daemon: a socket, a store and a clock around `MasterCore`. It decides nothing."""

import asyncio
import gc
import logging
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from master.core import MasterCore
from master.events import (
    CloseSession,
    FollowersChanged,
    MasterConfig,
    MasterEffect,
    MasterEvent,
    MasterInit,
    Persisted,
    PersistRecords,
    Publish,
    Received,
    Send,
    SessionClosed,
    SessionOpened,
    StoredRecord,
)
from meseta.acls import ANONYMOUS
from meseta.errors import StoreError
from meseta.ids import Principal, SessionId
from meseta.log import ERROR, INFO, WARNING, Log, log_event, perform_log
from meseta.messages import Hello, Message
from meseta.runner import CoreRunner, Recorder
from meseta.store import Store
from meseta.transport import KeyPair, Publisher, Server

REGISTRY_NAME: Final = "registry.sqlite"
EXIT_DONE: Final = 0
EXIT_BROKEN: Final = 70  # EX_SOFTWARE: our bug, named in the log.
EXIT_STORE: Final = 74  # EX_IOERR: the registry cannot be written.
_SEED_BITS: Final = 64

log = logging.getLogger("master")


class MasterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon is started with. `keys` None: --insecure."""

    bind: str
    events_bind: str
    work_dir: Path
    config: MasterConfig
    keys: KeyPair | None = None
    principals: Mapping[str, Principal] = {}
    record: Path | None = None


class MasterDaemon:
    """One term of a master. `run` returns the exit status."""

    def __init__(self, settings: MasterSettings) -> None:
        self._settings = settings
        self._status: asyncio.Future[int] | None = None
        self._performers: dict[type[Any], Callable[[Any], object]] = {
            Send: lambda effect: self._server.send(effect.session, effect.message),
            CloseSession: lambda effect: self._server.forget(effect.session, effect.reason),
            PersistRecords: self._persist,
            Publish: self._publish,
            Log: lambda effect: perform_log(log, effect),
        }

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Raises:
            StoreError: the registry is in use, damaged or cannot be written.
            TransportError: the endpoint cannot be bound.
        """
        loop = asyncio.get_running_loop()
        self._status = loop.create_future()
        settings = self._settings
        with Store(settings.work_dir / REGISTRY_NAME) as store:
            self._store = store
            self._publisher = Publisher(settings.events_bind, self, keys=settings.keys, epoch=store.epoch)
            init = MasterInit(
                config=settings.config,
                seed=secrets.randbits(_SEED_BITS),
                epoch=store.epoch,
                records=tuple(StoredRecord(table=table, key=key, value=value) for table, key, value in store.read()),
                started_s=loop.time(),
                unix_offset_s=time.time() - loop.time(),
                events_endpoint=self._publisher.endpoint,
            )
            self._core = MasterCore(init)
            recorder = None if settings.record is None else Recorder(settings.record, init)
            try:
                with CoreRunner(self._core, self._perform, recorder=recorder) as self._runner:
                    self._server = Server(
                        settings.bind,
                        self,
                        keys=settings.keys,
                        principals=None if settings.keys is None else settings.principals.get,
                        epoch=store.epoch,
                    )
                    try:
                        return await self._serve(loop, init)
                    finally:
                        self._server.close()
            finally:
                self._publisher.close()

    # --- For the transport ------------------------------------------------------------------------

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        """See `ServerHandler`."""
        principal = principal or ANONYMOUS
        refusal = self._core.refusal(principal, hello)
        if refusal is None:
            self._feed(SessionOpened(session=session, principal=principal, hello=hello))
        return refusal

    def received(self, session: SessionId, message: Message) -> None:
        """See `ServerHandler`."""
        self._feed(Received(session=session, message=message))

    def session_closed(self, session: SessionId, reason: str) -> None:
        """See `ServerHandler`."""
        self._feed(SessionClosed(session=session, reason=reason))

    def may_subscribe(self, public_key: str) -> bool:
        """See `PublisherHandler`."""
        principal = self._settings.principals.get(public_key)
        return principal is not None and self._core.follow_refusal(principal) is None

    def followers_changed(self, *, is_followed: bool) -> None:
        """See `PublisherHandler`."""
        self._feed(FollowersChanged(is_followed=is_followed))

    # --- Private ----------------------------------------------------------------------------------

    async def _serve(self, loop: asyncio.AbstractEventLoop, init: MasterInit) -> int:
        assert self._status is not None, "set by run"
        loop.set_exception_handler(self._on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, EXIT_DONE)
        self._store.start(loop.call_soon_threadsafe, self._on_store_failure)
        self._runner.start()
        if self._settings.keys is None:
            log_event(log, WARNING, "insecure: whoever can connect may do all", endpoint=self._server.endpoint)
        log_event(
            log,
            INFO,
            "ready",
            endpoint=self._server.endpoint,
            epoch=init.epoch,
            events=self._publisher.endpoint,
            records=len(init.records),
        )
        # What was made so far lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        status = await self._status
        log_event(log, INFO, "ending", exit_status=status)
        return status

    def _feed(self, event: MasterEvent) -> None:
        if self._status is None or self._status.done():
            return
        try:
            self._runner.handle(event)
        except Exception as error:
            self._break(error, event)

    def _perform(self, effect: MasterEffect) -> None:
        self._performers[type(effect)](effect)

    def _persist(self, effect: PersistRecords) -> None:
        token = effect.token
        writes = [(record.table, record.key, record.value) for record in effect.records]
        self._store.write(writes, lambda: self._feed(Persisted(token=token)))

    def _publish(self, effect: Publish) -> None:
        for event in effect.events:
            self._publisher.publish(event)

    def _stop(self, status: int) -> None:
        if self._status is not None and not self._status.done():
            self._status.set_result(status)

    def _break(self, error: BaseException, event: MasterEvent | None) -> None:
        """End because the core is broken: what it knows can no longer be trusted."""
        shown = "a timer" if event is None else type(event).__name__
        if isinstance(event, Received):
            shown = type(event.message).__name__  # Not its fields: they may hold a task's environment.
        log.error("core broken by %s", shown, exc_info=error)
        self._stop(EXIT_BROKEN)

    def _on_store_failure(self, failure: StoreError) -> None:
        log_event(log, ERROR, "registry cannot be written", error=str(failure))
        self._stop(EXIT_STORE)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._break(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))), None)
