"""The event stream's two ends: an XPUB that never waits for anybody, and a SUB that lives as long as one connection.

A subscriber that is too slow loses payloads, and nobody else notices: what is published must carry
numbers, so that it sees the gap.
"""

import asyncio
import logging
from typing import Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from meseta.errors import DecodeError, TransportError
from meseta.log import DEBUG, INFO, WARNING, log_event
from meseta.messages import Epoch, Message, decode
from meseta.transport_keys import KeyPair
from meseta.transport_outbox import Outbox
from meseta.transport_sockets import (
    CLOSE_LINGER_MS,
    NOBLOCK,
    Pump,
    Socket,
    bind_failure,
    check_endpoint,
    set_options,
    shared_context,
)
from meseta.transport_zap import KeyJudge, demand_curve

# What is published within it goes out as one payload: eyes do not see it, and a subscriber's queue
# (ZMQ_SNDHWM and ZMQ_RCVHWM, `QUEUE_PAYLOADS` each) holds what comes while it stands still for 2 s.
FLUSH_S = 0.02
SUBSCRIPTION_LIMIT_BYTES = 4096  # The one that is meant is empty, but the handshake passes through here too.
CONNECT_TIMEOUT_S = 5.0
REFUSAL_LINES_PER_S = 10  # In the log.
_RECONNECT_NEVER_MS = 1_000_000_000
_ALL = b""  # The one topic: a payload holds events of all kinds.
_SUBSCRIBED = b"\x01"
_UNSUBSCRIBED = b"\x00"

_FAILED = zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = zmq.Event.DISCONNECTED | zmq.Event.CLOSED | _FAILED

_log = logging.getLogger(__name__)


class PublisherHandler(Protocol):
    """What a publisher asks and tells its owner, on the loop's thread."""

    def may_subscribe(self, public_key: str) -> bool:
        """Return whether the holder of a CURVE key is admitted."""

    def followers_changed(self, *, is_followed: bool) -> None:
        """Take note that there is one more subscriber (also if there were some), or none any more."""


