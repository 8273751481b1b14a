"""Processes as /proc shows them: who they are, whose children, and how to signal only the right one."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

_STAT_LIMIT_BYTES: Final = 4096
_CHILDREN_LIMIT_BYTES: Final = 1 << 20  # 7 bytes a child: 150,000 of them.
_ENVIRONMENT_LIMIT_BYTES: Final = 8 << 20  # The kernel takes 6 MiB at most.
_KERNEL_THREAD: Final = 0x00200000  # PF_KTHREAD
_DEAD_STATES: Final = frozenset("ZXx")


class Stat(NamedTuple):
    """What /proc/PID/stat says. `start_ticks`, since boot, tells a process from a later owner of its pid.

    `has_environment` is False for the moment in which a process executes a program or dies.
    """

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int
    has_environment: bool

    @property
    def is_alive(self) -> bool:
        """False for a zombie, which only waits to be reaped."""
        return self.state not in _DEAD_STATES


class Mark(NamedTuple):
    """What a process's environment says. Not final: it executes a program at this moment, or dies; look again."""

    value: str | None
    is_final: bool


def read_stat(pid: int) -> Stat | None:
    """Return a process's facts, None if there is none of that pid."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, _STAT_LIMIT_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name before ")" may hold blanks and brackets; numbers follow (proc(5)), state is field 3.
    fields = data[data.rindex(b")") + 2 :].split()
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        # start_code: the kernel sets it after the environment's bounds, at the end of an exec.
        has_environment=fields[23] != b"0" or int(fields[6]) & _KERNEL_THREAD != 0,
    )


def all_stats() -> list[Stat]:
    """Return every process that this machine shows us, by pid."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return [stat for stat in map(read_stat, pids) if stat is not None]


def own_children() -> list[int]:
    """Return the pids of this single-threaded process's children, zombies included.

    Complete, since a child leaves the list only when we reap it.
    """
    try:
        fd = os.open("/proc/thread-self/children", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # A kernel without CONFIG_PROC_CHILDREN.
        own_pid = os.getpid()
        return [stat.pid for stat in all_stats() if stat.parent == own_pid]
    try:
        data = b""
        while piece := os.read(fd, _CHILDREN_LIMIT_BYTES):
            data += piece
    finally:
        os.close(fd)
    return [int(pid) for pid in data.split()]


def find_mark(pid: int, name: str) -> Mark:
    """Look for variable `name` in the environment that a process was started with."""
    prefix = name.encode() + b"="
    for _ in range(2):  # Empty may be for good, or an exec that ended just after we looked: look again.
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                data = file.read(_ENVIRONMENT_LIMIT_BYTES)
        except OSError:  # Gone, or another user's.
            return Mark(value=None, is_final=True)
        for entry in data.split(b"\0"):
            if entry.startswith(prefix):
                return Mark(value=entry[len(prefix) :].decode(errors="replace"), is_final=True)
        stat = None if data else read_stat(pid)
        if stat is None:
            return Mark(value=None, is_final=True)
        if not stat.has_environment:
            return Mark(value=None, is_final=not stat.is_alive)
    return Mark(value=None, is_final=True)


def signal_process(pid: int, start_ticks: int, signum: int) -> bool:
    """Signal that very process; False if it has ended, even if its pid lives on."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        stat = read_stat(pid)  # After the descriptor: what it names now cannot become another process.
        if stat is None or stat.start_ticks != start_ticks or not stat.is_alive:
            return False
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def signal_listed(list_pids: Callable[[], Iterable[int]], signum: int) -> bool:
    """Signal every process of a list that changes under our hands; False if it was empty.

    A listed pid may end and be given to a stranger before the signal is sent. So each is held by
    a descriptor, and only those that are in the list again are signalled: a stranger is not, and
    a descriptor of one that ended reaches nobody.
    """
    held: dict[int, int] = {}
    try:
        pids = list(list_pids())
        for pid in pids:
            try:
                held[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        for pid in list_pids() if held else ():
            fd = held.get(pid)
            if fd is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # Ended, or took on another user.
                    signal.pidfd_send_signal(fd, signum)
        return bool(pids)
    finally:
        for fd in held.values():
            os.close(fd)
