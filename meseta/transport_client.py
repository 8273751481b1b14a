"""The dialling end: one DEALER at a time, a new one for each session, with back-off between them."""

import asyncio
import logging
import random
import secrets
from typing import Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from meseta.errors import DecodeError, TransportError
from meseta.log import DEBUG, WARNING, log_event
from meseta.messages import Epoch, Error, Goodbye, Hello, Message, Welcome, decode
from meseta.transport_keys import KeyPair
from meseta.transport_outbox import Outbox
from meseta.transport_sockets import CLOSE_LINGER_MS, NOBLOCK, Pump, Socket, check_endpoint, set_options, shared_context

BACKOFF_BASE_S = 0.05  # The first new dial: a restarted server is back within a few of these.
BACKOFF_LIMIT_S = 5.0  # The longest pause: 10,000 slaves then dial a dead master 2,000 times a second at most.
WELCOME_S = 5.0  # A server that has not answered Hello by then is busy or dead: dial again.
SETTLED_S = 5.0  # A session that lasted this long was a good one: the back-off starts anew.
UNSETTLED_ATTEMPTS = 3  # One that breaks earlier is dialled again after 0.4 s at most.
RETRY_S = 0.01  # When ZeroMQ's queue was full.
_RECONNECT_NEVER_MS = 1_000_000_000
_ROUTING_ID_BYTES = 16  # Random for each session: no other peer can guess it and wait to take it over.

_FAILED = zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = zmq.Event.DISCONNECTED | zmq.Event.CLOSED | zmq.Event.HANDSHAKE_SUCCEEDED | _FAILED

_log = logging.getLogger(__name__)


class ClientHandler(Protocol):
    """What a client tells its owner, on the loop's thread."""

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        """Use the new session: nothing that was sent before went over it."""

    def received(self, message: Message, epoch: int | None) -> None:
        """Take a message; `epoch` is that of the payload it came in."""

    def disconnected(self, reason: str) -> None:
        """Take note that the session is gone; the client dials again by itself."""

    def refused(self, error: Error) -> None:
        """Take note that the server does not want us; the client dials again only after `reset`."""


def backoff_s(attempt: int, chance: float) -> float:
    """Return the pause before dial number `attempt` (the first again is 0), in seconds.

    Doubled each time up to `BACKOFF_LIMIT_S`, times a factor in [0.5, 1.0) that `chance` in [0, 1)
    picks, so that the peers of a dead master spread out.
    """
    return min(BACKOFF_LIMIT_S, BACKOFF_BASE_S * float(1 << min(attempt, 16))) * (0.5 + chance / 2)