class Publisher:
    """One bound XPUB, made on a running asyncio loop. Without `keys` anyone may subscribe.

    `endpoint` is the one really bound. Every payload starts with `epoch`.

    Raises:
        TransportError: the endpoint is in use, not of this machine, or malformed.
    """

    def __init__(self, endpoint: str, handler: PublisherHandler, *, keys: KeyPair | None, epoch: int) -> None:
        check_endpoint(endpoint)
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(epoch)
        self._flush_timer: asyncio.TimerHandle | None = None
        self._logged_count = 0
        self._logged_until = 0.0
        self._is_closed = False
        self._has_own_context = keys is not None
        self._context = zmq.Context() if keys is not None else shared_context.borrow()
        self._judge: KeyJudge | None = None
        self._socket = self._context.socket(zmq.XPUB)
        try:
            set_options(self._socket, endpoint)
            self._socket.set(zmq.MAXMSGSIZE, SUBSCRIPTION_LIMIT_BYTES)
            # Tells of every subscription, but only of the end of the last one: so no subscriber that
            # says either twice can make us take the others for gone.
            self._socket.set(zmq.XPUB_VERBOSE, 1)
            if keys is not None:
                self._judge = KeyJudge(self._context, handler.may_subscribe, self._refused)
                demand_curve(self._socket, keys)
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._close_sockets(0)
            raise bind_failure(endpoint, error) from error
        self.endpoint = bytes(self._socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        self._pump = Pump(self._socket, self._receive)

    def publish(self, message: Message) -> None:
        """Send to all subscribers within `FLUSH_S`."""
        if self._is_closed:
            return
        try:
            is_full = self._outbox.add(message)
        except ValueError as error:
            log_event(_log, WARNING, "event too large, not published", reason=error)
            return
        if is_full:
            self._send()
        elif self._flush_timer is None:
            self._flush_timer = self._loop.call_later(FLUSH_S, self._flush)

    def close(self) -> None:
        """Send what is left and unbind. Blocks 100 ms at most."""
        if self._is_closed:
            return
        self._send()
        self._is_closed = True
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._pump.stop()
        self._close_sockets(CLOSE_LINGER_MS)

    def _flush(self) -> None:
        self._flush_timer = None
        self._send()

    def _send(self) -> None:
        outbox = self._outbox
        while (payload := outbox.first()) is not None:
            self._socket.send(payload, NOBLOCK)  # Never refused: an XPUB drops for those whose queue is full.
            outbox.pop()
        self._pump.look()

    def _receive(self) -> int:
        try:
            frames = self._socket.recv_multipart(NOBLOCK)
        except zmq.Again:
            return -1
        if frames == [_SUBSCRIBED + _ALL]:
            self._handler.followers_changed(is_followed=True)
        elif frames == [_UNSUBSCRIBED + _ALL]:
            self._handler.followers_changed(is_followed=False)
        return 1  # All else is no subscription of ours, and gets nothing.

    def _refused(self, public_key: str, address: str) -> None:
        now = self._loop.time()
        if now >= self._logged_until:
            self._logged_until = now + 1.0
            self._logged_count = 0
        if self._logged_count < REFUSAL_LINES_PER_S:
            self._logged_count += 1
            log_event(_log, INFO, "follower refused", public_key=public_key, address=address)

    def _close_sockets(self, linger_ms: int) -> None:
        if self._judge is not None:
            self._judge.close()
        self._socket.close(linger_ms)
        if self._has_own_context:
            self._context.term()
        else:
            shared_context.give_back()


class SubscriberHandler(Protocol):
    """What a subscriber tells its owner, on the loop's thread."""

    def published(self, messages: list[Message], epoch: int) -> None:
        """Take one payload."""

    def unsubscribed(self, reason: str) -> None:
        """Take note that nothing comes any more; close it and make another."""


class Subscriber:
    """One SUB, made on a running asyncio loop; it does not connect again.

    Raises:
        TransportError: the endpoint or a key is malformed.
    """

    def __init__(
        self, endpoint: str, handler: SubscriberHandler, *, keys: KeyPair | None, server_public_key: str | None
    ) -> None:
        check_endpoint(endpoint)
        self._endpoint = endpoint
        self._handler = handler
        self._is_closed = False
        self._context = shared_context.borrow()
        socket = self._socket = self._context.socket(zmq.SUB)
        self._monitor: Socket | None = None
        try:
            set_options(socket, endpoint)
            socket.set(zmq.RECONNECT_IVL, _RECONNECT_NEVER_MS)
            socket.set(zmq.CONNECT_TIMEOUT, int(CONNECT_TIMEOUT_S * 1000))
            if keys is not None and server_public_key is not None:
                socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
                socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
                socket.set(zmq.CURVE_SERVERKEY, server_public_key.encode())
            socket.set(zmq.SUBSCRIBE, _ALL)
            self._monitor = socket.get_monitor_socket(_WATCHED)
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise TransportError(f"cannot dial {endpoint}: {error}: check the address and the keys") from error
        self._pump = Pump(socket, self._receive)
        self._monitor_pump = Pump(self._monitor, self._watch)

    def close(self) -> None:
        """End. No handler method is called any more."""
        if self._is_closed:
            return
        self._is_closed = True
        self._pump.stop()
        self._monitor_pump.stop()
        self._close_sockets()

    def _close_sockets(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._socket.close(0)
        shared_context.give_back()

    def _receive(self) -> int:
        try:
            payload = self._socket.recv(NOBLOCK)
            if self._socket.get(zmq.RCVMORE):
                raise DecodeError("a payload is one frame, and this has more")
            messages = decode(payload)
            if not messages or not isinstance(messages[0], Epoch):
                raise DecodeError("a payload of the event stream starts with an Epoch")
        except zmq.Again:
            return -1
        except DecodeError as error:
            log_event(_log, WARNING, "bad payload, unsubscribed", endpoint=self._endpoint, reason=error)
            self._lose(f"bad payload: {error}")
            return 1
        epoch = messages[0].epoch
        del messages[0]
        self._handler.published(messages, epoch)
        return 1 + len(messages)

    def _watch(self) -> int:
        assert self._monitor is not None
        try:
            event = parse_monitor_message(self._monitor.recv_multipart(NOBLOCK))
        except zmq.Again:
            return -1
        kind = event["event"]
        if kind == zmq.Event.HANDSHAKE_FAILED_AUTH:
            self._lose(f"{self._endpoint} does not admit our key: its rules must allow us follow_events")
        elif kind & _FAILED:
            self._lose("the handshake failed: is the server's public key the right one, has it CURVE?")
        elif kind & (zmq.Event.DISCONNECTED | zmq.Event.CLOSED):
            self._lose(f"nothing to hear at {self._endpoint}: the connection broke or was never made")
        return 1

    def _lose(self, reason: str) -> None:
        if not self._is_closed:
            log_event(_log, DEBUG, "event stream lost", endpoint=self._endpoint, reason=reason)
            self.close()
            self._handler.unsubscribed(reason)
