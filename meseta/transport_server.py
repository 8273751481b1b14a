"""The binding end: one ROUTER, its sessions and their outboxes."""

import asyncio
import itertools
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import zmq

from meseta.errors import DecodeError, TransportError
from meseta.ids import Principal, SessionId
from meseta.log import DEBUG, INFO, log_event
from meseta.messages import PROTOCOL_VERSION, Error, Goodbye, Hello, Message, Welcome, decode
from meseta.transport_keys import KeyPair
from meseta.transport_outbox import Outbox, pack
from meseta.transport_sockets import (
    CLOSE_LINGER_MS,
    NOBLOCK,
    NOBLOCK_MORE,
    Pump,
    bind_failure,
    check_endpoint,
    ipc_in_use,
    ipc_path,
    set_options,
    shared_context,
)
from meseta.transport_zap import KeyJudge, demand_curve

SESSION_LIMIT = 16_384  # Each has a TCP connection, and a process has some 20,000 descriptors.
RETRY_S = 0.01  # When a peer's queue was full: at 64 payloads of 1 MiB that is no bottleneck.
SWEEP_S = 60.0  # How often quiet sessions are looked at.
PROBE_AFTER_SWEEPS = 2  # Quiet for this long: an empty payload shows whether the peer is still connected.
IDLE_SWEEPS = 10  # An operator's session that says nothing for 10 minutes is forgotten.
STRANGERS_PER_S = 1000  # `Error` answers to peers without a session; one for each peer and second.
STRANGER_LINES_PER_S = 10  # In the log.
BACKLOG = 1024  # Connections that wait for accept: all slaves of a rack after the master's restart.
_ERROR_TEXT_LIMIT = 1000

_log = logging.getLogger(__name__)
# Counted over all servers of the process: a session's id is never that of an earlier session.
_session_numbers = itertools.count(1)


class ServerHandler(Protocol):
    """What a server tells its owner, on the loop's thread."""

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        """Take note of a new session, or return why it is refused (the peer gets `unauthorized`)."""

    def received(self, session: SessionId, message: Message) -> None:
        """Take a message of an open session."""

    def session_closed(self, session: SessionId, reason: str) -> None:
        """Forget a session that ended by itself: Goodbye, disconnect, overflow, idle, replaced."""


class _Session:
    __slots__ = ("id", "is_blocked", "is_dirty", "is_open", "kind", "outbox", "quiet_sweeps", "routing_id", "user_id")

    def __init__(self, routing_id: bytes, user_id: str, kind: str, epoch: int | None) -> None:
        self.id = SessionId(next(_session_numbers).to_bytes(8, "big"))
        self.routing_id = routing_id
        self.user_id = user_id
        self.kind = kind
        self.outbox = Outbox(epoch)
        self.quiet_sweeps = 0
        self.is_open = True
        self.is_dirty = False  # In `_dirty`: has messages for the end of this turn.
        self.is_blocked = False  # In `_blocked`: its queue is full, a timer tries again.


