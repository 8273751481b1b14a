"""Datagrams between slave daemon and supervisor: AF_UNIX, SOCK_SEQPACKET, both ends non-blocking.

A datagram must fit the socket's send buffer, which only root may make large. What is larger
travels in a memory file whose descriptor is passed along.
"""

import os
import socket
import stat
import struct
from typing import Final

INLINE_LIMIT_BYTES: Final = 64 << 10  # The default send buffer, 208 KiB, holds three of them.
MESSAGE_LIMIT_BYTES: Final = 16 << 20  # An environment has 1 MiB; a list of 20,000 containers 3 MiB.
SOCKET_PATH_LIMIT_BYTES: Final = 107  # Of the kernel, for AF_UNIX.

_IN_FILE: Final = b"\xc1"  # The byte that begins no MessagePack value.
_CREDENTIALS: Final = struct.Struct("iII")  # pid, uid, gid
_FD: Final = struct.Struct("i")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_FD.size)


class MalformedDatagram(ValueError):
    """A datagram that is no message; the connection stays usable."""


def new_socket() -> socket.socket:
    """Return a socket of the right kind."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def peer_uid(sock: socket.socket) -> int:
    """Return the user who made the other end, as the kernel knows it."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def send_datagram(sock: socket.socket, data: bytes) -> bool:
    """Send, and return True; False if the buffer is full. Raises OSError when the peer is gone."""
    try:
        if len(data) <= INLINE_LIMIT_BYTES:
            sock.send(data)
        else:
            _send_in_file(sock, data)
    except BlockingIOError:
        return False
    return True


def receive_datagram(sock: socket.socket) -> bytes | None:
    """Return the next datagram, None if there is none yet, `b""` when the peer is gone.

    Raises:
        MalformedDatagram: it was no message; the next one may be.
    """
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(INLINE_LIMIT_BYTES, _ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            continue  # Told once, before what the peer sent while it lived; the end follows after that.
        if ancillary:
            return _read_passed_file(ancillary)
        return data


def _send_in_file(sock: socket.socket, data: bytes) -> None:
    fd = os.memfd_create("meseta-datagram", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        socket.send_fds(sock, [_IN_FILE], [fd])
    finally:
        os.close(fd)


def _read_passed_file(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    descriptors = [
        _FD.unpack(data[: _FD.size])[0]
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= _FD.size
    ]
    try:
        if len(descriptors) != 1:
            raise MalformedDatagram(f"{len(descriptors)} files were passed, 1 expected")
        fd = descriptors[0]
        status = os.fstat(fd)
        # A pipe could make the reader wait for ever.
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MESSAGE_LIMIT_BYTES:
            raise MalformedDatagram(f"the passed file must have 1 to {MESSAGE_LIMIT_BYTES} bytes")
        return os.pread(fd, status.st_size, 0)
    finally:
        for fd in descriptors:
            os.close(fd)
