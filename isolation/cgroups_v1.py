"""cgroup v1, and the hybrid layout in which v1 holds the controllers."""

import contextlib
import errno
import os
import signal
from collections.abc import Sequence
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

CONTROLLERS: Final = ("pids", "cpu", "memory")
_SHARES_PER_CPU: Final = 1024  # As Mesos and the kernel's default for one group.
_SHARES_LEAST: Final = 2  # The kernel's.
_SHARES_MOST: Final = 262144


class _Folder:
    """A supervisor's folder in one hierarchy, and the way back to where the supervisor lives."""

    __slots__ = ("controllers", "fd", "home_fd", "path")

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        self.path = path
        self.controllers = hierarchy.controllers
        self.home_fd = os.open(f"{hierarchy.own}/tasks", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self.fd = make_and_lock(path)
        except OSError:
            os.close(self.home_fd)
            raise


class CgroupsV1:
    """The groups of one supervisor, made in those hierarchies that a container's bounds need.

    Every container has a group in the hierarchy of `pids`, by which its processes are known.
    """

    label: Final = "cgroups-v1"

    def __init__(self, hierarchies: Sequence[Hierarchy], root: str, supervisor: str) -> None:
        self.group = f"{root}/{supervisor}"
        self._folders: dict[str, _Folder] = {}
        self._folders_by_name: dict[str, tuple[_Folder, ...]] = {}
        self._nested: set[str] = set()  # Containers that made groups of their own inside theirs.
        try:
            for hierarchy in hierarchies:
                wanted = [each for each in CONTROLLERS if each in hierarchy.controllers and not hierarchy.is_v2]
                if wanted:
                    path = supervisor_folder(hierarchy, root, supervisor)
                    folder = _Folder(hierarchy, path)
                    self._folders.update(dict.fromkeys(wanted, folder))
        except OSError as error:
            self.close()
            raise IsolationError(f"cannot make cgroups in {error.filename or path}: {error.strerror}") from error
        missing = [each for each in CONTROLLERS if each not in self._folders]
        if missing:
            self.close()
            raise IsolationError(f"cgroup v1 without the controllers {', '.join(missing)}")
        self._tracking = self._folders["pids"]
        for folder in dict.fromkeys(self._folders.values()):
            remove_dead_supervisors(os.path.dirname(folder.path))

    def create(self, name: str, bounds: Bounds) -> None:
        """Make the groups of a container and set its bounds. Raises OSError."""
        wanted = ["pids"]
        if bounds.cpu_milli is not None:
            wanted.append("cpu")
        if bounds.mem_bytes is not None:
            wanted.append("memory")
        folders = tuple(dict.fromkeys(self._folders[each] for each in wanted))
        self._folders_by_name[name] = folders
        for folder in folders:
            os.mkdir(name, dir_fd=folder.fd)
        if bounds.cpu_milli is not None:
            self._share_cpu(name, bounds.cpu_milli)
        if bounds.mem_bytes is not None:
            self._limit_memory(name, str(max(MEM_FLOOR_BYTES, bounds.mem_bytes)))
        if bounds.pids is not None:
            write_file(f"{name}/pids.max", str(bounds.pids), dir_fd=self._tracking.fd)

    def resize(self, name: str, bounds: Bounds) -> None:
        """Set other bounds, memory only to raise it; None leaves what is. Raises OSError."""
        held = self._folders_by_name[name]
        if bounds.cpu_milli is not None and self._folders["cpu"] in held:
            self._share_cpu(name, bounds.cpu_milli)
        if bounds.mem_bytes is not None and self._folders["memory"] in held:
            limit = str(max(MEM_FLOOR_BYTES, bounds.mem_bytes))
            fd = self._folders["memory"].fd
            with contextlib.suppress(FileNotFoundError):  # First: it may never be below the other.
                write_file(f"{name}/memory.memsw.limit_in_bytes", limit, dir_fd=fd)
            write_file(f"{name}/memory.limit_in_bytes", limit, dir_fd=fd)

    def attach(self, name: str) -> None:
        """Move this thread, the only one of its process, into the container's groups. Raises OSError."""
        for folder in self._folders_by_name[name]:
            write_file(f"{name}/tasks", "0", dir_fd=folder.fd)

    def detach(self, name: str) -> None:
        """Move it back home. Raises OSError."""
        for folder in self._folders_by_name[name]:
            os.write(folder.home_fd, b"0")

    def processes(self, name: str) -> list[int]:
        """Return the living processes of a container."""
        if name not in self._nested:
            return read_pids(f"{name}/cgroup.procs", dir_fd=self._tracking.fd)
        pids: list[int] = []
        for folder in self._folders_by_name[name]:
            for path in walk(f"{folder.path}/{name}"):
                pids += read_pids(f"{path}/cgroup.procs")
        return pids

    def kill(self, name: str) -> bool:
        """SIGKILL to all; True if there was nobody."""
        if not self.processes(name):
            return True
        write_file(f"{name}/pids.max", "0", dir_fd=self._tracking.fd)  # No fork gets away from the signals.
        signal_listed(lambda: self.processes(name), signal.SIGKILL)
        return False

    def usage(self, name: str) -> Usage:
        """Return the kernel's counters; zeros for a container without a bound on memory."""
        folder = self._folders["memory"]
        if folder not in self._folders_by_name[name]:
            return Usage()
        try:
            oom_kills = read_counter(f"{name}/memory.oom_control", "oom_kill", dir_fd=folder.fd)
            peak = int(read_file(f"{name}/memory.max_usage_in_bytes", dir_fd=folder.fd))
        except FileNotFoundError:  # Somebody has removed the empty group.
            return Usage()
        return Usage(oom_kills=oom_kills, mem_peak_bytes=peak)

    def remove(self, name: str) -> bool:
        """Remove a container's groups; False if the kernel still holds one: ask again."""
        for folder in self._folders_by_name[name]:
            try:
                os.rmdir(name, dir_fd=folder.fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                self._nested.add(name)
                if not remove_tree(f"{folder.path}/{name}"):
                    return False
        del self._folders_by_name[name]
        self._nested.discard(name)
        return True

    def close(self) -> None:
        """Remove the supervisor's folders, and their parents if no other supervisor is in them."""
        for folder in dict.fromkeys(self._folders.values()):
            remove_tree(folder.path)
            for fd in (folder.fd, folder.home_fd):
                os.close(fd)
            with contextlib.suppress(OSError):  # Other supervisors are in it.
                os.rmdir(os.path.dirname(folder.path))

    def _share_cpu(self, name: str, cpu_milli: int) -> None:
        shares = min(_SHARES_MOST, max(_SHARES_LEAST, cpu_milli * _SHARES_PER_CPU // 1000))
        write_file(f"{name}/cpu.shares", str(shares), dir_fd=self._folders["cpu"].fd)

    def _limit_memory(self, name: str, limit: str) -> None:
        fd = self._folders["memory"].fd
        write_file(f"{name}/memory.limit_in_bytes", limit, dir_fd=fd)
        with contextlib.suppress(FileNotFoundError):  # The kernel does not account swap.
            write_file(f"{name}/memory.memsw.limit_in_bytes", limit, dir_fd=fd)
