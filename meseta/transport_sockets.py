"""What both ends of the transport share: socket options, contexts, and the pump between socket and loop."""

import asyncio
import errno
import re
import socket as socket_module
import threading
import time
from collections.abc import Callable
from typing import Final

import zmq

from meseta.errors import TransportError
from meseta.transport_outbox import MESSAGE_LIMIT_BYTES, PAYLOAD_BYTES

TURN_MESSAGES = 256  # Messages read in one turn of the loop, so that timers and other sockets get theirs.
TURN_S = 0.005  # Likewise, where messages are dear.
# ZMQ_SNDHWM and ZMQ_RCVHWM for each peer: enough for the wire; the rest waits in outboxes, bounded in bytes.
QUEUE_PAYLOADS = 64
HEARTBEAT_MS = 10_000  # ZMTP pings; they only clean up TCP connections whose other end vanished.
HEARTBEAT_TIMEOUT_MS = 30_000
HANDSHAKE_MS = 5_000  # A stranger that connects and says nothing is dropped after this.
CLOSE_LINGER_MS = 100  # For what was sent just before a close on purpose; `close` may block this long.
IPC_PATH_BYTES = 107  # sockaddr_un.sun_path less its final zero byte.
PORT_LIMIT = 65535
_IPC: Final = "ipc://"
_TCP: Final = re.compile(r"tcp://[^/\s]+:(\d{1,10}|\*)\Z", re.ASCII)
# Plain integers: arithmetic on pyzmq's enumerations costs a microsecond each time.
NOBLOCK: Final = int(zmq.NOBLOCK)
NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN: Final = int(zmq.POLLIN)

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


class _SharedContext:
    """One ZeroMQ context (two threads) for all sockets of this process that need no ZAP handler."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._context: Context | None = None
        self._user_count = 0

    def borrow(self) -> Context:
        with self._lock:
            if self._context is None:
                self._context = zmq.Context()
            self._user_count += 1
            return self._context

    def give_back(self) -> None:
        """Say that all sockets of one `borrow` are closed. The last one ends the context and its threads."""
        with self._lock:
            self._user_count -= 1
            context = self._context
            if self._user_count or context is None:
                return
            self._context = None
        context.term()


shared_context = _SharedContext()


class Pump:
    """Calls `receive` while a socket has something, in turns of the running loop.

    `receive` takes one payload and returns how many messages it held, -1 if there was none. `after`
    is called when a turn's worth was read, for the answers: a turn of the loop later would cost
    two system calls more. The descriptor is edge-triggered: who sends on the socket calls `look` afterwards.
    """

    def __init__(self, socket: Socket, receive: Callable[[], int], after: Callable[[], None] | None = None) -> None:
        self.is_draining = False
        self._socket = socket
        self._receive = receive
        self._after = after
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.get(zmq.FD))
        self._is_scheduled = False
        self._is_stopped = False
        self._loop.add_reader(self._descriptor, self.drain)
        self._schedule()  # What arrived before this has had its wake-up already.

    def drain(self) -> None:
        """Read one turn's worth."""
        self._is_scheduled = False
        left = TURN_MESSAGES
        stop_at = time.monotonic() + TURN_S
        is_empty = False
        self.is_draining = True
        try:
            while left > 0 and not self._is_stopped:
                count = self._receive()
                if count < 0:
                    # A `recv` that says EAGAIN has handled all of ZeroMQ's commands, as reading
                    # EVENTS does: the next arrival wakes the descriptor.
                    is_empty = True
                    return
                left -= max(1, count)
                if time.monotonic() >= stop_at:
                    return
        finally:
            self.is_draining = False
            if not is_empty:
                self._schedule()
            if self._after is not None and not self._is_stopped:
                self._after()

    def look(self) -> None:
        """After sends, which may have swallowed the descriptor's wake-up: read on if there is anything."""
        if not self._is_stopped and not self._is_scheduled and int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            self._schedule()

    def stop(self) -> None:
        """Touch the socket no more; call it before the socket is closed."""
        if not self._is_stopped:
            self._is_stopped = True
            self._loop.remove_reader(self._descriptor)

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_stopped:
            self._is_scheduled = True
            self._loop.call_soon(self.drain)


def set_options(socket: Socket, endpoint: str) -> None:
    """Set what all our sockets have in common."""
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.SNDHWM, QUEUE_PAYLOADS)
    socket.set(zmq.RCVHWM, QUEUE_PAYLOADS)
    socket.set(zmq.MAXMSGSIZE, MESSAGE_LIMIT_BYTES + PAYLOAD_BYTES)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    if "[" in endpoint:
        socket.set(zmq.IPV6, 1)


def check_endpoint(endpoint: str) -> None:
    """Refuse what ZeroMQ would refuse with a riddle, or take for something else.

    Raises:
        TransportError: no tcp:// or ipc:// endpoint, a bad port, or an ipc path that is too long.
    """
    path = ipc_path(endpoint)
    if path is not None:
        path_bytes = len(path.encode())
        if path_bytes > IPC_PATH_BYTES:
            raise TransportError(
                f"{endpoint} has a path of {path_bytes} bytes, and a socket's path has at most {IPC_PATH_BYTES}:"
                " take a shorter folder, such as one under /run"
            )
        return
    match = _TCP.match(endpoint)
    if match is None:
        raise TransportError(f"{endpoint!r} is no endpoint: write tcp://ADDRESS:PORT or ipc:///PATH")
    if match.group(1) != "*" and int(match.group(1)) > PORT_LIMIT:
        raise TransportError(f"{endpoint} has a port over {PORT_LIMIT}: write one from 1, or 0 for any that is free")


def bind_failure(endpoint: str, error: zmq.ZMQError) -> TransportError:
    """Return what to tell people about a `bind` that failed."""
    if error.errno == zmq.EADDRINUSE:
        remedy = "is in use: stop the process that has it (`ss -ltnp` names it), or bind another port"
    elif error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        remedy = "is no address of this machine: bind one of its own, or * for all"
    else:
        remedy = f"cannot be bound: {error}"
    return TransportError(f"{endpoint} {remedy}")


def ipc_path(endpoint: str) -> str | None:
    """Return the path of an ipc:// endpoint, None if it is another."""
    return endpoint[len(_IPC) :] if endpoint.startswith(_IPC) and len(endpoint) > len(_IPC) else None


def ipc_in_use(path: str) -> bool:
    """Return True if somebody listens there: ZeroMQ would take the path away from him without a word."""
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