class Server:
    """One bound ROUTER, made on a running asyncio loop.

    With `keys` every peer must prove a CURVE key that `principals` knows; without, anyone may
    connect and the principal is empty, so the handler must judge by `Hello.token` or trust all.
    `endpoint` is the one really bound. With `epoch` every payload starts with it.

    Raises:
        TransportError: the endpoint is in use, not of this machine, or malformed.
    """

    def __init__(
        self,
        endpoint: str,
        handler: ServerHandler,
        *,
        keys: KeyPair | None,
        principals: Callable[[str], Principal | None] | None,
        epoch: int | None = None,
    ) -> None:
        if (keys is None) != (principals is None):
            raise TransportError("keys and principals go together: give both, or neither for a server without CURVE")
        check_endpoint(endpoint)
        self._handler = handler
        self._principals = principals
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[SessionId, _Session] = {}
        self._session_by_routing_id: dict[bytes, _Session] = {}
        self._dirty: list[_Session] = []
        self._is_flush_wanted = False
        self._blocked: dict[SessionId, _Session] = {}
        self._retry_timer: asyncio.TimerHandle | None = None
        self._answered: set[bytes] = set()
        self._logged_count = 0
        self._budgets_until = 0.0
        self._is_closed = False
        self._ipc_file: tuple[str, int] | None = None
        # ZAP is one inproc name in each context, so a server with CURVE has a context of its own.
        self._context = shared_context.borrow() if keys is None else zmq.Context()
        self._zap: KeyJudge | None = None
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            self._bind(endpoint, keys)
        except BaseException:
            self._close_sockets(0)
            raise
        self.endpoint = bytes(self._socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        self._pump = Pump(self._socket, self._receive, self._flush)
        self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)

    def send(self, session_id: SessionId, message: Message) -> bool:
        """Put a message in the session's outbox, sent at the end of this turn; False: no such session."""
        session = self._sessions.get(session_id)
        if session is None:
            return False
        try:
            is_full = session.outbox.add(message)
        except ValueError as error:
            self._end_soon(session, str(error))
            return False
        if is_full and not session.is_blocked:
            self._flush_session(session)
        elif not session.is_dirty:
            session.is_dirty = True
            self._dirty.append(session)
            self._want_flush()
        if session.is_blocked and session.outbox.is_over():
            self._end_soon(session, "overflow: the peer does not read what it is sent")
            return False
        return session.is_open

    def waiting_bytes(self, session_id: SessionId) -> int:
        """Return what waits in a session's outbox for room in its queue; 0 if there is no such session."""
        session = self._sessions.get(session_id)
        return 0 if session is None else session.outbox.size_bytes()

    def forget(self, session_id: SessionId, reason: str) -> None:
        """End a session; what was sent to it before still goes out, if the peer has room.

        The handler asked for it, so `session_closed` is not called. The peer's next message is
        answered `Error{unknown_session}`.
        """
        session = self._sessions.get(session_id)
        if session is not None:
            log_event(_log, DEBUG, "session forgotten", reason=reason)
            self._remove(session)
            self._write(session)

    def close(self) -> None:
        """Send what is in the outboxes, as far as peers have room, and unbind. Blocks 100 ms at most."""
        if self._is_closed:
            return
        self._is_closed = True
        for session in self._sessions.values():
            self._write(session)
        self._sessions.clear()
        self._session_by_routing_id.clear()
        self._blocked.clear()
        self._sweep_timer.cancel()
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._pump.stop()
        self._close_sockets(CLOSE_LINGER_MS)

    # --- Sockets --------------------------------------------------------------------------------

    def _bind(self, endpoint: str, keys: KeyPair | None) -> None:
        socket = self._socket
        set_options(socket, endpoint)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.BACKLOG, BACKLOG)
        try:
            if keys is not None:
                self._zap = KeyJudge(self._context, self._is_known, self._refused_key)
                demand_curve(socket, keys)
            path = ipc_path(endpoint)
            if path is not None and ipc_in_use(path):
                raise TransportError(f"{endpoint} is in use: stop the process that has it, or take another path")
            socket.bind(endpoint)
            if path is not None:
                self._ipc_file = (path, os.stat(path).st_ino)
        except zmq.ZMQError as error:
            raise bind_failure(endpoint, error) from error

    def _close_sockets(self, linger_ms: int) -> None:
        if self._zap is not None:
            self._zap.close()
        self._socket.close(linger_ms)
        if self._ipc_file is not None:
            path, inode = self._ipc_file
            with suppress(OSError):  # ZeroMQ leaves the file; it may be our successor's already.
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        if self._principals is None:
            shared_context.give_back()
        else:
            self._context.term()

    def _is_known(self, public_key: str) -> bool:
        return self._principals is not None and self._principals(public_key) is not None

    def _refused_key(self, public_key: str, address: str) -> None:
        self._log_stranger("unknown key refused", public_key=public_key, address=address)

    # --- Receiving ------------------------------------------------------------------------------

    def _receive(self) -> int:
        socket = self._socket
        try:
            routing_id = socket.recv(NOBLOCK)
        except zmq.Again:
            return -1
        frame = socket.recv(NOBLOCK, copy=False)
        payload = frame.bytes
        # The key that this frame's connection proved. Looked at for every payload (0.6 µs): a peer
        # may choose its routing id, and could take over that of one that has just left.
        user_id = "" if self._principals is None else str(frame.get("User-Id"))
        is_single = not frame.more
        while frame.more:
            frame = socket.recv(NOBLOCK, copy=False)
        session = self._session_by_routing_id.get(routing_id)
        if session is not None and session.user_id != user_id:
            self._end(session, "replaced: another peer connected under its routing id")
            session = None
        try:
            if not is_single:
                raise DecodeError("a payload is one frame, and this had more: send no empty delimiter")
            messages = decode(payload)
        except DecodeError as error:
            self._refuse_payload(session, routing_id, error)
            return 1
        if session is not None:
            session.quiet_sweeps = 0
        for message in messages:
            kind = type(message)
            if kind is Hello:
                assert isinstance(message, Hello)
                session = self._open(routing_id, user_id, message)
                if session is None:
                    break
            elif session is None or not session.is_open:
                text = f"no session for this {kind.__name__}: close the socket, open a new one and say Hello"
                self._answer_stranger(routing_id, Error(code="unknown_session", message=text))
                break
            elif kind is Goodbye:
                assert isinstance(message, Goodbye)
                self._end(session, f"goodbye: {message.message}" if message.message else "goodbye")
                break
            else:
                self._handler.received(session.id, message)
        return len(messages)

    def _open(self, routing_id: bytes, user_id: str, hello: Hello) -> _Session | None:
        old = self._session_by_routing_id.get(routing_id)
        if old is not None:
            self._end(old, "replaced: the peer said Hello again")
        if hello.version != PROTOCOL_VERSION:
            text = f"version {hello.version} is not spoken here, {PROTOCOL_VERSION} is: use the same release of Meseta"
            self._answer_stranger(routing_id, Error(code="bad_version", message=text, field="version"))
            return None
        if len(self._sessions) >= SESSION_LIMIT:
            text = f"this server has {SESSION_LIMIT} sessions already: try again later"
            self._answer_stranger(routing_id, Error(code="overflow", message=text))
            return None
        principal = Principal("") if self._principals is None else self._principals(user_id)
        if principal is None:
            self._answer_stranger(routing_id, Error(code="unauthorized", message="this key is no longer known"))
            return None
        session = _Session(routing_id, user_id, hello.kind, self._epoch)
        session.outbox.add(Welcome(principal=principal))
        self._sessions[session.id] = session
        self._session_by_routing_id[routing_id] = session
        session.is_dirty = True  # Until the handler has accepted, nothing goes out, even if it sends.
        refusal = self._handler.session_opened(session.id, principal, hello)
        session.is_dirty = False
        if refusal is not None:
            self._remove(session)
            self._answer_stranger(routing_id, Error(code="unauthorized", message=refusal[:_ERROR_TEXT_LIMIT]))
            return None
        self._flush_session(session)
        return session

    def _refuse_payload(self, session: _Session | None, routing_id: bytes, error: DecodeError) -> None:
        answer = Error(
            code="bad_message", message=str(error)[:_ERROR_TEXT_LIMIT], index=error.index, field=_short(error.field)
        )
        self._log_stranger("bad payload refused", reason=answer.message)
        if session is None:
            self._answer_stranger(routing_id, answer)
        else:
            self.send(session.id, answer)

    def _answer_stranger(self, routing_id: bytes, error: Error) -> None:
        """Send an `Error` to a peer without session; never kept, and not more than a fixed number a second."""
        self._renew_budgets()
        if routing_id in self._answered or len(self._answered) >= STRANGERS_PER_S:
            return
        try:
            self._socket.send(routing_id, NOBLOCK_MORE)
            self._socket.send(pack(error, self._epoch), NOBLOCK)
            self._answered.add(routing_id)
        except zmq.ZMQError as failure:
            log_event(_log, DEBUG, "stranger not answered", reason=failure)

    def _log_stranger(self, phrase: str, **values: object) -> None:
        """Log what a peer did wrong; no more than a fixed number a second, so that no peer can fill the disk."""
        self._renew_budgets()
        if self._logged_count < STRANGER_LINES_PER_S:
            self._logged_count += 1
            log_event(_log, INFO, phrase, **values)

    def _renew_budgets(self) -> None:
        now = self._loop.time()
        if now >= self._budgets_until:
            self._budgets_until = now + 1.0
            self._answered.clear()
            self._logged_count = 0

    # --- Sending --------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._is_closed or not self._is_flush_wanted:
            return
        dirty = self._dirty
        self._dirty = []
        try:
            for session in dirty:
                session.is_dirty = False
                if session.is_open and not session.is_blocked:
                    self._flush_session(session)
        finally:
            self._is_flush_wanted = False
        self._pump.look()

    def _want_flush(self) -> None:
        """Flush at the end of this turn, and look whether sends have swallowed the wake-up of an arrival."""
        if not self._is_flush_wanted:
            self._is_flush_wanted = True
            if not self._pump.is_draining:  # Else it flushes when it is done.
                self._loop.call_soon(self._flush)

    def _flush_session(self, session: _Session) -> None:
        failure = self._write(session)
        if failure is None:
            return
        if not isinstance(failure, zmq.Again):
            self._end_soon(session, f"disconnected: {failure}")
        elif session.is_open and not session.is_blocked:
            session.is_blocked = True
            self._blocked[session.id] = session
            if self._retry_timer is None:
                self._retry_timer = self._loop.call_later(RETRY_S, self._retry)

    def _write(self, session: _Session) -> zmq.ZMQError | None:
        """Send payloads until the outbox is empty or ZeroMQ refuses one; return the refusal."""
        self._want_flush()
        send = self._socket.send
        outbox = session.outbox
        while (payload := outbox.first()) is not None:
            try:
                send(session.routing_id, NOBLOCK_MORE)
            except zmq.ZMQError as error:
                return error
            send(payload, NOBLOCK)  # Never refused: the first frame has found the room.
            outbox.pop()
        return None

    def _retry(self) -> None:
        self._retry_timer = None
        blocked = self._blocked
        self._blocked = {}
        for session in blocked.values():
            session.is_blocked = False
            if session.is_open:
                self._flush_session(session)
        self._pump.look()

    # --- Ends of sessions -----------------------------------------------------------------------

    def _sweep(self) -> None:
        """Find peers that left without a word: nobody tells a ROUTER, only a send does."""
        self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)
        for session in list(self._sessions.values()):
            session.quiet_sweeps += 1
            if session.kind == "operator" and session.quiet_sweeps > IDLE_SWEEPS:
                self._end(session, "idle")
            elif session.quiet_sweeps >= PROBE_AFTER_SWEEPS and not session.outbox:
                self._probe(session)
        self._pump.look()

    def _probe(self, session: _Session) -> None:
        try:
            self._socket.send(session.routing_id, NOBLOCK_MORE)
        except zmq.Again:
            return
        except zmq.ZMQError as error:
            self._end(session, f"disconnected: {error}")
            return
        self._socket.send(b"\x90", NOBLOCK)  # An empty array: no message.

    def _remove(self, session: _Session) -> None:
        session.is_open = False
        self._sessions.pop(session.id, None)
        self._blocked.pop(session.id, None)
        if self._session_by_routing_id.get(session.routing_id) is session:
            del self._session_by_routing_id[session.routing_id]

    def _end(self, session: _Session, reason: str) -> None:
        if session.is_open:
            self._remove(session)
            self._handler.session_closed(session.id, reason)

    def _end_soon(self, session: _Session, reason: str) -> None:
        """End it, but tell the handler in a turn of its own: it is in the middle of a `send`."""
        if session.is_open:
            self._remove(session)
            self._loop.call_soon(self._handler.session_closed, session.id, reason)


def _short(text: str | None) -> str | None:
    return None if text is None else text[:_ERROR_TEXT_LIMIT]