class Client:
    """One peer of a `Server`, made on a running asyncio loop; dials for ever.

    `last_failure` says in words why there is no session, for people who wait for one.

    Raises:
        TransportError: the endpoint or a key is malformed.
    """

    def __init__(
        self,
        endpoint: str,
        handler: ClientHandler,
        *,
        hello: Hello,
        keys: KeyPair | None,
        server_public_key: str | None,
    ) -> None:
        check_endpoint(endpoint)
        if (keys is None) != (server_public_key is None):
            raise TransportError(
                f"keys for {endpoint} are not complete: give both a key pair and the server's public key, or neither"
            )
        self.endpoint = endpoint
        self.last_failure = "not tried yet"
        self._handler = handler
        self._hello = hello
        self._keys = keys
        self._server_public_key = server_public_key
        self._loop = asyncio.get_running_loop()
        self._context = shared_context.borrow()
        self._socket: Socket | None = None
        self._monitor: Socket | None = None
        self._pump: Pump | None = None
        self._monitor_pump: Pump | None = None
        self._timer: asyncio.TimerHandle | None = None  # For the next dial, or for Welcome.
        self._retry_timer: asyncio.TimerHandle | None = None
        self._outbox = Outbox()
        self._is_flush_scheduled = False
        self._is_open = False
        self._is_closed = False
        self._opened_at = 0.0
        self._attempt = 0
        try:
            self._dial()
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """True between `connected` and `disconnected`."""
        return self._is_open

    def send(self, message: Message) -> bool:
        """Send a message at the end of this turn; False: there is no open session, nothing was sent.

        Raises:
            TransportError: the message is too large.
        """
        if not self._is_open:
            return False
        try:
            is_full = self._outbox.add(message)
        except ValueError as error:
            raise TransportError(str(error)) from error
        if is_full and self._retry_timer is None:
            self._flush()
        elif not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            if self._pump is None or not self._pump.is_draining:  # Else it flushes when it is done.
                self._loop.call_soon(self._flush)
        if self._retry_timer is not None and self._outbox.is_over():
            self._loop.call_soon(self._lose, self._socket, "overflow: the server does not read what it is sent")
            self._is_open = False
            return False
        return True

    def reset(self, reason: str) -> None:
        """Drop the session and all that was not sent yet, and dial again (also after `refused`)."""
        if self._is_closed:
            return
        if self._socket is None and self._timer is None:
            self._dial_later()
        else:
            self._lose(self._socket, reason)

    def close(self) -> None:
        """Say Goodbye and end. No handler method is called any more. Blocks 100 ms at most."""
        if self._is_closed:
            return
        if self._is_open:
            self._outbox.add(Goodbye())
            self._flush()
        self._is_closed = True
        self._drop_socket(CLOSE_LINGER_MS if self._is_open else 0)
        self._is_open = False
        shared_context.give_back()

    # --- Dialling -------------------------------------------------------------------------------

    def _dial(self) -> None:
        self._timer = None
        try:
            socket = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise TransportError(f"cannot dial {self.endpoint}: {error}") from error
        self._socket = socket
        set_options(socket, self.endpoint)
        # A socket lives as long as one session: ZeroMQ must not connect it again behind our back,
        # or what is queued for a dead master would reach its successor. To forbid it altogether (-1)
        # would drop what has arrived and was not read yet.
        socket.set(zmq.RECONNECT_IVL, _RECONNECT_NEVER_MS)
        socket.set(zmq.CONNECT_TIMEOUT, int(WELCOME_S * 1000))
        # Not beginning with a zero byte: that form is the ROUTER's own.
        socket.set(zmq.ROUTING_ID, b"m" + secrets.token_bytes(_ROUTING_ID_BYTES - 1))
        try:
            if self._keys is not None and self._server_public_key is not None:
                socket.set(zmq.CURVE_PUBLICKEY, self._keys.public.encode())
                socket.set(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
                socket.set(zmq.CURVE_SERVERKEY, self._server_public_key.encode())
            self._monitor = socket.get_monitor_socket(_WATCHED)
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise TransportError(f"cannot dial {self.endpoint}: {error}: check the address and the keys") from error
        self._pump = Pump(socket, self._receive, self._flush_answers)
        self._monitor_pump = Pump(self._monitor, self._watch)
        self._outbox = Outbox()
        self._outbox.add(self._hello)
        self._timer = self._loop.call_later(WELCOME_S, self._lose, socket, f"no Welcome within {WELCOME_S:g} s")
        self._flush()

    def _dial_later(self) -> None:
        delay_s = backoff_s(self._attempt, random.random())
        self._attempt += 1
        self._timer = self._loop.call_later(delay_s, self._dial_again)

    def _dial_again(self) -> None:
        try:
            self._dial()
        except TransportError as error:  # Out of descriptors, perhaps: later it may do.
            self.last_failure = str(error)
            log_event(_log, WARNING, "dial failed", endpoint=self.endpoint, reason=error)
            self._drop_socket(0)
            self._dial_later()

    def _drop_socket(self, linger_ms: int) -> None:
        for timer in (self._timer, self._retry_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._retry_timer = None
        for pump in (self._pump, self._monitor_pump):
            if pump is not None:
                pump.stop()
        self._pump = self._monitor_pump = None
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger_ms)
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket = self._monitor = None
        self._outbox = Outbox()
        self._is_flush_scheduled = False

    def _lose(self, socket: Socket | None, reason: str) -> None:
        """End the session of `socket`, if it is still the present one, and dial again."""
        if self._is_closed or socket is None or socket is not self._socket:
            return
        was_connected = self._opened_at > 0.0
        if was_connected and self._loop.time() - self._opened_at >= SETTLED_S:
            self._attempt = 0
        self.last_failure = reason
        self._is_open = False
        self._opened_at = 0.0
        self._drop_socket(0)
        self._dial_later()
        if was_connected:
            self._handler.disconnected(reason)
        else:
            log_event(_log, DEBUG, "dial failed", endpoint=self.endpoint, reason=reason)

    def _refuse(self, error: Error) -> None:
        self.last_failure = error.message
        self._drop_socket(0)
        self._handler.refused(error)

    def _watch(self) -> int:
        """Take one event of the socket's monitor."""
        assert self._monitor is not None
        try:
            event = parse_monitor_message(self._monitor.recv_multipart(NOBLOCK))
        except zmq.Again:
            return -1
        kind = event["event"]
        if kind == zmq.Event.HANDSHAKE_FAILED_AUTH:
            text = f"{self.endpoint} does not know our key: ask its operator to add it to principals.json"
            self._refuse(Error(code="unauthorized", message=text))
        elif kind & _FAILED:
            self._lose(self._socket, "the handshake failed: is the server's public key the right one, has it CURVE?")
        elif kind & (zmq.Event.DISCONNECTED | zmq.Event.CLOSED):
            socket = self._socket
            if self._pump is not None:
                self._pump.drain()  # What came before the end is not lost with it.
            reason = "the connection broke" if self._opened_at else f"nobody answers at {self.endpoint}"
            self._lose(socket, reason)
        return 1

    # --- Messages -------------------------------------------------------------------------------

    def _receive(self) -> int:
        socket = self._socket
        assert socket is not None
        try:
            payload = socket.recv(NOBLOCK)
            if socket.get(zmq.RCVMORE):
                raise DecodeError("a payload is one frame, and this has more")
            messages = decode(payload)
        except zmq.Again:
            return -1
        except DecodeError as error:
            log_event(_log, WARNING, "bad payload, session reset", endpoint=self.endpoint, reason=error)
            self._lose(socket, f"bad payload: {error}")
            return 1
        epoch: int | None = None
        if messages and isinstance(messages[0], Epoch):
            epoch = messages[0].epoch
            del messages[0]
        for message in messages:
            if self._is_open:
                if isinstance(message, Goodbye):
                    self._lose(socket, "the server said Goodbye")
                elif isinstance(message, Error) and message.code == "unknown_session":
                    self._lose(socket, f"unknown session: {message.message}")
                else:
                    self._handler.received(message, epoch)
            else:
                self._receive_before_welcome(socket, message, epoch)
            if socket is not self._socket:
                break
        return len(messages)

    def _receive_before_welcome(self, socket: Socket, message: Message, epoch: int | None) -> None:
        if isinstance(message, Welcome):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._is_open = True
            self._opened_at = self._loop.time()
            self._attempt = min(self._attempt, UNSETTLED_ATTEMPTS)
            self._handler.connected(message, epoch)
        elif isinstance(message, Error) and message.code in ("unauthorized", "bad_version"):
            self._refuse(message)
        elif isinstance(message, Error):
            self._lose(socket, f"{message.code}: {message.message}")

    def _flush_answers(self) -> None:
        if self._is_flush_scheduled:
            self._flush()

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        socket = self._socket
        if socket is None or self._retry_timer is not None:
            return
        outbox = self._outbox
        try:
            while (payload := outbox.first()) is not None:
                socket.send(payload, NOBLOCK)
                outbox.pop()
        except zmq.Again:
            self._retry_timer = self._loop.call_later(RETRY_S, self._retry)
        if self._pump is not None:
            self._pump.look()

    def _retry(self) -> None:
        self._retry_timer = None
        self._flush()
