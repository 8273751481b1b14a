"""The supervisor: a small process that owns the tasks' processes, whatever becomes of the slave daemon.

    python -P -m slave.supervisor SOCKET auto|cgroups|posix CGROUP_ROOT LOG_FILE

It goes into the background and exits 0 when it listens; what keeps it from that is written to
stderr. SIGTERM ends it only while it owns no container, so that an upgrade or a careless `kill`
costs no task; `RetireSupervisor` ends it when the last container is forgotten.

Kept small: no asyncio, no ZeroMQ, no logging, no argparse; each would cost every slave memory for ever.
"""

import binascii
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Final, NoReturn

import msgspec

from isolation.cgroup_trees import CgroupTrees
from isolation.cgroups import open_cgroups
from isolation.posix import PosixTrees
from isolation.processes import read_stat
from isolation.spawn import Command, find_login
from isolation.trees import CONTAINER_MARK, Bounds, Trees
from meseta.errors import IsolationError
from meseta.ids import ContainerId
from slave.supervisor_core import (
    AskedToEnd,
    DaemonCame,
    DaemonWent,
    FirstProcessEnded,
    KillTree,
    LookForSocket,
    ProcessStarted,
    Report,
    Request,
    ResizeTree,
    SocketGone,
    StartProcess,
    StartRefused,
    Stop,
    SupervisorCore,
    SupervisorEffect,
    SupervisorEvent,
    SupervisorInit,
    TerminateTree,
    TreeDead,
)
from slave.supervisor_messages import FromSupervisor, Limits, StartContainer, SupervisorRefused, decode_request, encode
from slave.supervisor_socket import (
    MalformedDatagram,
    new_socket,
    peer_uid,
    receive_datagram,
    send_datagram,
)

_BACKLOG: Final = 16
_TURN_MESSAGES: Final = 64  # Between two looks at dead processes: starting 64 takes 50 ms.
# Of what a daemon does not read. Beyond it the connection is closed; ends of containers are kept for the next one.
_OUTBOX_LIMIT: Final = 50_000
_PR_SET_CHILD_SUBREAPER: Final = 36
_TASK_UMASK: Final = 0o022


