"""Where this process stands in the machine's cgroup hierarchies, and how their files are read and written."""

import contextlib
import errno
import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from isolation.processes import signal_listed
from meseta.errors import IsolationError

_READ_LIMIT_BYTES: Final = 1 << 20
_OCTAL: Final = re.compile(r"\\([0-7]{3})")  # How mountinfo writes blanks.
_PAUSE_S: Final = 0.002
_ATTEMPTS: Final = 10  # Against others who remove the same empty parents at the same moment.


class Hierarchy(NamedTuple):
    """One mounted tree of groups. `own` is the folder of our own group in it; v2 has its controllers in files."""

    mount: str
    own: str
    controllers: frozenset[str]
    is_v2: bool


def parse_hierarchies(mountinfo: str, own_groups: str) -> list[Hierarchy]:
    """Return the hierarchies that /proc/self/mountinfo and /proc/self/cgroup tell of, in order of mounting.

    Controllers may share a mount (cpu,cpuacct), and one hierarchy may be mounted twice: the first counts.
    """
    paths: dict[frozenset[str], str] = {}
    for line in own_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        paths[frozenset(filter(None, controllers.split(",")))] = path
    found: dict[frozenset[str], Hierarchy] = {}
    for line in mountinfo.splitlines():
        mount_fields, _, source_fields = line.partition(" - ")
        kind, _, options = source_fields.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        fields = mount_fields.split(" ")
        root, mount = _unescape(fields[3]), _unescape(fields[4])
        offered = set(options.split(","))
        key = next((key for key in paths if key <= offered and bool(key) == (kind == "cgroup")), None)
        if key is not None and key not in found:
            own = _below(mount, root, paths[key])
            found[key] = Hierarchy(mount=mount, own=own, controllers=key, is_v2=kind == "cgroup2")
    return list(found.values())


def own_hierarchies() -> list[Hierarchy]:
    """Return the hierarchies as this process sees them."""
    with open("/proc/self/mountinfo") as mountinfo, open("/proc/self/cgroup") as groups:
        return parse_hierarchies(mountinfo.read(), groups.read())


def supervisor_folder(hierarchy: Hierarchy, root: str, supervisor: str) -> str:
    """Return where a supervisor's groups go: `root` is relative to our own group, or absolute."""
    base = hierarchy.mount + root if root.startswith("/") else f"{hierarchy.own}/{root}"
    return f"{base.rstrip('/')}/{supervisor}"


def write_file(path: str, text: str, *, dir_fd: int | None = None) -> None:
    """Write a control file. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read_file(path: str, *, dir_fd: int | None = None) -> str:
    """Read a control file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        data = b""
        while piece := os.read(fd, _READ_LIMIT_BYTES):
            data += piece
        return data.decode()
    finally:
        os.close(fd)


def read_pids(path: str, *, dir_fd: int | None = None) -> list[int]:
    """Return the processes of a cgroup.procs file; none if the group is gone."""
    try:
        return [int(pid) for pid in read_file(path, dir_fd=dir_fd).split() if pid != "0"]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise


def read_counter(path: str, name: str, *, dir_fd: int | None = None) -> int:
    """Return the number after `name` in a file of lines `name number`; 0 if it is not there."""
    for line in read_file(path, dir_fd=dir_fd).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def make_and_lock(folder: str) -> int:
    """Make a supervisor's folder, with its parents; return a descriptor that holds its lock.

    The lock tells later supervisors that this one lives. Raises OSError.
    """
    for _ in range(_ATTEMPTS):
        try:
            os.makedirs(folder, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # Another one found our parents empty, and removed them.
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_same(fd, folder):
            return fd
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "somebody removes it again and again", folder)


def remove_dead_supervisors(parent: str) -> None:
    """Remove the empty groups of supervisors that are gone, and `parent` if nothing is left in it.

    Groups in which something lives are left: the slave that knows them kills and reports them.
    """
    for entry in _subfolders(parent):
        try:
            fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # It ended just now.
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            remove_tree(entry)
        finally:
            os.close(fd)
    with contextlib.suppress(OSError):  # Others are in it.
        os.rmdir(parent)


def remove_tree(folder: str) -> bool:
    """Remove a group and those below it, as far as they are empty; True if all are gone."""
    for path in reversed(list(walk(folder))):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
    return True


def walk(folder: str) -> Iterator[str]:
    """Yield a group and all below it, parents first."""
    yield folder
    for entry in _subfolders(folder):
        yield from walk(entry)


def kill_groups(folders: Sequence[str], *, limit_s: float) -> list[str]:
    """Kill all in these groups and below, and remove them; return those in which something lived.

    For groups that nobody owns any more.

    Raises:
        IsolationError: something lives on.
    """
    until = time.monotonic() + limit_s
    had_life: dict[str, None] = {}
    left = list(folders)
    while left:
        living = [folder for folder in left if _kill_once(folder)]
        had_life.update(dict.fromkeys(living))
        left = [folder for folder in left if folder in living or not remove_tree(folder)]
        if left and time.monotonic() > until:
            raise IsolationError(f"{left[0]} cannot be emptied: something lives {limit_s:.0f} s after it was killed")
        if left:
            time.sleep(_PAUSE_S)
    return list(had_life)


def _kill_once(folder: str) -> bool:
    is_alive = False
    for path in walk(folder):
        _forbid_forks(path)
        is_alive = signal_listed(partial(read_pids, f"{path}/cgroup.procs"), signal.SIGKILL) or is_alive
    return is_alive


def _forbid_forks(folder: str) -> None:
    try:
        write_file(f"{folder}/pids.max", "0")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EACCES):
            raise


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _is_same(fd: int, folder: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(folder))
    except FileNotFoundError:
        return False


def _below(mount: str, root: str, path: str) -> str:
    """Return where group `path` is seen in a mount that shows the tree from `root` on."""
    root = root.rstrip("/")
    if path != root and not path.startswith(root + "/"):
        return mount  # Our group is outside of what this mount shows: its top is the nearest we have.
    return (mount + path[len(root) :]).rstrip("/")


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)
