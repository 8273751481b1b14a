"""The slave daemon's side of its supervisors: start, find, talk to, and clean up after them."""

import asyncio
import errno
import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from isolation.cgroups import kill_leftover_groups
from isolation.orphans import Orphan, kill_leftover_processes
from meseta.errors import IsolationError, SessionLost
from meseta.ids import ContainerId
from slave.supervisor_messages import FromSupervisor, Started, ToSupervisor, decode_report, encode
from slave.supervisor_socket import (
    SOCKET_PATH_LIMIT_BYTES,
    MalformedDatagram,
    new_socket,
    peer_uid,
    receive_datagram,
    send_datagram,
)

START_LIMIT_S: Final = 20.0  # Of a supervisor, from exec to listening: 0.1 s on an idle machine.
_TURN_MESSAGES: Final = 256  # What one turn of the loop reads at most, as for all sockets.
_TURN_S: Final = 0.005
_RETRY_S: Final = 0.1  # When the machine could not send, though the supervisor is there.
_PEER_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED)


class SupervisorClient:
    """A connection to one supervisor, on the running asyncio loop.

    `on_report` gets every message; `on_lost` is called once, after the last message that the
    supervisor sent, and never for `close`.

    Raises:
        SessionLost: nobody listens at `path`.
    """

    def __init__(
        self,
        path: Path,
        on_report: Callable[[FromSupervisor], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._path = path
        self._on_report = on_report
        self._on_lost = on_lost
        self._outbox: deque[bytes] = deque()
        self._is_full = False  # The socket: the loop tells when it has room.
        self._loop = asyncio.get_running_loop()
        self._socket = _connect(path)
        self._is_open = True
        self._loop.add_reader(self._socket.fileno(), self._read)

    def send(self, message: ToSupervisor) -> None:
        """Send, or keep until the socket takes it. Lost with the supervisor: `on_lost` tells."""
        if not self._is_open:
            return
        self._outbox.append(encode(message))
        if len(self._outbox) == 1:
            self._write()

    def close(self) -> None:
        """Leave; the supervisor and its containers go on."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _write(self) -> None:
        """Send what waits, as far as it goes; the rest when the socket takes more."""
        if not self._is_open:
            return
        try:
            while self._outbox and send_datagram(self._socket, self._outbox[0]):
                self._outbox.popleft()
        except OSError as error:
            self._wait_for_room(is_full=False)
            if error.errno in _PEER_GONE:
                self._outbox.clear()  # The reader comes to the end of what the supervisor still said, and tells.
            else:  # Out of descriptors or memory: a start that was lost would leave its task without an end.
                self._loop.call_later(_RETRY_S, self._write)
            return
        self._wait_for_room(is_full=bool(self._outbox))

    def _wait_for_room(self, *, is_full: bool) -> None:
        if is_full and not self._is_full:
            self._loop.add_writer(self._socket.fileno(), self._write)
        elif self._is_full and not is_full:
            self._loop.remove_writer(self._socket.fileno())
        self._is_full = is_full

    def _read(self) -> None:
        until = time.monotonic() + _TURN_S
        for _ in range(_TURN_MESSAGES):
            if not self._is_open:  # A callback closed us.
                return
            try:
                data = receive_datagram(self._socket)
                if data is None:
                    return
                if not data:
                    self._lose("it ended")
                    return
                report = decode_report(data)
            except (MalformedDatagram, msgspec.DecodeError) as error:
                self._lose(f"it sent what is no message: {error}")
                return
            except OSError as error:
                self._lose(str(error))
                return
            self._on_report(report)
            if time.monotonic() > until:
                return

    def _lose(self, reason: str) -> None:
        self.close()
        self._on_lost(f"supervisor {self._path.name} is lost: {reason}")


async def start_supervisor(runtime_dir: Path, *, isolation: str, cgroup_root: str, log_file: Path) -> Path:
    """Start a supervisor of its own session, which outlives us, and return its socket's path when it listens.

    `isolation` is auto, cgroups or posix. `cgroup_root` is where its groups are made: relative to
    our own group ("meseta"), or absolute ("/meseta") from the hierarchy's top.

    Raises:
        IsolationError: it could not start, or the isolation that was asked for cannot be had.
    """
    path = runtime_dir / f"supervisor-{secrets.token_hex(4)}.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT_BYTES:
        raise IsolationError(
            f"the runtime folder's path is too long for a socket: {path} has more than "
            f"{SOCKET_PATH_LIMIT_BYTES} bytes; name a shorter one with --runtime-dir"
        )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-X", "utf8", "-m", "slave.supervisor"),
        *(str(path), isolation, cgroup_root, str(log_file.absolute())),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, complaint = await asyncio.wait_for(process.communicate(), START_LIMIT_S)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise IsolationError(f"the supervisor did not start within {START_LIMIT_S:.0f} s; see {log_file}") from error
    if process.returncode != 0:
        text = complaint.decode(errors="replace").strip()
        raise IsolationError(f"the supervisor did not start: {text or f'status {process.returncode}'}")
    return path


def find_supervisors(runtime_dir: Path) -> list[Path]:
    """Return the sockets of the supervisors that live, oldest first; sockets of dead ones are removed."""
    living: list[tuple[int, Path]] = []
    for path in sorted(runtime_dir.glob("supervisor-*.sock")):
        try:
            made = path.stat().st_mtime_ns
            with new_socket() as probe:  # A connection that says nothing takes nothing from the daemon's.
                probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            continue
        except FileNotFoundError:
            continue
        except BlockingIOError:
            pass  # Its queue is full: it lives.
        living.append((made, path))
    return [path for _, path in sorted(living)]


def kill_orphans(containers: Sequence[Started], isolation: str) -> list[ContainerId]:
    """Kill what a dead supervisor left of `containers`, remove its groups; return those that had life in them.

    For a container that was asked for but never reported as started, pass `Started` with pid and
    start_ticks 0: it is found by its mark in the environment, and by its group's name. Waits for
    the deaths; call it in a thread.

    Raises:
        IsolationError: something could not be killed.
    """
    orphans = [
        Orphan(name=started.container_id, pid=started.pid, start_ticks=started.start_ticks, group=started.cgroup)
        for started in containers
    ]
    killed: set[str] = set()
    if isolation != "posix":
        killed |= kill_leftover_groups({orphan.name: orphan.group for orphan in orphans})
    killed |= kill_leftover_processes(orphans)
    return [started.container_id for started in containers if started.container_id in killed]


def _connect(path: Path) -> socket.socket:
    sock = new_socket()
    try:
        sock.connect(str(path))
        owner = peer_uid(sock)
        if owner not in (0, os.geteuid()):
            raise SessionLost(f"supervisor {path} belongs to uid {owner}, not to us")
    except OSError as error:
        sock.close()
        raise SessionLost(f"supervisor {path} is gone: {error.strerror}") from error
    except SessionLost:
        sock.close()
        raise
    return sock