class _Connection:
    """One daemon's socket and what it has not taken yet."""

    __slots__ = ("outbox", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.outbox: deque[bytes] = deque()


class Supervisor:
    """Performs what the core decides: one thread, one epoll."""

    def __init__(self, listener: socket.socket, trees: Trees, note: str) -> None:
        self._core = SupervisorCore(SupervisorInit(isolation=trees.label, isolation_note=note, pid=os.getpid()))
        self._trees = trees
        self._listener = listener
        self._path: str = listener.getsockname()
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._daemon: _Connection | None = None  # The newest connection that has spoken.
        self._container_by_pid: dict[int, ContainerId] = {}
        self._unburied: set[ContainerId] = set()  # Those of which the log has told that they cannot be cleaned up.
        self._stop_reason: str | None = None
        self._is_asked_to_end = False
        self._wakeup, wakeup_writer = socket.socketpair()
        self._wakeup.settimeout(0.0)
        wakeup_writer.settimeout(0.0)
        self._wakeup_writer = wakeup_writer
        for fd in (listener.fileno(), self._wakeup.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Serve until there is nothing left to do."""
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)  # Not ignored, or zombies would vanish unseen.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._feed(DaemonWent())
        while self._stop_reason is None:
            self._turn()
        _log(f"supervisor ends: {self._stop_reason}")
        self._flush_all()
        self._trees.close()

    def _turn(self) -> None:
        deadline = self._core.next_deadline()
        # Rounded up by epoll itself to a millisecond: never before the deadline, or we would spin.
        timeout = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        for fd, events in self._epoll.poll(timeout):
            if fd == self._wakeup.fileno():
                self._wakeup.recv(4096)
                self._reap()
            elif fd == self._listener.fileno():
                self._accept()
            elif connection := self._connections.get(fd):
                if events & select.EPOLLOUT:
                    self._flush(connection)
                if events & ~select.EPOLLOUT:
                    self._read(connection)
        if self._is_asked_to_end:
            self._is_asked_to_end = False
            self._feed(AskedToEnd())
        for effect in self._core.tick(time.monotonic()):
            self._perform(effect)

    def _on_sigterm(self, signum: int, frame: object) -> None:
        self._is_asked_to_end = True

    def _feed(self, event: SupervisorEvent) -> None:
        for effect in self._core.handle(event, time.monotonic()):
            self._perform(effect)

    def _perform(self, effect: SupervisorEffect) -> None:
        match effect:
            case Report():
                self._send(effect.message)
            case StartProcess():
                self._start(effect.message)
            case KillTree():
                self._kill(effect.container_id)
            case TerminateTree():
                self._terminate(effect.container_id)
            case ResizeTree():
                self._resize(effect.container_id, effect.limits)
            case LookForSocket():
                if not os.path.exists(self._path):
                    self._feed(SocketGone())
            case Stop():
                self._stop_reason = effect.reason

    # Containers

    def _start(self, message: StartContainer) -> None:
        container_id = message.container_id
        limits = message.limits
        try:
            command = Command(
                arguments=message.arguments,
                environment={**message.environment, CONTAINER_MARK: container_id},
                folder=message.sandbox,
                login=None if message.user is None else find_login(message.user),
            )
            born = self._trees.start(
                container_id, command, Bounds(cpu_milli=limits.cpu_milli, mem_bytes=limits.mem_bytes, pids=limits.pids)
            )
        except IsolationError as error:
            self._feed(StartRefused(container_id=container_id, message=str(error)))
            return
        self._container_by_pid[born.pid] = container_id
        try:
            stat = read_stat(born.pid)  # There even if it ended: we have not reaped it.
        except OSError as error:  # The machine is out of file handles. It is known by its mark all the same.
            _log(f"start time of {born.pid} is not known: {error}")
            stat = None
        self._feed(
            ProcessStarted(
                container_id=container_id,
                pid=born.pid,
                start_ticks=0 if stat is None else stat.start_ticks,
                cgroup=born.group,
            )
        )

    def _resize(self, container_id: ContainerId, limits: Limits) -> None:
        try:
            self._trees.resize(
                container_id, Bounds(cpu_milli=limits.cpu_milli, mem_bytes=limits.mem_bytes, pids=limits.pids)
            )
        except OSError as error:
            self._send(SupervisorRefused(message=f"limits of {container_id} stay as they are: {error}"))

    def _reap(self) -> None:
        """Reap every zombie; those that are no first process were orphaned to us."""
        while True:
            try:
                # Looked at before it is reaped: until then its pid, and its group's number, cannot be another's.
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            container_id = self._container_by_pid.pop(dead.si_pid, None)
            if container_id is not None:
                self._trees.first_ended(container_id)
            _, status = os.waitpid(dead.si_pid, 0)
            if container_id is not None:
                code = os.waitstatus_to_exitcode(status)
                self._feed(FirstProcessEnded(container_id=container_id, exit_status=code if code >= 0 else 128 - code))

    def _terminate(self, container_id: ContainerId) -> None:
        try:
            self._trees.terminate(container_id)
        except OSError as error:
            _log(f"SIGTERM for {container_id} failed: {error}")  # SIGKILL follows.

    def _kill(self, container_id: ContainerId) -> None:
        try:
            if not self._trees.kill(container_id):
                return
            usage = self._trees.bury(container_id)
        except OSError as error:  # The core asks again, with pauses.
            if container_id not in self._unburied:
                self._unburied.add(container_id)
                _log(f"{container_id} cannot be cleaned up yet: {error}")
            return
        if usage is not None:
            self._unburied.discard(container_id)
            self._feed(
                TreeDead(container_id=container_id, oom_kills=usage.oom_kills, mem_peak_bytes=usage.mem_peak_bytes)
            )

    # Connections

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _log(f"no connection could be taken: {error}")
            return
        sock.settimeout(0.0)
        uid = peer_uid(sock)
        if uid not in (0, os.geteuid()):
            _log(f"a connection of uid {uid} was refused: only our own user and root may order")
            sock.close()
            return
        self._connections[sock.fileno()] = _Connection(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._feed(DaemonCame())

    def _read(self, connection: _Connection) -> None:
        for _ in range(_TURN_MESSAGES):
            try:
                data = receive_datagram(connection.socket)
                if data is None:
                    return
                if not data:
                    self._close(connection)
                    return
                self._speaks(connection)
                request = decode_request(data)
            except (MalformedDatagram, msgspec.DecodeError) as error:
                self._send(SupervisorRefused(message=f"that is no message: {error}"))
                continue
            except OSError as error:
                _log(f"connection lost: {error}")
                self._close(connection)
                return
            self._feed(Request(message=request))
            if connection.socket.fileno() < 0:  # Its outbox ran over.
                return

    def _speaks(self, connection: _Connection) -> None:
        """The newest daemon is the one that is told; an older one that still hangs on is let go."""
        if connection is not self._daemon:
            old, self._daemon = self._daemon, connection
            if old is not None:
                self._close(old)

    def _send(self, message: FromSupervisor) -> None:
        connection = self._daemon
        if connection is None:
            return
        data = encode(message)
        try:
            if connection.outbox or not send_datagram(connection.socket, data):
                if not connection.outbox:
                    self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
                connection.outbox.append(data)
        except OSError:
            return  # Gone: the next read of this connection says so.
        if len(connection.outbox) > _OUTBOX_LIMIT:
            _log(f"the daemon reads nothing: {_OUTBOX_LIMIT} reports wait, connection closed")
            self._close(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.outbox and send_datagram(connection.socket, connection.outbox[0]):
                connection.outbox.popleft()
        except OSError:
            connection.outbox.clear()
        if not connection.outbox:
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)

    def _flush_all(self) -> None:
        for connection in self._connections.values():
            self._flush(connection)

    def _close(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        self._epoll.unregister(fd)
        del self._connections[fd]
        connection.socket.close()
        if connection is self._daemon:
            self._daemon = None
        if not self._connections:
            self._feed(DaemonWent())


def main(arguments: list[str]) -> int:
    """Go into the background and serve; return the status of the foreground process."""
    try:
        path, isolation, cgroup_root, log_path = arguments
    except ValueError:
        return _complain("usage: python -P -m slave.supervisor SOCKET auto|cgroups|posix CGROUP_ROOT LOG_FILE")
    try:
        log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        return _complain(f"log file {log_path}: {error.strerror}")
    outcome, complaint = os.pipe()
    if os.fork() > 0:
        os.close(complaint)
        with open(outcome) as file:
            text = file.read()
        return _complain(text or f"it died at once; see {log_path}") if text != _READY else 0
    os.close(outcome)
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for target in (1, 2):
        os.dup2(log_fd, target)
    try:
        supervisor = _prepare(path, isolation, cgroup_root)
    except (IsolationError, OSError) as error:
        os.write(complaint, str(error).encode())
        return 1
    os.write(complaint, _READY.encode())
    os.close(complaint)
    try:
        supervisor.run()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return 0


_READY: Final = "ready\n"


def _prepare(path: str, isolation: str, cgroup_root: str) -> Supervisor:
    """Make everything that can fail."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    trees, note = _choose_trees(path, isolation, cgroup_root)
    listener = new_socket()
    os.umask(0o177)
    listener.bind(path)
    os.umask(_TASK_UMASK)
    listener.listen(_BACKLOG)
    os.chdir("/")
    gc.collect()
    gc.freeze()
    return Supervisor(listener, trees, note)


def _choose_trees(path: str, isolation: str, cgroup_root: str) -> tuple[Trees, str]:
    if isolation not in ("auto", "cgroups", "posix"):
        raise IsolationError(f"isolation {isolation!r} is none of auto, cgroups, posix")
    reason = "isolation posix was asked for"
    if isolation != "posix":
        try:
            # Our socket's path is ours alone on this machine, so what is made of it names our groups.
            cgroups = open_cgroups(cgroup_root, f"{binascii.crc32(path.encode()):08x}")
        except IsolationError as error:
            if isolation == "cgroups":
                raise
            reason = str(error)
        else:
            _log(f"isolation is {cgroups.label}, groups in {cgroups.group}")
            return CgroupTrees(cgroups), ""
    note = f"limits on cpus, mem and pids are not enforced: {reason}"
    _log(f"isolation is posix; {note}")
    return PosixTrees(), note


def _complain(text: str) -> int:
    os.write(2, text.encode(errors="replace"))
    return 1


def _log(text: str) -> None:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    os.write(2, f"{stamp} supervisor[{os.getpid()}]: {text}\n".encode(errors="replace"))


def _run() -> NoReturn:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    _run()
