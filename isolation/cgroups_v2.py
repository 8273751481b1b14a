"""cgroup v2: one tree with all controllers."""

import contextlib
import errno
import os
import signal
from typing import Final

from isolation.cgroup_files import (
    Hierarchy,
    make_and_lock,
    read_counter,
    read_file,
    read_pids,
    remove_dead_supervisors,
    remove_tree,
    supervisor_folder,
    walk,
    write_file,
)
from isolation.processes import signal_listed
from isolation.trees import MEM_FLOOR_BYTES, Bounds, Usage
from meseta.errors import IsolationError

CONTROLLERS: Final = ("cpu", "memory", "pids")
_WEIGHT_PER_CPU: Final = 100  # The kernel's default for one group, as 1024 shares are in v1.
_WEIGHT_MOST: Final = 10_000


class CgroupsV2:
    """The groups of one supervisor."""

    label: Final = "cgroups-v2"

    def __init__(self, hierarchy: Hierarchy, root: str, supervisor: str) -> None:
        self.group = f"{root}/{supervisor}"
        self._path = supervisor_folder(hierarchy, root, supervisor)
        try:
            self._home_fd = os.open(f"{hierarchy.own}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._fd = make_and_lock(self._path)
            except OSError:
                os.close(self._home_fd)
                raise
            try:
                self._hand_down(hierarchy.mount if root.startswith("/") else hierarchy.own)
            except (OSError, IsolationError):
                self.close()
                raise
            remove_dead_supervisors(os.path.dirname(self._path))
        except OSError as error:
            raise IsolationError(f"cannot make cgroups in {error.filename or self._path}: {error.strerror}") from error

    def create(self, name: str, bounds: Bounds) -> None:
        """Make the group of a container and set its bounds. Raises OSError."""
        os.mkdir(name, dir_fd=self._fd)
        self._bound(name, bounds)
        if bounds.mem_bytes is not None:
            with contextlib.suppress(FileNotFoundError):  # The kernel does not account swap.
                write_file(f"{name}/memory.swap.max", "0", dir_fd=self._fd)
            write_file(f"{name}/memory.oom.group", "1", dir_fd=self._fd)  # All die, not the one that asked last.
        if bounds.pids is not None:
            write_file(f"{name}/pids.max", str(bounds.pids), dir_fd=self._fd)

    def resize(self, name: str, bounds: Bounds) -> None:
        """Set other bounds. Raises OSError."""
        self._bound(name, bounds)

    def attach(self, name: str) -> None:
        """Move this process into the container's group. Raises OSError."""
        write_file(f"{name}/cgroup.procs", "0", dir_fd=self._fd)

    def detach(self, name: str) -> None:
        """Move it back home. Raises OSError."""
        os.write(self._home_fd, b"0")

    def processes(self, name: str) -> list[int]:
        """Return the living processes of a container, those in groups of its own making too."""
        pids: list[int] = []
        for path in walk(f"{self._path}/{name}"):
            pids += read_pids(f"{path}/cgroup.procs")
        return pids

    def kill(self, name: str) -> bool:
        """SIGKILL to all; True if there was nobody."""
        try:
            if not read_counter(f"{name}/cgroup.events", "populated", dir_fd=self._fd):
                return True
        except FileNotFoundError:  # Somebody has removed the empty group.
            return True
        try:
            write_file(f"{name}/cgroup.kill", "1", dir_fd=self._fd)
        except FileNotFoundError:  # Before Linux 5.14.
            write_file(f"{name}/pids.max", "0", dir_fd=self._fd)  # No fork gets away from the signals.
            signal_listed(lambda: self.processes(name), signal.SIGKILL)
        return False

    def usage(self, name: str) -> Usage:
        """Return the kernel's counters."""
        try:
            peak = int(read_file(f"{name}/memory.peak", dir_fd=self._fd))
        except FileNotFoundError:  # Before Linux 5.19.
            peak = 0
        try:
            oom_kills = read_counter(f"{name}/memory.events", "oom_kill", dir_fd=self._fd)
        except FileNotFoundError:
            oom_kills = 0
        return Usage(oom_kills=oom_kills, mem_peak_bytes=peak)

    def remove(self, name: str) -> bool:
        """Remove a container's group; False if the kernel still holds it: ask again."""
        return remove_tree(f"{self._path}/{name}")

    def close(self) -> None:
        """Remove the supervisor's folder, and its parent if no other supervisor is in it."""
        remove_tree(self._path)
        for fd in (self._fd, self._home_fd):
            os.close(fd)
        with contextlib.suppress(OSError):  # Other supervisors are in it.
            os.rmdir(os.path.dirname(self._path))

    def _bound(self, name: str, bounds: Bounds) -> None:
        if bounds.cpu_milli is not None:
            weight = min(_WEIGHT_MOST, max(1, bounds.cpu_milli * _WEIGHT_PER_CPU // 1000))
            write_file(f"{name}/cpu.weight", str(weight), dir_fd=self._fd)
        if bounds.mem_bytes is not None:
            write_file(f"{name}/memory.max", str(max(MEM_FLOOR_BYTES, bounds.mem_bytes)), dir_fd=self._fd)

    def _hand_down(self, top: str) -> None:
        """Give the controllers to every level from `top` down to the supervisor's own folder."""
        offered = read_file(f"{top}/cgroup.controllers").split()
        missing = [each for each in CONTROLLERS if each not in offered]
        if missing:
            raise IsolationError(
                f"the controllers {', '.join(missing)} are not delegated to cgroup {top}: "
                f"under systemd, set Delegate=yes for the slave's unit"
            )
        wanted = " ".join(f"+{each}" for each in CONTROLLERS)
        levels = self._path[len(top) :].strip("/").split("/")
        for depth in range(len(levels) + 1):
            folder = "/".join((top, *levels[:depth]))
            try:
                write_file(f"{folder}/cgroup.subtree_control", wanted)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise IsolationError(
                    f"cgroup {folder} holds processes, so the kernel lets it hand down no controllers: give the slave "
                    f"a group of its own inside it (systemd: DelegateSubgroup=slave and a cgroup root of {folder!r}), "
                    f"or make the tasks' groups elsewhere (a cgroup root of /meseta)"
                ) from error
